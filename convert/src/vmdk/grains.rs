//! The grains of a sparse extent, found by its directory and tables.
//!
//! All places are those of the extent's file, which may be a part of the source. The pages of tables are shared by all extents of
//! a disk, and so are kept by their places in the source.

use std::num::NonZeroU64;
use std::ops::Range;

use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::header::{DIRECTORY_AT_END, HEADER_LEN, Header, REDUNDANT_TABLES, ZERO_GRAINS, field};
use super::{SECTOR_SIZE, TABLE_GRAINS, TABLE_LEN};
use crate::blocks::{Block, map_block};
use crate::envelope::Slice;
use crate::map::Mapping;
use crate::pages::{self, Entries};
use crate::safety::{self, Region};
use crate::{Codec, Error, ReadAt};

/// The entry of a grain that was never written.
const ABSENT: u32 = 0;
/// The entry of a grain that reads as zeros, in files whose header says that there are such.
const ZERO: u32 = 1;
/// A marker before a compressed grain: its sector, and how many bytes follow.
const MARKER_LEN: u64 = 12;
/// What the footer's marker says at 12, behind a length of zero.
const FOOTER_MARKER: u32 = 3;

/// Pages of grain directories and tables.
pub(super) type Pages = pages::Pages<4, u32>;

/// The file of an extent, with the pages of the source that it is in.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub(super) bytes: &'a Slice<&'a dyn ReadAt>,
    pub(super) pages: &'a Pages,
}

impl File<'_> {
    fn size(self) -> u64 {
        self.bytes.size()
    }

    fn entries(self, table: Region, index: u64) -> Result<Entries<u32>, Error> {
        let offset = table.offset.saturating_add(self.bytes.start());
        self.pages
            .entries(self.bytes.source(), Region { offset, ..table }, index)
    }
}

/// Where the grains of an extent are.
#[derive(Debug)]
pub(super) struct Grains {
    header: Header,
    directory: Region,
    /// What grains and tables must keep away from.
    taken: Vec<Region>,
}

impl Grains {
    /// Takes a header that has been checked, and the place of the descriptor if there is one.
    pub(super) fn open(file: File<'_>, header: Header, descriptor: Option<Region>) -> Result<Self, Error> {
        let header = with_footer(file.bytes, header)?;
        let start = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN,
        };
        let mut taken = vec![start];
        taken.extend(descriptor);
        let (directory, redundant) = header.directories(&taken, file.size())?;
        taken.push(directory);
        taken.extend(redundant);
        let grains = Self {
            header,
            directory,
            taken,
        };
        grains.check_directory(file)?;
        Ok(grains)
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn grain_size(&self) -> NonZeroU64 {
        self.header.grain_size()
    }

    /// Finds what is read at the start of `range`, which ends where the extent does. Places are those of the file.
    pub(super) fn map(&self, file: File<'_>, range: Range<u64>) -> Result<Mapping, Error> {
        map_block(file.bytes, self.grain_size(), range, |index| self.block(file, index))
    }

    /// Finds grain `index`.
    pub(super) fn block(&self, file: File<'_>, index: u64) -> Result<Block, Error> {
        let within = index % TABLE_GRAINS;
        let Some(table) = self.table(file, index / TABLE_GRAINS)? else {
            let absent = self.absent_tables(file, index / TABLE_GRAINS)?;
            return Ok(Block::Zero {
                count: absent.saturating_mul(TABLE_GRAINS.get()).saturating_sub(within),
            });
        };
        let entries = file.entries(table, within)?;
        let zeros = entries.iter().take_while(|entry| self.is_zero(**entry)).count();
        match entries.first() {
            Some(sector) if zeros == 0 => {
                let place = table.offset.saturating_add(within.saturating_mul(4));
                self.grain(file, index, *sector).map_err(|error| error.at(place))
            }
            _ => Ok(Block::Zero {
                count: (zeros as u64).max(1),
            }),
        }
    }

    /// Refuses more grain tables than the file has room for; each is known to be where it may be.
    fn check_directory(&self, file: File<'_>) -> Result<(), Error> {
        let (mut count, mut index): (u64, u64) = (0, 0);
        while index < self.header.table_count() {
            if self.table(file, index)?.is_some() {
                count = count.saturating_add(1);
                index = index.saturating_add(1);
            } else {
                index = index.saturating_add(self.absent_tables(file, index)?);
            }
        }
        let room = file.size().div_ceil(TABLE_LEN);
        if count > room {
            let reason = format!(
                "the grain directory refers to {count} grain tables, more than a file of {} bytes can hold",
                file.size()
            );
            return Err(Error::corrupt(reason).at(self.directory.offset));
        }
        Ok(())
    }

    /// The grain table that entry `index` of the directory says.
    fn table(&self, file: File<'_>, index: u64) -> Result<Option<Region>, Error> {
        let entries = file.entries(self.directory, index)?;
        let sector = entries.first().copied().unwrap_or(ABSENT);
        if sector == ABSENT {
            return Ok(None);
        }
        let table = Region {
            name: "grain table",
            offset: u64::from(sector).saturating_mul(SECTOR_SIZE),
            len: TABLE_LEN,
        };
        table
            .inside(file.size())
            .and_then(|table| table.keeps_off(&self.taken))
            .map(Some)
            .map_err(|error| error.at(self.directory.offset.saturating_add(index.saturating_mul(4))))
    }

    /// How many tables are absent from `index` on, which is; looks no further than a page of the directory.
    fn absent_tables(&self, file: File<'_>, index: u64) -> Result<u64, Error> {
        let entries = file.entries(self.directory, index)?;
        let absent = entries.iter().take_while(|sector| **sector == ABSENT).count();
        Ok((absent as u64).max(1))
    }

    fn is_zero(&self, entry: u32) -> bool {
        entry == ABSENT || entry == ZERO && self.header.flags & ZERO_GRAINS != 0
    }

    /// The grain at a sector. It may be cut off by the end of the file, and is zeros from there on, as QEMU does not pad it.
    fn grain(&self, file: File<'_>, index: u64, sector: u32) -> Result<Block, Error> {
        let offset = u64::from(sector).saturating_mul(SECTOR_SIZE);
        if !self.header.is_compressed() {
            let grain = Region {
                name: "grain",
                offset,
                len: self.header.grain_size().get(),
            };
            Region { len: 1, ..grain }.inside(file.size())?;
            grain.keeps_off(&self.taken)?;
            return Ok(Block::Data { offset });
        }
        let marker = Region {
            name: "grain marker",
            offset,
            len: MARKER_LEN,
        };
        let bytes = safety::read_region(file.bytes, marker.inside(file.size())?.keeps_off(&self.taken)?)?;
        let (_, (place, len)) =
            parse_marker(&bytes).map_err(|_| Error::corrupt("the file ends inside of a grain marker"))?;
        let expected = index.saturating_mul(self.header.grain_sectors);
        if place != expected {
            let reason = format!("the grain marker at {offset} is of sector {place} instead of {expected}");
            return Err(Error::corrupt(reason));
        }
        let grain = Region {
            name: "compressed grain",
            offset: offset.saturating_add(MARKER_LEN),
            len: u64::from(len),
        };
        // A stream that does not shrink is larger than its grain by a few bytes for each 64 KiB; no grain is twice its size.
        let max = self.header.grain_size().get().saturating_mul(2);
        safety::at_most("compressed grain of", grain.len, max)?;
        if len == 0 {
            return Err(Error::corrupt(format!("the compressed grain at {offset} is empty")));
        }
        grain.inside(file.size())?.keeps_off(&self.taken)?;
        Ok(Block::Compressed {
            offset: grain.offset,
            len: grain.len,
            codec: Codec::Zlib,
        })
    }
}

/// The header with the place of the directory, which the footer knows if the header does not.
fn with_footer(source: &dyn ReadAt, header: Header) -> Result<Header, Error> {
    if header.directory_sector != DIRECTORY_AT_END {
        return Ok(header);
    }
    // The marker of the footer, the footer, and the end-of-stream marker.
    let sectors = Region {
        name: "footer",
        offset: source.size().saturating_sub(3 * HEADER_LEN),
        len: 3 * HEADER_LEN,
    };
    let bytes = safety::read_region(
        source,
        sectors
            .inside(source.size())
            .map_err(|error| error.at(field::DIRECTORY))?,
    )?;
    let (parts, _) = bytes.as_chunks::<512>();
    let [marker, footer, end] = parts else {
        return Err(Error::corrupt("the file ends inside of the footer"));
    };
    let read = || {
        let is_marker = |bytes, kind| parse_metadata_marker(bytes).is_ok_and(|(_, found)| found == (0, kind));
        if !is_marker(marker, FOOTER_MARKER) {
            return Err(Error::corrupt("the marker of the footer is missing").at(0));
        }
        if !is_marker(end, 0) {
            return Err(Error::corrupt("the end-of-stream marker is missing").at(2 * HEADER_LEN));
        }
        let footer = Header::parse(footer).map_err(|error| error.shifted(HEADER_LEN))?;
        // All that a footer may know better is where the directories are.
        let same = Header {
            directory_sector: header.directory_sector,
            redundant_sector: header.redundant_sector,
            overhead_sectors: header.overhead_sectors,
            flags: footer.flags & !REDUNDANT_TABLES | header.flags & REDUNDANT_TABLES,
            ..footer.clone()
        };
        if same != header || footer.directory_sector == DIRECTORY_AT_END {
            return Err(Error::corrupt("the footer is unlike the header").at(HEADER_LEN));
        }
        Ok(footer)
    };
    read().map_err(|error| error.shifted(sectors.offset))
}

/// The sector and the length of a marker before a grain.
fn parse_marker(input: &[u8]) -> IResult<&[u8], (u64, u32)> {
    (le_u64, le_u32).parse(input)
}

/// The length and the type of a marker before anything else.
fn parse_metadata_marker(input: &[u8]) -> IResult<&[u8], (u32, u32)> {
    let (input, (_sectors, len, kind)) = (le_u64, le_u32, le_u32).parse(input)?;
    Ok((input, (len, kind)))
}
