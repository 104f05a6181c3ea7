//! A file in `tmp/`, on its way to be a blob's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{cache::OpenBlobs, folders::Folders};
use crate::{
    blob::BlobId,
    error::{Error, Result},
};

/// The file of a blob before it has its name. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Draft {
    id: BlobId,
    /// Closed before `name` removes it, so that the removal frees the space.
    file: File,
    name: DraftName,
    target: PathBuf,
}

impl Draft {
    /// Makes a new file in the `tmp/` of `folders`.
    pub(super) fn create(folders: &Folders, open: &OpenBlobs, id: BlobId) -> Result<Self> {
        let create = || {
            loop {
                let path = folders.draft(id);
                match OpenOptions::new().write(true).create_new(true).open(&path) {
                    Ok(file) => return Ok((file, path)),
                    // Left by an export that did not end: the next name is free, or the one after it.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let (file, path) = open
            .with_room(create)
            .map_err(|error| Error::io(format!("create blob {id}"), error))?;
        Ok(Self {
            id,
            file,
            name: DraftName(Some(path)),
            target: folders.path(id),
        })
    }

    pub(super) fn id(&self) -> BlobId {
        self.id
    }

    /// Bytes that were written.
    pub(super) fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| Error::io(format!("look at blob {}", self.id), error))?;
        Ok(metadata.len())
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io(format!("write blob {}", self.id), error))
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| Error::io(format!("sync blob {}", self.id), error))
    }

    /// Gives the file the name of its blob, in place of one that may have it; the caller then syncs the folder.
    pub(super) fn rename(self) -> Result<()> {
        let Self { id, name, target, .. } = self;
        name.rename(&target)
            .map_err(|error| Error::io(format!("rename blob {id}"), error))
    }
}

/// The name of a draft, which goes with it unless it becomes the name of a blob.
#[derive(Debug)]
struct DraftName(Option<PathBuf>);

impl DraftName {
    fn rename(mut self, target: &Path) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        fs::rename(path, target)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for DraftName {
    /// Freeing a large file takes milliseconds, so it is left to a blocking thread, where there is one.
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        // The next start removes it.
        tracing::warn!(path = %path.display(), %error, "an unfinished blob could not be removed");
    }
}
