//! The crate through its public items, judged by QEMU.

#![allow(clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

mod boot;
mod disk;
mod encoded;
mod evil;
mod hostile;
mod matrix;
mod profile;
mod property;
mod qcow2_source;
mod raw_source;
mod reader;
mod support;
mod vdi_source;
mod vhd_source;
mod vhdx_source;
mod vmdk_extents;
mod vmdk_source;
