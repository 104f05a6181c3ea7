//! A sealed blob that is open.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::format::{FOOTER_LEN, Footer, block_sum};
use crate::{
    blob::{BLOCK_LEN, Blob, BlobId},
    error::{Error, Result},
};

/// The file of a blob, and what its trailer says; both stay as they are if the blob is deleted.
#[derive(Debug)]
pub(super) struct Sealed {
    id: BlobId,
    file: File,
    len: u64,
    sums: Box<[u32]>,
}

impl Sealed {
    /// Opens the file and verifies its trailer.
    pub(super) fn open(id: BlobId, path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::corrupt(format!("blob {id} is missing")).caused_by(error),
            _ => Error::io(format!("open blob {id}"), error),
        })?;
        let file_len = file
            .metadata()
            .map_err(|error| Error::io(format!("open blob {id}"), error))?
            .len();
        let Some(footer_offset) = file_len.checked_sub(FOOTER_LEN as u64) else {
            return Err(damaged(id, 0, "its file is too short"));
        };
        let mut footer = [0; FOOTER_LEN];
        read_exact(id, &file, &mut footer, footer_offset)?;
        let footer = Footer::parse(footer, file_len).map_err(|reason| damaged(id, footer_offset, reason))?;
        let mut table = vec![0; footer.table_len];
        read_exact(id, &file, &mut table, footer.len)?;
        let sums = footer
            .verify(id, &table)
            .map_err(|reason| damaged(id, footer.len, reason))?;
        Ok(Self {
            id,
            file,
            len: footer.len,
            sums,
        })
    }

    pub(super) fn id(&self) -> BlobId {
        self.id
    }

    /// Reads the blocks that cover `range`, verifies them, and gives the range.
    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let first = range.start / BLOCK_LEN;
        let start = first * BLOCK_LEN;
        let end = range.end.next_multiple_of(BLOCK_LEN).min(self.len);
        let mut data = vec![0; in_memory(end - start)];
        read_exact(self.id, &self.file, &mut data, start)?;
        let sums = self.sums.get(in_memory(first)..).unwrap_or_default();
        for ((block, sum), offset) in data
            .chunks(in_memory(BLOCK_LEN))
            .zip(sums)
            .zip((start..).step_by(in_memory(BLOCK_LEN)))
        {
            if block_sum(block) != *sum {
                return Err(damaged(self.id, offset, "a block does not match its checksum"));
            }
        }
        Ok(Bytes::from(data).slice(in_memory(range.start - start)..in_memory(range.end - start)))
    }
}

/// A length that a range of a blob bounds, and so [`BLOB_LEN_MAX`](crate::blob::BLOB_LEN_MAX).
fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("a blob's length fits in memory")
}

fn read_exact(id: BlobId, file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(id, offset, "its file ends early"),
        _ => Error::io(format!("read blob {id} at byte {offset}"), error),
    })
}

fn damaged(id: BlobId, offset: u64, reason: &str) -> Error {
    Error::corrupt(format!("blob {id} is damaged at byte {offset}: {reason}"))
}

/// What callers hold.
#[derive(Debug)]
pub(super) struct FsBlob(pub(super) Arc<Sealed>);

#[async_trait]
impl Blob for FsBlob {
    fn len(&self) -> u64 {
        self.0.len
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.0.len {
            let (id, len) = (self.0.id, self.0.len);
            return Err(Error::corrupt(format!(
                "blob {id} has {len} bytes, and not those of {range:?}"
            )));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let sealed = Arc::clone(&self.0);
        spawn_blocking(move || sealed.read(range)).await?
    }
}
