//! A monolithicSparse VMDK file around the data of any image.
//!
//! ```text
//! header │ descriptor │ redundant directory and tables │ directory and tables │ zeros up to a grain │ grains in guest order
//! ```
//!
//! There is a grain table for every part of the disk, in both copies, as `VMware` expects; those that are all zeros cost nothing
//! in a store that does not keep zeros. A grain that is all zeros is absent.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::descriptor::CreateType;
use super::header::{HEADER_LEN, Header};
use super::{SECTOR, SECTOR_SIZE, TABLE_ENTRIES, TABLE_LEN, descriptor};
use crate::blocks::{Census, DataBlocks, Ordinals, padded, table};
use crate::plan::{Segment, SegmentIter, Shape, Totals, sectored, zeros};
use crate::safety;
use crate::{Error, Format, Image};

/// 64 KiB, as everybody makes it.
pub(super) const GRAIN_SIZE: NonZeroU64 = NonZeroU64::new(64 << 10).expect("a grain is not empty");
/// 10 KiB for the descriptor, as everybody leaves.
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;
/// The largest file: the places of all grains fit the 32 bits of an entry.
pub(super) const FILE_SIZE_MAX: u64 = (1 << 32) * SECTOR_SIZE;

/// Plans a file.
pub(crate) fn plan(image: &dyn Image, seed: &[u8]) -> Result<(Totals, Layout), Error> {
    let census = Census::of(image, seed, GRAIN_SIZE)?;
    let sectors = sectored(image) / SECTOR;
    let [first, second, third, fourth, ..] = census.identity.uuid("vmdk content");
    // The largest two are reserved.
    let content_id = u32::from_be_bytes([first, second, third, fourth]) >> 1;
    let layout = Layout {
        header: Header::new(sectors, GRAIN_SIZE.get() / SECTOR, DESCRIPTOR_SECTORS),
        descriptor: descriptor::render(CreateType::MonolithicSparse, sectors, content_id),
        grains: census.blocks,
    };
    safety::at_most("the file with its grains", layout.size(), FILE_SIZE_MAX)
        .map_err(|error| error.with_format(Format::Vmdk))?;
    Ok((census.totals, layout))
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Layout {
    header: Header,
    descriptor: String,
    /// How many grains are in the file.
    grains: u64,
}

impl Layout {
    fn data_offset(&self) -> u64 {
        self.header.overhead_sectors.saturating_mul(SECTOR_SIZE)
    }

    /// A directory and its tables, from the sector where the directory is.
    fn tables(
        self: &Arc<Self>,
        sector: u64,
        image: Arc<dyn Image>,
    ) -> impl Iterator<Item = Result<Segment, Error>> + Send + use<> {
        let entry = |sector: u64| {
            let sector = u32::try_from(sector);
            sector.expect("the file is within its bound").to_le_bytes()
        };
        let directory_len = self.header.directory_len();
        let first_table = sector.saturating_add(directory_len / SECTOR);
        let count = self.header.table_count();
        let directory = table(count, move |index| {
            let sector = first_table.saturating_add(index.saturating_mul(TABLE_LEN / SECTOR));
            Ok(entry(sector).into())
        });
        let padding = zeros(directory_len.saturating_sub(count.saturating_mul(4)));
        let mut ordinals = Ordinals::new(image, GRAIN_SIZE);
        let data_offset = self.data_offset();
        let grains = table(count.saturating_mul(TABLE_ENTRIES), move |index| {
            let place = |ordinal: u64| data_offset.saturating_add(ordinal.saturating_mul(GRAIN_SIZE.get())) / SECTOR;
            Ok(ordinals.of(index)?.entries(|ordinal| entry(ordinal.map_or(0, place))))
        });
        directory.chain(padding.map(Ok)).chain(grains)
    }
}

impl Shape for Layout {
    fn size(&self) -> u64 {
        let grains = self.grains.saturating_mul(GRAIN_SIZE.get());
        grains.saturating_add(self.data_offset())
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let header = &self.header;
        let descriptor = padded(
            self.descriptor.clone().into_bytes(),
            DESCRIPTOR_SECTORS.saturating_mul(SECTOR_SIZE),
        );
        let start = padded(header.render(), HEADER_LEN).chain(descriptor).map(Ok);
        let tables_end = header
            .directory_sector
            .saturating_mul(SECTOR_SIZE)
            .saturating_add(header.tables_len());
        let padding = zeros(self.data_offset().saturating_sub(tables_end));
        let segments = start
            .chain(self.tables(header.redundant_sector, Arc::clone(&image)))
            .chain(self.tables(header.directory_sector, Arc::clone(&image)))
            .chain(padding.map(Ok))
            .chain(DataBlocks::new(image, GRAIN_SIZE));
        Box::new(segments)
    }
}
