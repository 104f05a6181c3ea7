//! The one way bytes come in.

use std::io;
use std::sync::Arc;

/// Random access to the bytes of an image file, wherever they are kept.
pub trait ReadAt: Send + Sync {
    /// How many bytes there are. It does not change while an image is open.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the range reaches beyond [`size`](Self::size); else whatever the store says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Says what lies at `offset`, without reading it: a run that starts there and ends at or before [`size`](Self::size).
    ///
    /// `offset` is below `size`, and the run is never empty. A store that knows nothing better says that all of it is data,
    /// which is what this does unless overridden.
    ///
    /// # Errors
    ///
    /// Whatever the store says.
    fn run_at(&self, offset: u64) -> io::Result<Run> {
        Ok(Run {
            kind: RunKind::Data,
            len: self.size().saturating_sub(offset),
        })
    }
}

/// A stretch of a file that is all of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// What it is.
    pub kind: RunKind,
    /// How long it is, in bytes.
    pub len: u64,
}

/// What a stretch of a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Bytes that have to be read to be known.
    Data,
    /// Known to read as zeros: a hole.
    Zero,
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        (**self).run_at(offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        (**self).run_at(offset)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buf.len())?));
        let bytes = range
            .and_then(|range| self.get(range))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_all_data_and_knows_its_end() {
        let bytes = vec![1, 2, 3];
        let mut buf = [0; 2];
        bytes.read_exact_at(&mut buf, 1).unwrap();
        assert_eq!(buf, [2, 3]);
        for offset in [2, 3, u64::MAX] {
            assert_eq!(
                bytes.read_exact_at(&mut buf, offset).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
        assert_eq!(
            bytes.run_at(1).unwrap(),
            Run {
                kind: RunKind::Data,
                len: 2
            }
        );
    }
}
