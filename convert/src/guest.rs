//! The guest's disk as bytes.

use std::io;

use crate::{Error, Image, Mapping, ReadAt, Run, RunKind, decode, safety};

/// The disk that a guest sees, readable like any other source.
///
/// Meant for looking at a few sectors: a compressed cluster is decoded again for each read that touches it.
#[derive(Debug)]
pub struct Guest<S, I> {
    source: S,
    image: I,
}

impl<S: ReadAt, I: Image> Guest<S, I> {
    /// Joins an image with the source that it was opened from.
    pub fn new(source: S, image: I) -> Self {
        Self { source, image }
    }

    /// [`read_exact_at`](ReadAt::read_exact_at) with an error that tells a broken image from a broken source.
    pub(crate) fn read(&self, mut buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut guest = offset;
        while !buf.is_empty() {
            let filled = self.read_some(buf, guest)?;
            buf = buf.get_mut(filled..).unwrap_or_default();
            guest = guest.saturating_add(filled as u64);
        }
        Ok(())
    }

    /// Fills the start of `buf` from one mapping and says how much that was.
    fn read_some(&self, buf: &mut [u8], guest: u64) -> Result<usize, Error> {
        let mapping = self.image.map(guest)?;
        let run_len = match mapping {
            Mapping::Zero { len } | Mapping::Data { len, .. } => len,
            Mapping::Compressed {
                guest_start, guest_len, ..
            } => guest_len.saturating_sub(guest.saturating_sub(guest_start)),
        };
        let filled = usize::try_from(run_len).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..filled).unwrap_or_default();
        match mapping {
            Mapping::Zero { .. } => buf.fill(0),
            Mapping::Data { offset, .. } => safety::read_into(&self.source, buf, offset)?,
            Mapping::Compressed {
                offset,
                len,
                codec,
                guest_start,
                guest_len,
            } => {
                let region = safety::Region {
                    name: "compressed cluster",
                    offset,
                    len,
                };
                let compressed = safety::read_region(&self.source, region)?;
                let mut cluster = vec![0; usize::try_from(guest_len).unwrap_or(usize::MAX)];
                decode(codec, &compressed, &mut cluster).map_err(|error| error.at(offset))?;
                let start = usize::try_from(guest.saturating_sub(guest_start)).unwrap_or(usize::MAX);
                let part = cluster.get(start..).and_then(|rest| rest.get(..filled));
                buf.copy_from_slice(part.expect("the run ends with the cluster"));
            }
        }
        Ok(filled)
    }
}

impl<S: ReadAt, I: Image> ReadAt for Guest<S, I> {
    fn size(&self) -> u64 {
        self.image.virtual_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read(buf, offset).map_err(io::Error::other)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let (kind, len) = match self.image.map(offset).map_err(io::Error::other)? {
            Mapping::Zero { len } => (RunKind::Zero, len),
            Mapping::Data { len, .. } => (RunKind::Data, len),
            Mapping::Compressed {
                guest_start, guest_len, ..
            } => (
                RunKind::Data,
                guest_len.saturating_sub(offset.saturating_sub(guest_start)),
            ),
        };
        Ok(Run {
            kind,
            len: len.min(self.size().saturating_sub(offset)),
        })
    }
}
