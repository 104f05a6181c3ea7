//! What a disk says of itself in its first sectors: partition tables and file systems.
//!
//! | offset | bytes | means |
//! | --- | --- | --- |
//! | 0 | `LUKS\xba\xbe` | encrypted volume |
//! | 0 | `XFSB` | XFS superblock |
//! | 510 | `55 aa` | boot sector, MBR if partition entries at 446 make sense |
//! | 512 n, n < 4 | `LABELONE`, at 24 `LVM2 001` | LVM physical volume |
//! | 512 or 4096 | `EFI PART` | GPT header, for sectors of 512 or 4096 bytes |
//! | 1080 | `53 ef` | ext2, ext3 or ext4 superblock |
//! | 4086 | `SWAPSPACE2` | Linux swap with pages of 4 KiB |
//! | 32769 | `CD001` | ISO 9660 volume descriptor |
//! | 65600 | `_BHRfS_M` | btrfs superblock |

use std::fmt;

use serde::{Serialize, Serializer};

/// The start of a disk that holds every signature that is looked for.
pub(crate) const HEAD_LEN: u64 = 68 << 10;

/// Something that is known to stand at the start of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signature {
    /// GUID partition table.
    Gpt,
    /// Master boot record with a partition.
    Mbr,
    /// A boot sector without a partition table.
    BootSector,
    /// ISO 9660 file system, as on a CD or a live image.
    Iso9660,
    /// ext2, ext3 or ext4 file system.
    Ext,
    /// XFS file system.
    Xfs,
    /// btrfs file system.
    Btrfs,
    /// LVM physical volume.
    Lvm,
    /// Linux swap space.
    Swap,
    /// LUKS encrypted volume.
    Luks,
}

impl Signature {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
            Self::BootSector => "boot-sector",
            Self::Iso9660 => "iso9660",
            Self::Ext => "ext",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Lvm => "lvm",
            Self::Swap => "swap",
            Self::Luks => "luks",
        }
    }

    /// Whether it divides the disk into partitions.
    pub const fn is_partition_table(self) -> bool {
        matches!(self, Self::Gpt | Self::Mbr)
    }

    /// Whether it makes the whole disk into one thing.
    ///
    /// Swap space does not count: the file systems that replace it leave its magic number where it is.
    pub(crate) const fn is_whole_disk(self) -> bool {
        matches!(
            self,
            Self::Iso9660 | Self::Ext | Self::Xfs | Self::Btrfs | Self::Lvm | Self::Luks
        )
    }

    /// Where it shows, in bytes from the start of the disk; the first place of several.
    pub(crate) const fn offset(self) -> u64 {
        match self {
            Self::Xfs | Self::Luks | Self::Lvm => 0,
            Self::Mbr => 446,
            Self::BootSector => 510,
            Self::Gpt => 512,
            Self::Ext => 1080,
            Self::Swap => 4086,
            Self::Iso9660 => 32769,
            Self::Btrfs => 65600,
        }
    }

    /// Everything that `head`, the first [`HEAD_LEN`] bytes of a disk or what there is of them, shows; the most telling first.
    pub(crate) fn find_all(head: &[u8]) -> Vec<Self> {
        let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        let boot = has(510, &[0x55, 0xaa]);
        let mbr = boot && has_partitions(head);
        let found = [
            (Self::Gpt, has(512, b"EFI PART") || has(4096, b"EFI PART")),
            (Self::Iso9660, has(32769, b"CD001")),
            (Self::Mbr, mbr),
            (Self::Luks, has(0, b"LUKS\xba\xbe")),
            (Self::Xfs, has(0, b"XFSB")),
            (Self::Ext, has_ext_superblock(head)),
            (Self::Btrfs, has(65600, b"_BHRfS_M")),
            (
                Self::Lvm,
                (0..4).any(|sector: usize| {
                    let label = sector.saturating_mul(512);
                    has(label, b"LABELONE") && has(label.saturating_add(24), b"LVM2 001")
                }),
            ),
            (Self::Swap, has(4086, b"SWAPSPACE2")),
            (Self::BootSector, boot && !mbr),
        ];
        found
            .into_iter()
            .filter_map(|(signature, here)| here.then_some(signature))
            .collect()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Whether the four entries of a master boot record are partitions, at least one of them in use.
fn has_partitions(head: &[u8]) -> bool {
    let (entries, _) = head.get(446..510).unwrap_or_default().as_chunks::<16>();
    let plausible = |entry: &[u8; 16]| matches!(entry[0], 0x00 | 0x80);
    let used = |entry: &[u8; 16]| entry[4] != 0 && entry[12..16] != [0; 4];
    entries.iter().all(plausible) && entries.iter().any(used)
}

/// Two bytes of magic are few, so the block size and the revision have to make sense as well.
fn has_ext_superblock(head: &[u8]) -> bool {
    let Some(superblock) = head.get(1024..2048) else {
        return false;
    };
    let le_u32 = |offset: usize| {
        superblock
            .get(offset..)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
    };
    let magic = superblock.get(56..58) == Some(&[0x53, 0xef]);
    magic
        && le_u32(24).is_some_and(|log_block_size| log_block_size <= 6)
        && le_u32(76).is_some_and(|revision| revision <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes and where they stand.
    type Part<'a> = (usize, &'a [u8]);

    fn head(parts: &[Part<'_>]) -> Vec<u8> {
        let mut head = vec![0; usize::try_from(HEAD_LEN).unwrap()];
        for (offset, bytes) in parts {
            head[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn signatures_are_found_in_their_places() {
        const BOOT: Part<'_> = (510, &[0x55, 0xaa]);
        const PARTITION: Part<'_> = (446, &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
        use Signature::*;
        let cases: &[(&[Part<'_>], &[Signature])] = &[
            (&[], &[]),
            (&[BOOT], &[BootSector]),
            (&[BOOT, PARTITION], &[Mbr]),
            (&[BOOT, PARTITION, (462, &[0x17])], &[BootSector]),
            (&[PARTITION], &[]),
            (&[BOOT, PARTITION, (512, b"EFI PART")], &[Gpt, Mbr]),
            (&[(4096, b"EFI PART")], &[Gpt]),
            (&[(1024, b"EFI PART")], &[]),
            (&[BOOT, PARTITION, (32769, b"CD001")], &[Iso9660, Mbr]),
            (&[(1080, &[0x53, 0xef])], &[Ext]),
            (&[(1080, &[0x53, 0xef]), (1024 + 24, &[7])], &[]),
            (&[(1080, &[0x53, 0xef]), (1024 + 76, &[2])], &[]),
            (&[(0, b"XFSB")], &[Xfs]),
            (&[(65600, b"_BHRfS_M")], &[Btrfs]),
            (&[(512, b"LABELONE"), (536, b"LVM2 001")], &[Lvm]),
            (&[(2048, b"LABELONE"), (2072, b"LVM2 001")], &[]),
            (&[(4086, b"SWAPSPACE2")], &[Swap]),
            (&[(0, b"LUKS\xba\xbe")], &[Luks]),
        ];
        for (parts, expected) in cases {
            assert_eq!(Signature::find_all(&head(parts)), *expected, "{parts:?}");
        }
    }

    #[test]
    fn short_heads_hold_nothing() {
        for len in [0, 1, 509, 511, 1081] {
            assert_eq!(Signature::find_all(&vec![0xff; len]), []);
        }
    }
}
