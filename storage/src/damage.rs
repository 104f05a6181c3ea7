//! What is known to be damaged.
//!
//! Every read of a blob goes through [`WatchedBlobs`], which notes the damage it meets. [`Store::record_damage`] then
//! writes it to table `H`, where it stays over restarts until a scrub finds the blob whole again; when the blob goes, it goes
//! too.
//! Damaged bytes themselves are never given to anybody: the read has failed.
//!
//! What is noted and not yet written is lost in a crash. The next read, or the next scrub, finds it again.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use tokio::sync::Notify;

use crate::{
    blob::{Blob, BlobId, BlobWriter, Blobs, Compression, Repacked, Space},
    clock::Timestamp,
    error::{Damage, Result},
    kv::{Durability, transact},
    rows::Rows,
    schema::{Keys, LayoutId, LayoutRecord, LayoutState, decode, encode},
    staging::get,
    store::Store,
    version::{VersionState, version_of},
};

/// Damaged places of one blob that are remembered; one is enough to know that the blob is hurt.
const PLACES_MAX: usize = 64;
/// Blobs whose damage waits to be written. A disk that fails as a whole must not fill the memory.
const PENDING_MAX: usize = 1024;
/// Damaged blobs that one report lists.
const REPORT_MAX: usize = 1000;

/// A damaged blob.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DamageRecord {
    /// Where in the blob the damage begins, in bytes; empty if the blob as a whole is missing or unreadable.
    #[n(0)]
    pub offsets: BTreeSet<u64>,
    /// What was wrong with the first of them.
    #[n(1)]
    pub reason: String,
    /// When it was found first.
    #[n(2)]
    pub found: Timestamp,
}

impl DamageRecord {
    fn add(&mut self, damage: &Damage) {
        if self.offsets.len() < PLACES_MAX {
            self.offsets.extend(damage.offset);
        }
    }
}

/// Damage that was met and is not yet written.
#[derive(Debug, Default)]
pub(crate) struct DamageInbox {
    pending: Mutex<BTreeMap<BlobId, Vec<Damage>>>,
    arrived: Notify,
    met: AtomicU64,
}

impl DamageInbox {
    pub(crate) fn note(&self, damage: &Damage) {
        self.met.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.lock();
        if pending.len() >= PENDING_MAX && !pending.contains_key(&damage.blob) {
            return;
        }
        let places = pending.entry(damage.blob).or_default();
        if places.len() < PLACES_MAX && !places.contains(damage) {
            places.push(damage.clone());
        }
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BlobId, Vec<Damage>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Waits until a read has met damage that is not yet written down.
    pub async fn damage_due(&self) {
        self.core.damage.arrived.notified().await;
    }

    /// How many reads have met damage since the store was opened.
    pub fn damage_met(&self) -> u64 {
        self.core.damage.met.load(Ordering::Relaxed)
    }

    /// Writes down the damage that reads have met, and gives the blobs that were not known to be damaged before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index fails; what was met then waits for the next call.
    pub async fn record_damage(&self) -> Result<Vec<BlobId>> {
        let pending = std::mem::take(&mut *self.core.damage.lock());
        let mut new = Vec::new();
        let mut left = pending.into_iter();
        while let Some((blob, places)) = left.next() {
            match self.add_damage(blob, &places).await {
                Ok(true) => new.push(blob),
                Ok(false) => {}
                Err(error) => {
                    let mut pending = self.core.damage.lock();
                    pending.extend(left);
                    pending.insert(blob, places);
                    return Err(error);
                }
            }
        }
        Ok(new)
    }

    /// Writes down damage of one blob. Whether it is one in use that was not known to be damaged.
    pub(crate) async fn add_damage(&self, blob: BlobId, places: &[Damage]) -> Result<bool> {
        let Some(first) = places.first() else { return Ok(false) };
        let found = self.now();
        let new = transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            if txn.get(&Keys::blob(blob)).await?.is_none() {
                return Ok(false);
            }
            let known: Option<DamageRecord> = get(&mut txn, &Keys::damage(blob)).await?;
            let new = known.is_none();
            let mut record = known.unwrap_or_else(|| DamageRecord {
                offsets: BTreeSet::new(),
                reason: first.reason.clone(),
                found,
            });
            for place in places {
                record.add(place);
            }
            txn.put(Keys::damage(blob), encode(&record))?;
            Ok(new)
        });
        Ok(new)
    }

    /// Forgets the damage of a blob that was found whole, or is gone.
    pub(crate) async fn forget_damage(&self, blob: BlobId) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            if txn.get(&Keys::damage(blob)).await?.is_none() {
                return Ok(());
            }
            txn.delete(Keys::damage(blob))
        });
        Ok(())
    }

    /// The blobs in use that are known to be damaged, at most a thousand.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index cannot be read.
    pub async fn damage(&self) -> Result<Vec<(BlobId, DamageRecord)>> {
        let mut damaged = Vec::new();
        let mut rows = Rows::of(Keys::damages());
        while let Some(page) = rows.next(self).await? {
            for (key, record) in page {
                damaged.push((Keys::parse_blob(&key)?, decode(&record)?));
            }
            if damaged.len() >= REPORT_MAX {
                damaged.truncate(REPORT_MAX);
                break;
            }
        }
        Ok(damaged)
    }

    /// The objects whose layouts may lie over a blob, as `bucket/key`, followed by ` (version ID)` if it is not the current
    /// version: those of its owner, and of all that borrow from it; at most a thousand.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index cannot be read.
    pub async fn objects_over(&self, blob: BlobId) -> Result<BTreeSet<String>> {
        let mut layouts = vec![blob.owner];
        let mut rows = Rows::of(Keys::borrowers_of(blob.owner));
        while layouts.len() < REPORT_MAX
            && let Some(page) = rows.next(self).await?
        {
            for (key, _) in page {
                layouts.push(LayoutId(Keys::parse_last_id(&key)?));
            }
        }
        let mut names = BTreeMap::new();
        let mut objects = BTreeSet::new();
        for layout in layouts {
            let mut txn = self.begin().await?;
            let record: Option<LayoutRecord> = get(&mut txn, &Keys::layout(layout)).await?;
            let held = record.filter(|record| record.state == LayoutState::Held);
            let Some(holder) = held.and_then(|record| record.holder) else {
                continue;
            };
            if let Entry::Vacant(name) = names.entry(holder.bucket) {
                name.insert(self.bucket_name(holder.bucket).await?);
            }
            if let Some(Some(bucket)) = names.get(&holder.bucket) {
                let version = version_of(&mut txn, layout).await?;
                let version = version.filter(|version| version.state() == VersionState::Noncurrent);
                let version = version.map(|version| format!(" (version {})", version.record.version.id()));
                objects.insert(format!("{bucket}/{}{}", holder.key, version.unwrap_or_default()));
            }
        }
        Ok(objects)
    }
}

/// The blobs of a store, with an eye on what cannot be read.
#[derive(Debug)]
pub(crate) struct WatchedBlobs {
    pub(crate) inner: Arc<dyn Blobs>,
    pub(crate) inbox: Arc<DamageInbox>,
}

impl WatchedBlobs {
    fn watch<T>(&self, result: Result<T>) -> Result<T> {
        watch(&self.inbox, result)
    }
}

fn watch<T>(inbox: &DamageInbox, result: Result<T>) -> Result<T> {
    if let Err(error) = &result
        && let Some(damage) = error.damage()
    {
        inbox.note(damage);
    }
    result
}

#[async_trait]
impl Blobs for WatchedBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        self.inner.create(id).await
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        let inner = self.watch(self.inner.open(id).await)?;
        let inbox = Arc::clone(&self.inbox);
        Ok(Arc::new(WatchedBlob { inner, inbox }))
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        self.inner.exists(id).await
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        self.inner.delete(id).await
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        self.inner.list(after, limit).await
    }

    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked> {
        self.watch(self.inner.repack(id, compression).await)
    }

    async fn stored_len(&self, id: BlobId) -> Result<u64> {
        self.inner.stored_len(id).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.inner.space().await
    }
}

#[derive(Debug)]
struct WatchedBlob {
    inner: Arc<dyn Blob>,
    inbox: Arc<DamageInbox>,
}

#[async_trait]
impl Blob for WatchedBlob {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        watch(&self.inbox, self.inner.read(range).await)
    }

    async fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>> {
        self.inner.verify(range).await
    }
}
