//! A raw disk that comes out of a pipe, from start to end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::Context;
use indicatif::ProgressBar;
use lithos_convert::{Format, JOB_LEN, Job, Limits, Target, probe};

use super::{CANNOT_WRITE, NeedsFile};

/// What is left out of a file where it is all zeros.
const HOLE_LEN: usize = 64 << 10;

/// A raw disk in parts of [`JOB_LEN`] bytes, of which the last one may be shorter.
pub(super) struct PipedDisk<'a> {
    pipe: &'a mut dyn Read,
    /// What it is to become.
    to: &'a Target,
    limits: &'a Limits,
    /// What was read to find out the format.
    start: Vec<u8>,
    /// How much was handed out.
    len: u64,
}

impl<'a> PipedDisk<'a> {
    /// Reads the first part, and refuses what is not raw.
    pub(super) fn open(pipe: &'a mut dyn Read, to: &'a Target, limits: &'a Limits) -> anyhow::Result<Self> {
        let start = read_part(pipe, Vec::new())?;
        // As an empty file is, but before anything is replaced by nothing: what was to fill the pipe may have failed.
        limits.check_size(start.len() as u64, Format::Raw)?;
        let from = probe(&start)?.format;
        if from != Format::Raw {
            let reason = format!("a {from} image is not read from start to end: it needs a file, not a pipe");
            return Err(NeedsFile(reason).into());
        }
        Ok(Self {
            pipe,
            to,
            limits,
            start,
            len: 0,
        })
    }

    /// How long the disk is; known when all of it was handed out.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes the disk to a file; zeros become holes.
    pub(super) fn write_to_file(&mut self, out: &File, progress: &ProgressBar) -> anyhow::Result<()> {
        while let Some(part) = self.next_part()? {
            let start = self.len - part.len() as u64;
            for (offset, chunk) in (start..).step_by(HOLE_LEN).zip(part.chunks(HOLE_LEN)) {
                if chunk.iter().any(|byte| *byte != 0) {
                    out.write_all_at(chunk, offset).context(CANNOT_WRITE)?;
                }
            }
            progress.set_position(self.len);
        }
        out.set_len(self.len).context(CANNOT_WRITE)
    }

    /// Passes the disk on.
    pub(super) fn write_to_pipe(&mut self, out: &mut dyn Write, progress: &ProgressBar) -> anyhow::Result<()> {
        while let Some(part) = self.next_part()? {
            out.write_all(&part).context(CANNOT_WRITE)?;
            progress.set_position(self.len);
        }
        Ok(())
    }

    fn next_part(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let part = read_part(self.pipe, std::mem::take(&mut self.start))?;
        self.len += part.len() as u64;
        self.limits.check_size(self.len, Format::Raw)?;
        self.to.check(self.len, self.limits)?;
        Ok(Some(part).filter(|part| !part.is_empty()))
    }
}

/// Fills a part, of which there is something already; it is shorter where the pipe ends.
fn read_part(pipe: &mut dyn Read, mut part: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let left = JOB_LEN.saturating_sub(part.len()) as u64;
    let read = pipe.take(left).read_to_end(&mut part);
    read.context("cannot read the input")?;
    Ok(part)
}

/// The parts, to be encoded.
impl Iterator for PipedDisk<'_> {
    type Item = anyhow::Result<Job>;

    fn next(&mut self) -> Option<Self::Item> {
        let part = self.next_part().transpose()?;
        Some(part.map(|part| Job::of_bytes(self.len - part.len() as u64, part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(virtual_size_max: u64) -> Limits {
        Limits {
            virtual_size_max,
            ..Limits::DEFAULT
        }
    }

    #[test]
    fn a_disk_is_as_long_as_what_came_and_has_holes() {
        let mut disk = vec![0; JOB_LEN + 100_000];
        disk[JOB_LEN + 70_000] = 1;
        let limits = limits(disk.len() as u64);
        let file = tempfile::tempfile().unwrap();
        let mut pipe = &disk[..];
        let mut piped = PipedDisk::open(&mut pipe, &Target::RAW, &limits).unwrap();
        piped.write_to_file(&file, &ProgressBar::hidden()).unwrap();
        assert_eq!(piped.len(), disk.len() as u64);
        let mut back = vec![1; disk.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == disk);
        assert_eq!(file.metadata().unwrap().len(), disk.len() as u64);

        let (mut pipe, mut passed) = (&disk[..], Vec::new());
        let mut piped = PipedDisk::open(&mut pipe, &Target::RAW, &limits).unwrap();
        piped.write_to_pipe(&mut passed, &ProgressBar::hidden()).unwrap();
        assert!(passed == disk);

        let mut pipe = &disk[..];
        let piped = PipedDisk::open(&mut pipe, &Target::RAW, &limits).unwrap();
        assert_eq!(piped.map(Result::unwrap).count(), 2);
    }

    #[test]
    fn a_disk_that_does_not_end_is_refused_at_the_bound() {
        let limits = limits(5 << 20);
        let mut endless = std::io::repeat(0);
        let mut piped = PipedDisk::open(&mut endless, &Target::RAW, &limits).unwrap();
        let error = piped
            .write_to_pipe(&mut std::io::sink(), &ProgressBar::hidden())
            .unwrap_err();
        assert!(super::super::is_refusal(&error), "{error:#}");
        assert!(piped.len() <= (5 << 20) + JOB_LEN as u64);
    }

    #[test]
    fn what_is_not_raw_needs_a_file() {
        let mut gzip = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..];
        let error = PipedDisk::open(&mut gzip, &Target::RAW, &Limits::DEFAULT)
            .err()
            .unwrap();
        assert!(error.is::<NeedsFile>(), "{error:#}");
    }
}
