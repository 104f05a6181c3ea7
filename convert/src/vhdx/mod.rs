//! VHDX, version 1, fixed and dynamic: reading and writing.
//!
//! ```text
//! file identifier │ header 1 │ header 2 │ region table 1 │ region table 2      64 KiB each, in the first MiB
//!    the current header ──▶ log: changes of tables that may not have been made yet
//!    region table ─┬─▶ metadata: block size, virtual size, sector sizes
//!                  └─▶ BAT ──▶ payload blocks of 1 to 256 MiB
//! ```
//!
//! All numbers are little-endian, all regions and blocks start at a multiple of 1 MiB, and headers, region tables and log
//! entries carry a CRC-32C. A log with entries is replayed in memory. A differencing disk needs its parent and is refused.
//!
//! Differs: QEMU reads the first region table only, and opens no image for reading alone whose log is in use.
//!
//! Format: Microsoft, MS-VHDX, "Virtual Hard Disk v2 (VHDX) File Format".

mod header;
mod log;
mod metadata;
pub(crate) mod planner;
mod reader;
mod region;

pub(crate) use reader::open;

use std::num::NonZeroU64;

use crc_fast::CrcAlgorithm;

use crate::Error;
use crate::safety::Region;

/// What the places and lengths of regions and blocks are multiples of.
const MIB_SIZE: u64 = 1 << 20;
const MIB: NonZeroU64 = NonZeroU64::new(MIB_SIZE).expect("a MiB is not empty");
/// The room of each part of the first MiB.
const PART_LEN: u64 = 64 << 10;
/// The first MiB, with headers and region tables.
const HEADER_SECTION: Region = Region {
    name: "header section",
    offset: 0,
    len: MIB_SIZE,
};
/// What sectors are told to be in what is made, as all other formats have them; every guest can use such a disk.
const SECTOR_SIZE: u32 = 512;
/// How many sectors a chunk has: as many as a block of a sector bitmap has bits.
const CHUNK_SECTORS: u64 = 1 << 23;

/// A GUID in the order of bytes in a file: its first three numbers are little-endian.
type Guid = [u8; 16];

/// A GUID as the specification spells it.
const fn guid(spelled: u128) -> Guid {
    swapped(spelled.to_be_bytes())
}

/// Turns a GUID from the order of its spelling into the order of a file, or back.
#[expect(
    clippy::many_single_char_names,
    reason = "they are bytes, and only their order counts"
)]
const fn swapped(guid: Guid) -> Guid {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = guid;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// A GUID as the specification spells it, for a reason.
fn spell(guid: &Guid) -> String {
    let spelled = u128::from_be_bytes(swapped(*guid));
    let part = |shift: u32, mask: u128| spelled >> shift & mask;
    format!(
        "{:08X}-{:04X}-{:04X}-{:04X}-{:012X}",
        part(96, 0xffff_ffff),
        part(80, 0xffff),
        part(64, 0xffff),
        part(48, 0xffff),
        part(0, 0xffff_ffff_ffff)
    )
}

/// Where the checksum stands in everything that has one, after a signature of four bytes.
const CHECKSUM_OFFSET: usize = 4;

/// The CRC-32C of a structure, with its own place as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    let (before, rest) = bytes.split_at(CHECKSUM_OFFSET.min(bytes.len()));
    digest.update(before);
    digest.update(&[0; 4]);
    digest.update(rest.get(4..).unwrap_or_default());
    u32::try_from(digest.finalize()).unwrap_or_default()
}

/// Puts the checksum of a structure into its place.
fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes).to_le_bytes();
    if let Some(place) = bytes.get_mut(CHECKSUM_OFFSET..CHECKSUM_OFFSET.saturating_add(4)) {
        place.copy_from_slice(&sum);
    }
}

/// Refuses a structure whose checksum is not `stored`.
fn check_sum(name: &str, bytes: &[u8], stored: u32) -> Result<(), Error> {
    let computed = checksum(bytes);
    if computed == stored {
        return Ok(());
    }
    let reason = format!("{name} checksum {stored:#010x} should be {computed:#010x}");
    Err(Error::corrupt(reason).at(CHECKSUM_OFFSET as u64))
}

/// How many payload blocks there are to a block of a sector bitmap.
fn chunk_ratio(block_size: NonZeroU64, sector_size: u64) -> NonZeroU64 {
    let ratio = CHUNK_SECTORS.saturating_mul(sector_size) / block_size;
    NonZeroU64::new(ratio).expect("a chunk is 4 GiB, a block at most 256 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_spelled_as_in_the_specification() {
        let bat = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
        assert_eq!(bat[..6], [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6]);
        assert_eq!(bat[6..], [0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
        assert_eq!(spell(&bat), "2DC27766-F623-4200-9D64-115E9BFD4A08");
    }

    #[test]
    fn checksums_leave_out_their_own_place() {
        // The check value of CRC-32C is of these nine digits; here four zeros stand in their midst.
        assert_eq!(checksum(b"1234\xff\xff\xff\xff56789"), checksum(b"1234\0\0\0\x0056789"));
        let mut bytes = b"1234....56789".to_vec();
        seal(&mut bytes);
        let stored = u32::from_le_bytes(*bytes[4..].first_chunk().unwrap());
        assert!(check_sum("x", &bytes, stored).is_ok());
        assert_eq!(check_sum("x", &bytes, stored ^ 1).unwrap_err().offset(), Some(4));
    }

    #[test]
    fn a_chunk_is_a_bit_for_each_sector() {
        assert_eq!(chunk_ratio(MIB, 512).get(), 4096);
        assert_eq!(chunk_ratio(NonZeroU64::new(256 << 20).unwrap(), 4096).get(), 128);
    }
}
