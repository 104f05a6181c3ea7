//! Listings of versions: the current versions of table `O` and all others of table `V`, merged in the order of their keys,
//! the newest version of a key first.
//!
//! Where a page ends it names a key and a version; the next one goes on behind that place, whether or not the version is
//! still there. Rows of either table that are folded into a common prefix are jumped over, as in `list`. So a page costs at
//! most two scans for each entry, and two in all where nothing is folded.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Order, SCAN_ROWS_MAX, Scan, Snapshot},
    list::{ListObjects, Listing, ListingEntry, is_folded, successor},
    schema::{BucketId, BucketName, Keys, ObjectRecord, Version, VersionId, VersionRow, decode},
    store::Store,
    version::parse_sequence,
};

/// Rows that a scan after a jump asks for: the next key is often folded too.
const JUMP_ROWS: usize = 32;

/// What versions to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListVersions {
    /// Prefix, delimiter, key and limit as for objects.
    pub keys: ListObjects,
    /// With `after` being a key: go on behind this version of that key. Without it: behind all versions of that key.
    pub after_version: Option<VersionId>,
}

/// A version of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionEntry {
    /// The object, or the delete marker.
    pub version: Version,
    /// Whether it is the latest of its key.
    pub is_latest: bool,
    /// Since when an object is not the current version, if it is not.
    pub noncurrent_since: Option<Timestamp>,
}

impl Store {
    /// A page of the versions and delete markers of a bucket, by key and then from the newest.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::InvalidArgument`] if the listing shall go on behind a null version that is
    /// not there; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_versions(&self, bucket: &BucketName, list: &ListVersions) -> Result<Listing<VersionEntry>> {
        let bucket = self.bucket(bucket).await?.id;
        let snapshot = self.core.kv.snapshot().await?;
        let mut merge = Merge::begin(&*snapshot, bucket, list).await?;
        let limit = list.keys.limit;
        let mut entries = Vec::new();
        if limit == 0 {
            // There is nothing to go on behind.
            return Ok(Listing { entries, more: false });
        }
        loop {
            let wanted = limit.saturating_sub(entries.len()).saturating_add(1);
            let Some((name, entry)) = merge.next(wanted).await? else {
                return Ok(Listing { entries, more: false });
            };
            if entries.len() >= limit {
                return Ok(Listing { entries, more: true });
            }
            match list.keys.common_prefix(&name) {
                Some(prefix) => {
                    merge.jump(prefix);
                    entries.push(ListingEntry::CommonPrefix(prefix.to_owned()));
                }
                None => entries.push(ListingEntry::Key(name, entry)),
            }
        }
    }
}

/// The two tables, on their way through a bucket.
struct Merge<'a> {
    snapshot: &'a dyn Snapshot,
    bucket: BucketId,
    objects: Rows,
    versions: Rows,
    /// The key whose latest version has been passed.
    passed: Option<String>,
    /// Most rows that a scan asks for.
    rows_max: usize,
}

impl<'a> Merge<'a> {
    async fn begin(snapshot: &'a dyn Snapshot, bucket: BucketId, list: &ListVersions) -> Result<Self> {
        let keys = &list.keys;
        let mut merge = Self {
            snapshot,
            bucket,
            objects: Rows::of(Keys::objects(bucket, keys.prefix.as_bytes())),
            versions: Rows::of(Keys::versions(bucket, &keys.prefix)),
            passed: None,
            rows_max: SCAN_ROWS_MAX,
        };
        if is_folded(keys) {
            merge.jump(&keys.after);
            merge.rows_max = SCAN_ROWS_MAX;
        } else if !keys.after.is_empty() {
            if let Some(version) = list.after_version {
                merge.go_on(&keys.after, version).await?;
            } else {
                let object = Keys::object(bucket, keys.after.as_bytes());
                merge.objects.skip_to(successor(&object));
                merge.versions.skip_to(Keys::versions_of(bucket, &keys.after).end);
            }
        }
        Ok(merge)
    }

    /// Goes on behind the version `version` of `key`.
    async fn go_on(&mut self, key: &str, version: VersionId) -> Result<()> {
        let row = Keys::object(self.bucket, key.as_bytes());
        let current = self.snapshot.get(&row).await?;
        let current = current.map(|current| decode::<ObjectRecord>(&current)).transpose()?;
        let current = current.map(|current| current.version);
        let sequence = match version {
            VersionId::Named { sequence, .. } => sequence,
            VersionId::Null => match current.filter(|current| current.is_null()) {
                Some(current) => current.sequence,
                None => self.null_version(key).await?,
            },
        };
        let all = Keys::versions_of(self.bucket, key);
        let next = successor(&Keys::version(self.bucket, key, sequence));
        let before = Scan {
            range: all.start..next.clone(),
            limit: 1,
            order: Order::Ascending,
        };
        // Unless it was deleted, in which case an older version may have taken its place.
        let is_passed = current.is_some_and(|current| current.sequence >= sequence);
        if is_passed {
            self.objects.skip_to(successor(&row));
        } else {
            self.objects.skip_to(row);
        }
        if is_passed || !self.snapshot.scan(&before).await?.rows.is_empty() {
            self.passed = Some(key.to_owned());
        }
        self.versions.skip_to(next);
        Ok(())
    }

    async fn null_version(&self, key: &str) -> Result<u64> {
        let sequence = self.snapshot.get(&Keys::null_version(self.bucket, key)).await?;
        let sequence = sequence.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{key:?} has no null version to go on behind"),
            )
        })?;
        parse_sequence(&sequence)
    }

    /// Passes over all keys that begin with `prefix`.
    fn jump(&mut self, prefix: &str) {
        self.objects.skip_to(Keys::objects(self.bucket, prefix.as_bytes()).end);
        self.versions.skip_to(Keys::versions(self.bucket, prefix).end);
        self.rows_max = JUMP_ROWS;
    }

    /// The next version, and its key.
    async fn next(&mut self, wanted: usize) -> Result<Option<(String, VersionEntry)>> {
        let wanted = wanted.min(self.rows_max);
        let object = match self.objects.first(self.snapshot, wanted).await? {
            Some((key, _)) => Some(Keys::parse_object(key)?.to_owned()),
            None => None,
        };
        let version = match self.versions.first(self.snapshot, wanted).await? {
            Some((key, _)) => Some(Keys::parse_version(key)?.0),
            None => None,
        };
        let object_first = match (&object, &version) {
            (Some(object), Some(version)) => object <= version,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let (name, row) = if object_first {
            (object, self.objects.pop())
        } else {
            (version, self.versions.pop())
        };
        let (Some(name), Some((_, row))) = (name, row) else {
            return Ok(None);
        };
        let is_latest = self.passed.as_ref() != Some(&name);
        let (version, noncurrent_since) = if object_first {
            (Version::Object(Box::new(decode(&row)?)), None)
        } else {
            match decode(&row)? {
                VersionRow::Object { record, since } => (Version::Object(record), Some(since)),
                VersionRow::Marker(marker) => (Version::DeleteMarker(marker), None),
            }
        };
        if is_latest {
            self.passed = Some(name.clone());
        }
        let entry = VersionEntry {
            version,
            is_latest,
            noncurrent_since,
        };
        Ok(Some((name, entry)))
    }
}

/// What is left of a range, a scan of it ahead.
struct Rows {
    range: Range<Bytes>,
    ahead: VecDeque<(Bytes, Bytes)>,
}

impl Rows {
    fn of(range: Range<Bytes>) -> Self {
        Self {
            range,
            ahead: VecDeque::new(),
        }
    }

    async fn first(&mut self, snapshot: &dyn Snapshot, wanted: usize) -> Result<Option<&(Bytes, Bytes)>> {
        if self.ahead.is_empty() && self.range.start < self.range.end {
            let scan = Scan {
                range: self.range.clone(),
                limit: wanted,
                order: Order::Ascending,
            };
            let page = snapshot.scan(&scan).await?;
            self.range.start = match page.rows.last() {
                Some((last, _)) if page.more => successor(last),
                _ => self.range.end.clone(),
            };
            self.ahead = page.rows.into();
        }
        Ok(self.ahead.front())
    }

    fn pop(&mut self) -> Option<(Bytes, Bytes)> {
        self.ahead.pop_front()
    }

    /// Leaves out all rows before `start`.
    fn skip_to(&mut self, start: Bytes) {
        while self.ahead.front().is_some_and(|(key, _)| *key < start) {
            self.ahead.pop_front();
        }
        self.range.start = self.range.start.clone().max(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_alike_in_both_tables() {
        let bucket = BucketId([1; 16]);
        let range = Keys::objects(bucket, b"a/");
        let versions = Keys::versions(bucket, "a/");
        for (name, within) in [("a/", true), ("a/\u{10ffff}", true), ("a0", false), ("a", false)] {
            assert_eq!(range.contains(&Keys::object(bucket, name.as_bytes())), within, "{name}");
            assert_eq!(versions.contains(&Keys::version(bucket, name, 5)), within, "{name}");
        }
    }
}
