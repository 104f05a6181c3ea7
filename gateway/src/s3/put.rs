//! PutObject.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use lithos_storage::{
    BucketName, IngestOptions, Ingested, NewObject, ObjectKey, PutOutcome, VersionLock, WriteCondition,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders, dto, dto::StreamingBlob};

use super::{
    PUT_LEN_MAX,
    checksum::{Expected, checksum_type, set_checksum},
    lifecycle::expiration,
    object_lock,
    precondition::{write_condition, write_error},
    wire::{
        bucket_name, content_headers, etag, header_tags, length, object_key, refuse, shown_version, signer,
        store_error, user_metadata,
    },
};
use crate::{
    app::App,
    auth::user,
    image::{annotate, wishes},
    import,
    job::{ImportTask, Task},
};

/// User metadata that makes an empty PutObject an import.
const IMPORT_URL: &str = "import-url";
/// User metadata: what the import must hash to.
const IMPORT_CHECKSUM: &str = "import-checksum";
/// Response header: the job that a request has queued.
const JOB_HEADER: &str = "x-lithos-job";

pub(super) async fn put_object(
    app: &App,
    request: S3Request<dto::PutObjectInput>,
) -> S3Result<S3Response<dto::PutObjectOutput>> {
    let owner = signer(&request);
    let S3Request {
        mut input,
        headers,
        trailing_headers,
        ..
    } = request;
    let bucket = bucket_name(&input.bucket)?;
    let key = object_key(&input.key)?;
    let tags = header_tags(input.tagging.as_deref())?;
    let mut metadata = user_metadata(input.metadata.take())?;
    if let Some(url) = metadata.remove(IMPORT_URL) {
        refuse_body(&headers, input.content_length)?;
        let import = ImportTask {
            bucket: bucket.to_string(),
            key: key.to_string(),
            url,
            checksum: metadata.remove(IMPORT_CHECKSUM),
            content_type: input.content_type.take(),
            metadata,
            tags,
            owner,
        };
        return queue_import(app, &bucket, import).await;
    }
    input.metadata = Some(metadata.into_iter().collect());
    let upload = Upload {
        owner,
        declared_len: Some(declared_len(&headers, input.content_length)?),
        expected: Expected::of(&headers)?,
        trailers: trailing_headers,
        conditions: headers,
    };
    user_upload(app, &bucket, &key, upload, &mut input).await
}

/// What is known of an upload beside its input.
pub(super) struct Upload {
    pub(super) owner: String,
    /// The length of its body, if that is known beforehand.
    pub(super) declared_len: Option<u64>,
    pub(super) expected: Expected,
    pub(super) trailers: Option<TrailingHeaders>,
    /// Headers that may hold conditions and an object lock.
    pub(super) conditions: HeaderMap,
}

/// Takes the body in and makes it an object.
pub(super) async fn user_upload(
    app: &App,
    bucket: &BucketName,
    key: &ObjectKey,
    upload: Upload,
    input: &mut dto::PutObjectInput,
) -> S3Result<S3Response<dto::PutObjectOutput>> {
    let headers = content_headers!(input);
    let metadata = user_metadata(input.metadata.take())?;
    let tags = header_tags(input.tagging.as_deref())?;
    let condition = write_condition(&upload.conditions)?;
    let lock = object_lock::asked(app, &upload.conditions)?;
    app.store.bucket(bucket).await.map_err(store_error)?;
    let options = IngestOptions {
        declared_len: upload.declared_len,
        len_max: Some(PUT_LEN_MAX),
        digests: upload.expected.digests(None),
        upload: None,
    };
    let Ingested { content, digests } = app
        .store
        .ingest(body(input.body.take()), options)
        .await
        .map_err(store_error)?;
    let checksum = upload.expected.verify(&digests, upload.trailers.as_ref(), None)?;
    let annotations = {
        let said = annotate::Said::new(key.as_str(), headers.content_type.as_deref());
        annotate::annotations(app, content.layout(), said).await
    };
    let new = NewObject {
        content,
        etag: hex::encode(digests.md5),
        headers,
        metadata,
        tags,
        checksum,
        part_sizes: Vec::new(),
        annotations,
        owner: upload.owner,
        last_modified: None,
        condition,
        fence: None,
        source: None,
    };
    commit(app, bucket, key, new, lock).await
}

/// Commits a new object, with the jobs its tags wish for.
async fn commit(
    app: &App,
    bucket: &BucketName,
    key: &ObjectKey,
    new: NewObject,
    lock: VersionLock,
) -> S3Result<S3Response<dto::PutObjectOutput>> {
    let conditional = new.condition != WriteCondition::Always;
    let put = app.store.put_object(bucket, key, new, |bucket_record, record| {
        user::require_owner(app, bucket_record, &record.owner)?;
        record.lock = lock;
        Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
    });
    let PutOutcome { record, bucket } = put.await.map_err(write_error(conditional))?;
    let mut output = dto::PutObjectOutput {
        e_tag: Some(etag(&record.etag)),
        checksum_type: record.checksum.as_ref().map(|checksum| checksum_type(checksum.kind)),
        size: Some(length(record.size())),
        version_id: shown_version(&bucket, record.version),
        expiration: expiration(app, &bucket, key.as_str(), &record).await?,
        ..Default::default()
    };
    set_checksum!(output, &record.checksum);
    Ok(S3Response::new(output))
}

/// Queues the fetch. The object appears when it has come in whole.
async fn queue_import(
    app: &App,
    bucket: &BucketName,
    import: ImportTask,
) -> S3Result<S3Response<dto::PutObjectOutput>> {
    app.store.bucket(bucket).await.map_err(store_error)?;
    import::check_request(&import.url, import.checksum.as_deref())
        .map_err(|message| refuse(S3ErrorCode::InvalidArgument, message))?;
    let job = app
        .store
        .queue_job(Task::Import(Box::new(import)).job())
        .await
        .map_err(store_error)?;
    let mut response = S3Response::new(dto::PutObjectOutput::default());
    if let Ok(value) = job.to_string().parse() {
        response.headers.insert(JOB_HEADER, value);
    }
    Ok(response)
}

fn refuse_body(headers: &HeaderMap, content_length: Option<i64>) -> S3Result<()> {
    if declared_len(headers, content_length)? > 0 {
        let message =
            format!("a PutObject with the metadata {IMPORT_URL} must have no body: the server fetches the URL");
        return Err(refuse(S3ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// How long the body is without its transfer encoding. S3 wants to know beforehand.
pub(super) fn declared_len(headers: &HeaderMap, content_length: Option<i64>) -> S3Result<u64> {
    let decoded = headers
        .get("x-amz-decoded-content-length")
        .and_then(|value| value.to_str().ok());
    let declared = match decoded {
        Some(decoded) => decoded.parse().ok(),
        None => content_length.and_then(|len| u64::try_from(len).ok()),
    };
    declared.ok_or_else(|| {
        refuse(
            S3ErrorCode::MissingContentLength,
            "the length of the body must be declared",
        )
    })
}

/// A body as the store takes it.
pub(super) fn body(body: Option<StreamingBlob>) -> impl Stream<Item = Result<Bytes, lithos_storage::BodyError>> + Send {
    use futures::StreamExt;
    futures::stream::iter(body).flatten()
}

/// Kept apart from user metadata: what the store shows of its own.
pub(super) fn shown_metadata(
    metadata: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> dto::Metadata {
    metadata
        .iter()
        .chain(annotations)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
