//! `GetObjectAttributes`.

use lithos_storage::{ObjectRecord, OpenObject, PARTS_A_READ_MAX, PartNumber, PartSize};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer::Unquoted,
    checksum::{checksum_type, set_checksum},
    get::open,
    list::page_size,
    wire::{etag, length, refuse, shown_version, store_error, timestamp},
};
use crate::app::App;

/// What can be asked for.
const ATTRIBUTES: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];

pub(super) async fn get_object_attributes(
    app: &App,
    request: S3Request<dto::GetObjectAttributesInput>,
) -> S3Result<S3Response<dto::GetObjectAttributesOutput>> {
    let input = request.input;
    let asked = asked(&input.object_attributes)?;
    let wants = |attribute: &str| asked.iter().any(|asked| asked == attribute);
    let object = open(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let record = &object.record;
    let mut output = dto::GetObjectAttributesOutput {
        last_modified: Some(timestamp(record.last_modified)),
        e_tag: wants("ETag").then(|| etag(&record.etag)),
        object_size: wants("ObjectSize").then(|| length(record.size())),
        storage_class: wants("StorageClass").then(|| storage_class(record)),
        version_id: shown_version(&object.bucket, record.version),
        ..Default::default()
    };
    if wants("Checksum")
        && let Some(checksum) = &record.checksum
    {
        let mut shown = dto::Checksum {
            checksum_type: Some(checksum_type(checksum.kind)),
            ..Default::default()
        };
        set_checksum!(shown, Some(checksum));
        output.checksum = Some(shown);
    }
    if wants("ObjectParts") && !record.part_sizes.is_empty() {
        let after = input.part_number_marker.unwrap_or_default();
        output.object_parts = Some(parts(app, &object, after, page_size(input.max_parts)?).await?);
    }
    let mut response = S3Response::new(output);
    // In this answer alone, S3 writes the ETag without quotes.
    response.extensions.insert(Unquoted);
    Ok(response)
}

/// The attributes that are asked for: one header with commas, or several.
fn asked(lists: &[dto::ObjectAttributes]) -> S3Result<Vec<String>> {
    let names: Vec<String> = lists
        .iter()
        .flat_map(|list| list.as_str().split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    match names.iter().find(|name| !ATTRIBUTES.contains(&name.as_str())) {
        Some(unknown) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            format!("{unknown:?} is not an attribute of an object"),
        )),
        None if names.is_empty() => Err(refuse(
            S3ErrorCode::InvalidArgument,
            "x-amz-object-attributes names no attribute",
        )),
        None => Ok(names),
    }
}

fn storage_class(record: &ObjectRecord) -> dto::StorageClass {
    let class = record.headers.storage_class.clone();
    dto::StorageClass::from(class.unwrap_or_else(|| dto::StorageClass::STANDARD.to_owned()))
}

/// The parts behind number `after`, at most `limit`.
async fn parts(app: &App, object: &OpenObject, after: i32, limit: i32) -> S3Result<dto::GetObjectAttributesParts> {
    let first = u32::try_from(after)
        .ok()
        .filter(|after| *after <= u32::from(PartNumber::MAX))
        .ok_or_else(|| {
            refuse(
                S3ErrorCode::InvalidArgument,
                "a part number marker is within 0 and 10,000",
            )
        })?;
    let runs = &object.record.part_sizes;
    let count: u32 = runs.iter().map(|run| run.count).sum();
    let limit_count = u32::try_from(limit).unwrap_or(0).min(PARTS_A_READ_MAX);
    let end = first.saturating_add(limit_count).min(count);
    let checksums = app
        .store
        .part_checksums(object, first..end)
        .await
        .map_err(store_error)?;
    let mut checksums = checksums.into_iter();
    let mut shown = Vec::new();
    for (number, size) in (1_i32..)
        .zip(sizes(runs))
        .skip(first as usize)
        .take((end.saturating_sub(first)) as usize)
    {
        let mut part = dto::ObjectPart {
            part_number: Some(number),
            size: Some(length(size)),
            ..Default::default()
        };
        set_checksum!(part, checksums.next());
        shown.push(part);
    }
    let more = end < count && limit > 0;
    Ok(dto::GetObjectAttributesParts {
        total_parts_count: i32::try_from(count).ok(),
        is_truncated: Some(more),
        max_parts: Some(limit),
        part_number_marker: Some(after),
        next_part_number_marker: i32::try_from(end.max(first)).ok(),
        parts: Some(shown),
    })
}

/// The size of each part.
fn sizes(runs: &[PartSize]) -> impl Iterator<Item = u64> {
    runs.iter()
        .flat_map(|run| std::iter::repeat_n(run.size, run.count as usize))
}
