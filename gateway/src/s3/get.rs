//! GetObject and HeadObject.

use std::ops::Range;

use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_RANGE};
use lithos_storage::{Checksum, ObjectRecord, OpenObject};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto,
    dto::StreamingBlob,
    stream::{ByteStream, RemainingLength},
};
use sync_wrapper::SyncStream;

use super::{
    checksum::{checksum_type, set_checksum},
    lifecycle::expiration,
    object_lock,
    precondition::{ETags, ReadConditions, Unmet},
    put::shown_metadata,
    wire::{
        bucket_name, etag, http_date, length, object_key, refuse, shown_storage_class, shown_version, store_error,
        timestamp, version_id,
    },
};
use crate::{app::App, image::annotate, zone};

/// Collects the conditions of a read.
macro_rules! conditions {
    ($input:expr, $headers:expr) => {
        ReadConditions {
            if_match: ETags::of($headers, "if-match"),
            if_unmodified_since: $input.if_unmodified_since.take(),
            if_none_match: ETags::of($headers, "if-none-match"),
            if_modified_since: $input.if_modified_since.take(),
        }
    };
}

/// Refuses to override headers of an answer for somebody who did not sign the request (S3 API Reference, "GetObject").
macro_rules! refuse_overrides {
    ($input:expr, $signed:expr) => {
        let overrides = [
            $input.response_cache_control.is_some(),
            $input.response_content_disposition.is_some(),
            $input.response_content_encoding.is_some(),
            $input.response_content_language.is_some(),
            $input.response_content_type.is_some(),
            $input.response_expires.is_some(),
        ];
        if !$signed && overrides.contains(&true) {
            return Err(refuse(
                S3ErrorCode::InvalidRequest,
                "the headers of an answer cannot be set by a request that is not signed",
            ));
        }
    };
}

/// Fills the fields that both outputs have.
macro_rules! describe {
    ($output:ident, $object:expr, $input:expr) => {{
        let object: &OpenObject = $object;
        let record = &object.record;
        let lock = object_lock::shown(record);
        dto::$output {
            accept_ranges: Some("bytes".to_owned()),
            cache_control: $input
                .response_cache_control
                .or_else(|| record.headers.cache_control.clone()),
            content_disposition: $input
                .response_content_disposition
                .or_else(|| record.headers.content_disposition.clone()),
            content_encoding: $input
                .response_content_encoding
                .or_else(|| record.headers.content_encoding.clone()),
            content_language: $input
                .response_content_language
                .or_else(|| record.headers.content_language.clone()),
            content_type: Some(
                $input
                    .response_content_type
                    .or_else(|| record.headers.content_type.clone())
                    .unwrap_or_else(|| "binary/octet-stream".to_owned()),
            ),
            expires: $input
                .response_expires
                .as_ref()
                .map(http_date)
                .or_else(|| record.headers.expires.clone()),
            e_tag: Some(etag(&record.etag)),
            last_modified: Some(timestamp(record.last_modified)),
            metadata: Some(shown_metadata(&record.metadata, &record.annotations)),
            object_lock_legal_hold_status: lock.legal_hold,
            object_lock_mode: lock.mode,
            object_lock_retain_until_date: lock.until,
            replication_status: zone::status(record).map(dto::ReplicationStatus::from_static),
            storage_class: shown_storage_class(&record.headers),
            tag_count: (!record.tags.is_empty()).then(|| i32::try_from(record.tags.len()).unwrap_or(i32::MAX)),
            version_id: shown_version(&object.bucket, record.version),
            website_redirect_location: record.headers.website_redirect_location.clone(),
            ..Default::default()
        }
    }};
}

pub(super) async fn get_object(
    app: &App,
    request: S3Request<dto::GetObjectInput>,
) -> S3Result<S3Response<dto::GetObjectOutput>> {
    let signed = request.credentials.is_some();
    let mut input = request.input;
    refuse_overrides!(input, signed);
    let object = open(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    conditions!(input, &request.headers).check(&object.record, Unmet::NotModified)?;
    let asked = Asked::new(input.range, input.part_number, &object.record)?;
    let is_current = input.version_id.is_none();
    let mut output = describe!(GetObjectOutput, &object, input);
    if is_current {
        output.expiration = expiration(app, &object.bucket, &input.key, &object.record).await?;
    }
    output.content_length = Some(length(asked.len()));
    output.content_range = asked.content_range();
    output.parts_count = asked.parts_count;
    if input.checksum_mode.is_some()
        && let Some(checksum) = asked.checksum(app, &object).await?
    {
        // Of one part it is no full object's, nor one made of parts.
        output.checksum_type = object.record.checksum.as_ref().map(|whole| checksum_type(whole.kind));
        set_checksum!(output, Some(checksum));
    }
    output.body = Some(body(&object, asked.range.clone()).await?);
    Ok(respond(output, asked.is_partial))
}

pub(super) async fn head_object(
    app: &App,
    request: S3Request<dto::HeadObjectInput>,
) -> S3Result<S3Response<dto::HeadObjectOutput>> {
    let signed = request.credentials.is_some();
    let mut input = request.input;
    refuse_overrides!(input, signed);
    let object = open(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    conditions!(input, &request.headers).check(&object.record, Unmet::NotModified)?;
    let asked = Asked::new(input.range, input.part_number, &object.record)?;
    let is_current = input.version_id.is_none();
    let mut output = describe!(HeadObjectOutput, &object, input);
    if is_current {
        output.expiration = expiration(app, &object.bucket, &input.key, &object.record).await?;
    }
    output.content_length = Some(length(asked.len()));
    output.content_range = asked.content_range();
    output.parts_count = asked.parts_count;
    if input.checksum_mode.is_some()
        && let Some(checksum) = asked.checksum(app, &object).await?
    {
        // Of one part it is no full object's, nor one made of parts.
        output.checksum_type = object.record.checksum.as_ref().map(|whole| checksum_type(whole.kind));
        set_checksum!(output, Some(checksum));
    }
    if let Some(jobs) = job_states(app, &object.record).await? {
        output
            .metadata
            .get_or_insert_default()
            .insert(annotate::JOBS.to_owned(), jobs);
    }
    Ok(respond(output, asked.is_partial))
}

/// Opens the version that a request names, or the current one.
pub(super) async fn open(app: &App, bucket: &str, key: &str, version: Option<&str>) -> S3Result<OpenObject> {
    app.store
        .open_version(&bucket_name(bucket)?, &object_key(key)?, version_id(version)?)
        .await
        .map_err(store_error)
}

/// Which bytes are asked for.
struct Asked {
    range: Range<u64>,
    size: u64,
    is_partial: bool,
    /// The part asked for, counted from 0.
    part: Option<u32>,
    parts_count: Option<i32>,
}

impl Asked {
    fn new(range: Option<dto::Range>, part_number: Option<i32>, record: &ObjectRecord) -> S3Result<Self> {
        let size = record.size();
        let whole = Self {
            range: 0..size,
            size,
            is_partial: false,
            part: None,
            parts_count: None,
        };
        match (range, part_number) {
            (None, None) => Ok(whole),
            (Some(_), Some(_)) => Err(refuse(
                S3ErrorCode::InvalidRequest,
                "a range and a part number exclude each other",
            )),
            (Some(range), None) => {
                let range = range.check(size).map_err(|_| unsatisfiable(size))?;
                Ok(Self {
                    range,
                    is_partial: true,
                    ..whole
                })
            }
            (None, Some(number)) => part(record, number, whole),
        }
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn content_range(&self) -> Option<String> {
        self.is_partial.then(|| {
            format!(
                "bytes {}-{}/{}",
                self.range.start,
                self.range.end.saturating_sub(1),
                self.size
            )
        })
    }

    /// The checksum of the bytes asked for, if there is one.
    async fn checksum(&self, app: &App, object: &OpenObject) -> S3Result<Option<Checksum>> {
        match self.part {
            Some(part) if !object.record.part_sizes.is_empty() => {
                let checksums = app.store.part_checksums(object, part..part + 1).await;
                Ok(checksums.map_err(store_error)?.pop())
            }
            _ if self.range == (0..self.size) => Ok(object.record.checksum.clone()),
            _ => Ok(None),
        }
    }
}

/// The bytes of part `number`; an object that was not uploaded in parts is its own part 1.
fn part(record: &ObjectRecord, number: i32, whole: Asked) -> S3Result<Asked> {
    let index = u32::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let index = index.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "part numbers begin at 1"))?;
    if record.part_sizes.is_empty() {
        return if index == 0 {
            Ok(Asked {
                is_partial: whole.size > 0,
                part: Some(0),
                ..whole
            })
        } else {
            Err(no_such_part("the object has one part".to_owned()))
        };
    }
    let count: u32 = record.part_sizes.iter().map(|run| run.count).sum();
    let mut start = 0;
    let mut before = 0;
    for run in &record.part_sizes {
        if index < before + run.count {
            start += run.size * u64::from(index - before);
            let is_partial = run.size > 0;
            return Ok(Asked {
                range: start..start + run.size,
                is_partial,
                part: Some(index),
                parts_count: i32::try_from(count).ok(),
                ..whole
            });
        }
        before += run.count;
        start += run.size * u64::from(run.count);
    }
    Err(no_such_part(format!("the object has {count} parts")))
}

/// S3 answers 416 with a code that the library does not know.
fn no_such_part(message: String) -> S3Error {
    let mut error = refuse(S3ErrorCode::Custom("InvalidPartNumber".into()), message);
    error.set_status_code(StatusCode::RANGE_NOT_SATISFIABLE);
    error
}

fn unsatisfiable(size: u64) -> S3Error {
    let mut error = refuse(
        S3ErrorCode::InvalidRange,
        format!("the range is not within the {size} bytes of the object"),
    );
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
        error.set_headers(HeaderMap::from_iter([(CONTENT_RANGE, value)]));
    }
    error
}

fn respond<T>(output: T, is_partial: bool) -> S3Response<T> {
    let mut response = S3Response::new(output);
    if is_partial {
        response.status = Some(StatusCode::PARTIAL_CONTENT);
    }
    response
}

/// The jobs of an object as `id:state`, separated by spaces, the latest last.
async fn job_states(app: &App, record: &ObjectRecord) -> S3Result<Option<String>> {
    let mut states = Vec::new();
    for id in &record.jobs {
        match app.store.job(*id).await {
            Ok(job) => states.push(format!("{id}:{:?}", job.state).to_ascii_lowercase()),
            Err(error) if error.kind() == lithos_storage::ErrorKind::NoSuchJob => {}
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok((!states.is_empty()).then(|| states.join(" ")))
}

/// The bytes of `range` as a body. The first of them are read before the head goes out: what cannot be read from its
/// beginning is an error that the client gets to see.
async fn body(object: &OpenObject, range: Range<u64>) -> S3Result<StreamingBlob> {
    let len = range.end - range.start;
    let mut stream = object.reader().stream(range);
    let first = stream.next().await.transpose().map_err(store_error)?;
    Ok(StreamingBlob::new(ObjectBody {
        stream: SyncStream::new(futures::stream::iter(first.map(Ok)).chain(stream).boxed()),
        remaining: len,
    }))
}

/// A stream that knows how much is left, so that the response has a length.
struct ObjectBody {
    stream: SyncStream<lithos_storage::ReadStream>,
    remaining: u64,
}

impl futures::Stream for ObjectBody {
    type Item = Result<bytes::Bytes, s3s::StdError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx).map(|next| {
            next.map(|chunk| match chunk {
                Ok(bytes) => {
                    self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
                    Ok(bytes)
                }
                Err(error) => {
                    // The head has gone out: all that is left is to break the connection, and to say why here.
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "an object could not be read to its end"
                    );
                    Err(error.into())
                }
            })
        })
    }
}

impl ByteStream for ObjectBody {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.remaining).map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
