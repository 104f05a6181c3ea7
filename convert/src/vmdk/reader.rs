//! The map of a VMDK image of one file.

use std::num::NonZeroU64;

use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::descriptor::{CreateType, Descriptor};
use super::header::{DIRECTORY_AT_END, HEADER_LEN, Header, REDUNDANT_TABLES, ZERO_GRAINS, field};
use super::{SECTOR_SIZE, TABLE_GRAINS, TABLE_LEN};
use crate::blocks::{Block, BlockImage, Blocks};
use crate::pages::Pages;
use crate::safety::{self, Region};
use crate::{Codec, Error, Format, Image, ReadAt};

/// The entry of a grain that was never written.
const ABSENT: u32 = 0;
/// The entry of a grain that reads as zeros, in files whose header says that there are such.
const ZERO: u32 = 1;
/// A marker before a compressed grain: its sector, and how many bytes follow.
const MARKER_LEN: u64 = 12;
/// What the footer's marker says at 12, behind a length of zero.
const FOOTER_MARKER: u32 = 3;

/// Opens a VMDK image of one file.
pub(crate) fn open<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    let reader = Reader::open(source).map_err(|error| error.with_format(Format::Vmdk))?;
    Ok(Box::new(BlockImage(reader)))
}

#[derive(Debug)]
struct Reader<S> {
    source: S,
    header: Header,
    create_type: CreateType,
    directory: Region,
    /// What grains and tables must keep away from.
    taken: Vec<Region>,
    pages: Pages<4, u32>,
}

impl<S: ReadAt> Reader<S> {
    fn open(source: S) -> Result<Self, Error> {
        let file_size = source.size();
        let start = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN.min(file_size),
        };
        let bytes = safety::read_region(&source, start)?;
        refuse_others(&bytes)?;
        let header = Header::parse(&bytes)?;
        header.check()?;
        let region = header.descriptor(file_size)?;
        let descriptor =
            Descriptor::parse(&safety::read_region(&source, region)?).map_err(|error| error.shifted(region.offset))?;
        check_agreement(&header, &descriptor)?;
        let header = with_footer(&source, header)?;
        let mut taken = vec![start, region];
        let (directory, redundant) = header.directories(&taken, file_size)?;
        taken.push(directory);
        taken.extend(redundant);
        let reader = Self {
            source,
            header,
            create_type: descriptor.create_type,
            directory,
            taken,
            pages: Pages::new(u32::from_le_bytes),
        };
        reader.check_directory()?;
        Ok(reader)
    }

    /// Refuses more grain tables than the file has room for; each is known to be where it may be.
    fn check_directory(&self) -> Result<(), Error> {
        let mut count: u64 = 0;
        for index in 0..self.header.table_count() {
            count = count.saturating_add(u64::from(self.table(index)?.is_some()));
        }
        let room = self.source.size().div_ceil(TABLE_LEN);
        if count > room {
            let reason = format!(
                "the grain directory refers to {count} grain tables, more than a file of {} bytes can hold",
                self.source.size()
            );
            return Err(Error::corrupt(reason).at(self.directory.offset));
        }
        Ok(())
    }

    /// The grain table that entry `index` of the directory says.
    fn table(&self, index: u64) -> Result<Option<Region>, Error> {
        let entries = self.pages.entries(&self.source, self.directory, index)?;
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
            .inside(self.source.size())
            .and_then(|table| table.keeps_off(&self.taken))
            .map(Some)
            .map_err(|error| error.at(self.directory.offset.saturating_add(index.saturating_mul(4))))
    }

    fn is_zero(&self, entry: u32) -> bool {
        entry == ABSENT || entry == ZERO && self.header.flags & ZERO_GRAINS != 0
    }

    /// The grain at a sector. It may be cut off by the end of the file, and is zeros from there on, as QEMU does not pad it.
    fn grain(&self, index: u64, sector: u32) -> Result<Block, Error> {
        let offset = u64::from(sector).saturating_mul(SECTOR_SIZE);
        if !self.header.is_compressed() {
            let grain = Region {
                name: "grain",
                offset,
                len: self.header.grain_size().get(),
            };
            Region { len: 1, ..grain }.inside(self.source.size())?;
            grain.keeps_off(&self.taken)?;
            return Ok(Block::Data { offset });
        }
        let marker = Region {
            name: "grain marker",
            offset,
            len: MARKER_LEN,
        };
        let bytes = safety::read_region(&self.source, marker.inside(self.source.size())?.keeps_off(&self.taken)?)?;
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
        grain.inside(self.source.size())?.keeps_off(&self.taken)?;
        Ok(Block::Compressed {
            offset: grain.offset,
            len: grain.len,
            codec: Codec::Zlib,
        })
    }
}

/// Names the formats that share the extension, and the descriptor that stands alone.
fn refuse_others(head: &[u8]) -> Result<(), Error> {
    let others: [(&[u8], &str); 3] = [
        (b"COWD", "a VMFS sparse extent (COWD)"),
        (&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "a VMFS sparse extent (SESparse)"),
        (
            b"# Disk DescriptorFile",
            "a descriptor alone, whose disk is in other files",
        ),
    ];
    match others.into_iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, what)) => Err(Error::unsupported(format!("the file is {what}")).at(0)),
        None => Ok(()),
    }
}

fn check_agreement(header: &Header, descriptor: &Descriptor) -> Result<(), Error> {
    if descriptor.sectors != header.capacity_sectors {
        let reason = format!(
            "the capacity is {} sectors, the extent in the descriptor has {}",
            header.capacity_sectors, descriptor.sectors
        );
        return Err(Error::corrupt(reason).at(field::CAPACITY));
    }
    if header.is_compressed() != (descriptor.create_type == CreateType::StreamOptimized) {
        let reason = format!(
            "create type {} and flag bit 16 contradict each other",
            descriptor.create_type.name()
        );
        return Err(Error::corrupt(reason).at(field::FLAGS));
    }
    Ok(())
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

impl<S: ReadAt> Blocks for Reader<S> {
    const FORMAT: Format = Format::Vmdk;

    fn source(&self) -> &dyn ReadAt {
        &self.source
    }

    fn virtual_size(&self) -> u64 {
        self.header.virtual_size()
    }

    fn block_size(&self) -> NonZeroU64 {
        self.header.grain_size()
    }

    fn variant(&self) -> &'static str {
        self.create_type.name()
    }

    fn warnings(&self) -> Vec<String> {
        let warning = || "the image was not closed properly; what was written last may be missing".to_owned();
        self.header.unclean.then(warning).into_iter().collect()
    }

    fn block(&self, index: u64) -> Result<Block, Error> {
        let within = index % TABLE_GRAINS;
        let Some(table) = self.table(index / TABLE_GRAINS)? else {
            return Ok(Block::Zero {
                count: TABLE_GRAINS.get().saturating_sub(within),
            });
        };
        let entries = self.pages.entries(&self.source, table, within)?;
        let zeros = entries.iter().take_while(|entry| self.is_zero(**entry)).count();
        match entries.first() {
            Some(sector) if zeros == 0 => {
                let place = table.offset.saturating_add(within.saturating_mul(4));
                self.grain(index, *sector).map_err(|error| error.at(place))
            }
            _ => Ok(Block::Zero {
                count: (zeros as u64).max(1),
            }),
        }
    }
}
