//! Engines that fail on demand, for tests.
//!
//! [`FaultyKv`] and [`FaultyBlobs`] wrap real engines and share a [`FaultPlan`], which counts their calls and lets one of
//! them fail. After a [`Fault::Crash`] or [`Fault::CrashAfter`] all later calls fail too, as if the process had ended; a
//! test then drops its store and opens another over the engines inside.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    blob::{Blob, BlobId, BlobWriter, Blobs, Compression, Repacked, Space},
    error::{Damage, Error, ErrorKind, Result},
    kv::{Commit, Fold, Kv, Outcome, Page, Scan, Snapshot, Version},
};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Without effect; the process goes on.
    Fail,
    /// With its effect, but an error is reported; the process goes on.
    FailAfter,
    /// Without effect, as do all later calls.
    Crash,
    /// With its effect; later calls fail without.
    CrashAfter,
}

impl Fault {
    /// Every kind of fault.
    pub const ALL: [Self; 4] = [Self::Fail, Self::FailAfter, Self::Crash, Self::CrashAfter];

    /// Whether nothing works after it.
    pub fn is_crash(self) -> bool {
        matches!(self, Self::Crash | Self::CrashAfter)
    }
}

/// Which call fails, and how.
#[derive(Debug)]
pub struct FaultPlan {
    fault: Fault,
    /// The number of the call, from 1 on; 0 for none.
    at: AtomicU64,
    calls: AtomicU64,
}

/// What to do with a call.
enum Verdict {
    Go,
    FailBefore,
    FailAfter,
}

impl FaultPlan {
    /// Lets call number `at` fail, counted from 1; none if it is 0.
    pub fn new(fault: Fault, at: u64) -> Arc<Self> {
        Arc::new(Self {
            fault,
            at: AtomicU64::new(at),
            calls: AtomicU64::new(0),
        })
    }

    /// Whether the fault has happened.
    pub fn has_struck(&self) -> bool {
        let at = self.at.load(Ordering::SeqCst);
        at != 0 && self.calls.load(Ordering::SeqCst) >= at
    }

    /// Lets the call fail that is `at` calls from now.
    pub fn strike_at(&self, at: u64) {
        self.calls.store(0, Ordering::SeqCst);
        self.at.store(at, Ordering::SeqCst);
    }

    /// Lets nothing fail from now on.
    pub fn heal(&self) {
        self.at.store(0, Ordering::SeqCst);
    }

    fn call(&self) -> Verdict {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let at = self.at.load(Ordering::SeqCst);
        match self.fault {
            Fault::Fail | Fault::Crash if at == call => Verdict::FailBefore,
            Fault::FailAfter | Fault::CrashAfter if at == call => Verdict::FailAfter,
            Fault::Crash | Fault::CrashAfter if at != 0 && at < call => Verdict::FailBefore,
            _ => Verdict::Go,
        }
    }

    async fn run<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.call() {
            Verdict::Go => call.await,
            Verdict::FailBefore => Err(told_to_fail()),
            Verdict::FailAfter => {
                call.await?;
                Err(told_to_fail())
            }
        }
    }
}

fn told_to_fail() -> Error {
    Error::new(ErrorKind::Io, "this call was told to fail")
}

/// An index that fails as planned.
#[derive(Debug)]
pub struct FaultyKv {
    inner: Arc<dyn Kv>,
    plan: Arc<FaultPlan>,
}

impl FaultyKv {
    /// `inner`, with the faults of `plan`.
    pub fn new(inner: Arc<dyn Kv>, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }
}

#[async_trait]
impl Kv for FaultyKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let inner = self.plan.run(self.inner.snapshot()).await?;
        let plan = Arc::clone(&self.plan);
        Ok(Box::new(FaultySnapshot { inner, plan }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        match self.plan.call() {
            Verdict::Go => self.inner.commit(commit).await,
            Verdict::FailBefore => Outcome::Unknown(told_to_fail()),
            Verdict::FailAfter => match self.inner.commit(commit).await {
                Outcome::Committed(_) => Outcome::Unknown(told_to_fail()),
                other => other,
            },
        }
    }
}

#[derive(Debug)]
struct FaultySnapshot {
    inner: Box<dyn Snapshot>,
    plan: Arc<FaultPlan>,
}

#[async_trait]
impl Snapshot for FaultySnapshot {
    fn version(&self) -> Version {
        self.inner.version()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.plan.run(self.inner.get(key)).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Page> {
        self.plan.run(self.inner.scan(scan)).await
    }

    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page> {
        self.plan.run(self.inner.scan_folded(scan, fold)).await
    }
}

/// Blobs that fail as planned.
#[derive(Debug)]
pub struct FaultyBlobs {
    inner: Arc<dyn Blobs>,
    plan: Arc<FaultPlan>,
}

impl FaultyBlobs {
    /// `inner`, with the faults of `plan`.
    pub fn new(inner: Arc<dyn Blobs>, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }
}

#[async_trait]
impl Blobs for FaultyBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        let inner = self.plan.run(self.inner.create(id)).await?;
        let plan = Arc::clone(&self.plan);
        Ok(Box::new(FaultyWriter { inner, plan }))
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        let inner = self.plan.run(self.inner.open(id)).await?;
        let plan = Arc::clone(&self.plan);
        Ok(Arc::new(FaultyBlob { inner, plan }))
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        self.plan.run(self.inner.exists(id)).await
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        self.plan.run(self.inner.delete(id)).await
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        self.plan.run(self.inner.list(after, limit)).await
    }

    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked> {
        self.plan.run(self.inner.repack(id, compression)).await
    }

    async fn stored_len(&self, id: BlobId) -> Result<u64> {
        self.plan.run(self.inner.stored_len(id)).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.plan.run(self.inner.space()).await
    }
}

#[derive(Debug)]
struct FaultyWriter {
    inner: Box<dyn BlobWriter>,
    plan: Arc<FaultPlan>,
}

#[async_trait]
impl BlobWriter for FaultyWriter {
    async fn append(&mut self, data: Bytes) -> Result<()> {
        self.plan.run(self.inner.append(data)).await
    }

    async fn seal(self: Box<Self>) -> Result<u64> {
        self.plan.run(self.inner.seal()).await
    }
}

#[derive(Debug)]
struct FaultyBlob {
    inner: Arc<dyn Blob>,
    plan: Arc<FaultPlan>,
}

#[async_trait]
impl Blob for FaultyBlob {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.plan.run(self.inner.read(range)).await
    }

    async fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>> {
        self.plan.run(self.inner.verify(range)).await
    }
}
