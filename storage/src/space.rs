//! The reserve: space of the disk that new data leaves free, so that the index can always be written and things deleted.
//!
//! What is free is asked of the file system now and then, and what was written since is taken off. Below the reserve,
//! writes fail with [`ErrorKind::StorageFull`]; reads and deletes go on, and as soon as there is space again, so do writes.

use std::sync::{Mutex, PoisonError};

use crate::{
    blob::Space,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    store::{Core, Store},
};

/// How long what the file system said is believed.
const FRESH_MILLIS: u64 = 250;
/// How much may be written before it is asked again.
const FRESH_BYTES: u64 = 32 << 20;

/// What is known of the free space.
#[derive(Debug, Default)]
pub(crate) struct SpaceWatch(Mutex<Known>);

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    asked: Option<Timestamp>,
    free: u64,
    /// Bytes written since.
    written: u64,
}

impl SpaceWatch {
    /// What is free, less `bytes` that are about to be written, if that is known well enough.
    fn take(&self, now: Timestamp, bytes: u64) -> Option<u64> {
        let mut known = self.lock();
        let fresh = known
            .asked
            .is_some_and(|asked| asked <= now && now.0.saturating_sub(asked.0) < FRESH_MILLIS);
        if !fresh || known.written.saturating_add(bytes) > FRESH_BYTES {
            return None;
        }
        known.written = known.written.saturating_add(bytes);
        Some(known.free.saturating_sub(known.written))
    }

    fn set(&self, now: Timestamp, free: u64, bytes: u64) -> u64 {
        *self.lock() = Known {
            asked: Some(now),
            free,
            written: bytes,
        };
        free.saturating_sub(bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Makes sure that `bytes` can be written without touching the reserve.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::StorageFull`] if they cannot.
    pub(crate) async fn require_space(&self, bytes: u64) -> Result<()> {
        let reserve = self.limits.reserve;
        if reserve == 0 {
            return Ok(());
        }
        let now = self.clock.now();
        let free = match self.space.take(now, bytes) {
            Some(free) => free,
            None => match self.blobs.space().await? {
                Some(space) => self.space.set(now, space.free, bytes),
                None => return Ok(()),
            },
        };
        if free < reserve {
            return Err(Error::new(
                ErrorKind::StorageFull,
                format!("{free} bytes would be free on the disk, and {reserve} are kept in reserve"),
            ));
        }
        Ok(())
    }
}

impl Store {
    /// Free and total space of the file system below the blobs, where there is one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the file system does not say.
    pub async fn space(&self) -> Result<Option<Space>> {
        self.core.blobs.space().await
    }
}
