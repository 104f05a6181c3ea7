//! qcow2, versions 2 and 3: reading any, writing both plain and version 3 compressed.
//!
//! ```text
//! header ─┬─▶ L1 table ──▶ L2 tables ──▶ clusters: data, compressed, zero, absent
//!         └─▶ refcount table ──▶ refcount blocks      not needed for reading
//! ```
//!
//! All numbers are big-endian. Internal snapshots, bitmaps and preallocation are left behind by a conversion; whatever needs
//! another file or a key is refused.
//!
//! Format: QEMU documentation, "Qcow2 Image File Format".

pub(crate) mod assembler;
pub(crate) mod compressed;
pub(crate) mod extension;
pub(crate) mod header;
pub(crate) mod planner;
pub(crate) mod preamble;
pub(crate) mod reader;
pub(crate) mod refcount;
pub(crate) mod table;
mod usage;

pub(crate) use reader::Reader;

/// The version of a file to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// What QEMU calls compat 0.10.
    Two,
    /// What QEMU calls compat 1.1.
    Three,
}
