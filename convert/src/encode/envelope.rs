//! A file that is nothing but members or frames, one after another.
//!
//! Readers of gzip (RFC 1952, "Member format") and of Zstandard (RFC 8878, "Frames") take what several of them decode to for one
//! file, so that they can be made at the same time.

use super::compressor::{Compression, Compressor};
use super::{Assemble, Encoded};
use crate::Error;

#[derive(Debug)]
pub(super) struct Assembler {
    compression: Compression,
    is_empty: bool,
}

impl Assembler {
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            compression,
            is_empty: true,
        }
    }
}

impl Assemble for Assembler {
    fn start(&mut self, _: &mut Vec<u8>) {}

    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        body.extend_from_slice(&encoded.bytes);
        self.is_empty = false;
        Ok(())
    }

    fn finish(&mut self, _: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        // A file without any is not of the format.
        if self.is_empty {
            body.extend(Compressor::new(self.compression).compress_to_vec(&[]));
        }
        Ok(Vec::new())
    }
}
