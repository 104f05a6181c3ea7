//! A plain qcow2 file, version 3, around the data of any image.
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

use std::ops::Range;
use std::sync::Arc;

use super::header::{HEADER_LEN_V3, Header};
use super::refcount::{REFCOUNT_ORDER, Refcounts};
use super::table::FLAG_COPIED;
use crate::map::{Origin, Piece, Pieces};
use crate::plan::{Segment, zeros};
use crate::{Error, Image};

const CLUSTER_BITS: u32 = 16;
/// 64 KiB, as QEMU makes by default: 8 KiB of L2 table for 64 MiB of disk.
pub(crate) const CLUSTER_SIZE: u64 = 1 << CLUSTER_BITS;
/// The same in memory.
const CLUSTER_LEN: usize = 1 << CLUSTER_BITS;
/// How many clusters an L2 table lists.
const L2_ENTRIES: u64 = CLUSTER_SIZE / 8;
/// How much of the disk an L2 table covers: 512 MiB.
const L2_SPAN: u64 = L2_ENTRIES * CLUSTER_SIZE;
/// Disks are counted in these.
const SECTOR_SIZE: u64 = 512;

/// Counts the clusters that an image needs.
#[derive(Debug)]
pub(crate) struct Census {
    virtual_size: u64,
    /// For each L2 table, how many clusters it lists.
    l2_counts: Vec<u32>,
    clusters: Clusters,
}

impl Census {
    pub(crate) fn new(virtual_size: u64) -> Self {
        let tables = usize::try_from(virtual_size.div_ceil(L2_SPAN)).expect("a disk is no larger than 64 TiB");
        Self {
            virtual_size,
            l2_counts: vec![0; tables],
            clusters: Clusters::default(),
        }
    }

    pub(crate) fn add(&mut self, piece: &Piece) {
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

    pub(crate) fn finish(self) -> Blueprint {
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

/// The clusters of the disk that hold something, found piece by piece.
#[derive(Debug, Default)]
struct Clusters {
    /// The first cluster that no piece has reached.
    next: u64,
}

impl Clusters {
    /// The clusters that `piece` is the first to need.
    fn new_in(&mut self, piece: &Piece) -> Range<u64> {
        if piece.origin == Origin::Zero {
            return self.next..self.next;
        }
        let start = (piece.guest / CLUSTER_SIZE).max(self.next);
        self.next = piece.end().div_ceil(CLUSTER_SIZE);
        start..self.next
    }
}

/// Where everything goes.
#[derive(Debug)]
pub(crate) struct Blueprint {
    virtual_size: u64,
    refcounts: Refcounts,
    l2_counts: Vec<u32>,
    blocks_start: u64,
    l1_start: u64,
    l2_start: u64,
    data_start: u64,
}

impl Blueprint {
    pub(crate) fn size(&self) -> u64 {
        self.refcounts.total.saturating_mul(CLUSTER_SIZE)
    }

    pub(crate) fn segments(
        self: Arc<Self>,
        image: Arc<dyn Image>,
    ) -> impl Iterator<Item = Result<Segment, Error>> + Send {
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
        tables
            .map(Ok)
            .chain(L2Tables::new(self, Arc::clone(&image)))
            .chain(DataClusters::new(image))
    }

    fn header(&self) -> Header {
        Header {
            version: 3,
            backing_file_offset: 0,
            backing_file_size: 0,
            cluster_bits: CLUSTER_BITS,
            size: self.virtual_size,
            crypt_method: 0,
            l1_size: u32::try_from(self.l2_counts.len().max(1)).expect("a disk is no larger than 64 TiB"),
            l1_table_offset: self.l1_start,
            refcount_table_offset: CLUSTER_SIZE,
            refcount_table_clusters: u32::try_from(self.refcounts.table_clusters).expect("five suffice for 64 TiB"),
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: REFCOUNT_ORDER,
            header_len: HEADER_LEN_V3,
            compression_type: 0,
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
    pieces: Pieces<Arc<dyn Image>>,
    clusters: Clusters,
    /// Clusters that hold something and are not in a table yet.
    ahead: Range<u64>,
    /// The table to look at next.
    index: usize,
    /// Where the next data cluster goes.
    offset: u64,
}

impl L2Tables {
    fn new(blueprint: Arc<Blueprint>, image: Arc<dyn Image>) -> Self {
        let offset = blueprint.data_start;
        Self {
            blueprint,
            pieces: Pieces::new(image),
            clusters: Clusters::default(),
            ahead: 0..0,
            index: 0,
            offset,
        }
    }

    fn render(&mut self, index: u64) -> Result<Vec<u8>, Error> {
        let span = index.saturating_mul(L2_ENTRIES)..index.saturating_add(1).saturating_mul(L2_ENTRIES);
        let mut table = vec![0_u8; CLUSTER_LEN];
        let (entries, _) = table.as_chunks_mut::<8>();
        loop {
            while self.ahead.is_empty() {
                let Some(piece) = self.pieces.next().transpose()? else {
                    return Ok(table);
                };
                self.ahead = self.clusters.new_in(&piece);
            }
            if self.ahead.start >= span.end {
                return Ok(table);
            }
            let here = self.ahead.start..self.ahead.end.min(span.end);
            self.ahead.start = here.end;
            let first = usize::try_from(here.start.saturating_sub(span.start)).unwrap_or(usize::MAX);
            let count = usize::try_from(here.end.saturating_sub(here.start)).unwrap_or(usize::MAX);
            for entry in entries.iter_mut().skip(first).take(count) {
                *entry = (self.offset | FLAG_COPIED).to_be_bytes();
                self.offset = self.offset.saturating_add(CLUSTER_SIZE);
            }
        }
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

/// The data clusters: pieces of the image with zeros between them where they share a cluster.
struct DataClusters {
    pieces: Pieces<Arc<dyn Image>>,
    /// The guest offset up to which the clusters have been filled.
    filled: u64,
    /// A piece that has to wait for the zeros before it.
    ahead: Option<Segment>,
}

impl DataClusters {
    fn new(image: Arc<dyn Image>) -> Self {
        Self {
            pieces: Pieces::new(image),
            filled: 0,
            ahead: None,
        }
    }

    /// The zeros between what has been filled and the next piece, or the end: of the last cluster, and of the next one.
    fn gap(&self, next: Option<u64>) -> u64 {
        let cluster_end = self.filled.next_multiple_of(CLUSTER_SIZE);
        match next {
            None => cluster_end.saturating_sub(self.filled),
            Some(guest) if guest < cluster_end => guest.saturating_sub(self.filled),
            Some(guest) => cluster_end
                .saturating_sub(self.filled)
                .saturating_add(guest % CLUSTER_SIZE),
        }
    }

    fn step(&mut self) -> Result<Option<Segment>, Error> {
        if let Some(segment) = self.ahead.take() {
            return Ok(Some(segment));
        }
        let piece = loop {
            match self.pieces.next().transpose()? {
                Some(piece) if piece.origin == Origin::Zero => {}
                piece => break piece,
            }
        };
        let gap = self.gap(piece.map(|piece| piece.guest));
        match piece {
            Some(piece) => {
                self.filled = piece.end();
                self.ahead = Some(Segment::of(&piece));
            }
            None => self.filled = self.filled.next_multiple_of(CLUSTER_SIZE),
        }
        Ok(zeros(gap).or_else(|| self.ahead.take()))
    }
}

impl Iterator for DataClusters {
    type Item = Result<Segment, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
