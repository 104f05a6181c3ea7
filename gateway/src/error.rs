//! The one mapping from the store's errors to what an S3 client sees.

use std::time::{Duration, UNIX_EPOCH};

use http::{
    HeaderMap, HeaderValue,
    header::{ALLOW, LAST_MODIFIED},
};
use lithos_storage::{DeleteMarker, Error, ErrorKind, clock::Timestamp};
use s3s::{
    S3Error, S3ErrorCode,
    stream::{aws_chunked_stream::AwsChunkedStreamError, upload_stream::UploadStreamError},
};

/// What a client sees of `error`: an S3 code and a safe message. The whole chain of what is the server's fault is logged.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is called by map_err, which gives the error away"
)]
pub(crate) fn s3_error(error: Error) -> S3Error {
    use ErrorKind as Kind;
    let code = match error.kind() {
        Kind::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        Kind::BucketAlreadyExists => S3ErrorCode::BucketAlreadyOwnedByYou,
        Kind::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
        Kind::NoSuchKey => S3ErrorCode::NoSuchKey,
        Kind::NoSuchVersion => S3ErrorCode::NoSuchVersion,
        Kind::IsDeleteMarker => S3ErrorCode::MethodNotAllowed,
        Kind::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        Kind::InvalidPart => S3ErrorCode::InvalidPart,
        Kind::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        Kind::PartTooSmall => S3ErrorCode::EntityTooSmall,
        Kind::InvalidArgument | Kind::NoSuchJob | Kind::NoSuchRecord => S3ErrorCode::InvalidArgument,
        Kind::AccessDenied | Kind::Locked => S3ErrorCode::AccessDenied,
        Kind::NoObjectLock => S3ErrorCode::InvalidRequest,
        Kind::InvalidBucketState => S3ErrorCode::InvalidBucketState,
        Kind::TooLarge => S3ErrorCode::EntityTooLarge,
        Kind::IncompleteBody => S3ErrorCode::IncompleteBody,
        Kind::BodyFailed => return body_error(&error),
        Kind::PreconditionFailed | Kind::SourceChanged => S3ErrorCode::PreconditionFailed,
        Kind::Contended => S3ErrorCode::SlowDown,
        Kind::StorageFull => {
            tracing::error!(error = &error as &dyn std::error::Error, "the disk is full");
            let mut full = S3Error::with_message(
                S3ErrorCode::Custom("StorageFull".into()),
                "the server has no space left for new data; reads and deletes go on",
            );
            full.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
            return full;
        }
        Kind::QuotaExceeded => {
            let mut exceeded = S3Error::with_message(S3ErrorCode::Custom("QuotaExceeded".into()), error.to_string());
            exceeded.set_status_code(http::StatusCode::FORBIDDEN);
            return exceeded;
        }
        Kind::ReadOnly => {
            let mut read_only = S3Error::with_message(
                S3ErrorCode::Custom("ReadOnly".into()),
                "the server takes no writes: it, or the file system below it, is read-only",
            );
            read_only.set_status_code(http::StatusCode::SERVICE_UNAVAILABLE);
            return read_only;
        }
        Kind::Format | Kind::OutcomeUnknown | Kind::Corrupt | Kind::Io => {
            tracing::error!(error = &error as &dyn std::error::Error, "an operation failed");
            return S3Error::with_message(
                S3ErrorCode::InternalError,
                "the server could not carry this out; its log has the reason under this request id",
            );
        }
    };
    let mut answer = S3Error::with_message(code, error.to_string());
    if let Some(marker) = error.marker() {
        answer.set_headers(marker_headers(marker, error.kind() == ErrorKind::IsDeleteMarker));
    }
    answer
}

/// What an answer says of a delete marker that is in the way: in the place of the latest version, or named by its version
/// id (S3 User Guide, "Working with delete markers").
fn marker_headers(marker: &DeleteMarker, is_named: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
    if let Ok(id) = HeaderValue::try_from(marker.version.id().to_string()) {
        headers.insert("x-amz-version-id", id);
    }
    if is_named {
        let Timestamp(millis) = marker.last_modified;
        let modified = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(millis));
        if let Ok(modified) = HeaderValue::try_from(modified) {
            headers.insert(LAST_MODIFIED, modified);
        }
        headers.insert(ALLOW, HeaderValue::from_static("DELETE"));
    }
    headers
}

/// A body that does not hash to the `x-amz-content-sha256` it was signed with. The library has no such code.
pub(crate) fn content_mismatch() -> S3Error {
    let mut error = S3Error::with_message(
        S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
        "the body does not have the x-amz-content-sha256 that was declared",
    );
    error.set_status_code(http::StatusCode::BAD_REQUEST);
    error
}

/// A body that could not be read: refused while it was being verified, over a limit, or cut off.
fn body_error(error: &Error) -> S3Error {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<S3Error>() {
            return S3Error::with_message(
                refused.code().clone(),
                refused.message().unwrap_or("the body was refused").to_owned(),
            );
        }
        if cause.is::<s3s::BodySizeLimitExceeded>() {
            return S3Error::with_message(
                S3ErrorCode::EntityTooLarge,
                "the body is over the size limit of one upload",
            );
        }
        if matches!(cause.downcast_ref(), Some(UploadStreamError::Sha256Mismatch)) {
            return content_mismatch();
        }
        let verification = cause
            .downcast_ref::<AwsChunkedStreamError>()
            .map(AwsChunkedStreamError::to_s3_error_code);
        let verification = verification.or_else(|| {
            cause
                .downcast_ref::<UploadStreamError>()
                .map(UploadStreamError::to_s3_error_code)
        });
        if let Some(code) = verification.filter(|code| *code != S3ErrorCode::InternalError) {
            return S3Error::with_message(code, format!("the body was refused while it was read: {cause}"));
        }
        source = cause.source();
    }
    S3Error::with_message(
        S3ErrorCode::IncompleteBody,
        "the body broke off before its declared length",
    )
}
