//! Imports: what can be known to be wrong is refused at once, the rest is a job.

use std::collections::BTreeMap;

use axum::{Extension, Json, extract::State};
use http::{HeaderName, HeaderValue, StatusCode};
use lithos_storage::{BucketName, ObjectKey};
use serde::{Deserialize, Serialize};

use super::{error::ApiError, request::JsonBody};
use crate::{
    app::SharedApp,
    auth::route::Caller,
    image::wishes,
    import,
    job::{ImportTask, Task},
};

/// Most tags of an object: S3 User Guide, "Categorizing your storage using tags".
const TAGS_MAX: usize = 10;
/// Longest key of a tag, in characters, by the same page.
const TAG_KEY_CHARS_MAX: usize = 128;
/// Longest value of a tag, in characters, by the same page.
const TAG_VALUE_CHARS_MAX: usize = 256;
/// Most user metadata, names and values together, in bytes: S3 User Guide, "Working with object metadata".
const METADATA_LEN_MAX: usize = 2 << 10;

/// An import that is asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewImport {
    pub(crate) url: String,
    pub(crate) bucket: String,
    pub(crate) key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checksum: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The job that does what was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) job: String,
}

pub(super) async fn start(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    JsonBody(new): JsonBody<NewImport>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    check(&new).map_err(ApiError::invalid)?;
    let bucket: BucketName = new.bucket.parse()?;
    let _: ObjectKey = new.key.parse()?;
    app.store.bucket(&bucket).await?;
    let task = Task::Import(Box::new(ImportTask {
        bucket: new.bucket,
        key: new.key,
        url: new.url,
        checksum: new.checksum,
        content_type: new.content_type,
        metadata: new.metadata,
        tags: new.tags,
        owner: caller.access_key,
    }));
    let job = app.store.queue_job(task.job()).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job: job.to_string() })))
}

/// Checks what needs no store.
fn check(new: &NewImport) -> Result<(), String> {
    import::check_request(&new.url, new.checksum.as_deref())?;
    if new
        .content_type
        .as_ref()
        .is_some_and(|value| value.is_empty() || HeaderValue::from_str(value).is_err())
    {
        return Err("content_type is not the value of a header".to_owned());
    }
    check_tags(&new.tags)?;
    check_metadata(&new.metadata)
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), String> {
    if tags.len() > TAGS_MAX {
        return Err(format!(
            "there are {} tags; an object has at most {TAGS_MAX}",
            tags.len()
        ));
    }
    for (key, value) in tags {
        if !(1..=TAG_KEY_CHARS_MAX).contains(&key.chars().count()) || value.chars().count() > TAG_VALUE_CHARS_MAX {
            let shown: String = key.chars().take(TAG_KEY_CHARS_MAX).collect();
            return Err(format!(
                "the tag {shown:?} is too long or has no name: {TAG_KEY_CHARS_MAX} characters, and {TAG_VALUE_CHARS_MAX} \
                 of value, are the most"
            ));
        }
    }
    wishes::check(tags)
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), String> {
    let len: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if len > METADATA_LEN_MAX {
        return Err(format!("the metadata has {len} bytes; {METADATA_LEN_MAX} are the most"));
    }
    for (name, value) in metadata {
        // Names are parts of header names, which come back in small letters.
        let legal = HeaderName::try_from(name.as_str()).is_ok_and(|header| header.as_str() == name);
        if !legal || HeaderValue::from_str(value).is_err() {
            return Err(format!(
                "the metadata {name:?} is not a header: its name has small letters, digits and hyphens"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn tags_keep_the_bounds_of_s3() {
        assert!(check_tags(&map("convert-to", "qcow2")).is_ok());
        assert!(check_tags(&map(&"k".repeat(128), &"ä".repeat(256))).is_ok());
        for bad in [
            map("", "x"),
            map(&"k".repeat(129), ""),
            map("k", &"v".repeat(257)),
            map("convert-to", "qcow3"),
            (0..11).map(|i| (i.to_string(), String::new())).collect(),
        ] {
            assert!(check_tags(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_is_what_headers_can_carry() {
        assert!(check_metadata(&map("os-version", "12.5")).is_ok());
        for bad in [
            map("Os", "x"),
            map("a b", "x"),
            map("", "x"),
            map("a", "x\ny"),
            map("a", &"x".repeat(2048)),
        ] {
            assert!(check_metadata(&bad).is_err(), "{bad:?}");
        }
    }
}
