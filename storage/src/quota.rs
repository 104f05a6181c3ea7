//! Quotas: what a bucket and a user may hold, and what they do hold.
//!
//! Usage is counted in rows that transactions add to without reading them ([`Txn::add`]), in the transaction that changes
//! what is counted. So it is exact at every moment, puts of one bucket do not conflict over it, and after a crash it is what
//! the objects are.
//!
//! | what changes | bytes | objects |
//! | --- | --- | --- |
//! | a put of any kind (also a copy, a conversion, a replica) | the size, less the size of the version it replaces | one, if it replaces none |
//! | a put that keeps the version before | the size | one |
//! | a part | its size, less that of the part it replaces | |
//! | a completed upload | as a put, less all parts of the upload | as a put |
//! | an aborted upload | less all parts of the upload | |
//! | a deleted object | less its size | less one |
//! | a delete marker | | |
//!
//! Every version counts, current or not. A delete marker does not: a delete must work whatever the quota.
//!
//! Each is counted for the bucket and for the user who owns the bucket, whoever made the request. A change that adds needs
//! room under both quotas, by [`Txn::require_at_most`]: however many writers there are at the same time, a quota is
//! reached but never passed. A change that adds nothing, such as a delete or a smaller overwrite, always works, also where
//! a quota was lowered under what is there. The bytes of a body are written before its transaction, so for as long as a
//! body that is refused takes to be swept, the disk holds more than is counted.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    bucket::require_bucket,
    error::{Error, ErrorKind, Result},
    kv::{Kv, Txn, transact},
    rows::Rows,
    schema::{
        BucketId, BucketName, BucketRecord, Keys, LayoutId, Measure, ObjectRecord, PartRecord, QuotaRecord, Usage,
        VersionRow, decode, encode, upload_key_parts,
    },
    staging::get,
    store::Store,
};

/// Rows that one transaction of a recount writes: well under the bound of the index.
const RECOUNT_BATCH: usize = 512;

impl Store {
    /// What a bucket holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn usage(&self, name: &BucketName) -> Result<Usage> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, name).await?;
        read(&txn, Owner::Bucket(bucket.id)).await
    }

    /// What all buckets of `owner` hold together: nothing, for a name that owns none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] for a name longer than a key of the index; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn user_usage(&self, owner: &str) -> Result<Usage> {
        read(&self.begin().await?, Owner::User(owner)).await
    }

    /// The quota of a bucket, if it has one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn bucket_quota(&self, name: &BucketName) -> Result<Option<QuotaRecord>> {
        Ok(self.bucket(name).await?.quota)
    }

    /// Sets the quota of a bucket, or removes it. One below the usage stops what adds, and takes nothing away.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index fails.
    pub async fn set_bucket_quota(&self, name: &BucketName, quota: Option<QuotaRecord>) -> Result<()> {
        self.update_bucket(name, |bucket| bucket.quota = quota).await.map(drop)
    }

    /// The quota of all buckets of `owner` together, if there is one.
    ///
    /// # Errors
    ///
    /// As for [`Store::user_usage`].
    pub async fn user_quota(&self, owner: &str) -> Result<Option<QuotaRecord>> {
        get(&mut self.begin().await?, &Keys::user_quota(owner)).await
    }

    /// Sets the quota of all buckets of `owner` together, or removes it. It need not own any yet.
    ///
    /// # Errors
    ///
    /// As for [`Store::user_usage`].
    pub async fn set_user_quota(&self, owner: &str, quota: Option<QuotaRecord>) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            match quota {
                Some(quota) => txn.put(Keys::user_quota(owner), encode(&quota)),
                None => txn.delete(Keys::user_quota(owner)),
            }
        });
        Ok(())
    }

    /// Counts the usage of everything anew.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if a record is damaged; [`ErrorKind::Io`] if the index fails.
    pub async fn recount(&self) -> Result<()> {
        recount(&self.core.kv, true).await.map(|_| ())
    }
}

/// Counts the usage of everything anew, from the objects and parts: for an index that was written before there were
/// counters. Nothing else may write meanwhile. A crash in between leaves counters that are too low; counting again
/// from the start mends them. Gives how many users there are. Without
/// `write`, that is all it does.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] if a record is damaged; [`ErrorKind::Io`] if the index fails.
pub(crate) async fn recount(kv: &Arc<dyn Kv>, write: bool) -> Result<u64> {
    let mut old = Rows::of(Keys::all_usage());
    while write && let Some(page) = old.next_of(kv).await? {
        transact!(kv, |txn| {
            for (key, _) in &page {
                txn.delete(key.clone())?;
            }
            Ok(())
        });
    }
    let mut users: BTreeMap<String, Usage> = BTreeMap::new();
    let mut buckets = Rows::of(Keys::buckets());
    while let Some(page) = buckets.next_of(kv).await? {
        for (_, bucket) in page {
            let bucket: BucketRecord = decode(&bucket)?;
            let usage = count_bucket(kv, bucket.id, write).await?;
            if write {
                count_for(kv, &[(Owner::Bucket(bucket.id), usage)]).await?;
            }
            let user = users.entry(bucket.owner).or_default();
            user.bytes = user.bytes.saturating_add(usage.bytes);
            user.objects = user.objects.saturating_add(usage.objects);
        }
    }
    let users: Vec<_> = users.iter().map(|(name, usage)| (Owner::User(name), *usage)).collect();
    for batch in users.chunks(RECOUNT_BATCH) {
        if write {
            count_for(kv, batch).await?;
        }
    }
    Ok(users.len() as u64)
}

/// What a bucket holds, by its rows. Counts its uploads on the way.
async fn count_bucket(kv: &Arc<dyn Kv>, bucket: BucketId, write: bool) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut objects = Rows::of(Keys::objects(bucket, b""));
    while let Some(page) = objects.next_of(kv).await? {
        for (_, object) in page {
            let object: ObjectRecord = decode(&object)?;
            usage.bytes = usage.bytes.saturating_add(object.layout.size());
            usage.objects = usage.objects.saturating_add(1);
        }
    }
    let mut versions = Rows::of(Keys::versions(bucket, ""));
    while let Some(page) = versions.next_of(kv).await? {
        for (_, row) in page {
            if let Some(object) = decode::<VersionRow>(&row)?.object() {
                usage.bytes = usage.bytes.saturating_add(object.size());
                usage.objects = usage.objects.saturating_add(1);
            }
        }
    }
    let mut uploads = Rows::of(Keys::uploads(bucket, b""));
    while let Some(page) = uploads.next_of(kv).await? {
        for (row, _) in page {
            let (_, upload) = upload_key_parts(&row)?;
            let bytes = count_upload(kv, upload, write).await?;
            usage.bytes = usage.bytes.saturating_add(bytes);
        }
    }
    Ok(usage)
}

async fn count_upload(kv: &Arc<dyn Kv>, upload: LayoutId, write: bool) -> Result<u64> {
    let mut bytes = 0_u64;
    let mut parts = Rows::of(Keys::parts(upload));
    while let Some(page) = parts.next_of(kv).await? {
        for (_, part) in page {
            let part: PartRecord = decode(&part)?;
            bytes = bytes.saturating_add(part.layout.size());
        }
    }
    if write {
        transact!(kv, |txn| { txn.add(Keys::upload_usage(upload), signed(bytes)) });
    }
    Ok(bytes)
}

async fn count_for(kv: &Arc<dyn Kv>, counted: &[(Owner<'_>, Usage)]) -> Result<()> {
    transact!(kv, |txn| {
        for (owner, usage) in counted {
            txn.add(owner.usage_key(Measure::Bytes), signed(usage.bytes))?;
            txn.add(owner.usage_key(Measure::Objects), signed(usage.objects))?;
        }
        Ok(())
    });
    Ok(())
}

/// Whose usage it is.
#[derive(Debug, Clone, Copy)]
enum Owner<'a> {
    Bucket(BucketId),
    User(&'a str),
}

impl Owner<'_> {
    fn usage_key(self, measure: Measure) -> bytes::Bytes {
        match self {
            Self::Bucket(id) => Keys::bucket_usage(id, measure),
            Self::User(name) => Keys::user_usage(name, measure),
        }
    }
}

async fn read(txn: &Txn, owner: Owner<'_>) -> Result<Usage> {
    Ok(Usage {
        bytes: txn.counter(&owner.usage_key(Measure::Bytes)).await?,
        objects: txn.counter(&owner.usage_key(Measure::Objects)).await?,
    })
}

/// How a transaction changes what a bucket holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    bytes: i64,
    objects: i64,
}

impl Change {
    /// A version of `new` bytes in the place of one of `old`, where there are such.
    pub(crate) fn of_object(old: Option<u64>, new: Option<u64>) -> Self {
        Self {
            bytes: difference(old, new),
            objects: i64::from(new.is_some()).saturating_sub(i64::from(old.is_some())),
        }
    }

    fn of(self, measure: Measure) -> i64 {
        match measure {
            Measure::Bytes => self.bytes,
            Measure::Objects => self.objects,
        }
    }
}

/// Counts `change` for `bucket` and its owner.
///
/// # Errors
///
/// [`ErrorKind::QuotaExceeded`] if this transaction adds, all in all, and a quota leaves no room for it.
pub(crate) async fn charge(txn: &mut Txn, bucket: &BucketRecord, change: Change) -> Result<()> {
    let adds = Measure::ALL.iter().any(|measure| change.of(*measure) > 0);
    let user_quota: Option<QuotaRecord> = if adds {
        get(txn, &Keys::user_quota(&bucket.owner)).await?
    } else {
        None
    };
    for (owner, quota) in [
        (Owner::Bucket(bucket.id), bucket.quota),
        (Owner::User(&bucket.owner), user_quota),
    ] {
        for measure in Measure::ALL {
            let delta = change.of(measure);
            if delta == 0 {
                continue;
            }
            let key = owner.usage_key(measure);
            txn.add(key.clone(), delta)?;
            // A completion takes the parts away and adds the object: what counts is the sum.
            let asked = txn.added(&key);
            let limit = quota.and_then(|quota| quota.of(measure));
            if let Some(limit) = limit.filter(|_| asked > 0) {
                let after = txn.counter(&key).await?;
                if after > limit {
                    let used = after.saturating_sub(asked.unsigned_abs());
                    return Err(exceeded(owner, measure, limit, used, asked));
                }
                txn.require_at_most(key, limit)?;
            }
        }
    }
    Ok(())
}

fn exceeded(owner: Owner<'_>, measure: Measure, limit: u64, used: u64, asked: i64) -> Error {
    let whose = match owner {
        Owner::Bucket(_) => "the bucket".to_owned(),
        Owner::User(name) => format!("user {name}"),
    };
    Error::new(
        ErrorKind::QuotaExceeded,
        format!(
            "the quota of {whose} is {limit} {measure}, of which {used} are used: there is no room for {asked} more"
        ),
    )
}

/// Counts a part of `new` bytes of `upload` that replaces one of `old`.
///
/// # Errors
///
/// As for [`charge`].
pub(crate) async fn charge_part(
    txn: &mut Txn,
    bucket: &BucketRecord,
    upload: LayoutId,
    old: Option<u64>,
    new: u64,
) -> Result<()> {
    let bytes = difference(old, Some(new));
    txn.add(Keys::upload_usage(upload), bytes)?;
    charge(txn, bucket, Change { bytes, objects: 0 }).await
}

/// Takes all parts of an upload that ends off the count. A part that is added meanwhile is a conflict.
///
/// # Errors
///
/// [`ErrorKind::Io`] if the index cannot be read.
pub(crate) async fn uncharge_parts(txn: &mut Txn, bucket: &BucketRecord, upload: LayoutId) -> Result<()> {
    let key = Keys::upload_usage(upload);
    txn.get(&key).await?;
    let bytes = signed(txn.counter(&key).await?).saturating_neg();
    txn.delete(key)?;
    charge(txn, bucket, Change { bytes, objects: 0 }).await
}

/// Takes what a bucket that is deleted is still counted for, which is nothing unless the counters are wrong, off it and
/// its owner.
///
/// # Errors
///
/// [`ErrorKind::Io`] if the index cannot be read.
pub(crate) async fn forget(txn: &mut Txn, bucket: &BucketRecord) -> Result<()> {
    let Usage { bytes, objects } = read(txn, Owner::Bucket(bucket.id)).await?;
    let change = Change {
        bytes: signed(bytes).saturating_neg(),
        objects: signed(objects).saturating_neg(),
    };
    charge(txn, bucket, change).await
}

fn difference(old: Option<u64>, new: Option<u64>) -> i64 {
    signed(new.unwrap_or(0)).saturating_sub(signed(old.unwrap_or(0)))
}

/// No object comes near what this cuts off.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
