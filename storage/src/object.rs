//! Objects: put, open, delete, and changes of what is known of them.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use futures::StreamExt;

use crate::{
    blob::BlobId,
    bucket::require_bucket,
    clock::Timestamp,
    compress::queue_compression,
    digest::{DigestSet, Digests},
    error::{Error, ErrorKind, Result},
    hashing::Hashing,
    job::{Fence, NewJob, check_fence, enqueue},
    kv::{Txn, transact},
    lock::{self, Governance},
    pin::LayoutPin,
    quota::{Change, charge},
    read::ObjectReader,
    schema::{
        BucketName, BucketRecord, Checksum, ContentHeaders, DeadLayout, Holder, JobId, Keys, LayoutId, LayoutRecord,
        LayoutState, ObjectKey, ObjectRecord, PartSize, Tags, VersionId, VersionLock, VersionStamp, Versioning, encode,
    },
    staging::{Content, get},
    store::Store,
    version::{self, Found, Place, VersionState, no_such_key, object_row, read_object},
};

/// Jobs that an object remembers; the oldest are forgotten first. A tag, which has 256 characters, names fewer formats.
pub const JOBS_MAX: usize = 32;
/// How often an object that is replaced while it is being opened is looked up again.
const OPEN_ATTEMPTS_MAX: usize = 64;

/// What a put makes of its content.
#[derive(Debug)]
pub struct NewObject {
    /// The bytes.
    pub content: Content,
    /// As in [`ObjectRecord::etag`].
    pub etag: String,
    /// As in [`ObjectRecord::headers`].
    pub headers: ContentHeaders,
    /// As in [`ObjectRecord::metadata`].
    pub metadata: BTreeMap<String, String>,
    /// As in [`ObjectRecord::tags`].
    pub tags: Tags,
    /// As in [`ObjectRecord::checksum`].
    pub checksum: Option<Checksum>,
    /// As in [`ObjectRecord::part_sizes`].
    pub part_sizes: Vec<PartSize>,
    /// As in [`ObjectRecord::annotations`].
    pub annotations: BTreeMap<String, String>,
    /// As in [`ObjectRecord::owner`].
    pub owner: String,
    /// Kept from a source; `None` for now.
    pub last_modified: Option<Timestamp>,
    /// When it may be written.
    pub condition: WriteCondition,
    /// The lease of the job that writes it, if a job does.
    pub fence: Option<Fence>,
    /// What it was made of: written only while that is the current version of an object of the same bucket.
    pub source: Option<SourceVersion>,
}

/// A version of an object that another one is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceVersion {
    /// The object.
    pub key: ObjectKey,
    /// Its version.
    pub layout_id: LayoutId,
}

/// What must hold of the current version for a write to go ahead. Checked in the transaction that writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WriteCondition {
    /// Nothing.
    #[default]
    Always,
    /// There is none (`If-None-Match: *`).
    Absent,
    /// There is one (`If-Match: *`).
    Present,
    /// There is one, and its `ETag` is among these (`If-Match`).
    ETagIn(Vec<String>),
    /// There is none, or its `ETag` is not among these (`If-None-Match`).
    ETagNotIn(Vec<String>),
    /// There is none, or its annotation `name` has this value: a job replaces only what it made itself.
    AbsentOrAnnotated {
        /// The annotation.
        name: String,
        /// Its value.
        value: String,
    },
}

/// What must hold of the current version for a delete to go ahead. Checked in the transaction that deletes.
///
/// Only `present` wants that there is a version; whatever else is asked holds of one that is gone already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteCondition {
    /// There is one (`If-Match: *`).
    pub present: bool,
    /// Its `ETag` is among these (`If-Match`); `None` for any.
    pub etags: Option<Vec<String>>,
    /// It was last written in this second since 1970 (`x-amz-if-match-last-modified-time`).
    pub last_modified_secs: Option<u64>,
    /// It has this length in bytes (`x-amz-if-match-size`).
    pub size: Option<u64>,
}

/// What a put did.
#[derive(Debug, Clone)]
pub struct PutOutcome {
    /// The version written.
    pub record: ObjectRecord,
    /// The bucket it is in, as of the same transaction.
    pub bucket: BucketRecord,
}

/// What a delete did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Whether there was what was to be deleted.
    pub existed: bool,
    /// The delete marker that was added, or the version that was named; `None` in a bucket that never kept versions.
    pub version: Option<VersionId>,
    /// Whether that is a delete marker.
    pub is_marker: bool,
}

/// An object version that is open: its blobs stay until this is dropped.
#[derive(Debug, Clone)]
pub struct OpenObject {
    /// What is known of it.
    pub record: ObjectRecord,
    /// The bucket it is in.
    pub bucket: BucketRecord,
    pin: Arc<LayoutPin>,
    store: Store,
}

impl OpenObject {
    /// Reads its bytes.
    pub fn reader(&self) -> ObjectReader {
        ObjectReader::new(
            Arc::clone(&self.store.core.blobs),
            Arc::new(self.record.layout.clone()),
            Some(self.pin()),
        )
    }

    /// Computes digests of the bytes of `range`, cut off at the object's end, which are read for it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if they cannot be read.
    pub async fn digests(&self, range: Range<u64>, set: &DigestSet) -> Result<Digests> {
        let mut hashing = Hashing::new(set);
        let mut bytes = self.reader().stream(range);
        while let Some(chunk) = bytes.next().await {
            hashing.update(chunk?).await?;
        }
        hashing.finish().await
    }

    pub(crate) fn pin(&self) -> Arc<LayoutPin> {
        Arc::clone(&self.pin)
    }
}

impl Store {
    /// Commits `new` as the current version of `key`. The version before is released, or kept as the bucket's versioning
    /// says.
    ///
    /// `complete` sees the bucket and the record as they will be written, may add to the record, such as what is to protect
    /// it, and returns jobs to queue in the same transaction. It may run several times.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::StorageFull`] if it would take from the reserve; [`ErrorKind::QuotaExceeded`];
    /// [`ErrorKind::PreconditionFailed`] if the condition does not hold, the job's lease is lost or the content took too
    /// long; [`ErrorKind::SourceChanged`]; [`ErrorKind::OutcomeUnknown`] if the index failed while committing.
    pub async fn put_object(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        new: NewObject,
        complete: impl Fn(&BucketRecord, &mut ObjectRecord) -> Result<Vec<NewJob>> + Send + Sync,
    ) -> Result<PutOutcome> {
        let NewObject {
            mut content,
            condition,
            fence,
            source,
            ..
        } = new;
        // What is inline goes to the index; all else has been asked about as it was written.
        self.core.require_space(0).await?;
        content.staging.adopt_early().await?;
        let draft = ObjectRecord {
            layout_id: content.layout_id(),
            layout: content.layout.clone(),
            last_modified: new.last_modified.unwrap_or_else(|| self.now()),
            etag: new.etag,
            headers: new.headers,
            metadata: new.metadata,
            tags: new.tags,
            checksum: new.checksum,
            part_sizes: new.part_sizes,
            annotations: new.annotations,
            jobs: Vec::new(),
            owner: new.owner,
            replication: BTreeMap::new(),
            version: VersionStamp::default(),
            lock: VersionLock::default(),
        };
        let outcome = transact!(&self.core.kv, |txn| {
            let now = self.now();
            let bucket = require_bucket(&mut txn, bucket).await?;
            check_fence(&mut txn, fence.as_ref()).await?;
            check_source(&mut txn, &bucket, source.as_ref()).await?;
            let place = Place::find(&mut txn, now, &bucket, key).await?;
            check_condition(&condition, key, place.current.as_deref())?;
            let holder = Holder::version(bucket.id, key, place.stamp);
            content.staging.commit(&mut txn, holder).await?;
            let mut record = draft.clone();
            record.version = place.stamp;
            let jobs = complete(&bucket, &mut record)?;
            let record = write_object(&mut txn, now, &bucket, key, place, record, &jobs).await?;
            Ok(PutOutcome { record, bucket })
        });
        content.staging.committed();
        self.core.swept.notify_one();
        self.core.compressible.notify_one();
        self.queued(&outcome.record.jobs);
        Ok(outcome)
    }

    /// Opens the current version of `key`. Where that is a delete marker, the error has it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchKey`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn open_object(&self, bucket: &BucketName, key: &ObjectKey) -> Result<OpenObject> {
        self.open_version(bucket, key, None).await
    }

    /// Opens the version `version` of `key`, or the current one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchKey`], [`ErrorKind::NoSuchVersion`]; [`ErrorKind::IsDeleteMarker`];
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn open_version(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
    ) -> Result<OpenObject> {
        let pins = &self.core.pins;
        let mut refused = None;
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let sweep_end = pins.sweep_end();
            let sweeps_ended = pins.sweeps_ended();
            let (bucket_record, record) = self.look_up(bucket, key, version).await?;
            let layout = record.layout_id;
            let Some(pin) = pins.pin(layout) else {
                // It was replaced and is being swept: there is a newer version, or none. Or a replica has taken it back
                // while the sweep looks at it: then it is found once more, and the sweep lets go of it.
                if refused.replace(layout) == Some(layout) {
                    sweep_end.await;
                }
                continue;
            };
            // What was found has not been swept, if no sweep ended since. Else it is looked up again: it may be gone, or
            // have been compacted.
            let (bucket_record, record) = if pins.sweeps_ended() == sweeps_ended {
                (bucket_record, record)
            } else {
                self.look_up(bucket, key, version).await?
            };
            if record.layout_id == layout {
                return Ok(OpenObject {
                    record,
                    bucket: bucket_record,
                    pin: Arc::new(pin),
                    store: self.clone(),
                });
            }
        }
        Err(Error::new(
            ErrorKind::Contended,
            format!("{key} is being replaced all the time"),
        ))
    }

    async fn look_up(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
    ) -> Result<(BucketRecord, ObjectRecord)> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        let placed = version::require(&mut txn, &bucket, key, version).await?;
        Ok((bucket, *placed.record))
    }

    /// Deletes the current version of `key`, as [`Store::delete_object_if`] without a condition does. Says whether there
    /// was one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index fails.
    pub async fn delete_object(&self, bucket: &BucketName, key: &ObjectKey) -> Result<bool> {
        let deleted = self.delete_object_if(bucket, key, &DeleteCondition::default()).await?;
        Ok(deleted.existed)
    }

    /// Deletes the current version of `key` if `condition` holds of it. In a bucket that keeps versions, or did, that adds a
    /// delete marker, also where there is no such version.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::PreconditionFailed`] if the condition does not hold; [`ErrorKind::Io`] if
    /// the index fails.
    pub async fn delete_object_if(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        condition: &DeleteCondition,
    ) -> Result<Deleted> {
        let deleted = transact!(&self.core.kv, |txn| {
            let now = self.now();
            let bucket = require_bucket(&mut txn, bucket).await?;
            let place = Place::find(&mut txn, now, &bucket, key).await?;
            check_delete(condition, key, place.current.as_deref())?;
            let existed = place.current.is_some();
            let marker = version::add_marker(&mut txn, now, &bucket, key, place).await?;
            Ok(Deleted {
                existed,
                version: marker.as_ref().map(|marker| marker.version.id()),
                is_marker: marker.is_some(),
            })
        });
        self.core.swept.notify_one();
        Ok(deleted)
    }

    /// Deletes one version of `key`, or one delete marker, for good, if `condition` holds of it; of a delete marker only
    /// [`DeleteCondition::present`] can hold. If it was the latest version, the one before is the latest from then on. One
    /// that does not exist is as good as deleted.
    ///
    /// # Errors
    ///
    /// As for [`Store::delete_object_if`]; [`ErrorKind::Locked`] if object lock protects it.
    pub async fn delete_version(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: VersionId,
        condition: &DeleteCondition,
    ) -> Result<Deleted> {
        self.delete_retained(bucket, key, version, condition, Governance::Holds)
            .await
    }

    /// As [`Store::delete_version`], by a caller who may bypass a retention in governance mode.
    ///
    /// # Errors
    ///
    /// As for [`Store::delete_version`].
    pub async fn delete_retained(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: VersionId,
        condition: &DeleteCondition,
        governance: Governance,
    ) -> Result<Deleted> {
        let deleted = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            let found = version::find(&mut txn, &bucket, key, Some(version)).await?;
            match &found {
                Some(Found::Marker(_)) => check_delete_of_marker(condition, key)?,
                Some(Found::Object(placed)) => check_delete(condition, key, Some(&placed.record))?,
                None => check_delete(condition, key, None)?,
            }
            let deleted = Deleted {
                existed: found.is_some(),
                version: (bucket.versioning != Versioning::Never).then_some(version),
                is_marker: matches!(found, Some(Found::Marker(_))),
            };
            if let Some(Found::Object(placed)) = &found {
                lock::check_delete(&placed.record, self.now(), governance)?;
            }
            if let Some(found) = found {
                version::remove(&mut txn, self.now(), &bucket, key, found).await?;
            }
            Ok(deleted)
        });
        self.core.swept.notify_one();
        Ok(deleted)
    }

    /// Changes the record of the current version of `key` in place, and queues jobs with it.
    ///
    /// `change` may run several times. It cannot change layout and identity: what it does to them is undone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchKey`]; [`ErrorKind::PreconditionFailed`] if the current version's
    /// layout is not `expected`, where one is; the error of `change`.
    pub async fn update_object(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        expected: Option<LayoutId>,
        change: impl Fn(&BucketRecord, &mut ObjectRecord) -> Result<Vec<NewJob>> + Send + Sync,
    ) -> Result<ObjectRecord> {
        let changed = self.update_version(bucket, key, None, |bucket, record, _| {
            if expected.is_some_and(|expected| expected != record.layout_id) {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("{key} was replaced meanwhile"),
                ));
            }
            change(bucket, record)
        });
        Ok(changed.await?.record)
    }

    /// Changes the record of a version of `key`, or of the current one, as [`Store::update_object`] does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchKey`], [`ErrorKind::NoSuchVersion`], [`ErrorKind::IsDeleteMarker`];
    /// the error of `change`.
    pub async fn update_version(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        version: Option<VersionId>,
        change: impl Fn(&BucketRecord, &mut ObjectRecord, VersionState) -> Result<Vec<NewJob>> + Send + Sync,
    ) -> Result<PutOutcome> {
        let outcome = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            let mut placed = version::require(&mut txn, &bucket, key, version).await?;
            let state = placed.state();
            let record = &mut *placed.record;
            let (layout_id, layout) = (record.layout_id, record.layout.clone());
            let (stamp, lock) = (record.version, record.lock);
            let jobs = change(&bucket, record, state)?;
            record.layout_id = layout_id;
            record.layout = layout;
            (record.version, record.lock) = (stamp, lock);
            add_jobs(&mut txn, self.now(), record, &jobs)?;
            let record = placed.write(&mut txn)?;
            Ok(PutOutcome { record, bucket })
        });
        self.queued(&outcome.record.jobs);
        Ok(outcome)
    }

    /// The blobs that the extents of an open object lie in, each once, in no particular order, those of its pages too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if its layout cannot be read.
    pub async fn blobs_of(&self, object: &OpenObject) -> Result<Vec<BlobId>> {
        crate::replica::blobs_of(&self.core.blobs, &object.record.layout).await
    }
}

/// Writes `record` as the current version, with its jobs, counts it, and makes of the version before what the bucket's
/// versioning says. The version that is current already, known by its layout, is written anew where it is.
pub(crate) async fn write_object(
    txn: &mut Txn,
    now: Timestamp,
    bucket: &BucketRecord,
    key: &ObjectKey,
    mut place: Place,
    mut record: ObjectRecord,
    jobs: &[NewJob],
) -> Result<ObjectRecord> {
    let replaced = match &place.current {
        Some(current) if current.layout_id == record.layout_id => {
            (record.version, record.lock) = (current.version, current.lock);
            Some(current.size())
        }
        _ => {
            record.version = place.stamp;
            record.lock = lock::settle(bucket, record.lock, now)?;
            place.clear(txn, now, bucket, key).await?
        }
    };
    charge(txn, bucket, Change::of_object(replaced, Some(record.size()))).await?;
    add_jobs(txn, now, &mut record, jobs)?;
    queue_compression(txn, bucket, &record)?;
    txn.put(object_row(bucket.id, key), encode(&record))?;
    Ok(record)
}

/// Queues `jobs` and notes them in the record.
fn add_jobs(txn: &mut Txn, now: Timestamp, record: &mut ObjectRecord, jobs: &[NewJob]) -> Result<()> {
    for job in jobs {
        let id: JobId = enqueue(txn, now, job.clone())?;
        record.jobs.push(id);
    }
    let surplus = record.jobs.len().saturating_sub(JOBS_MAX);
    record.jobs.drain(..surplus);
    Ok(())
}

/// Checks the condition of a write against the current version. A delete marker counts as none.
pub(crate) fn check_condition(
    condition: &WriteCondition,
    key: &ObjectKey,
    current: Option<&ObjectRecord>,
) -> Result<()> {
    let (holds, wanted) = match condition {
        WriteCondition::Absent => (current.is_none(), "it exists already".to_owned()),
        WriteCondition::Present if current.is_none() => return Err(no_such_key(key)),
        WriteCondition::Always | WriteCondition::Present => (true, String::new()),
        WriteCondition::ETagIn(etags) => match current {
            None => return Err(no_such_key(key)),
            Some(current) => (etags.contains(&current.etag), format!("its ETag is {}", current.etag)),
        },
        WriteCondition::ETagNotIn(etags) => (
            current.is_none_or(|current| !etags.contains(&current.etag)),
            "it has this ETag".to_owned(),
        ),
        WriteCondition::AbsentOrAnnotated { name, value } => (
            current.is_none_or(|current| current.annotations.get(name) == Some(value)),
            format!("an object is there that was not derived from {value}"),
        ),
    };
    if holds {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("{key} is not written: {wanted}"),
        ))
    }
}

/// Asserts that the version something was made of is still the current one; without a source there is nothing to assert.
async fn check_source(txn: &mut Txn, bucket: &BucketRecord, source: Option<&SourceVersion>) -> Result<()> {
    let Some(source) = source else {
        return Ok(());
    };
    let current = read_object(txn, &object_row(bucket.id, &source.key)).await?;
    if current.is_some_and(|current| current.layout_id == source.layout_id) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::SourceChanged,
        format!("{} was replaced or deleted meanwhile", source.key),
    ))
}

fn check_delete(condition: &DeleteCondition, key: &ObjectKey, current: Option<&ObjectRecord>) -> Result<()> {
    let failed = |why: String| {
        Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("{key} is not deleted: {why}"),
        ))
    };
    let Some(current) = current else {
        return if condition.present {
            failed("it does not exist".to_owned())
        } else {
            Ok(())
        };
    };
    if condition
        .etags
        .as_ref()
        .is_some_and(|etags| !etags.contains(&current.etag))
    {
        return failed(format!("its ETag is {}", current.etag));
    }
    if condition
        .last_modified_secs
        .is_some_and(|secs| secs != current.last_modified.0 / 1000)
    {
        return failed("it was last modified at another time".to_owned());
    }
    if condition.size.is_some_and(|size| size != current.size()) {
        return failed(format!("it has {} bytes", current.size()));
    }
    Ok(())
}

/// A delete marker has none of what a condition may ask of an object.
fn check_delete_of_marker(condition: &DeleteCondition, key: &ObjectKey) -> Result<()> {
    let present = DeleteCondition {
        present: condition.present,
        ..DeleteCondition::default()
    };
    if *condition == present {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PreconditionFailed,
        format!("{key} is not deleted: the version is a delete marker"),
    ))
}

/// Notes that nothing has `layout` any more, and has the sweep look at it.
pub(crate) async fn release(txn: &mut Txn, layout: LayoutId, now: Timestamp) -> Result<()> {
    let key = Keys::layout(layout);
    let Some(mut record) = get::<LayoutRecord>(txn, &key).await? else {
        return Ok(());
    };
    record.state = LayoutState::Released;
    txn.put(key, encode(&record))?;
    txn.put(Keys::dead_layout(layout), encode(&DeadLayout { not_before: now }))
}
