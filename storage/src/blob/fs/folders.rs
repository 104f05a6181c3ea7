//! Where blobs are, and how they are named.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    blob::BlobId,
    error::{Error, Result},
};

/// The folders of a store; [`fs`](super) draws them.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    tmp: PathBuf,
    blobs: PathBuf,
    /// How many drafts there were, so that no name in `tmp/` is used again.
    drafts: AtomicU64,
}

impl Folders {
    pub(super) fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            tmp: root.join("tmp"),
            blobs: root.join("blobs"),
            drafts: AtomicU64::new(0),
        }
    }

    /// Makes the folders that are missing, and syncs their names.
    pub(super) fn make(&self) -> Result<()> {
        let steps = || {
            fs::create_dir_all(&self.tmp)?;
            for fan_out in 0..=u8::MAX {
                fs::create_dir_all(self.folder(fan_out))?;
            }
            sync_folder(&self.blobs)?;
            sync_folder(&self.root)?;
            self.root.canonicalize()?.parent().map_or(Ok(()), sync_folder)
        };
        steps().map_err(|error| Error::io(format!("prepare the folder {}", self.root.display()), error))
    }

    /// Fails if a folder of blobs is missing.
    pub(super) fn check(&self) -> Result<()> {
        for fan_out in 0..=u8::MAX {
            let folder = self.folder(fan_out);
            fs::metadata(&folder).map_err(|error| Error::io(format!("look for folder {}", folder.display()), error))?;
        }
        Ok(())
    }

    pub(super) fn remove_drafts(&self) -> Result<()> {
        let failed = |error| Error::io(format!("list the folder {}", self.tmp.display()), error);
        for entry in fs::read_dir(&self.tmp).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an unfinished blob could not be removed");
            }
        }
        Ok(())
    }

    /// Makes the names of all blobs durable.
    pub(super) fn sync(&self) -> Result<()> {
        for fan_out in 0..=u8::MAX {
            let folder = self.folder(fan_out);
            sync_folder(&folder).map_err(|error| Error::io(format!("sync the folder {}", folder.display()), error))?;
        }
        Ok(())
    }

    /// The folder that all others are in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, fan_out: u8) -> PathBuf {
        self.blobs.join(format!("{fan_out:02x}"))
    }

    /// The folder of a blob.
    pub(super) fn folder_of(&self, id: BlobId) -> PathBuf {
        self.folder(fan_out(id))
    }

    /// The file of a blob.
    pub(super) fn path(&self, id: BlobId) -> PathBuf {
        self.folder_of(id).join(id.to_string())
    }

    /// A name in `tmp/` that was not given before.
    pub(super) fn draft(&self, id: BlobId) -> PathBuf {
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        self.tmp.join(format!("{id}.{number}"))
    }

    pub(super) fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
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

/// The byte that decides the folder of a blob: the last of its owner's id, which is random.
pub(super) fn fan_out(id: BlobId) -> u8 {
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
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
