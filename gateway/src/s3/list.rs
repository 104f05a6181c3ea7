//! ListObjects, ListObjectsV2 and ListMultipartUploads.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use lithos_storage::{ListObjects, ListUploads, Listing, ListingEntry, ObjectRecord, UploadEntry};
use percent_encoding::utf8_percent_encode;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    answer::xml_text,
    checksum,
    owner::Owners,
    wire::{UNENCODED, bucket_name, etag, length, refuse, store_error, timestamp, upload_id},
};
use crate::app::App;

/// Most entries of one page (S3 API Reference, "ListObjectsV2").
const PAGE_MAX: i32 = 1000;

pub(super) async fn list_objects(
    app: &App,
    request: S3Request<dto::ListObjectsInput>,
) -> S3Result<S3Response<dto::ListObjectsOutput>> {
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let max_keys = page_size(input.max_keys)?;
    let list = ListObjects {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone().unwrap_or_default(),
        after: input.marker.clone().unwrap_or_default(),
        limit: usize::try_from(max_keys).unwrap_or(0),
    };
    let listing = page(app, &input.bucket, &list).await?;
    // Without a delimiter, S3 leaves it to the client to go on behind the last key.
    let next_marker = listing
        .entries
        .last()
        .filter(|_| listing.more && !list.delimiter.is_empty());
    let next_marker = next_marker.map(|entry| encoding.apply(entry.name()));
    let (contents, common_prefixes) = split(app, listing.entries, encoding, true).await?;
    Ok(S3Response::new(dto::ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.apply(&list.prefix)),
        marker: Some(encoding.apply(&list.after)),
        max_keys: Some(max_keys),
        is_truncated: Some(listing.more),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: input.delimiter.map(|delimiter| encoding.apply(&delimiter)),
        next_marker,
        encoding_type: input.encoding_type,
        ..Default::default()
    }))
}

pub(super) async fn list_objects_v2(
    app: &App,
    request: S3Request<dto::ListObjectsV2Input>,
) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let max_keys = page_size(input.max_keys)?;
    let after = match &input.continuation_token {
        Some(token) => parse_token(token)?,
        None => input.start_after.clone().unwrap_or_default(),
    };
    let list = ListObjects {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone().unwrap_or_default(),
        after,
        limit: usize::try_from(max_keys).unwrap_or(0),
    };
    let listing = page(app, &input.bucket, &list).await?;
    let last = listing.entries.last().filter(|_| listing.more);
    let next_continuation_token = last.map(|entry| BASE64.encode(entry.name()));
    let key_count = i32::try_from(listing.entries.len()).unwrap_or(i32::MAX);
    let (contents, common_prefixes) = split(app, listing.entries, encoding, input.fetch_owner == Some(true)).await?;
    Ok(S3Response::new(dto::ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.apply(&list.prefix)),
        max_keys: Some(max_keys),
        key_count: Some(key_count),
        continuation_token: input.continuation_token.as_deref().map(xml_text),
        is_truncated: Some(listing.more),
        next_continuation_token,
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: input.delimiter.map(|delimiter| encoding.apply(&delimiter)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|after| encoding.apply(&after)),
        ..Default::default()
    }))
}

pub(super) async fn list_multipart_uploads(
    app: &App,
    request: S3Request<dto::ListMultipartUploadsInput>,
) -> S3Result<S3Response<dto::ListMultipartUploadsOutput>> {
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let max_uploads = page_size(input.max_uploads)?;
    let after_upload = match (&input.key_marker, &input.upload_id_marker) {
        (Some(_), Some(id)) if !id.is_empty() => Some(upload_id(id)?),
        // S3 ignores an upload id marker without a key marker.
        _ => None,
    };
    let keys = ListObjects {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone().unwrap_or_default(),
        after: input.key_marker.clone().unwrap_or_default(),
        limit: usize::try_from(max_uploads).unwrap_or(0),
    };
    let mut listing = app
        .store
        .list_uploads(
            &bucket_name(&input.bucket)?,
            &ListUploads {
                keys: keys.clone(),
                after_upload,
            },
        )
        .await
        .map_err(store_error)?;
    listing.more &= keys.limit > 0;
    let last = listing.entries.last().filter(|_| listing.more);
    let next_key_marker = last.map(|entry| encoding.apply(entry.name()));
    let next_upload_id_marker = match last {
        Some(ListingEntry::Key(_, upload)) => Some(upload.id.to_string()),
        _ => None,
    };
    let ids = listing.entries.iter().filter_map(|entry| match entry {
        ListingEntry::Key(_, upload) => Some(upload.record.owner.as_str()),
        ListingEntry::CommonPrefix(_) => None,
    });
    let owners = Owners::of(app, ids.collect()).await?;
    let mut uploads = Vec::new();
    let mut common_prefixes = Vec::new();
    for entry in listing.entries {
        match entry {
            ListingEntry::CommonPrefix(prefix) => common_prefixes.push(common_prefix(&prefix, encoding)),
            ListingEntry::Key(key, upload) => uploads.push(listed_upload(&key, upload, encoding, &owners)),
        }
    }
    Ok(S3Response::new(dto::ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: input.prefix.map(|prefix| encoding.apply(&prefix)),
        delimiter: input.delimiter.map(|delimiter| encoding.apply(&delimiter)),
        key_marker: Some(encoding.apply(&keys.after)),
        upload_id_marker: input.upload_id_marker,
        max_uploads: Some(max_uploads),
        is_truncated: Some(listing.more),
        next_key_marker,
        next_upload_id_marker,
        uploads: Some(uploads),
        common_prefixes: Some(common_prefixes),
        encoding_type: input.encoding_type,
        ..Default::default()
    }))
}

fn listed_upload(key: &str, upload: UploadEntry, encoding: Encoding, owners: &Owners) -> dto::MultipartUpload {
    let UploadEntry { id, record } = upload;
    let class = record.headers.storage_class;
    dto::MultipartUpload {
        key: Some(encoding.apply(key)),
        upload_id: Some(id.to_string()),
        initiated: Some(timestamp(record.initiated)),
        owner: Some(owners.owner(&record.owner)),
        initiator: Some(owners.initiator(&record.owner)),
        storage_class: Some(class.map_or_else(
            || dto::StorageClass::from_static(dto::StorageClass::STANDARD),
            dto::StorageClass::from,
        )),
        checksum_algorithm: record
            .checksum_algorithm
            .map(|algorithm| dto::ChecksumAlgorithm::from_static(checksum::name(algorithm))),
        checksum_type: record.checksum_type.map(checksum::checksum_type),
    }
}

async fn page(app: &App, bucket: &str, list: &ListObjects) -> S3Result<Listing<ObjectRecord>> {
    let mut listing = app
        .store
        .list_objects(&bucket_name(bucket)?, list)
        .await
        .map_err(store_error)?;
    // A page of no entries has nothing to go on from: S3 says that it is the last.
    listing.more &= list.limit > 0;
    Ok(listing)
}

async fn split(
    app: &App,
    entries: Vec<ListingEntry<ObjectRecord>>,
    encoding: Encoding,
    with_owner: bool,
) -> S3Result<(Vec<dto::Object>, Vec<dto::CommonPrefix>)> {
    let ids = entries.iter().filter_map(|entry| match entry {
        ListingEntry::Key(_, record) if with_owner => Some(record.owner.as_str()),
        _ => None,
    });
    let owners = Owners::of(app, ids.collect()).await?;
    let mut contents = Vec::new();
    let mut prefixes = Vec::new();
    for entry in entries {
        match entry {
            ListingEntry::CommonPrefix(prefix) => prefixes.push(common_prefix(&prefix, encoding)),
            ListingEntry::Key(key, record) => contents.push(dto::Object {
                key: Some(encoding.apply(&key)),
                last_modified: Some(timestamp(record.last_modified)),
                e_tag: Some(etag(&record.etag)),
                size: Some(length(record.size())),
                storage_class: Some(dto::ObjectStorageClass::from(
                    record
                        .headers
                        .storage_class
                        .unwrap_or_else(|| dto::StorageClass::STANDARD.to_owned()),
                )),
                checksum_algorithm: record
                    .checksum
                    .as_ref()
                    .map(|checksum| vec![dto::ChecksumAlgorithm::from_static(checksum::name(checksum.algorithm))]),
                checksum_type: record
                    .checksum
                    .as_ref()
                    .map(|checksum| checksum::checksum_type(checksum.kind)),
                owner: with_owner.then(|| owners.owner(&record.owner)),
                ..Default::default()
            }),
        }
    }
    Ok((contents, prefixes))
}

pub(super) fn common_prefix(prefix: &str, encoding: Encoding) -> dto::CommonPrefix {
    dto::CommonPrefix {
        prefix: Some(encoding.apply(prefix)),
    }
}

/// How names are written in a listing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    pub(super) fn of(asked: Option<&dto::EncodingType>) -> S3Result<Self> {
        match asked.map(dto::EncodingType::as_str) {
            None => Ok(Self::Plain),
            Some(dto::EncodingType::URL) => Ok(Self::Url),
            Some(_) => Err(refuse(S3ErrorCode::InvalidArgument, "the encoding type must be url")),
        }
    }

    pub(super) fn apply(self, name: &str) -> String {
        match self {
            Self::Plain => xml_text(name),
            Self::Url => utf8_percent_encode(name, UNENCODED).to_string(),
        }
    }
}

pub(super) fn page_size(asked: Option<i32>) -> S3Result<i32> {
    match asked {
        None => Ok(PAGE_MAX),
        Some(asked) if asked >= 0 => Ok(asked.min(PAGE_MAX)),
        Some(asked) => Err(refuse(
            S3ErrorCode::InvalidArgument,
            format!("a page of {asked} entries cannot be listed"),
        )),
    }
}

fn parse_token(token: &str) -> S3Result<String> {
    let name = BASE64
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| {
        refuse(
            S3ErrorCode::InvalidArgument,
            "the continuation token is not one that a listing gave",
        )
    })
}
