//! What a backup says of itself: `backup.json`, written last, so that a folder that has it is whole.

use std::{fmt, fs, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The file.
pub(super) const MANIFEST: &str = "backup.json";
/// Longest manifest, in bytes: a few hundred, and up to [`MISSING_MAX`] names of blobs.
const MANIFEST_LEN_MAX: u64 = 1 << 20;
/// Most blobs that may be missing in a store that is backed up. Beyond, the disk under it is not the right one, and a
/// backup of it would be taken for one.
pub(super) const MISSING_MAX: usize = 1000;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the store.
    pub format: u64,
    /// The release that made the backup.
    pub release: String,
    /// When it was begun, in milliseconds since 1970-01-01T00:00:00Z.
    pub created_millis: u64,
    /// Blobs in it.
    pub blobs: u64,
    /// Bytes of content in them.
    pub blob_bytes: u64,
    /// Blobs that are hard links: they share their bytes with the store as long as both are in one file system.
    pub linked: u64,
    /// Blobs that were copied, or cloned by the file system: a damage of the disk under one does not reach the other.
    pub copied: u64,
    /// Files beside index and blobs.
    pub files: Vec<String>,
    /// Blobs that the store had lost before: `lithos fsck` names what is hurt.
    pub missing: Vec<String>,
}

impl Manifest {
    /// Reads the manifest of the backup in `folder`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if it is no backup, or not a whole one.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let no_backup = || {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{} is no backup, or one that broke off", folder.display()),
            )
        };
        let len = fs::metadata(&path).map_err(|error| no_backup().caused_by(error))?.len();
        if len > MANIFEST_LEN_MAX {
            return Err(no_backup());
        }
        let text = fs::read(&path).map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        serde_json::from_slice(&text).map_err(|error| no_backup().caused_by(error))
    }

    /// Writes the manifest of the backup in `folder`, and syncs it.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(self).expect("a manifest has no map keys but strings");
        fs::File::create(&path)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .map_err(|error| Error::io(format!("write {}", path.display()), error))
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blobs of {} bytes, {} of them hard links, by release {} in format {}",
            self.blobs, self.blob_bytes, self.linked, self.release, self.format
        )?;
        if let Some(first) = self.missing.first() {
            write!(
                f,
                "; {} blobs were missing in the store already, such as {first}",
                self.missing.len()
            )?;
        }
        Ok(())
    }
}
