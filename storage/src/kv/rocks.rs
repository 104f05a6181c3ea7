//! The embedded engine: RocksDB for the rows, optimistic transactions on top.
//!
//! One thread, the committer, checks and writes all commits in groups; `rocks/committer.rs` tells how. Readers hold a
//! RocksDB snapshot and never wait for a writer. After a failed write (a full disk) the store refuses commits, goes on
//! reading, and opens the database again by itself; `rocks/recovery.rs` tells how, and what is guaranteed.
//!
//! # What survives
//!
//! | what | a crash of the process | a crash of the machine |
//! | --- | --- | --- |
//! | an acknowledged synced commit, and all before it | yes | yes |
//! | an acknowledged buffered commit | yes | if a synced one followed |
//! | a commit that was not yet answered | whole or not at all | whole or not at all |
//!
//! Every commit is one record of RocksDB's log (WAL), handed to the operating system before it is answered, and synced
//! if it asked for that. Opening reads the log again. Dropping the store writes everything out of the log into tables.
//!
//! # Damage to the log
//!
//! RocksDB's default, point-in-time recovery, stops at the first damaged record and silently drops whatever follows,
//! acknowledged or not. Here it is `TolerateCorruptedTailRecords`: a record that the end of the log cuts off was never
//! acknowledged, so it is dropped; a record with a wrong checksum stops [`RocksKv::open`] with an error of kind
//! [`Corrupt`](ErrorKind::Corrupt), and a person decides. (Absolute consistency would refuse the cut-off record too,
//! which any crash may leave.) What remains is damage to the *length* of a record in the last 32 KiB of the log, which
//! looks like a cut-off end; after an orderly stop the log is empty and cannot be damaged.
//!
//! # Versions
//!
//! They start at RocksDB's sequence number. That grows by one per written key, versions by one per commit, so versions
//! also grow across a reopening. Nothing depends on that: snapshots do not outlive the process.
//!
//! # Memory
//!
//! At most [`BLOCK_CACHE_LEN`](folder::BLOCK_CACHE_LEN) of blocks, with indexes and filters among them, and
//! [`WRITE_BUFFERS`](folder::WRITE_BUFFERS) memtables of [`WRITE_BUFFER_LEN`](folder::WRITE_BUFFER_LEN). While it recovers,
//! the rows of the log once more.

mod committer;
mod folder;
mod reader;
mod recovery;
mod seat;
mod view;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use rocksdb::{ReadTier, checkpoint::Checkpoint};

pub(crate) use self::folder::LOCK_NAME as FOLDER_LOCK;
pub use self::reader::RocksReader;
use self::{
    committer::Committer,
    folder::{Folder, Opener},
    seat::Seat,
    view::View,
};
use super::{Commit, Fold, Kv, Outcome, Page, Scan, Snapshot, Version, occ::LiveVersion};
use crate::error::{Error, ErrorKind, Result};

/// How the operating system says that there is no room, or that a quota of the file system is used up (ENOSPC, EDQUOT).
const FULL_TEXTS: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
/// How it says that a file system takes no writes (EROFS).
const READ_ONLY_TEXT: &str = "Read-only file system";
/// What is to be done about damage.
const DAMAGE_ADVICE: &str = "the index is damaged: have the disk checked, look with `lithos fsck` what is hurt, and bring \
    a backup back with `lithos restore`";

/// A store in a folder of its own.
#[derive(Debug)]
pub struct RocksKv {
    seat: Arc<Seat>,
    committer: Committer,
}

impl RocksKv {
    /// Opens the store in the folder `path`, which is made if it is missing. Blocks while the log is read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if stored bytes are damaged; [`ErrorKind::StorageFull`] if there is no room to write out what
    /// the log holds; [`ErrorKind::Io`] if the disk fails, or the folder is open already, here or in another process.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_by(Box::new(Folder::take(path)?))
    }

    fn open_by(opener: Box<dyn Opener>) -> Result<Self> {
        let db = opener.open()?;
        let start = Version(db.latest_sequence_number());
        let seat = Seat::new(db, start);
        let committer = Committer::start(Arc::clone(&seat), start, opener)?;
        Ok(Self { seat, committer })
    }

    /// Makes the folder `to`, which must not exist, a store with all that is committed now, while this one goes on. Tables
    /// are linked where both folders are in one file system, else copied. Blocks; what it wrote is not synced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails, or `to` exists, or the index has failed and has not recovered yet.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        let failed = |error| engine_error(format!("copy the index to {}", to.display()), error);
        let (db, _) = self.seat.writer().map_err(|failure| failure.no_commit())?;
        let checkpoint = Checkpoint::new(&db).map_err(failed)?;
        checkpoint.create_checkpoint(to).map_err(failed)
    }
}

/// What RocksDB reports, with the kind that callers match on.
fn engine_error(what: impl std::fmt::Display, error: rocksdb::Error) -> Error {
    let error_kind = kind_of(&error.kind(), error.as_ref());
    let error_of = |what: &dyn std::fmt::Display| Error::new(error_kind, what);
    match error_kind {
        ErrorKind::Corrupt => error_of(&format_args!("{what}: {DAMAGE_ADVICE}")),
        _ => error_of(&what),
    }
    .caused_by(error)
}

/// The status of RocksDB has no code for a full disk or a read-only one that would reach us: the text of the operating
/// system tells.
fn kind_of(status: &rocksdb::ErrorKind, text: &str) -> ErrorKind {
    match status {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ if FULL_TEXTS.iter().any(|full| text.contains(full)) => ErrorKind::StorageFull,
        _ if text.contains(READ_ONLY_TEXT) => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}

#[async_trait]
impl Kv for RocksKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let (live, view) = self.seat.snapshot().await?;
        Ok(Box::new(RocksSnapshot {
            live,
            view: Arc::new(view),
        }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        self.committer.commit(commit).await
    }
}

struct RocksSnapshot {
    live: LiveVersion,
    view: Arc<View>,
}

impl std::fmt::Debug for RocksSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RocksSnapshot").field(&self.live.version()).finish()
    }
}

#[async_trait]
impl Snapshot for RocksSnapshot {
    fn version(&self) -> Version {
        self.live.version()
    }

    /// What is in memory is read in place, which takes microseconds; what needs the disk goes to a blocking thread.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let found = match self.view.get(key, ReadTier::BlockCache) {
            Err(error) if error.kind() == rocksdb::ErrorKind::Incomplete => {
                let (view, key) = (Arc::clone(&self.view), Bytes::copy_from_slice(key));
                tokio::task::spawn_blocking(move || view.get(&key, ReadTier::All)).await?
            }
            found => found,
        };
        found.map_err(|error| engine_error("read a key of the index", error))
    }

    async fn scan(&self, scan: &Scan) -> Result<Page> {
        if scan.range.is_empty() {
            return Ok(Page::default());
        }
        let (view, scan) = (Arc::clone(&self.view), scan.clone());
        tokio::task::spawn_blocking(move || view.scan(&scan))
            .await?
            .map_err(|error| engine_error("scan the index", error))
    }

    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page> {
        if scan.range.is_empty() {
            return Ok(Page::default());
        }
        let (view, scan, fold) = (Arc::clone(&self.view), scan.clone(), fold.clone());
        tokio::task::spawn_blocking(move || view.scan_folded(&scan, &fold))
            .await?
            .map_err(|error| engine_error("scan the index", error))
    }
}

#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod tests;
