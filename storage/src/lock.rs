//! Object lock: versions that nobody may delete (S3 User Guide, "Using S3 Object Lock").
//!
//! A version is protected while it has a legal hold, or a retention that has not ended. It can neither be deleted nor have
//! its protection taken away; a delete without a version id adds a delete marker as ever, and a new version can come after
//! it. That a bucket with object lock keeps versions, for ever, is what makes this hold.
//!
//! | retention | may be extended | may be shortened, removed or changed in its mode | its version may be deleted |
//! | --- | --- | --- | --- |
//! | governance | yes | by who bypasses it | by who bypasses it |
//! | compliance | yes | no | no |
//! | ended | yes | yes | yes |
//!
//! All of it is asked in the transaction that writes or deletes. Here clocks do decide whether: retention ends by the clock
//! of the server.

use crate::{
    bucket::require_bucket,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::transact,
    schema::{
        BucketName, BucketRecord, Keys, LockMode, ObjectKey, ObjectLock, ObjectRecord, Retention, VersionId,
        VersionLock, Versioning, encode,
    },
    store::Store,
    version,
};

/// Whether a retention in governance mode holds for a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Governance {
    /// It does.
    #[default]
    Holds,
    /// The caller is allowed to bypass it, and wants to.
    Bypassed,
}

impl Store {
    /// Sets the object lock of a bucket, which must keep versions. Once set, it can be changed and not removed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::InvalidBucketState`] if it keeps no versions; [`ErrorKind::Io`] if the index
    /// fails.
    pub async fn set_object_lock(&self, bucket: &BucketName, object_lock: ObjectLock) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let mut record = require_bucket(&mut txn, bucket).await?;
            if record.versioning != Versioning::Enabled {
                return Err(Error::new(
                    ErrorKind::InvalidBucketState,
                    format!("bucket {bucket} must keep versions before it can have object lock"),
                ));
            }
            record.object_lock = Some(object_lock);
            txn.put(Keys::bucket(bucket), encode(&record))
        });
        Ok(())
    }

    /// Sets the retention of a version of `key`, or of the current one, or removes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchKey`], [`ErrorKind::NoSuchVersion`], [`ErrorKind::IsDeleteMarker`];
    /// [`ErrorKind::NoObjectLock`] if the bucket has none; [`ErrorKind::Locked`] if the retention that there is does not
    /// allow it; [`ErrorKind::Io`] if the index fails.
    pub async fn set_retention(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
        retention: Option<Retention>,
        governance: Governance,
    ) -> Result<()> {
        self.change_lock(bucket, key, version, |lock| {
            let now = self.now();
            if let Some(current) = lock.retention.filter(|current| current.until > now)
                && !may_replace(current, retention, governance)
            {
                return Err(locked(format!("{key} is retained")));
            }
            lock.retention = retention;
            Ok(())
        })
        .await
    }

    /// Lays a legal hold on a version of `key`, or on the current one, or lifts it.
    ///
    /// # Errors
    ///
    /// As for [`Store::set_retention`].
    pub async fn set_legal_hold(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
        hold: bool,
    ) -> Result<()> {
        self.change_lock(bucket, key, version, |lock| {
            lock.legal_hold = Some(hold);
            Ok(())
        })
        .await
    }

    async fn change_lock(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
        change: impl Fn(&mut VersionLock) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let record = require_bucket(&mut txn, bucket).await?;
            require_object_lock(&record)?;
            let mut placed = version::require(&mut txn, &record, key, version).await?;
            change(&mut placed.record.lock)?;
            placed.write(&mut txn)?;
            Ok(())
        });
        Ok(())
    }
}

/// Whether an unexpired retention may be replaced by another, or by none.
fn may_replace(current: Retention, new: Option<Retention>, governance: Governance) -> bool {
    let extends = new.is_some_and(|new| new.mode == current.mode && new.until >= current.until);
    extends || (current.mode == LockMode::Governance && governance == Governance::Bypassed)
}

/// The lock of a version that is being written to `bucket`: what was asked for, else the bucket's default.
///
/// # Errors
///
/// [`ErrorKind::NoObjectLock`] if something was asked for and the bucket has none.
pub(crate) fn settle(bucket: &BucketRecord, asked: VersionLock, now: Timestamp) -> Result<VersionLock> {
    if asked != VersionLock::default() {
        require_object_lock(bucket)?;
    }
    let default = bucket.object_lock.and_then(|object_lock| object_lock.default);
    Ok(VersionLock {
        retention: asked.retention.or_else(|| default.map(|default| default.from(now))),
        ..asked
    })
}

/// Refuses to delete a version that is protected.
///
/// # Errors
///
/// [`ErrorKind::Locked`].
pub(crate) fn check_delete(record: &ObjectRecord, now: Timestamp, governance: Governance) -> Result<()> {
    if record.lock.legal_hold == Some(true) {
        return Err(locked("the version is under a legal hold".to_owned()));
    }
    match record.lock.retention.filter(|retention| retention.until > now) {
        None => Ok(()),
        Some(retention) if may_replace(retention, None, governance) => Ok(()),
        Some(_) => Err(locked("the version is retained".to_owned())),
    }
}

/// Refuses to have a bucket with object lock forget versions.
///
/// # Errors
///
/// [`ErrorKind::InvalidBucketState`].
pub(crate) fn check_versioning(bucket: &BucketRecord) -> Result<()> {
    if bucket.object_lock.is_some() && bucket.versioning != Versioning::Enabled {
        return Err(Error::new(
            ErrorKind::InvalidBucketState,
            "a bucket with object lock always keeps versions",
        ));
    }
    Ok(())
}

fn require_object_lock(bucket: &BucketRecord) -> Result<()> {
    match bucket.object_lock {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::NoObjectLock, "the bucket has no object lock")),
    }
}

fn locked(message: String) -> Error {
    Error::new(ErrorKind::Locked, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_replaced_as_its_mode_allows() {
        use super::Governance::{Bypassed, Holds};
        use LockMode::{Compliance, Governance};
        let retention = |mode, until| Retention {
            mode,
            until: Timestamp(until),
        };
        for (current, new, governance, expected) in [
            (Governance, Some((Governance, 10)), Holds, true),
            (Governance, Some((Governance, 11)), Holds, true),
            (Governance, Some((Governance, 9)), Holds, false),
            (Governance, Some((Governance, 9)), Bypassed, true),
            (Governance, Some((Compliance, 11)), Holds, false),
            (Governance, Some((Compliance, 9)), Bypassed, true),
            (Governance, None, Holds, false),
            (Governance, None, Bypassed, true),
            (Compliance, Some((Compliance, 11)), Holds, true),
            (Compliance, Some((Compliance, 9)), Bypassed, false),
            (Compliance, Some((Governance, 11)), Bypassed, false),
            (Compliance, None, Bypassed, false),
        ] {
            let new = new.map(|(mode, until)| retention(mode, until));
            let found = may_replace(retention(current, 10), new, governance);
            assert_eq!(found, expected, "{current:?} {new:?} {governance:?}");
        }
    }
}
