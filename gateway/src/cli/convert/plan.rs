//! Carrying out a plan: clusters are decoded by all cores, and written each to its place, or in order to a pipe.
//!
//! Workers write to the file in turns. A file system has a lock for each file anyway, for which the kernel lets threads spin:
//! two that copied at once took twice the CPU time, and no less of the clock's.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use indicatif::ProgressBar;
use lithos_convert::{Decoder, Plan, ReadAt, Segment};
use rustix::fs::copy_file_range;
use rustix::io::Errno;

use super::{CANNOT_WRITE, source::FileSource};
use crate::workers::{all_cores, in_order};

/// How much a worker decodes or writes before it takes up something else.
const BATCH_LEN: u64 = 2 << 20;
/// How much the kernel copies in the time that it takes to decode one byte, about.
const COPY_SPEED: u64 = 32;
/// How much is copied at once where the kernel cannot do it between files by itself.
const COPY_BUFFER_LEN: usize = 1 << 20;
/// Zeros of this length that come out of compressed clusters become holes. Shorter ones are not worth a piece of their own.
const HOLE_LEN: usize = 64 << 10;

/// Writes every segment to its place; zeros are left out, which makes holes of them.
pub(super) fn to_file(plan: &Plan, source: &FileSource, out: &File, progress: &ProgressBar) -> anyhow::Result<()> {
    let batches = Batches::new(plan, Zeros::LeftOut);
    let copier = Mutex::new(Copier::new(source.file(), out));
    let worker = || {
        let mut writer = Writer {
            source,
            out: &copier,
            clusters: Clusters::default(),
        };
        move |batch: Batch| {
            batch
                .segments
                .iter()
                .try_for_each(|(offset, segment)| writer.write(*offset, segment))?;
            Ok(batch.end)
        }
    };
    in_order(all_cores(), batches, worker, |end| {
        progress.set_position(end);
        Ok::<_, anyhow::Error>(())
    })?;
    out.set_len(plan.size()).context(CANNOT_WRITE)
}

/// Writes every segment, zeros too, one after another.
pub(super) fn to_pipe(
    plan: &Plan,
    source: &FileSource,
    out: &mut dyn Write,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let batches = Batches::new(plan, Zeros::Kept);
    let worker = || {
        let mut clusters = Clusters::default();
        move |batch: Batch| {
            let mut bytes = Vec::new();
            for (_, segment) in &batch.segments {
                append(&mut bytes, segment, source, &mut clusters)?;
            }
            Ok((bytes, batch.end))
        }
    };
    in_order(all_cores(), batches, worker, |(bytes, end)| {
        out.write_all(&bytes).context(CANNOT_WRITE)?;
        progress.set_position(end);
        Ok::<_, anyhow::Error>(())
    })
}

/// Segments for one worker, with their places in the target, and where they end.
struct Batch {
    segments: Vec<(u64, Segment)>,
    end: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Kept,
    LeftOut,
}

/// The segments of a plan in portions.
struct Batches {
    segments: lithos_convert::Segments,
    /// What is left of a segment that is too long for one batch.
    rest: Option<Segment>,
    offset: u64,
    zeros: Zeros,
}

impl Batches {
    fn new(plan: &Plan, zeros: Zeros) -> Self {
        Self {
            segments: plan.segments(),
            rest: None,
            offset: 0,
            zeros,
        }
    }

    /// How much of a segment of this kind makes a batch.
    fn len_max(&self, segment: &Segment) -> u64 {
        match (segment, self.zeros) {
            (Segment::Zeros { .. }, Zeros::LeftOut) => u64::MAX,
            (Segment::Copy { .. }, Zeros::LeftOut) => BATCH_LEN * COPY_SPEED,
            _ => BATCH_LEN,
        }
    }

    fn fetch(&mut self) -> anyhow::Result<Option<Batch>> {
        let mut segments = Vec::new();
        // In parts of a batch's worth of work, of which there are as many as a batch has bytes.
        let mut work = 0;
        while work < BATCH_LEN {
            let Some(segment) = self.rest.take().map(Ok).or_else(|| self.segments.next()).transpose()? else {
                break;
            };
            let len_max = self.len_max(&segment);
            let (segment, rest) = split(segment, len_max);
            self.rest = rest;
            let (offset, len) = (self.offset, segment.len());
            self.offset += len;
            if len_max == u64::MAX {
                continue;
            }
            work += len.saturating_mul(BATCH_LEN) / len_max;
            segments.push((offset, segment));
        }
        let end = self.offset;
        Ok((!segments.is_empty()).then_some(Batch { segments, end }))
    }
}

impl Iterator for Batches {
    type Item = anyhow::Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fetch().transpose()
    }
}

/// Cuts what can be cut without work for `len_max` bytes; a cluster is bounded by itself.
fn split(segment: Segment, len_max: u64) -> (Segment, Option<Segment>) {
    match segment {
        Segment::Copy { source_offset, len } if len > len_max => (
            Segment::Copy {
                source_offset,
                len: len_max,
            },
            Some(Segment::Copy {
                source_offset: source_offset + len_max,
                len: len - len_max,
            }),
        ),
        Segment::Zeros { len } if len > len_max => (
            Segment::Zeros { len: len_max },
            Some(Segment::Zeros { len: len - len_max }),
        ),
        whole => (whole, None),
    }
}

/// What a worker writes to a file with.
struct Writer<'a> {
    source: &'a FileSource,
    /// Whose turn it is.
    out: &'a Mutex<Copier<'a>>,
    clusters: Clusters,
}

impl Writer<'_> {
    fn write(&mut self, offset: u64, segment: &Segment) -> anyhow::Result<()> {
        let turn = || self.out.lock().unwrap_or_else(PoisonError::into_inner);
        match segment {
            Segment::Bytes(bytes) => turn().to.write_all_at(bytes, offset).context(CANNOT_WRITE)?,
            Segment::Zeros { .. } => {}
            Segment::Copy { source_offset, len } => {
                let copied = turn().copy(self.source.start() + source_offset, offset, *len);
                copied.context("cannot copy to the output")?;
            }
            Segment::Decode { .. } => {
                let part = self.clusters.decode(self.source, segment)?;
                for (index, chunk) in part.chunks(HOLE_LEN).enumerate() {
                    if chunk.iter().any(|byte| *byte != 0) {
                        let offset = offset + (index * HOLE_LEN) as u64;
                        turn().to.write_all_at(chunk, offset).context(CANNOT_WRITE)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn append(bytes: &mut Vec<u8>, segment: &Segment, source: &FileSource, clusters: &mut Clusters) -> anyhow::Result<()> {
    let start = bytes.len();
    match segment {
        Segment::Bytes(part) => bytes.extend_from_slice(part),
        Segment::Zeros { len } => bytes.resize(start + usize::try_from(*len)?, 0),
        Segment::Copy { source_offset, len } => {
            bytes.resize(start + usize::try_from(*len)?, 0);
            source.read_exact_at(bytes.get_mut(start..).unwrap_or_default(), *source_offset)?;
        }
        Segment::Decode { .. } => bytes.extend_from_slice(clusters.decode(source, segment)?),
    }
    Ok(())
}

/// Decodes clusters into a buffer that is used again.
#[derive(Default)]
struct Clusters {
    decoder: Decoder,
    compressed: Vec<u8>,
    cluster: Vec<u8>,
}

impl Clusters {
    /// The part of a cluster that a segment is about; nothing for a segment of another kind.
    fn decode(&mut self, source: &FileSource, segment: &Segment) -> anyhow::Result<&[u8]> {
        let Segment::Decode {
            source_offset,
            compressed_len,
            codec,
            len,
            skip,
            take,
        } = *segment
        else {
            return Ok(&[]);
        };
        self.compressed.resize(usize::try_from(compressed_len)?, 0);
        self.cluster.resize(usize::try_from(len)?, 0);
        source.read_exact_at(&mut self.compressed, source_offset)?;
        self.decoder
            .decode(codec, &self.compressed, &mut self.cluster)
            .with_context(|| format!("the cluster at byte {source_offset}"))?;
        let part = self.cluster.get(usize::try_from(skip)?..usize::try_from(skip + take)?);
        part.context("a part outside of its cluster")
    }
}

/// Copies ranges from file to file.
///
/// The kernel does it by itself, and where both files are on one file system that can share blocks (btrfs, XFS), and the range
/// is aligned to them, it shares them.
struct Copier<'a> {
    from: &'a File,
    to: &'a File,
    /// Used from when the kernel has refused for the first time.
    buffer: Vec<u8>,
}

impl<'a> Copier<'a> {
    fn new(from: &'a File, to: &'a File) -> Self {
        Self {
            from,
            to,
            buffer: Vec::new(),
        }
    }

    fn copy(&mut self, mut from: u64, mut to: u64, len: u64) -> io::Result<()> {
        let end = to + len;
        while to < end && self.buffer.is_empty() {
            let left = usize::try_from(end - to).unwrap_or(usize::MAX);
            match copy_file_range(self.from, Some(&mut from), self.to, Some(&mut to), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::TXTBSY) => {
                    self.buffer.resize(COPY_BUFFER_LEN, 0);
                }
                Err(error) => return Err(error.into()),
            }
        }
        while to < end {
            let len = usize::try_from(end - to).unwrap_or(usize::MAX).min(self.buffer.len());
            let buffer = self.buffer.get_mut(..len).unwrap_or_default();
            self.from.read_exact_at(buffer, from)?;
            self.to.write_all_at(buffer, to)?;
            (from, to) = (from + len as u64, to + len as u64);
        }
        Ok(())
    }
}
