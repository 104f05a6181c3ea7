//! Reads a plain blob: blocks as they are, each with a checksum.

use std::ops::Range;

use bytes::Bytes;

use super::in_memory;
use crate::{
    blob::{
        BLOCK_LEN, damaged,
        fs::{
            file::BlobFile,
            format::block_sum,
            verified::{Period, Verified},
        },
    },
    error::Result,
};

#[derive(Debug)]
pub(super) struct PlainForm {
    len: u64,
    sums: Box<[u32]>,
    verified: Verified,
}

impl PlainForm {
    /// A blob of `len` bytes, with a checksum for each block.
    pub(super) fn new(len: u64, sums: Box<[u32]>) -> Self {
        Self {
            len,
            verified: Verified::none_of(sums.len() as u64),
            sums,
        }
    }

    /// Where some blocks are stored: offset and length.
    pub(super) fn stored(&self, blocks: Range<u64>) -> (u64, u64) {
        let start = blocks.start * BLOCK_LEN;
        (start, (blocks.end * BLOCK_LEN).min(self.len) - start)
    }

    /// Reads the blocks that cover `range`, verifies those that were not verified in this period, and gives the range.
    pub(super) fn read(&self, file: &BlobFile, period: Option<Period>, range: Range<u64>) -> Result<Bytes> {
        let blocks = range.start / BLOCK_LEN..range.end.div_ceil(BLOCK_LEN);
        if period.is_some_and(|period| self.verified.contains_all(period, blocks.clone())) {
            let mut data = vec![0; in_memory(range.end - range.start)];
            file.read(&mut data, range.start, Some(range.start))?;
            return Ok(data.into());
        }
        let (start, len) = self.stored(blocks.clone());
        let mut data = vec![0; in_memory(len)];
        file.read(&mut data, start, Some(start))?;
        for (data, block) in data.chunks(in_memory(BLOCK_LEN)).zip(blocks) {
            if !period.is_some_and(|period| self.verified.contains(period, block)) {
                self.compare(file, period, block, data)?;
            }
        }
        Ok(Bytes::from(data).slice(in_memory(range.start - start)..in_memory(range.end - start)))
    }

    /// Reads a block and verifies it, whether or not it was verified before.
    pub(super) fn check(
        &self,
        file: &BlobFile,
        period: Option<Period>,
        block: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let (start, len) = self.stored(block..block + 1);
        buffer.resize(in_memory(len), 0);
        // Until it is known to be whole, no reader need trust it.
        self.verified.remove(block);
        file.read(buffer, start, Some(start))?;
        self.compare(file, period, block, buffer)
    }

    fn compare(&self, file: &BlobFile, period: Option<Period>, block: u64, data: &[u8]) -> Result<()> {
        if self.sums.get(in_memory(block)) != Some(&block_sum(data)) {
            let offset = Some(block * BLOCK_LEN);
            return Err(damaged(file.id, offset, "a block does not match its checksum"));
        }
        if let Some(period) = period {
            self.verified.insert(period, block);
        }
        Ok(())
    }
}
