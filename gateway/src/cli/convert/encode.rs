//! Carrying out an encoding: parts of the disk are encoded by all cores and written in order.

use std::io::Write;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use indicatif::ProgressBar;
use lithos_convert::{Encoding, Job, ReadAt};

use super::{CANNOT_WRITE, Output, pipe::PipedDisk};
use crate::workers::{all_cores, in_order};

/// Encodes what is in `source`, and says how large the file has become.
pub(super) fn from_file(
    encoding: &Encoding,
    source: &dyn ReadAt,
    out: &mut Output,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    let jobs = encoding.jobs().map(|job| Ok(job?));
    carry_out(encoding, jobs, source, out, progress)
}

/// Encodes a disk as it comes out of a pipe, and says how large the file has become.
pub(super) fn from_pipe(
    encoding: &Encoding,
    disk: &mut PipedDisk<'_>,
    out: &mut Output,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    carry_out(encoding, disk, &Vec::new(), out, progress)
}

fn carry_out(
    encoding: &Encoding,
    jobs: impl Iterator<Item = anyhow::Result<Job>>,
    source: &dyn ReadAt,
    out: &mut Output,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    let mut assembler = encoding.assembler();
    let mut body = Body {
        out,
        end: encoding.head_len(),
        bytes: Vec::new(),
    };
    let worker = || {
        let mut encoder = encoding.encoder();
        move |job: Job| Ok(encoder.encode(&job, source)?)
    };
    in_order(all_cores(), jobs, worker, |encoded| {
        assembler.push(&encoded, &mut body.bytes)?;
        body.write()?;
        progress.set_position(encoded.end());
        Ok::<_, anyhow::Error>(())
    })?;
    let head = assembler.finish(&mut body.bytes)?;
    body.write()?;
    let end = body.end;
    if !head.is_empty() {
        out.write_at(&head, 0)?;
    }
    Ok(end)
}

/// What follows the head, written as it comes.
struct Body<'a> {
    out: &'a mut Output,
    end: u64,
    bytes: Vec<u8>,
}

impl Body<'_> {
    fn write(&mut self) -> anyhow::Result<()> {
        self.out.write_at(&self.bytes, self.end)?;
        self.end += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

impl Output {
    /// Writes at an offset; a pipe is written one after another, whatever that is.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> anyhow::Result<()> {
        match self {
            Self::File(partial) => partial.file.write_all_at(bytes, offset),
            Self::Pipe(pipe) => pipe.write_all(bytes),
        }
        .context(CANNOT_WRITE)
    }
}
