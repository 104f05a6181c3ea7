//! The dynamic header: where the block allocation table is, and how large blocks are.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | cookie `cxsparse` |
//! | 8 | 8 | data offset, unused |
//! | 16 | 8 | table offset |
//! | 24 | 4 | header version |
//! | 28 | 4 | max table entries |
//! | 32 | 4 | block size |
//! | 36 | 4 | checksum |
//! | 40 | 20 | parent unique id and time stamp |
//! | 60 | 4 | reserved |
//! | 64 | 512 | parent name, in UTF-16 |
//! | 576 | 448 | parent locators, reserved |
//!
//! Format: VHD specification, "Dynamic Disk Header Format".

use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u32, be_u64};
use nom::{IResult, Parser};

use super::{check_sum, checksum};
use crate::safety::{Region, quote};
use crate::{Error, ErrorKind};

pub(super) const HEADER_LEN: u64 = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const BLOCK_SIZE_MIN: u32 = 512;
/// 16 MiB: as many entries as 2 TiB have blocks of 512 KiB, the smallest that are made.
const BAT_LEN_MAX: u64 = 16 << 20;

/// Where fields stand in the header, for errors.
pub(super) mod field {
    pub(crate) const TABLE_OFFSET: u64 = 16;
    pub(crate) const VERSION: u64 = 24;
    pub(crate) const MAX_TABLE_ENTRIES: u64 = 28;
    pub(crate) const BLOCK_SIZE: u64 = 32;
    pub(crate) const CHECKSUM: u64 = 36;
}

/// The fields that a reader needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DynamicHeader {
    pub(super) table_offset: u64,
    pub(super) max_table_entries: u32,
    /// In bytes, without the bitmap.
    pub(super) block_size: u32,
}

impl DynamicHeader {
    /// Parses the 1024 bytes of a header. Places in errors count from its start.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (_, (version, stored, header)) = parse(bytes).map_err(|error| match error {
            nom::Err::Error(error) if error.code == nom::error::ErrorKind::Tag => {
                Error::corrupt("the cookie of the dynamic header is missing").at(0)
            }
            _ => Error::corrupt("the file ends inside of the dynamic header"),
        })?;
        let place = usize::try_from(field::CHECKSUM).unwrap_or_default();
        check_sum("dynamic header", bytes, place, stored).map_err(|error| error.at(field::CHECKSUM))?;
        if version != VERSION {
            let reason = format!("dynamic header version {version:#010x}, only {VERSION:#010x} is known");
            return Err(Error::unsupported(reason).at(field::VERSION));
        }
        if header.block_size < BLOCK_SIZE_MIN || !header.block_size.is_power_of_two() {
            let reason = format!(
                "block size {} is not a power of 2 of at least {BLOCK_SIZE_MIN}",
                header.block_size
            );
            return Err(Error::corrupt(reason).at(field::BLOCK_SIZE));
        }
        Ok(header)
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = COOKIE.to_vec();
        bytes.extend([0xff; 8]);
        bytes.extend(self.table_offset.to_be_bytes());
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(self.max_table_entries.to_be_bytes());
        bytes.extend(self.block_size.to_be_bytes());
        bytes.extend(checksum(&bytes, bytes.len()).to_be_bytes());
        bytes.resize(1024, 0);
        bytes
    }

    /// The block allocation table, if it is bounded and has an entry for each block of the disk.
    pub(super) fn bat(&self, virtual_size: u64) -> Result<Region, Error> {
        let needed = virtual_size.div_ceil(u64::from(self.block_size));
        if u64::from(self.max_table_entries) < needed {
            let reason = format!(
                "max table entries {} are too few for virtual size {virtual_size}, which needs {needed}",
                self.max_table_entries
            );
            return Err(Error::corrupt(reason).at(field::MAX_TABLE_ENTRIES));
        }
        // Entries for blocks that the disk does not have mean nothing.
        let len = needed.saturating_mul(4);
        if len > BAT_LEN_MAX {
            let reason = format!("block allocation table of {len} bytes is more than {BAT_LEN_MAX}");
            return Err(Error::new(ErrorKind::TooLarge, reason).at(field::MAX_TABLE_ENTRIES));
        }
        Ok(Region {
            name: "block allocation table",
            offset: self.table_offset,
            len,
        })
    }

    /// The bytes of the bitmap before each block: a bit for each sector, in whole sectors.
    pub(super) fn bitmap_len(&self) -> u64 {
        u64::from(self.block_size).div_ceil(8 * 512).next_multiple_of(512)
    }
}

/// The name of the parent of a differencing disk, for a refusal.
pub(super) fn parent_name(header: &[u8]) -> String {
    let (units, _) = header.get(64..576).unwrap_or_default().as_chunks();
    let units: Vec<u16> = units
        .iter()
        .map(|unit| u16::from_be_bytes(*unit))
        .take_while(|unit| *unit != 0)
        .collect();
    quote(String::from_utf16_lossy(&units).as_bytes())
}

fn parse(input: &[u8]) -> IResult<&[u8], (u32, u32, DynamicHeader)> {
    let (input, (_, _data_offset, table_offset)) = (tag(&COOKIE[..]), be_u64, be_u64).parse(input)?;
    let (input, (version, max_table_entries, block_size, stored)) = (be_u32, be_u32, be_u32, be_u32).parse(input)?;
    let (input, _parent) = take(984_usize).parse(input)?;
    let header = DynamicHeader {
        table_offset,
        max_table_entries,
        block_size,
    };
    Ok((input, (version, stored, header)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bitmaps_are_whole_sectors() {
        for (block_size, len) in [(512, 512), (512 << 10, 512), (2 << 20, 512), (4 << 20, 1024)] {
            let header = DynamicHeader {
                table_offset: 0,
                max_table_entries: 0,
                block_size,
            };
            assert_eq!(header.bitmap_len(), len, "{block_size}");
        }
    }

    #[test]
    fn parents_are_named_up_to_the_first_zero() {
        let mut header = vec![0; 1024];
        for (index, unit) in "C:\\base.vhd".encode_utf16().enumerate() {
            header[64 + 2 * index..66 + 2 * index].copy_from_slice(&unit.to_be_bytes());
        }
        assert_eq!(parent_name(&header), "\"C:\\\\base.vhd\"");
        assert_eq!(parent_name(&[]), "\"\"");
    }

    proptest! {
        #[test]
        fn render_then_parse_gives_it_back(table_offset: u64, max_table_entries: u32, bits in 9..32_u32) {
            let header = DynamicHeader { table_offset, max_table_entries, block_size: 1 << bits };
            let bytes = header.render();
            prop_assert_eq!(bytes.len(), 1024);
            prop_assert_eq!(DynamicHeader::parse(&bytes).unwrap(), header);
        }
    }
}
