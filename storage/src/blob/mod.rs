//! Immutable blobs: the bytes under every layout.
//!
//! A blob is written once, from start to end, sealed, read in ranges, and one day deleted; its bytes never change. Its
//! name, a [`BlobId`], is unique per attempt and never used again, so that a late writer can only ever harm itself.
//!
//! The contract, which [`contract`] checks on every engine:
//!
//! - Until [`BlobWriter::seal`] has returned, the blob cannot be opened and is not listed. Once it has, the blob is
//!   durable. A writer that is dropped leaves nothing that [`Blobs::list`] shows.
//! - What is stored carries a CRC32C for every [`BLOCK_LEN`] bytes, or for every group of a compressed blob. A damaged
//!   block is an error of kind [`Corrupt`](ErrorKind::Corrupt) with the [`Damage`], never bytes. An engine may
//!   trust a block for a while after it was found whole, for a bounded time that it documents.
//! - A blob that is open can be read to its end, even if it is deleted or repacked meanwhile.
//! - [`Blobs::repack`] changes how a blob is stored, never its name, length or bytes.
//!
//! Left to others: who owns a blob and when it may go (`schema`, `gc`).

mod compression;
pub mod contract;
mod fs;
mod memory;

use std::{
    fmt::{self, Debug},
    ops::Range,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use minicbor::{Decode, Encode};

pub use self::{
    compression::{Compression, Repacked, SAVED_PART_MIN, ZSTD_LEVELS},
    fs::{Exported, FsBlobs, FsOptions},
    memory::MemoryBlobs,
};
use crate::{
    error::{Damage, Error, ErrorKind, Result},
    schema::LayoutId,
};

/// The unit of checksums, in bytes.
pub const BLOCK_LEN: u64 = 64 << 10;
/// Largest blob, in bytes: it bounds what a writer remembers (16 KiB of checksums) and what a broken replication sends
/// again. Longer content is several blobs.
pub const BLOB_LEN_MAX: u64 = 256 << 20;

/// The name of a blob: the layout that owns it, and a number of its own within that.
///
/// Written as 32 hexadecimal digits, a hyphen and 16 more. It is unique across servers, so that a replica keeps its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BlobId {
    /// The layout the blob was written for; the blob lives at least as long.
    #[n(0)]
    pub owner: LayoutId,
    /// Random within the owner.
    #[n(1)]
    pub index: u64,
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.owner, self.index)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for BlobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::new(ErrorKind::InvalidArgument, format!("{text:?} is not a blob id"));
        let (owner, index) = text.split_once('-').ok_or_else(invalid)?;
        if index.len() != 16 || !index.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        Ok(Self {
            owner: owner.parse().map_err(|_| invalid())?,
            index: u64::from_str_radix(index, 16).map_err(|_| invalid())?,
        })
    }
}

/// What a store of blobs may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// Bytes that there are in all, those of others included.
    pub total: u64,
}

/// A store of blobs.
#[async_trait]
pub trait Blobs: Send + Sync + Debug {
    /// Starts to write the blob `id`. A blob of that name is replaced when this one is sealed: its bytes must be the
    /// same, so that this is only of use to repair it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if the disk is full or fails; [`ErrorKind::ReadOnly`] if the store
    /// is for reading only, as for every other call that writes.
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>>;

    /// Opens the sealed blob `id` for reading.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`], with the [`Damage`], if it is missing or its trailer is damaged; [`ErrorKind::Io`] if the
    /// disk fails, or too many files are open.
    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>>;

    /// Whether `id` is sealed and there, by name only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    async fn exists(&self, id: BlobId) -> Result<bool>;

    /// Deletes `id`, which need not be there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    async fn delete(&self, id: BlobId) -> Result<()>;

    /// Sealed blobs in a stable order of the engine's choice, at most `limit`, beginning after `after`. Blobs that are
    /// sealed or deleted meanwhile may or may not be seen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>>;

    /// Stores the blob `id` anew in another form, under the same name; whoever has it open reads on. A compressed form
    /// must save one byte in [`SAVED_PART_MIN`], otherwise the blob stays as it is; so does a blob that is compressed at
    /// this level or a higher one. [`Compression::None`] makes a compressed blob plain again, whatever that takes.
    ///
    /// Every byte is verified on the way. Dropping the future gives up, or lets the last step end unseen; the blob is
    /// whole in either form. A blob that is deleted meanwhile stays deleted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`], with the [`Damage`], if the blob is missing or damaged: it then stays as it is;
    /// [`ErrorKind::PreconditionFailed`] if it was deleted meanwhile; [`ErrorKind::InvalidArgument`] if the level is none
    /// of [`ZSTD_LEVELS`]; [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if the disk is full or fails.
    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked>;

    /// What the blob `id` takes in the store, in bytes, checksums included.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`], with the [`Damage`], if it is missing; [`ErrorKind::Io`] if the disk fails.
    async fn stored_len(&self, id: BlobId) -> Result<u64>;

    /// How much the store may still take; `None` if it has no bound of its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    async fn space(&self) -> Result<Option<Space>>;
}

/// A sealed blob.
#[async_trait]
pub trait Blob: Send + Sync + Debug {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`, verified. The caller bounds the range to what it wants in memory.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if a block does not match its checksum, then with the [`Damage`], or if the range is not
    /// within the blob; [`ErrorKind::Io`] if the disk fails.
    async fn read(&self, range: Range<u64>) -> Result<Bytes>;

    /// Reads the blocks that `range` touches from the disk, whether or not they were verified before, and gives every
    /// damaged one, in order. The caller paces: a range is read in one go.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the range is not within the blob; [`ErrorKind::Io`] if the disk fails other than by
    /// being unable to read a place, which is a damage.
    async fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>>;
}

/// A blob that is being written. Dropping it gives up.
#[async_trait]
pub trait BlobWriter: Send + Debug {
    /// Adds `data` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] beyond [`BLOB_LEN_MAX`]; [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if the disk is full
    /// or fails. The writer is then of no more use.
    async fn append(&mut self, data: Bytes) -> Result<()>;

    /// Makes the blob durable and visible, and gives its length.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails; the blob may then be there or not.
    async fn seal(self: Box<Self>) -> Result<u64>;
}

/// The error of a blob that is not there, or that cannot be read at all.
fn unreadable(id: BlobId, reason: &str) -> Error {
    damaged(id, None, reason)
}

/// The error of a blob that is damaged from `offset` on, in bytes of its content.
fn damaged(id: BlobId, offset: Option<u64>, reason: &str) -> Error {
    Error::damaged(Damage {
        blob: id,
        offset,
        reason: reason.to_owned(),
    })
}

/// Checks that a range lies within a blob of `len` bytes.
fn check_range(id: BlobId, len: u64, range: &Range<u64>) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "blob {id} has {len} bytes, and not those of {range:?}"
    )))
}
