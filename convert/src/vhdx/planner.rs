//! A fixed or dynamic VHDX file around the data of any image.
//!
//! ```text
//! header section │ log, empty │ metadata │ BAT │ payload blocks in guest order
//!     1 MiB          1 MiB        1 MiB    1 or more MiB
//! ```
//!
//! In a fixed file every block of the disk has its place; in a dynamic one, those that are all zeros are absent. Blocks are of
//! 2 MiB as long as 256 Ki of them suffice, which have 2 MiB of BAT, and larger for larger disks.
//!
//! Format: MS-VHDX.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::header::Header;
use super::metadata::Metadata;
use super::reader::{FULLY_PRESENT, entry_count};
use super::region::Regions;
use super::{MIB_SIZE, PART_LEN, SECTOR_SIZE, chunk_ratio};
use crate::blocks::{Census, DataBlocks, Ordinals, padded, table};
use crate::plan::{SegmentIter, Shape, Totals, sectored, zeros};
use crate::safety::Region;
use crate::{Error, Image, raw};

const METADATA_OFFSET: u64 = 2 * MIB_SIZE;
const BAT_OFFSET: u64 = 3 * MIB_SIZE;
const BLOCK_SIZE_MIN: u64 = 2 << 20;
/// With it, blocks are 256 MiB, the largest there may be, just for the largest disk.
const BLOCK_COUNT_MAX: u64 = 256 << 10;

/// Plans a dynamic disk.
pub(crate) fn dynamic(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Layout), Error> {
    layout(image, seed, false)
}

/// Plans a fixed disk.
pub(crate) fn fixed(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Layout), Error> {
    layout(image, seed, true)
}

fn layout(image: &dyn Image, seed: &[u8], fixed: bool) -> Result<(Totals, Layout), Error> {
    let virtual_size = sectored(image);
    let block_size = virtual_size
        .div_ceil(BLOCK_COUNT_MAX)
        .next_power_of_two()
        .max(BLOCK_SIZE_MIN);
    let block_size = NonZeroU64::new(block_size).expect("it is at least 2 MiB");
    let census = Census::of(image, seed, block_size)?;
    let blocks = virtual_size.div_ceil(block_size.get());
    let kind = if fixed { "vhdx fixed" } else { "vhdx dynamic" };
    let guid = |purpose: &str| census.identity.uuid(&format!("{kind} {purpose}"));
    let layout = Layout {
        metadata: Metadata {
            block_size,
            fixed,
            virtual_size,
            sector_size: SECTOR_SIZE,
            disk_id: guid("page 83"),
        },
        headers: [1, 2].map(|number| Header::new(number, guid("file write"), guid("data write"))),
        blocks,
        present: if fixed { blocks } else { census.blocks },
    };
    Ok((census.totals, layout))
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Layout {
    metadata: Metadata,
    headers: [Header; 2],
    /// How many blocks the disk has.
    blocks: u64,
    /// How many of them are in the file.
    present: u64,
}

impl Layout {
    fn chunk_ratio(&self) -> NonZeroU64 {
        chunk_ratio(self.metadata.block_size, u64::from(SECTOR_SIZE))
    }

    fn entries(&self) -> u64 {
        entry_count(self.blocks, self.chunk_ratio())
    }

    fn bat(&self) -> Region {
        Region {
            name: "BAT",
            offset: BAT_OFFSET,
            len: self.entries().saturating_mul(8).max(1).next_multiple_of(MIB_SIZE),
        }
    }

    fn data_offset(&self) -> u64 {
        BAT_OFFSET.saturating_add(self.bat().len)
    }

    /// The block that an entry of the BAT is about, unless it is about a sector bitmap.
    fn block_of(&self, entry: u64) -> Option<u64> {
        let chunk_entries = self.chunk_ratio().saturating_add(1);
        let (chunk, within) = (entry / chunk_entries, entry % chunk_entries);
        let block = chunk.saturating_mul(self.chunk_ratio().get()).saturating_add(within);
        (within < self.chunk_ratio().get()).then_some(block)
    }

    /// The entry of a block by its place among those that are present; there is none for an absent one.
    fn entry(&self, ordinal: Option<u64>) -> [u8; 8] {
        let offset = |ordinal: u64| {
            ordinal
                .saturating_mul(self.metadata.block_size.get())
                .saturating_add(self.data_offset())
        };
        // A place is a multiple of a MiB, so that the state goes below it.
        ordinal
            .map_or(0, |ordinal| offset(ordinal) | FULLY_PRESENT)
            .to_le_bytes()
    }
}

impl Shape for Layout {
    fn size(&self) -> u64 {
        let payload = self.present.saturating_mul(self.metadata.block_size.get());
        payload.saturating_add(self.data_offset())
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let regions = Regions {
            bat: self.bat(),
            metadata: Region {
                name: "metadata",
                offset: METADATA_OFFSET,
                len: MIB_SIZE,
            },
        };
        let [first, second] = self.headers.each_ref().map(Header::render);
        let (items_table, items) = self.metadata.render();
        let head = [identifier(), first, second, regions.render(), regions.render()];
        let start = head
            .into_iter()
            .flat_map(|bytes| padded(bytes, PART_LEN))
            // The rest of the header section, and the log.
            .chain(zeros(METADATA_OFFSET.saturating_sub(PART_LEN.saturating_mul(5))))
            .chain(padded(items_table, PART_LEN))
            .chain(padded(items, MIB_SIZE.saturating_sub(PART_LEN)))
            .map(Ok);
        let entries = self.entries();
        let bat_padding = zeros(self.bat().len.saturating_sub(entries.saturating_mul(8)));
        let block_size = self.metadata.block_size;
        if self.metadata.fixed {
            let padding = self
                .blocks
                .saturating_mul(block_size.get())
                .saturating_sub(image.virtual_size());
            let bat = table(entries, move |entry| Ok(self.entry(self.block_of(entry)).into()));
            let data = raw::disk(image).chain(zeros(padding).map(Ok));
            return Box::new(start.chain(bat).chain(bat_padding.map(Ok)).chain(data));
        }
        let mut ordinals = Ordinals::new(Arc::clone(&image), block_size);
        let bat = table(entries, move |entry| {
            Ok(match self.block_of(entry) {
                // Absent entries for sector bitmaps between those of absent blocks make only more of them.
                Some(block) => ordinals.of(block)?.entries(|ordinal| self.entry(ordinal)),
                None => self.entry(None).into(),
            })
        });
        let data = DataBlocks::new(image, block_size);
        Box::new(start.chain(bat).chain(bat_padding.map(Ok)).chain(data))
    }
}

/// The file identifier: a signature, and who made the file.
fn identifier() -> Vec<u8> {
    let creator = "Lithos".encode_utf16().flat_map(u16::to_le_bytes);
    b"vhdxfile".iter().copied().chain(creator).collect()
}
