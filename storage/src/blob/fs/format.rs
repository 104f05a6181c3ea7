//! What stands in a blob's file.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | `len` | the data |
//! | `len` | 4 × `blocks` | CRC32C of each block of [`BLOCK_LEN`] bytes; the last block may be shorter |
//! | `len` + 4 × `blocks` | 28 | the footer |
//!
//! The footer, at the end of the file:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | `LITHBLOB` |
//! | 8 | 4 | version of the format, 1 |
//! | 12 | 4 | `blocks` |
//! | 16 | 8 | `len` |
//! | 24 | 4 | CRC32C of the blob's id (24 bytes), the checksums and the footer's first 24 bytes |
//!
//! Numbers are little-endian. The id is in the last checksum but not in the file: a file under another blob's name
//! does not verify.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

use crate::blob::{BLOB_LEN_MAX, BLOCK_LEN, BlobId};

/// Length of the footer.
pub(super) const FOOTER_LEN: usize = 28;

const MAGIC: [u8; 8] = *b"LITHBLOB";
const FORMAT: u32 = 1;
const SUM_LEN: usize = size_of::<u32>();

/// Computes the checksums of blocks as the data passes.
#[derive(Debug)]
pub(super) struct Summer {
    len: u64,
    block: Digest,
    sums: Vec<u32>,
}

impl Summer {
    pub(super) fn new() -> Self {
        Self {
            len: 0,
            block: Digest::new(Crc32Iscsi),
            sums: Vec::new(),
        }
    }

    pub(super) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = BLOCK_LEN - self.len % BLOCK_LEN;
            let here = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            let (head, tail) = data.split_at(here);
            self.block.update(head);
            self.len += head.len() as u64;
            if self.len.is_multiple_of(BLOCK_LEN) {
                self.end_block();
            }
            data = tail;
        }
    }

    /// The length of the data, and the trailer for it: checksums and footer.
    pub(super) fn finish(mut self, id: BlobId) -> (u64, Vec<u8>) {
        if !self.len.is_multiple_of(BLOCK_LEN) {
            self.end_block();
        }
        let blocks = u32::try_from(self.sums.len()).expect("a blob has at most BLOB_LEN_MAX / BLOCK_LEN blocks");
        let mut trailer = Vec::with_capacity(self.sums.len() * SUM_LEN + FOOTER_LEN);
        for sum in &self.sums {
            trailer.extend_from_slice(&sum.to_le_bytes());
        }
        trailer.extend_from_slice(&MAGIC);
        trailer.extend_from_slice(&FORMAT.to_le_bytes());
        trailer.extend_from_slice(&blocks.to_le_bytes());
        trailer.extend_from_slice(&self.len.to_le_bytes());
        let sum = trailer_sum(id, &[&trailer]);
        trailer.extend_from_slice(&sum.to_le_bytes());
        (self.len, trailer)
    }

    fn end_block(&mut self) {
        self.sums.push(crc32(self.block.finalize_reset()));
    }
}

/// A footer that fits the file it was read from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Bytes of data.
    pub(super) len: u64,
    /// Bytes of checksums, which begin at `len`.
    pub(super) table_len: usize,
    fields: [u8; FOOTER_LEN - SUM_LEN],
    sum: u32,
}

impl Footer {
    /// Reads the last [`FOOTER_LEN`] bytes of a file of `file_len` bytes, or says what is wrong with them. What it
    /// gives is within the file and the bounds.
    pub(super) fn parse(footer: [u8; FOOTER_LEN], file_len: u64) -> Result<Self, &'static str> {
        let mut rest = &footer[..];
        if take(&mut rest) != MAGIC {
            return Err("it does not end as a blob");
        }
        if u32::from_le_bytes(take(&mut rest)) != FORMAT {
            return Err("its format is of an unknown version");
        }
        let blocks = u32::from_le_bytes(take(&mut rest));
        let len = u64::from_le_bytes(take(&mut rest));
        let sum = u32::from_le_bytes(take(&mut rest));
        if len > BLOB_LEN_MAX || u64::from(blocks) != len.div_ceil(BLOCK_LEN) {
            return Err("its footer contradicts itself");
        }
        let table_len = u64::from(blocks) * SUM_LEN as u64;
        if len + table_len + FOOTER_LEN as u64 != file_len {
            return Err("its file has another length than its footer says");
        }
        let table_len = usize::try_from(table_len).map_err(|_| "its footer contradicts itself")?;
        let mut rest = &footer[..];
        Ok(Self {
            len,
            table_len,
            fields: take(&mut rest),
            sum,
        })
    }

    /// The checksums of the blocks, from the bytes that stand before the footer.
    pub(super) fn verify(&self, id: BlobId, table: &[u8]) -> Result<Box<[u32]>, &'static str> {
        if trailer_sum(id, &[table, &self.fields]) != self.sum {
            return Err("its checksums do not match their own");
        }
        let (sums, _) = table.as_chunks::<SUM_LEN>();
        Ok(sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
    }
}

/// The checksum of one block.
pub(super) fn block_sum(block: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(block)
}

fn trailer_sum(id: BlobId, pieces: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(Crc32Iscsi);
    digest.update(&id.owner.0);
    digest.update(&id.index.to_be_bytes());
    for piece in pieces {
        digest.update(piece);
    }
    crc32(digest.finalize())
}

fn crc32(sum: u64) -> u32 {
    u32::try_from(sum).expect("a CRC32C has 32 bits")
}

/// The next field of a footer.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, tail) = rest.split_first_chunk().expect("the fields add up to a footer");
    *rest = tail;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::LayoutId;

    const ID: BlobId = BlobId {
        owner: LayoutId([7; 16]),
        index: 9,
    };

    fn parse(trailer: &[u8], file_len: u64) -> Result<Footer, &'static str> {
        Footer::parse(*trailer.last_chunk().unwrap(), file_len)
    }

    #[test]
    fn checksum_is_crc32c() {
        // RFC 3720 appendix B.4 and the check value of the CRC catalogue.
        assert_eq!(block_sum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(block_sum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn trailer_gives_back_length_and_sums() {
        for len in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let data: Vec<_> = (0..len).map(|index: u32| index.to_le_bytes()[0]).collect();
            let mut summer = Summer::new();
            for piece in data.chunks(1000) {
                summer.update(piece);
            }
            let (written, trailer) = summer.finish(ID);
            assert_eq!(written, u64::from(len));
            let footer = parse(&trailer, written + trailer.len() as u64).unwrap();
            let sums = footer.verify(ID, &trailer[..footer.table_len]).unwrap();
            let expected: Vec<_> = data.chunks(65_536).map(block_sum).collect();
            assert_eq!(sums[..], expected, "{len} bytes");
        }
    }

    #[test]
    fn foreign_footers_are_refused() {
        let (_, trailer) = Summer::new().finish(ID);
        assert!(parse(&trailer, 28).is_ok());
        assert!(parse(&trailer, 29).is_err(), "a longer file");
        let other = BlobId { index: 8, ..ID };
        assert!(parse(&trailer, 28).unwrap().verify(other, &[]).is_err(), "another name");
        for index in 0..FOOTER_LEN {
            for bit in 0..8 {
                let mut damaged = trailer.clone();
                damaged[index] ^= 1 << bit;
                let verified = parse(&damaged, 28).and_then(|footer| footer.verify(ID, &[]));
                assert!(verified.is_err(), "bit {bit} of byte {index}");
            }
        }
    }
}
