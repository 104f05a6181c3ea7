//! The folder of the database: who may open it, and how.
//!
//! RocksDB locks the file `LOCK` while a database is open, and so lets go of it when one is closed to be opened again.
//! A lock of ours, on [`LOCK_NAME`], spans the gap: it is taken before the first opening and kept until the store is
//! dropped, so that neither another process nor another store of this one comes in between. It is a lock of the open file
//! (`flock`), which the kernel drops with the process, however that ends. RocksDB's own is a lock of the process
//! (`fcntl`), which would end if we opened and closed its file here; so its file is left alone.

use std::{
    fmt::Debug,
    fs::{self, File, TryLockError},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use rocksdb::{BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Options};

use super::engine_error;
use crate::error::{Error, ErrorKind, Result};

/// Decompressed blocks, indexes and filters kept in memory: at 1 KB an object, those of some 60,000 recent ones.
pub(super) const BLOCK_CACHE_LEN: usize = 64 << 20;
/// A block of an index or a filter, as large as one of rows.
const METADATA_BLOCK_LEN: usize = 4 << 10;
/// Bytes of new rows in memory before they are written to a table, and so also what an opening reads from the log.
pub(super) const WRITE_BUFFER_LEN: usize = 16 << 20;
/// One that is filled, one that is written out, and one to spare before commits have to wait.
pub(super) const WRITE_BUFFERS: i32 = 3;
/// Open table files: 16 GiB of index at 64 MiB a table. More are opened and closed as needed.
const OPEN_FILES_MAX: i32 = 256;
/// RocksDB's own text log: four files of a mebibyte tell enough of the past.
const INFO_LOG_LEN: usize = 1 << 20;
const INFO_LOGS: usize = 4;
/// Tables are written back to the disk in steps of this many bytes, so that a commit's sync does not queue behind a
/// whole table.
const WRITE_BACK_LEN: u64 = 512 << 10;

/// The file whose lock says that the folder is taken. RocksDB leaves files alone whose names it does not know.
pub(crate) const LOCK_NAME: &str = "lithos.lock";
/// Written and synced to see whether the disk takes writes again: a few blocks of any file system.
const PROBE_LEN: usize = 64 << 10;
/// What an opening writes beside the rows of the log: a manifest, a new log, RocksDB's text log.
const OPENING_LEN: u64 = 4 << 20;

/// Opens the database, again and again.
pub(super) trait Opener: Send + Debug {
    /// Whether [`Opener::open`] would succeed, as far as that can be told while the database is still open.
    ///
    /// # Errors
    ///
    /// Why it would not.
    fn rehearse(&self) -> Result<()>;

    /// Opens the database, which no one has open. Blocks while the log is read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if stored bytes are damaged; [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if the disk
    /// fails.
    fn open(&self) -> Result<DB>;
}

/// A folder that this store has taken.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

impl Folder {
    /// Makes the folder if it is missing, and takes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails, or if it is taken already, here or in another process.
    pub(super) fn take(path: &Path) -> Result<Self> {
        create(path).map_err(|error| Error::io(format!("create the folder {}", path.display()), error))?;
        let name = path.join(LOCK_NAME);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&name)
            .map_err(|error| Error::io(format!("open {}", name.display()), error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(taken(path)),
            Err(TryLockError::Error(error)) => Err(Error::io(format!("lock {}", name.display()), error)),
        }
    }

    /// An opening writes the rows of the log into tables. Were it to fail half-way for want of room, there would be nothing
    /// left to read from.
    fn check_room(&self) -> Result<()> {
        let disk = |error| Error::io(format!("look for room in {}", self.path.display()), error);
        let needed = self.log_len().map_err(disk)?.saturating_add(OPENING_LEN);
        let stat = rustix::fs::statvfs(&self.path).map_err(|error| disk(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            return Err(Error::new(
                ErrorKind::StorageFull,
                format!("opening the index takes up to {needed} bytes, of which {free} are free"),
            ));
        }
        self.probe()
            .map_err(|error| Error::io(format!("write to {}", self.path.display()), error))
    }

    fn log_len(&self) -> io::Result<u64> {
        let mut len = 0_u64;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if Path::new(&entry.file_name())
                .extension()
                .is_some_and(|name| name == "log")
            {
                len = len.saturating_add(entry.metadata()?.len());
            }
        }
        Ok(len)
    }

    /// Writes to the file of the lock, which nobody reads, and empties it again.
    fn probe(&self) -> io::Result<()> {
        let mut file = &self.lock;
        file.rewind()?;
        let written = file.write_all(&vec![0; PROBE_LEN]).and_then(|()| file.sync_data());
        file.set_len(0)?;
        written
    }
}

impl Opener for Folder {
    /// Looks for room, and reads the log as an opening would, without writing: a database for reading takes no lock.
    fn rehearse(&self) -> Result<()> {
        self.check_room()?;
        DB::open_for_read_only(&options(), &self.path, false)
            .map(drop)
            .map_err(|error| open_error(&self.path, error))
    }

    fn open(&self) -> Result<DB> {
        DB::open(&options(), &self.path).map_err(|error| open_error(&self.path, error))
    }
}

/// RocksDB makes only the last folder, and syncs what is in it but not its name.
fn create(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    match path.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn options() -> Options {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_LEN));
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In small blocks of their own: whole ones are megabytes for a large table, more than a shard of the cache takes, and
    // would be read from the file again for every key.
    tables.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    tables.set_partition_filters(true);
    tables.set_metadata_block_size(METADATA_BLOCK_LEN);
    tables.set_pin_top_level_index_and_filter(true);
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

pub(super) fn open_error(path: &Path, error: rocksdb::Error) -> Error {
    let text = error.as_ref();
    // The lock is an I/O error like any other; only its text tells (RocksDB `env/io_posix`, `fs_posix.cc`).
    if text.contains("lock hold by current process") || text.contains("While lock file") {
        return taken(path).caused_by(error);
    }
    engine_error(format!("open the index in {}", path.display()), error)
}

fn taken(path: &Path) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("another process has this data folder open: {}", path.display()),
    )
}
