//! The map of a VHD image.
//!
//! A file that begins with the cookie is dynamic: the footer at its start counts, and one at its end has to be the same. A
//! file that has the cookie only in its last sector is fixed.

use std::num::NonZeroU64;

use super::footer::{DiskType, FOOTER_LEN, Footer, field};
use super::header::{self, DynamicHeader, HEADER_LEN};
use super::{SECTOR_SIZE, virtual_size};
use crate::blocks::{Block, BlockImage, Blocks};
use crate::map::Mapping;
use crate::pages::Pages;
use crate::safety::{self, Region};
use crate::{Error, ErrorKind, Format, Image, ReadAt};

/// The entry of a block that is not in the file.
pub(super) const ABSENT: u32 = u32::MAX;

/// Opens a VHD image of either sort.
pub(crate) fn open<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    open_unnamed(source).map_err(|error| error.with_format(Format::Vhd))
}

fn open_unnamed<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    let file_size = source.size();
    let end = file_size.saturating_sub(FOOTER_LEN);
    let at_start = footer_at(&source, 0)?;
    let at_end = if end == 0 { None } else { footer_at(&source, end)? };
    let parse = |bytes: &[u8], offset| Footer::parse(bytes).map_err(|error| error.shifted(offset));
    let Some(start) = at_start else {
        let bytes = at_end.ok_or_else(|| Error::new(ErrorKind::NotThisFormat, "there is no footer"))?;
        let footer = parse(&bytes, end)?;
        return Fixed::open(source, &footer, end).map(|image| Box::new(image) as Box<dyn Image + 'a>);
    };
    let footer = parse(&start, 0)?;
    if at_end.as_ref().is_some_and(|bytes| *bytes != start) {
        return Err(Error::corrupt("the footer is unlike its copy at the start of the file").at(end));
    }
    let end = if at_end.is_some() { end } else { file_size };
    Ok(Box::new(BlockImage(Dynamic::open(source, &footer, end)?)))
}

/// The sector at `offset`, if it begins as a footer.
fn footer_at(source: &dyn ReadAt, offset: u64) -> Result<Option<Vec<u8>>, Error> {
    if source.size() < FOOTER_LEN {
        return Ok(None);
    }
    let region = Region {
        name: "footer",
        offset,
        len: FOOTER_LEN,
    };
    let bytes = safety::read_region(source, region)?;
    Ok(bytes.starts_with(b"conectix").then_some(bytes))
}

/// A fixed disk: its bytes, then the footer.
#[derive(Debug)]
struct Fixed<S> {
    source: S,
    virtual_size: u64,
    saved_state: bool,
}

impl<S: ReadAt> Fixed<S> {
    fn open(source: S, footer: &Footer, end: u64) -> Result<Self, Error> {
        let place = |field: u64| end.saturating_add(field);
        if footer.disk_type != DiskType::Fixed {
            let reason = "the disk is not fixed, but the copy of the footer at the start of the file is missing";
            return Err(Error::corrupt(reason).at(place(field::DISK_TYPE)));
        }
        let at = |error: Error| error.at(place(field::CURRENT_SIZE));
        let virtual_size = virtual_size(footer.virtual_size()).map_err(at)?;
        let disk = Region {
            name: "the disk",
            offset: 0,
            len: virtual_size,
        };
        disk.inside(end).map_err(at)?;
        Ok(Self {
            source,
            virtual_size,
            saved_state: footer.saved_state,
        })
    }
}

impl<S: ReadAt> Image for Fixed<S> {
    fn format(&self) -> Format {
        Format::Vhd
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn file_size(&self) -> u64 {
        self.source.size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        let named = |error: Error| error.with_format(Format::Vhd);
        match self.virtual_size.checked_sub(guest) {
            None | Some(0) => Err(named(Error::beyond_the_disk())),
            Some(left) => Mapping::in_file(&self.source, guest, left).map_err(named),
        }
    }

    fn variant(&self) -> Option<&'static str> {
        Some("fixed")
    }

    fn warnings(&self) -> Vec<String> {
        saved_state(self.saved_state)
    }
}

fn saved_state(is: bool) -> Vec<String> {
    let warning = || "the machine was suspended, not shut down; what it held in memory is left behind".to_owned();
    is.then(warning).into_iter().collect()
}

/// A dynamic disk.
#[derive(Debug)]
struct Dynamic<S> {
    source: S,
    virtual_size: u64,
    saved_state: bool,
    block_size: NonZeroU64,
    bitmap_len: u64,
    bat: Region,
    /// What blocks must keep away from: both footers, the header and the table.
    metadata: [Region; 4],
    pages: Pages<4, u32>,
}

impl<S: ReadAt> Dynamic<S> {
    /// `end` is where the footer at the end starts, or the file ends if there is none.
    fn open(source: S, footer: &Footer, end: u64) -> Result<Self, Error> {
        let file_size = source.size();
        let header = Region {
            name: "dynamic header",
            offset: footer.data_offset,
            len: HEADER_LEN,
        };
        let first = Region {
            name: "footer",
            offset: 0,
            len: FOOTER_LEN,
        };
        let at_data_offset = |error: Error| error.at(field::DATA_OFFSET);
        if footer.disk_type == DiskType::Fixed {
            let reason = "the disk is fixed, but there is a footer at the start of the file";
            return Err(Error::corrupt(reason).at(field::DISK_TYPE));
        }
        header.inside(file_size).map_err(at_data_offset)?;
        header.keeps_off(&[first]).map_err(at_data_offset)?;
        let bytes = safety::read_region(&source, header)?;
        if footer.disk_type == DiskType::Differencing {
            let reason = format!(
                "the disk is differencing and needs its parent {}",
                header::parent_name(&bytes)
            );
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(field::DISK_TYPE));
        }
        let virtual_size = virtual_size(footer.virtual_size()).map_err(|error| error.at(field::CURRENT_SIZE))?;
        let last = Region {
            name: "footer",
            offset: end,
            len: file_size.saturating_sub(end),
        };
        let (dynamic, bat) = Self::header_and_bat(&bytes, virtual_size, &[first, header, last], file_size)
            .map_err(|error| error.shifted(header.offset))?;
        let image = Self {
            virtual_size,
            saved_state: footer.saved_state,
            block_size: NonZeroU64::new(u64::from(dynamic.block_size))
                .expect("blocks have been checked to be a sector"),
            bitmap_len: dynamic.bitmap_len(),
            bat,
            metadata: [first, header, bat, last],
            pages: Pages::new(u32::from_be_bytes),
            source,
        };
        image.check_overlaps()?;
        Ok(image)
    }

    /// Places in errors count from the start of the header.
    fn header_and_bat(
        bytes: &[u8],
        virtual_size: u64,
        others: &[Region],
        file_size: u64,
    ) -> Result<(DynamicHeader, Region), Error> {
        let dynamic = DynamicHeader::parse(bytes)?;
        let bat = dynamic.bat(virtual_size)?;
        bat.inside(file_size)
            .and_then(|bat| bat.keeps_off(others))
            .map_err(|error| error.at(header::field::TABLE_OFFSET))?;
        Ok((dynamic, bat))
    }

    fn block_count(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size.get())
    }

    /// A block with its bitmap, as its entry says.
    fn place(&self, entry: u32) -> Region {
        Region {
            name: "block",
            offset: u64::from(entry).saturating_mul(SECTOR_SIZE),
            len: self.bitmap_len.saturating_add(self.block_size.get()),
        }
    }

    fn entry_place(&self, index: u64) -> u64 {
        self.bat.offset.saturating_add(index.saturating_mul(4))
    }

    /// Walks over the table once. The list of what is allocated is no longer than the table, which is bounded.
    fn check_overlaps(&self) -> Result<(), Error> {
        let mut used = Vec::new();
        let mut index = 0;
        while index < self.block_count() {
            let entries = self.pages.entries(&self.source, self.bat, index)?;
            used.extend(entries.iter().copied().filter(|entry| *entry != ABSENT));
            index = index.saturating_add(entries.len() as u64);
        }
        used.sort_unstable();
        let overlapping = used.windows(2).find_map(|pair| match pair {
            [one, other] => self.place(*one).overlaps(self.place(*other)).then_some((*one, *other)),
            _ => None,
        });
        match overlapping {
            None => Ok(()),
            Some((one, other)) => {
                let reason = format!("the blocks at sectors {one} and {other} overlap");
                Err(Error::corrupt(reason).at(self.bat.offset))
            }
        }
    }
}

impl<S: ReadAt> Blocks for Dynamic<S> {
    const FORMAT: Format = Format::Vhd;

    fn source(&self) -> &dyn ReadAt {
        &self.source
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn block_size(&self) -> NonZeroU64 {
        self.block_size
    }

    fn variant(&self) -> &'static str {
        "dynamic"
    }

    fn warnings(&self) -> Vec<String> {
        saved_state(self.saved_state)
    }

    fn block(&self, index: u64) -> Result<Block, Error> {
        let entries = self.pages.entries(&self.source, self.bat, index)?;
        let absent = entries.iter().take_while(|entry| **entry == ABSENT).count();
        match entries.first() {
            Some(entry) if absent == 0 => {
                let block = self.place(*entry);
                block
                    .inside(self.source.size())
                    .and_then(|block| block.keeps_off(&self.metadata))
                    .map_err(|error| error.at(self.entry_place(index)))?;
                Ok(Block::Data {
                    offset: block.offset.saturating_add(self.bitmap_len),
                })
            }
            _ => Ok(Block::Zero {
                count: (absent as u64).max(1),
            }),
        }
    }
}
