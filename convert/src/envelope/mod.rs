//! Envelopes: what an image comes wrapped in, and how the image is taken out.
//!
//! ```text
//! gz, xz, zst, bz2, a compressed file of a zip ──▶ Content::Stream   a reader: whoever wants to map the image keeps the bytes
//! tar, ova, an uncompressed file of a zip      ──▶ Content::Part     a stretch of the file: nothing has to be kept
//! ova with a disk in several files             ──▶ Content::Part     all of the file, which `open` reads as it is
//! ```
//!
//! An envelope may hold another one: a `tar.gz`, an OVA with a compressed disk. What comes out of one is opened within
//! [`Limits::inside`].
//!
//! An archive has to hold exactly one image: its only file beside checksums, signatures and texts, or the disk that the
//! descriptor of an OVA (OVF, DMTF DSP0243) names. That may be the descriptor of a VMDK whose extents are further files of the
//! archive: they stay where they are. Names are compared, never opened.
//!
//! # Bounds
//!
//! What comes out is bounded by [`Limits::expanded_bytes_max`], entries by [`Limits::entries_max`], the memory of a decoder by
//! [`DECODER_MEMORY_MAX`]. Nothing is allocated by a number that a file gives without a bound.

mod archive;
mod ova;
mod stream;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

use std::fmt;
use std::io::Read;
use std::sync::Arc;

pub(crate) use self::archive::Entry;
pub use self::ova::Manifest;
use crate::probe::probe_strictly;
use crate::safety::quote;
use crate::{Error, ErrorKind, Format, Limits, ReadAt, Run};

/// Most bytes that a decoder may keep: the window of `zstd --long=27`, and twice the dictionary of `xz -9`.
pub const DECODER_MEMORY_MAX: u64 = 128 << 20;

/// What is in an envelope.
pub enum Content {
    /// It lies in the file as it is.
    Part(Part),
    /// It has to be decoded.
    Stream(Box<dyn Read + Send>),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part(part) => f.debug_tuple("Part").field(part).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A stretch of a file that is an image, or an envelope again.
///
/// It may be the whole file: a disk in several files of an archive, which [`open`](crate::open) reads as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// What the archive calls it.
    pub name: String,
    /// Digests that came along, which [`Manifest::check`] holds against the bytes; empty if there are none.
    pub manifest: Manifest,
}

impl Part {
    /// Whether it is all of a source of `source_size` bytes: then nothing is left to be taken out, and what was unwrapped is to
    /// be [opened](crate::open).
    pub fn is_whole(&self, source_size: u64) -> bool {
        self.offset == 0 && self.len == source_size
    }
}

/// A disk in several files of an archive.
#[derive(Debug)]
pub(crate) struct SplitDisk {
    /// The text that lists them.
    pub(crate) descriptor: Entry,
    /// All files of the archive.
    pub(crate) files: Vec<Entry>,
}

/// The disk in several files that an OVA holds, if `source` is one and does.
///
/// What else is wrong with an archive is [`unwrap`]'s to say.
///
/// # Errors
///
/// [`Io`](ErrorKind::Io) if the source cannot be read.
pub(crate) fn split_disk(source: &dyn ReadAt) -> Result<Option<SplitDisk>, Error> {
    match tar::split_disk(source) {
        Err(error) if error.kind() == ErrorKind::Io => Err(error.with_format(Format::Tar)),
        found => Ok(found.unwrap_or_default()),
    }
}

/// Opens the envelope that `source` is; `None` if it is none. A stream ends in an error behind
/// [`Limits::expanded_bytes_max`].
///
/// # Errors
///
/// [`Corrupt`](crate::ErrorKind::Corrupt) or [`Unsupported`](crate::ErrorKind::Unsupported) if it is of several formats at once,
/// cannot be opened or does not hold exactly one image, [`TooLarge`](crate::ErrorKind::TooLarge) over a bound, [`Io`](crate::ErrorKind::Io) if
/// the source cannot be read. Errors inside of a stream come from its reader.
pub fn unwrap(source: &Arc<dyn ReadAt>, limits: &Limits) -> Result<Option<Content>, Error> {
    let format = probe_strictly(&**source)?.format;
    if format.is_envelope() && limits.nesting_max == 0 {
        return Err(too_deep(format));
    }
    let content = match format {
        Format::Gzip | Format::Xz | Format::Zstd | Format::Bzip2 => {
            Content::Stream(stream::of(format, Arc::clone(source), limits.expanded_bytes_max)?)
        }
        Format::Zip => zip::open(source, limits).map_err(|error| error.with_format(format))?,
        Format::Tar => Content::Part(tar::open(&**source, limits).map_err(|error| error.with_format(format))?),
        _ => return Ok(None),
    };
    Ok(Some(content))
}

/// A stretch of a source, as a source.
pub struct Slice<S = Arc<dyn ReadAt>> {
    source: S,
    offset: u64,
    len: u64,
}

impl<S: ReadAt> Slice<S> {
    /// The bytes of `source` from `offset` on, `len` of them, or as many as there are.
    pub fn new(source: S, offset: u64, len: u64) -> Self {
        let offset = offset.min(source.size());
        let len = len.min(source.size().saturating_sub(offset));
        Self { source, offset, len }
    }

    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// Where it starts in its source.
    pub(crate) fn start(&self) -> u64 {
        self.offset
    }
}

impl<S> fmt::Debug for Slice<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<S: ReadAt> ReadAt for Slice<S> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.source.read_exact_at(buf, self.offset.saturating_add(offset))
    }

    fn run_at(&self, offset: u64) -> std::io::Result<Run> {
        let run = self.source.run_at(self.offset.saturating_add(offset))?;
        Ok(Run {
            len: run.len.min(self.len.saturating_sub(offset)),
            ..run
        })
    }
}

/// Reads a source from its first byte to its last.
struct Sequential {
    source: Arc<dyn ReadAt>,
    at: u64,
}

impl Read for Sequential {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.source.size().saturating_sub(self.at);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let buf = buf.get_mut(..len).unwrap_or_default();
        crate::safety::read_into(&*self.source, buf, self.at).map_err(std::io::Error::other)?;
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

fn too_many_entries(max: usize) -> Error {
    let reason =
        format!("the archive holds more than {max} entries, the most that are accepted here (image-entries-max)");
    Error::new(ErrorKind::TooLarge, reason)
}

/// Refuses an envelope where none may be any more.
pub(crate) fn too_deep(format: Format) -> Error {
    let reason = "there are more envelopes around the image than are accepted here (image-nesting-max)";
    Error::new(ErrorKind::TooLarge, reason).with_format(format)
}

/// Shows names for a reason.
fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    /// More would not fit into a log line.
    const SHOWN: usize = 4;
    let mut names: Vec<_> = names.take(SHOWN + 1).map(|name| quote(name.as_bytes())).collect();
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("more".to_owned());
    }
    names.join(", ")
}
