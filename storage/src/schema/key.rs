//! Object keys, and the keys of the index.

use std::{fmt, ops::Range, str::FromStr};

use bytes::{BufMut, Bytes, BytesMut};

use super::{BucketId, BucketName, JobId, LayoutId, Measure, PartNumber};
use crate::{
    blob::BlobId,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::prefix_range,
};

/// Longest object key, in bytes of UTF-8 (S3 User Guide, "Object key names").
const OBJECT_KEY_LEN_MAX: usize = 1024;

/// The name of an object within its bucket: 1 to 1,024 bytes of UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectKey {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self> {
        if key.is_empty() || key.len() > OBJECT_KEY_LEN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "an object key of {} bytes is not within 1 and {OBJECT_KEY_LEN_MAX}",
                    key.len()
                ),
            ));
        }
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Builds the keys of the index; the tables are those of the module's doc.
pub(crate) struct Keys;

impl Keys {
    pub(crate) fn bucket(name: &BucketName) -> Bytes {
        key(b'B', &[name.as_str().as_bytes()])
    }

    pub(crate) fn buckets() -> Range<Bytes> {
        prefix_range(b"B")
    }

    pub(crate) fn object(bucket: BucketId, object: &[u8]) -> Bytes {
        key(b'O', &[&bucket.0, object])
    }

    pub(crate) fn objects(bucket: BucketId, prefix: &[u8]) -> Range<Bytes> {
        prefix_range(&Self::object(bucket, prefix))
    }

    /// A version of `object` that is not current.
    pub(crate) fn version(bucket: BucketId, object: &str, sequence: u64) -> Bytes {
        key(b'V', &[&bucket.0, &shifted(object), &[0], &(!sequence).to_be_bytes()])
    }

    /// All of `object`, the newest first.
    pub(crate) fn versions_of(bucket: BucketId, object: &str) -> Range<Bytes> {
        prefix_range(&key(b'V', &[&bucket.0, &shifted(object), &[0]]))
    }

    /// All of the objects whose keys begin with `prefix`.
    pub(crate) fn versions(bucket: BucketId, prefix: &str) -> Range<Bytes> {
        prefix_range(&key(b'V', &[&bucket.0, &shifted(prefix)]))
    }

    pub(crate) fn null_version(bucket: BucketId, object: &str) -> Bytes {
        key(b'v', &[&bucket.0, object.as_bytes()])
    }

    pub(crate) fn upload(bucket: BucketId, object: &str, upload: LayoutId) -> Bytes {
        key(b'U', &[&bucket.0, object.as_bytes(), &[0], &upload.0])
    }

    pub(crate) fn uploads(bucket: BucketId, prefix: &[u8]) -> Range<Bytes> {
        prefix_range(&key(b'U', &[&bucket.0, prefix]))
    }

    pub(crate) fn part(upload: LayoutId, number: PartNumber) -> Bytes {
        key(b'P', &[&upload.0, &number.get().to_be_bytes()])
    }

    pub(crate) fn parts(upload: LayoutId) -> Range<Bytes> {
        prefix_range(&key(b'P', &[&upload.0]))
    }

    pub(crate) fn part_checksums(layout: LayoutId, page: u16) -> Bytes {
        key(b'N', &[&layout.0, &page.to_be_bytes()])
    }

    pub(crate) fn part_checksums_of(layout: LayoutId) -> Range<Bytes> {
        prefix_range(&key(b'N', &[&layout.0]))
    }

    pub(crate) fn ended_upload(upload: LayoutId) -> Bytes {
        key(b'E', &[&upload.0])
    }

    pub(crate) fn ended_uploads() -> Range<Bytes> {
        prefix_range(b"E")
    }

    pub(crate) fn layout(layout: LayoutId) -> Bytes {
        key(b'L', &[&layout.0])
    }

    pub(crate) fn blob(blob: BlobId) -> Bytes {
        key(b'X', &[&blob.owner.0, &blob.index.to_be_bytes()])
    }

    pub(crate) fn blobs_of(owner: LayoutId) -> Range<Bytes> {
        prefix_range(&key(b'X', &[&owner.0]))
    }

    pub(crate) fn blobs() -> Range<Bytes> {
        prefix_range(b"X")
    }

    pub(crate) fn damage(blob: BlobId) -> Bytes {
        key(b'H', &[&blob.owner.0, &blob.index.to_be_bytes()])
    }

    pub(crate) fn damages() -> Range<Bytes> {
        prefix_range(b"H")
    }

    pub(crate) fn intent(blob: BlobId) -> Bytes {
        key(b'I', &[&blob.owner.0, &blob.index.to_be_bytes()])
    }

    pub(crate) fn intents() -> Range<Bytes> {
        prefix_range(b"I")
    }

    pub(crate) fn borrows(layout: LayoutId, owner: LayoutId) -> Bytes {
        key(b'A', &[&layout.0, &owner.0])
    }

    pub(crate) fn borrows_of(layout: LayoutId) -> Range<Bytes> {
        prefix_range(&key(b'A', &[&layout.0]))
    }

    pub(crate) fn borrower(owner: LayoutId, layout: LayoutId) -> Bytes {
        key(b'C', &[&owner.0, &layout.0])
    }

    pub(crate) fn borrowers_of(owner: LayoutId) -> Range<Bytes> {
        prefix_range(&key(b'C', &[&owner.0]))
    }

    pub(crate) fn dead_layout(layout: LayoutId) -> Bytes {
        key(b'D', &[&layout.0])
    }

    pub(crate) fn dead_layouts() -> Range<Bytes> {
        prefix_range(b"D")
    }

    pub(crate) fn compression(layout: LayoutId) -> Bytes {
        key(b'K', &[&layout.0])
    }

    pub(crate) fn compressions() -> Range<Bytes> {
        prefix_range(b"K")
    }

    pub(crate) fn compaction(layout: LayoutId) -> Bytes {
        key(b'Y', &[&layout.0])
    }

    pub(crate) fn compactions() -> Range<Bytes> {
        prefix_range(b"Y")
    }

    pub(crate) fn job(job: JobId) -> Bytes {
        key(b'J', &[&job.0])
    }

    pub(crate) fn jobs() -> Range<Bytes> {
        prefix_range(b"J")
    }

    pub(crate) fn queued_job(due: Timestamp, job: JobId) -> Bytes {
        key(b'Q', &[&due.0.to_be_bytes(), &job.0])
    }

    pub(crate) fn queued_jobs() -> Range<Bytes> {
        prefix_range(b"Q")
    }

    pub(crate) fn peer(name: &str) -> Bytes {
        key(b'S', &[name.as_bytes()])
    }

    pub(crate) fn peers() -> Range<Bytes> {
        prefix_range(b"S")
    }

    pub(crate) fn lifecycle(bucket: BucketId) -> Bytes {
        key(b'T', &[&bucket.0, b"r"])
    }

    pub(crate) fn lifecycle_state(bucket: BucketId) -> Bytes {
        key(b'T', &[&bucket.0, b"s"])
    }

    pub(crate) fn user(name: &str) -> Bytes {
        key(b'R', &[name.as_bytes()])
    }

    pub(crate) fn users() -> Range<Bytes> {
        prefix_range(b"R")
    }

    pub(crate) fn name_of_user(id: &str) -> Bytes {
        key(b'G', &[id.as_bytes()])
    }

    pub(crate) fn user_of_key(access_key: &str) -> Bytes {
        key(b'F', &[access_key.as_bytes()])
    }

    /// All keys of a table.
    pub(crate) fn table(table: u8) -> Range<Bytes> {
        prefix_range(&[table])
    }

    pub(crate) fn bucket_usage(bucket: BucketId, measure: Measure) -> Bytes {
        key(b'W', &[b"b", &bucket.0, &[measure.code()]])
    }

    pub(crate) fn user_usage(user: &str, measure: Measure) -> Bytes {
        key(b'W', &[b"u", &[measure.code()], user.as_bytes()])
    }

    pub(crate) fn upload_usage(upload: LayoutId) -> Bytes {
        key(b'W', &[b"p", &upload.0])
    }

    pub(crate) fn all_usage() -> Range<Bytes> {
        prefix_range(b"W")
    }

    pub(crate) fn user_quota(user: &str) -> Bytes {
        key(b'Z', &[user.as_bytes()])
    }

    pub(crate) fn meta(name: &str) -> Bytes {
        key(b'M', &[name.as_bytes()])
    }

    /// The blob named by a key of the `H`, `I` or `X` table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is no such key.
    pub(crate) fn parse_blob(row: &[u8]) -> Result<BlobId> {
        let (owner, index) = split_id(row.get(1..).unwrap_or_default())?;
        let index = index.try_into().map_err(|_| damaged(row))?;
        Ok(BlobId {
            owner: LayoutId(owner),
            index: u64::from_be_bytes(index),
        })
    }

    /// The last of the ids in a key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the key is too short to hold one.
    pub(crate) fn parse_last_id(row: &[u8]) -> Result<[u8; 16]> {
        row.last_chunk::<16>().copied().ok_or_else(|| damaged(row))
    }

    /// The due time in a key of the `Q` table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is no such key.
    pub(crate) fn parse_due(row: &[u8]) -> Result<Timestamp> {
        let due = row
            .get(1..)
            .and_then(|rest| rest.first_chunk::<8>())
            .ok_or_else(|| damaged(row))?;
        Ok(Timestamp(u64::from_be_bytes(*due)))
    }

    /// The id that a key begins with, and what follows it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the key is too short to hold one.
    pub(crate) fn parse_first_id(row: &[u8]) -> Result<([u8; 16], &[u8])> {
        split_id(row.get(1..).unwrap_or_default())
    }

    /// Object key and sequence in a key of the `V` table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is no such key.
    pub(crate) fn parse_version(row: &[u8]) -> Result<(String, u64)> {
        let (rest, inverted) = row.split_last_chunk::<8>().ok_or_else(|| damaged(row))?;
        let name = match rest.get(17..).and_then(<[u8]>::split_last) {
            Some((0, name)) if !name.contains(&0) => name.iter().map(|byte| byte.wrapping_sub(1)).collect(),
            _ => return Err(damaged(row)),
        };
        let name = String::from_utf8(name).map_err(|_| damaged(row))?;
        Ok((name, !u64::from_be_bytes(*inverted)))
    }

    /// The object key in a key of the `O` or `v` table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is no such key.
    pub(crate) fn parse_object(row: &[u8]) -> Result<&str> {
        let name = row.get(17..).ok_or_else(|| damaged(row))?;
        std::str::from_utf8(name).map_err(|_| damaged(row))
    }
}

/// Object key and upload id of a key of the `U` table.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] if it is no such key.
pub(crate) fn upload_key_parts(row: &[u8]) -> Result<(&str, LayoutId)> {
    let (rest, upload) = row.split_last_chunk::<16>().ok_or_else(|| damaged(row))?;
    let name = rest.get(17..rest.len().saturating_sub(1)).ok_or_else(|| damaged(row))?;
    Ok((std::str::from_utf8(name).map_err(|_| damaged(row))?, LayoutId(*upload)))
}

fn key(table: u8, parts: &[&[u8]]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.put_u8(table);
    for part in parts {
        key.put_slice(part);
    }
    key.freeze()
}

/// Text without NUL bytes that sorts as `text` does: in UTF-8 no byte is 255.
fn shifted(text: &str) -> Vec<u8> {
    text.bytes().map(|byte| byte.wrapping_add(1)).collect()
}

fn split_id(bytes: &[u8]) -> Result<([u8; 16], &[u8])> {
    let (id, rest) = bytes.split_first_chunk::<16>().ok_or_else(|| damaged(bytes))?;
    Ok((*id, rest))
}

fn damaged(row: &[u8]) -> Error {
    Error::corrupt(format!(
        "the index holds a damaged key {}",
        hex::encode(row.get(..row.len().min(64)).unwrap_or(row))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_keys_are_bounded() {
        assert!("k".repeat(1024).parse::<ObjectKey>().is_ok());
        assert!("k".repeat(1025).parse::<ObjectKey>().is_err());
        assert!("".parse::<ObjectKey>().is_err());
    }

    #[test]
    fn longest_keys_stay_within_the_bound_of_the_index() {
        let longest = Keys::upload(
            BucketId([0xff; 16]),
            &"k".repeat(OBJECT_KEY_LEN_MAX),
            LayoutId([0xff; 16]),
        );
        assert!(longest.len() <= crate::kv::KEY_LEN_MAX);
        let longest = Keys::version(BucketId([0xff; 16]), &"k".repeat(OBJECT_KEY_LEN_MAX), 1);
        assert!(longest.len() <= crate::kv::KEY_LEN_MAX);
    }

    #[test]
    fn keys_give_their_parts_back() {
        let upload = LayoutId([7; 16]);
        let row = Keys::upload(BucketId([1; 16]), "a/b\0c", upload);
        assert_eq!(upload_key_parts(&row).unwrap(), ("a/b\0c", upload));
        let blob = BlobId {
            owner: upload,
            index: 9,
        };
        assert_eq!(Keys::parse_blob(&Keys::blob(blob)).unwrap(), blob);
        let version = Keys::version(BucketId([1; 16]), "ä\0\u{10ffff}", 7);
        assert_eq!(Keys::parse_version(&version).unwrap(), ("ä\0\u{10ffff}".to_owned(), 7));
        let job = JobId([3; 16]);
        let queued = Keys::queued_job(Timestamp(5), job);
        assert_eq!(Keys::parse_due(&queued).unwrap(), Timestamp(5));
        assert_eq!(Keys::parse_last_id(&queued).unwrap(), job.0);
        for short in [&b""[..], b"X", b"Q123"] {
            assert!(Keys::parse_blob(short).is_err());
            assert!(Keys::parse_due(short).is_err());
            assert!(upload_key_parts(short).is_err());
            assert!(Keys::parse_version(short).is_err());
        }
    }

    #[test]
    fn versions_sort_by_key_then_from_the_newest() {
        let keys = ["a", "a\0", "a\0b", "a\u{1}", "aa", "é", "\u{10ffff}"];
        let mut rows = Vec::new();
        for name in keys {
            for sequence in [u64::MAX, 8, 7, 0] {
                let row = Keys::version(BucketId([1; 16]), name, sequence);
                assert!(Keys::versions_of(BucketId([1; 16]), name).contains(&row));
                assert_eq!(
                    Keys::versions(BucketId([1; 16]), "a").contains(&row),
                    name.starts_with('a')
                );
                rows.push(row);
            }
        }
        assert!(rows.is_sorted());
    }
}
