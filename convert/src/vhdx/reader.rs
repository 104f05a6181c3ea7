//! The map of a VHDX image.
//!
//! The BAT lists the payload blocks in the order of the disk, and after as many as make a chunk a block of a sector bitmap,
//! which only differencing disks use. The low three bits of an entry are its state, the high 44 its place in MiB.

use std::num::NonZeroU64;

use super::header::Header;
use super::log::Overlay;
use super::metadata::Metadata;
use super::region::Regions;
use super::{HEADER_SECTION, MIB, MIB_SIZE, SECTOR_SIZE, chunk_ratio};
use crate::blocks::{Bitmap, Block, BlockImage, Blocks};
use crate::pages::Pages;
use crate::safety::Region;
use crate::{Error, Format, Image, ReadAt};

const STATE_MASK: u64 = 7;
/// Bits 3 to 19.
const RESERVED: u64 = 0xf_fff8;
const MIB_SHIFT: u32 = 20;
pub(super) const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

/// Opens a VHDX image.
pub(crate) fn open<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    let reader = Reader::open(source).map_err(|error| error.with_format(Format::Vhdx))?;
    Ok(Box::new(BlockImage(reader)))
}

#[derive(Debug)]
struct Reader<S> {
    source: Overlay<S>,
    metadata: Metadata,
    chunk_ratio: NonZeroU64,
    bat: Region,
    /// What payload must keep away from.
    taken: [Region; 4],
    pages: Pages<8, u64>,
}

/// What an entry says about its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Zero,
    Data { offset: u64 },
}

/// Parses an entry of a payload block. Its place may be outside of the file.
fn parse_entry(entry: u64) -> Result<Payload, Error> {
    if entry & RESERVED != 0 {
        return Err(Error::corrupt(format!("BAT entry {entry:#018x} has reserved bits set")));
    }
    match entry & STATE_MASK {
        // Not present, undefined, zero, unmapped: without a parent, all of them are zeros.
        0..=3 => Ok(Payload::Zero),
        FULLY_PRESENT => Ok(Payload::Data {
            offset: (entry >> MIB_SHIFT).saturating_mul(MIB_SIZE),
        }),
        PARTIALLY_PRESENT => Err(Error::corrupt(format!(
            "BAT entry {entry:#018x} is partially present in a disk without a parent"
        ))),
        state => Err(Error::corrupt(format!(
            "BAT entry {entry:#018x} has the unknown state {state}"
        ))),
    }
}

impl<S: ReadAt> Reader<S> {
    fn open(source: S) -> Result<Self, Error> {
        let header = Header::read_current(&source)?;
        let file_size = source.size();
        let log = header.log();
        let source = Overlay::open(source, &header)?;
        let regions = Regions::read(&source, &[log], file_size)?;
        let metadata = Metadata::read(&source, regions.metadata)?;
        let chunk_ratio = chunk_ratio(metadata.block_size, u64::from(metadata.sector_size));
        let blocks = metadata.virtual_size.div_ceil(metadata.block_size.get());
        let entries = entry_count(blocks, chunk_ratio);
        let bat = Region {
            len: entries.saturating_mul(8),
            ..regions.bat
        };
        if bat.len > regions.bat.len {
            let reason = format!(
                "BAT region of {} bytes is too small for virtual disk size {}, which needs {}",
                regions.bat.len, metadata.virtual_size, bat.len
            );
            return Err(Error::corrupt(reason).at(bat.offset));
        }
        let reader = Self {
            source,
            metadata,
            chunk_ratio,
            bat,
            taken: [HEADER_SECTION, log, regions.bat, regions.metadata],
            pages: Pages::new(u64::from_le_bytes),
        };
        reader.check_bat(blocks)?;
        Ok(reader)
    }

    /// Where in the BAT the entry of a payload block is.
    fn entry_index(&self, block: u64) -> u64 {
        block.saturating_add(block / self.chunk_ratio)
    }

    fn entry_place(&self, block: u64) -> u64 {
        self.bat
            .offset
            .saturating_add(self.entry_index(block).saturating_mul(8))
    }

    /// How many blocks from `block` on are in its chunk.
    fn left_of_chunk(&self, block: u64) -> u64 {
        self.chunk_ratio.get().saturating_sub(block % self.chunk_ratio)
    }

    /// Where the payload is that an entry says, if it is wholly in the file and on nothing else. The last one may end with the
    /// disk.
    fn place(&self, block: u64, offset: u64) -> Result<Region, Error> {
        let start = block.saturating_mul(self.metadata.block_size.get());
        let payload = Region {
            name: "payload block",
            offset,
            len: self
                .metadata
                .block_size
                .get()
                .min(self.metadata.virtual_size.saturating_sub(start)),
        };
        payload.inside(self.source.size())?.keeps_off(&self.taken)?;
        self.source.keeps_off_payload(payload)?;
        Ok(payload)
    }

    fn payload(&self, block: u64, entry: u64) -> Result<Payload, Error> {
        let payload = parse_entry(entry).map_err(|error| error.at(self.entry_place(block)))?;
        if let Payload::Data { offset } = payload {
            self.place(block, offset)
                .map_err(|error| error.at(self.entry_place(block)))?;
        }
        Ok(payload)
    }

    /// Walks over the BAT once, and refuses payload that overlaps. It takes a bit for each MiB of the file.
    fn check_bat(&self, blocks: u64) -> Result<(), Error> {
        let mut used = Bitmap::of_file(self.source.size(), MIB)?;
        let mut block = 0;
        while block < blocks {
            let entries = self.pages.entries(&self.source, self.bat, self.entry_index(block))?;
            let here = (entries.len() as u64)
                .min(self.left_of_chunk(block))
                .min(blocks.saturating_sub(block));
            for (block, entry) in (block..block.saturating_add(here)).zip(entries.iter()) {
                let Payload::Data { offset } = self.payload(block, *entry)? else {
                    continue;
                };
                let first = offset / MIB;
                let end = first.saturating_add(self.place(block, offset)?.len.div_ceil(MIB_SIZE));
                if !(first..end).all(|part| used.set(part)) {
                    let reason = format!("the payload block at {offset} overlaps another one");
                    return Err(Error::corrupt(reason).at(self.entry_place(block)));
                }
            }
            block = block.saturating_add(here.max(1));
        }
        Ok(())
    }
}

/// How many entries the BAT of a disk without a parent has.
pub(super) fn entry_count(blocks: u64, chunk_ratio: NonZeroU64) -> u64 {
    blocks.saturating_add(blocks.saturating_sub(1) / chunk_ratio)
}

impl<S: ReadAt> Blocks for Reader<S> {
    const FORMAT: Format = Format::Vhdx;

    fn source(&self) -> &dyn ReadAt {
        &self.source
    }

    fn file_size(&self) -> u64 {
        self.source.file_size()
    }

    fn virtual_size(&self) -> u64 {
        self.metadata.virtual_size
    }

    fn block_size(&self) -> NonZeroU64 {
        self.metadata.block_size
    }

    fn variant(&self) -> &'static str {
        if self.metadata.fixed { "fixed" } else { "dynamic" }
    }

    fn warnings(&self) -> Vec<String> {
        let sector_size = self.metadata.sector_size;
        let replayed = || "the image was not closed properly; its log is replayed in memory".to_owned();
        let sectors = || format!("logical sectors of {sector_size} bytes, which a conversion leaves behind");
        let warnings = [
            self.source.is_replayed().then(replayed),
            (sector_size != SECTOR_SIZE).then(sectors),
        ];
        warnings.into_iter().flatten().collect()
    }

    fn block(&self, index: u64) -> Result<Block, Error> {
        let entries = self.pages.entries(&self.source, self.bat, self.entry_index(index))?;
        let here = usize::try_from(self.left_of_chunk(index)).unwrap_or(usize::MAX);
        let zeros = entries
            .iter()
            .take(here)
            .take_while(|entry| matches!(parse_entry(**entry), Ok(Payload::Zero)))
            .count();
        match entries.first() {
            Some(entry) if zeros == 0 => Ok(match self.payload(index, *entry)? {
                Payload::Data { offset } => Block::Data { offset },
                Payload::Zero => Block::Zero { count: 1 },
            }),
            _ => Ok(Block::Zero {
                count: (zeros as u64).max(1),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_states_and_places() {
        for (entry, expected) in [
            (0, Ok(Payload::Zero)),
            (1, Ok(Payload::Zero)),
            (2, Ok(Payload::Zero)),
            (3 | 5 << 20, Ok(Payload::Zero)),
            (6 | 5 << 20, Ok(Payload::Data { offset: 5 << 20 })),
            (4, Err("BAT entry 0x0000000000000004 has the unknown state 4")),
            (5, Err("BAT entry 0x0000000000000005 has the unknown state 5")),
            (
                7,
                Err("BAT entry 0x0000000000000007 is partially present in a disk without a parent"),
            ),
            (14, Err("BAT entry 0x000000000000000e has reserved bits set")),
        ] {
            let parsed = parse_entry(entry);
            assert_eq!(
                parsed.as_ref().map_err(Error::reason),
                expected.as_ref().map_err(|reason| *reason),
                "{entry:#x}"
            );
        }
    }

    #[test]
    fn the_bat_has_no_bitmap_entry_at_its_end() {
        let ratio = NonZeroU64::new(4).unwrap();
        for (blocks, entries) in [(0, 0), (1, 1), (4, 4), (5, 6), (8, 9), (9, 11)] {
            assert_eq!(entry_count(blocks, ratio), entries, "{blocks}");
        }
    }
}
