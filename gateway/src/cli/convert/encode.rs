//! Carrying out an encoding: parts of the disk are encoded by all cores and written in order.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::Context;
use indicatif::ProgressBar;
use lithos_convert::{Encoding, JOB_LEN, Job, ReadAt};

use super::Output;
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

/// Encodes a disk as it comes out of a pipe, of which `start` was read already.
pub(super) fn from_pipe(
    encoding: &Encoding,
    start: Vec<u8>,
    pipe: &mut dyn Read,
    out: &mut Output,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    carry_out(encoding, PipeJobs::new(start, pipe), &Vec::new(), out, progress)
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
        .context("cannot write the output")
    }
}

/// A pipe in parts.
pub(super) struct PipeJobs<'a> {
    /// What was read already.
    start: Vec<u8>,
    pipe: &'a mut dyn Read,
    guest: u64,
}

impl<'a> PipeJobs<'a> {
    fn new(start: Vec<u8>, pipe: &'a mut dyn Read) -> Self {
        Self { start, pipe, guest: 0 }
    }
}

impl Iterator for PipeJobs<'_> {
    type Item = anyhow::Result<Job>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = match read_part(std::mem::take(&mut self.start), self.pipe) {
            Ok(bytes) if bytes.is_empty() => return None,
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error.into())),
        };
        let guest = self.guest;
        self.guest += bytes.len() as u64;
        Some(Ok(Job::of_bytes(guest, bytes)))
    }
}

/// Fills a part of [`JOB_LEN`] bytes; it is shorter where the pipe ends.
pub(super) fn read_part(mut part: Vec<u8>, pipe: &mut dyn Read) -> io::Result<Vec<u8>> {
    let left = JOB_LEN.saturating_sub(part.len()) as u64;
    pipe.take(left).read_to_end(&mut part)?;
    Ok(part)
}

/// Writes a disk as it comes out of a pipe, of which `start` was read already; parts that are all zeros become holes.
pub(super) fn raw_to_file(
    start: Vec<u8>,
    pipe: &mut dyn Read,
    out: &File,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    let mut part = start;
    let mut end = 0;
    loop {
        part = read_part(part, pipe).context("cannot read the standard input")?;
        if part.is_empty() {
            out.set_len(end)?;
            return Ok(end);
        }
        for chunk in part.chunks(64 << 10) {
            if chunk.iter().any(|byte| *byte != 0) {
                out.write_all_at(chunk, end).context("cannot write the output")?;
            }
            end += chunk.len() as u64;
        }
        progress.set_position(end);
        part.clear();
    }
}
