//! VMDK: reading and writing monolithicSparse and streamOptimized, and reading disks of several files that lie in one archive:
//! monolithicFlat, twoGbMaxExtentFlat and twoGbMaxExtentSparse.
//!
//! ```text
//! header │ descriptor │ redundant grain directory and tables │ grain directory and tables │ grains of 64 KiB
//! ```
//!
//! The grain directory lists grain tables, these list grains; all places are in sectors of 512 bytes, all numbers are
//! little-endian. In a streamOptimized file grains are zlib streams (RFC 1950), each after a marker with its place and length,
//! and the directory may come last: then a footer, like the header but for its place, stands before the end-of-stream marker.
//!
//! The descriptor is text. It has to describe just this file: what names another one, by a parent, an extent with a path, or a
//! line that is not known, is refused. So are the formats of VMFS: COWD and `SESparse`.
//!
//! A descriptor that is a file of its own is readable where an OVA has all its extents beside it (`extents`); alone it is refused.
//!
//! The redundant directory is a copy for repairs; it is held to the file, but not read.
//!
//! Differs: QEMU ignores lines of the descriptor that it does not know, and opens the files that others name.
//!
//! Format: `VMware`, "Virtual Disk Format", technical note, version 5.0.

mod descriptor;
mod extents;
mod grains;
mod header;
pub(crate) mod planner;
mod reader;
pub(crate) mod stream;

pub(crate) use extents::open as open_extents;
pub(crate) use reader::open;

use std::num::NonZeroU64;

/// How a descriptor begins that is a file of its own.
pub(crate) const DESCRIPTOR_MAGIC: &[u8] = b"# Disk DescriptorFile";
/// What everything is counted in.
const SECTOR_SIZE: u64 = 512;
/// The same, known not to be zero.
const SECTOR: NonZeroU64 = NonZeroU64::new(SECTOR_SIZE).expect("a sector is not empty");
/// How many grains a grain table lists.
const TABLE_ENTRIES: u64 = 512;
const TABLE_LEN: u64 = TABLE_ENTRIES * 4;
/// The same number of grains, known not to be zero.
const TABLE_GRAINS: NonZeroU64 = NonZeroU64::new(TABLE_ENTRIES).expect("a table is not empty");
