//! The form of a long layout: blobs of sorted entries.
//!
//! | offset | size | field of an entry, big-endian |
//! | --- | --- | --- |
//! | 0 | 8 | offset in the object at which the extent begins |
//! | 8 | 16 | owner of the blob; all zero for an extent of zeros |
//! | 24 | 8 | index of the blob |
//! | 32 | 8 | offset in the blob |
//!
//! An extent ends where the next begins, the last one at the size of the layout. Entry `i` is number
//! `i % ENTRIES_PER_BLOB` of blob `i / ENTRIES_PER_BLOB`. Inline bytes do not occur: a builder that goes over to this form
//! moves them into a blob.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use minicbor::{Decode, Encode};

use super::{Extent, Piece};
use crate::{
    blob::{BLOB_LEN_MAX, BlobId},
    error::{Error, Result},
    schema::LayoutId,
};

/// Bytes of an entry.
pub(crate) const ENTRY_LEN: u64 = 40;
/// Entries that a blob holds.
pub(crate) const ENTRIES_PER_BLOB: u64 = BLOB_LEN_MAX / ENTRY_LEN;

const NO_OWNER: LayoutId = LayoutId([0; 16]);

/// A layout whose extents are in blobs.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PagedLayout {
    /// How many bytes it covers.
    #[n(0)]
    pub size: u64,
    /// How many entries it has.
    #[n(1)]
    pub count: u64,
    /// The blobs that hold the entries.
    #[n(2)]
    pub blobs: Vec<BlobId>,
}

/// An entry: where an extent begins, and where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) blob: Option<(BlobId, u64)>,
}

impl Entry {
    pub(crate) fn put(&self, buffer: &mut BytesMut) {
        let (id, offset) = self.blob.unwrap_or((
            BlobId {
                owner: NO_OWNER,
                index: 0,
            },
            0,
        ));
        buffer.put_u64(self.start);
        buffer.put_slice(&id.owner.0);
        buffer.put_u64(id.index);
        buffer.put_u64(offset);
    }

    pub(crate) fn get(buffer: &mut Bytes) -> Result<Self> {
        let damaged = |_| Error::corrupt("a page of a layout ends within an entry");
        let start = buffer.try_get_u64().map_err(damaged)?;
        let mut owner = [0; 16];
        buffer.try_copy_to_slice(&mut owner).map_err(damaged)?;
        let index = buffer.try_get_u64().map_err(damaged)?;
        let offset = buffer.try_get_u64().map_err(damaged)?;
        let id = BlobId {
            owner: LayoutId(owner),
            index,
        };
        Ok(Self {
            start,
            blob: (id.owner != NO_OWNER).then_some((id, offset)),
        })
    }

    /// The extent that ends at `end`.
    pub(crate) fn piece(&self, end: u64) -> Result<Piece> {
        let len = end
            .checked_sub(self.start)
            .filter(|len| *len > 0)
            .ok_or_else(|| Error::corrupt(format!("the entries of a layout are out of order at {}", self.start)))?;
        let extent = self
            .blob
            .map_or(Extent::Zero, |(id, offset)| Extent::Blob { id, offset });
        Ok(Piece { len, extent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_a_fixed_width_and_survive_it() {
        let id = BlobId {
            owner: LayoutId([9; 16]),
            index: 77,
        };
        for entry in [
            Entry { start: 5, blob: None },
            Entry {
                start: u64::MAX,
                blob: Some((id, 123)),
            },
        ] {
            let mut buffer = BytesMut::new();
            entry.put(&mut buffer);
            assert_eq!(buffer.len() as u64, ENTRY_LEN);
            assert_eq!(Entry::get(&mut buffer.freeze()).unwrap(), entry);
        }
        assert!(Entry::get(&mut Bytes::from_static(&[0; 39])).is_err());
    }
}
