//! What boots from an ISO 9660 image: its El Torito catalog.
//!
//! A boot record in sector 17 names the sector of the catalog. That has entries of 32 bytes: one that validates it by a sum
//! and names a platform, one that boots by default, then headers (0x90, the last 0x91) of other platforms with their entries.
//!
//! Format: Phoenix and IBM, "El Torito Bootable CD-ROM Format Specification", version 1.0.

use super::look::{Fields, View};
use super::{BootMode, BootReason};
use crate::Error;

const SECTOR_LEN: u64 = 2048;
const BOOT_RECORD: u64 = 17;
const PLATFORM_EFI: u8 = 0xef;
const BOOTABLE: u8 = 0x88;
const ENTRY_LEN: usize = 32;

/// How the image boots, if there is a catalog. What is wrong with it goes to `warnings`.
pub(super) fn boot_reasons(view: View<'_>, warnings: &mut Vec<String>) -> Result<Vec<BootReason>, Error> {
    let record = view.read_if_there(BOOT_RECORD.saturating_mul(SECTOR_LEN), SECTOR_LEN)?;
    let is_boot_record = |record: &Fields| record.has(0, b"\0CD001\x01EL TORITO SPECIFICATION");
    let Some(record) = record.filter(is_boot_record) else {
        return Ok(Vec::new());
    };
    let sector = u64::from(record.u32(71));
    let catalog = view.read_if_there(sector.saturating_mul(SECTOR_LEN), SECTOR_LEN)?;
    let Some(catalog) = catalog.filter(is_valid) else {
        warnings.push(format!("the El Torito catalog in sector {sector} is broken"));
        return Ok(Vec::new());
    };
    Ok(entries(&catalog))
}

/// Whether the first entry has its marks, and the sum of its words is zero.
fn is_valid(catalog: &Fields) -> bool {
    let (words, _) = catalog.bytes(0, ENTRY_LEN).as_chunks::<2>();
    let sum = words
        .iter()
        .fold(0_u16, |sum, word| sum.wrapping_add(u16::from_le_bytes(*word)));
    catalog.u8(0) == 1 && catalog.has(30, &[0x55, 0xaa]) && sum == 0
}

fn entries(catalog: &Fields) -> Vec<BootReason> {
    let mut reasons = Vec::new();
    let mut add = |platform: u8| {
        let mode = if platform == PLATFORM_EFI {
            BootMode::Uefi
        } else {
            BootMode::Bios
        };
        let reason = BootReason {
            mode,
            reason: "el-torito".to_owned(),
        };
        // A catalog may list several images for one platform.
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    };
    let mut platform = catalog.u8(1);
    for entry in catalog.0.chunks_exact(ENTRY_LEN).skip(1) {
        match entry {
            [0x90 | 0x91, of, ..] => platform = *of,
            [BOOTABLE, ..] => add(platform),
            // A header that follows the last section, or the end.
            [0, 0, ..] => break,
            _ => {}
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    fn iso(entries: &[[u8; 2]]) -> Vec<u8> {
        let mut disk = vec![0; 20 * 2048];
        let record = 17 * 2048;
        disk[record..record + 30].copy_from_slice(b"\0CD001\x01EL TORITO SPECIFICATION");
        disk[record + 71] = 19;
        let catalog = 19 * 2048;
        disk[catalog] = 1;
        disk[catalog + 30..catalog + 32].copy_from_slice(&[0x55, 0xaa]);
        disk[catalog + 28..catalog + 30].copy_from_slice(&0x55aa_u16.wrapping_sub(1).to_le_bytes());
        let sum: u16 = disk[catalog..catalog + 32].chunks(2).fold(0, |sum: u16, word| {
            sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
        });
        let mend = u16::from_le_bytes([disk[catalog + 28], disk[catalog + 29]]).wrapping_sub(sum);
        disk[catalog + 28..catalog + 30].copy_from_slice(&mend.to_le_bytes());
        for (index, entry) in entries.iter().enumerate() {
            let start = catalog + 32 * (index + 1);
            disk[start..start + 2].copy_from_slice(entry);
            disk[start + 2] = 1;
        }
        disk
    }

    fn look(disk: &Vec<u8>) -> (Vec<BootMode>, usize) {
        let mut warnings = Vec::new();
        let reasons = with_disk(disk, |view| boot_reasons(view, &mut warnings)).unwrap();
        (reasons.into_iter().map(|reason| reason.mode).collect(), warnings.len())
    }

    #[test]
    fn catalogs_name_platforms() {
        use BootMode::{Bios, Uefi};
        for (entries, modes) in [
            (&[[BOOTABLE, 0]][..], &[Bios][..]),
            (&[[BOOTABLE, 0], [0x91, 0xef], [BOOTABLE, 0]], &[Bios, Uefi]),
            (&[[0x20, 0], [0x91, 0xef], [BOOTABLE, 0], [BOOTABLE, 0]], &[Uefi]),
            (&[[0x20, 0]], &[]),
        ] {
            assert_eq!(look(&iso(entries)), (modes.to_vec(), 0), "{entries:x?}");
        }
    }

    #[test]
    fn a_broken_catalog_is_told_of() {
        let mut disk = iso(&[[BOOTABLE, 0]]);
        disk[19 * 2048 + 5] ^= 1;
        assert_eq!(look(&disk), (vec![], 1));
        assert_eq!(look(&vec![0; 20 * 2048]), (vec![], 0));
    }
}
