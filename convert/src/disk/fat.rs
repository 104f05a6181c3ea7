//! FAT with clusters of 12, 16 or 32 bits, as far as it takes to find a file by its short name; and exFAT's label.
//!
//! | offset | bytes | field of the parameter block |
//! | --- | --- | --- |
//! | 11 | 2 | bytes in a sector |
//! | 13 | 1 | sectors in a cluster |
//! | 14 | 2 | reserved sectors |
//! | 16 | 1 | FATs |
//! | 17 | 2 | entries of the root folder, 0 with 32 bits |
//! | 19, 32 | 2, 4 | sectors |
//! | 22, 36 | 2, 4 | sectors of a FAT |
//! | 44 | 4 | first cluster of the root folder, with 32 bits |
//!
//! Format: Microsoft, "FAT File System Specification", version 1.03; "exFAT file system specification".

use super::filesystem::FileSystemKind;
use super::look::{Fields, View};
use crate::Error;

const ENTRY_LEN: usize = 32;
/// The entry of a short name: these bits of its attributes say that it is a label or a part of a long name.
const ATTRIBUTE_LABEL: u8 = 8;
const ATTRIBUTE_FOLDER: u8 = 16;
const EXFAT_LABEL: u8 = 0x83;
/// More clusters than this have 16 bits, and more than that 32.
const CLUSTERS_12_MAX: u64 = 4084;
const CLUSTERS_16_MAX: u64 = 65524;

/// A FAT file system whose parameter block makes sense.
pub(super) struct Volume<'a> {
    view: View<'a>,
    boot: Fields,
    kind: FileSystemKind,
    sector_len: u64,
    cluster_len: u64,
    fat: u64,
    /// The root folder where clusters have 12 or 16 bits: place and length.
    root: (u64, u64),
    /// Where cluster 2 is.
    data: u64,
    cluster_count: u64,
}

impl<'a> Volume<'a> {
    pub(super) fn open(view: View<'a>) -> Result<Option<Self>, Error> {
        let Some(boot) = view.read_if_there(0, 512)? else {
            return Ok(None);
        };
        let sector_len = u64::from(boot.u16(11));
        let (cluster_sectors, reserved, fat_count) = (u64::from(boot.u8(13)), u64::from(boot.u16(14)), boot.u8(16));
        let good = boot.has(510, &[0x55, 0xaa])
            && matches!(boot.u8(0), 0xeb | 0xe9)
            && matches!(sector_len, 512 | 1024 | 2048 | 4096)
            && cluster_sectors.is_power_of_two()
            && reserved > 0
            && matches!(fat_count, 1 | 2)
            && boot.u8(21) >= 0xf0;
        if !good {
            return Ok(None);
        }
        let either = |short: usize, long: usize| match boot.u16(short) {
            0 => u64::from(boot.u32(long)),
            short => u64::from(short),
        };
        let (sectors, fat_sectors) = (either(19, 32), either(22, 36));
        let root_len = u64::from(boot.u16(17)).saturating_mul(ENTRY_LEN as u64);
        let fat_end = reserved.saturating_add(fat_sectors.saturating_mul(u64::from(fat_count)));
        let data_sector = fat_end.saturating_add(root_len.div_ceil(sector_len));
        let clusters = sectors
            .saturating_sub(data_sector)
            .checked_div(cluster_sectors)
            .unwrap_or_default();
        if clusters == 0 || fat_sectors == 0 {
            return Ok(None);
        }
        let kind = match clusters {
            _ if boot.u16(22) == 0 => FileSystemKind::Fat32,
            _ if clusters <= CLUSTERS_12_MAX => FileSystemKind::Fat12,
            _ if clusters <= CLUSTERS_16_MAX => FileSystemKind::Fat16,
            _ => FileSystemKind::Fat32,
        };
        let place = |sector: u64| sector.saturating_mul(sector_len);
        Ok(Some(Self {
            view,
            kind,
            sector_len,
            cluster_len: place(cluster_sectors),
            fat: place(reserved),
            root: (place(fat_end), root_len),
            data: place(data_sector),
            cluster_count: clusters,
            boot,
        }))
    }

    pub(super) fn kind(&self) -> FileSystemKind {
        self.kind
    }

    fn extended(&self, short: usize, long: usize) -> usize {
        if self.kind == FileSystemKind::Fat32 {
            long
        } else {
            short
        }
    }

    pub(super) fn label(&self) -> Option<String> {
        let label = self.boot.text(self.extended(43, 71), 11);
        label.filter(|label| label != "NO NAME")
    }

    pub(super) fn serial(&self) -> u32 {
        self.boot.u32(self.extended(39, 67))
    }

    /// Which of `names`, as they stand in an entry (`BOOTX64 EFI`), are in the folder at `path`.
    pub(super) fn names_in(&self, path: &[&[u8; 11]], names: &[&'static [u8; 11]]) -> Result<Vec<usize>, Error> {
        let mut folder = match self.kind {
            FileSystemKind::Fat32 => Folder::Chain(self.boot.u32(44)),
            _ => Folder::Root,
        };
        for name in path {
            let entry = self.entries(folder, |entry| entry.has(0, &name[..]))?;
            let Some(entry) = entry.first().filter(|entry| entry.u8(11) & ATTRIBUTE_FOLDER != 0) else {
                return Ok(Vec::new());
            };
            let high = match self.kind {
                FileSystemKind::Fat32 => u32::from(entry.u16(20)),
                _ => 0,
            };
            folder = Folder::Chain(high << 16 | u32::from(entry.u16(26)));
        }
        let position = |entry: &Fields| names.iter().position(|name| entry.has(0, &name[..]));
        let found = self.entries(folder, |entry| {
            position(entry).is_some() && entry.u8(11) & ATTRIBUTE_FOLDER == 0
        })?;
        Ok(found.iter().filter_map(position).collect())
    }

    /// The entries of a folder that are wanted.
    fn entries(&self, folder: Folder, wanted: impl Fn(&Fields) -> bool) -> Result<Vec<Fields>, Error> {
        let mut found = Vec::new();
        let mut next = match folder {
            Folder::Root => None,
            Folder::Chain(cluster) => Some(cluster),
        };
        loop {
            self.view.step()?;
            let (place, len) = match next {
                None => self.root,
                Some(cluster) => match self.cluster(cluster) {
                    Some(place) => (place, self.cluster_len),
                    None => return Ok(found),
                },
            };
            for entry in self.view.read(place, len)?.0.chunks_exact(ENTRY_LEN) {
                self.view.step()?;
                let entry = Fields(entry.to_vec());
                match entry.u8(0) {
                    0 => return Ok(found),
                    0xe5 => {}
                    _ if entry.u8(11) & ATTRIBUTE_LABEL == 0 && wanted(&entry) => found.push(entry),
                    _ => {}
                }
            }
            let Some(cluster) = next else { return Ok(found) };
            next = Some(self.next(cluster)?);
        }
    }

    /// Where a cluster is, if there is one of that number.
    fn cluster(&self, cluster: u32) -> Option<u64> {
        let index = u64::from(cluster).checked_sub(2)?;
        let place = index.saturating_mul(self.cluster_len).saturating_add(self.data);
        (index < self.cluster_count).then_some(place)
    }

    /// The cluster that follows one in its chain, or a number that none has.
    fn next(&self, cluster: u32) -> Result<u32, Error> {
        let number = u64::from(cluster);
        let entry = |offset: u64| self.view.read(self.fat.saturating_add(offset), 4.min(self.sector_len));
        Ok(match self.kind {
            FileSystemKind::Fat12 => {
                let pair = u32::from(entry(number.saturating_add(number / 2))?.u16(0));
                if cluster.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                }
            }
            FileSystemKind::Fat16 => u32::from(entry(number.saturating_mul(2))?.u16(0)),
            _ => entry(number.saturating_mul(4))?.u32(0) & 0x0fff_ffff,
        })
    }
}

/// Where a folder starts.
#[derive(Clone, Copy)]
enum Folder {
    Root,
    Chain(u32),
}

/// The label in the first cluster of the root folder of an exFAT file system with this boot sector.
pub(super) fn exfat_label(view: View<'_>, boot: &Fields) -> Result<Option<String>, Error> {
    let (sector_bits, cluster_bits) = (u32::from(boot.u8(108)), u32::from(boot.u8(109)));
    let (heap, root) = (u64::from(boot.u32(88)), u64::from(boot.u32(96)));
    let bits = sector_bits.saturating_add(cluster_bits);
    // The specification's bounds: sectors of 512 to 4096 bytes, clusters of at most 32 MiB.
    if !(9..=12).contains(&sector_bits) || bits > 25 {
        return Ok(None);
    }
    let heap = heap.checked_shl(sector_bits).unwrap_or(u64::MAX);
    let within = root.saturating_sub(2).checked_shl(bits).unwrap_or(u64::MAX);
    // A label is among the first entries; nobody makes a cluster for others before it.
    let len = 1_u64.checked_shl(bits).unwrap_or_default().min(4096);
    let Some(folder) = view.read_if_there(heap.saturating_add(within), len)? else {
        return Ok(None);
    };
    let entry = folder
        .0
        .chunks_exact(ENTRY_LEN)
        .find(|entry| entry.first() == Some(&EXFAT_LABEL));
    Ok(entry.and_then(|entry| {
        let entry = Fields(entry.to_vec());
        let len = usize::from(entry.u8(1)).min(11).saturating_mul(2);
        entry.text_utf16(2, len)
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    const NAMES: [&[u8; 11]; 2] = [b"BOOTX64 EFI", b"BOOTAA64EFI"];
    const PATH: [&[u8; 11]; 2] = [b"EFI        ", b"BOOT       "];

    fn put(disk: &mut [u8], place: usize, bytes: &[u8]) {
        disk[place..place + bytes.len()].copy_from_slice(bytes);
    }

    fn entry(name: &[u8; 11], attributes: u8, cluster: u32) -> Vec<u8> {
        let mut entry = name.to_vec();
        entry.push(attributes);
        entry.resize(32, 0);
        let [low @ .., _, _] = cluster.to_le_bytes();
        put(&mut entry, 26, &low);
        entry
    }

    /// A volume of so many sectors, a cluster each, with `EFI/BOOT/BOOTX64.EFI`. The folder `BOOT` goes on in a second cluster.
    pub(crate) fn volume(kind: FileSystemKind, sectors: u32) -> Vec<u8> {
        let wide = kind == FileSystemKind::Fat32;
        let (entry_bits, fat_type) = match kind {
            FileSystemKind::Fat12 => (12, b"FAT12   "),
            FileSystemKind::Fat16 => (16, b"FAT16   "),
            _ => (32, b"FAT32   "),
        };
        let fat_sectors = (sectors * entry_bits / 8).div_ceil(512);
        let mut disk = vec![0; sectors as usize * 512];
        put(&mut disk, 0, &[0xeb, 0x3c, 0x90]);
        put(&mut disk, 11, &[0, 2, 1, 1, 0, 1]);
        put(&mut disk, 17, &[if wide { 0 } else { 16 }, 0, 0, 0, 0xf8]);
        put(&mut disk, 32, &sectors.to_le_bytes());
        put(&mut disk, 510, &[0x55, 0xaa]);
        let extended = if wide { 66 } else { 38 };
        put(&mut disk, extended, &[0x29, 0x78, 0x56, 0x34, 0x12]);
        put(&mut disk, extended + 5, b"EFI SYSTEM ");
        put(&mut disk, extended + 16, fat_type);
        if wide {
            put(&mut disk, 36, &fat_sectors.to_le_bytes());
            put(&mut disk, 44, &[2]);
        } else {
            put(&mut disk, 22, &u16::try_from(fat_sectors).unwrap().to_le_bytes());
        }
        let fat_end = (1 + fat_sectors as usize) * 512;
        let data = if wide { fat_end } else { fat_end + 512 };
        let cluster = |number: usize| data + (number - 2) * 512;
        let root = if wide { cluster(2) } else { fat_end };
        put(&mut disk, root, &entry(b"EFI SYSTEM ", ATTRIBUTE_LABEL, 0));
        put(&mut disk, root + 32, &entry(b"\xe5FI        ", ATTRIBUTE_FOLDER, 9));
        put(&mut disk, root + 64, &entry(PATH[0], ATTRIBUTE_FOLDER, 3));
        put(&mut disk, cluster(3), &entry(PATH[1], ATTRIBUTE_FOLDER, 4));
        for index in 0..16 {
            put(&mut disk, cluster(4) + index * 32, &entry(b"NOTHING EFI", 0, 0));
        }
        put(&mut disk, cluster(7), &entry(NAMES[0], 0, 8));
        let end = 0x0fff_ffff_u32;
        for (number, next) in [(2, end), (3, end), (4, 7), (7, end), (8, end)] {
            let bit = number * entry_bits as usize;
            for (place, value) in (0..entry_bits as usize).map(|place| (place, next >> place & 1)) {
                disk[512 + (bit + place) / 8] |= u8::try_from(value).unwrap() << ((bit + place) % 8);
            }
        }
        disk
    }

    #[test]
    fn files_are_found_through_chains_of_every_width() {
        for (kind, sectors) in [
            (FileSystemKind::Fat12, 2000),
            (FileSystemKind::Fat16, 10_000),
            (FileSystemKind::Fat32, 70_000),
        ] {
            let disk = volume(kind, sectors);
            with_disk(&disk, |view| {
                let volume = Volume::open(view).unwrap().unwrap();
                assert_eq!(volume.kind(), kind);
                assert_eq!(volume.label().as_deref(), Some("EFI SYSTEM"));
                assert_eq!(volume.serial(), 0x1234_5678);
                assert_eq!(volume.names_in(&PATH, &NAMES).unwrap(), [0], "{kind}");
                assert!(volume.names_in(&PATH[1..], &NAMES).unwrap().is_empty());
            });
        }
    }

    #[test]
    fn a_chain_that_comes_back_ends() {
        let mut disk = volume(FileSystemKind::Fat16, 10_000);
        // Cluster 7 is followed by 4.
        disk[512 + 14..512 + 16].copy_from_slice(&[4, 0]);
        let data = disk.len();
        let cluster = |number: usize| (1 + 40 + 1) * 512 + (number - 2) * 512;
        for index in 0..16 {
            put(&mut disk, cluster(7) + index * 32, &entry(b"NOTHING EFI", 0, 0));
        }
        assert_eq!(disk.len(), data);
        with_disk(&disk, |view| {
            let volume = Volume::open(view).unwrap().unwrap();
            let error = volume.names_in(&PATH, &NAMES).unwrap_err();
            assert!(error.reason().starts_with("the look at the disk was ended"), "{error}");
        });
    }

    #[test]
    fn blocks_that_make_no_sense_are_no_volume() {
        for (place, byte) in [(0, 0), (11, 1), (13, 3), (14, 0), (16, 3), (21, 0), (510, 0)] {
            let mut disk = volume(FileSystemKind::Fat16, 10_000);
            disk[place] = byte;
            with_disk(&disk, |view| assert!(Volume::open(view).unwrap().is_none(), "{place}"));
        }
    }

    #[test]
    fn exfat_has_its_label_in_the_root_folder() {
        let mut disk = vec![0; 64 << 10];
        // Sectors of 512 bytes, 8 in a cluster; the heap starts at sector 32, the root folder is cluster 4.
        put(&mut disk, 88, &[32]);
        put(&mut disk, 96, &[4]);
        put(&mut disk, 108, &[9, 3]);
        put(&mut disk, 32 * 512 + 2 * 4096 + 32, b"\x83\x04d\0a\0t\0a\0x\0");
        with_disk(&disk, |view| {
            let boot = view.read(0, 512).unwrap();
            assert_eq!(exfat_label(view, &boot).unwrap().as_deref(), Some("data"));
        });
    }
}
