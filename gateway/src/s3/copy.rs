//! CopyObject and UploadPartCopy: new layouts over the source's blobs.

use std::ops::Range;

use lithos_storage::{
    Checksum, ChecksumAlgorithm, ChecksumType, Content, ContentHeaders, DigestSet, ErrorKind, NewObject, ObjectKey,
    ObjectRecord, OpenObject, PutOutcome, Versioning, WriteCondition,
};
use md5::{Digest, Md5};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    PUT_LEN_MAX,
    checksum::{checksum_type, parse_algorithm, set_checksum},
    lifecycle::expiration,
    multipart::{open_upload, part_number},
    object_lock,
    precondition::{ETags, ReadConditions, Unmet, write_condition, write_error},
    wire::{
        bucket_name, content_headers, etag, header_tags, object_key, refuse, shown_version, signer, storage_class,
        store_error, timestamp, user_metadata, version_id,
    },
};
use crate::{
    app::App,
    auth::user,
    image::{annotate, wishes},
};

/// Collects the conditions on a copy's source.
macro_rules! source_conditions {
    ($input:expr, $headers:expr) => {
        ReadConditions {
            if_match: ETags::of($headers, "x-amz-copy-source-if-match"),
            if_unmodified_since: $input.copy_source_if_unmodified_since.take(),
            if_none_match: ETags::of($headers, "x-amz-copy-source-if-none-match"),
            if_modified_since: $input.copy_source_if_modified_since.take(),
        }
    };
}

pub(super) async fn copy_object(
    app: &App,
    request: S3Request<dto::CopyObjectInput>,
) -> S3Result<S3Response<dto::CopyObjectOutput>> {
    let owner = signer(&request);
    let mut input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let replace_metadata = replaces(input.metadata_directive.as_ref().map(dto::MetadataDirective::as_str))?;
    let replace_tags = replaces(input.tagging_directive.as_ref().map(dto::TaggingDirective::as_str))?;
    let changes =
        replace_metadata || replace_tags || input.storage_class.is_some() || input.website_redirect_location.is_some();
    let source = open_source(app, &input.copy_source).await?;
    source_conditions!(input, &request.headers).check(&source.record, Unmet::PreconditionFailed)?;
    if !changes && is_itself(&input.copy_source, &source, bucket.as_str(), key.as_str()) {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "a copy of an object onto itself must change its metadata, tags, storage class or redirect",
        ));
    }
    if source.record.size() > PUT_LEN_MAX {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "an object over 5 GiB is copied in parts, by UploadPartCopy",
        ));
    }
    let condition = write_condition(&request.headers)?;
    let lock = object_lock::asked(app, &request.headers)?;
    let conditional = condition != WriteCondition::Always;
    let algorithm = input.checksum_algorithm.as_ref();
    let algorithm = algorithm.map(|name| parse_algorithm(name.as_str())).transpose()?;
    let mut new = copied(share(app, &source).await?, &source.record, owner);
    new.condition = condition;
    if replace_metadata {
        new.headers = content_headers!(input);
        new.metadata = user_metadata(input.metadata.take())?;
    } else {
        let class = storage_class(input.storage_class.take())?;
        let redirect = input.website_redirect_location.take();
        new.headers = ContentHeaders {
            storage_class: class,
            website_redirect_location: redirect,
            ..new.headers
        };
    }
    if replace_tags {
        new.tags = header_tags(input.tagging.as_deref())?;
    }
    look_again(app, &mut new, &key, &source.record, &input.copy_source).await;
    if let Some(algorithm) = algorithm {
        new.checksum = Some(full_checksum(&source, algorithm).await?);
    }
    let put = app.store.put_object(&bucket, &key, new, |bucket_record, record| {
        user::require_owner(app, bucket_record, &record.owner)?;
        record.lock = lock;
        Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
    });
    let PutOutcome { record, bucket } = put.await.map_err(write_error(conditional))?;
    let mut result = dto::CopyObjectResult {
        e_tag: Some(etag(&record.etag)),
        last_modified: Some(timestamp(record.last_modified)),
        checksum_type: record.checksum.as_ref().map(|checksum| checksum_type(checksum.kind)),
        ..Default::default()
    };
    set_checksum!(result, &record.checksum);
    Ok(S3Response::new(dto::CopyObjectOutput {
        copy_object_result: Some(result),
        copy_source_version_id: shown_version(&source.bucket, source.record.version),
        version_id: shown_version(&bucket, record.version),
        expiration: expiration(app, &bucket, key.as_str(), &record).await?,
        ..Default::default()
    }))
}

pub(super) async fn upload_part_copy(
    app: &App,
    request: S3Request<dto::UploadPartCopyInput>,
) -> S3Result<S3Response<dto::UploadPartCopyOutput>> {
    let mut input = request.input;
    let number = part_number(input.part_number)?;
    let upload = open_upload(app, &input.bucket, &input.key, &input.upload_id).await?;
    let source = open_source(app, &input.copy_source).await?;
    source_conditions!(input, &request.headers).check(&source.record, Unmet::PreconditionFailed)?;
    let size = source.record.size();
    let range = input
        .copy_source_range
        .as_deref()
        .map_or(Ok(0..size), |range| source_range(range, size))?;
    let len = range.end - range.start;
    if len > PUT_LEN_MAX {
        return Err(refuse(S3ErrorCode::InvalidRequest, "a part has at most 5 GiB"));
    }
    let mut builder = app
        .store
        .content_builder_for(upload.id, Some(&source))
        .await
        .map_err(store_error)?;
    builder
        .push_range(&mut source.reader(), range.start, len)
        .await
        .map_err(store_error)?;
    let content = builder.finish().await.map_err(store_error)?;
    let part_etag = part_etag(&source.record, &range);
    let checksum = match upload.record.checksum_algorithm {
        Some(algorithm) => Some(computed(&source, range, algorithm).await?),
        None => None,
    };
    let (bucket, key) = (bucket_name(&input.bucket)?, object_key(&input.key)?);
    let part = app
        .store
        .put_part(&bucket, &key, number, content, part_etag, checksum)
        .await
        .map_err(store_error)?;
    let mut result = dto::CopyPartResult {
        e_tag: Some(etag(&part.etag)),
        last_modified: Some(timestamp(part.last_modified)),
        ..Default::default()
    };
    set_checksum!(result, &part.checksum);
    Ok(S3Response::new(dto::UploadPartCopyOutput {
        copy_part_result: Some(result),
        copy_source_version_id: shown_version(&source.bucket, source.record.version),
        ..Default::default()
    }))
}

/// The checksum of all bytes of `source`: the one it has, or else they are read.
async fn full_checksum(source: &OpenObject, algorithm: ChecksumAlgorithm) -> S3Result<Checksum> {
    match &source.record.checksum {
        Some(known) if known.algorithm == algorithm && known.kind == ChecksumType::FullObject => Ok(known.clone()),
        _ => computed(source, 0..source.record.size(), algorithm).await,
    }
}

async fn computed(source: &OpenObject, range: Range<u64>, algorithm: ChecksumAlgorithm) -> S3Result<Checksum> {
    let set = DigestSet {
        checksums: vec![algorithm],
        sha512: false,
    };
    let digests = source.digests(range, &set).await.map_err(store_error)?;
    Ok(Checksum {
        algorithm,
        value: digests.checksum(algorithm).unwrap_or_default().to_owned(),
        kind: ChecksumType::FullObject,
    })
}

/// The whole of `source`, by reference.
async fn share(app: &App, source: &OpenObject) -> S3Result<Content> {
    Ok(app
        .store
        .content_builder(Some(source))
        .await
        .map_err(store_error)?
        .share(source))
}

/// A copy before any directive. What the server knows of the image holds for it too, but it is nobody's derivative.
fn copied(content: Content, record: &ObjectRecord, owner: String) -> NewObject {
    let mut annotations = record.annotations.clone();
    annotations.remove(annotate::DERIVED_FROM);
    NewObject {
        content,
        etag: record.etag.clone(),
        headers: record.headers.clone(),
        metadata: record.metadata.clone(),
        tags: record.tags.clone(),
        checksum: record.checksum.clone(),
        part_sizes: record.part_sizes.clone(),
        annotations,
        owner,
        last_modified: None,
        condition: WriteCondition::default(),
        fence: None,
        source: None,
    }
}

/// The `ETag` of a copied part.
///
/// Differs: S3 gives the MD5 of the bytes, which would mean to read them all. Ours is the MD5 of the source's `ETag` and
/// the range: as unique, and never taken for the MD5 of content, because an `ETag` of a completed upload is not one either.
fn part_etag(source: &ObjectRecord, range: &Range<u64>) -> String {
    if *range == (0..source.size()) && !source.etag.contains('-') {
        return source.etag.clone();
    }
    let mut md5 = Md5::new();
    md5.update(format!("{} {}-{}", source.etag, range.start, range.end));
    hex::encode(md5.finalize())
}

async fn open_source(app: &App, source: &dto::CopySource) -> S3Result<OpenObject> {
    let dto::CopySource::Bucket {
        bucket,
        key,
        version_id: version,
    } = source
    else {
        return Err(refuse(
            S3ErrorCode::NotImplemented,
            "a copy's source is named by bucket and key",
        ));
    };
    let opened = app
        .store
        .open_version(
            &bucket_name(bucket)?,
            &object_key(key)?,
            version_id(version.as_deref())?,
        )
        .await;
    opened.map_err(|error| match error.kind() {
        ErrorKind::IsDeleteMarker => refuse(S3ErrorCode::InvalidRequest, error.to_string()),
        _ => store_error(error),
    })
}

/// Whether a copy would leave everything as it is. An earlier version is brought back by copying it onto its own key.
fn is_itself(source: &dto::CopySource, open: &OpenObject, bucket: &str, key: &str) -> bool {
    match source {
        dto::CopySource::Bucket {
            bucket: from_bucket,
            key: from_key,
            version_id,
        } => {
            let names_version = version_id.is_some() && open.bucket.versioning != Versioning::Never;
            **from_bucket == *bucket && **from_key == *key && !names_version
        }
        _ => false,
    }
}

/// Looks at the image anew where the copy is said to be something else than its source: a warning may be about that.
async fn look_again(app: &App, new: &mut NewObject, key: &ObjectKey, record: &ObjectRecord, source: &dto::CopySource) {
    let dto::CopySource::Bucket { key: source_key, .. } = source else {
        return;
    };
    let said = |key, headers: &ContentHeaders| annotate::Said::new(key, headers.content_type.as_deref());
    let said_now = said(key.as_str(), &new.headers);
    if said_now != said(source_key, &record.headers) {
        new.annotations = annotate::annotations(app, new.content.layout(), said_now).await;
    }
}

fn replaces(directive: Option<&str>) -> S3Result<bool> {
    match directive {
        None | Some("COPY") => Ok(false),
        Some("REPLACE") => Ok(true),
        Some(_) => Err(refuse(S3ErrorCode::InvalidArgument, "a directive is COPY or REPLACE")),
    }
}

/// `bytes=first-last`, both given and within the source (S3 API Reference, "UploadPartCopy").
fn source_range(text: &str, size: u64) -> S3Result<Range<u64>> {
    match dto::Range::parse(text) {
        Ok(dto::Range::Int {
            first,
            last: Some(last),
        }) if last < size => Ok(first..last + 1),
        Ok(dto::Range::Int { last: Some(_), .. }) => Err(refuse(
            S3ErrorCode::InvalidRange,
            format!("the range is not within the {size} bytes of the source"),
        )),
        _ => Err(refuse(
            S3ErrorCode::InvalidArgument,
            "the range of a copied part has the form bytes=first-last",
        )),
    }
}
