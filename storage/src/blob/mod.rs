//! Immutable blobs: the bytes under every layout.
//!
//! A blob is written once, from start to end, sealed, read in ranges, and one day deleted; its bytes never change. Its
//! name, a [`BlobId`], is unique per attempt and never used again, so that a late writer can only ever harm itself.
//!
//! The contract, which [`contract`] checks on every engine:
//!
//! - Until [`BlobWriter::seal`] has returned, the blob cannot be opened and is not listed. Once it has, the blob is
//!   durable. A writer that is dropped leaves nothing that [`Blobs::list`] shows.
//! - Every [`BLOCK_LEN`] bytes carry a CRC32C, checked on every read: a damaged block is an error of kind
//!   [`Corrupt`](crate::ErrorKind::Corrupt) that names blob and offset, never bytes.
//! - A blob that is open can be read to its end, even if it is deleted meanwhile.
//!
//! Left to others: who owns a blob and when it may go (`schema`, `gc`).

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

pub use self::{fs::FsBlobs, memory::MemoryBlobs};
use crate::{error::Result, schema::LayoutId};

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
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || crate::Error::new(crate::ErrorKind::InvalidArgument, format!("{text:?} is not a blob id"));
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

/// A store of blobs.
#[async_trait]
pub trait Blobs: Send + Sync + Debug {
    /// Starts to write the blob `id`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>>;

    /// Opens the sealed blob `id` for reading.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if it is missing or its trailer is damaged;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>>;

    /// Whether `id` is sealed and there, by name only.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn exists(&self, id: BlobId) -> Result<bool>;

    /// Deletes `id`, which need not be there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn delete(&self, id: BlobId) -> Result<()>;

    /// Sealed blobs in a stable order of the engine's choice, at most `limit`, beginning after `after`. Blobs that are
    /// sealed or deleted meanwhile may or may not be seen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>>;
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
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if a block does not match its checksum, or the range is not
    /// within the blob; [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails.
    async fn read(&self, range: Range<u64>) -> Result<Bytes>;
}

/// A blob that is being written. Dropping it gives up.
#[async_trait]
pub trait BlobWriter: Send + Debug {
    /// Adds `data` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) beyond [`BLOB_LEN_MAX`];
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails. The writer is then of no more use.
    async fn append(&mut self, data: Bytes) -> Result<()>;

    /// Makes the blob durable and visible, and gives its length.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk fails; the blob may then be there or not.
    async fn seal(self: Box<Self>) -> Result<u64>;
}
