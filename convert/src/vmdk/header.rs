//! The header of a sparse extent, and the footer.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic number `KDMV` |
//! | 4 | 4 | version |
//! | 8 | 4 | flags |
//! | 12 | 8 | capacity, in sectors |
//! | 20 | 8 | grain size, in sectors |
//! | 28 | 8 | descriptor offset, in sectors |
//! | 36 | 8 | descriptor size, in sectors |
//! | 44 | 4 | entries of a grain table |
//! | 48 | 8 | redundant grain directory offset, in sectors |
//! | 56 | 8 | grain directory offset, in sectors; all ones: see the footer |
//! | 64 | 8 | overhead, in sectors |
//! | 72 | 1 | unclean shutdown |
//! | 73 | 4 | line ends, broken by a transfer as text |
//! | 77 | 2 | compression algorithm |
//!
//! Format: "Virtual Disk Format", "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents".

use std::num::NonZeroU64;

use nom::bytes::complete::{tag, take};
use nom::number::complete::{le_u8, le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use super::{DESCRIPTOR_MAGIC, SECTOR_SIZE, TABLE_ENTRIES, TABLE_GRAINS};
use crate::safety::{self, Region};
use crate::{Error, ErrorKind, ReadAt};

pub(super) const HEADER_LEN: u64 = 512;
const MAGIC: &[u8; 4] = b"KDMV";
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;
const LINE_ENDS: &[u8; 4] = b"\n \r\n";
/// The grain directory offset of a file whose directory comes last.
pub(super) const DIRECTORY_AT_END: u64 = u64::MAX;
/// The specification's least grain, and the most that a compressed cluster of any format may become: 4 KiB to 2 MiB.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=4096;
/// 64 KiB: VMware reserves 10 KiB, and a descriptor of one extent has less than 1 KiB.
const DESCRIPTOR_LEN_MAX: u64 = 64 << 10;

/// Flags.
pub(super) const LINE_ENDS_VALID: u32 = 1;
pub(super) const REDUNDANT_TABLES: u32 = 1 << 1;
pub(super) const ZERO_GRAINS: u32 = 1 << 2;
pub(super) const COMPRESSED: u32 = 1 << 16;
pub(super) const MARKERS: u32 = 1 << 17;
const KNOWN_FLAGS: u32 = LINE_ENDS_VALID | REDUNDANT_TABLES | ZERO_GRAINS | COMPRESSED | MARKERS;

/// Where fields stand, for errors.
pub(super) mod field {
    pub(crate) const VERSION: u64 = 4;
    pub(crate) const FLAGS: u64 = 8;
    pub(crate) const CAPACITY: u64 = 12;
    pub(crate) const GRAIN_SIZE: u64 = 20;
    pub(crate) const DESCRIPTOR_OFFSET: u64 = 28;
    pub(crate) const DESCRIPTOR_SIZE: u64 = 36;
    pub(crate) const TABLE_ENTRIES: u64 = 44;
    pub(crate) const REDUNDANT_DIRECTORY: u64 = 48;
    pub(crate) const DIRECTORY: u64 = 56;
    pub(crate) const LINE_ENDS: u64 = 73;
    pub(crate) const COMPRESSION: u64 = 77;
}

/// The fields, as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) flags: u32,
    pub(super) capacity_sectors: u64,
    pub(super) grain_sectors: u64,
    pub(super) descriptor_sector: u64,
    pub(super) descriptor_sectors: u64,
    pub(super) table_entries: u32,
    pub(super) redundant_sector: u64,
    pub(super) directory_sector: u64,
    pub(super) overhead_sectors: u64,
    pub(super) unclean: bool,
    pub(super) line_ends: [u8; 4],
    pub(super) compression: u16,
}

impl Header {
    /// Reads the header of a file, and refuses what cannot be read, but for places.
    pub(super) fn read(file: &dyn ReadAt) -> Result<Self, Error> {
        let start = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN.min(file.size()),
        };
        let bytes = safety::read_region(file, start)?;
        refuse_others(&bytes)?;
        let header = Self::parse(&bytes)?;
        header.check()?;
        Ok(header)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (_, header) = parse(bytes).map_err(|error| match error {
            nom::Err::Error(error) if error.code == nom::error::ErrorKind::Tag => {
                Error::new(ErrorKind::NotThisFormat, "the magic number is missing").at(0)
            }
            _ => Error::corrupt("the file ends inside of the header").at(bytes.len() as u64),
        })?;
        Ok(header)
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        for sectors in [
            self.capacity_sectors,
            self.grain_sectors,
            self.descriptor_sector,
            self.descriptor_sectors,
        ] {
            bytes.extend(sectors.to_le_bytes());
        }
        bytes.extend(self.table_entries.to_le_bytes());
        for sectors in [self.redundant_sector, self.directory_sector, self.overhead_sectors] {
            bytes.extend(sectors.to_le_bytes());
        }
        bytes.push(u8::from(self.unclean));
        bytes.extend(self.line_ends);
        bytes.extend(self.compression.to_le_bytes());
        bytes.resize(512, 0);
        bytes
    }

    /// The header of a file without compression, in which everything comes where `descriptor_sectors` and the tables end.
    pub(super) fn new(capacity_sectors: u64, grain_sectors: u64, descriptor_sectors: u64) -> Self {
        let mut header = Self {
            version: 1,
            flags: LINE_ENDS_VALID | REDUNDANT_TABLES,
            capacity_sectors,
            grain_sectors,
            descriptor_sector: 1,
            descriptor_sectors,
            table_entries: u32::try_from(TABLE_ENTRIES).expect("512"),
            redundant_sector: descriptor_sectors.saturating_add(1),
            directory_sector: 0,
            overhead_sectors: 0,
            unclean: false,
            line_ends: *LINE_ENDS,
            compression: 0,
        };
        let tables = header.tables_len().div_ceil(SECTOR_SIZE);
        header.directory_sector = header.redundant_sector.saturating_add(tables);
        let end = header.directory_sector.saturating_add(tables);
        header.overhead_sectors = end.next_multiple_of(grain_sectors);
        header
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.flags & COMPRESSED != 0
    }

    /// The size of the guest's disk in bytes.
    pub(super) fn virtual_size(&self) -> u64 {
        self.capacity_sectors.saturating_mul(SECTOR_SIZE)
    }

    /// In bytes. The grain size has been checked.
    pub(super) fn grain_size(&self) -> NonZeroU64 {
        NonZeroU64::new(self.grain_sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(NonZeroU64::MIN)
    }

    /// How many grain tables the disk needs.
    pub(super) fn table_count(&self) -> u64 {
        self.virtual_size()
            .div_ceil(self.grain_size().get())
            .div_ceil(TABLE_GRAINS.get())
    }

    /// A directory in whole sectors, in bytes.
    pub(super) fn directory_len(&self) -> u64 {
        self.table_count().saturating_mul(4).next_multiple_of(SECTOR_SIZE)
    }

    /// A directory and its tables, in bytes.
    pub(super) fn tables_len(&self) -> u64 {
        let tables = self.table_count().saturating_mul(super::TABLE_LEN);
        self.directory_len().saturating_add(tables)
    }

    /// Refuses what cannot be read, but for places.
    fn check(&self) -> Result<(), Error> {
        if !VERSIONS.contains(&self.version) {
            let reason = format!("version {}, only 1 to 3 are known", self.version);
            return Err(Error::unsupported(reason).at(field::VERSION));
        }
        let unknown = self.flags & !KNOWN_FLAGS;
        if unknown != 0 {
            let reason = format!("unknown flag bit {}", unknown.trailing_zeros());
            return Err(Error::unsupported(reason).at(field::FLAGS));
        }
        if self.flags & LINE_ENDS_VALID != 0 && self.line_ends != *LINE_ENDS {
            let reason = "the line ends are changed: the file went through a transfer as text";
            return Err(Error::corrupt(reason).at(field::LINE_ENDS));
        }
        self.check_compression()?;
        if !self.grain_sectors.is_power_of_two() || !GRAIN_SECTORS.contains(&self.grain_sectors) {
            let (min, max) = (GRAIN_SECTORS.start(), GRAIN_SECTORS.end());
            let reason = format!(
                "grain size {} is not a power of 2 between {min} and {max} sectors",
                self.grain_sectors
            );
            return Err(Error::corrupt(reason).at(field::GRAIN_SIZE));
        }
        if u64::from(self.table_entries) != TABLE_ENTRIES {
            let reason = format!(
                "grain tables of {} entries, only {TABLE_ENTRIES} are known",
                self.table_entries
            );
            return Err(Error::unsupported(reason).at(field::TABLE_ENTRIES));
        }
        if self.capacity_sectors == 0 {
            // QEMU and VMware take it for a sign that the descriptor alone counts.
            return Err(Error::unsupported("capacity 0").at(field::CAPACITY));
        }
        safety::virtual_size(self.virtual_size()).map_err(|error| error.at(field::CAPACITY))?;
        Ok(())
    }

    fn check_compression(&self) -> Result<(), Error> {
        match (self.is_compressed(), self.compression) {
            (false, 0) | (true, 1) => {}
            (is_compressed, algorithm @ (0 | 1)) => {
                let flag = u8::from(is_compressed);
                let reason =
                    format!("compression algorithm {algorithm} and flag bit 16 ({flag}) contradict each other");
                return Err(Error::corrupt(reason).at(field::COMPRESSION));
            }
            (_, other) => {
                let reason = format!("compression algorithm {other}, only 0 (none) and 1 (deflate) are known");
                return Err(Error::unsupported(reason).at(field::COMPRESSION));
            }
        }
        if self.is_compressed() != (self.flags & MARKERS != 0) {
            let reason = "compressed grains without markers, or markers without compressed grains";
            return Err(Error::unsupported(reason).at(field::FLAGS));
        }
        Ok(())
    }

    /// The descriptor, if there is one; bounded, and in the file.
    pub(super) fn descriptor(&self, file_size: u64) -> Result<Option<Region>, Error> {
        if self.descriptor_sector == 0 || self.descriptor_sectors == 0 {
            return Ok(None);
        }
        let len = self.descriptor_sectors.saturating_mul(SECTOR_SIZE);
        safety::at_most("descriptor size", len, DESCRIPTOR_LEN_MAX)
            .map_err(|error| error.at(field::DESCRIPTOR_SIZE))?;
        placed("descriptor", self.descriptor_sector, len, &[], file_size)
            .map(Some)
            .map_err(|error| error.at(field::DESCRIPTOR_OFFSET))
    }

    /// The grain directory and the redundant one, if there is one; not on top of `taken` or each other.
    pub(super) fn directories(&self, taken: &[Region], file_size: u64) -> Result<(Region, Option<Region>), Error> {
        let len = self.table_count().saturating_mul(4);
        let directory = placed("grain directory", self.directory_sector, len, taken, file_size)
            .map_err(|error| error.at(field::DIRECTORY))?;
        if self.flags & REDUNDANT_TABLES == 0 || self.redundant_sector == 0 {
            return Ok((directory, None));
        }
        let taken = [taken, &[directory]].concat();
        let name = "redundant grain directory";
        let redundant = placed(name, self.redundant_sector, len, &taken, file_size)
            .map_err(|error| error.at(field::REDUNDANT_DIRECTORY))?;
        Ok((directory, Some(redundant)))
    }
}

/// Names the formats that share the extension, and the descriptor that stands alone.
fn refuse_others(head: &[u8]) -> Result<(), Error> {
    let others: [(&[u8], &str); 3] = [
        (b"COWD", "a VMFS sparse extent (COWD)"),
        (&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "a VMFS sparse extent (SESparse)"),
        (DESCRIPTOR_MAGIC, "a descriptor alone, whose disk is in other files"),
    ];
    match others.into_iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, what)) => Err(Error::unsupported(format!("the file is {what}")).at(0)),
        None => Ok(()),
    }
}

/// A part of the file, if it is inside and not on top of the header or of `taken`.
fn placed(name: &'static str, sector: u64, len: u64, taken: &[Region], file_size: u64) -> Result<Region, Error> {
    let header = Region {
        name: "header",
        offset: 0,
        len: HEADER_LEN,
    };
    let region = Region {
        name,
        offset: sector.saturating_mul(SECTOR_SIZE),
        len,
    };
    region.inside(file_size)?.keeps_off(&[header])?.keeps_off(taken)
}

fn parse(input: &[u8]) -> IResult<&[u8], Header> {
    let (input, (_, version, flags)) = (tag(&MAGIC[..]), le_u32, le_u32).parse(input)?;
    let (input, (capacity_sectors, grain_sectors)) = (le_u64, le_u64).parse(input)?;
    let (input, (descriptor_sector, descriptor_sectors, table_entries)) = (le_u64, le_u64, le_u32).parse(input)?;
    let (input, (redundant_sector, directory_sector, overhead_sectors)) = (le_u64, le_u64, le_u64).parse(input)?;
    let (input, (unclean, line_ends, compression)) = (le_u8, take(4_usize), le_u16).parse(input)?;
    let header = Header {
        version,
        flags,
        capacity_sectors,
        grain_sectors,
        descriptor_sector,
        descriptor_sectors,
        table_entries,
        redundant_sector,
        directory_sector,
        overhead_sectors,
        unclean: unclean != 0,
        line_ends: line_ends.first_chunk().copied().unwrap_or_default(),
        compression,
    };
    Ok((input, header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn render_then_parse_gives_it_back(capacity in 1..1_u64 << 37, flags: u32, unclean: bool, compression: u16) {
            let header = Header { flags, unclean, compression, ..Header::new(capacity, 128, 20) };
            let bytes = header.render();
            prop_assert_eq!(bytes.len(), 512);
            prop_assert_eq!(Header::parse(&bytes).unwrap(), header);
        }
    }

    #[test]
    fn the_parts_of_a_new_file_follow_each_other() {
        // 10 MiB: one table, as QEMU lays it out.
        let header = Header::new(20_480, 128, 20);
        assert_eq!((header.redundant_sector, header.directory_sector), (21, 26));
        assert_eq!(header.overhead_sectors, 128);
    }
}
