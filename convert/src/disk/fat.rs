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
