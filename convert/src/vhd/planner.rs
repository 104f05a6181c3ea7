//! A fixed or dynamic VHD file around the data of any image.
//!
//! The disk is rounded up to whole sectors and its size is what the footer says, not what a geometry comes to: as QEMU does
//! with `force_size=on`, and as Hyper-V and Azure expect.
//!
//! ```text
//! fixed     the disk │ footer
//! dynamic   footer │ dynamic header │ BAT │ blocks in guest order, each after its bitmap │ footer
//! ```
//!
//! A dynamic disk has an entry for each block of 2 MiB; a block that is all zeros is absent.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::footer::{DiskType, FOOTER_LEN, Footer};
use super::header::{DynamicHeader, HEADER_LEN};
use super::reader::ABSENT;
use super::{SECTOR_SIZE, virtual_size};
use crate::blocks::{Census, DataBlocks, Ordinals, table};
use crate::plan::{Segment, SegmentIter, Shape, Totals, sectored, zeros};
use crate::{Error, Format, Image, raw};

/// 2 MiB, as everybody makes it.
const BLOCK_LEN: u32 = 2 << 20;
const BLOCK_SIZE: NonZeroU64 = NonZeroU64::new(BLOCK_LEN as u64).expect("a block is not empty");
const BAT_OFFSET: u64 = FOOTER_LEN + HEADER_LEN;
/// Entries that fill the last sector of the table.
const SECTOR_ENTRIES: u64 = SECTOR_SIZE / 4;

/// Plans a dynamic disk.
pub(crate) fn dynamic(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Dynamic), Error> {
    let virtual_size = rounded_size(image)?;
    let census = Census::of(image, seed, BLOCK_SIZE)?;
    let header = DynamicHeader {
        table_offset: BAT_OFFSET,
        max_table_entries: u32::try_from(virtual_size.div_ceil(BLOCK_SIZE.get())).expect("a disk ends at 2040 GiB"),
        block_size: BLOCK_LEN,
    };
    let footer = Footer::new(DiskType::Dynamic, virtual_size, census.identity.uuid("vhd dynamic"));
    let shape = Dynamic {
        footer,
        header,
        blocks: census.blocks,
    };
    Ok((census.totals, shape))
}

/// Plans a fixed disk.
pub(crate) fn fixed(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Fixed), Error> {
    let virtual_size = rounded_size(image)?;
    let census = Census::of(image, seed, BLOCK_SIZE)?;
    let footer = Footer::new(DiskType::Fixed, virtual_size, census.identity.uuid("vhd fixed"));
    Ok((census.totals, Fixed { footer }))
}

fn rounded_size(image: &dyn Image) -> Result<u64, Error> {
    virtual_size(sectored(image)).map_err(|error| error.with_format(Format::Vhd))
}

/// A file that is the disk and a footer.
#[derive(Debug)]
pub(crate) struct Fixed {
    footer: Footer,
}

impl Shape for Fixed {
    fn size(&self) -> u64 {
        self.footer.current_size.saturating_add(FOOTER_LEN)
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let padding = zeros(self.footer.current_size.saturating_sub(image.virtual_size()));
        let end = padding.into_iter().chain([Segment::Bytes(self.footer.render())]);
        Box::new(raw::disk(image).chain(end.map(Ok)))
    }
}

/// Where everything goes in a dynamic disk.
#[derive(Debug)]
pub(crate) struct Dynamic {
    footer: Footer,
    header: DynamicHeader,
    /// How many blocks are in the file.
    blocks: u64,
}

impl Dynamic {
    /// How many entries the table has, with those that fill its last sector.
    fn entries(&self) -> u64 {
        u64::from(self.header.max_table_entries).next_multiple_of(SECTOR_ENTRIES)
    }

    fn data_offset(&self) -> u64 {
        BAT_OFFSET.saturating_add(self.entries().saturating_mul(4))
    }

    /// A block with its bitmap.
    fn stride(&self) -> u64 {
        self.header.bitmap_len().saturating_add(BLOCK_SIZE.get())
    }

    fn entry(&self, ordinal: Option<u64>) -> [u8; 4] {
        let offset = |ordinal: u64| self.data_offset().saturating_add(ordinal.saturating_mul(self.stride()));
        let sector = ordinal.map_or(ABSENT, |ordinal| {
            u32::try_from(offset(ordinal) / SECTOR_SIZE).expect("a file of at most 2040 GiB of blocks")
        });
        sector.to_be_bytes()
    }
}

impl Shape for Dynamic {
    fn size(&self) -> u64 {
        let blocks = self.blocks.saturating_mul(self.stride());
        self.data_offset().saturating_add(blocks).saturating_add(FOOTER_LEN)
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let (footer, header) = (self.footer.render(), self.header.render());
        let bitmap = vec![0xff; usize::try_from(self.header.bitmap_len()).expect("one sector")];
        let mut ordinals = Ordinals::new(Arc::clone(&image), BLOCK_SIZE);
        let start = [footer.clone(), header].map(|bytes| Ok(Segment::Bytes(bytes)));
        let segments = start
            .into_iter()
            .chain(table(self.entries(), move |index| {
                Ok(ordinals.of(index)?.entries(|ordinal| self.entry(ordinal)))
            }))
            .chain(DataBlocks::with_prefix(image, BLOCK_SIZE, bitmap))
            .chain([Ok(Segment::Bytes(footer))]);
        Box::new(segments)
    }
}
