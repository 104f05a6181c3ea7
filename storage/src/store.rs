//! The store: an index, blobs and a clock, and what all operations share.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, RwLock, broadcast};

use crate::{
    blob::{BLOB_LEN_MAX, BlobId, Blobs},
    clock::{Clock, Timestamp},
    damage::{DamageInbox, WatchedBlobs},
    error::Result,
    format,
    kv::{Kv, Txn},
    pin::Pins,
    schema::{JobId, Keys, LayoutId},
    space::SpaceWatch,
};

/// Job events that a slow listener may fall behind before it misses some.
const JOB_EVENTS_MAX: usize = 1024;

/// Bounds that tests make small, so that a few bytes take the way of many. All else uses the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob that is written, at most [`BLOB_LEN_MAX`].
    pub blob_len_max: u64,
    /// Most extents of a layout that is kept in a record.
    pub listed_count_max: usize,
    /// Smallest part of a multipart upload but the last (S3 User Guide, "Multipart upload limits").
    pub part_len_min: u64,
    /// Most blobs that the transaction of a put takes up. The others are taken up before, in batches of as many.
    pub adopt_batch: usize,
    /// Bytes of the disk that new data leaves free; 0 for none.
    pub reserve: u64,
    /// How long after a layout was released it is looked at for space that only parts of it still need, in
    /// milliseconds: most are gone by then.
    pub compact_after_millis: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob_len_max: BLOB_LEN_MAX,
            listed_count_max: 512,
            part_len_min: 5 << 20,
            adopt_batch: 512,
            reserve: 0,
            compact_after_millis: 10 * 60 * 1000,
        }
    }
}

/// Everything Lithos keeps. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

/// What operations and background work share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) kv: Arc<dyn Kv>,
    /// The blobs; damage that is met goes to `damage`.
    pub(crate) blobs: Arc<dyn Blobs>,
    /// The same blobs, for who looks for damage and deals with it.
    pub(crate) blobs_unwatched: Arc<dyn Blobs>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    /// Layouts that are being read.
    pub(crate) pins: Arc<Pins<LayoutId>>,
    /// Blobs that are being dropped: two that drop one blob would each remove what the other made way for.
    pub(crate) dropping: Arc<Pins<BlobId>>,
    /// Whoever deletes blobs holds this shared for each step, rows and files together. A backup holds it alone: until it
    /// has copied them, no blob goes that the rows of its moment name.
    pub(crate) deletions: Arc<RwLock<()>>,
    /// Blobs whose writer gave up, or that a committed transaction has dropped.
    discarded: Mutex<VecDeque<BlobId>>,
    /// There is something to sweep.
    pub(crate) swept: Notify,
    /// Told when lifecycle rules are set.
    pub(crate) lifecycle_set: Notify,
    /// There is a job to do.
    pub(crate) queued: Notify,
    /// Jobs as they change.
    pub(crate) job_events: broadcast::Sender<JobId>,
    /// Damage that reads have met.
    pub(crate) damage: Arc<DamageInbox>,
    /// There may be something to compress.
    pub(crate) compressible: Notify,
    /// What is free on the disk.
    pub(crate) space: SpaceWatch,
}

impl Store {
    /// Opens the store over an index and blobs that belong together.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) if the index was written in another format;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be read.
    pub async fn open(kv: Arc<dyn Kv>, blobs: Arc<dyn Blobs>, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_with(kv, blobs, clock, Limits::default()).await
    }

    /// As [`Store::open`], with bounds of the caller's choice.
    ///
    /// # Errors
    ///
    /// As for [`Store::open`].
    pub async fn open_with(
        kv: Arc<dyn Kv>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Result<Self> {
        format::adopt(&kv).await?;
        Ok(Self::assemble(kv, blobs, clock, limits, Arc::default()))
    }

    /// The store over engines whose format has been checked. Who shares `deletions` can make blobs stay.
    pub(crate) fn assemble(
        kv: Arc<dyn Kv>,
        blobs: Arc<dyn Blobs>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        deletions: Arc<RwLock<()>>,
    ) -> Self {
        let damage = Arc::<DamageInbox>::default();
        let core = Core {
            kv,
            blobs: Arc::new(WatchedBlobs {
                inner: Arc::clone(&blobs),
                inbox: Arc::clone(&damage),
            }),
            blobs_unwatched: blobs,
            clock,
            limits,
            pins: Arc::default(),
            dropping: Arc::default(),
            deletions,
            discarded: Mutex::default(),
            swept: Notify::new(),
            lifecycle_set: Notify::new(),
            queued: Notify::new(),
            job_events: broadcast::Sender::new(JOB_EVENTS_MAX),
            damage,
            compressible: Notify::new(),
            space: SpaceWatch::default(),
        };
        Self { core: Arc::new(core) }
    }

    /// The blobs under the objects.
    pub fn blobs(&self) -> &Arc<dyn Blobs> {
        &self.core.blobs
    }

    /// Now, by the store's clock.
    pub fn now(&self) -> Timestamp {
        self.core.clock.now()
    }

    /// Whether the index can be read: what a readiness probe asks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot.
    pub async fn check(&self) -> Result<()> {
        self.core
            .kv
            .snapshot()
            .await?
            .get(&Keys::meta("format"))
            .await
            .map(|_| ())
    }

    pub(crate) async fn begin(&self) -> Result<Txn> {
        Txn::begin(&self.core.kv).await
    }
}

impl Core {
    /// Has the sweep delete blobs that no row of the index needs.
    pub(crate) fn discard(&self, blobs: impl IntoIterator<Item = BlobId>) {
        self.discarded().extend(blobs);
        self.swept.notify_one();
    }

    /// The blobs that wait to be deleted, oldest first.
    pub(crate) fn discarded(&self) -> MutexGuard<'_, VecDeque<BlobId>> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
