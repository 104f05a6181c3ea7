//! A qcow2 file of compressed clusters, put together as they come.
//!
//! ```text
//! header │ compressed clusters, packed │ plain clusters, L2 tables, refcount blocks │ … │ L1 table │ refcount blocks │ refcount table
//! ```
//!
//! Behind the header, which comes last, the file only grows. Compressed clusters follow each other without a gap. What needs a
//! cluster of its own does not shrink below one: such plain clusters wait, so that the rest of the cluster before them can
//! still be used, until there are many or an L2 table ends. Then it is padded with zeros. A refcount block is written once the
//! file has grown beyond what it counts, in the midst of the data like the others.
//!
//! A cluster of the file that holds parts of several compressed clusters has a refcount of their number.
//!
//! Format: QEMU qcow2 specification, "Cluster mapping" and "Compressed Clusters Descriptor".

use std::collections::VecDeque;

use super::Version;
use super::header::{Header, INCOMPATIBLE_COMPRESSION};
use super::planner::{CLUSTER_BITS, CLUSTER_LEN, CLUSTER_SIZE, L2_ENTRIES, L2_SPAN, SECTOR_SIZE};
use super::refcount::{BLOCK_ENTRIES, TABLE_ENTRIES};
use super::table::{FLAG_COMPRESSED, FLAG_COPIED};
use crate::Error;
use crate::encode::{Assemble, Encoded, Unit};

/// The header has a cluster of its own.
pub(crate) const HEAD_LEN: u64 = CLUSTER_SIZE;
/// Where the number of sectors stands in a descriptor.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// How many plain clusters wait: 8 MiB of memory, for half a cluster of padding in that.
const PLAIN_MAX: usize = 128;

/// How the clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Zlib,
    Zstd,
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Assembler {
    kind: Kind,
    /// Where the file goes on.
    end: u64,
    /// The L1 table as far as its L2 tables are written.
    l1: Vec<u64>,
    /// The L2 table that is being filled: its index, and its entries.
    l2_index: u64,
    l2: Vec<u64>,
    /// Plain clusters that wait for their places: the entries in the L2 table, and the bytes.
    plain: Vec<(usize, Vec<u8>)>,
    refcounts: Refcounts,
}

impl Assembler {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut refcounts = Refcounts::default();
        refcounts.add(0);
        Self {
            kind,
            end: HEAD_LEN,
            l1: Vec::new(),
            l2_index: 0,
            l2: vec![0; usize::try_from(L2_ENTRIES).expect("8192")],
            plain: Vec::new(),
            refcounts,
        }
    }

    fn push_unit(&mut self, cluster: u64, unit: Unit, bytes: &[u8], body: &mut Vec<u8>) {
        let table = cluster / L2_ENTRIES;
        while self.l2_index < table {
            self.end_table(body);
        }
        let index = usize::try_from(cluster % L2_ENTRIES).expect("below 8192");
        match unit {
            Unit::Zero => {}
            Unit::Compressed(_) => {
                let last = self.end.saturating_add(bytes.len() as u64).saturating_sub(1);
                let sectors = (last / SECTOR_SIZE).saturating_sub(self.end / SECTOR_SIZE);
                self.set(index, FLAG_COMPRESSED | sectors << SECTORS_SHIFT | self.end);
                for cluster in self.end / CLUSTER_SIZE..=last / CLUSTER_SIZE {
                    self.refcounts.add(cluster);
                }
                self.append(bytes, body);
            }
            Unit::Plain(_) => {
                self.plain.push((index, bytes.to_vec()));
                if self.plain.len() >= PLAIN_MAX {
                    self.place_plain(body);
                }
            }
        }
    }

    fn set(&mut self, index: usize, entry: u64) {
        *self.l2.get_mut(index).expect("an index in the table") = entry;
    }

    fn append(&mut self, bytes: &[u8], body: &mut Vec<u8>) {
        body.extend_from_slice(bytes);
        self.end = self.end.saturating_add(bytes.len() as u64);
    }

    /// Pads what was written to a whole number of clusters.
    fn align(&mut self, body: &mut Vec<u8>) {
        let end = self.end.next_multiple_of(CLUSTER_SIZE);
        let padding = usize::try_from(end.saturating_sub(self.end)).expect("less than a cluster");
        body.resize(body.len().saturating_add(padding), 0);
        self.end = end;
    }

    /// Appends a cluster that is used once, and says where it is. The file ends with a cluster before, and after.
    fn append_cluster(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> u64 {
        let offset = self.end;
        self.refcounts.add(offset / CLUSTER_SIZE);
        self.append(bytes, body);
        self.align(body);
        offset
    }

    fn place_plain(&mut self, body: &mut Vec<u8>) {
        if self.plain.is_empty() {
            return;
        }
        self.align(body);
        for (index, bytes) in std::mem::take(&mut self.plain) {
            let offset = self.append_cluster(&bytes, body);
            self.set(index, offset | FLAG_COPIED);
        }
    }

    /// Writes the L2 table, if there is anything in it, and the refcount blocks to which nothing will be added.
    fn end_table(&mut self, body: &mut Vec<u8>) {
        self.place_plain(body);
        self.l2_index = self.l2_index.saturating_add(1);
        if self.l2.iter().all(|entry| *entry == 0) {
            self.l1.push(0);
            return;
        }
        self.align(body);
        let bytes: Vec<u8> = self.l2.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let offset = self.append_cluster(&bytes, body);
        self.l1.push(offset | FLAG_COPIED);
        self.l2.fill(0);
        while let Some(block) = self.refcounts.take_before(self.end / CLUSTER_SIZE) {
            let offset = self.append_cluster(&block, body);
            self.refcounts.places.push(offset);
        }
    }

    fn write_l1(&mut self, body: &mut Vec<u8>) -> u64 {
        self.align(body);
        let offset = self.end;
        let bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // One cluster even for a disk of size zero, so that the table has a place.
        if bytes.is_empty() {
            self.append_cluster(&[0], body);
        }
        for cluster in bytes.chunks(CLUSTER_LEN) {
            self.append_cluster(cluster, body);
        }
        offset
    }

    /// Writes the last refcount blocks and the refcount table, and says where that is and how many clusters it has.
    fn write_refcounts(&mut self, body: &mut Vec<u8>) -> (u64, u64) {
        let clusters = self.end / CLUSTER_SIZE;
        let written = self.refcounts.places.len() as u64;
        let (mut total, mut table_clusters) = (clusters, 0);
        // They count themselves, too, which is why their number is found by trying.
        loop {
            let blocks = total.div_ceil(BLOCK_ENTRIES);
            table_clusters = blocks.div_ceil(TABLE_ENTRIES).max(table_clusters);
            let all = clusters
                .saturating_add(blocks.saturating_sub(written))
                .saturating_add(table_clusters);
            if all == total {
                break;
            }
            total = all;
        }
        for cluster in clusters..total {
            self.refcounts.add(cluster);
        }
        while let Some(block) = self.refcounts.take() {
            self.refcounts.places.push(self.end);
            self.append(&block, body);
        }
        let offset = self.end;
        let table: Vec<u8> = self
            .refcounts
            .places
            .iter()
            .flat_map(|place| place.to_be_bytes())
            .collect();
        self.append(&table, body);
        self.align(body);
        (offset, table_clusters)
    }
}

impl Assemble for Assembler {
    fn start(&mut self, _: &mut Vec<u8>) {}

    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        for (cluster, unit, bytes) in encoded.units(CLUSTER_SIZE) {
            self.push_unit(cluster, unit, bytes, body);
        }
        Ok(())
    }

    fn finish(&mut self, virtual_size: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        while self.l2_index < virtual_size.div_ceil(L2_SPAN) {
            self.end_table(body);
        }
        let l1_table_offset = self.write_l1(body);
        let (refcount_table_offset, table_clusters) = self.write_refcounts(body);
        let zstd = self.kind == Kind::Zstd;
        let header = Header {
            size: virtual_size.next_multiple_of(SECTOR_SIZE),
            l1_size: u32::try_from(self.l1.len().max(1)).expect("a disk is no larger than 64 TiB"),
            l1_table_offset,
            refcount_table_offset,
            refcount_table_clusters: u32::try_from(table_clusters).expect("nine suffice for 128 TiB"),
            incompatible: if zstd { INCOMPATIBLE_COMPRESSION } else { 0 },
            compression_type: u8::from(zstd),
            ..Header::new(Version::Three, CLUSTER_BITS)
        };
        let mut head = header.render();
        head.resize(CLUSTER_LEN, 0);
        Ok(head)
    }
}

/// How often each cluster of the file is used, as far as that is not written.
#[derive(Debug, Default)]
struct Refcounts {
    /// Where the blocks are that were written.
    places: Vec<u64>,
    /// How many blocks were taken away to be written: the first one here counts from there on.
    taken: u64,
    blocks: VecDeque<Vec<u16>>,
}

impl Refcounts {
    /// Counts one use more of a cluster that is not in a block that was taken.
    fn add(&mut self, cluster: u64) {
        let block = (cluster / BLOCK_ENTRIES).checked_sub(self.taken);
        let block = usize::try_from(block.expect("what was taken is complete")).expect("a block of a file");
        while self.blocks.len() <= block {
            self.blocks
                .push_back(vec![0; usize::try_from(BLOCK_ENTRIES).expect("32768")]);
        }
        let entry = usize::try_from(cluster % BLOCK_ENTRIES).expect("below 32768");
        if let Some(count) = self.blocks.get_mut(block).and_then(|block| block.get_mut(entry)) {
            // No compressed cluster has fewer than two bytes.
            *count = count.saturating_add(1);
        }
    }

    /// Takes the first block if all that it counts comes before `cluster`.
    fn take_before(&mut self, cluster: u64) -> Option<Vec<u8>> {
        let end = self.taken.saturating_add(1).saturating_mul(BLOCK_ENTRIES);
        if end <= cluster { self.take() } else { None }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let block = self.blocks.pop_front()?;
        self.taken = self.taken.saturating_add(1);
        Some(block.iter().flat_map(|count| count.to_be_bytes()).collect())
    }
}
