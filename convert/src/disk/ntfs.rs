//! The label of an NTFS volume: the attribute of that name in file 3 of the master file table.

use super::look::{Fields, View};
use crate::Error;

/// The file `$Volume`.
const VOLUME_RECORD: u64 = 3;
const VOLUME_NAME: u32 = 0x60;
const END: u32 = u32::MAX;
/// Records have 1 KiB, or 4 KiB where sectors have as much.
const RECORD_LEN_MAX: u64 = 4096;
/// A record has no room for more.
const ATTRIBUTE_COUNT_MAX: usize = 64;

pub(super) fn label(view: View<'_>, boot: &Fields) -> Result<Option<String>, Error> {
    let sector_len = u64::from(boot.u16(11));
    // Above 128 it is the negative of a power of two.
    let power = |code: u8| match code {
        0..=128 => u64::from(code),
        _ => 1_u64.checked_shl(u32::from(code.wrapping_neg())).unwrap_or_default(),
    };
    let cluster_len = sector_len.saturating_mul(power(boot.u8(13)));
    let record_len = match boot.u8(64) {
        code @ 0..=128 => u64::from(code).saturating_mul(cluster_len),
        code => power(code),
    };
    if !(512..=RECORD_LEN_MAX).contains(&record_len) {
        return Ok(None);
    }
    let table = boot.u64(48).saturating_mul(cluster_len);
    let place = table.saturating_add(record_len.saturating_mul(VOLUME_RECORD));
    let Some(record) = view.read_if_there(place, record_len)? else {
        return Ok(None);
    };
    Ok(if record.has(0, b"FILE") { name_in(&record) } else { None })
}

/// The name, if its attribute is in the record itself, which for something so short it is.
fn name_in(record: &Fields) -> Option<String> {
    let mut place = usize::from(record.u16(20));
    for _ in 0..ATTRIBUTE_COUNT_MAX {
        let at = |offset: usize| place.saturating_add(offset);
        let (kind, len) = (record.u32(place), usize::try_from(record.u32(at(4))).ok()?);
        if kind == END || len == 0 {
            return None;
        }
        if kind == VOLUME_NAME && record.u8(at(8)) == 0 {
            let content = at(usize::from(record.u16(at(20))));
            return record.text_utf16(content, usize::try_from(record.u32(at(16))).ok()?);
        }
        place = at(len);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::with_disk;
    use super::*;

    fn put(disk: &mut [u8], place: usize, bytes: &[u8]) {
        disk[place..place + bytes.len()].copy_from_slice(bytes);
    }

    /// A table at cluster 4, records of 1 KiB, and in file 3 an attribute before the name.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 64 << 10];
        put(&mut disk, 11, &[0, 2, 8]);
        put(&mut disk, 48, &[4]);
        put(&mut disk, 64, &[0xf6]);
        let record = 4 * 4096 + 3 * 1024;
        put(&mut disk, record, b"FILE");
        put(&mut disk, record + 20, &[56]);
        put(&mut disk, record + 56, &[0x30, 0, 0, 0, 32]);
        put(&mut disk, record + 88, &[0x60, 0, 0, 0, 40]);
        put(&mut disk, record + 104, &[12, 0, 0, 0, 24]);
        put(&mut disk, record + 112, b"S\0y\0s\0t\0e\0m\0x");
        put(&mut disk, record + 128, &[0xff; 4]);
        disk
    }

    fn look(disk: &Vec<u8>) -> Option<String> {
        with_disk(disk, |view| label(view, &view.read(0, 512).unwrap()).unwrap())
    }

    #[test]
    fn the_name_is_an_attribute_of_file_3() {
        assert_eq!(look(&disk()).as_deref(), Some("System"));
    }

    #[test]
    fn attributes_without_length_and_records_without_sense_are_left() {
        let record = 4 * 4096 + 3 * 1024;
        for (place, byte) in [
            (64, 0),
            (64, 0xe0),
            (48, 200),
            (record, 0),
            (record + 60, 0),
            (record + 96, 1),
        ] {
            let mut disk = disk();
            disk[place] = byte;
            assert_eq!(look(&disk), None, "{place}");
        }
    }
}
