//! A `tar.gz` that holds the disk as `disk.raw`, as Google's cloud takes it.
//!
//! The archive is in GNU's old format, and its header and its end are members of gzip of their own, so that the disk between
//! them can be compressed in parts.

use super::compressor::{Compression, Compressor};
use super::{Assemble, Encoded, ova};
use crate::Error;

/// The name that the cloud asks for.
const DISK: &str = "disk.raw";

#[derive(Debug)]
pub(super) struct Assembler {
    virtual_size: u64,
    is_started: bool,
}

impl Assembler {
    pub(super) fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            is_started: false,
        }
    }
}

/// How long an archive is that holds a disk of `len` bytes: it has a header, and ends with two empty blocks.
pub(crate) fn archived_len(len: u64) -> u64 {
    let blocks = len.div_ceil(ova::BLOCK_SIZE).saturating_add(3);
    blocks.saturating_mul(ova::BLOCK_SIZE)
}

fn member(bytes: &[u8]) -> Vec<u8> {
    Compressor::new(Compression::Gzip).compress_to_vec(bytes)
}

impl Assemble for Assembler {
    fn start(&mut self, body: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.is_started, true) {
            let header = ova::header(tar::Header::new_gnu(), DISK, self.virtual_size);
            body.extend(member(&header));
        }
    }

    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        body.extend_from_slice(&encoded.bytes);
        Ok(())
    }

    fn finish(&mut self, virtual_size: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let mut end = Vec::new();
        ova::end(virtual_size, &mut end);
        body.extend(member(&end));
        Ok(Vec::new())
    }
}
