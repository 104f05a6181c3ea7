//! VHD, version 1.0, fixed and dynamic: reading and writing.
//!
//! ```text
//! fixed     the disk │ footer
//! dynamic   copy of the footer │ dynamic header ──▶ BAT ──▶ blocks: a bitmap of sectors, then 2 MiB │ footer
//! ```
//!
//! All numbers are big-endian, places are in sectors of 512 bytes. A differencing disk needs its parent and is refused.
//!
//! The bitmap before a block says which of its sectors were ever written. In a dynamic disk the others are zeros in the block,
//! too, so that the bitmap says nothing new; it is not read, as QEMU does not read it, and written as all ones.
//!
//! Differs: QEMU does not look at the footer at the end of a dynamic disk; here it has to be like its copy, if it is there. Nor
//! does QEMU refuse blocks that overlap.
//!
//! Format: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0.

pub(crate) mod footer;
mod header;
pub(crate) mod planner;
mod reader;

pub(crate) use reader::open;

use crate::safety;

/// What everything in the file is counted in.
const SECTOR_SIZE: u64 = 512;
/// The largest disk, 2040 GiB, as QEMU and Hyper-V have it: with it, the places of all blocks fit the 32 bits of an entry.
const VIRTUAL_SIZE_MAX: u64 = 0xff00_0000 * SECTOR_SIZE;

/// Refuses disks beyond [`VIRTUAL_SIZE_MAX`].
fn virtual_size(size: u64) -> Result<u64, crate::Error> {
    safety::at_most("virtual size", size, VIRTUAL_SIZE_MAX)
}

/// The checksum of a footer or header: the one's complement of the sum of all bytes but those of the checksum at `field`.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .filter(|(index, _)| !(field..field.saturating_add(4)).contains(index))
        .fold(0, |sum: u32, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

/// Refuses bytes whose checksum at `field` is not `stored`.
fn check_sum(name: &str, bytes: &[u8], field: usize, stored: u32) -> Result<(), crate::Error> {
    let computed = checksum(bytes, field);
    if computed == stored {
        return Ok(());
    }
    Err(crate::Error::corrupt(format!(
        "{name} checksum {stored:#010x} should be {computed:#010x}"
    )))
}
