//! The metadata region: a table of items, and the items.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | signature `metadata` |
//! | 8 | 2 | reserved |
//! | 10 | 2 | entry count |
//! | 12 | 20 | reserved |
//! | 32 | | entries: item GUID (16 bytes), offset (4), length (4), flags (4), reserved (4) |
//!
//! The offset of an item counts from the start of the region and lies behind the 64 KiB of the table.
//!
//! Format: MS-VHDX, "Metadata Region".

use std::num::NonZeroU64;

use nom::bytes::complete::{tag, take};
use nom::multi::count;
use nom::number::complete::{le_u16, le_u32};
use nom::{IResult, Parser};

use super::header::guid as le_guid;
use super::{Guid, MIB_SIZE, PART_LEN, guid, spell};
use crate::safety::{self, Region};
use crate::{Error, ErrorKind, ReadAt};

const SIGNATURE: &[u8; 8] = b"metadata";
/// The specification's bound: as many as fit the 64 KiB.
const ENTRY_COUNT_MAX: u16 = 2047;
const ENTRY_COUNT_OFFSET: u64 = 10;
const ENTRIES_OFFSET: u64 = 32;

const FILE_PARAMETERS: Guid = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const VIRTUAL_DISK_SIZE: Guid = guid(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
const VIRTUAL_DISK_ID: Guid = guid(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
const LOGICAL_SECTOR_SIZE: Guid = guid(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR_SIZE: Guid = guid(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
const PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c);

/// Flags of an entry: the item is the user's, is about the disk rather than the file, has to be understood.
const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;
/// Flags of the file parameters.
const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
/// The specification's bounds on the size of a block.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = MIB_SIZE..=256 << 20;

/// What the items say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) block_size: NonZeroU64,
    /// Whether the disk is fixed: blocks stay in the file whatever they hold.
    pub(super) fixed: bool,
    /// In bytes.
    pub(super) virtual_size: u64,
    pub(super) sector_size: u32,
    /// The identifier that a guest can ask for (SCSI page 83).
    pub(super) disk_id: Guid,
}

/// An entry of the table, and where it stands in the region.
struct Entry {
    item: Guid,
    offset: u32,
    length: u32,
    flags: u32,
    place: u64,
}

impl Metadata {
    /// Reads the table and the items of a region that has been checked to be in the file.
    pub(super) fn read(source: &dyn ReadAt, region: Region) -> Result<Self, Error> {
        let table = Region {
            name: "metadata table",
            len: PART_LEN,
            ..region
        };
        let entries =
            parse_entries(&safety::read_region(source, table)?).map_err(|error| error.shifted(region.offset))?;
        let items = Items {
            source,
            region,
            entries,
        };
        items
            .check_known()
            .and_then(|()| Self::of(&items))
            .map_err(|error| error.shifted(region.offset))
    }

    fn of(items: &Items<'_>) -> Result<Self, Error> {
        let (place, parameters) = items.read::<8>("file parameters", FILE_PARAMETERS)?;
        let (parameters, _) = parameters.as_chunks::<4>();
        let (block_size, flags) = match parameters {
            [block_size, flags] => (u32::from_le_bytes(*block_size), u32::from_le_bytes(*flags)),
            _ => (0, 0),
        };
        if flags & HAS_PARENT != 0 {
            let reason = "the disk is differencing and needs its parent (file parameters)";
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(place));
        }
        let block_size = u64::from(block_size);
        let block_size = NonZeroU64::new(block_size)
            .filter(|size| size.is_power_of_two() && BLOCK_SIZES.contains(&size.get()))
            .ok_or_else(|| {
                let reason = format!("block size {block_size} is not a power of 2 between 1 MiB and 256 MiB");
                Error::corrupt(reason).at(place)
            })?;
        let (place, sector_size) = items.read("logical sector size", LOGICAL_SECTOR_SIZE)?;
        let sector_size = u32::from_le_bytes(sector_size);
        if !matches!(sector_size, 512 | 4096) {
            let reason = format!("logical sector size {sector_size}, only 512 and 4096 are known");
            return Err(Error::unsupported(reason).at(place));
        }
        let (place, virtual_size) = items.read("virtual disk size", VIRTUAL_DISK_SIZE)?;
        let virtual_size = u64::from_le_bytes(virtual_size);
        safety::virtual_size(virtual_size).map_err(|error| error.at(place))?;
        if !virtual_size.is_multiple_of(u64::from(sector_size)) {
            let reason = format!("virtual disk size {virtual_size} is not a multiple of the sector size {sector_size}");
            return Err(Error::corrupt(reason).at(place));
        }
        Ok(Self {
            block_size,
            fixed: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            virtual_size,
            sector_size,
            disk_id: items.read("virtual disk id", VIRTUAL_DISK_ID)?.1,
        })
    }

    /// The table, without the zeros that follow it, and the items.
    pub(super) fn render(&self) -> (Vec<u8>, Vec<u8>) {
        let flags = if self.fixed { LEAVE_BLOCKS_ALLOCATED } else { 0 };
        let block_size = u32::try_from(self.block_size.get()).expect("at most 256 MiB");
        let disk = IS_VIRTUAL_DISK | IS_REQUIRED;
        let items: [(Guid, Vec<u8>, u32); 5] = [
            (
                FILE_PARAMETERS,
                [block_size.to_le_bytes(), flags.to_le_bytes()].concat(),
                IS_REQUIRED,
            ),
            (VIRTUAL_DISK_SIZE, self.virtual_size.to_le_bytes().to_vec(), disk),
            (VIRTUAL_DISK_ID, self.disk_id.to_vec(), disk),
            (LOGICAL_SECTOR_SIZE, self.sector_size.to_le_bytes().to_vec(), disk),
            (PHYSICAL_SECTOR_SIZE, self.sector_size.to_le_bytes().to_vec(), disk),
        ];
        let mut table = SIGNATURE.to_vec();
        table.extend([0; 2]);
        table.extend(5_u16.to_le_bytes());
        table.extend([0; 20]);
        let mut values = Vec::new();
        for (item, value, flags) in items {
            let offset = PART_LEN.saturating_add(values.len() as u64);
            table.extend(item);
            table.extend(u32::try_from(offset).expect("a few bytes").to_le_bytes());
            table.extend(u32::try_from(value.len()).expect("a few bytes").to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend([0; 4]);
            values.extend(value);
        }
        (table, values)
    }
}

/// The items of a region. Places in errors count from the start of the region.
struct Items<'a> {
    source: &'a dyn ReadAt,
    region: Region,
    entries: Vec<Entry>,
}

impl Items<'_> {
    /// Refuses items that have to be understood and are not, and such that are there twice.
    fn check_known(&self) -> Result<(), Error> {
        let known = [
            FILE_PARAMETERS,
            VIRTUAL_DISK_SIZE,
            VIRTUAL_DISK_ID,
            LOGICAL_SECTOR_SIZE,
            PHYSICAL_SECTOR_SIZE,
        ];
        let mut seen = Vec::new();
        for entry in &self.entries {
            let name = spell(&entry.item);
            if entry.item == PARENT_LOCATOR {
                let reason = "the disk is differencing and needs its parent (parent locator)";
                return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(entry.place));
            }
            if !known.contains(&entry.item) || entry.flags & IS_USER != 0 {
                if entry.flags & IS_REQUIRED != 0 {
                    let reason = format!("the required metadata item {name} is not known");
                    return Err(Error::unsupported(reason).at(entry.place));
                }
                continue;
            }
            if seen.contains(&entry.item) {
                return Err(Error::corrupt(format!("the metadata item {name} is there twice")).at(entry.place));
            }
            seen.push(entry.item);
        }
        Ok(())
    }

    /// Reads an item that every file has and whose length is known, and says where its entry is.
    fn read<const N: usize>(&self, name: &'static str, item: Guid) -> Result<(u64, [u8; N]), Error> {
        let found = |entry: &&Entry| entry.item == item && entry.flags & IS_USER == 0;
        let entry = self
            .entries
            .iter()
            .find(found)
            .ok_or_else(|| Error::corrupt(format!("the metadata item {name} is missing")).at(ENTRY_COUNT_OFFSET))?;
        let at = |error: Error| error.at(entry.place);
        if u64::from(entry.length) != N as u64 {
            let reason = format!("the metadata item {name} has {} bytes instead of {N}", entry.length);
            return Err(at(Error::corrupt(reason)));
        }
        let table = Region {
            name: "metadata table",
            offset: 0,
            len: PART_LEN,
        };
        let value = Region {
            name,
            offset: u64::from(entry.offset),
            len: N as u64,
        };
        value.keeps_off(&[table]).map_err(at)?;
        if value.offset.saturating_add(value.len) > self.region.len {
            let reason = format!("the metadata item {name} at {} reaches beyond its region", value.offset);
            return Err(at(Error::corrupt(reason)));
        }
        let mut bytes = [0; N];
        safety::read_into(self.source, &mut bytes, self.region.offset.saturating_add(value.offset))?;
        Ok((entry.place, bytes))
    }
}

fn parse_entries(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    let (rest, entry_count) =
        parse_start(bytes).map_err(|_| Error::corrupt("the signature of the metadata table is missing").at(0))?;
    safety::at_most("entry count", u64::from(entry_count), u64::from(ENTRY_COUNT_MAX))
        .map_err(|error| error.at(ENTRY_COUNT_OFFSET))?;
    let (_, mut entries) = count(parse_entry, usize::from(entry_count))
        .parse(rest)
        .map_err(|_| Error::corrupt("the metadata table ends inside of its entries").at(ENTRY_COUNT_OFFSET))?;
    for (place, entry) in (ENTRIES_OFFSET..).step_by(32).zip(&mut entries) {
        entry.place = place;
    }
    Ok(entries)
}

fn parse_start(input: &[u8]) -> IResult<&[u8], u16> {
    let (input, (_, _reserved, entry_count, _more)) =
        (tag(&SIGNATURE[..]), le_u16, le_u16, take(20_usize)).parse(input)?;
    Ok((input, entry_count))
}

fn parse_entry(input: &[u8]) -> IResult<&[u8], Entry> {
    let (input, (item, offset, length, flags, _reserved)) = (le_guid, le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let entry = Entry {
        item,
        offset,
        length,
        flags,
        place: 0,
    };
    Ok((input, entry))
}
