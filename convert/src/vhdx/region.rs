//! The region table, of which there are two copies.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | signature `regi` |
//! | 4 | 4 | checksum, of 64 KiB |
//! | 8 | 4 | entry count |
//! | 12 | 4 | reserved |
//! | 16 | | entries: GUID (16 bytes), file offset (8), length (4), required (4) |
//!
//! Format: MS-VHDX, "Region Table".

use nom::bytes::complete::tag;
use nom::multi::count;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::header::guid as le_guid;
use super::{Guid, HEADER_SECTION, MIB_SIZE, PART_LEN, check_sum, guid, seal, spell};
use crate::safety::{self, Region};
use crate::{Error, ErrorKind, ReadAt};

const SIGNATURE: &[u8; 4] = b"regi";
/// The specification's bound: as many as fit the 64 KiB.
const ENTRY_COUNT_MAX: u32 = 2047;
const ENTRY_COUNT_OFFSET: u64 = 8;
const ENTRIES_OFFSET: u64 = 16;
const BAT: Guid = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
const METADATA: Guid = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
/// Whether a reader has to understand a region.
const REQUIRED: u32 = 1;

/// Where the two tables are that every file has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
}

/// An entry as it stands in the file.
struct Entry {
    guid: Guid,
    offset: u64,
    length: u32,
    required: u32,
}

impl Regions {
    /// Reads the first region table that is valid, and holds its regions against each other and the file.
    ///
    /// `taken` is where no region may be.
    pub(super) fn read(source: &dyn ReadAt, taken: &[Region], file_size: u64) -> Result<Self, Error> {
        let [first, second] = [PART_LEN.saturating_mul(3), PART_LEN.saturating_mul(4)];
        let (offset, entries) = match read_entries(source, first) {
            Ok(entries) => (first, entries),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => match read_entries(source, second) {
                Ok(entries) => (second, entries),
                Err(other) if other.kind() == ErrorKind::Io => return Err(other),
                Err(_) => return Err(error),
            },
        };
        Self::of(&entries, taken, file_size).map_err(|error| error.shifted(offset))
    }

    fn of(entries: &[Entry], taken: &[Region], file_size: u64) -> Result<Self, Error> {
        let mut taken = [&[HEADER_SECTION][..], taken].concat();
        let (mut bat, mut metadata) = (None, None);
        for (place, entry) in (ENTRIES_OFFSET..).step_by(32).zip(entries) {
            let (name, known) = match entry.guid {
                BAT => ("BAT region", Some(&mut bat)),
                METADATA => ("metadata region", Some(&mut metadata)),
                _ => ("unknown region", None),
            };
            let region = entry
                .placed(name, file_size)
                .and_then(|region| region.keeps_off(&taken))
                .map_err(|error| error.at(place))?;
            taken.push(region);
            match known {
                Some(known) if known.is_none() => *known = Some(region),
                Some(_) => return Err(Error::corrupt(format!("there are two of the {name}")).at(place)),
                None if entry.required & REQUIRED != 0 => {
                    let reason = format!("the required region {} is not known", spell(&entry.guid));
                    return Err(Error::unsupported(reason).at(place));
                }
                None => {}
            }
        }
        let missing = |name: &str| Error::corrupt(format!("there is no {name} region")).at(ENTRY_COUNT_OFFSET);
        Ok(Self {
            bat: bat.ok_or_else(|| missing("BAT"))?,
            metadata: metadata.ok_or_else(|| missing("metadata"))?,
        })
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 4]);
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend([0; 4]);
        for (guid, region) in [(BAT, self.bat), (METADATA, self.metadata)] {
            bytes.extend(guid);
            bytes.extend(region.offset.to_le_bytes());
            bytes.extend(u32::try_from(region.len).expect("a region of a few MiB").to_le_bytes());
            bytes.extend(REQUIRED.to_le_bytes());
        }
        bytes.resize(usize::try_from(PART_LEN).expect("64 KiB"), 0);
        seal(&mut bytes);
        bytes
    }
}

impl Entry {
    fn placed(&self, name: &'static str, file_size: u64) -> Result<Region, Error> {
        let region = Region {
            name,
            offset: self.offset,
            len: u64::from(self.length),
        };
        if region.len == 0 || !region.len.is_multiple_of(MIB_SIZE) {
            let reason = format!("{name} length {} is not a multiple of {MIB_SIZE}", region.len);
            return Err(Error::corrupt(reason));
        }
        region.aligned(MIB_SIZE)?.inside(file_size)
    }
}

fn read_entries(source: &dyn ReadAt, offset: u64) -> Result<Vec<Entry>, Error> {
    let region = Region {
        name: "region table",
        offset,
        len: PART_LEN,
    };
    let bytes = safety::read_region(source, region.inside(source.size()).map_err(|error| error.at(offset))?)?;
    parse_entries(&bytes).map_err(|error| error.shifted(offset))
}

fn parse_entries(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    let (rest, (stored, entry_count)) =
        parse_start(bytes).map_err(|_| Error::corrupt("the signature of the region table is missing").at(0))?;
    check_sum("region table", bytes, stored)?;
    safety::at_most("entry count", u64::from(entry_count), u64::from(ENTRY_COUNT_MAX))
        .map_err(|error| error.at(ENTRY_COUNT_OFFSET))?;
    let entry_count = usize::try_from(entry_count).unwrap_or_default();
    let (_, entries) = count(parse_entry, entry_count)
        .parse(rest)
        .map_err(|_| Error::corrupt("the region table ends inside of its entries").at(ENTRY_COUNT_OFFSET))?;
    Ok(entries)
}

fn parse_start(input: &[u8]) -> IResult<&[u8], (u32, u32)> {
    let (input, (_, stored, entry_count, _reserved)) = (tag(&SIGNATURE[..]), le_u32, le_u32, le_u32).parse(input)?;
    Ok((input, (stored, entry_count)))
}

fn parse_entry(input: &[u8]) -> IResult<&[u8], Entry> {
    let (input, (guid, offset, length, required)) = (le_guid, le_u64, le_u32, le_u32).parse(input)?;
    let entry = Entry {
        guid,
        offset,
        length,
        required,
    };
    Ok((input, entry))
}
