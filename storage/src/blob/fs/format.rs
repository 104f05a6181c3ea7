//! What stands in a blob's file.
//!
//! A blob is written in format 1, *plain*: fast, and with its data aligned as it is in the blob.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | `len` | the data |
//! | `len` | 4 × `count` | CRC32C of each block of [`BLOCK_LEN`] bytes; the last block may be shorter |
//! | at the end | 28 | the footer |
//!
//! It may be repacked into format 2, *packed*: groups of bytes, each of them compressed by itself.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | `stored` | the groups, one behind the other |
//! | `stored` | 8 × `count` | the length and kind of each stored group, and its CRC32C; [`packed`](super::packed) draws them |
//! | `stored` + 8 × `count` | 4 | the level of zstd |
//! | at the end | 28 | the footer |
//!
//! The footer:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | `LITHBLOB` |
//! | 8 | 4 | version of the format, 1 or 2 |
//! | 12 | 4 | `count` of blocks or groups |
//! | 16 | 8 | `len`, the length of the blob |
//! | 24 | 4 | CRC32C of the blob's id (24 bytes), what stands between the data and the footer, and the footer's first 24 bytes |
//!
//! Numbers are little-endian. The id is in the last checksum but not in the file: a file under another blob's name
//! does not verify.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

use super::packed::{ENTRY_LEN, GROUP_LEN, LEVEL_LEN};
use crate::blob::{BLOB_LEN_MAX, BLOCK_LEN, BlobId};

/// Length of the footer.
pub(super) const FOOTER_LEN: usize = 28;

const MAGIC: [u8; 8] = *b"LITHBLOB";
const SUM_LEN: usize = size_of::<u32>();

/// How the data stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As it is, with a checksum for each block.
    Plain,
    /// In groups that may be compressed.
    Packed,
}

impl Format {
    const fn version(self) -> u32 {
        match self {
            Self::Plain => 1,
            Self::Packed => 2,
        }
    }

    fn of_version(version: u32) -> Option<Self> {
        [Self::Plain, Self::Packed]
            .into_iter()
            .find(|format| format.version() == version)
    }

    /// Bytes of the blob that one checksum stands for.
    pub(super) const fn unit_len(self) -> u64 {
        match self {
            Self::Plain => BLOCK_LEN,
            Self::Packed => GROUP_LEN,
        }
    }

    /// Bytes between the data and the footer, for `count` units.
    fn table_len(self, count: u64) -> u64 {
        match self {
            Self::Plain => count * SUM_LEN as u64,
            Self::Packed => count * ENTRY_LEN as u64 + LEVEL_LEN as u64,
        }
    }
}

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
        let table = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        (self.len, with_footer(id, Format::Plain, self.len, table))
    }

    fn end_block(&mut self) {
        self.sums.push(crc32(self.block.finalize_reset()));
    }
}

/// The trailer of a blob of `len` bytes: `table`, and the footer behind it.
pub(super) fn with_footer(id: BlobId, format: Format, len: u64, table: Vec<u8>) -> Vec<u8> {
    let count = u32::try_from(len.div_ceil(format.unit_len())).expect("a blob has at most BLOB_LEN_MAX bytes");
    let mut trailer = table;
    trailer.extend_from_slice(&MAGIC);
    trailer.extend_from_slice(&format.version().to_le_bytes());
    trailer.extend_from_slice(&count.to_le_bytes());
    trailer.extend_from_slice(&len.to_le_bytes());
    let sum = trailer_sum(id, &[&trailer]);
    trailer.extend_from_slice(&sum.to_le_bytes());
    trailer
}

/// A footer that fits the file it was read from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) format: Format,
    /// Length of the blob.
    pub(super) len: u64,
    /// Where the table begins, which is the length of the stored data. In a plain file it is `len`.
    pub(super) table_offset: u64,
    /// Bytes of the table.
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
        let format = Format::of_version(u32::from_le_bytes(take(&mut rest)));
        let format = format.ok_or("its format is of an unknown version")?;
        let count = u32::from_le_bytes(take(&mut rest));
        let len = u64::from_le_bytes(take(&mut rest));
        let sum = u32::from_le_bytes(take(&mut rest));
        if len > BLOB_LEN_MAX || u64::from(count) != len.div_ceil(format.unit_len()) {
            return Err("its footer contradicts itself");
        }
        let table_len = format.table_len(u64::from(count));
        let table_offset = file_len.checked_sub(table_len + FOOTER_LEN as u64);
        let table_offset = table_offset
            .filter(|offset| match format {
                Format::Plain => *offset == len,
                Format::Packed => *offset <= len,
            })
            .ok_or("its file has another length than its footer says")?;
        let table_len = usize::try_from(table_len).map_err(|_| "its footer contradicts itself")?;
        let mut rest = &footer[..];
        Ok(Self {
            format,
            len,
            table_offset,
            table_len,
            fields: take(&mut rest),
            sum,
        })
    }

    /// Checks that the table, the bytes before the footer, is what the footer was written for.
    pub(super) fn verify(&self, id: BlobId, table: &[u8]) -> Result<(), &'static str> {
        if trailer_sum(id, &[table, &self.fields]) == self.sum {
            Ok(())
        } else {
            Err("its checksums do not match their own")
        }
    }
}

/// The checksums of the blocks, from the table of a plain file.
pub(super) fn block_sums(table: &[u8]) -> Box<[u32]> {
    let (sums, _) = table.as_chunks::<SUM_LEN>();
    sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect()
}

/// The checksum of one block, or of one stored group.
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
            let table = &trailer[..footer.table_len];
            footer.verify(ID, table).unwrap();
            let sums = block_sums(table);
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
