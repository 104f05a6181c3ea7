//! Layouts: where the bytes of an object are.
//!
//! A layout is a sorted list of extents that covers an object from its first byte to its last, without gap or overlap.
//! Conversions, copies and completed uploads are new layouts over blobs that exist already.
//!
//! A short layout is kept whole in the record of its object version ([`Layout::Listed`]). A long one is itself blobs,
//! of sorted entries of a fixed width ([`Layout::Paged`], see `paged`), so that neither the record nor the first byte
//! of a read grows with it: an entry is found by binary search with ranged reads.
//!
//! [`ExtentList`] slices and joins in memory, `LayoutBuilder` writes a layout of any length, [`LayoutCursor`] reads one.

mod builder;
mod cursor;
mod list;
pub(crate) mod paged;

use bytes::Bytes;
use minicbor::{Decode, Encode};

pub(crate) use self::builder::{LISTED_INLINE_MAX as INLINE_LEN_MAX, LayoutBuilder};
pub use self::{
    cursor::LayoutCursor,
    list::{ExtentList, Piece},
    paged::PagedLayout,
};
use crate::blob::BlobId;

/// Where a run of bytes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Nowhere: it reads as zeros.
    Zero,
    /// Here.
    Inline(Bytes),
    /// In a blob.
    Blob {
        /// Which one.
        id: BlobId,
        /// From which byte of it on.
        offset: u64,
    },
}

/// Where the bytes of an object are.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Layout {
    /// All extents, in memory.
    #[n(0)]
    Listed(#[n(0)] ExtentList),
    /// Extents in blobs of their own.
    #[n(1)]
    Paged(#[n(0)] PagedLayout),
}

impl Layout {
    /// How many bytes it covers.
    pub fn size(&self) -> u64 {
        match self {
            Self::Listed(list) => list.size(),
            Self::Paged(paged) => paged.size,
        }
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::Listed(ExtentList::default())
    }
}
