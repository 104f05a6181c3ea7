//! Where a compressed cluster is: the descriptor in its L2 entry.
//!
//! With x = 62 - (cluster bits - 8), bits 0 to x-1 are the byte offset in the file, unaligned, and bits x to 61 the number of
//! 512-byte sectors that the compressed bytes touch beyond the first.
//!
//! Format: QEMU qcow2 specification, "Compressed Clusters Descriptor".

use crate::Error;

/// A stretch of the image file that holds a compressed cluster, and perhaps some bytes that do not belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Descriptor {
    /// Parses bits 0 to 61 of `entry` for clusters of 512 bytes to 2 MiB.
    ///
    /// The last sector may reach beyond the end of the file, which has no need of padding; the length is cut to it.
    pub(crate) fn parse(entry: u64, cluster_bits: u32, file_size: u64) -> Result<Self, Error> {
        let offset_bits = 70_u32.saturating_sub(cluster_bits);
        let low = |value: u64, bits: u32| value & !u64::MAX.unbounded_shl(bits);
        let descriptor = low(entry, 62);
        let offset = low(descriptor, offset_bits);
        let sectors = descriptor.unbounded_shr(offset_bits).saturating_add(1);
        if offset >= file_size {
            let reason = format!("compressed cluster at {offset} is beyond the end of the file at {file_size}");
            return Err(Error::corrupt(reason));
        }
        let len = sectors.saturating_mul(512).saturating_sub(offset % 512);
        Ok(Self {
            offset,
            len: len.min(file_size.saturating_sub(offset)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_by_cluster_size() {
        const FILE: u64 = 1 << 40;
        for (entry, cluster_bits, offset, len) in [
            (0x1000, 16, 0x1000, 512),
            (0x1001, 16, 0x1001, 511),
            (0x11ff, 16, 0x11ff, 1),
            // Two more sectors: x is 54 for 64 KiB clusters, 61 for 512 bytes, 49 for 2 MiB.
            (2 << 54 | 0x1010, 16, 0x1010, 3 * 512 - 0x10),
            (1 << 61 | 0x1010, 9, 0x1010, 2 * 512 - 0x10),
            (0x1fff << 49 | 0x200, 21, 0x200, 0x2000 * 512),
            // The flags above are not part of it.
            (3 << 62 | 0x1000, 16, 0x1000, 512),
            (FILE - 100, 16, FILE - 100, 100),
        ] {
            let descriptor = Descriptor::parse(entry, cluster_bits, FILE).unwrap();
            assert_eq!(descriptor, Descriptor { offset, len }, "{entry:#x}");
        }
    }

    #[test]
    fn beyond_the_end_is_corrupt() {
        for (entry, reason) in [
            (4096, "compressed cluster at 4096 is beyond the end of the file at 4096"),
            (
                1 << 53,
                "compressed cluster at 9007199254740992 is beyond the end of the file at 4096",
            ),
        ] {
            assert_eq!(Descriptor::parse(entry, 16, 4096).unwrap_err().reason(), reason);
        }
    }
}
