//! tar: POSIX ustar and pax (IEEE Std 1003.1, "pax Interchange Format"), and what GNU tar makes.

use std::collections::BTreeMap;

use tar::{EntryType, Header, PaxExtensions};

use super::archive::{Entry, only_image};
use super::{Manifest, Part, SplitDisk, ova, too_many_entries};
use crate::safety::{Region, read_region};
use crate::vmdk::DESCRIPTOR_MAGIC;
use crate::{Error, Limits, ReadAt};

const BLOCK_LEN: u64 = 512;
/// Longest extended header: a long name, and numbers.
const EXTENSION_LEN_MAX: u64 = 64 << 10;

/// Finds the image of an archive.
pub(super) fn open(source: &dyn ReadAt, limits: &Limits) -> Result<Part, Error> {
    let entries = entries(source, limits.entries_max)?;
    let (image, manifest) = if is_ova(&entries) {
        (ova::disk(source, &entries)?, ova::digests(source, &entries)?)
    } else {
        (only_image(&entries)?, Manifest::default())
    };
    let (offset, len) = if is_ova(&entries) && is_split(source, image)? {
        (0, source.size())
    } else {
        (image.offset, image.len)
    };
    Ok(Part {
        offset,
        len,
        name: image.name.clone(),
        manifest,
    })
}

/// The disk of an OVA, if it is in several files.
pub(super) fn split_disk(source: &dyn ReadAt) -> Result<Option<SplitDisk>, Error> {
    let files = entries(source, Limits::DEFAULT.entries_max)?;
    if !is_ova(&files) {
        return Ok(None);
    }
    let descriptor = ova::disk(source, &files)?;
    if !is_split(source, descriptor)? {
        return Ok(None);
    }
    let descriptor = descriptor.clone();
    Ok(Some(SplitDisk { descriptor, files }))
}

/// The descriptor comes first (DSP0243, "OVF package"): whatever has it there is an OVA.
fn is_ova(entries: &[Entry]) -> bool {
    entries.first().and_then(Entry::extension).as_deref() == Some("ovf")
}

/// Whether a file is the text that lists the files of a disk.
fn is_split(source: &dyn ReadAt, disk: &Entry) -> Result<bool, Error> {
    let start = Region {
        name: "the start of the disk",
        offset: disk.offset,
        len: disk.len.min(DESCRIPTOR_MAGIC.len() as u64),
    };
    Ok(read_region(source, start.inside(source.size())?)? == DESCRIPTOR_MAGIC)
}

/// What an extended header says of the entry behind it.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    len: Option<u64>,
}

/// The regular files, in the order of the archive.
fn entries(source: &dyn ReadAt, max: usize) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let mut extension = Extension::default();
    let mut at = 0_u64;
    // Long names and the like count too: whatever has a header costs a read.
    for _ in 0..=max.saturating_mul(2) {
        if entries.len() > max {
            break;
        }
        let Some(header) = header(source, at)? else {
            return Ok(entries);
        };
        let failed = |error: std::io::Error| Error::corrupt(format!("a tar header: {error}")).at(at);
        let offset = at.saturating_add(BLOCK_LEN);
        let len = header.entry_size().map_err(failed)?;
        match header.entry_type() {
            EntryType::XHeader | EntryType::GNULongName => {
                let bytes = extended(source, offset, len)?;
                if header.entry_type() == EntryType::XHeader {
                    extension = pax(&bytes).map_err(|error| error.at(offset))?;
                } else {
                    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                    extension.name = Some(String::from_utf8_lossy(name).into_owned());
                }
                at = next(source, offset, len)?;
                continue;
            }
            EntryType::GNUSparse => {
                return Err(Error::unsupported("a sparse file of GNU tar; pack it without --sparse").at(at));
            }
            _ => {}
        }
        let extension = std::mem::take(&mut extension);
        let len = extension.len.unwrap_or(len);
        if matches!(header.entry_type(), EntryType::Regular | EntryType::Continuous) {
            let own_name = || String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let name = extension.name.unwrap_or_else(own_name);
            let region = Region {
                name: "a file of the archive",
                offset,
                len,
            };
            region.inside(source.size())?;
            entries.push(Entry { name, offset, len });
        }
        at = next(source, offset, len)?;
    }
    Err(too_many_entries(max))
}

/// The header at `at`; `None` at the end of the archive.
fn header(source: &dyn ReadAt, at: u64) -> Result<Option<Header>, Error> {
    // Two blocks of zeros are the end. Some archives stop without them.
    if at == source.size() {
        return Ok(None);
    }
    let region = Region {
        name: "a tar header",
        offset: at,
        len: BLOCK_LEN,
    };
    let bytes = read_region(source, region.inside(source.size())?)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let header = Header::from_byte_slice(&bytes);
    // Bytes 148 to 156 hold the sum of all bytes of the header, with spaces in their own place.
    let sum = bytes.iter().enumerate().fold(0_u32, |sum, (index, byte)| {
        let byte = if (148..156).contains(&index) { b' ' } else { *byte };
        sum.saturating_add(u32::from(byte))
    });
    if header.cksum().ok() != Some(sum) {
        return Err(Error::corrupt("the checksum of a tar header is wrong").at(at));
    }
    Ok(Some(header.clone()))
}

fn extended(source: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    crate::safety::at_most("the length of an extended tar header", len, EXTENSION_LEN_MAX)
        .map_err(|error| error.at(offset))?;
    let region = Region {
        name: "an extended tar header",
        offset,
        len,
    };
    read_region(source, region.inside(source.size())?)
}

fn pax(bytes: &[u8]) -> Result<Extension, Error> {
    let broken = || Error::corrupt("a pax header that is no list of records");
    let mut records = BTreeMap::new();
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(|_| broken())?;
        let (Ok(key), Ok(value)) = (record.key(), record.value()) else {
            continue;
        };
        records.insert(key, value);
    }
    if records.keys().any(|key| key.starts_with("GNU.sparse")) {
        return Err(Error::unsupported("a sparse file of GNU tar; pack it without --sparse"));
    }
    let len = records.get("size").map(|len| len.parse().map_err(|_| broken()));
    Ok(Extension {
        name: records.get("path").map(|path| (*path).to_owned()),
        len: len.transpose()?,
    })
}

/// Where the header behind an entry starts.
fn next(source: &dyn ReadAt, offset: u64, len: u64) -> Result<u64, Error> {
    let end = len
        .checked_next_multiple_of(BLOCK_LEN)
        .and_then(|len| offset.checked_add(len));
    // The last block may be cut off behind the last byte.
    match end {
        Some(end) => Ok(end.min(source.size()).max(offset)),
        None => Err(Error::corrupt(format!("a tar entry of {len} bytes")).at(offset)),
    }
}
