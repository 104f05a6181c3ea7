//! A store in one folder of this machine: what operators move, check, back up and upgrade.
//!
//! | path | holds |
//! | --- | --- |
//! | `index/` | the index, a RocksDB; its file `LOCK` says whether somebody has the folder |
//! | `blobs/` | the blobs ([`FsBlobs`]) |
//! | other files | what whoever serves the store keeps beside it: keys, settings. Copied with it, never read here |
//!
//! The index is opened first and closed last, so that its lock covers the blobs.
//!
//! [`Mode::ReadOnly`] writes no byte, and takes files and file systems that cannot be written to. It shares the folder with
//! others who read, and with nobody who writes.
//!
//! | module | holds |
//! | --- | --- |
//! | `backup` | a copy of a moment, while writes go on |
//! | `restore` | the way back |
//! | `manifest` | what a backup says of itself |
//! | `copy` | files copied, linked and synced |

mod backup;
mod copy;
mod lock;
mod manifest;
mod restore;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::RwLock;

use self::lock::ReadLock;
pub use self::{
    backup::check_target,
    manifest::Manifest,
    restore::{RestoreOptions, RestoreReport, restore},
};
use crate::{
    blob::{Blobs, FsBlobs, FsOptions},
    clock::Clock,
    error::{Error, ErrorKind, Result},
    format::{self, Format},
    fsck::{self, FsckOptions},
    kv::{Kv, RocksKv, RocksReader},
    store::{Limits, Store},
};

/// The folder of the index.
const INDEX: &str = "index";
/// The folder of the blobs.
const BLOBS: &str = "blobs";

/// Makes a folder and those above it that are missing, and makes their names durable: without that, a crash of the machine
/// after the first start would lose everything at once.
fn make_folder(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(&path)?;
    for folder in missing {
        if let Some(parent) = folder.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

/// What may be done to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything, by one process at a time. What is missing is made.
    ReadWrite,
    /// Reading: nothing is written.
    ReadOnly,
}

/// How far a long operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub stage: &'static str,
    /// Bytes done in this stage.
    pub done: u64,
    /// Bytes to do in this stage, once known.
    pub total: Option<u64>,
}

/// A folder that is open.
#[derive(Debug)]
pub struct Local {
    path: PathBuf,
    blobs: Arc<FsBlobs>,
    index: Index,
    /// Shared with the stores opened here, so that a backup can have blobs stay.
    deletions: Arc<RwLock<()>>,
}

#[derive(Debug)]
enum Index {
    Writer(Arc<RocksKv>),
    /// Dropped in this order: the lock covers the reading.
    Reader {
        kv: Arc<RocksReader>,
        _lock: ReadLock,
    },
}

impl Local {
    /// Opens the folder `path`. Blocks while the log of the index is read. Whether the store's format can be read is
    /// looked at by [`Local::store`]: a backup and an upgrade take older ones.
    ///
    /// A process opens a folder once at a time; the locks cannot tell two openings of one process apart.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Contended`] for reading while somebody writes; [`ErrorKind::Io`] for writing while anybody has it, or if
    /// the disk fails; [`ErrorKind::NoSuchRecord`] for reading where there is no store; [`ErrorKind::Corrupt`].
    pub fn open(path: &Path, mode: Mode) -> Result<Self> {
        Self::open_with(path, mode, &FsOptions::default())
    }

    /// As [`Local::open`], with choices for the blobs, which a folder that is only read does not need.
    ///
    /// # Errors
    ///
    /// As for [`Local::open`].
    pub fn open_with(path: &Path, mode: Mode, options: &FsOptions) -> Result<Self> {
        let (index, blobs) = match mode {
            Mode::ReadWrite => {
                make_folder(path)
                    .map_err(|error| Error::io(format!("make the data folder {}", path.display()), error))?;
                let kv = RocksKv::open(&path.join(INDEX))?;
                let blobs = FsBlobs::open_with(&path.join(BLOBS), options)?;
                (Index::Writer(Arc::new(kv)), blobs)
            }
            Mode::ReadOnly => {
                let index = path.join(INDEX);
                require_store(path)?;
                let lock = ReadLock::take(&index)?;
                let kv = Arc::new(RocksReader::open(&index)?);
                let blobs = FsBlobs::open_read_only(&path.join(BLOBS))?;
                (Index::Reader { kv, _lock: lock }, blobs)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            blobs: Arc::new(blobs),
            index,
            deletions: Arc::default(),
        })
    }

    /// The store in the folder.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`] if it is in another format than this release's, which the message tells apart;
    /// [`ErrorKind::Io`] if it cannot be read.
    pub async fn store(&self, clock: Arc<dyn Clock>) -> Result<Store> {
        self.store_with(clock, Limits::default()).await
    }

    /// As [`Local::store`], with bounds of the caller's choice.
    ///
    /// # Errors
    ///
    /// As for [`Local::store`].
    pub async fn store_with(&self, clock: Arc<dyn Clock>, limits: Limits) -> Result<Store> {
        let kv = self.kv();
        match self.index {
            Index::Writer(_) => format::adopt(&kv).await?,
            Index::Reader { .. } => format::check(&kv).await?,
        }
        let deletions = Arc::clone(&self.deletions);
        Ok(Store::assemble(kv, self.blobs(), clock, limits, deletions))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The index.
    pub fn kv(&self) -> Arc<dyn Kv> {
        match &self.index {
            Index::Writer(kv) => Arc::clone(kv) as Arc<dyn Kv>,
            Index::Reader { kv, .. } => Arc::clone(kv) as Arc<dyn Kv>,
        }
    }

    /// The blobs.
    pub fn blobs(&self) -> Arc<dyn Blobs> {
        Arc::clone(&self.blobs) as Arc<dyn Blobs>
    }

    /// The format of the store; `None` if it is new.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`] if it says none; [`ErrorKind::Io`] if it cannot be read.
    pub async fn format(&self) -> Result<Option<Format>> {
        Format::read(&*self.kv().snapshot().await?).await
    }

    /// Checks the whole folder; see [`fsck`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`] if it is in another format; [`ErrorKind::Io`] if it cannot be read: what is damaged is no
    /// error but a finding.
    pub async fn fsck(
        &self,
        options: &FsckOptions,
        progress: &mut (dyn FnMut(fsck::Progress) + Send + Sync),
    ) -> Result<fsck::Report> {
        let kv = self.kv();
        format::check(&kv).await?;
        let drafts = copy::files_in(&self.path.join(BLOBS).join("tmp"))?.len();
        let mut report = fsck::fsck(&kv, &self.blobs(), options, progress).await?;
        report.note_drafts(drafts);
        Ok(report)
    }
}

/// Whether somebody has the store in the folder `path` open for writing: then a server runs on it.
///
/// # Errors
///
/// [`ErrorKind::NoSuchRecord`] if there is no store; [`ErrorKind::Io`] if it cannot be looked at.
pub fn is_served(path: &Path) -> Result<bool> {
    require_store(path)?;
    match ReadLock::take(&path.join(INDEX)) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Contended => Ok(true),
        Err(error) => Err(error),
    }
}

/// RocksDB would make the folders of a store that is not there.
fn require_store(path: &Path) -> Result<()> {
    let current = path.join(INDEX).join("CURRENT");
    match current.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(
            ErrorKind::NoSuchRecord,
            format!("there is no store in {}", path.display()),
        )),
        Err(error) => Err(Error::io(format!("look for {}", current.display()), error)),
    }
}
