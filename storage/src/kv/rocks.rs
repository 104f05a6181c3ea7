//! The embedded engine: RocksDB for the rows, optimistic transactions on top.
//!
//! One thread, the committer, checks and writes all commits in groups; `rocks/committer.rs` tells how, and what a
//! failed write means. Readers hold a RocksDB snapshot and never wait for a writer.
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
//! At most [`BLOCK_CACHE_LEN`] of blocks, with indexes and filters among them, and [`WRITE_BUFFERS`] memtables of
//! [`WRITE_BUFFER_LEN`].

mod committer;
mod reader;

use std::{fs::File, io, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, IteratorMode, Options, ReadOptions, ReadTier,
    checkpoint::Checkpoint,
};
use self_cell::self_cell;

use self::committer::Committer;
pub use self::reader::RocksReader;
use super::{
    Commit, Kv, Order, Outcome, Page, Scan, Snapshot, Version,
    occ::{History, LiveVersion},
    page,
};
use crate::error::{Error, ErrorKind, Result};

/// Decompressed blocks, indexes and filters kept in memory: at 1 KB an object, those of some 60,000 recent ones.
const BLOCK_CACHE_LEN: usize = 64 << 20;
/// Bytes of new rows in memory before they are written to a table, and so also what an opening reads from the log.
const WRITE_BUFFER_LEN: usize = 16 << 20;
/// One that is filled, one that is written out, and one to spare before commits have to wait.
const WRITE_BUFFERS: i32 = 3;
/// Open table files: 16 GiB of index at 64 MiB a table. More are opened and closed as needed.
const OPEN_FILES_MAX: i32 = 256;
/// RocksDB's own text log: four files of a mebibyte tell enough of the past.
const INFO_LOG_LEN: usize = 1 << 20;
const INFO_LOGS: usize = 4;
/// Tables are written back to the disk in steps of this many bytes, so that a commit's sync does not queue behind a
/// whole table.
const WRITE_BACK_LEN: u64 = 512 << 10;

/// A store in a folder of its own.
#[derive(Debug)]
pub struct RocksKv {
    db: Arc<DB>,
    history: Arc<History>,
    committer: Committer,
}

impl RocksKv {
    /// Opens the store in the folder `path`, which is made if it is missing. Blocks while the log is read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if stored bytes are damaged; [`ErrorKind::Io`] if the disk fails, or the folder is open
    /// already, here or in another process.
    pub fn open(path: &Path) -> Result<Self> {
        create_folder(path).map_err(|error| Error::io(format!("create the folder {}", path.display()), error))?;
        let db = DB::open(&options(), path).map_err(|error| open_error(path, error))?;
        let db = Arc::new(db);
        let start = Version(db.latest_sequence_number());
        let history = History::new(start);
        let committer = Committer::start(Arc::clone(&db), Arc::clone(&history), start)?;
        Ok(Self { db, history, committer })
    }

    /// Makes the folder `to`, which must not exist, a store with all that is committed now, while this one goes on. Tables
    /// are linked where both folders are in one file system, else copied. Blocks; what it wrote is not synced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails, or `to` exists.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        let failed = |error| engine_error(format!("copy the index to {}", to.display()), error);
        let checkpoint = Checkpoint::new(&self.db).map_err(failed)?;
        checkpoint.create_checkpoint(to).map_err(failed)
    }
}

/// RocksDB makes only the last folder, and syncs what is in it but not its name.
fn create_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    match path.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn options() -> Options {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_LEN));
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Ten bits a key: one in a hundred lookups of an absent key reads a block in vain.
    tables.set_bloom_filter(10.0, false);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_write_buffer_size(WRITE_BUFFER_LEN);
    options.set_max_write_buffer_number(WRITE_BUFFERS);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_bytes_per_sync(WRITE_BACK_LEN);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_log_file_size(INFO_LOG_LEN);
    options.set_keep_log_file_num(INFO_LOGS);
    options.set_stats_dump_period_sec(0);
    options
}

fn open_error(path: &Path, error: rocksdb::Error) -> Error {
    let path = path.display();
    let text = error.as_ref();
    // The lock is an I/O error like any other; only its text tells (RocksDB `env/io_posix`, `fs_posix.cc`).
    if text.contains("lock hold by current process") || text.contains("While lock file") {
        return Error::new(
            ErrorKind::Io,
            format!("another process has this data folder open: {path}"),
        )
        .caused_by(error);
    }
    engine_error(format!("open the index in {path}"), error)
}

fn engine_error(what: impl std::fmt::Display, error: rocksdb::Error) -> Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    };
    Error::new(kind, what).caused_by(error)
}

#[async_trait]
impl Kv for RocksKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        // In this order: see `occ` for why.
        let live = self.history.enter();
        let view = View::new(Arc::clone(&self.db), |db| db.snapshot());
        Ok(Box::new(RocksSnapshot {
            live,
            view: Arc::new(view),
        }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        self.committer.commit(commit).await
    }
}

type DbSnapshot<'a> = rocksdb::Snapshot<'a>;

self_cell!(
    /// A RocksDB snapshot together with the database that it borrows from.
    struct View {
        owner: Arc<DB>,
        #[covariant]
        dependent: DbSnapshot,
    }
);

impl View {
    fn get(&self, key: &[u8], tier: ReadTier) -> std::result::Result<Option<Bytes>, rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        let value = self.borrow_dependent().get_pinned_opt(key, options)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, scan: &Scan) -> std::result::Result<Page, rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(&scan.range.start[..]);
        options.set_iterate_upper_bound(&scan.range.end[..]);
        let mode = match scan.order {
            Order::Ascending => IteratorMode::Start,
            Order::Descending => IteratorMode::End,
        };
        let rows = self.borrow_dependent().iterator_opt(mode, options);
        page::collect(scan, rows.map(|row| row.map(|(key, value)| (key.into(), value.into()))))
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
}

#[cfg(test)]
mod tests;
