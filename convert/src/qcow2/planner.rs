//! A plain qcow2 file, version 3 or 2, around the data of any image.
//!
//! ```text
//! header │ refcount table │ refcount blocks │ L1 table │ L2 tables │ data clusters in guest order
//! ```
//!
//! Every part starts at a cluster of 64 KiB and each cluster is used once. A cluster of the disk that is all zeros is absent, and
//! so is an L2 table without clusters. A first walk over the image counts, per L2 table, the clusters that will be there; that
//! fixes the place of everything. The tables are made while the segments are asked for, each by a walk of its own, so that
//! memory stays at four bytes for 512 MiB of disk.
//!
//! Format: QEMU qcow2 specification.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::Version;
use super::header::Header;
use super::refcount::Refcounts;
use super::table::FLAG_COPIED;
use crate::blocks::{DataBlocks, Occupied, Ordinals};
use crate::map::Piece;
use crate::plan::{Segment, SegmentIter, Shape, Totals, zeros};
use crate::{Error, Image};

pub(crate) const CLUSTER_BITS: u32 = 16;
/// 64 KiB, as QEMU makes by default: 8 KiB of L2 table for 64 MiB of disk.
pub(crate) const CLUSTER_SIZE: u64 = 1 << CLUSTER_BITS;
/// The same, known not to be zero.
const CLUSTER: NonZeroU64 = NonZeroU64::new(CLUSTER_SIZE).expect("a cluster is not empty");
/// The same in memory.
pub(crate) const CLUSTER_LEN: usize = 1 << CLUSTER_BITS;
/// How many clusters an L2 table lists.
pub(crate) const L2_ENTRIES: u64 = CLUSTER_SIZE / 8;
/// How much of the disk an L2 table covers: 512 MiB.
pub(crate) const L2_SPAN: u64 = L2_ENTRIES * CLUSTER_SIZE;
/// Disks are counted in these.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// Plans a qcow2 file.
pub(crate) fn plan(image: &dyn Image, version: Version) -> Result<(Totals, Blueprint), Error> {
    let mut census = Census::new(image.virtual_size());
    let totals = Totals::of(image, |piece| census.add(piece))?;
    Ok((totals, census.finish(version)))
}

/// Counts the clusters that an image needs.
#[derive(Debug)]
struct Census {
    virtual_size: u64,
    /// For each L2 table, how many clusters it lists.
    l2_counts: Vec<u32>,
    clusters: Occupied,
}

impl Census {
    fn new(virtual_size: u64) -> Self {
        let tables = usize::try_from(virtual_size.div_ceil(L2_SPAN)).expect("a disk is no larger than 64 TiB");
        Self {
            virtual_size,
            l2_counts: vec![0; tables],
            clusters: Occupied::new(CLUSTER),
        }
    }

    fn add(&mut self, piece: &Piece) {
        let mut range = self.clusters.new_in(piece);
        while !range.is_empty() {
            let index = range.start / L2_ENTRIES;
            let end = index.saturating_add(1).saturating_mul(L2_ENTRIES).min(range.end);
            if let Some(count) = usize::try_from(index)
                .ok()
                .and_then(|index| self.l2_counts.get_mut(index))
            {
                // At most 8192 in a table.
                *count = count.saturating_add(u32::try_from(end.saturating_sub(range.start)).unwrap_or(u32::MAX));
            }
            range.start = end;
        }
    }

    fn finish(self, version: Version) -> Blueprint {
        let data_clusters: u64 = self.l2_counts.iter().map(|count| u64::from(*count)).sum();
        let l2_tables = self.l2_counts.iter().filter(|count| **count > 0).count() as u64;
        // One cluster even for a disk of size zero, so that the L1 table has a place.
        let l1_clusters = (self.l2_counts.len() as u64).div_ceil(L2_ENTRIES).max(1);
        let others = [1, l1_clusters, l2_tables, data_clusters].iter().sum();
        let refcounts = Refcounts::for_file_of(others);
        let after = |start: u64, clusters: u64| start.saturating_add(clusters.saturating_mul(CLUSTER_SIZE));
        let blocks_start = after(CLUSTER_SIZE, refcounts.table_clusters);
        let l1_start = after(blocks_start, refcounts.blocks);
        let l2_start = after(l1_start, l1_clusters);
        Blueprint {
            version,
            virtual_size: self.virtual_size.next_multiple_of(SECTOR_SIZE),
            refcounts,
            l2_counts: self.l2_counts,
            blocks_start,
            l1_start,
            l2_start,
            data_start: after(l2_start, l2_tables),
        }
    }
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Blueprint {
    version: Version,
    virtual_size: u64,
    refcounts: Refcounts,
    l2_counts: Vec<u32>,
    blocks_start: u64,
    l1_start: u64,
    l2_start: u64,
    data_start: u64,
}

impl Shape for Blueprint {
    fn size(&self) -> u64 {
        self.refcounts.total.saturating_mul(CLUSTER_SIZE)
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        let header = self.header().render();
        let padding = zeros(CLUSTER_SIZE.saturating_sub(header.len() as u64));
        let (table, blocks, l1) = (Arc::clone(&self), Arc::clone(&self), self.render_l1());
        let tables = [Segment::Bytes(header)]
            .into_iter()
            .chain(padding)
            .chain(
                (0..self.refcounts.table_clusters)
                    .map(move |i| Segment::Bytes(table.refcounts.render_table(i, table.blocks_start))),
            )
            .chain((0..self.refcounts.blocks).map(move |i| Segment::Bytes(blocks.refcounts.render_block(i))))
            .chain(l1.into_iter().map(Segment::Bytes));
        let segments = tables
            .map(Ok)
            .chain(L2Tables::new(self, Arc::clone(&image)))
            .chain(DataBlocks::new(image, CLUSTER));
        Box::new(segments)
    }
}

impl Blueprint {
    fn header(&self) -> Header {
        Header {
            size: self.virtual_size,
            l1_size: u32::try_from(self.l2_counts.len().max(1)).expect("a disk is no larger than 64 TiB"),
            l1_table_offset: self.l1_start,
            refcount_table_offset: CLUSTER_SIZE,
            refcount_table_clusters: u32::try_from(self.refcounts.table_clusters).expect("five suffice for 64 TiB"),
            ..Header::new(self.version, CLUSTER_BITS)
        }
    }

    /// Renders the L1 table by clusters; at most 1 MiB.
    fn render_l1(&self) -> Vec<Vec<u8>> {
        let mut next = self.l2_start;
        let mut entry_for = |count: u32| {
            if count == 0 {
                return 0;
            }
            let entry = next | FLAG_COPIED;
            next = next.saturating_add(CLUSTER_SIZE);
            entry
        };
        let mut table: Vec<u8> = self
            .l2_counts
            .iter()
            .flat_map(|count| entry_for(*count).to_be_bytes())
            .collect();
        table.resize(table.len().max(1).next_multiple_of(CLUSTER_LEN), 0);
        table.chunks(CLUSTER_LEN).map(<[u8]>::to_vec).collect()
    }
}

/// Renders the L2 tables while walking over the image.
struct L2Tables {
    blueprint: Arc<Blueprint>,
    ordinals: Ordinals,
    /// The table to look at next.
    index: usize,
}

impl L2Tables {
    fn new(blueprint: Arc<Blueprint>, image: Arc<dyn Image>) -> Self {
        Self {
            blueprint,
            ordinals: Ordinals::new(image, CLUSTER),
            index: 0,
        }
    }

    fn render(&mut self, index: u64) -> Result<Vec<u8>, Error> {
        let first = index.saturating_mul(L2_ENTRIES);
        let mut table = vec![0_u8; CLUSTER_LEN];
        let (entries, _) = table.as_chunks_mut::<8>();
        for (cluster, entry) in (first..).zip(entries) {
            if let Some(ordinal) = self.ordinals.of(cluster)?.ordinal {
                let offset = ordinal
                    .saturating_mul(CLUSTER_SIZE)
                    .saturating_add(self.blueprint.data_start);
                *entry = (offset | FLAG_COPIED).to_be_bytes();
            }
        }
        Ok(table)
    }
}

impl Iterator for L2Tables {
    type Item = Result<Segment, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let counts = self.blueprint.l2_counts.get(self.index..)?;
        let skipped = counts.iter().position(|count| *count > 0)?;
        let index = self.index.saturating_add(skipped);
        self.index = index.saturating_add(1);
        Some(self.render(index as u64).map(Segment::Bytes))
    }
}
