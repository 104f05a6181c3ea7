//! File systems, volumes and containers by their superblocks.
//!
//! | what | where it shows | label | identifier |
//! | --- | --- | --- | --- |
//! | ext2, ext3, ext4 | `53 ef` at 1080 | 1144, 16 bytes | 1128 |
//! | XFS | `XFSB` at 0 | 108, 12 bytes | 32 |
//! | btrfs | `_BHRfS_M` at 65600 | 65835, 256 bytes | 65568 |
//! | FAT | parameter block at 11 | 43 or 71, 11 bytes | 39 or 67 |
//! | exFAT | `EXFAT` at 3 | entry 0x83 of the root folder | 100 |
//! | NTFS | `NTFS` at 3 | file 3, attribute 0x60 | 72 |
//! | ISO 9660 | `CD001` at 32769 | 32808, 32 bytes | dates at 33581 and 33598 |
//! | LVM | `LABELONE` in one of 4 sectors | | physical volume header |
//! | swap | `SWAPSPACE2` at the end of a page | 1052, 16 bytes | 1036 |
//! | LUKS | `LUKS ba be` at 0 | 24, 48 bytes (version 2) | 168 |
//!
//! Identifiers are spelled as `blkid` spells them.

use std::fmt;

use serde::{Serialize, Serializer};

use super::look::{Fields, View};
use super::{ext, fat, ntfs};
use crate::Error;

/// What a partition, or a disk without partitions, is made into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileSystem {
    /// What it is.
    pub kind: FileSystemKind,
    /// Its name, as it is there: see [`printable`](crate::printable).
    pub label: Option<String>,
    /// Its identifier as `blkid` spells it: mostly a UUID, for FAT a serial number, for ISO 9660 a date.
    pub uuid: Option<String>,
}

/// The sorts of file systems, volumes and containers that are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are the names of file systems")]
pub enum FileSystemKind {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Fat12,
    Fat16,
    Fat32,
    ExFat,
    Ntfs,
    Iso9660,
    LvmPv,
    Swap,
    Luks1,
    Luks2,
}

impl FileSystemKind {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Fat12 => "fat12",
            Self::Fat16 => "fat16",
            Self::Fat32 => "fat32",
            Self::ExFat => "exfat",
            Self::Ntfs => "ntfs",
            Self::Iso9660 => "iso9660",
            Self::LvmPv => "lvm2-pv",
            Self::Swap => "swap",
            Self::Luks1 => "luks1",
            Self::Luks2 => "luks2",
        }
    }

    /// Whether it is one of the ext family.
    pub const fn is_ext(self) -> bool {
        matches!(self, Self::Ext2 | Self::Ext3 | Self::Ext4)
    }

    /// Whether it is FAT with clusters of 12, 16 or 32 bits.
    pub const fn is_fat(self) -> bool {
        matches!(self, Self::Fat12 | Self::Fat16 | Self::Fat32)
    }
}

impl fmt::Display for FileSystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for FileSystemKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Everything that shows in `view`: at most one thing, unless somebody has left something behind or means to deceive.
pub(super) fn find_all(view: View<'_>) -> Result<Vec<FileSystem>, Error> {
    let looks = [luks, xfs, ext, btrfs, ntfs, exfat, fat, iso9660, lvm, swap];
    let mut found = Vec::new();
    for look in looks {
        found.extend(look(view)?);
    }
    Ok(found)
}

type Found = Result<Option<FileSystem>, Error>;

fn new(kind: FileSystemKind, label: Option<String>, uuid: Option<String>) -> FileSystem {
    FileSystem { kind, label, uuid }
}

fn luks(view: View<'_>) -> Found {
    let Some(header) = view.read_if_there(0, 512)? else {
        return Ok(None);
    };
    let uuid = header.text(168, 40);
    Ok(match (header.has(0, b"LUKS\xba\xbe"), header.array(6)) {
        (true, [0, 1]) => Some(new(FileSystemKind::Luks1, None, uuid)),
        (true, [0, 2]) => Some(new(FileSystemKind::Luks2, header.text(24, 48), uuid)),
        _ => None,
    })
}

fn xfs(view: View<'_>) -> Found {
    let Some(superblock) = view.read_if_there(0, 512)? else {
        return Ok(None);
    };
    let found = || new(FileSystemKind::Xfs, superblock.text(108, 12), superblock.uuid(32));
    Ok(superblock.has(0, b"XFSB").then(found))
}

fn ext(view: View<'_>) -> Found {
    let Some(superblock) = ext::Superblock::read(view)? else {
        return Ok(None);
    };
    let fields = &superblock.fields;
    Ok(Some(new(superblock.kind(), fields.text(120, 16), fields.uuid(104))))
}

fn btrfs(view: View<'_>) -> Found {
    let Some(superblock) = view.read_if_there(64 << 10, 4096)? else {
        return Ok(None);
    };
    let found = || new(FileSystemKind::Btrfs, superblock.text(0x12b, 256), superblock.uuid(32));
    Ok(superblock.has(64, b"_BHRfS_M").then(found))
}

fn ntfs(view: View<'_>) -> Found {
    let Some(boot) = boot_sector(view, b"NTFS    ")? else {
        return Ok(None);
    };
    let uuid = format!("{:016X}", boot.u64(72));
    Ok(Some(new(FileSystemKind::Ntfs, ntfs::label(view, &boot)?, Some(uuid))))
}

fn exfat(view: View<'_>) -> Found {
    let Some(boot) = boot_sector(view, b"EXFAT   ")? else {
        return Ok(None);
    };
    Ok(Some(new(
        FileSystemKind::ExFat,
        fat::exfat_label(view, &boot)?,
        Some(serial(boot.u32(100))),
    )))
}

fn fat(view: View<'_>) -> Found {
    let Some(volume) = fat::Volume::open(view)? else {
        return Ok(None);
    };
    Ok(Some(new(volume.kind(), volume.label(), Some(serial(volume.serial())))))
}

/// The first sector, if it names a file system where NTFS and exFAT do.
fn boot_sector(view: View<'_>, name: &[u8]) -> Result<Option<Fields>, Error> {
    let boot = view.read_if_there(0, 512)?;
    Ok(boot.filter(|boot| boot.has(3, name) && boot.has(510, &[0x55, 0xaa])))
}

fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

fn iso9660(view: View<'_>) -> Found {
    let Some(descriptor) = view.read_if_there(32 << 10, 2048)? else {
        return Ok(None);
    };
    if !descriptor.has(0, b"\x01CD001\x01") {
        return Ok(None);
    }
    let is_date = |place: &usize| {
        let digits = descriptor.bytes(*place, 16);
        digits.iter().all(u8::is_ascii_digit) && digits.iter().any(|digit| *digit != b'0')
    };
    let date = [830, 813].into_iter().find(is_date).map(|place| {
        let part = |offset: usize, len| {
            String::from_utf8_lossy(descriptor.bytes(place.saturating_add(offset), len)).into_owned()
        };
        [
            part(0, 4),
            part(4, 2),
            part(6, 2),
            part(8, 2),
            part(10, 2),
            part(12, 2),
            part(14, 2),
        ]
        .join("-")
    });
    Ok(Some(new(FileSystemKind::Iso9660, descriptor.text(40, 32), date)))
}

fn lvm(view: View<'_>) -> Found {
    let Some(head) = view.read_if_there(0, 4 * 512)? else {
        return Ok(None);
    };
    let label = [0, 512, 1024, 1536]
        .into_iter()
        .find(|place: &usize| head.has(*place, b"LABELONE") && head.has(place.saturating_add(24), b"LVM2 001"));
    let Some(label) = label else { return Ok(None) };
    let header = usize::try_from(head.u32(label.saturating_add(20))).unwrap_or(usize::MAX);
    let id = head.text(label.saturating_add(header), 32);
    // Groups of 6, 4, 4, 4, 4, 4 and 6 letters.
    let uuid = id.filter(|id| id.len() == 32 && id.is_ascii()).map(|id| {
        let ends = [0, 6, 10, 14, 18, 22, 26, 32];
        let groups: Vec<&str> = ends
            .windows(2)
            .filter_map(|pair| match pair {
                [start, end] => id.get(*start..*end),
                _ => None,
            })
            .collect();
        groups.join("-")
    });
    Ok(Some(new(FileSystemKind::LvmPv, None, uuid)))
}

fn swap(view: View<'_>) -> Found {
    // As large as pages are on any processor that Linux runs on.
    for page_len in [4096, 8192, 16384, 65536_u64] {
        let magic = view.read_if_there(page_len.saturating_sub(10), 10)?;
        if !magic.is_some_and(|magic| magic.has(0, b"SWAPSPACE2")) {
            continue;
        }
        let header = view.read(1024, 128)?;
        return Ok(Some(new(FileSystemKind::Swap, header.text(28, 16), header.uuid(12))));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    /// Bytes and where they stand.
    type Part<'a> = (usize, &'a [u8]);

    fn look(parts: &[Part<'_>]) -> Vec<String> {
        let mut disk = vec![0; 256 << 10];
        for (offset, bytes) in parts {
            disk[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        let found = with_disk(&disk, find_all).unwrap();
        let spell = |field: Option<String>| field.unwrap_or_default();
        found
            .into_iter()
            .map(|found| format!("{} {} {}", found.kind, spell(found.label), spell(found.uuid)))
            .collect()
    }

    #[test]
    fn superblocks_tell_name_and_identifier() {
        let uuid: Vec<u8> = (1..=16).collect();
        let spelled = "01020304-0506-0708-090a-0b0c0d0e0f10";
        let luks = b"5d8f10f4-0c4f-4c3b-8ba5-a2b2b8c1c7a1";
        let cases: &[(&[Part<'_>], &str)] = &[
            (
                &[(0, b"LUKS\xba\xbe\0\x01"), (168, luks)],
                "luks1  5d8f10f4-0c4f-4c3b-8ba5-a2b2b8c1c7a1",
            ),
            (
                &[(0, b"LUKS\xba\xbe\0\x02"), (24, b"root"), (168, luks)],
                "luks2 root 5d8f10f4-0c4f-4c3b-8ba5-a2b2b8c1c7a1",
            ),
            (
                &[(0, b"XFSB"), (32, &uuid), (108, b"data")],
                &format!("xfs data {spelled}"),
            ),
            (
                &[(65600, b"_BHRfS_M"), (65568, &uuid), (65835, b"pool")],
                &format!("btrfs pool {spelled}"),
            ),
            (
                &[(1080, b"\x53\xef"), (1128, &uuid), (1144, b"old")],
                &format!("ext2 old {spelled}"),
            ),
            (
                &[(1080, b"\x53\xef"), (1116, &[4]), (1128, &uuid)],
                &format!("ext3  {spelled}"),
            ),
            (
                &[(1080, b"\x53\xef"), (1120, &[0x40]), (1128, &uuid)],
                &format!("ext4  {spelled}"),
            ),
            (
                &[(4086, b"SWAPSPACE2"), (1036, &uuid), (1052, b"swp")],
                &format!("swap swp {spelled}"),
            ),
            (&[(65526, b"SWAPSPACE2"), (1036, &uuid)], &format!("swap  {spelled}")),
            (
                &[
                    (512, b"LABELONE"),
                    (532, &[32]),
                    (536, b"LVM2 001"),
                    (544, b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
                ],
                "lvm2-pv  abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345",
            ),
            (
                &[
                    (32768, b"\x01CD001\x01"),
                    (32808, b"DEBIAN 12   "),
                    (33581, b"2026010203040506"),
                ],
                "iso9660 DEBIAN 12 2026-01-02-03-04-05-06",
            ),
            (
                &[(3, b"NTFS    "), (72, &[0xf0, 0xde, 0xbc, 0x9a]), (510, b"\x55\xaa")],
                "ntfs  000000009ABCDEF0",
            ),
        ];
        for (parts, expected) in cases {
            assert_eq!(look(parts), [*expected], "{expected}");
        }
    }

    #[test]
    fn what_only_begins_like_one_is_none() {
        let cases: &[&[Part<'_>]] = &[
            &[],
            &[(0, b"LUKS\xba\xbe\0\x03")],
            &[(1080, b"\x53\xef"), (1048, &[9])],
            &[(3, b"NTFS    ")],
            &[(32769, b"CD001")],
            &[(2048, b"LABELONE"), (2072, b"LVM2 001")],
        ];
        for parts in cases {
            assert!(look(parts).is_empty(), "{parts:?}");
        }
    }
}
