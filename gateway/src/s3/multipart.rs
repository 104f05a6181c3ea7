//! Multipart uploads.

use std::sync::OnceLock;

use lithos_storage::{
    CompletedPart, Error, ErrorKind, IngestOptions, Ingested, NewUpload, ObjectKey, ObjectRecord, OpenUpload,
    PartNumber, PutOutcome, WriteCondition,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    PUT_LEN_MAX,
    answer::xml_text,
    checksum::{self, Expected, checksum_type, named_checksums, set_checksum},
    lifecycle::expiration,
    list::page_size,
    object_lock,
    owner::Owners,
    post::object_url,
    precondition::{write_condition, write_error},
    put::{body, declared_len},
    wire::{
        bucket_name, content_headers, etag, header_tags, length, object_key, refuse, shown_version, signer,
        store_error, timestamp, upload_id, user_metadata,
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
    let lock = object_lock::asked(app, &request.headers)?;
    let mut input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let algorithm = input
        .checksum_algorithm
        .as_ref()
        .map(|name| checksum::parse_algorithm(name.as_str()))
        .transpose()?;
    let asked = input.checksum_type.as_ref().map(dto::ChecksumType::as_str);
    let kind = checksum::upload_type(algorithm, asked)?;
    let new = NewUpload {
        headers: content_headers!(input),
        metadata: user_metadata(input.metadata.take())?,
        tags: header_tags(input.tagging.as_deref())?,
        checksum_algorithm: algorithm,
        checksum_type: kind,
        owner,
        lock,
    };
    let id = app.store.create_upload(&bucket, &key, new).await.map_err(store_error)?;
    Ok(S3Response::new(dto::CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(xml_text(&input.key)),
        upload_id: Some(id.to_string()),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: kind.map(checksum_type),
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
    expected.check_part(announced)?;
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
    let condition = write_condition(&request.headers)?;
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
    // What the object turns out to be is known in the transaction; why it is refused there does not fit a store's error.
    let refused = OnceLock::new();
    let complete = app
        .store
        .complete_upload(&bucket, &key, id, &parts, &condition, |bucket_record, record| {
            if let Err(error) = check_completed(&input, record) {
                let message = error.message().unwrap_or_default().to_owned();
                let _ = refused.set(error);
                return Err(Error::new(ErrorKind::PreconditionFailed, message));
            }
            Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
        });
    let PutOutcome { record, bucket: holder } = match complete.await {
        Ok(put) => put,
        Err(error) => {
            let conditional = condition != WriteCondition::Always;
            return Err(refused.into_inner().unwrap_or_else(|| write_error(conditional)(error)));
        }
    };
    annotate::annotate_object(app, &bucket, &key, record.layout_id).await;
    let mut output = dto::CompleteMultipartUploadOutput {
        location: Some(object_url(&request.headers, bucket.as_str(), key.as_str())),
        bucket: Some(input.bucket),
        key: Some(xml_text(&input.key)),
        e_tag: Some(etag(&record.etag)),
        checksum_type: record.checksum.as_ref().map(|checksum| checksum_type(checksum.kind)),
        version_id: shown_version(&holder, record.version),
        expiration: expiration(app, &holder, key.as_str(), &record).await?,
        ..Default::default()
    };
    set_checksum!(output, &record.checksum);
    Ok(S3Response::new(output))
}

/// Holds an object that is about to be completed against what the client says it should be.
fn check_completed(input: &dto::CompleteMultipartUploadInput, record: &ObjectRecord) -> S3Result<()> {
    let invalid = |message: &str| Err(refuse(S3ErrorCode::InvalidRequest, message));
    if input
        .mpu_object_size
        .is_some_and(|size| u64::try_from(size).ok() != Some(record.size()))
    {
        return invalid("the object has another size than x-amz-mp-object-size says");
    }
    let checksum = record.checksum.as_ref();
    if let Some(kind) = &input.checksum_type
        && checksum.is_some_and(|checksum| checksum_type(checksum.kind) != *kind)
    {
        return invalid("the upload was begun for checksums of another type");
    }
    for (algorithm, declared) in named_checksums!(input) {
        let Some(declared) = declared else { continue };
        match checksum {
            Some(checksum) if checksum.algorithm == algorithm && checksum.value == *declared => {}
            Some(checksum) if checksum.algorithm == algorithm => {
                return Err(refuse(
                    S3ErrorCode::BadDigest,
                    format!(
                        "the object's checksum is {}, not {declared} as declared",
                        checksum.value
                    ),
                ));
            }
            _ => return invalid("the upload was not begun for checksums of this algorithm"),
        }
    }
    Ok(())
}

fn completed_part(part: dto::CompletedPart) -> S3Result<CompletedPart> {
    let etag = part
        .e_tag
        .ok_or_else(|| refuse(S3ErrorCode::MalformedXML, "a completion names each part with its ETag"))?;
    let checksums = named_checksums!(part);
    let checksum = checksums.into_iter().find_map(|(_, value)| value.clone());
    Ok(CompletedPart {
        number: part_number(part.part_number.unwrap_or_default())?,
        etag: etag.value().to_owned(),
        checksum,
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
    let owners = Owners::of(app, [upload.owner.as_str()].into()).await?;
    let next = parts.last().and_then(|part| part.part_number);
    Ok(S3Response::new(dto::ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(xml_text(&input.key)),
        upload_id: Some(input.upload_id),
        is_truncated: Some(listing.more && limit > 0),
        max_parts: Some(max_parts),
        part_number_marker: Some(input.part_number_marker.unwrap_or_default()),
        next_part_number_marker: next,
        parts: Some(parts),
        owner: Some(owners.owner(&upload.owner)),
        initiator: Some(owners.initiator(&upload.owner)),
        storage_class: Some(dto::StorageClass::from(
            upload
                .headers
                .storage_class
                .unwrap_or_else(|| dto::StorageClass::STANDARD.to_owned()),
        )),
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
