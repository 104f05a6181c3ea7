//! ZIP (APPNOTE 6.3): files that are stored or deflated.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder};

use super::archive::{Entry, only_image};
use super::{Content, Manifest, Part, Slice, stream, too_many_entries};
use crate::safety::Region;
use crate::{Error, Limits, ReadAt};

/// How far from its end the directory of an archive is looked for: the longest comment there can be, and a record.
const SEARCH_LEN: u64 = (64 << 10) + 1024;

/// A source as the library reads one.
struct Source(Arc<dyn ReadAt>);

impl ReaderAt for Source {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.0.size().saturating_sub(offset);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        if len == 0 {
            return Ok(0);
        }
        let buf = buf.get_mut(..len).unwrap_or_default();
        self.0.read_exact_at(buf, offset)?;
        Ok(len)
    }
}

/// What the directory says of a file, beside its name.
struct Details {
    place: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
    is_encrypted: bool,
    len: u64,
    crc: u32,
}

/// What the library says, as ours: a source that cannot be read is not the archive's fault. Its end is.
fn broken(error: rawzip::Error) -> Error {
    match error.kind() {
        rawzip::ErrorKind::IO(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            Error::io("a ZIP archive", io::Error::other(error))
        }
        _ => Error::corrupt(format!("a ZIP archive: {error}")),
    }
}

/// Finds the image of an archive.
pub(super) fn open(source: &Arc<dyn ReadAt>, limits: &Limits) -> Result<Content, Error> {
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::with_max_search_space(SEARCH_LEN)
        .locate_in_reader(Source(Arc::clone(source)), &mut buffer, source.size())
        .map_err(|(_, error)| broken(error))?;
    let (mut entries, mut details) = (Vec::new(), Vec::new());
    let mut records = archive.entries(&mut buffer);
    let mut count = 0_usize;
    while let Some(record) = records.next_entry().map_err(broken)? {
        // Folders count too: each costs its part of a read.
        count = count.saturating_add(1);
        if count > limits.entries_max {
            return Err(too_many_entries(limits.entries_max));
        }
        if record.is_dir() {
            continue;
        }
        let place = record.wayfinder();
        entries.push(Entry {
            name: String::from_utf8_lossy(record.file_path().as_ref()).into_owned(),
            offset: record.local_header_offset(),
            len: record.uncompressed_size_hint(),
        });
        details.push(Details {
            place,
            method: record.compression_method(),
            is_encrypted: record.flags().is_encrypted(),
            len: record.uncompressed_size_hint(),
            crc: record.crc32(),
        });
    }
    let image = only_image(&entries)?;
    let index = entries.iter().position(|entry| std::ptr::eq(entry, image));
    let Some(details) = index.and_then(|index| details.get(index)) else {
        return Err(Error::corrupt("an entry that is not in the directory"));
    };
    if details.is_encrypted {
        return Err(Error::unsupported("an encrypted file of a ZIP archive").at(image.offset));
    }
    let (start, end) = archive
        .get_entry(details.place)
        .map_err(broken)?
        .compressed_data_range();
    content(source, image, details, start..end, limits)
}

/// The image whose stored or compressed bytes are in `range`.
fn content(
    source: &Arc<dyn ReadAt>,
    image: &Entry,
    details: &Details,
    range: Range<u64>,
    limits: &Limits,
) -> Result<Content, Error> {
    let Range { start, end } = range;
    let stored = end.saturating_sub(start);
    let region = Region {
        name: "a file of the archive",
        offset: start,
        len: stored,
    };
    region.inside(source.size())?;
    match details.method {
        CompressionMethod::STORE if stored == details.len => Ok(Content::Part(Part {
            offset: start,
            len: stored,
            name: image.name.clone(),
            manifest: Manifest::of_crc(&image.name, range, details.crc),
        })),
        CompressionMethod::STORE => Err(Error::corrupt(format!(
            "a stored file of {stored} bytes, which are {} by the directory",
            details.len
        ))
        .at(start)),
        CompressionMethod::DEFLATE => {
            let compressed = Arc::new(Slice::new(Arc::clone(source), start, stored));
            Ok(Content::Stream(stream::deflated(
                compressed,
                details.len,
                details.crc,
                limits.expanded_bytes_max,
            )))
        }
        other => Err(Error::unsupported(format!(
            "a file of a ZIP archive that is compressed by {other}; only stored and deflated ones are read"
        ))
        .at(image.offset)),
    }
}
