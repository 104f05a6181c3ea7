//! Multipart uploads.

use lithos_storage::{
    ChecksumType, CompletedPart, IngestOptions, Ingested, NewUpload, ObjectKey, OpenUpload, PartNumber,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    PUT_LEN_MAX,
    checksum::{self, Expected, checksum_type, set_checksum},
    list::page_size,
    precondition::write_condition,
    put::{body, declared_len},
    wire::{
        bucket_name, content_headers, etag, header_tags, length, object_key, owner, refuse, signer, store_error,
        timestamp, upload_id, user_metadata,
    },
};
use crate::{
    app::App,
    image::{annotate, wishes},
};

pub(super) async fn create_multipart_upload(
    app: &App,
    request: S3Request<dto::CreateMultipartUploadInput>,
) -> S3Result<S3Response<dto::CreateMultipartUploadOutput>> {
    let owner = signer(&request);
    let mut input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let algorithm = input
        .checksum_algorithm
        .as_ref()
        .map(|name| checksum::parse_algorithm(name.as_str()))
        .transpose()?;
    let kind = input.checksum_type.as_ref().map(|kind| match kind.as_str() {
        dto::ChecksumType::FULL_OBJECT => Ok(ChecksumType::FullObject),
        dto::ChecksumType::COMPOSITE => Ok(ChecksumType::Composite),
        _ => Err(refuse(
            S3ErrorCode::InvalidRequest,
            "the checksum type is neither FULL_OBJECT nor COMPOSITE",
        )),
    });
    let new = NewUpload {
        headers: content_headers!(input),
        metadata: user_metadata(input.metadata.take())?,
        tags: header_tags(input.tagging.as_deref())?,
        checksum_algorithm: algorithm,
        checksum_type: kind.transpose()?,
        owner,
    };
    let id = app.store.create_upload(&bucket, &key, new).await.map_err(store_error)?;
    Ok(S3Response::new(dto::CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(id.to_string()),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: input.checksum_type,
        ..Default::default()
    }))
}

pub(super) async fn upload_part(
    app: &App,
    request: S3Request<dto::UploadPartInput>,
) -> S3Result<S3Response<dto::UploadPartOutput>> {
    let S3Request {
        mut input,
        headers,
        trailing_headers,
        ..
    } = request;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let number = part_number(input.part_number)?;
    let upload = app
        .store
        .open_upload(&bucket, &key, upload_id(&input.upload_id)?)
        .await
        .map_err(store_error)?;
    let expected = Expected::of(&headers)?;
    let announced = upload.record.checksum_algorithm;
    let options = IngestOptions {
        declared_len: Some(declared_len(&headers, input.content_length)?),
        len_max: Some(PUT_LEN_MAX),
        digests: expected.digests(announced),
        upload: Some(upload.id),
    };
    let Ingested { content, digests } = app
        .store
        .ingest(body(input.body.take()), options)
        .await
        .map_err(store_error)?;
    let checksum = expected.verify(&digests, trailing_headers.as_ref(), announced)?;
    let part = app
        .store
        .put_part(&bucket, &key, number, content, hex::encode(digests.md5), checksum)
        .await;
    let part = part.map_err(store_error)?;
    let mut output = dto::UploadPartOutput {
        e_tag: Some(etag(&part.etag)),
        ..Default::default()
    };
    set_checksum!(output, &part.checksum);
    Ok(S3Response::new(output))
}

pub(super) async fn complete_multipart_upload(
    app: &App,
    request: S3Request<dto::CompleteMultipartUploadInput>,
) -> S3Result<S3Response<dto::CompleteMultipartUploadOutput>> {
    let mut input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let id = upload_id(&input.upload_id)?;
    let condition = write_condition(input.if_match.take(), input.if_none_match.take())?;
    let parts = input
        .multipart_upload
        .take()
        .and_then(|upload| upload.parts)
        .unwrap_or_default();
    if parts.is_empty() || parts.len() > usize::from(PartNumber::MAX) {
        return Err(refuse(
            S3ErrorCode::MalformedXML,
            format!("a completion names 1 to {} parts", PartNumber::MAX),
        ));
    }
    let parts = parts.into_iter().map(completed_part).collect::<S3Result<Vec<_>>>()?;
    let complete = app
        .store
        .complete_upload(&bucket, &key, id, &parts, &condition, |bucket_record, record| {
            Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
        });
    let record = complete.await.map_err(store_error)?.record;
    annotate::annotate_object(app, &bucket, &key, record.layout_id).await;
    let mut output = dto::CompleteMultipartUploadOutput {
        location: Some(format!("/{bucket}/{key}")),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag(&record.etag)),
        checksum_type: record.checksum.as_ref().map(|checksum| checksum_type(checksum.kind)),
        ..Default::default()
    };
    set_checksum!(output, &record.checksum);
    Ok(S3Response::new(output))
}

fn completed_part(part: dto::CompletedPart) -> S3Result<CompletedPart> {
    let etag = part
        .e_tag
        .ok_or_else(|| refuse(S3ErrorCode::MalformedXML, "a completion names each part with its ETag"))?;
    let checksums = [
        part.checksum_crc32,
        part.checksum_crc32c,
        part.checksum_crc64nvme,
        part.checksum_sha1,
        part.checksum_sha256,
    ];
    Ok(CompletedPart {
        number: part_number(part.part_number.unwrap_or_default())?,
        etag: etag.value().to_owned(),
        checksum: checksums.into_iter().flatten().next(),
    })
}

pub(super) async fn abort_multipart_upload(
    app: &App,
    request: S3Request<dto::AbortMultipartUploadInput>,
) -> S3Result<S3Response<dto::AbortMultipartUploadOutput>> {
    let input = request.input;
    let (bucket, key): (_, ObjectKey) = (bucket_name(&input.bucket)?, object_key(&input.key)?);
    app.store
        .abort_upload(&bucket, &key, upload_id(&input.upload_id)?)
        .await
        .map_err(store_error)?;
    Ok(S3Response::new(dto::AbortMultipartUploadOutput::default()))
}

pub(super) async fn list_parts(
    app: &App,
    request: S3Request<dto::ListPartsInput>,
) -> S3Result<S3Response<dto::ListPartsOutput>> {
    let input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let max_parts = page_size(input.max_parts)?;
    let id = upload_id(&input.upload_id)?;
    let after = input
        .part_number_marker
        .filter(|marker| *marker > 0)
        .map(part_number)
        .transpose()?;
    let limit = usize::try_from(max_parts).unwrap_or(0);
    let listing = app
        .store
        .list_parts(&bucket, &key, id, after, limit.max(1))
        .await
        .map_err(store_error)?;
    let mut parts: Vec<dto::Part> = Vec::with_capacity(listing.parts.len());
    for (number, part) in listing.parts.into_iter().take(limit) {
        let mut listed = dto::Part {
            part_number: Some(i32::from(number.get())),
            e_tag: Some(etag(&part.etag)),
            last_modified: Some(timestamp(part.last_modified)),
            size: Some(length(part.layout.size())),
            ..Default::default()
        };
        set_checksum!(listed, &part.checksum);
        parts.push(listed);
    }
    let upload = listing.upload;
    let next = parts.last().and_then(|part| part.part_number);
    Ok(S3Response::new(dto::ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        is_truncated: Some(listing.more && limit > 0),
        max_parts: Some(max_parts),
        part_number_marker: Some(input.part_number_marker.unwrap_or_default()),
        next_part_number_marker: next,
        parts: Some(parts),
        owner: Some(owner(&upload.owner)),
        initiator: Some(dto::Initiator {
            id: Some(upload.owner.clone()),
            display_name: Some(upload.owner),
        }),
        storage_class: Some(dto::StorageClass::from_static(dto::StorageClass::STANDARD)),
        checksum_algorithm: upload
            .checksum_algorithm
            .map(|algorithm| dto::ChecksumAlgorithm::from_static(checksum::name(algorithm))),
        checksum_type: upload.checksum_type.map(checksum_type),
        ..Default::default()
    }))
}

pub(super) fn part_number(number: i32) -> S3Result<PartNumber> {
    PartNumber::new(i64::from(number)).map_err(|e| refuse(S3ErrorCode::InvalidArgument, e.to_string()))
}

/// The upload that a part is for.
pub(super) async fn open_upload(app: &App, bucket: &str, key: &str, id: &str) -> S3Result<OpenUpload> {
    app.store
        .open_upload(&bucket_name(bucket)?, &object_key(key)?, upload_id(id)?)
        .await
        .map_err(store_error)
}
