//! The map of a VDI image.

use std::num::NonZeroU64;

use super::header::{HEADER_LEN, Header, TYPE_FIXED};
use super::{ABSENT, BLOCK_SIZE, ZERO};
use crate::blocks::{Bitmap, Block, BlockImage, Blocks};
use crate::pages::Pages;
use crate::safety::{self, Region};
use crate::{Error, Format, Image, ReadAt};

/// Opens a VDI image.
pub(crate) fn open<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    let reader = Reader::open(source).map_err(|error| error.with_format(Format::Vdi))?;
    Ok(Box::new(BlockImage(reader)))
}

#[derive(Debug)]
struct Reader<S> {
    source: S,
    header: Header,
    map: Region,
    pages: Pages<4, u32>,
}

impl<S: ReadAt> Reader<S> {
    fn open(source: S) -> Result<Self, Error> {
        let file_size = source.size();
        let region = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN.min(file_size),
        };
        let header = Header::parse(&safety::read_region(&source, region)?)?;
        header.check()?;
        let reader = Self {
            map: header.map(file_size)?,
            header,
            pages: Pages::new(u32::from_le_bytes),
            source,
        };
        reader.check_map()?;
        Ok(reader)
    }

    fn block_count(&self) -> u64 {
        self.virtual_size().div_ceil(BLOCK_SIZE.get())
    }

    fn entry_place(&self, index: u64) -> u64 {
        self.map.offset.saturating_add(index.saturating_mul(4))
    }

    /// Where the block is that entry `index` says, if it is wholly in the file. The last one may end with the disk.
    fn place(&self, index: u64, entry: u32) -> Result<u64, Error> {
        let start = u64::from(entry).saturating_mul(BLOCK_SIZE.get());
        let left = self
            .virtual_size()
            .saturating_sub(index.saturating_mul(BLOCK_SIZE.get()));
        let block = Region {
            name: "block",
            offset: start.saturating_add(u64::from(self.header.data_offset)),
            len: BLOCK_SIZE.get().min(left),
        };
        let header = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN,
        };
        let block = block
            .inside(self.source.size())
            .and_then(|block| block.keeps_off(&[header, self.map]))
            .map_err(|error| error.at(self.entry_place(index)))?;
        Ok(block.offset)
    }

    /// Walks over the map once, and refuses a block that is listed twice. It takes a bit for each MiB of the file.
    fn check_map(&self) -> Result<(), Error> {
        let mut used = Bitmap::of_file(self.source.size(), BLOCK_SIZE)?;
        let mut index = 0;
        while index < self.block_count() {
            let entries = self.pages.entries(&self.source, self.map, index)?;
            for (index, entry) in (index..self.block_count()).zip(entries.iter().copied()) {
                if matches!(entry, ABSENT | ZERO) {
                    continue;
                }
                self.place(index, entry)?;
                if !used.set(u64::from(entry)) {
                    let reason = format!("block {entry} of the file is used twice");
                    return Err(Error::corrupt(reason).at(self.entry_place(index)));
                }
            }
            index = index.saturating_add(entries.len() as u64);
        }
        Ok(())
    }
}

impl<S: ReadAt> Blocks for Reader<S> {
    const FORMAT: Format = Format::Vdi;

    fn source(&self) -> &dyn ReadAt {
        &self.source
    }

    fn virtual_size(&self) -> u64 {
        self.header.virtual_size()
    }

    fn block_size(&self) -> NonZeroU64 {
        BLOCK_SIZE
    }

    fn variant(&self) -> &'static str {
        if self.header.image_type == TYPE_FIXED {
            "fixed"
        } else {
            "dynamic"
        }
    }

    fn block(&self, index: u64) -> Result<Block, Error> {
        let entries = self.pages.entries(&self.source, self.map, index)?;
        let absent = entries
            .iter()
            .take_while(|entry| matches!(**entry, ABSENT | ZERO))
            .count();
        match entries.first() {
            Some(entry) if absent == 0 => Ok(Block::Data {
                offset: self.place(index, *entry)?,
            }),
            _ => Ok(Block::Zero {
                count: (absent as u64).max(1),
            }),
        }
    }
}
