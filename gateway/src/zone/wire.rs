//! What one server says to another, on the transfer address under [`PREFIX`], signed like any request.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `POST /blobs/missing` | [`Offer`] | [`Missing`] |
//! | `PUT /blobs/{id}` | the bytes of the blob and 8 bytes of checksum (`storage::replica`) | 204 |
//! | `POST /objects` | [`ObjectOffer`] | [`Taken`], or 409 and [`BLOBS_MISSING`] |
//!
//! Bucket and key are in the body, because a URL cannot carry each key: it takes `..` for a direction. Errors are
//! `{"error": {"code", "message"}}`, with codes of S3 where there is one.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::ZoneName;

/// What the paths begin with. No bucket name begins with a dot.
pub(crate) const PREFIX: &str = "/.lithos/v1";
/// Most blobs of one offer.
pub(crate) const OFFER_BLOBS_MAX: usize = 1000;
/// Longest JSON body, in bytes: a record of 64 KiB, a key and tags, with room.
pub(crate) const JSON_LEN_MAX: usize = 1 << 20;

/// Code of a refusal: blobs of the object are not here, or not any more. They are to be offered again.
pub(crate) const BLOBS_MISSING: &str = "BlobsMissing";
/// Code of a refusal: somebody else sends that blob now.
pub(crate) const BLOB_PENDING: &str = "BlobPending";
/// Code of a refusal: this server does not serve the zone.
pub(crate) const WRONG_ZONE: &str = "WrongZone";
/// Code of a refusal: the object's layout does not fit its blobs.
pub(crate) const BAD_REPLICA: &str = "BadReplica";

/// Blobs that an object needs, by id.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) blobs: Vec<String>,
}

/// Those of an [`Offer`] that are not there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// They are to be sent.
    pub(crate) missing: Vec<String>,
    /// They are on their way already, or just being cleared: ask again in a moment.
    pub(crate) pending: Vec<String>,
}

/// An object whose blobs have been sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ObjectOffer {
    /// The zone it is for.
    pub(crate) zone: ZoneName,
    /// The bucket, which is made if it is missing.
    pub(crate) bucket: String,
    /// Its region: its home zone, if it was given one.
    pub(crate) region: Option<String>,
    /// Its tags.
    pub(crate) bucket_tags: BTreeMap<String, String>,
    /// Its owner. Servers do not share users, so that elsewhere this is mostly nobody.
    #[serde(default)]
    pub(crate) bucket_owner: String,
    /// The object's key.
    pub(crate) key: String,
    /// Its record, in the encoding of the store.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(crate) record: Bytes,
}

/// What became of an object that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It is there.
    Committed,
    /// There is a newer one of that name, which stays.
    Superseded,
}

/// An object was taken, one way or the other.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) outcome: Outcome,
}

fn to_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64.decode(text).map(Into::into).map_err(D::Error::custom)
}
