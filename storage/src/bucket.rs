//! Buckets: create, look up, list, tag, delete.

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Order, SCAN_ROWS_MAX, Scan, Txn, transact},
    lifecycle, lock, quota,
    schema::{BucketId, BucketName, BucketRecord, Keys, ObjectLock, Tags, Versioning, decode, encode},
    staging::get,
    store::Store,
};

impl Store {
    /// Creates a bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BucketAlreadyExists`]; [`ErrorKind::Io`] if the index fails.
    pub async fn create_bucket(
        &self,
        name: &BucketName,
        region: Option<String>,
        tags: Tags,
        owner: String,
    ) -> Result<BucketRecord> {
        let record = new_bucket(self.now(), region, tags, owner);
        self.insert_bucket(name, &record).await?;
        Ok(record)
    }

    /// Creates a bucket with object lock, which therefore keeps versions.
    ///
    /// # Errors
    ///
    /// As for [`Store::create_bucket`].
    pub async fn create_locked_bucket(
        &self,
        name: &BucketName,
        region: Option<String>,
        tags: Tags,
        owner: String,
    ) -> Result<BucketRecord> {
        let record = BucketRecord {
            versioning: Versioning::Enabled,
            object_lock: Some(ObjectLock::default()),
            ..new_bucket(self.now(), region, tags, owner)
        };
        self.insert_bucket(name, &record).await?;
        Ok(record)
    }

    async fn insert_bucket(&self, name: &BucketName, record: &BucketRecord) -> Result<()> {
        let bytes = encode(record);
        transact!(&self.core.kv, |txn| {
            let key = Keys::bucket(name);
            if txn.get(&key).await?.is_some() {
                return Err(Error::new(
                    ErrorKind::BucketAlreadyExists,
                    format!("bucket {name} exists already"),
                ));
            }
            txn.put(key, bytes.clone())
        });
        Ok(())
    }

    /// What is known of a bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn bucket(&self, name: &BucketName) -> Result<BucketRecord> {
        require_bucket(&mut self.begin().await?, name).await
    }

    /// Buckets by name, at most `limit`, beginning after `after`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_buckets(
        &self,
        after: Option<&BucketName>,
        limit: usize,
    ) -> Result<Vec<(BucketName, BucketRecord)>> {
        let mut range = Keys::buckets();
        if let Some(after) = after {
            // A name ends in a letter or digit, so no name lies between it and itself followed by NUL.
            range.start = [&Keys::bucket(after)[..], &[0]].concat().into();
        }
        let limit = limit.clamp(1, SCAN_ROWS_MAX);
        let page = self
            .begin()
            .await?
            .scan(&Scan {
                range,
                limit,
                order: Order::Ascending,
            })
            .await?;
        page.rows
            .iter()
            .map(|(key, record)| {
                let name = std::str::from_utf8(key.get(1..).unwrap_or_default())
                    .map_err(|e| Error::corrupt("the index holds a bucket whose name is not text").caused_by(e))?;
                Ok((name.parse()?, decode(record)?))
            })
            .collect()
    }

    /// Changes the record of a bucket. `change` may run several times. It cannot change id and owner, for whom the objects
    /// are counted, nor lifecycle rules and object lock, and cannot make it one that never kept versions: what it does to
    /// them is undone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::InvalidBucketState`] if it has object lock and would keep no versions;
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn update_bucket(
        &self,
        name: &BucketName,
        change: impl Fn(&mut BucketRecord) + Send + Sync,
    ) -> Result<BucketRecord> {
        let record = transact!(&self.core.kv, |txn| {
            let mut record = require_bucket(&mut txn, name).await?;
            let (id, owner, versioning) = (record.id, record.owner.clone(), record.versioning);
            let (lifecycle, object_lock) = (record.lifecycle, record.object_lock);
            change(&mut record);
            (record.id, record.owner) = (id, owner);
            (record.lifecycle, record.object_lock) = (lifecycle, object_lock);
            if record.versioning == Versioning::Never {
                record.versioning = versioning;
            }
            lock::check_versioning(&record)?;
            txn.put(Keys::bucket(name), encode(&record))?;
            Ok(record)
        });
        Ok(record)
    }

    /// Deletes an empty bucket.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::BucketNotEmpty`] if it holds objects, versions or delete markers of them,
    /// or uploads in progress.
    pub async fn delete_bucket(&self, name: &BucketName) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let record = require_bucket(&mut txn, name).await?;
            // The ranges are protected: what is being added to them meets a conflict, or we do.
            for (range, what) in [
                (Keys::objects(record.id, b""), "objects"),
                (Keys::versions(record.id, ""), "versions or delete markers"),
                (Keys::uploads(record.id, b""), "uploads in progress"),
            ] {
                if txn.any(range).await? {
                    return Err(Error::new(
                        ErrorKind::BucketNotEmpty,
                        format!("bucket {name} still holds {what}"),
                    ));
                }
            }
            quota::forget(&mut txn, &record).await?;
            lifecycle::forget(&mut txn, &record)?;
            txn.delete(Keys::bucket(name))
        });
        Ok(())
    }
}

impl Store {
    /// The name of a bucket, if it is there.
    pub(crate) async fn bucket_name(&self, id: BucketId) -> Result<Option<BucketName>> {
        let mut after = None;
        loop {
            let page = self.list_buckets(after.as_ref(), SCAN_ROWS_MAX).await?;
            if let Some((name, _)) = page.iter().find(|(_, record)| record.id == id) {
                return Ok(Some(name.clone()));
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(None),
            }
        }
    }
}

fn new_bucket(now: Timestamp, region: Option<String>, tags: Tags, owner: String) -> BucketRecord {
    BucketRecord {
        id: BucketId::generate(now),
        created: now,
        region,
        tags,
        owner,
        compression: None,
        quota: None,
        versioning: Versioning::Never,
        lifecycle: false,
        object_lock: None,
    }
}

/// The record of bucket `name`.
pub(crate) async fn require_bucket(txn: &mut Txn, name: &BucketName) -> Result<BucketRecord> {
    get(txn, &Keys::bucket(name))
        .await?
        .ok_or_else(|| Error::new(ErrorKind::NoSuchBucket, format!("bucket {name} does not exist")))
}
