//! An object as the bytes of an image.

use std::{io, sync::Mutex};

use lithos_convert::{ReadAt, Run, RunKind};
use lithos_storage::{ObjectReader, layout::Extent};
use tokio::runtime::Handle;

/// Reads an object from a thread that may block.
#[derive(Debug)]
pub(crate) struct ObjectImage {
    size: u64,
    runtime: Handle,
    reader: Mutex<ObjectReader>,
}

impl ObjectImage {
    /// An image of the bytes that `reader` reads, by the runtime that this is called on.
    pub(crate) fn new(reader: ObjectReader) -> Self {
        Self {
            size: reader.size(),
            runtime: Handle::current(),
            reader: Mutex::new(reader),
        }
    }

    fn reader(&self) -> std::sync::MutexGuard<'_, ObjectReader> {
        self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ReadAt for ObjectImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let bytes = self
            .runtime
            .block_on(self.reader().read(offset..end))
            .map_err(io::Error::other)?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let piece = self
            .runtime
            .block_on(self.reader().piece_at(offset, u64::MAX))
            .map_err(io::Error::other)?;
        let piece = piece.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let kind = if matches!(piece.extent, Extent::Zero) {
            RunKind::Zero
        } else {
            RunKind::Data
        };
        Ok(Run { kind, len: piece.len })
    }
}
