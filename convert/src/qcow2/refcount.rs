//! The refcount table and blocks of a file in which every cluster is used exactly once.
//!
//! A refcount is 16 bits wide; a block is a cluster of them, and the table a list of 64-bit offsets of blocks. They count
//! themselves, too, which is why their number is found by trying.
//!
//! Format: QEMU qcow2 specification, "Host cluster management".

use super::planner::CLUSTER_SIZE;

/// Refcount order 4: 16 bits, as QEMU makes it.
pub(crate) const REFCOUNT_ORDER: u32 = 4;
/// How many clusters a block counts.
pub(crate) const BLOCK_ENTRIES: u64 = CLUSTER_SIZE / 2;
/// How many blocks a cluster of the table lists.
pub(crate) const TABLE_ENTRIES: u64 = CLUSTER_SIZE / 8;

/// How many clusters the refcounts of a file take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refcounts {
    pub(crate) table_clusters: u64,
    pub(crate) blocks: u64,
    /// All clusters of the file: these, and the others.
    pub(crate) total: u64,
}

impl Refcounts {
    /// Finds the fewest clusters that count `others` other clusters and themselves.
    pub(crate) fn for_file_of(others: u64) -> Self {
        let mut refcounts = Self {
            table_clusters: 0,
            blocks: 0,
            total: others,
        };
        loop {
            let blocks = refcounts.total.div_ceil(BLOCK_ENTRIES);
            let table_clusters = blocks.div_ceil(TABLE_ENTRIES);
            let total = others.saturating_add(blocks).saturating_add(table_clusters);
            if total == refcounts.total {
                return refcounts;
            }
            refcounts = Self {
                table_clusters,
                blocks,
                total,
            };
        }
    }

    /// Renders cluster `index` of the table, for blocks that stand in a row from byte `blocks_offset`.
    pub(crate) fn render_table(&self, index: u64, blocks_offset: u64) -> Vec<u8> {
        let first = index.saturating_mul(TABLE_ENTRIES);
        let offset_of = |block: u64| {
            if block < self.blocks {
                block.saturating_mul(CLUSTER_SIZE).saturating_add(blocks_offset)
            } else {
                0
            }
        };
        (first..first.saturating_add(TABLE_ENTRIES))
            .flat_map(|block| offset_of(block).to_be_bytes())
            .collect()
    }

    /// Renders block `index`: one for each cluster that is there.
    pub(crate) fn render_block(&self, index: u64) -> Vec<u8> {
        let first = index.saturating_mul(BLOCK_ENTRIES);
        let counted = self.total.saturating_sub(first).min(BLOCK_ENTRIES);
        (0..BLOCK_ENTRIES)
            .flat_map(|entry| u16::from(entry < counted).to_be_bytes())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_count_themselves() {
        for (others, table_clusters, blocks) in [
            (0, 0, 0),
            (1, 1, 1),
            (32766, 1, 1),
            (32767, 1, 2),
            (32768 * 2 - 3, 1, 2),
            (32768 * 2 - 2, 1, 3),
            (32768 * 8192 - 8193, 1, 8192),
            (32768 * 8192 - 8192, 2, 8193),
            (1 << 30, 5, 32770),
        ] {
            let refcounts = Refcounts::for_file_of(others);
            assert_eq!(
                (refcounts.table_clusters, refcounts.blocks),
                (table_clusters, blocks),
                "{others}"
            );
            assert_eq!(refcounts.total, others + table_clusters + blocks);
        }
    }

    #[test]
    fn the_last_block_ends_with_the_file() {
        let refcounts = Refcounts::for_file_of(32768);
        assert_eq!(refcounts.total, 32771);
        assert!(refcounts.render_block(0).chunks(2).all(|count| count == [0, 1]));
        let last = refcounts.render_block(1);
        assert_eq!(last.len(), 65536);
        assert_eq!(last.chunks(2).filter(|count| *count == [0, 1]).count(), 3);
        assert_eq!(last[..8], [0, 1, 0, 1, 0, 1, 0, 0]);
    }

    #[test]
    fn the_table_lists_the_blocks() {
        let table = Refcounts::for_file_of(32768).render_table(0, 0x20000);
        assert_eq!(table.len(), 65536);
        assert_eq!(
            table[..24],
            [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
