//! A list of extents in memory: push, slice, join, seek; and its encoding.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;
use minicbor::{Decode, Decoder, Encode, Encoder, data::Type, decode, encode, encode::Write};

use super::Extent;
use crate::blob::BlobId;

/// A run of bytes and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Where it is.
    pub extent: Extent,
}

impl Piece {
    /// The bytes from `skip` on, at most `len_max` of them. `skip` is below the piece's length.
    #[must_use]
    pub fn part(&self, skip: u64, len_max: u64) -> Self {
        let len = self.len.saturating_sub(skip).min(len_max);
        let extent = match &self.extent {
            Extent::Zero => Extent::Zero,
            Extent::Inline(bytes) => {
                let start = usize::try_from(skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
                let end = usize::try_from(skip.saturating_add(len)).map_or(bytes.len(), |end| end.min(bytes.len()));
                Extent::Inline(bytes.slice(start..end))
            }
            Extent::Blob { id, offset } => Extent::Blob {
                id: *id,
                offset: offset.saturating_add(skip),
            },
        };
        Self { len, extent }
    }

    /// Takes `next` in, if it goes on where this one ends.
    fn absorb(&mut self, next: &Self) -> bool {
        let joins = match (&self.extent, &next.extent) {
            (Extent::Zero, Extent::Zero) => true,
            (
                Extent::Blob { id, offset },
                Extent::Blob {
                    id: next_id,
                    offset: next_offset,
                },
            ) => id == next_id && offset.checked_add(self.len) == Some(*next_offset),
            _ => false,
        };
        match self.len.checked_add(next.len) {
            Some(len) if joins => {
                self.len = len;
                true
            }
            _ => false,
        }
    }
}

/// Extents that cover `0..size` without gap or overlap; neighbours that can be one are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtentList {
    /// Each piece with the offset at which it ends, so that an offset is found by binary search.
    pieces: Vec<(u64, Piece)>,
}

impl ExtentList {
    /// How many bytes it covers.
    pub fn size(&self) -> u64 {
        self.pieces.last().map_or(0, |(end, _)| *end)
    }

    /// How many extents it has.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// The extents in order.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().map(|(_, piece)| piece)
    }

    /// Adds `piece` at the end. An empty one changes nothing.
    pub fn push(&mut self, piece: Piece) {
        if piece.len == 0 {
            return;
        }
        let size = self.size().saturating_add(piece.len);
        if let Some((end, last)) = self.pieces.last_mut()
            && last.absorb(&piece)
        {
            *end = size;
            return;
        }
        self.pieces.push((size, piece));
    }

    /// Adds all of `other` at the end.
    pub fn join(&mut self, other: &Self) {
        for piece in other.pieces() {
            self.push(piece.clone());
        }
    }

    /// The part of `range`, which is cut off at the end of the list.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Self {
        let mut slice = Self::default();
        let mut offset = range.start;
        while offset < range.end {
            let Some(piece) = self.at(offset, range.end.saturating_sub(offset)) else {
                break;
            };
            offset = offset.saturating_add(piece.len);
            slice.push(piece);
        }
        slice
    }

    /// What lies at `offset`, up to the end of its extent and at most `len_max` bytes; `None` from the end on.
    pub fn at(&self, offset: u64, len_max: u64) -> Option<Piece> {
        let index = self.pieces.partition_point(|(end, _)| *end <= offset);
        let (end, piece) = self.pieces.get(index)?;
        let start = end.saturating_sub(piece.len);
        Some(piece.part(offset.saturating_sub(start), len_max))
    }

    /// Bytes held in the list itself.
    pub fn inline_len(&self) -> u64 {
        self.pieces()
            .filter(|piece| matches!(piece.extent, Extent::Inline(_)))
            .map(|piece| piece.len)
            .sum()
    }
}

impl FromIterator<Piece> for ExtentList {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        let mut list = Self::default();
        for piece in pieces {
            list.push(piece);
        }
        list
    }
}

/// An array of two arrays: the blobs, and the pieces. A piece is a length for zeros, a byte string for inline bytes, or
/// an array of length, index into the blobs, and offset.
impl<C> Encode<C> for ExtentList {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        let mut indexes: HashMap<BlobId, u64> = HashMap::new();
        let mut blobs: Vec<BlobId> = Vec::new();
        for piece in self.pieces() {
            if let Extent::Blob { id, .. } = piece.extent {
                indexes.entry(id).or_insert_with(|| {
                    blobs.push(id);
                    blobs.len() as u64 - 1
                });
            }
        }
        e.array(2)?.encode_with(&blobs, ctx)?.array(self.pieces.len() as u64)?;
        for piece in self.pieces() {
            match &piece.extent {
                Extent::Zero => e.u64(piece.len)?,
                Extent::Inline(bytes) => e.bytes(bytes)?,
                Extent::Blob { id, offset } => {
                    let index = indexes.get(id).copied().unwrap_or_default();
                    e.array(3)?.u64(piece.len)?.u64(index)?.u64(*offset)?
                }
            };
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for ExtentList {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        expect_array(d, 2)?;
        let blobs: Vec<BlobId> = d.decode_with(ctx)?;
        let count = d
            .array()?
            .ok_or_else(|| decode::Error::message("extents of unknown count"))?;
        let mut list = Self::default();
        let mut size = 0_u64;
        for _ in 0..count {
            let piece = decode_piece(d, &blobs)?;
            size = size
                .checked_add(piece.len)
                .ok_or_else(|| decode::Error::message("extents beyond 2^64 bytes"))?;
            list.push(piece);
        }
        Ok(list)
    }
}

fn decode_piece(d: &mut Decoder<'_>, blobs: &[BlobId]) -> Result<Piece, decode::Error> {
    match d.datatype()? {
        Type::Bytes => {
            let bytes = Bytes::copy_from_slice(d.bytes()?);
            Ok(Piece {
                len: bytes.len() as u64,
                extent: Extent::Inline(bytes),
            })
        }
        Type::Array => {
            expect_array(d, 3)?;
            let len = d.u64()?;
            let index = usize::try_from(d.u64()?).unwrap_or(usize::MAX);
            let id = *blobs
                .get(index)
                .ok_or_else(|| decode::Error::message("an extent of an unnamed blob"))?;
            let offset = d.u64()?;
            offset
                .checked_add(len)
                .ok_or_else(|| decode::Error::message("an extent beyond 2^64 bytes"))?;
            Ok(Piece {
                len,
                extent: Extent::Blob { id, offset },
            })
        }
        _ => Ok(Piece {
            len: d.u64()?,
            extent: Extent::Zero,
        }),
    }
}

fn expect_array(d: &mut Decoder<'_>, len: u64) -> Result<(), decode::Error> {
    if d.array()? == Some(len) {
        Ok(())
    } else {
        Err(decode::Error::message("an array of another length"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::schema::LayoutId;

    const BLOB_LEN: u64 = 4096;

    fn blob(n: u8) -> BlobId {
        BlobId {
            owner: LayoutId([n; 16]),
            index: u64::from(n),
        }
    }

    /// The bytes a piece stands for; blobs hold a pattern of their number and offset.
    fn render(list: &ExtentList) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in list.pieces() {
            match &piece.extent {
                Extent::Zero => bytes.resize(bytes.len() + usize::try_from(piece.len).unwrap(), 0),
                Extent::Inline(inline) => bytes.extend_from_slice(inline),
                Extent::Blob { id, offset } => bytes.extend(
                    (*offset..offset + piece.len).map(|at| (at.wrapping_mul(31) ^ id.index).to_le_bytes()[0] | 1),
                ),
            }
        }
        bytes
    }

    fn piece() -> impl Strategy<Value = Piece> {
        prop_oneof![
            (1_u64..300).prop_map(|len| Piece {
                len,
                extent: Extent::Zero
            }),
            vec(any::<u8>(), 1..50).prop_map(|b| Piece {
                len: b.len() as u64,
                extent: Extent::Inline(b.into())
            }),
            (0_u8..4, 0..BLOB_LEN, 1_u64..300).prop_map(|(n, offset, len)| Piece {
                len,
                extent: Extent::Blob { id: blob(n), offset }
            }),
        ]
    }

    fn list() -> impl Strategy<Value = ExtentList> {
        vec(piece(), 0..40).prop_map(|pieces| pieces.into_iter().collect())
    }

    proptest! {
        #[test]
        fn slicing_is_slicing_of_the_bytes(list in list(), start in 0_u64..12_000, len in 0_u64..12_000) {
            let bytes = render(&list);
            let size = bytes.len();
            let from = usize::try_from(start).unwrap().min(size);
            let to = usize::try_from(start + len).unwrap().min(size);
            let slice = list.slice(start..start + len);
            prop_assert_eq!(slice.size(), (to - from) as u64);
            prop_assert_eq!(render(&slice), &bytes[from..to]);
        }

        #[test]
        fn joining_is_concatenation_of_the_bytes(a in list(), b in list()) {
            let mut joined = a.clone();
            joined.join(&b);
            prop_assert_eq!(joined.size(), a.size() + b.size());
            prop_assert_eq!(render(&joined), [render(&a), render(&b)].concat());
        }

        #[test]
        fn cutting_anywhere_and_joining_gives_the_same_list(list in list(), cut in 0_u64..12_000) {
            let cut = cut.min(list.size());
            let mut joined = list.slice(0..cut);
            joined.join(&list.slice(cut..list.size()));
            prop_assert_eq!(render(&joined), render(&list));
        }

        #[test]
        fn encoding_gives_the_list_back(list in list()) {
            let bytes = minicbor::to_vec(&list).unwrap();
            prop_assert_eq!(minicbor::decode::<ExtentList>(&bytes).unwrap(), list);
        }

        #[test]
        fn damaged_encodings_never_panic(list in list(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = minicbor::to_vec(&list).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = minicbor::decode::<ExtentList>(&bytes);
        }
    }

    #[test]
    fn neighbours_that_go_on_are_one_extent() {
        let at = |offset, len| Piece {
            len,
            extent: Extent::Blob { id: blob(1), offset },
        };
        let zero = |len| Piece {
            len,
            extent: Extent::Zero,
        };
        let list: ExtentList = [at(0, 10), at(10, 5), zero(3), zero(4), at(15, 1), at(17, 1)]
            .into_iter()
            .collect();
        assert_eq!(list.count(), 4);
        assert_eq!(list.size(), 24);
        assert_eq!(list.at(12, u64::MAX), Some(at(12, 3)));
        assert_eq!(list.at(24, 1), None);
    }
}
