//! Blobs that are kept open, so that the next range of one need not read its trailer again.

use std::{
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard},
};

use lru::LruCache;
use rustix::io::Errno;

use super::{folders::fan_out, reader::Sealed};
use crate::blob::BlobId;

/// Removals are counted apart for each folder of blobs, so that one seldom hinders another blob from being kept.
const COUNTERS: usize = 256;

/// The blobs that were opened last.
#[derive(Debug)]
pub(super) struct OpenBlobs(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    blobs: LruCache<BlobId, Arc<Sealed>>,
    /// Counts removals by [`fan_out`], to tell whether there was one while a blob was being opened.
    removals: [u64; COUNTERS],
}

/// The time of a look into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Inner {
    fn removals(&mut self, id: BlobId) -> &mut u64 {
        let counter = usize::from(fan_out(id));
        self.removals
            .get_mut(counter)
            .expect("there is a counter for each byte")
    }
}

impl OpenBlobs {
    /// Keeps at most `count_max` blobs open.
    pub(super) fn new(count_max: NonZeroUsize) -> Self {
        Self(Mutex::new(Inner {
            blobs: LruCache::new(count_max),
            removals: [0; COUNTERS],
        }))
    }

    /// The blob, if it is open; and the time, for [`OpenBlobs::insert`].
    pub(super) fn get(&self, id: BlobId) -> (Option<Arc<Sealed>>, Epoch) {
        let mut inner = self.lock();
        let epoch = Epoch(*inner.removals(id));
        (inner.blobs.get(&id).map(Arc::clone), epoch)
    }

    /// Keeps a blob that was opened since `epoch`, unless one of its folder was removed or replaced meanwhile: it could
    /// be this one, whose bytes would then stay on the disk for as long as it is kept.
    pub(super) fn insert(&self, sealed: &Arc<Sealed>, epoch: Epoch) {
        let mut inner = self.lock();
        if epoch != Epoch(*inner.removals(sealed.id())) {
            return;
        }
        let evicted = inner.blobs.push(sealed.id(), Arc::clone(sealed));
        // The file is closed once the lock is free.
        drop(inner);
        drop(evicted);
    }

    /// Lets go of a blob, once its name is gone or names another file.
    pub(super) fn remove(&self, id: BlobId) {
        let mut inner = self.lock();
        *inner.removals(id) += 1;
        let removed = inner.blobs.pop(&id);
        drop(inner);
        drop(removed);
    }

    /// Opens a file; if too many are open, lets go of half of the blobs that are kept and tries once more.
    pub(super) fn with_room<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if is_out_of_files(&error) => {
                self.let_go_of_half();
                open()
            }
            result => result,
        }
    }

    fn let_go_of_half(&self) {
        let mut inner = self.lock();
        let count = inner.blobs.len().div_ceil(2);
        let evicted: Vec<_> = (0..count).map_while(|_| inner.blobs.pop_lru()).collect();
        drop(inner);
        tracing::warn!(
            count = evicted.len(),
            "too many files are open: blobs that were kept open are closed"
        );
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().blobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Whether the process or the machine may open no more files.
fn is_out_of_files(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}
