//! An ordered, transactional key-value store: the index under everything else.
//!
//! The contract, which [`contract`] checks on every engine:
//!
//! - **Strictly serialisable.** A transaction reads one snapshot. What it read, keys and scanned ranges alike (so also
//!   keys that were not there), is protected: if another transaction changed any of it before this one commits, this
//!   one ends in [`Outcome::Conflict`] and has no effect. Who only reads needs no commit.
//! - **Four ends.** [`Outcome::Committed`]: durable, as [`Durability`] says, and visible. [`Outcome::Conflict`]:
//!   nothing happened; `transact!` runs the body again. [`Outcome::Refused`]: nothing happened, and trying at once again
//!   would not help. [`Outcome::Unknown`]: the engine failed in between, and only a later look at the store can tell.
//!   Callers must then neither undo nor acknowledge.
//! - **Counters.** Transactions that add to one counter ([`Txn::add`]) do not conflict with each other, and a limit on it
//!   ([`Txn::require_at_most`]) holds in the serial order. Who reads a counter with [`Txn::get`] or a scan is protected
//!   from additions as from any other change.
//! - **Bounds.** Keys, values, operations and bytes per transaction are bounded by the constants below, in every
//!   engine. Over a bound is an error when the operation is made, never a silent split.
//!
//! [`Txn`] holds what all engines share (buffered writes, reads that see them, what was read, the bounds). An engine
//! is what is left: a [`Snapshot`] to read and one atomic [`Kv::commit`]. It is async so that an engine across a network
//! fits as well as one in the process.
//!
//! Left to others: what keys and values mean (`schema`).

pub mod contract;
mod counter;
mod memory;
mod occ;
mod page;
mod rocks;
mod txn;

use std::{collections::BTreeMap, fmt::Debug, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use memchr::memmem;

pub use self::{
    memory::{MemoryKv, UnknownCommit},
    rocks::{RocksKv, RocksReader},
    txn::{Retry, Txn},
};
use crate::error::{Error, Result};
pub(crate) use counter::parse as parse_counter;
pub(crate) use rocks::FOLDER_LOCK;
pub(crate) use txn::transact;

/// Longest key, in bytes: a bucket id, an S3 key of 1,024 bytes with every byte escaped, and a suffix.
pub const KEY_LEN_MAX: usize = 2 << 10;
/// Longest value, in bytes. What may grow beyond belongs in a blob.
pub const VALUE_LEN_MAX: usize = 64 << 10;
/// Most operations of one transaction: keys read, ranges scanned, keys written, counters added to and limits required,
/// each counting one.
pub const TXN_OPS_MAX: usize = 4096;
/// Most bytes of keys and values that one transaction may write.
pub const TXN_BYTES_MAX: usize = 4 << 20;
/// Most rows that one scan returns.
pub const SCAN_ROWS_MAX: usize = 1024;
/// A scan stops early once its rows hold this many bytes.
pub const SCAN_BYTES_MAX: usize = 4 << 20;

/// A point in the history of commits. Later commits have larger versions; 0 is the empty store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// When a commit counts as done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// It survives a crash of the machine. Commits that wait at the same time share one sync.
    #[default]
    Synced,
    /// It survives a crash of the process; a crash of the machine may lose it, but then also every later commit that
    /// is not synced. The next synced commit makes it durable as well.
    Buffered,
}

/// Which rows to read, and in which direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Keys from `start` (inclusive) to `end` (exclusive).
    pub range: Range<Bytes>,
    /// Most rows to return, at most [`SCAN_ROWS_MAX`].
    pub limit: usize,
    /// The direction.
    pub order: Order,
}

/// Folds keys that are the same up to a delimiter into one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// Where in each key the delimiter is looked for, in bytes from its start.
    pub from: usize,
    /// What ends the part that folded keys share. Not empty.
    pub delimiter: Bytes,
}

impl Fold {
    /// The part of `key` that those share which are folded with it, delimiter included; `None` if it has no delimiter.
    fn shared<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        let at = memmem::find(key.get(self.from..)?, &self.delimiter)?;
        key.get(..self.from + at + self.delimiter.len())
    }
}

/// The direction of a scan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// From the smallest key.
    #[default]
    Ascending,
    /// From the largest key.
    Descending,
}

/// The rows of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys and values in the order asked for.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Whether a bound stopped the scan before the end of the range.
    pub more: bool,
}

/// What a transaction asks an engine to commit: the writes, provided that nothing it read has changed.
#[derive(Debug)]
pub struct Commit {
    /// The version of the snapshot that was read.
    pub read_version: Version,
    /// Keys that were read one by one.
    pub read_keys: Vec<Bytes>,
    /// Ranges that were scanned.
    pub read_ranges: Vec<Range<Bytes>>,
    /// New values, and `None` for keys to delete.
    pub writes: BTreeMap<Bytes, Option<Bytes>>,
    /// What to add to counters. No key of `writes` is among them.
    pub adds: BTreeMap<Bytes, i64>,
    /// The most that counters may hold once this commit, and all before it in the serial order, have been added.
    pub at_most: BTreeMap<Bytes, u64>,
    /// When the commit counts as done.
    pub durability: Durability,
}

impl Commit {
    /// Whether nothing is written, whatever it asks for.
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.adds.is_empty()
    }
}

/// How a commit ended.
#[derive(Debug)]
pub enum Outcome {
    /// The writes are durable and visible.
    Committed(Version),
    /// Something that was read has changed, or a counter would be over its limit; nothing was written. What it lost
    /// against is in every later snapshot.
    Conflict,
    /// The engine takes no commits, for reading only or because its disk is full or fails: the writes are not there.
    Refused(Error),
    /// The engine failed: the writes may or may not be there.
    Unknown(Error),
}

/// A consistent view of the store at one version.
#[async_trait]
pub trait Snapshot: Send + Sync + Debug {
    /// The version that is read.
    fn version(&self) -> Version;

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the engine cannot be read.
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The rows that `scan` asks for, up to its limit and [`SCAN_BYTES_MAX`].
    ///
    /// # Errors
    ///
    /// As for [`Snapshot::get`].
    async fn scan(&self, scan: &Scan) -> Result<Page>;

    /// As [`Snapshot::scan`], of each group of folded keys only the first: what the others are costs nothing. Always
    /// ascending, whatever the order asked for.
    ///
    /// # Errors
    ///
    /// As for [`Snapshot::get`].
    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page>;
}

/// An engine.
#[async_trait]
pub trait Kv: Send + Sync + Debug {
    /// A view of everything committed so far.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the engine cannot be read.
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>>;

    /// Commits atomically, or not at all. A future that is dropped leaves the outcome unknown.
    ///
    /// A commit that writes nothing says "there is nothing to do", which is as much of an answer as any: it is checked
    /// and refused as all others are. Were it answered from a snapshot while an earlier commit is still undecided,
    /// "it is gone already" could be followed by its return.
    async fn commit(&self, commit: Commit) -> Outcome;
}

/// The range of all keys that start with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> Range<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    // A prefix of 0xff bytes only has no successor; no key is as long as this one.
    let end = if end.is_empty() {
        vec![0xff; KEY_LEN_MAX + 1]
    } else {
        end
    };
    Bytes::copy_from_slice(prefix)..Bytes::from(end)
}
