//! Blobs as files.
//!
//! ```text
//! ROOT/tmp/BLOB.NUMBER         blobs that are being written
//! ROOT/blobs/00 … ff/BLOB      sealed blobs, by the last byte of the owner's id, which is random
//! ```
//!
//! A file holds the data from offset 0, so that blocks are aligned, and then a trailer of checksums; `fs/format.rs`
//! draws it. Who opens the root must hold the lock of the index beside it: the root is used by one process at a time.
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
mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use self::{
    cache::OpenBlobs,
    reader::{FsBlob, Sealed},
    writer::{Draft, FsWriter},
};
use super::{Blob, BlobId, BlobWriter, Blobs};
use crate::error::{Error, Result};

/// A store of blobs in a folder.
#[derive(Debug)]
pub struct FsBlobs {
    folders: Arc<Folders>,
    open: Arc<OpenBlobs>,
}

impl FsBlobs {
    /// Opens the store in the folder `root`, which is made if it is missing, and removes what writers left unfinished.
    /// The caller holds the lock of the index, so that those writers are gone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    pub fn open(root: &Path) -> Result<Self> {
        let folders = Folders {
            tmp: root.join("tmp"),
            blobs: root.join("blobs"),
            drafts: AtomicU64::new(0),
        };
        folders
            .prepare(root)
            .map_err(|error| Error::io(format!("prepare the folder {}", root.display()), error))?;
        Ok(Self {
            folders: Arc::new(folders),
            open: Arc::default(),
        })
    }

    /// The same store, with at most `count` blobs kept open, each a file descriptor; 256 unless this is called. With
    /// none, every range that is read opens its blob.
    #[must_use]
    pub fn keep_open(self, count: usize) -> Self {
        Self {
            open: Arc::new(OpenBlobs::of(count)),
            ..self
        }
    }
}

#[async_trait]
impl Blobs for FsBlobs {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        let folders = Arc::clone(&self.folders);
        let draft = spawn_blocking(move || Draft::create(&folders, id)).await??;
        Ok(Box::new(FsWriter::new(draft)))
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        let (sealed, epoch) = self.open.get(id);
        if let Some(sealed) = sealed {
            return Ok(Arc::new(FsBlob(sealed)));
        }
        let path = self.folders.path(id);
        let sealed = Arc::new(spawn_blocking(move || Sealed::open(id, &path)).await??);
        self.open.insert(&sealed, epoch);
        Ok(Arc::new(FsBlob(sealed)))
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        let path = self.folders.path(id);
        spawn_blocking(move || path.try_exists())
            .await?
            .map_err(|error| Error::io(format!("look for blob {id}"), error))
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        let path = self.folders.path(id);
        let removed = spawn_blocking(move || fs::remove_file(path)).await?;
        self.open.remove(id);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("delete blob {id}"), error)),
            _ => Ok(()),
        }
    }

    /// In order of the folder, then of the id.
    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        let folders = Arc::clone(&self.folders);
        spawn_blocking(move || folders.list(after, limit)).await?
    }
}

/// Where blobs are, and how they are named.
#[derive(Debug)]
struct Folders {
    tmp: PathBuf,
    blobs: PathBuf,
    /// How many drafts there were, so that no name in `tmp/` is used again.
    drafts: AtomicU64,
}

impl Folders {
    fn prepare(&self, root: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.tmp)?;
        for fan_out in 0..=u8::MAX {
            fs::create_dir_all(self.folder(fan_out))?;
        }
        self.remove_drafts()?;
        sync_folder(&self.blobs)?;
        sync_folder(root)?;
        root.canonicalize()?.parent().map_or(Ok(()), sync_folder)
    }

    fn remove_drafts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.tmp)? {
            let path = entry?.path();
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an unfinished blob could not be removed");
            }
        }
        Ok(())
    }

    fn folder(&self, fan_out: u8) -> PathBuf {
        self.blobs.join(format!("{fan_out:02x}"))
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.folder(fan_out(id)).join(id.to_string())
    }

    fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        let mut found = Vec::new();
        let start = after.map_or(0, fan_out);
        for folder in start..=u8::MAX {
            let mut ids = self.list_folder(folder)?;
            if let Some(after) = after.filter(|_| folder == start) {
                ids.retain(|id| *id > after);
            }
            found.extend(ids.into_iter().take(limit.saturating_sub(found.len())));
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// The blobs in one folder, sorted. A million blobs are four thousand here, which is a hundred kilobytes.
    fn list_folder(&self, folder: u8) -> Result<Vec<BlobId>> {
        let path = self.folder(folder);
        let failed = |error| Error::io(format!("list the folder {}", path.display()), error);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(id) = blob_of(&name).filter(|id| fan_out(*id) == folder) {
                ids.push(id);
            } else {
                tracing::warn!(folder = %path.display(), ?name, "a file among the blobs is none of them");
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

fn fan_out(id: BlobId) -> u8 {
    let [.., last] = id.owner.0;
    last
}

/// The blob of a file's name, if it is written just as this store writes it.
fn blob_of(name: &std::ffi::OsStr) -> Option<BlobId> {
    let name = name.to_str()?;
    let id: BlobId = name.parse().ok()?;
    (id.to_string() == name).then_some(id)
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
