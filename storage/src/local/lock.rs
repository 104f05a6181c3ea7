//! Whether somebody writes to a data folder.
//!
//! RocksDB locks the file `LOCK` of its folder with a record lock for writing (POSIX `fcntl`, `F_SETLK`). Here the same file
//! is locked for reading: many may do that at a time, and none while somebody writes. Nothing is written for it, so it
//! works in a read-only file system too.
//!
//! A record lock belongs to the process, and closing any descriptor of the file gives it up. So a process must not open a
//! folder for reading that it has open for writing.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
};

use crate::{
    error::{Error, ErrorKind, Result},
    kv::FOLDER_LOCK,
};

/// The file of the lock, in the folder of the index.
pub(super) const LOCK: &str = "LOCK";

/// Keeps writers off until it is dropped.
#[derive(Debug)]
pub(super) struct ReadLock {
    /// The lock that spans a recovery of the index, while RocksDB lets go of its own.
    _folder: Option<File>,
    /// `None` where there is no such file: the folder came from a copy that left it out.
    _file: Option<File>,
}

impl ReadLock {
    /// Locks the index in the folder `index`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Contended`] if somebody writes to it; [`ErrorKind::Io`] if the file cannot be opened.
    pub(super) fn take(index: &Path) -> Result<Self> {
        let folder = lock_folder(index)?;
        let path: PathBuf = index.join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    _folder: folder,
                    _file: None,
                });
            }
            Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
        };
        match fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Self {
                _folder: folder,
                _file: Some(file),
            }),
            Err(error @ (Errno::AGAIN | Errno::ACCESS)) => Err(taken(index).caused_by(io::Error::from(error))),
            Err(error) => Err(Error::io(format!("lock {}", path.display()), error.into())),
        }
    }
}

/// Shares the lock of [`RocksKv`](crate::kv::RocksKv) on its folder, if there is one.
fn lock_folder(index: &Path) -> Result<Option<File>> {
    let path = index.join(FOLDER_LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(taken(index)),
        Err(TryLockError::Error(error)) => Err(Error::io(format!("lock {}", path.display()), error)),
    }
}

fn taken(index: &Path) -> Error {
    Error::new(
        ErrorKind::Contended,
        format!("a server has the index in {} open", index.display()),
    )
}
