//! Lifecycle: the rules of buckets, how far they have been carried out, and the deletes they ask for.
//!
//! Table `T` holds the rules of a bucket, and how far the pass through it has come that carries them out. Who makes the
//! pass, at what pace and when, is the server's business; a pass that is cut off goes on where its last note says.
//!
//! What a pass has seen may have changed by the time it acts: each delete names the very version that it is about, which is
//! compared in the transaction that deletes. So a rule never takes what was written later, and a crash leaves a version or
//! takes it, as any delete does. What object lock protects stays.

mod rule;

use minicbor::{Decode, Encode};

pub use self::rule::{
    Day, Expiration, FilterForm, LifecycleFilter, LifecycleRecord, LifecycleRule, NoncurrentExpiration,
};
use crate::{
    bucket::require_bucket,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Order, Scan, Txn, VALUE_LEN_MAX, transact},
    lock::{self, Governance},
    schema::{BucketName, BucketRecord, Keys, ObjectKey, VersionStamp, encode},
    staging::get,
    store::Store,
    version::{self, Found, Place, VersionState, object_row},
};

/// How far the pass through a bucket has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct LifecycleState {
    /// When it began.
    #[n(0)]
    pub begun: Timestamp,
    /// Which part of it is under way.
    #[n(1)]
    pub stage: LifecycleStage,
    /// The key behind which it goes on; nothing for the beginning of the stage.
    #[n(2)]
    pub after: String,
}

/// The parts of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum LifecycleStage {
    /// Versions and delete markers.
    #[default]
    #[n(0)]
    Versions,
    /// Uploads in progress.
    #[n(1)]
    Uploads,
    /// It has come to its end.
    #[n(2)]
    Done,
}

/// What a rule wants gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiring {
    /// The current version: deleted as by a client who names no version.
    Current,
    /// A version that is not current: deleted for good.
    Noncurrent,
    /// A delete marker that is the only version of its key.
    Marker,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// It is gone.
    Gone,
    /// It is not what it was, and stays.
    Changed,
    /// Object lock protects it.
    Locked,
}

impl Store {
    /// The lifecycle rules of a bucket, if it has some.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn lifecycle(&self, bucket: &BucketName) -> Result<Option<LifecycleRecord>> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        if bucket.lifecycle {
            get(&mut txn, &Keys::lifecycle(bucket.id)).await
        } else {
            Ok(None)
        }
    }

    /// The lifecycle rules of the bucket whose record this is. Of a bucket without any, nothing is read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn lifecycle_of(&self, bucket: &BucketRecord) -> Result<Option<LifecycleRecord>> {
        if bucket.lifecycle {
            get(&mut self.begin().await?, &Keys::lifecycle(bucket.id)).await
        } else {
            Ok(None)
        }
    }

    /// Sets the lifecycle rules of a bucket in place of earlier ones, or removes them. A pass begins anew.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::TooLarge`] if there is more to them than a row can hold;
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn set_lifecycle(&self, bucket: &BucketName, rules: Option<Vec<LifecycleRule>>) -> Result<()> {
        let record = rules.map(|rules| LifecycleRecord { rules, set: self.now() });
        let bytes = record.as_ref().map(encode);
        if bytes.as_ref().is_some_and(|bytes| bytes.len() > VALUE_LEN_MAX) {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the lifecycle rules take more than {VALUE_LEN_MAX} bytes"),
            ));
        }
        transact!(&self.core.kv, |txn| {
            let mut record = require_bucket(&mut txn, bucket).await?;
            txn.delete(Keys::lifecycle_state(record.id))?;
            match &bytes {
                Some(bytes) => txn.put(Keys::lifecycle(record.id), bytes.clone())?,
                None => txn.delete(Keys::lifecycle(record.id))?,
            }
            record.lifecycle = bytes.is_some();
            txn.put(Keys::bucket(bucket), encode(&record))
        });
        self.core.lifecycle_set.notify_one();
        Ok(())
    }

    /// Waits until lifecycle rules have been set.
    pub async fn lifecycle_changed(&self) {
        self.core.lifecycle_set.notified().await;
    }

    /// How far the pass through a bucket has come; `None` if there was none since its rules were set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn lifecycle_state(&self, bucket: &BucketRecord) -> Result<Option<LifecycleState>> {
        get(&mut self.begin().await?, &Keys::lifecycle_state(bucket.id)).await
    }

    /// Notes how far a pass has come. Says whether it may go on: not if the rules are not those of `rules` any more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn set_lifecycle_state(
        &self,
        bucket: &BucketRecord,
        rules: &LifecycleRecord,
        state: &LifecycleState,
    ) -> Result<bool> {
        let noted = transact!(&self.core.kv, |txn| {
            let current: Option<LifecycleRecord> = get(&mut txn, &Keys::lifecycle(bucket.id)).await?;
            if current.as_ref() != Some(rules) {
                return Ok(false);
            }
            txn.put(Keys::lifecycle_state(bucket.id), encode(state))?;
            Ok(true)
        });
        Ok(noted)
    }

    /// Deletes what a rule wants gone, if it still is what was seen: the version `stamp` of `key`, in the bucket of
    /// `record`, which may have another of its name after it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn expire(
        &self,
        bucket: &BucketName,
        record: &BucketRecord,
        key: &ObjectKey,
        stamp: VersionStamp,
        what: Expiring,
    ) -> Result<Expired> {
        let expired = transact!(&self.core.kv, |txn| {
            let found = match require_bucket(&mut txn, bucket).await {
                Ok(found) if found.id == record.id => found,
                Err(error) if error.kind() != ErrorKind::NoSuchBucket => return Err(error),
                _ => return Ok(Expired::Changed),
            };
            match what {
                Expiring::Current => self.expire_current(&mut txn, &found, key, stamp).await,
                Expiring::Noncurrent => self.expire_noncurrent(&mut txn, &found, key, stamp).await,
                Expiring::Marker => self.expire_marker(&mut txn, &found, key, stamp).await,
            }
        });
        self.core.swept.notify_one();
        Ok(expired)
    }

    async fn expire_current(
        &self,
        txn: &mut Txn,
        bucket: &BucketRecord,
        key: &ObjectKey,
        stamp: VersionStamp,
    ) -> Result<Expired> {
        let now = self.now();
        let place = Place::find(txn, now, bucket, key).await?;
        if place.current.as_ref().map(|current| current.version) != Some(stamp) {
            return Ok(Expired::Changed);
        }
        // A bucket with object lock keeps versions: what is protected stays behind the delete marker.
        version::add_marker(txn, now, bucket, key, place).await?;
        Ok(Expired::Gone)
    }

    async fn expire_noncurrent(
        &self,
        txn: &mut Txn,
        bucket: &BucketRecord,
        key: &ObjectKey,
        stamp: VersionStamp,
    ) -> Result<Expired> {
        let found = version::find(txn, bucket, key, Some(stamp.id())).await?;
        match found {
            Some(Found::Object(placed))
                if placed.record.version == stamp && placed.state() == VersionState::Noncurrent =>
            {
                if lock::check_delete(&placed.record, self.now(), Governance::Holds).is_err() {
                    return Ok(Expired::Locked);
                }
                version::remove(txn, self.now(), bucket, key, Found::Object(placed)).await?;
                Ok(Expired::Gone)
            }
            _ => Ok(Expired::Changed),
        }
    }

    async fn expire_marker(
        &self,
        txn: &mut Txn,
        bucket: &BucketRecord,
        key: &ObjectKey,
        stamp: VersionStamp,
    ) -> Result<Expired> {
        let found = version::find(txn, bucket, key, Some(stamp.id())).await?;
        let Some(Found::Marker(marker)) = found.filter(|found| found.stamp() == stamp) else {
            return Ok(Expired::Changed);
        };
        let others = Scan {
            range: Keys::versions_of(bucket.id, key.as_str()),
            limit: 2,
            order: Order::Ascending,
        };
        if txn.scan(&others).await?.rows.len() > 1 || txn.get(&object_row(bucket.id, key)).await?.is_some() {
            return Ok(Expired::Changed);
        }
        version::remove(txn, self.now(), bucket, key, Found::Marker(marker)).await?;
        Ok(Expired::Gone)
    }
}

/// Removes the rows of a bucket that goes.
pub(crate) fn forget(txn: &mut Txn, bucket: &BucketRecord) -> Result<()> {
    if bucket.lifecycle {
        txn.delete(Keys::lifecycle(bucket.id))?;
        txn.delete(Keys::lifecycle_state(bucket.id))?;
    }
    Ok(())
}
