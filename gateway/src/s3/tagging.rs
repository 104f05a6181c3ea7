//! Tags of objects and of buckets. Setting them sets off what they wish for.

use std::collections::BTreeSet;

use lithos_storage::{BucketName, Tags};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::wire::{BUCKET_TAGS_MAX, OBJECT_TAGS_MAX, bucket_name, object_key, refuse, set_tags, store_error, tag_set};
use crate::{app::App, image::wishes, job::Task};

pub(super) async fn get_object_tagging(
    app: &App,
    request: S3Request<dto::GetObjectTaggingInput>,
) -> S3Result<S3Response<dto::GetObjectTaggingOutput>> {
    let input = request.input;
    let object = app
        .store
        .open_object(&bucket_name(&input.bucket)?, &object_key(&input.key)?)
        .await
        .map_err(store_error)?;
    Ok(S3Response::new(dto::GetObjectTaggingOutput {
        tag_set: tag_set(&object.record.tags),
        version_id: None,
    }))
}

pub(super) async fn put_object_tagging(
    app: &App,
    request: S3Request<dto::PutObjectTaggingInput>,
) -> S3Result<S3Response<dto::PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = set_tags(input.tagging.tag_set, OBJECT_TAGS_MAX)?;
    tag_object(app, &input.bucket, &input.key, &tags).await?;
    Ok(S3Response::new(dto::PutObjectTaggingOutput::default()))
}

pub(super) async fn delete_object_tagging(
    app: &App,
    request: S3Request<dto::DeleteObjectTaggingInput>,
) -> S3Result<S3Response<dto::DeleteObjectTaggingOutput>> {
    tag_object(app, &request.input.bucket, &request.input.key, &Tags::new()).await?;
    Ok(S3Response::new(dto::DeleteObjectTaggingOutput::default()))
}

/// Sets the tags of an object, and queues what they wish for in the same transaction.
async fn tag_object(app: &App, bucket: &str, key: &str, tags: &Tags) -> S3Result<()> {
    let (bucket, key) = (bucket_name(bucket)?, object_key(key)?);
    let update = app.store.update_object(&bucket, &key, None, |bucket_record, record| {
        record.tags.clone_from(tags);
        Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
    });
    update.await.map(|_| ()).map_err(store_error)
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
