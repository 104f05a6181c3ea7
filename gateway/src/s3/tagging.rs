//! Tags of objects and of buckets. Setting them sets off what they wish for.

use std::collections::BTreeSet;

use lithos_storage::{BucketName, PutOutcome, Tags, VersionState};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    get::open,
    wire::{
        BUCKET_TAGS_MAX, OBJECT_TAGS_MAX, bucket_name, object_key, refuse, set_tags, shown_version, store_error,
        tag_set, version_id,
    },
};
use crate::{app::App, image::wishes, job::Task};

pub(super) async fn get_object_tagging(
    app: &App,
    request: S3Request<dto::GetObjectTaggingInput>,
) -> S3Result<S3Response<dto::GetObjectTaggingOutput>> {
    let input = request.input;
    let object = open(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    Ok(S3Response::new(dto::GetObjectTaggingOutput {
        tag_set: tag_set(&object.record.tags),
        version_id: shown_version(&object.bucket, object.record.version),
    }))
}

pub(super) async fn put_object_tagging(
    app: &App,
    request: S3Request<dto::PutObjectTaggingInput>,
) -> S3Result<S3Response<dto::PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = set_tags(input.tagging.tag_set, OBJECT_TAGS_MAX)?;
    let version_id = tag_object(app, &input.bucket, &input.key, input.version_id.as_deref(), &tags).await?;
    Ok(S3Response::new(dto::PutObjectTaggingOutput { version_id }))
}

pub(super) async fn delete_object_tagging(
    app: &App,
    request: S3Request<dto::DeleteObjectTaggingInput>,
) -> S3Result<S3Response<dto::DeleteObjectTaggingOutput>> {
    let input = request.input;
    let version_id = input.version_id.as_deref();
    let version_id = tag_object(app, &input.bucket, &input.key, version_id, &Tags::new()).await?;
    Ok(S3Response::new(dto::DeleteObjectTaggingOutput { version_id }))
}

/// Sets the tags of a version, and queues what they wish for in the same transaction: nothing for one that is not
/// current, of which nothing is made and which goes nowhere. Gives the version id to show.
async fn tag_object(
    app: &App,
    bucket: &str,
    key: &str,
    version: Option<&str>,
    tags: &Tags,
) -> S3Result<Option<String>> {
    let (bucket, key, version) = (bucket_name(bucket)?, object_key(key)?, version_id(version)?);
    let update = app
        .store
        .update_version(&bucket, &key, version, |bucket_record, record, state| {
            record.tags.clone_from(tags);
            Ok(match state {
                VersionState::Current => wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record),
                VersionState::Noncurrent => Vec::new(),
            })
        });
    let PutOutcome { record, bucket } = update.await.map_err(store_error)?;
    Ok(shown_version(&bucket, record.version))
}

pub(super) async fn get_bucket_tagging(
    app: &App,
    request: S3Request<dto::GetBucketTaggingInput>,
) -> S3Result<S3Response<dto::GetBucketTaggingOutput>> {
    let bucket = app
        .store
        .bucket(&bucket_name(&request.input.bucket)?)
        .await
        .map_err(store_error)?;
    if bucket.tags.is_empty() {
        return Err(refuse(S3ErrorCode::NoSuchTagSet, "the bucket has no tags"));
    }
    Ok(S3Response::new(dto::GetBucketTaggingOutput {
        tag_set: tag_set(&bucket.tags),
    }))
}

pub(super) async fn put_bucket_tagging(
    app: &App,
    request: S3Request<dto::PutBucketTaggingInput>,
) -> S3Result<S3Response<dto::PutBucketTaggingOutput>> {
    let input = request.input;
    let tags = set_tags(input.tagging.tag_set, BUCKET_TAGS_MAX)?;
    tag_bucket(app, &bucket_name(&input.bucket)?, &tags).await?;
    Ok(S3Response::new(dto::PutBucketTaggingOutput::default()))
}

pub(super) async fn delete_bucket_tagging(
    app: &App,
    request: S3Request<dto::DeleteBucketTaggingInput>,
) -> S3Result<S3Response<dto::DeleteBucketTaggingOutput>> {
    tag_bucket(app, &bucket_name(&request.input.bucket)?, &Tags::new()).await?;
    Ok(S3Response::new(dto::DeleteBucketTaggingOutput::default()))
}

/// Sets the tags of a bucket, and what they say of compression. Zones it is bound to get what it holds already, by one
/// job a zone; what it holds is compressed by another.
async fn tag_bucket(app: &App, bucket: &BucketName, tags: &Tags) -> S3Result<()> {
    // Tags are checked where they come in.
    let compression = wishes::compression(tags).unwrap_or_default();
    let tagged = app.store.update_bucket(bucket, |record| {
        record.tags.clone_from(tags);
        record.compression = compression;
    });
    tagged.await.map_err(store_error)?;
    if compression.is_some() {
        let task = Task::Compress {
            bucket: bucket.to_string(),
        };
        app.store.queue_job(task.job()).await.map_err(store_error)?;
    }
    let zones: BTreeSet<_> = wishes::zones(tags, wishes::ZONES).unwrap_or_default();
    for zone in zones.into_iter().filter(|zone| !app.serves(zone)) {
        let task = Task::Bind {
            bucket: bucket.to_string(),
            zone,
        };
        app.store.queue_job(task.job()).await.map_err(store_error)?;
    }
    Ok(())
}
