//! The master boot record, and the chain of logical partitions.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 440 | boot code |
//! | 440 | 4 | disk signature |
//! | 446 | 64 | four entries: status (1), start as CHS (3), type (1), end as CHS (3), first sector (4), sectors (4) |
//! | 510 | 2 | `55 aa` |
//!
//! An extended partition begins with such a record again: its first entry is a logical partition, counted from that record,
//! its second the next record, counted from the start of the extended partition.

use super::look::{Fields, View};
use super::{Partition, PartitionTable};
use crate::Error;

/// What entries count in.
const SECTOR_SIZE: u64 = 512;
/// More logical partitions than Linux has ever named.
const LOGICAL_COUNT_MAX: u32 = 128;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// An EFI system partition.
pub(super) const EFI_SYSTEM: u8 = 0xef;

/// The first sector of a disk.
pub(super) struct Mbr {
    pub(super) table: PartitionTable,
    pub(super) partitions: Vec<Partition>,
    /// Whether an entry stands for the GPT.
    pub(super) protective: bool,
    pub(super) boot_code: bool,
}

/// An entry as it stands in a record.
#[derive(Debug, Clone, Copy)]
struct Entry {
    active: bool,
    kind: u8,
    first_sector: u64,
    sectors: u64,
}

impl Entry {
    fn partition(self, index: u32, base: u64, disk_signature: u32) -> Partition {
        Partition {
            index,
            start: base.saturating_add(self.first_sector).saturating_mul(SECTOR_SIZE),
            size: self.sectors.saturating_mul(SECTOR_SIZE),
            kind: format!("{:#04x}", self.kind),
            uuid: (disk_signature != 0).then(|| format!("{disk_signature:08x}-{index:02}")),
            name: None,
            active: self.active,
            file_system: None,
        }
    }
}

/// Reads the record and all partitions, if there is one with partitions in it.
///
/// What is wrong with the chain of logical partitions goes to `warnings`.
pub(super) fn read(disk: View<'_>, warnings: &mut Vec<String>) -> Result<Option<Mbr>, Error> {
    let Some(record) = disk.read_if_there(0, SECTOR_SIZE)? else {
        return Ok(None);
    };
    let Some(entries) = entries(&record) else {
        return Ok(None);
    };
    let used = |entry: &Entry| entry.kind != 0 && entry.sectors != 0;
    if !entries.iter().any(used) || boots_as_file_system(&record) {
        return Ok(None);
    }
    let signature = record.u32(440);
    let mut partitions = Vec::new();
    let mut extended = Vec::new();
    for (index, entry) in (1..).zip(entries).filter(|(_, entry)| used(entry)) {
        if entry.kind == PROTECTIVE {
            continue;
        }
        if EXTENDED.contains(&entry.kind) {
            extended.push(entry);
        }
        partitions.push(entry.partition(index, 0, signature));
    }
    for entry in extended {
        read_logical(disk, entry, signature, &mut partitions, warnings)?;
    }
    Ok(Some(Mbr {
        table: PartitionTable::Mbr,
        partitions,
        protective: entries.iter().any(|entry| entry.kind == PROTECTIVE),
        boot_code: record.bytes(0, 440).iter().any(|byte| *byte != 0),
    }))
}

/// Whether a type byte, as it is shown, is that of an extended partition.
pub(super) fn is_extended(kind: &str) -> bool {
    EXTENDED.iter().any(|extended| format!("{extended:#04x}") == kind)
}

/// The entries of a record, if it is one.
fn entries(record: &Fields) -> Option<[Entry; 4]> {
    if !record.has(510, &[0x55, 0xaa]) {
        return None;
    }
    let entries = [446, 462, 478, 494].map(|place: usize| {
        let at = |offset: usize| place.saturating_add(offset);
        let entry = Entry {
            active: record.u8(place) & 0x80 != 0,
            kind: record.u8(at(4)),
            first_sector: u64::from(record.u32(at(8))),
            sectors: u64::from(record.u32(at(12))),
        };
        matches!(record.u8(place), 0 | 0x80).then_some(entry)
    });
    match entries {
        [Some(a), Some(b), Some(c), Some(d)] => Some([a, b, c, d]),
        _ => None,
    }
}

/// Whether the sector is the boot sector of a file system, whose code may look like entries.
fn boots_as_file_system(record: &Fields) -> bool {
    [(3, &b"NTFS    "[..]), (3, b"EXFAT   "), (54, b"FAT1"), (82, b"FAT32")]
        .iter()
        .any(|(place, magic)| record.has(*place, magic))
}

/// Follows the chain of an extended partition.
fn read_logical(
    disk: View<'_>,
    extended: Entry,
    signature: u32,
    partitions: &mut Vec<Partition>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let base = extended.first_sector;
    let mut next = base;
    let mut seen = Vec::new();
    for index in 5..LOGICAL_COUNT_MAX.saturating_add(5) {
        disk.step()?;
        let place = next.saturating_mul(SECTOR_SIZE);
        let record = disk.read_if_there(place, SECTOR_SIZE)?;
        let Some([logical, link, ..]) = record.as_ref().and_then(entries) else {
            warnings.push(format!("the chain of logical partitions breaks off at byte {place}"));
            return Ok(());
        };
        if logical.kind != 0 && logical.sectors != 0 {
            partitions.push(logical.partition(index, next, signature));
        }
        seen.push(next);
        next = base.saturating_add(link.first_sector);
        if !EXTENDED.contains(&link.kind) || link.first_sector == 0 {
            return Ok(());
        }
        if seen.contains(&next) {
            warnings.push(format!("the chain of logical partitions comes back to sector {next}"));
            return Ok(());
        }
    }
    warnings.push(format!("there are more than {LOGICAL_COUNT_MAX} logical partitions"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    fn put_entry(disk: &mut [u8], place: usize, entry: (u8, u8, u32, u32)) {
        let (status, kind, first, sectors) = entry;
        disk[place] = status;
        disk[place + 4] = kind;
        disk[place + 8..place + 12].copy_from_slice(&first.to_le_bytes());
        disk[place + 12..place + 16].copy_from_slice(&sectors.to_le_bytes());
    }

    fn record(disk: &mut [u8], sector: usize, entries: &[(u8, u8, u32, u32)]) {
        let start = sector * 512;
        disk[start + 510..start + 512].copy_from_slice(&[0x55, 0xaa]);
        for (index, entry) in entries.iter().enumerate() {
            put_entry(disk, start + 446 + index * 16, *entry);
        }
    }

    fn look(disk: &Vec<u8>) -> (Option<Mbr>, Vec<String>) {
        let mut warnings = Vec::new();
        let mbr = with_disk(disk, |view| read(view, &mut warnings)).unwrap();
        (mbr, warnings)
    }

    /// A primary partition, and an extended one with two logical ones.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        disk[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        record(&mut disk, 0, &[(0x80, 0x83, 64, 64), (0, 0x0f, 128, 512)]);
        record(&mut disk, 128, &[(0, 0x82, 16, 32), (0, 5, 64, 100)]);
        record(&mut disk, 192, &[(0, 0x83, 16, 32)]);
        disk
    }

    #[test]
    fn logical_partitions_count_from_their_records() {
        let (mbr, warnings) = look(&disk());
        let mbr = mbr.unwrap();
        let found: Vec<_> = mbr
            .partitions
            .iter()
            .map(|p| (p.index, p.start / 512, p.size / 512, p.kind.as_str(), p.active))
            .collect();
        assert_eq!(
            found,
            [
                (1, 64, 64, "0x83", true),
                (2, 128, 512, "0x0f", false),
                (5, 144, 32, "0x82", false),
                (6, 208, 32, "0x83", false)
            ]
        );
        assert_eq!(mbr.partitions[3].uuid.as_deref(), Some("1234abcd-06"));
        assert_eq!((mbr.protective, mbr.boot_code, warnings.len()), (false, false, 0));
    }

    #[test]
    fn chains_end() {
        let mut ring = disk();
        record(&mut ring, 192, &[(0, 0x83, 16, 32), (0, 5, 64, 100)]);
        let (mbr, warnings) = look(&ring);
        assert_eq!(mbr.unwrap().partitions.len(), 4);
        assert_eq!(warnings, ["the chain of logical partitions comes back to sector 192"]);
        let mut cut = disk();
        record(&mut cut, 128, &[(0, 0x82, 16, 32), (0, 5, 99_999, 100)]);
        assert_eq!(
            look(&cut).1,
            ["the chain of logical partitions breaks off at byte 51265024"]
        );
    }

    #[test]
    fn boot_sectors_are_no_tables() {
        let mut fat = disk();
        fat[82..87].copy_from_slice(b"FAT32");
        let mut odd = disk();
        odd[462] = 0x17;
        for disk in [fat, odd, vec![0; 1 << 20], vec![0; 100], Vec::new()] {
            assert!(look(&disk).0.is_none());
        }
    }
}
