//! The GUID partition table, of which there are two copies.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | `EFI PART` |
//! | 12 | 4 | header size |
//! | 16 | 4 | CRC-32 of the header, with this field as zeros |
//! | 24 | 8 | the sector of this header |
//! | 32 | 8 | the sector of the other one |
//! | 56 | 16 | disk GUID |
//! | 72 | 8 | first sector of the entries |
//! | 80 | 4 | number of entries |
//! | 84 | 4 | size of an entry |
//! | 88 | 4 | CRC-32 of the entries |
//!
//! An entry: type GUID (16), unique GUID (16), first sector (8), last sector (8), attributes (8), name in UTF-16 (72).
//!
//! Format: UEFI specification, "GUID Partition Table (GPT) Disk Layout".

use crc_fast::{CrcAlgorithm, checksum};

use super::Partition;
use super::look::{Fields, View};
use crate::Error;

/// An EFI system partition.
pub(super) const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Where GRUB keeps itself for a BIOS.
pub(super) const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
/// The types of sectors that disks have.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
const HEADER_LEN_MIN: u32 = 92;
const ENTRY_LEN_MIN: u32 = 128;
/// 256 KiB: sixteen times what everybody makes.
const ENTRIES_LEN_MAX: u64 = 256 << 10;
/// Legacy BIOS bootable, bit 2 of the attributes.
const ATTRIBUTE_ACTIVE: u64 = 1 << 2;

/// A table of which at least one copy is good.
pub(super) struct Gpt {
    pub(super) uuid: String,
    pub(super) partitions: Vec<Partition>,
}

/// A copy of the table.
struct Copy {
    header: Fields,
    /// All entries, in use or not.
    entries: Fields,
    sector_size: u64,
}

/// Reads the table, from its backup if need be. What is wrong with a copy goes to `warnings`.
///
/// There is none if neither copy begins as one.
pub(super) fn read(disk: View<'_>, warnings: &mut Vec<String>) -> Result<Option<Gpt>, Error> {
    for sector_size in SECTOR_SIZES {
        let primary = read_copy(disk, 1, sector_size)?;
        let sector_count = disk.len().checked_div(sector_size).unwrap_or_default();
        let backup_sector = match &primary {
            Some(Ok(copy)) => copy.header.u64(32),
            _ => sector_count.saturating_sub(1),
        };
        let backup = if backup_sector > 1 {
            read_copy(disk, backup_sector, sector_size)?
        } else {
            None
        };
        match (primary, backup) {
            (Some(Ok(copy)), backup) => {
                warn_of_backup(&copy, backup.as_ref(), warnings);
                return partitions(disk, &copy, warnings).map(Some);
            }
            (Some(Err(reason)), Some(Ok(copy))) => {
                warnings.push(format!("the GPT is broken ({reason}); its backup is used"));
                return partitions(disk, &copy, warnings).map(Some);
            }
            (Some(Err(reason)), _) => {
                warnings.push(format!("the GPT is broken ({reason}), and so is its backup"));
                return Ok(None);
            }
            (None, Some(Ok(_))) => {
                warnings.push("there is no GPT at the start of the disk, but a backup of one at its end".to_owned());
                return Ok(None);
            }
            (None, _) => {}
        }
    }
    Ok(None)
}

fn warn_of_backup(primary: &Copy, backup: Option<&Result<Copy, String>>, warnings: &mut Vec<String>) {
    let wrong = match backup {
        None => "is not where the GPT says".to_owned(),
        Some(Err(reason)) => format!("is broken ({reason})"),
        Some(Ok(backup)) if backup.entries.0 != primary.entries.0 => "lists other partitions".to_owned(),
        Some(Ok(_)) => return,
    };
    warnings.push(format!("the backup of the GPT {wrong}"));
}

/// The copy whose header is at a sector: none if nothing there begins as one, and else a copy or what is wrong with it.
fn read_copy(disk: View<'_>, sector: u64, sector_size: u64) -> Result<Option<Result<Copy, String>>, Error> {
    let place = sector.saturating_mul(sector_size);
    let Some(header) = disk.read_if_there(place, sector_size)? else {
        return Ok(None);
    };
    if !header.has(0, b"EFI PART") {
        return Ok(None);
    }
    let entries = match check_header(&header, sector, sector_size) {
        Ok((place, len)) => disk.read_if_there(place, len)?,
        Err(reason) => return Ok(Some(Err(reason))),
    };
    let Some(entries) = entries else {
        return Ok(Some(Err("its entries are beyond the end of the disk".to_owned())));
    };
    let (stored, computed) = (header.u32(88), crc32(&entries.0));
    if stored != computed {
        let reason = format!("the CRC of its entries is {stored:#010x} instead of {computed:#010x}");
        return Ok(Some(Err(reason)));
    }
    Ok(Some(Ok(Copy {
        header,
        entries,
        sector_size,
    })))
}

/// Holds a header to its checksum and to bounds, and says where the entries are: place and length in bytes.
fn check_header(header: &Fields, sector: u64, sector_size: u64) -> Result<(u64, u64), String> {
    let header_len = header.u32(12);
    let len = usize::try_from(header_len).unwrap_or(usize::MAX);
    let mut bytes = header.bytes(0, len).to_vec();
    if header_len < HEADER_LEN_MIN || bytes.is_empty() {
        return Err(format!("its header has {header_len} bytes"));
    }
    if let Some(crc) = bytes.get_mut(16..20) {
        crc.fill(0);
    }
    let (stored, computed) = (header.u32(16), crc32(&bytes));
    if stored != computed {
        return Err(format!(
            "the CRC of its header is {stored:#010x} instead of {computed:#010x}"
        ));
    }
    if header.u64(24) != sector {
        return Err(format!("its header is for sector {}", header.u64(24)));
    }
    let (count, entry_len) = (header.u32(80), header.u32(84));
    let len = u64::from(count).saturating_mul(u64::from(entry_len));
    if entry_len < ENTRY_LEN_MIN || !entry_len.is_power_of_two() || len > ENTRIES_LEN_MAX {
        return Err(format!("it has {count} entries of {entry_len} bytes"));
    }
    Ok((header.u64(72).saturating_mul(sector_size), len))
}

fn partitions(disk: View<'_>, copy: &Copy, warnings: &mut Vec<String>) -> Result<Gpt, Error> {
    let entry_len = usize::try_from(copy.header.u32(84)).unwrap_or(usize::MAX).max(1);
    let mut partitions = Vec::new();
    for (index, entry) in (1..).zip(copy.entries.0.chunks(entry_len)) {
        if entry.iter().take(16).all(|byte| *byte == 0) {
            continue;
        }
        disk.step()?;
        let entry = Fields(entry.to_vec());
        let (first, last) = (entry.u64(32), entry.u64(40));
        let Some(sectors) = last.checked_sub(first) else {
            warnings.push(format!("partition {index} ends before it starts"));
            continue;
        };
        partitions.push(Partition {
            index,
            start: first.saturating_mul(copy.sector_size),
            size: sectors.saturating_add(1).saturating_mul(copy.sector_size),
            kind: entry.guid(0),
            uuid: Some(entry.guid(16)),
            name: entry.text_utf16(56, 72),
            active: entry.u64(48) & ATTRIBUTE_ACTIVE != 0,
            file_system: None,
        });
    }
    Ok(Gpt {
        uuid: copy.header.guid(56),
        partitions,
    })
}

fn crc32(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32IsoHdlc, bytes)).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    const SECTORS: usize = 2048;

    /// A GUID as the specification spells it, in the order of a file.
    pub(crate) fn guid(spelled: &str) -> [u8; 16] {
        let digits: String = spelled.chars().filter(|c| *c != '-').collect();
        let mut bytes = u128::from_str_radix(&digits, 16).unwrap().to_be_bytes();
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }

    /// Puts both copies of a table onto a disk: type, first and last sector of each partition.
    pub(crate) fn put_table(disk: &mut [u8], sector: usize, partitions: &[(&str, u64, u64)]) {
        let mut entries = vec![0; 128 * 128];
        for (index, (kind, first, last)) in partitions.iter().enumerate() {
            let entry = &mut entries[index * 128..];
            entry[..16].copy_from_slice(&guid(kind));
            entry[16..32].fill(u8::try_from(index).unwrap() + 1);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56..60].copy_from_slice(b"o\0s\0");
        }
        let last = disk.len() / sector - 1;
        let table = entries.len().div_ceil(sector);
        for (this, other, first) in [(1, last, 2), (last, 1, last - table)] {
            let mut header = vec![0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[24..32].copy_from_slice(&(this as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(other as u64).to_le_bytes());
            header[56..72].fill(9);
            header[72..80].copy_from_slice(&(first as u64).to_le_bytes());
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let crc = crc32(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            disk[this * sector..this * sector + 92].copy_from_slice(&header);
            disk[first * sector..first * sector + entries.len()].copy_from_slice(&entries);
        }
    }

    fn disk(sector: usize) -> Vec<u8> {
        let mut disk = vec![0; SECTORS * sector];
        put_table(&mut disk, sector, &[(BIOS_BOOT, 64, 127), (EFI_SYSTEM, 128, 1023)]);
        disk
    }

    fn look(disk: &Vec<u8>) -> (Option<Gpt>, Vec<String>) {
        let mut warnings = Vec::new();
        let gpt = with_disk(disk, |view| read(view, &mut warnings)).unwrap();
        (gpt, warnings)
    }

    #[test]
    fn tables_of_both_sector_sizes_are_read() {
        for sector in [512, 4096] {
            let (gpt, warnings) = look(&disk(sector));
            let gpt = gpt.unwrap();
            let found: Vec<_> = gpt
                .partitions
                .iter()
                .map(|p| (p.index, p.start, p.size, p.kind.as_str(), p.name.as_deref()))
                .collect();
            let sector = sector as u64;
            assert_eq!(
                found,
                [
                    (1, 64 * sector, 64 * sector, BIOS_BOOT, Some("os")),
                    (2, 128 * sector, 896 * sector, EFI_SYSTEM, Some("os"))
                ]
            );
            assert_eq!(warnings, [""; 0]);
        }
    }

    #[test]
    fn each_copy_is_held_to_its_checksums() {
        let last = (SECTORS - 1) * 512;
        for (places, found, warning) in [
            (&[60][..], true, "the GPT is broken (the CRC of its header is"),
            (&[600], true, "the GPT is broken (the CRC of its entries is"),
            (
                &[last - 512 + 60],
                true,
                "the backup of the GPT is broken (the CRC of its header",
            ),
            (&[last - 512], true, "the backup of the GPT is not where the GPT says"),
            (&[60, last - 512 + 60], false, "the GPT is broken"),
        ] {
            let mut disk = disk(512);
            for place in places {
                disk[place + 512] ^= 1;
            }
            let (gpt, warnings) = look(&disk);
            assert_eq!(gpt.is_some(), found, "{places:?}");
            assert!(
                warnings.len() == 1 && warnings[0].starts_with(warning),
                "{places:?}: {warnings:?}"
            );
        }
    }

    #[test]
    fn a_backup_alone_is_told_of() {
        let mut disk = disk(512);
        disk[512] = 0;
        let (gpt, warnings) = look(&disk);
        assert!(gpt.is_none());
        assert!(warnings[0].starts_with("there is no GPT at the start"), "{warnings:?}");
    }
}
