//! L1 and L2 tables: what an entry says.
//!
//! | bits of an L1 entry | meaning |
//! | --- | --- |
//! | 9 to 55 | offset of the L2 table, 0 if absent |
//! | 63 | refcount is one |
//!
//! | bits of an L2 entry | meaning |
//! | --- | --- |
//! | 0 | reads as zeros (version 3, not with extended entries) |
//! | 9 to 55 | offset of the cluster, 0 if absent |
//! | 62 | compressed; bits 0 to 61 are a descriptor instead |
//! | 63 | refcount is one |
//!
//! An extended entry has 64 bits more: from bit 0, one for each of 32 subclusters that is allocated, and from bit 32, one for
//! each that reads as zeros.
//!
//! Format: QEMU qcow2 specification, "Cluster mapping" and "Extended L2 Entries".
//!
//! Differs: QEMU ignores reserved bits when it reads; here they are an error, as they are to `qemu-img check`.

use std::num::NonZeroU64;

use super::compressed::Descriptor;
use super::header::power_of_two;
use crate::Error;
use crate::safety::Region;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const FLAG_ZERO: u64 = 1;
pub(crate) const FLAG_COMPRESSED: u64 = 1 << 62;
/// Refcount is one: nobody else uses the cluster.
pub(crate) const FLAG_COPIED: u64 = 1 << 63;

/// Parses an L1 entry: where the L2 table is, if there is one. It may be outside of the file.
pub(crate) fn parse_l1(entry: u64, cluster_size: u64) -> Result<Option<u64>, Error> {
    if entry & L1_RESERVED != 0 {
        return Err(Error::corrupt(format!("L1 entry {entry:#018x} has reserved bits set")));
    }
    let offset = entry & OFFSET_MASK;
    Region {
        name: "L2 table",
        offset,
        len: cluster_size,
    }
    .aligned(cluster_size)?;
    Ok((offset != 0).then_some(offset))
}

/// What an L2 entry says about its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Absent, or reads as zeros.
    Zero,
    /// Wholly in the file from this offset.
    Data(u64),
    Compressed(Descriptor),
    /// Partly in the file: the subclusters whose bit is set.
    Subclusters {
        offset: u64,
        allocated: u32,
    },
}

/// What has to be known to understand L2 entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) cluster_size: NonZeroU64,
    pub(crate) extended: bool,
    pub(crate) file_size: u64,
}

impl Geometry {
    pub(crate) fn entry_len(&self) -> NonZeroU64 {
        power_of_two(if self.extended { 4 } else { 3 })
    }

    /// Parses an L2 entry; `bitmap` is the second half of an extended one, else 0.
    ///
    /// A cluster may begin at the very end of what is in the file and go on beyond it, where it reads as zeros; QEMU does not
    /// pad the last one. One that begins beyond the end is an error.
    ///
    /// Differs: QEMU reads zeros wherever the file ends; here a cut-off file is noticed.
    pub(crate) fn parse_l2(&self, entry: u64, bitmap: u64) -> Result<Cluster, Error> {
        if entry & FLAG_COMPRESSED != 0 {
            if bitmap != 0 {
                return Err(Error::corrupt(format!(
                    "compressed cluster with subcluster bitmap {bitmap:#018x}"
                )));
            }
            return Descriptor::parse(entry, self.cluster_bits, self.file_size).map(Cluster::Compressed);
        }
        let zero = entry & FLAG_ZERO != 0;
        if entry & L2_RESERVED != 0 || zero && self.extended {
            return Err(Error::corrupt(format!("L2 entry {entry:#018x} has reserved bits set")));
        }
        if zero && self.version < 3 {
            return Err(Error::corrupt("a zero cluster in an image of version 2"));
        }
        let offset = entry & OFFSET_MASK;
        let size = self.cluster_size.get();
        Region {
            name: "data cluster",
            offset,
            len: size,
        }
        .aligned(size)?;
        let cluster = self.cluster_at(offset, bitmap)?;
        Ok(if zero { Cluster::Zero } else { cluster })
    }

    fn cluster_at(&self, offset: u64, bitmap: u64) -> Result<Cluster, Error> {
        if offset >= self.file_size {
            let reason = format!(
                "data cluster at {offset} is beyond the end of the file at {}",
                self.file_size
            );
            return Err(Error::corrupt(reason));
        }
        if !self.extended {
            return Ok(if offset == 0 {
                Cluster::Zero
            } else {
                Cluster::Data(offset)
            });
        }
        let allocated = u32::try_from(bitmap & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let zeros = u32::try_from(bitmap >> 32).unwrap_or(u32::MAX);
        if allocated & zeros != 0 {
            return Err(Error::corrupt(format!(
                "subclusters both allocated and zero in bitmap {bitmap:#018x}"
            )));
        }
        match (offset, allocated) {
            (_, 0) => Ok(Cluster::Zero),
            (0, _) => Err(Error::corrupt(format!(
                "subclusters allocated without a cluster in bitmap {bitmap:#018x}"
            ))),
            (_, u32::MAX) => Ok(Cluster::Data(offset)),
            _ => Ok(Cluster::Subclusters { offset, allocated }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        version: 3,
        cluster_bits: 16,
        cluster_size: NonZeroU64::new(65536).unwrap(),
        extended: false,
        file_size: 0x100_0000,
    };

    #[test]
    fn l1_entries() {
        for (entry, expected) in [
            (0, Ok(None)),
            (FLAG_COPIED | 0x30000, Ok(Some(0x30000))),
            (0x30000, Ok(Some(0x30000))),
            (0x30200, Err("L2 table offset 197120 is not a multiple of 65536")),
            (0x30001, Err("L1 entry 0x0000000000030001 has reserved bits set")),
            (
                1 << 62 | 0x30000,
                Err("L1 entry 0x4000000000030000 has reserved bits set"),
            ),
        ] {
            let parsed = parse_l1(entry, 65536);
            assert_eq!(
                parsed.as_ref().map_err(Error::reason),
                expected.as_ref().map_err(|reason| *reason),
                "{entry:#x}"
            );
        }
    }

    #[test]
    fn l2_entries() {
        for (entry, expected) in [
            (0, Ok(Cluster::Zero)),
            (1, Ok(Cluster::Zero)),
            (FLAG_COPIED | 0x30001, Ok(Cluster::Zero)),
            (FLAG_COPIED | 0x30000, Ok(Cluster::Data(0x30000))),
            (0x30000, Ok(Cluster::Data(0x30000))),
            (
                FLAG_COMPRESSED | 0x30010,
                Ok(Cluster::Compressed(Descriptor {
                    offset: 0x30010,
                    len: 496,
                })),
            ),
            (0x30200, Err("data cluster offset 197120 is not a multiple of 65536")),
            (0x30201, Err("data cluster offset 197120 is not a multiple of 65536")),
            (0x30002, Err("L2 entry 0x0000000000030002 has reserved bits set")),
            (1 << 56, Err("L2 entry 0x0100000000000000 has reserved bits set")),
            (
                0x100_0000,
                Err("data cluster at 16777216 is beyond the end of the file at 16777216"),
            ),
        ] {
            let parsed = GEOMETRY.parse_l2(entry, 0);
            assert_eq!(
                parsed.as_ref().map_err(Error::reason),
                expected.as_ref().map_err(|reason| *reason),
                "{entry:#x}"
            );
        }
    }

    #[test]
    fn a_cluster_may_be_cut_by_the_end_of_the_file_but_not_begin_there() {
        let cut = Geometry {
            file_size: 0x30001,
            ..GEOMETRY
        };
        assert_eq!(cut.parse_l2(0x30000, 0).unwrap(), Cluster::Data(0x30000));
        let gone = Geometry {
            file_size: 0x30000,
            ..GEOMETRY
        };
        assert!(gone.parse_l2(0x30000, 0).is_err());
    }

    #[test]
    fn version_2_has_no_zero_clusters() {
        let old = Geometry { version: 2, ..GEOMETRY };
        assert_eq!(
            old.parse_l2(1, 0).unwrap_err().reason(),
            "a zero cluster in an image of version 2"
        );
    }

    #[test]
    fn extended_l2_entries() {
        let extended = Geometry {
            extended: true,
            ..GEOMETRY
        };
        for (entry, bitmap, expected) in [
            (0, 0, Ok(Cluster::Zero)),
            (0, 0xffff_ffff_0000_0000, Ok(Cluster::Zero)),
            (0x30000, 0, Ok(Cluster::Zero)),
            (
                0x30000,
                0xffff_fffc_0000_0001,
                Ok(Cluster::Subclusters {
                    offset: 0x30000,
                    allocated: 1,
                }),
            ),
            (0x30000, 0xffff_ffff, Ok(Cluster::Data(0x30000))),
            (
                0x30000,
                0x1_0000_0001,
                Err("subclusters both allocated and zero in bitmap 0x0000000100000001"),
            ),
            (
                0,
                1,
                Err("subclusters allocated without a cluster in bitmap 0x0000000000000001"),
            ),
            (1, 0, Err("L2 entry 0x0000000000000001 has reserved bits set")),
            (
                FLAG_COMPRESSED | 0x30000,
                1,
                Err("compressed cluster with subcluster bitmap 0x0000000000000001"),
            ),
        ] {
            let parsed = extended.parse_l2(entry, bitmap);
            assert_eq!(
                parsed.as_ref().map_err(Error::reason),
                expected.as_ref().map_err(|reason| *reason),
                "{entry:#x}"
            );
        }
    }
}
