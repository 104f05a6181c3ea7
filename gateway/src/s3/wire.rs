//! Small values between the wire and the store: names, times, ETags, owners, tags and metadata.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use lithos_storage::{
    BucketName, BucketRecord, ContentHeaders, LayoutId, ObjectKey, Tags, VersionId, VersionStamp, Versioning,
    clock::Timestamp,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, dto};

use crate::{
    auth::user::Identity,
    error::s3_error,
    image::{annotate, wishes},
};

/// Most tags of an object (S3 User Guide, "Categorizing your objects using tags").
pub(super) const OBJECT_TAGS_MAX: usize = 10;
/// Most tags of a bucket.
pub(super) const BUCKET_TAGS_MAX: usize = 50;
/// Most bytes of user metadata, names and values together (S3 User Guide, "Working with object metadata").
const METADATA_LEN_MAX: usize = 2 << 10;

/// What is left as it is in names that are percent-encoded: in paths, and by `encoding-type=url`.
pub(super) const UNENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// Storage classes (S3 API Reference, "PutObject"), without those of hardware that is not here.
const STORAGE_CLASSES: [&str; 8] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "GLACIER_IR",
];

/// An error of `code` with a sentence for whoever reads it.
pub(super) fn refuse(code: S3ErrorCode, message: impl Into<String>) -> S3Error {
    S3Error::with_message(code, message.into())
}

pub(super) fn bucket_name(name: &str) -> S3Result<BucketName> {
    name.parse()
        .map_err(|e: lithos_storage::Error| refuse(S3ErrorCode::InvalidBucketName, e.to_string()))
}

pub(super) fn object_key(key: &str) -> S3Result<ObjectKey> {
    key.parse().map_err(|e: lithos_storage::Error| {
        let code = if key.is_empty() {
            S3ErrorCode::InvalidArgument
        } else {
            S3ErrorCode::KeyTooLongError
        };
        refuse(code, e.to_string())
    })
}

pub(super) fn upload_id(id: &str) -> S3Result<LayoutId> {
    id.parse()
        .map_err(|_| refuse(S3ErrorCode::NoSuchUpload, "there is no upload with this id"))
}

/// The version that a request names.
pub(super) fn version_id(id: Option<&str>) -> S3Result<Option<VersionId>> {
    id.map(str::parse)
        .transpose()
        .map_err(|e: lithos_storage::Error| refuse(S3ErrorCode::InvalidArgument, e.to_string()))
}

/// The version id in an answer: none in a bucket that never kept versions.
pub(super) fn shown_version(bucket: &BucketRecord, version: VersionStamp) -> Option<String> {
    (bucket.versioning != Versioning::Never).then(|| version.id().to_string())
}

pub(super) fn timestamp(time: Timestamp) -> dto::Timestamp {
    (UNIX_EPOCH + Duration::from_millis(time.0)).into()
}

/// A time in milliseconds; `None` before 1970.
pub(super) fn millis(time: &dto::Timestamp) -> Option<Timestamp> {
    let mut text = Vec::new();
    time.format(dto::TimestampFormat::DateTime, &mut text).ok()?;
    let time: jiff::Timestamp = std::str::from_utf8(&text).ok()?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

pub(super) fn etag(etag: &str) -> dto::ETag {
    dto::ETag::Strong(etag.to_owned())
}

/// A length as S3 counts: signed, but never negative here.
pub(super) fn length(len: u64) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

/// The id of who signed a request.
pub(super) fn signer<T>(request: &S3Request<T>) -> String {
    let caller = request.extensions.get::<Arc<Identity>>();
    caller.map(|caller| caller.id.clone()).unwrap_or_default()
}

/// User metadata, without what the server itself shows under such names.
pub(super) fn user_metadata(metadata: Option<dto::Metadata>) -> S3Result<BTreeMap<String, String>> {
    let metadata: BTreeMap<String, String> = metadata
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .filter(|(name, _)| !annotate::SHOWN.contains(&name.as_str()))
        .collect();
    let len: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if len > METADATA_LEN_MAX {
        return Err(refuse(
            S3ErrorCode::MetadataTooLarge,
            format!("{len} bytes of metadata are over {METADATA_LEN_MAX}"),
        ));
    }
    Ok(metadata)
}

/// Collects the headers that are given back with an object from the fields of an input.
macro_rules! content_headers {
    ($input:expr) => {
        lithos_storage::ContentHeaders {
            content_type: $input.content_type.take(),
            content_encoding: $crate::s3::wire::stored_encoding($input.content_encoding.take()),
            content_disposition: $input.content_disposition.take(),
            content_language: $input.content_language.take(),
            cache_control: $input.cache_control.take(),
            expires: $input.expires.take(),
            website_redirect_location: $input.website_redirect_location.take(),
            storage_class: $crate::s3::wire::storage_class($input.storage_class.take())?,
        }
    };
}
pub(super) use content_headers;

/// A storage class, which is kept and shown, and means nothing here.
pub(super) fn storage_class(class: Option<dto::StorageClass>) -> S3Result<Option<String>> {
    let Some(class) = class else { return Ok(None) };
    if STORAGE_CLASSES.contains(&class.as_str()) {
        return Ok(Some(class.as_str().to_owned()));
    }
    Err(refuse(
        S3ErrorCode::InvalidStorageClass,
        "the storage class is none that S3 knows",
    ))
}

/// A time as headers have it.
pub(super) fn http_date(time: &dto::Timestamp) -> String {
    let mut text = Vec::new();
    let _ = time.format(dto::TimestampFormat::HttpDate, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// The path of an object in path style.
pub(super) fn encoded_path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(key, UNENCODED))
}

/// `Content-Encoding` without `aws-chunked`, which is of the transfer and not of the object.
pub(super) fn stored_encoding(encoding: Option<String>) -> Option<String> {
    let encoding = encoding?;
    let kept: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// Headers with the storage class that S3 leaves out of responses.
pub(super) fn shown_storage_class(headers: &ContentHeaders) -> Option<dto::StorageClass> {
    let class = headers
        .storage_class
        .clone()
        .filter(|class| class != dto::StorageClass::STANDARD);
    class.map(dto::StorageClass::from)
}

/// Tags from the header `x-amz-tagging`: a query string.
pub(super) fn header_tags(header: Option<&str>) -> S3Result<Tags> {
    let Some(header) = header else { return Ok(Tags::new()) };
    let pairs =
        url::form_urlencoded::parse(header.as_bytes()).map(|(key, value)| (key.into_owned(), value.into_owned()));
    checked_tags(pairs, OBJECT_TAGS_MAX)
}

/// Tags from an XML body.
pub(super) fn set_tags(tags: dto::TagSet, count_max: usize) -> S3Result<Tags> {
    checked_tags(
        tags.into_iter()
            .map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())),
        count_max,
    )
}

pub(super) fn tag_set(tags: &Tags) -> dto::TagSet {
    tags.iter()
        .map(|(key, value)| dto::Tag {
            key: Some(key.clone()),
            value: Some(value.clone()),
        })
        .collect()
}

fn checked_tags(pairs: impl Iterator<Item = (String, String)>, count_max: usize) -> S3Result<Tags> {
    let invalid = |message: String| refuse(S3ErrorCode::InvalidTag, message);
    let mut tags = Tags::new();
    for (key, value) in pairs {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(invalid(
                "a tag has 1 to 128 characters in its key and up to 256 in its value".to_owned(),
            ));
        }
        if tags.insert(key.clone(), value).is_some() {
            return Err(invalid(format!("the tag {key:?} is given twice")));
        }
    }
    if tags.len() > count_max {
        return Err(invalid(format!("{} tags are over {count_max}", tags.len())));
    }
    wishes::check(&tags).map_err(invalid)?;
    Ok(tags)
}

/// Maps an error of the store; for `map_err`.
pub(super) fn store_error(error: lithos_storage::Error) -> S3Error {
    s3_error(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_checked_where_they_come_in() {
        let tags = header_tags(Some("convert-to=qcow2+raw&team=a%26b")).unwrap();
        assert_eq!(tags["convert-to"], "qcow2 raw");
        assert_eq!(tags["team"], "a&b");
        for bad in [
            "a=1&a=2",
            "=x",
            &format!("{}=x", "k".repeat(129)),
            &format!("k={}", "v".repeat(257)),
            "convert-to=exe",
        ] {
            assert_eq!(
                *header_tags(Some(bad)).unwrap_err().code(),
                S3ErrorCode::InvalidTag,
                "{bad}"
            );
        }
        let many: Vec<String> = (0..11).map(|n| format!("k{n}=v")).collect();
        assert!(header_tags(Some(&many.join("&"))).is_err());
    }

    #[test]
    fn transfer_encodings_are_not_stored() {
        let stored = |encoding: &str| stored_encoding(Some(encoding.to_owned()));
        assert_eq!(stored("aws-chunked"), None);
        assert_eq!(stored("aws-chunked, gzip"), Some("gzip".to_owned()));
        assert_eq!(stored("gzip"), Some("gzip".to_owned()));
    }

    #[test]
    fn metadata_that_the_server_shows_is_never_the_users() {
        let given = [("Image-Format", "x"), ("Color", "red")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            user_metadata(Some(given.into())).unwrap(),
            BTreeMap::from([("color".to_owned(), "red".to_owned())])
        );
        let long = [("a".to_owned(), "b".repeat(2048))];
        assert_eq!(
            *user_metadata(Some(long.into())).unwrap_err().code(),
            S3ErrorCode::MetadataTooLarge
        );
    }
}
