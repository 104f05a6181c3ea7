//! Blobs as files.
//!
//! ```text
//! ROOT/tmp/BLOB.NUMBER         blobs that are being written
//! ROOT/blobs/00 … ff/BLOB      sealed blobs, by the last byte of the owner's id, which is random
//! ```
//!
//! A file holds the data from offset 0, plain or packed, and then a trailer of checksums; `fs/format.rs` draws both. Who
//! opens the root to write must hold the lock of the index beside it: the root is written by one process at a time.
//!
//! A sealed file is never changed in place: it gets its name once, whole, and loses it to another file or to a deletion.
//! So those who have it open read on, and a hard link to it is as good as a copy (`fs/export.rs`). How a blob is repacked
//! stands in `fs/repack.rs`.
//!
//! # From append to durable
//!
//! | step | what a crash after it leaves |
//! | --- | --- |
//! | 1. create a new file in `tmp/` | a file in `tmp/`, which the next [`FsBlobs::open`] removes |
//! | 2. write data, then the trailer | the same |
//! | 3. sync the file (`fdatasync`) | the same, although whole |
//! | 4. rename it to its name in `blobs/` | it in `tmp/` or in `blobs/`, in both cases whole; in `blobs/` it is a blob that no layout mentions, which the sweep finds by [`Blobs::list`] |
//! | 5. sync the folder | a durable blob |
//!
//! [`BlobWriter::seal`] returns after step 5, and only then may the index mention the blob.
//!
//! Deleting is not synced: a crash may bring a deleted blob back, and the sweep, which goes by what is listed, finds it
//! again.
//!
//! # Threads
//!
//! Every call to the file system is made on tokio's blocking threads, reads of a few kilobytes too: whether they stall
//! for the disk cannot be known before (`RWF_NOWAIT` is not in the standard library), one that does would hold up
//! every connection of its thread, and the hop costs a tenth of what the request around it does.

mod cache;
mod draft;
mod export;
mod file;
mod folders;
mod format;
mod packed;
mod partial;
mod reader;
mod repack;
#[cfg(test)]
mod tests;
mod verified;
mod writer;

use std::{
    fs, io,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

pub use self::export::Exported;
use self::{
    cache::OpenBlobs,
    folders::{Folders, fan_out, sync_folder},
    reader::{FsBlob, Reading, Sealed},
    repack::{Next, Repack},
    verified::VERIFIED_FOR,
    writer::{FsWriter, PlainDraft},
};
use super::{Blob, BlobId, BlobWriter, Blobs, Compression, Repacked, Space, unreadable};
use crate::error::{Error, ErrorKind, Result};

/// Most blobs kept open, unless the options say otherwise: a quarter of the usual limit of 1,024 descriptors, and at
/// most 8 MiB of checksums.
const OPEN_BLOBS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// Locks that are shared by what changes names; a blob has one by its folder. So many that they are seldom waited for:
/// to remove a large file takes milliseconds.
const NAME_LOCKS: usize = 256;

/// How a store of blobs in a folder behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsOptions {
    /// Most blobs that are kept open for the next reader; 256 by default.
    pub open_blobs_max: NonZeroUsize,
    /// How long a block is trusted after it was found whole; 5 minutes by default, zero to check at every read.
    pub verified_for: Duration,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            open_blobs_max: OPEN_BLOBS_MAX,
            verified_for: VERIFIED_FOR,
        }
    }
}

/// A store of blobs in a folder.
#[derive(Debug)]
pub struct FsBlobs {
    shared: Arc<Shared>,
}

impl FsBlobs {
    /// Opens the store in the folder `root`, which is made if it is missing, and removes what writers left unfinished.
    /// The caller holds the lock of the index, so that those writers are gone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, &FsOptions::default())
    }

    /// As [`FsBlobs::open`], with options.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub fn open_with(root: &Path, options: &FsOptions) -> Result<Self> {
        let shared = Shared::new(root, options, Access::ReadWrite);
        shared.folders.make()?;
        shared.folders.remove_drafts()?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Opens the store in the folder `root` without ever writing to it. A server may be at work on it: blobs may then
    /// come and go.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the folders of a store are not there, or the disk fails.
    pub fn open_read_only(root: &Path) -> Result<Self> {
        let shared = Shared::new(root, &FsOptions::default(), Access::ReadOnly);
        shared.folders.check()?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Makes the folders of a store in `to_root`, for [`FsBlobs::export`]; what is there stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn prepare_export(to_root: &Path) -> Result<()> {
        let target = Folders::of(to_root);
        spawn_blocking(move || target.make()).await?
    }

    /// Gives the blob `id` to the root `to_root`, as it is stored: as a hard link, else as a clone, else as a copy. It is
    /// durable there after [`FsBlobs::sync_export`]. The caller sees to it that the blob stays until this returns.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`], with the [`Damage`](crate::Damage), if the blob is missing; [`ErrorKind::StorageFull`] or
    /// [`ErrorKind::Io`] if a disk is full or fails, or `to_root` was not prepared.
    pub async fn export(&self, id: BlobId, to_root: &Path) -> Result<Exported> {
        let (shared, target) = (Arc::clone(&self.shared), Folders::of(to_root));
        spawn_blocking(move || export::export(&shared, id, &target)).await?
    }

    /// Makes durable what was exported to `to_root`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn sync_export(to_root: &Path) -> Result<()> {
        let target = Folders::of(to_root);
        spawn_blocking(move || target.sync()).await?
    }
}

#[async_trait]
impl Blobs for FsBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        self.shared.check_writable("create", id)?;
        let shared = Arc::clone(&self.shared);
        let draft = spawn_blocking(move || PlainDraft::create(shared, id)).await??;
        Ok(Box::new(FsWriter::new(draft)))
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        let (sealed, epoch) = self.shared.open.get(id);
        if let Some(sealed) = sealed {
            return Ok(Arc::new(FsBlob(sealed)));
        }
        let shared = Arc::clone(&self.shared);
        let sealed = Arc::new(spawn_blocking(move || Sealed::open(&shared, id)).await??);
        self.shared.open.insert(&sealed, epoch);
        Ok(Arc::new(FsBlob(sealed)))
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.exists(id)).await?
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        self.shared.check_writable("delete", id)?;
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.delete(id)).await?
    }

    /// In order of the folder, then of the id.
    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.folders.list(after, limit)).await?
    }

    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked> {
        let compression = compression.checked()?;
        self.shared.check_writable("repack", id)?;
        let shared = Arc::clone(&self.shared);
        let mut next = spawn_blocking(move || Repack::begin(shared, id, compression)).await??;
        loop {
            next = match next {
                Next::Step(repack) => spawn_blocking(move || repack.step()).await??,
                Next::Finish(repack) => return spawn_blocking(move || repack.finish()).await?,
                Next::Stay(repacked) => return Ok(repacked),
            };
        }
    }

    async fn stored_len(&self, id: BlobId) -> Result<u64> {
        let path = self.shared.folders.path(id);
        let metadata = spawn_blocking(move || fs::metadata(path)).await?;
        match metadata {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(unreadable(id, "it is missing").caused_by(error))
            }
            Err(error) => Err(Error::io(format!("look at blob {id}"), error)),
        }
    }

    async fn space(&self) -> Result<Option<Space>> {
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || shared.space()).await?.map(Some)
    }
}

/// What may be done to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

/// What the calls on blocking threads share.
#[derive(Debug)]
struct Shared {
    folders: Folders,
    open: OpenBlobs,
    reading: Arc<Reading>,
    names: Box<[Mutex<()>]>,
    access: Access,
}

impl Shared {
    fn new(root: &Path, options: &FsOptions, access: Access) -> Self {
        Self {
            folders: Folders::of(root),
            open: OpenBlobs::new(options.open_blobs_max),
            reading: Arc::new(Reading::new(options.verified_for)),
            names: (0..NAME_LOCKS).map(|_| Mutex::default()).collect(),
            access,
        }
    }

    fn check_writable(&self, operation: &str, id: BlobId) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::new(
                ErrorKind::ReadOnly,
                format!("{operation} blob {id} in a store that was opened for reading only"),
            )),
        }
    }

    /// Holds the name of a blob: while it is held, the blob is not deleted, and its name is not given to another file.
    fn lock_name(&self, id: BlobId) -> MutexGuard<'_, ()> {
        let lock = self.names.get(usize::from(fan_out(id)));
        // It guards nothing in memory, so a thread that panicked has left nothing torn.
        lock.expect("there is a lock for each byte")
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn exists(&self, id: BlobId) -> Result<bool> {
        let exists = self.folders.path(id).try_exists();
        exists.map_err(|error| Error::io(format!("look for blob {id}"), error))
    }

    fn delete(&self, id: BlobId) -> Result<()> {
        let removed = {
            let _name = self.lock_name(id);
            fs::remove_file(self.folders.path(id))
        };
        self.open.remove(id);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("delete blob {id}"), error)),
            _ => Ok(()),
        }
    }

    fn sync_folder_of(&self, id: BlobId) -> Result<()> {
        let folder = self.folders.folder_of(id);
        let synced = self.open.with_room(|| sync_folder(&folder));
        synced.map_err(|error| Error::io(format!("sync the folder of blob {id}"), error))
    }

    fn space(&self) -> Result<Space> {
        let root = self.folders.root();
        let stat = rustix::fs::statvfs(root)
            .map_err(|error| Error::io(format!("look at the space of {}", root.display()), error.into()))?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}
