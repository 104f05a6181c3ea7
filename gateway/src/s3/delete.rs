//! DeleteObject and DeleteObjects.

use futures::{StreamExt, stream};
use lithos_storage::{BucketName, DeleteCondition, Deleted, Governance};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer::xml_text,
    object_lock::governance,
    precondition::{ETags, delete_condition, named_etag, write_error},
    wire::{bucket_name, object_key, refuse, store_error, version_id},
};
use crate::app::App;

/// Most keys of one DeleteObjects (S3 API Reference).
const KEYS_MAX: usize = 1000;
/// Deletes of one request that run at a time, so that they share a sync.
const CONCURRENT: usize = 32;

pub(super) async fn delete_object(
    app: &App,
    request: S3Request<dto::DeleteObjectInput>,
) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
    let input = request.input;
    let condition = delete_condition(
        ETags::of(&request.headers, "if-match"),
        input.if_match_last_modified_time,
        input.if_match_size,
    )?;
    let deleted = delete(
        app,
        &bucket_name(&input.bucket)?,
        &input.key,
        input.version_id.as_deref(),
        &condition,
        governance(input.bypass_governance_retention),
    )
    .await?;
    Ok(S3Response::new(dto::DeleteObjectOutput {
        delete_marker: deleted.is_marker.then_some(true),
        version_id: deleted.version.map(|version| version.to_string()),
        ..Default::default()
    }))
}

pub(super) async fn delete_objects(
    app: &App,
    request: S3Request<dto::DeleteObjectsInput>,
) -> S3Result<S3Response<dto::DeleteObjectsOutput>> {
    let input = request.input;
    let bucket = bucket_name(&input.bucket)?;
    app.store.bucket(&bucket).await.map_err(store_error)?;
    let governance = governance(input.bypass_governance_retention);
    let dto::Delete { objects, quiet } = input.delete;
    if objects.is_empty() || objects.len() > KEYS_MAX {
        return Err(refuse(
            S3ErrorCode::MalformedXML,
            format!("a DeleteObjects names 1 to {KEYS_MAX} keys"),
        ));
    }
    let results: Vec<(dto::ObjectIdentifier, S3Result<Deleted>)> = stream::iter(objects)
        .map(|object| {
            let bucket = &bucket;
            async move {
                let result = delete_listed(app, bucket, &object, governance).await;
                (object, result)
            }
        })
        .buffered(CONCURRENT)
        .collect()
        .await;
    let mut deleted = Vec::new();
    let mut errors = Vec::new();
    for (object, result) in results {
        match result {
            Ok(_) if quiet == Some(true) => {}
            Ok(done) => deleted.push(listed_deleted(&object, done)),
            Err(error) => errors.push(listed(object, &error)),
        }
    }
    Ok(S3Response::new(dto::DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..Default::default()
    }))
}

async fn delete_listed(
    app: &App,
    bucket: &BucketName,
    object: &dto::ObjectIdentifier,
    governance: Governance,
) -> S3Result<Deleted> {
    let condition = delete_condition(
        object.e_tag.as_ref().map(named_etag),
        object.last_modified_time.clone(),
        object.size,
    )?;
    let version = object.version_id.as_deref();
    delete(app, bucket, &object.key, version, &condition, governance).await
}

async fn delete(
    app: &App,
    bucket: &BucketName,
    key: &str,
    version: Option<&str>,
    condition: &DeleteCondition,
    governance: Governance,
) -> S3Result<Deleted> {
    let key = object_key(key)?;
    let deleted = match version_id(version)? {
        None => app.store.delete_object_if(bucket, &key, condition).await,
        Some(version) => {
            let store = &app.store;
            store
                .delete_retained(bucket, &key, version, condition, governance)
                .await
        }
    };
    deleted.map_err(write_error(*condition != DeleteCondition::default()))
}

/// What was deleted: a version that was named, or what a delete marker now covers.
fn listed_deleted(object: &dto::ObjectIdentifier, deleted: Deleted) -> dto::DeletedObject {
    let version = deleted.version.map(|version| version.to_string());
    dto::DeletedObject {
        key: Some(xml_text(&object.key)),
        delete_marker: deleted.is_marker.then_some(true),
        delete_marker_version_id: version.clone().filter(|_| deleted.is_marker),
        version_id: version.filter(|_| object.version_id.is_some()),
    }
}

fn listed(object: dto::ObjectIdentifier, error: &S3Error) -> dto::Error {
    dto::Error {
        key: Some(xml_text(&object.key)),
        code: Some(error.code().as_str().to_owned()),
        message: error.message().map(xml_text),
        version_id: object.version_id,
    }
}
