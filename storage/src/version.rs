//! Versions: what a write or a delete makes of what was there before, and how a version is found.
//!
//! The current version of a key is its row of table `O`. All others are rows of table `V`, the newest first: versions
//! that another came after, and delete markers. A key whose latest version is a delete marker has no row in `O`, so who
//! lists or reads what is current never meets a marker or an older version, however many there are.
//!
//! | | never versioned | enabled | suspended |
//! | --- | --- | --- | --- |
//! | a write | replaces the current version | makes it noncurrent | replaces the null version wherever it is; makes another current one noncurrent |
//! | a delete | removes the current version | the same, and adds a delete marker | the same, and adds a delete marker that is the null version |
//! | a delete of one version | removes it, if it is the current one | removes it; if it was the latest, the next one is the latest from then on | the same |
//!
//! What holds after each transaction, and `fsck` checks:
//!
//! - Of two versions of a key the later one has the larger sequence. The sequence of a new one is taken from the clock, and
//!   is one more than that of the newest where the clock stands still or goes back.
//! - The row of `O` is newer than all rows of `V`; where there is none, the newest row of `V` is a delete marker, or there is
//!   none either.
//! - At most one version of a key is null. If it is in `V`, the row of table `v` says where.
//!
//! All of it is read and written in the transaction that writes or deletes, so a crash leaves what was there before it, or
//! after it; two transactions on one key read and write its row of `O`, or the first one of `V`, and one meets a conflict.

use bytes::Bytes;

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Order, Scan, Txn},
    object::release,
    quota::{Change, charge},
    schema::{
        BucketId, BucketRecord, DeleteMarker, Keys, LayoutId, LayoutRecord, ObjectKey, ObjectRecord, VersionId,
        VersionRow, VersionStamp, Versioning, decode, encode,
    },
    staging::get,
};

/// Whether reads without a version id see a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// They do.
    Current,
    /// Another version or a delete marker came after it.
    Noncurrent,
}

/// Where a version that is about to be written, or a delete marker, goes.
#[derive(Debug)]
pub(crate) struct Place {
    /// The current version.
    pub(crate) current: Option<Box<ObjectRecord>>,
    /// The stamp of the version to be.
    pub(crate) stamp: VersionStamp,
}

impl Place {
    /// Looks at what is there now.
    pub(crate) async fn find(txn: &mut Txn, now: Timestamp, bucket: &BucketRecord, key: &ObjectKey) -> Result<Self> {
        let current = read_object(txn, &object_row(bucket.id, key)).await?;
        let newest = match &current {
            Some(current) => Some(current.version.sequence),
            None => latest_row(txn, bucket, key).await?.map(|row| row.stamp().sequence),
        };
        Ok(Self {
            current,
            stamp: VersionStamp::after(newest, now, bucket.versioning),
        })
    }

    /// Makes room: what is to stay becomes noncurrent, what is to be replaced is released. Gives the size of what was
    /// replaced. The row of the current version is left to be written or deleted.
    pub(crate) async fn clear(
        &mut self,
        txn: &mut Txn,
        now: Timestamp,
        bucket: &BucketRecord,
        key: &ObjectKey,
    ) -> Result<Option<u64>> {
        let mut replaced = None;
        let current = self.current.take();
        let is_null = current.as_ref().is_some_and(|current| current.version.is_null());
        match bucket.versioning {
            Versioning::Suspended if !is_null => {
                if let Some(found) = find_noncurrent(txn, bucket.id, key, VersionId::Null).await? {
                    replaced = drop_row(txn, now, bucket.id, key, found).await?;
                }
                keep(txn, now, bucket.id, key, current)?;
            }
            Versioning::Enabled => keep(txn, now, bucket.id, key, current)?,
            Versioning::Never | Versioning::Suspended => {
                if let Some(current) = current {
                    release(txn, current.layout_id, now).await?;
                    replaced = Some(current.size());
                }
            }
        }
        Ok(replaced)
    }
}

/// Makes what was current noncurrent.
fn keep(
    txn: &mut Txn,
    now: Timestamp,
    bucket: BucketId,
    key: &ObjectKey,
    current: Option<Box<ObjectRecord>>,
) -> Result<()> {
    let Some(record) = current else { return Ok(()) };
    put_row(txn, bucket, key, &VersionRow::Object { record, since: now })
}

/// Writes a row of table `V`, and where it is, if it is the null version.
fn put_row(txn: &mut Txn, bucket: BucketId, key: &ObjectKey, row: &VersionRow) -> Result<()> {
    let stamp = row.stamp();
    if stamp.is_null() {
        let sequence = Bytes::copy_from_slice(&stamp.sequence.to_be_bytes());
        txn.put(Keys::null_version(bucket, key.as_str()), sequence)?;
    }
    txn.put(Keys::version(bucket, key.as_str(), stamp.sequence), encode(row))
}

/// Removes a row of table `V`, and releases its object, whose size it gives.
async fn drop_row(
    txn: &mut Txn,
    now: Timestamp,
    bucket: BucketId,
    key: &ObjectKey,
    row: VersionRow,
) -> Result<Option<u64>> {
    take_row(txn, bucket, key, row.stamp())?;
    let Some(record) = row.object() else { return Ok(None) };
    release(txn, record.layout_id, now).await?;
    Ok(Some(record.size()))
}

/// Removes a row of table `V`. Its object is another row's from then on.
pub(crate) fn take_row(txn: &mut Txn, bucket: BucketId, key: &ObjectKey, stamp: VersionStamp) -> Result<()> {
    if stamp.is_null() {
        txn.delete(Keys::null_version(bucket, key.as_str()))?;
    }
    txn.delete(Keys::version(bucket, key.as_str(), stamp.sequence))
}

/// Deletes the current version of a key as the bucket's versioning says. `None` if that leaves nothing behind, else the
/// delete marker.
pub(crate) async fn add_marker(
    txn: &mut Txn,
    now: Timestamp,
    bucket: &BucketRecord,
    key: &ObjectKey,
    mut place: Place,
) -> Result<Option<DeleteMarker>> {
    if place.current.is_some() {
        txn.delete(object_row(bucket.id, key))?;
    }
    let replaced = place.clear(txn, now, bucket, key).await?;
    charge(txn, bucket, Change::of_object(replaced, None)).await?;
    if bucket.versioning == Versioning::Never {
        return Ok(None);
    }
    let marker = DeleteMarker {
        version: place.stamp,
        last_modified: now,
        owner: bucket.owner.clone(),
    };
    put_row(txn, bucket.id, key, &VersionRow::Marker(marker.clone()))?;
    Ok(Some(marker))
}

/// An object version, and where it lies.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) record: Box<ObjectRecord>,
    row: Bytes,
    /// Since when it is noncurrent, if it is.
    since: Option<Timestamp>,
}

impl Placed {
    pub(crate) fn state(&self) -> VersionState {
        match self.since {
            None => VersionState::Current,
            Some(_) => VersionState::Noncurrent,
        }
    }

    /// Whether it is a version of that object.
    pub(crate) fn is_of(&self, bucket: BucketId, key: &ObjectKey) -> bool {
        match self.state() {
            VersionState::Current => self.row == object_row(bucket, key),
            VersionState::Noncurrent => self.row == Keys::version(bucket, key.as_str(), self.record.version.sequence),
        }
    }

    /// Writes the record back.
    pub(crate) fn write(self, txn: &mut Txn) -> Result<ObjectRecord> {
        let value = match self.since {
            None => encode(&*self.record),
            Some(since) => encode(&VersionRow::Object {
                record: self.record.clone(),
                since,
            }),
        };
        txn.put(self.row, value)?;
        Ok(*self.record)
    }
}

/// A version that was asked for by its name, or by none.
#[derive(Debug)]
pub(crate) enum Found {
    Object(Placed),
    Marker(DeleteMarker),
}

impl Found {
    pub(crate) fn stamp(&self) -> VersionStamp {
        match self {
            Self::Object(placed) => placed.record.version,
            Self::Marker(marker) => marker.version,
        }
    }
}

/// Looks for the version `version` of `key`, or the current one.
pub(crate) async fn find(
    txn: &mut Txn,
    bucket: &BucketRecord,
    key: &ObjectKey,
    version: Option<VersionId>,
) -> Result<Option<Found>> {
    let row = object_row(bucket.id, key);
    let current = read_object(txn, &row).await?;
    if let Some(record) = current.filter(|current| version.is_none_or(|version| current.version.id() == version)) {
        let since = None;
        return Ok(Some(Found::Object(Placed { record, row, since })));
    }
    Ok(match version {
        _ if bucket.versioning == Versioning::Never => None,
        None => match latest_row(txn, bucket, key).await? {
            Some(VersionRow::Marker(marker)) => Some(Found::Marker(marker)),
            _ => None,
        },
        Some(version) => find_noncurrent(txn, bucket.id, key, version)
            .await?
            .map(|found| match found {
                VersionRow::Marker(marker) => Found::Marker(marker),
                VersionRow::Object { record, since } => Found::Object(Placed {
                    row: Keys::version(bucket.id, key.as_str(), record.version.sequence),
                    record,
                    since: Some(since),
                }),
            }),
    })
}

/// The version `version` of `key`, or the current one, which must be an object.
///
/// # Errors
///
/// [`ErrorKind::NoSuchKey`] and [`ErrorKind::NoSuchVersion`]; [`ErrorKind::IsDeleteMarker`] if a delete marker was asked
/// for by its name. Where there is a delete marker, the error has it.
pub(crate) async fn require(
    txn: &mut Txn,
    bucket: &BucketRecord,
    key: &ObjectKey,
    version: Option<VersionId>,
) -> Result<Placed> {
    let found = find(txn, bucket, key, version).await?;
    Err(match (found, version) {
        (Some(Found::Object(placed)), _) => return Ok(placed),
        (Some(Found::Marker(marker)), None) => no_such_key(key).of_marker(marker),
        (Some(Found::Marker(marker)), Some(version)) => Error::new(
            ErrorKind::IsDeleteMarker,
            format!("version {version} of {key} is a delete marker"),
        )
        .of_marker(marker),
        (None, None) => no_such_key(key),
        (None, Some(version)) => no_such_version(key, version),
    })
}

pub(crate) fn no_such_key(key: &ObjectKey) -> Error {
    Error::new(ErrorKind::NoSuchKey, format!("{key} does not exist"))
}

fn no_such_version(key: &ObjectKey, version: VersionId) -> Error {
    Error::new(
        ErrorKind::NoSuchVersion,
        format!("{key} does not have the version {version}"),
    )
}

/// Removes a version for good. If it was the latest, the next one takes its place.
pub(crate) async fn remove(
    txn: &mut Txn,
    now: Timestamp,
    bucket: &BucketRecord,
    key: &ObjectKey,
    found: Found,
) -> Result<()> {
    let mut size = None;
    match found {
        Found::Object(placed) => {
            size = Some(placed.record.size());
            release(txn, placed.record.layout_id, now).await?;
            match placed.state() {
                VersionState::Current => txn.delete(placed.row)?,
                VersionState::Noncurrent => take_row(txn, bucket.id, key, placed.record.version)?,
            }
        }
        Found::Marker(marker) => take_row(txn, bucket.id, key, marker.version)?,
    }
    charge(txn, bucket, Change::of_object(size, None)).await?;
    promote(txn, bucket, key).await
}

/// Has the newest version be the current one, unless it is that already or a delete marker.
async fn promote(txn: &mut Txn, bucket: &BucketRecord, key: &ObjectKey) -> Result<()> {
    let row = object_row(bucket.id, key);
    if bucket.versioning == Versioning::Never || txn.get(&row).await?.is_some() {
        return Ok(());
    }
    if let Some(VersionRow::Object { record, .. }) = latest_row(txn, bucket, key).await? {
        take_row(txn, bucket.id, key, record.version)?;
        txn.put(row, encode(&*record))?;
    }
    Ok(())
}

/// The newest row of table `V`. It is protected, as is that there is none.
async fn latest_row(txn: &mut Txn, bucket: &BucketRecord, key: &ObjectKey) -> Result<Option<VersionRow>> {
    if bucket.versioning == Versioning::Never {
        return Ok(None);
    }
    let scan = Scan {
        range: Keys::versions_of(bucket.id, key.as_str()),
        limit: 1,
        order: Order::Ascending,
    };
    let page = txn.scan(&scan).await?;
    page.rows.first().map(|(_, row)| decode(row)).transpose()
}

async fn find_noncurrent(
    txn: &mut Txn,
    bucket: BucketId,
    key: &ObjectKey,
    version: VersionId,
) -> Result<Option<VersionRow>> {
    let sequence = match version {
        VersionId::Named { sequence, .. } => Some(sequence),
        VersionId::Null => match txn.get(&Keys::null_version(bucket, key.as_str())).await? {
            Some(sequence) => Some(parse_sequence(&sequence)?),
            None => None,
        },
    };
    let Some(sequence) = sequence else { return Ok(None) };
    let row: Option<VersionRow> = get(txn, &Keys::version(bucket, key.as_str(), sequence)).await?;
    Ok(row.filter(|row| row.stamp().id() == version))
}

/// The value of a row of table `v`.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] if it is none.
pub(crate) fn parse_sequence(value: &[u8]) -> Result<u64> {
    let sequence = value
        .try_into()
        .map_err(|_| Error::corrupt("the index holds a damaged sequence of a version"))?;
    Ok(u64::from_be_bytes(sequence))
}

/// The object version that has `layout`, current or not. `None` if an upload has it, or nothing, or if it has no blobs.
pub(crate) async fn version_of(txn: &mut Txn, layout: LayoutId) -> Result<Option<Placed>> {
    let record: Option<LayoutRecord> = get(txn, &Keys::layout(layout)).await?;
    let Some(holder) = record.and_then(|record| record.holder) else {
        return Ok(None);
    };
    let row = Keys::object(holder.bucket, holder.key.as_bytes());
    let current = read_object(txn, &row).await?;
    if let Some(record) = current.filter(|current| current.layout_id == layout) {
        let since = None;
        return Ok(Some(Placed { record, row, since }));
    }
    let row = Keys::version(holder.bucket, &holder.key, holder.sequence);
    Ok(match get(txn, &row).await? {
        Some(VersionRow::Object { record, since }) if record.layout_id == layout => Some(Placed {
            record,
            row,
            since: Some(since),
        }),
        _ => None,
    })
}

/// The record of a row of table `O`. Boxed: it is moved from future to future.
pub(crate) async fn read_object(txn: &mut Txn, row: &[u8]) -> Result<Option<Box<ObjectRecord>>> {
    Ok(get(txn, row).await?.map(Box::new))
}

pub(crate) fn object_row(bucket: BucketId, key: &ObjectKey) -> Bytes {
    Keys::object(bucket, key.as_str().as_bytes())
}
