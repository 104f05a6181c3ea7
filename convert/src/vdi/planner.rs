//! A fixed or dynamic VDI file around the data of any image.
//!
//! ```text
//! header │ block map │ zeros up to a MiB │ blocks in guest order
//! ```
//!
//! In a fixed file every block of the disk has its place; in a dynamic one, those that are all zeros are absent.

use std::sync::Arc;

use super::header::{HEADER_LEN, Header, TYPE_DYNAMIC, TYPE_FIXED};
use super::{ABSENT, BLOCK_SIZE};
use crate::blocks::{Census, DataBlocks, Ordinals, table};
use crate::plan::{Segment, SegmentIter, Shape, Totals, sectored, zeros};
use crate::{Error, Image, raw};

/// Plans a dynamic image.
pub(crate) fn dynamic(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Layout), Error> {
    layout(image, seed, TYPE_DYNAMIC)
}

/// Plans a fixed image.
pub(crate) fn fixed(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Layout), Error> {
    layout(image, seed, TYPE_FIXED)
}

fn layout(image: &dyn Image, seed: &[u8], image_type: u32) -> Result<(Totals, Layout), Error> {
    let census = Census::of(image, seed, BLOCK_SIZE)?;
    let disk_size = sectored(image);
    let small = "a disk is no larger than 64 TiB";
    let blocks = u32::try_from(disk_size.div_ceil(BLOCK_SIZE.get())).expect(small);
    // Like VirtualBox: blocks do not straddle the blocks of whatever keeps the file.
    let tables = HEADER_LEN.saturating_add(u64::from(blocks).saturating_mul(4));
    let data_offset = u32::try_from(tables.next_multiple_of(BLOCK_SIZE.get())).expect(small);
    let mut header = Header::new(image_type, disk_size, blocks, data_offset);
    if image_type == TYPE_DYNAMIC {
        header.blocks_allocated = u32::try_from(census.blocks).expect(small);
    }
    let purpose = if image_type == TYPE_DYNAMIC {
        "vdi dynamic"
    } else {
        "vdi fixed"
    };
    header.uuid_image = census.identity.uuid(purpose);
    header.uuid_last_snapshot = census.identity.uuid("vdi snapshot");
    Ok((census.totals, Layout { header }))
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Layout {
    header: Header,
}

impl Shape for Layout {
    fn size(&self) -> u64 {
        let blocks = u64::from(self.header.blocks_allocated).saturating_mul(BLOCK_SIZE.get());
        blocks.saturating_add(u64::from(self.header.data_offset))
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let count = u64::from(self.header.blocks_in_image);
        let tables = HEADER_LEN.saturating_add(count.saturating_mul(4));
        let padding = zeros(u64::from(self.header.data_offset).saturating_sub(tables));
        let header = [Ok(Segment::Bytes(self.header.render()))].into_iter();
        if self.header.image_type == TYPE_FIXED {
            let disk_padding = zeros(
                count
                    .saturating_mul(BLOCK_SIZE.get())
                    .saturating_sub(image.virtual_size()),
            );
            let map = table(count, |index| {
                Ok(u32::try_from(index).unwrap_or(ABSENT).to_le_bytes().into())
            });
            let data = raw::disk(image).chain(disk_padding.map(Ok));
            return Box::new(header.chain(map).chain(padding.map(Ok)).chain(data));
        }
        let mut ordinals = Ordinals::new(Arc::clone(&image), BLOCK_SIZE);
        let map = table(count, move |index| {
            let entry = |ordinal: Option<u64>| ordinal.and_then(|ordinal| u32::try_from(ordinal).ok());
            Ok(ordinals
                .of(index)?
                .entries(|ordinal| entry(ordinal).unwrap_or(ABSENT).to_le_bytes()))
        });
        let data = DataBlocks::new(image, BLOCK_SIZE);
        Box::new(header.chain(map).chain(padding.map(Ok)).chain(data))
    }
}
