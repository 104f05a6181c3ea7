//! Blobs that are kept open, so that the next range of one need not read its trailer again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::reader::Sealed;
use crate::blob::BlobId;

/// Most blobs kept open, if nothing else is said: a quarter of the usual limit of 1,024 descriptors, and at most 4 MiB of checksums.
const OPEN_BLOBS_MAX: usize = 256;

/// The blobs that were opened last.
#[derive(Debug)]
pub(super) struct OpenBlobs {
    inner: Mutex<Inner>,
    /// How many at most.
    most: usize,
}

impl Default for OpenBlobs {
    fn default() -> Self {
        Self::of(OPEN_BLOBS_MAX)
    }
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<BlobId, Entry>,
    /// Counts uses, to tell which blob was used last.
    uses: u64,
    /// Counts removals, to tell whether there was one while a blob was being opened.
    removals: u64,
}

#[derive(Debug)]
struct Entry {
    sealed: Arc<Sealed>,
    last_use: u64,
}

/// The time of a look into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl OpenBlobs {
    /// Room for `most` blobs.
    pub(super) fn of(most: usize) -> Self {
        Self {
            inner: Mutex::default(),
            most,
        }
    }

    /// The blob, if it is open; and the time, for [`OpenBlobs::insert`].
    pub(super) fn get(&self, id: BlobId) -> (Option<Arc<Sealed>>, Epoch) {
        let mut inner = self.lock();
        inner.uses += 1;
        let last_use = inner.uses;
        let epoch = Epoch(inner.removals);
        let sealed = inner.blobs.get_mut(&id).map(|entry| {
            entry.last_use = last_use;
            Arc::clone(&entry.sealed)
        });
        (sealed, epoch)
    }

    /// Keeps a blob that was opened since `epoch`, unless a blob was deleted meanwhile: it could be this one, whose
    /// bytes would then stay on the disk for as long as it is kept.
    pub(super) fn insert(&self, sealed: &Arc<Sealed>, epoch: Epoch) {
        let mut inner = self.lock();
        if epoch != Epoch(inner.removals) {
            return;
        }
        let last_use = inner.uses;
        inner.blobs.insert(
            sealed.id(),
            Entry {
                sealed: Arc::clone(sealed),
                last_use,
            },
        );
        if inner.blobs.len() > self.most {
            let oldest = inner
                .blobs
                .iter()
                .min_by_key(|(_, entry)| entry.last_use)
                .map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                inner.blobs.remove(&oldest);
            }
        }
    }

    /// Lets go of a blob, once its name is gone.
    pub(super) fn remove(&self, id: BlobId) {
        let mut inner = self.lock();
        inner.removals += 1;
        inner.blobs.remove(&id);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().blobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds this lock")
    }
}
