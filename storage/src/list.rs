//! Listings: keys of a bucket in order, with prefix, delimiter and a place to go on from.
//!
//! A key that holds the delimiter behind the prefix is folded: all keys up to and with the delimiter are one common
//! prefix, and the index skips them. So a page costs at most one seek per entry, however many keys are folded.

use bytes::Bytes;

use crate::{
    error::Result,
    kv::{self, Order, SCAN_ROWS_MAX, Scan, Snapshot, prefix_range},
    schema::{BucketName, Keys, LayoutId, ObjectRecord, UploadRecord, decode, upload_key_parts},
    store::Store,
};

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListObjects {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Fold keys at the first occurrence of this behind the prefix. Empty: do not fold.
    pub delimiter: String,
    /// Only keys behind this one. A common prefix as an earlier page gave it skips all it stands for.
    pub after: String,
    /// Most entries to return. A page of none is the last, as in S3.
    pub limit: usize,
}

impl ListObjects {
    /// What `name`, which begins with the prefix, is folded into.
    pub(crate) fn common_prefix<'n>(&self, name: &'n str) -> Option<&'n str> {
        let delimiter = self.delimiter.as_str();
        if delimiter.is_empty() {
            return None;
        }
        let rest = name.get(self.prefix.len()..)?;
        let at = rest.find(delimiter)?;
        name.get(..self.prefix.len() + at + delimiter.len())
    }
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T> {
    /// Keys and common prefixes in order.
    pub entries: Vec<ListingEntry<T>>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq)]
pub enum ListingEntry<T> {
    /// A key, and what is known of it.
    Key(String, T),
    /// All keys that begin with this.
    CommonPrefix(String),
}

impl<T> ListingEntry<T> {
    /// The key or prefix.
    pub fn name(&self) -> &str {
        match self {
            Self::Key(name, _) | Self::CommonPrefix(name) => name,
        }
    }
}

/// What uploads to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListUploads {
    /// Prefix, delimiter, key and limit as for objects.
    pub keys: ListObjects,
    /// With `after` being a key: go on behind this upload of that key. Without it: behind all uploads of that key.
    pub after_upload: Option<LayoutId>,
}

/// A page of uploads.
pub type UploadListing = Listing<UploadEntry>;

/// An upload in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadEntry {
    /// Its id.
    pub id: LayoutId,
    /// What is known of it.
    pub record: UploadRecord,
}

impl Store {
    /// A page of the objects of a bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`](crate::ErrorKind::NoSuchBucket); [`ErrorKind::Io`](crate::ErrorKind::Io) if the index
    /// cannot be read.
    pub async fn list_objects(&self, bucket: &BucketName, list: &ListObjects) -> Result<Listing<ObjectRecord>> {
        let bucket = self.bucket(bucket).await?;
        let mut range = Keys::objects(bucket.id, list.prefix.as_bytes());
        let after = Keys::object(bucket.id, list.after.as_bytes());
        let after = if is_folded(list) {
            prefix_range(&after).end
        } else {
            successor(&after)
        };
        range.start = range.start.max(after);
        let fold = Fold {
            list,
            key_start: 17,
            prefix_key: &|prefix| Keys::object(bucket.id, prefix.as_bytes()),
        };
        let snapshot = self.core.kv.snapshot().await?;
        fold.page(&*snapshot, range, |key, record| {
            Ok((Keys::parse_object(key)?.to_owned(), decode(record)?))
        })
        .await
    }

    /// A page of the uploads in progress of a bucket, by key and then by time.
    ///
    /// # Errors
    ///
    /// As for [`Store::list_objects`].
    pub async fn list_uploads(&self, bucket: &BucketName, list: &ListUploads) -> Result<UploadListing> {
        let bucket = self.bucket(bucket).await?;
        let keys = &list.keys;
        let mut range = Keys::uploads(bucket.id, keys.prefix.as_bytes());
        let after = match list.after_upload {
            _ if keys.after.is_empty() => range.start.clone(),
            Some(upload) => successor(&Keys::upload(bucket.id, &keys.after, upload)),
            None if is_folded(keys) => Keys::uploads(bucket.id, keys.after.as_bytes()).end,
            // The uploads of the key itself are the rows that go on with NUL.
            None => Keys::uploads(bucket.id, format!("{}\0", keys.after).as_bytes()).end,
        };
        range.start = range.start.max(after);
        let fold = Fold {
            list: keys,
            key_start: 17,
            prefix_key: &|prefix| Keys::uploads(bucket.id, prefix.as_bytes()).start,
        };
        let snapshot = self.core.kv.snapshot().await?;
        fold.page(&*snapshot, range, |key, record| {
            let (name, id) = upload_key_parts(key)?;
            Ok((
                name.to_owned(),
                UploadEntry {
                    id,
                    record: decode(record)?,
                },
            ))
        })
        .await
    }
}

/// Whether `after` is a common prefix of the listing, so that all keys it stands for have been listed.
pub(crate) fn is_folded(list: &ListObjects) -> bool {
    let (after, delimiter) = (&list.after, &list.delimiter);
    !delimiter.is_empty()
        && after
            .strip_prefix(&list.prefix)
            .and_then(|rest| rest.find(delimiter).map(|at| at + delimiter.len() == rest.len()))
            .unwrap_or(false)
}

pub(crate) fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Folds the rows of a table whose keys hold an object key from `key_start` on.
struct Fold<'a> {
    list: &'a ListObjects,
    key_start: usize,
    prefix_key: &'a (dyn Fn(&str) -> Bytes + Send + Sync),
}

impl Fold<'_> {
    async fn page<T>(
        &self,
        snapshot: &dyn Snapshot,
        mut range: std::ops::Range<Bytes>,
        parse: impl Fn(&[u8], &[u8]) -> Result<(String, T)>,
    ) -> Result<Listing<T>> {
        let mut entries: Vec<ListingEntry<T>> = Vec::new();
        let fold = self.fold();
        if self.list.limit == 0 {
            // There is nothing to go on behind.
            return Ok(Listing { entries, more: false });
        }
        while range.start < range.end {
            let wanted = self.list.limit.saturating_sub(entries.len()).saturating_add(1);
            let scan = Scan {
                range: range.clone(),
                limit: wanted.min(SCAN_ROWS_MAX),
                order: Order::Ascending,
            };
            let page = match &fold {
                Some(fold) => snapshot.scan_folded(&scan, fold).await?,
                None => snapshot.scan(&scan).await?,
            };
            let Some((last, _)) = page.rows.last() else { break };
            range.start = if page.more { successor(last) } else { range.end.clone() };
            for (key, record) in &page.rows {
                if matches!(entries.last(), Some(ListingEntry::CommonPrefix(prefix)) if self.holds(key, prefix)) {
                    continue;
                }
                if entries.len() >= self.list.limit {
                    return Ok(Listing { entries, more: true });
                }
                let (name, value) = parse(key, record)?;
                match self.list.common_prefix(&name) {
                    Some(prefix) => {
                        range.start = range.start.max(prefix_range(&(self.prefix_key)(prefix)).end);
                        entries.push(ListingEntry::CommonPrefix(prefix.to_owned()));
                    }
                    None => entries.push(ListingEntry::Key(name, value)),
                }
            }
        }
        Ok(Listing { entries, more: false })
    }

    /// Lets the index skip what is folded. A NUL is no part of an object key, but of the keys of some tables.
    fn fold(&self) -> Option<kv::Fold> {
        let delimiter = &self.list.delimiter;
        (!delimiter.is_empty() && !delimiter.contains('\0')).then(|| kv::Fold {
            from: self.key_start + self.list.prefix.len(),
            delimiter: Bytes::copy_from_slice(delimiter.as_bytes()),
        })
    }

    fn holds(&self, key: &[u8], prefix: &str) -> bool {
        key.get(self.key_start..)
            .is_some_and(|name| name.starts_with(prefix.as_bytes()))
    }
}
