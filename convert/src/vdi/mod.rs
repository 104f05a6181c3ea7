//! VDI, version 1.1, fixed and dynamic: reading and writing.
//!
//! ```text
//! header ─┬─▶ block map: an entry for each block of the disk
//!         └─▶ blocks of 1 MiB, which the entries count
//! ```
//!
//! All numbers are little-endian. Undo and differencing images need another file and are refused.
//!
//! Differs: `qemu-img check` complains about a count of allocated blocks that is wrong. Nothing is read by that count, so that
//! it is not judged here.
//!
//! Format: `VirtualBox`, "VDICore.h"; QEMU, "block/vdi.c".

mod header;
pub(crate) mod planner;
mod reader;

pub(crate) use reader::open;

use std::num::NonZeroU64;

/// What disks and places are counted in.
const SECTOR_SIZE: u64 = 512;
/// The only block size that is made.
const BLOCK_LEN: u32 = 1 << 20;
const BLOCK_SIZE: NonZeroU64 = NonZeroU64::new(BLOCK_LEN as u64).expect("a block is not empty");
/// The entry of a block that was never written.
const ABSENT: u32 = u32::MAX;
/// The entry of a block that reads as zeros.
const ZERO: u32 = u32::MAX - 1;
