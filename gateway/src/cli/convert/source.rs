//! The file that is read.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use lithos_convert::{ReadAt, Run, RunKind};
use rustix::fs::{SeekFrom as SeekTo, seek};
use rustix::io::Errno;

/// A file or block device that knows its holes.
#[derive(Debug)]
pub(crate) struct FileSource {
    file: File,
    /// Where in the file the image starts: behind what an archive has before it.
    start: u64,
    size: u64,
    /// The run that was found last: most questions are about neighbours.
    last: Mutex<(Range<u64>, RunKind)>,
}

impl FileSource {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        if file.metadata().with_context(cannot)?.is_dir() {
            bail!("{} is a folder", path.display());
        }
        Self::of(file).with_context(cannot)
    }

    /// Takes a file or block device that is open.
    pub(super) fn of(mut file: File) -> io::Result<Self> {
        // Unlike the metadata, this knows the size of a block device.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            start: 0,
            size,
            last: Mutex::new((0..0, RunKind::Data)),
        })
    }

    /// A stretch of this image, as an image of its own.
    pub(super) fn part(&self, offset: u64, len: u64) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            start: self.start + offset,
            size: len,
            last: Mutex::new((0..0, RunKind::Data)),
        })
    }

    /// The file, of which the image is the part that begins at [`start`](Self::start).
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    fn find_run(&self, offset: u64) -> io::Result<(Range<u64>, RunKind)> {
        let in_file = offset + self.start;
        let here = |place: u64| place.saturating_sub(self.start).min(self.size);
        match seek(&self.file, SeekTo::Data(in_file)) {
            Ok(data) if data > in_file => Ok((offset..here(data), RunKind::Zero)),
            Ok(_) => {
                let hole = seek(&self.file, SeekTo::Hole(in_file))?;
                Ok((offset..here(hole), RunKind::Data))
            }
            Err(Errno::NXIO) => Ok((offset..self.size, RunKind::Zero)),
            // Where holes are not known, all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok((offset..self.size, RunKind::Data)),
            Err(error) => Err(error.into()),
        }
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buf, self.start + offset)
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.0.contains(&offset) {
            *last = self.find_run(offset)?;
        }
        let (range, kind) = &*last;
        Ok(Run {
            kind: *kind,
            len: range.end - offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        super::super::tests::make_disk(&path);
        let source = FileSource::open(&path).unwrap();
        let (mut offset, mut runs) = (0, Vec::new());
        while offset < source.size() {
            let run = source.run_at(offset).unwrap();
            offset += run.len;
            runs.push(run.kind);
        }
        assert_eq!(runs, [RunKind::Data, RunKind::Zero, RunKind::Data, RunKind::Zero]);
        assert_eq!(
            source.run_at(10).unwrap(),
            Run {
                kind: RunKind::Data,
                len: (100 << 10) - 10
            }
        );
    }
}
