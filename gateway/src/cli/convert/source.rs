//! What is read: a file or block device, or a pipe.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use lithos_convert::{ReadAt, Run, RunKind};
use rustix::fs::{SeekFrom as SeekTo, seek};
use rustix::io::Errno;

use super::zeros::WrittenZeros;

/// What an image is read from.
pub(crate) enum Input {
    /// What can be read anywhere.
    File(FileSource),
    /// What is read from start to end: a pipe, a terminal, a socket.
    Pipe(File),
}

impl Input {
    /// Opens a path, or takes the standard input where it is `-`; that is read from where it stands.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let file = if path == Path::new("-") {
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        };
        let file = file.with_context(cannot)?;
        let kind = file.metadata().with_context(cannot)?.file_type();
        if kind.is_dir() {
            bail!("{} is a folder", path.display());
        }
        if kind.is_file() || kind.is_block_device() {
            return Ok(Self::File(FileSource::of(file).with_context(cannot)?));
        }
        Ok(Self::Pipe(file))
    }
}

/// A file or block device that knows its holes.
#[derive(Debug)]
pub(crate) struct FileSource {
    file: File,
    /// Where in the file the image starts: behind what an archive has before it.
    start: u64,
    size: u64,
    /// The run that was found last: most questions are about neighbours.
    last: Mutex<(Range<u64>, RunKind)>,
    /// Zeros that are not in holes, if they are looked for.
    zeros: Option<Mutex<WrittenZeros>>,
}

impl FileSource {
    /// Takes a file or block device that is open, from where it stands.
    pub(super) fn of(mut file: File) -> io::Result<Self> {
        let start = file.stream_position()?;
        // Unlike the metadata, this knows the size of a block device.
        let end = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            start,
            size: end.saturating_sub(start),
            last: Mutex::new((0..0, RunKind::Data)),
            zeros: None,
        })
    }

    /// From now on, runs of zeros are found that were written, too.
    pub(super) fn finding_zeros(mut self) -> Self {
        self.zeros = Some(Mutex::default());
        self
    }

    /// A stretch of this image, as an image of its own.
    pub(super) fn part(&self, offset: u64, len: u64) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            start: self.start + offset,
            size: len,
            last: Mutex::new((0..0, RunKind::Data)),
            zeros: self.zeros.as_ref().map(|_| Mutex::default()),
        })
    }

    /// The file, of which the image is the part that begins at [`start`](Self::start).
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether somebody has made the file shorter than it was.
    fn is_cut_off(&self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        Ok(metadata.is_file() && metadata.len() < self.start + self.size)
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
            Err(Errno::NXIO) if self.is_cut_off()? => Err(io::ErrorKind::UnexpectedEof.into()),
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
        let (mut end, mut kind) = (range.end, *kind);
        if let (RunKind::Data, Some(zeros)) = (kind, &self.zeros) {
            let mut zeros = zeros.lock().unwrap_or_else(PoisonError::into_inner);
            (end, kind) = zeros.run(&self.file, self.start, self.size, offset..end)?;
        }
        Ok(Run {
            kind,
            len: end - offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> FileSource {
        FileSource::of(File::open(path).unwrap()).unwrap()
    }

    fn runs(source: &FileSource) -> Vec<(RunKind, u64)> {
        let (mut offset, mut runs) = (0, Vec::new());
        while offset < source.size() {
            let run = source.run_at(offset).unwrap();
            offset += run.len;
            runs.push((run.kind, run.len));
        }
        runs
    }

    #[test]
    fn holes_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        super::super::tests::make_disk(&path);
        let source = open(&path);
        let kinds: Vec<_> = runs(&source).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [RunKind::Data, RunKind::Zero, RunKind::Data, RunKind::Zero]);
        assert_eq!(
            source.run_at(10).unwrap(),
            Run {
                kind: RunKind::Data,
                len: (100 << 10) - 10
            }
        );
    }

    #[test]
    fn a_file_that_is_cut_off_meanwhile_is_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let source = FileSource::of(file.try_clone().unwrap()).unwrap();
        file.set_len(1 << 10).unwrap();
        let error = source.run_at(0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn zeros_that_were_written_are_found_if_they_are_looked_for() {
        const CHUNK: usize = 64 << 10;
        const CHUNK_LEN: u64 = CHUNK as u64;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        // Seventy-one chunks and a bit, which is more than one group: the second one holds something in its last byte, the last one
        // in its last, and so does the one before.
        let mut disk = vec![0; 71 * CHUNK + 1000];
        for end in [2 * CHUNK, 71 * CHUNK, disk.len()] {
            disk[end - 1] = 1;
        }
        std::fs::write(&path, &disk).unwrap();
        assert_eq!(runs(&open(&path)), [(RunKind::Data, disk.len() as u64)]);
        let source = open(&path).finding_zeros();
        let expected = [
            (RunKind::Zero, CHUNK_LEN),
            (RunKind::Data, CHUNK_LEN),
            (RunKind::Zero, 68 * CHUNK_LEN),
            (RunKind::Data, CHUNK_LEN + 1000),
        ];
        // What was found is what is told again.
        assert_eq!(runs(&source), expected);
        assert_eq!(runs(&source), expected);
        assert_eq!(source.run_at(CHUNK_LEN + 7).unwrap().len, CHUNK_LEN - 7);
        let part = source.part(CHUNK_LEN, 2 * CHUNK_LEN).unwrap();
        assert_eq!(runs(&part), [(RunKind::Data, CHUNK_LEN), (RunKind::Zero, CHUNK_LEN)]);
    }
}
