//! The log: changes of tables that were promised, and may not have been made in their place before the file was left.
//!
//! Nothing is written back. The entries are read into an [`Overlay`], through which everything but payload is then read.
//!
//! | offset | bytes | field of an entry |
//! | --- | --- | --- |
//! | 0 | 4 | signature `loge` |
//! | 4 | 4 | checksum, of the whole entry |
//! | 8 | 4 | entry length, in bytes, a multiple of 4096 |
//! | 12 | 4 | tail: where in the log the oldest entry is that still counts |
//! | 16 | 8 | sequence number |
//! | 24 | 4 | descriptor count |
//! | 28 | 4 | reserved |
//! | 32 | 16 | log GUID: entries with another one are left from before |
//! | 48 | 8 | flushed file offset: the file was at least so large |
//! | 56 | 8 | last file offset: the file has to become so large |
//! | 64 | | descriptors of 32 bytes; then, from a multiple of 4096, the data sectors |
//!
//! A descriptor `zero` has its length at 8 and its place at 16, a descriptor `desc` the last 4 bytes of its sector at 4, the
//! first 8 at 8, and its place at 16; both have the sequence number at 24. A data sector has the signature `data`, half of the
//! sequence number, the other 4084 bytes, and the other half.
//!
//! Entries lie one after another in a ring, and those with consecutive numbers make a sequence. The sequence counts that has the
//! highest number and reaches back to the tail of its last entry.
//!
//! Format: MS-VHDX, "Log".

use std::io;
use std::ops::Range;

use nom::bytes::complete::{tag, take};
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::header::{Header, guid};
use super::{Guid, checksum};
use crate::safety::{self, MAX_VIRTUAL_SIZE, Region};
use crate::{Error, ReadAt, Run, RunKind};

const SECTOR_LEN: usize = 4096;
const SECTOR_SIZE: u64 = 4096;
const ENTRY_HEADER_LEN: usize = 64;
const DESCRIPTOR_LEN: usize = 32;
/// The largest log that is replayed: 4 MiB, four times what is made. All of it is in memory for a while, and a hostile one is
/// checksummed once for each of its sectors.
const LOG_LEN_MAX: u64 = 4 << 20;

/// The file as it is when the log has been carried out.
#[derive(Debug)]
pub(super) struct Overlay<S> {
    file: S,
    size: u64,
    /// In the order of the log: later ones win.
    patches: Vec<Patch>,
    /// What they change, in the order of the file and without an overlap. There may be as many patches as payload blocks are
    /// held against them, so that these have to be found by search.
    changed: Vec<Range<u64>>,
}

/// A stretch of the file that the log changes: to these bytes, or to zeros.
#[derive(Debug)]
struct Patch {
    region: Region,
    bytes: Option<Vec<u8>>,
}

impl<S: ReadAt> Overlay<S> {
    /// Replays the log that `header` names, which has been checked to be in the file, if there is anything in it.
    pub(super) fn open(file: S, header: &Header) -> Result<Self, Error> {
        let size = file.size();
        let mut overlay = Self {
            file,
            size,
            patches: Vec::new(),
            changed: Vec::new(),
        };
        if header.log_guid == Guid::default() {
            return Ok(overlay);
        }
        let log = header.log();
        let at = |error: Error| error.at(log.offset);
        safety::at_most("the length of a log to be replayed", log.len, LOG_LEN_MAX).map_err(at)?;
        let ring = Ring::read(&overlay.file, log, header.log_guid)?;
        let sequence = ring
            .active()
            .ok_or_else(|| Error::corrupt("the log is in use, but has no valid sequence of entries"))
            .map_err(at)?;
        overlay.carry_out(sequence).map_err(at)?;
        Ok(overlay)
    }

    fn carry_out(&mut self, sequence: Vec<LogEntry>) -> Result<(), Error> {
        for entry in &sequence {
            if entry.flushed_file_offset > self.file.size() {
                let reason = format!(
                    "the log says that the file had {} bytes, it has {}",
                    entry.flushed_file_offset,
                    self.file.size()
                );
                return Err(Error::corrupt(reason));
            }
            // A bound on the work of those who go by the size; no file of the largest disk comes near.
            let max = self.file.size().saturating_add(MAX_VIRTUAL_SIZE);
            self.size = self
                .size
                .max(safety::at_most("last file offset", entry.last_file_offset, max)?);
        }
        self.patches = sequence.into_iter().flat_map(|entry| entry.patches).collect();
        self.changed = changed(&self.patches);
        Ok(())
    }

    /// The size of the file itself.
    pub(super) fn file_size(&self) -> u64 {
        self.file.size()
    }

    /// Whether there was anything to replay.
    pub(super) fn is_replayed(&self) -> bool {
        !self.patches.is_empty()
    }

    /// Refuses payload that the log changes: a log is for tables, and payload is given out by its place in the file.
    pub(super) fn keeps_off_payload(&self, payload: Region) -> Result<(), Error> {
        let next = self.changed.partition_point(|changed| changed.end <= payload.offset);
        match self.changed.get(next) {
            Some(changed) if changed.start < payload.offset.saturating_add(payload.len) => {
                let reason = format!(
                    "the log writes to {}, into the payload block at {}",
                    changed.start, payload.offset
                );
                Err(Error::unsupported(reason))
            }
            _ => Ok(()),
        }
    }
}

/// The stretches that patches change, sorted, and those that overlap or touch as one.
fn changed(patches: &[Patch]) -> Vec<Range<u64>> {
    let mut sorted: Vec<Region> = patches.iter().map(|patch| patch.region).collect();
    sorted.sort_unstable_by_key(|region| region.offset);
    let mut changed: Vec<Range<u64>> = Vec::new();
    for region in sorted {
        let end = region.offset.saturating_add(region.len);
        match changed.last_mut() {
            Some(last) if region.offset <= last.end => last.end = last.end.max(end),
            _ => changed.push(region.offset..end),
        }
    }
    changed
}

impl<S: ReadAt> ReadAt for Overlay<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let wanted = Region {
            name: "read",
            offset,
            len: buf.len() as u64,
        };
        wanted.inside(self.size).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let there = self.file.size().saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (file, beyond) = buf.split_at_mut(there);
        if !file.is_empty() {
            self.file.read_exact_at(file, offset)?;
        }
        beyond.fill(0);
        for patch in self.patches.iter().filter(|patch| patch.region.overlaps(wanted)) {
            patch.apply(buf, wanted);
        }
        Ok(())
    }

    /// What the log changes is not looked at: it is asked for payload only.
    fn run_at(&self, offset: u64) -> io::Result<Run> {
        if offset < self.file.size() {
            return self.file.run_at(offset);
        }
        Ok(Run {
            kind: RunKind::Zero,
            len: self.size.saturating_sub(offset),
        })
    }
}

impl Patch {
    /// Changes `buf`, which holds the bytes of `wanted`, where the two overlap.
    fn apply(&self, buf: &mut [u8], wanted: Region) {
        let end = |region: Region| region.offset.saturating_add(region.len);
        let start = self.region.offset.max(wanted.offset);
        let len = end(self.region).min(end(wanted)).saturating_sub(start);
        let index = |from: Region| usize::try_from(start.saturating_sub(from.offset)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let target = buf.get_mut(index(wanted)..).and_then(|rest| rest.get_mut(..len));
        let Some(target) = target else { return };
        match &self.bytes {
            None => target.fill(0),
            Some(bytes) => {
                let changed = bytes.get(index(self.region)..).and_then(|rest| rest.get(..len));
                target.copy_from_slice(changed.expect("both regions hold the overlap"));
            }
        }
    }
}

/// A valid entry.
#[derive(Debug)]
struct LogEntry {
    sequence_number: u64,
    /// Where in the log it starts.
    place: usize,
    len: usize,
    tail: usize,
    flushed_file_offset: u64,
    last_file_offset: u64,
    patches: Vec<Patch>,
}

/// The log, twice over, so that an entry which goes on at the start is in one piece.
struct Ring {
    bytes: Vec<u8>,
    len: usize,
    log_guid: Guid,
}

impl Ring {
    fn read(source: &dyn ReadAt, log: Region, log_guid: Guid) -> Result<Self, Error> {
        let mut bytes = safety::read_region(source, log)?;
        let len = bytes.len();
        bytes.extend_from_within(..);
        Ok(Self { bytes, len, log_guid })
    }

    /// The entry at a place of the log, if there is a valid one.
    fn entry(&self, place: usize) -> Option<LogEntry> {
        let rest = self.bytes.get(place..)?;
        let (_, raw) = parse_entry(rest).ok()?;
        let len = usize::try_from(raw.entry_length).ok()?;
        if len > self.len
            || !len.is_multiple_of(SECTOR_LEN)
            || raw.sequence_number == 0
            || raw.log_guid != self.log_guid
        {
            return None;
        }
        let bytes = rest.get(..len)?;
        if checksum(bytes) != raw.checksum {
            return None;
        }
        Some(LogEntry {
            sequence_number: raw.sequence_number,
            place,
            len,
            tail: usize::try_from(raw.tail).ok()?,
            flushed_file_offset: raw.flushed_file_offset,
            last_file_offset: raw.last_file_offset,
            patches: patches(bytes, &raw)?,
        })
    }

    /// The entries that start at a place and follow each other with consecutive numbers.
    fn sequence(&self, place: usize) -> Vec<LogEntry> {
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut next = place;
        let mut total: usize = 0;
        while let Some(entry) = self.entry(next) {
            let follows = entries
                .last()
                .is_none_or(|last| last.sequence_number.checked_add(1) == Some(entry.sequence_number));
            total = total.saturating_add(entry.len);
            if !follows || total > self.len {
                break;
            }
            next = next.saturating_add(entry.len).checked_rem(self.len).unwrap_or_default();
            entries.push(entry);
        }
        entries
    }

    /// The sequence that counts, from the tail of its last entry.
    fn active(&self) -> Option<Vec<LogEntry>> {
        let mut active: Option<Vec<LogEntry>> = None;
        let mut place = 0;
        while place < self.len {
            let mut sequence = self.sequence(place);
            let passed: usize = sequence.iter().map(|entry| entry.len).sum();
            place = place.saturating_add(passed.max(SECTOR_LEN));
            let Some(head) = sequence.last() else { continue };
            let newer = |other: &Vec<LogEntry>| {
                other
                    .last()
                    .is_none_or(|last| last.sequence_number < head.sequence_number)
            };
            let Some(tail) = sequence.iter().position(|entry| entry.place == head.tail) else {
                continue;
            };
            if active.as_ref().is_none_or(newer) {
                active = Some(sequence.split_off(tail));
            }
        }
        active
    }
}

/// The header of an entry as it stands in the log.
struct RawEntry {
    checksum: u32,
    entry_length: u32,
    tail: u32,
    sequence_number: u64,
    descriptor_count: u32,
    log_guid: Guid,
    flushed_file_offset: u64,
    last_file_offset: u64,
}

fn parse_entry(input: &[u8]) -> IResult<&[u8], RawEntry> {
    let (input, (_, checksum, entry_length, tail)) = (tag(&b"loge"[..]), le_u32, le_u32, le_u32).parse(input)?;
    let (input, (sequence_number, descriptor_count, _reserved)) = (le_u64, le_u32, le_u32).parse(input)?;
    let (input, (log_guid, flushed_file_offset, last_file_offset)) = (guid, le_u64, le_u64).parse(input)?;
    let entry = RawEntry {
        checksum,
        entry_length,
        tail,
        sequence_number,
        descriptor_count,
        log_guid,
        flushed_file_offset,
        last_file_offset,
    };
    Ok((input, entry))
}

/// What an entry changes, if it is well made.
fn patches(bytes: &[u8], entry: &RawEntry) -> Option<Vec<Patch>> {
    let count = usize::try_from(entry.descriptor_count).ok()?;
    let descriptors_end = count.checked_mul(DESCRIPTOR_LEN)?.checked_add(ENTRY_HEADER_LEN)?;
    let (descriptors, _) = bytes
        .get(ENTRY_HEADER_LEN..descriptors_end)?
        .as_chunks::<DESCRIPTOR_LEN>();
    let (mut sectors, _) = bytes
        .get(descriptors_end.next_multiple_of(SECTOR_LEN)..)?
        .as_chunks::<SECTOR_LEN>();
    let mut patches = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        let (_, descriptor) = parse_descriptor(descriptor).ok()?;
        if descriptor.sequence_number != entry.sequence_number || !descriptor.file_offset.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        let (len, bytes) = match descriptor.change {
            Change::Zero { len } => (len, None),
            Change::Data { leading, trailing } => {
                let (sector, rest) = sectors.split_first()?;
                sectors = rest;
                let (_, middle) = parse_sector(sector, entry.sequence_number).ok()?;
                (SECTOR_SIZE, Some([&leading[..], middle, &trailing].concat()))
            }
        };
        if !len.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        let region = Region {
            name: "change",
            offset: descriptor.file_offset,
            len,
        };
        patches.push(Patch { region, bytes });
    }
    Some(patches)
}

struct Descriptor {
    change: Change,
    file_offset: u64,
    sequence_number: u64,
}

enum Change {
    Zero { len: u64 },
    Data { leading: [u8; 8], trailing: [u8; 4] },
}

fn parse_descriptor(input: &[u8]) -> IResult<&[u8], Descriptor> {
    let (input, (signature, trailing, leading)) = (le_u32, le_u32, le_u64).parse(input)?;
    let (input, (file_offset, sequence_number)) = (le_u64, le_u64).parse(input)?;
    let change = match &signature.to_le_bytes() {
        b"zero" => Change::Zero { len: leading },
        b"desc" => Change::Data {
            leading: leading.to_le_bytes(),
            trailing: trailing.to_le_bytes(),
        },
        _ => {
            let error = nom::error::Error::new(input, nom::error::ErrorKind::Tag);
            return Err(nom::Err::Error(error));
        }
    };
    let descriptor = Descriptor {
        change,
        file_offset,
        sequence_number,
    };
    Ok((input, descriptor))
}

/// The 4084 bytes of a data sector that has the sequence number of its entry.
fn parse_sector(input: &[u8], sequence_number: u64) -> IResult<&[u8], &[u8]> {
    let low = sequence_number & u64::from(u32::MAX);
    let half = |number: u64| u32::try_from(number).unwrap_or_default().to_le_bytes();
    let (high, low) = (half(sequence_number >> 32), half(low));
    let (input, (_, _, middle, _)) =
        (tag(&b"data"[..]), tag(&high[..]), take(4084_usize), tag(&low[..])).parse(input)?;
    Ok((input, middle))
}

#[cfg(test)]
mod tests {
    use super::super::seal;
    use super::*;
    use crate::ErrorKind;

    const GUID: Guid = [7; 16];
    const LOG: usize = 1 << 20;

    /// An entry that writes `sector` at each of `places`, and zeros at `zeros`.
    fn entry(number: u64, tail: u32, places: &[(u64, u8)], zeros: Option<(u64, u64)>) -> Vec<u8> {
        let count = places.len() + usize::from(zeros.is_some());
        let data_start = (ENTRY_HEADER_LEN + count * DESCRIPTOR_LEN).next_multiple_of(SECTOR_LEN);
        let len = data_start + places.len() * SECTOR_LEN;
        let mut bytes = b"loge\0\0\0\0".to_vec();
        bytes.extend(u32::try_from(len).unwrap().to_le_bytes());
        bytes.extend(tail.to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(u32::try_from(count).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(GUID);
        bytes.extend((4_u64 << 20).to_le_bytes());
        bytes.extend((8_u64 << 20).to_le_bytes());
        if let Some((place, len)) = zeros {
            bytes.extend(b"zero\0\0\0\0");
            for field in [len, place, number] {
                bytes.extend(field.to_le_bytes());
            }
        }
        for (place, fill) in places {
            bytes.extend(b"desc");
            bytes.extend([*fill; 12]);
            bytes.extend(place.to_le_bytes());
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(data_start, 0);
        for (_, fill) in places {
            bytes.extend(b"data");
            bytes.extend([0; 4]);
            bytes.extend([*fill; 4084]);
            bytes.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    /// A file of 4 MiB of 0xee with a log in its second MiB.
    fn file(parts: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0xee; 4 << 20];
        bytes[LOG..2 * LOG].fill(0);
        for (place, entry) in parts {
            for (index, byte) in entry.iter().enumerate() {
                bytes[LOG + (place + index) % LOG] = *byte;
            }
        }
        bytes
    }

    fn overlay(parts: &[(usize, Vec<u8>)]) -> Result<Overlay<Vec<u8>>, Error> {
        let header = Header {
            log_guid: GUID,
            ..Header::new(1, GUID, GUID)
        };
        Overlay::open(file(parts), &header)
    }

    fn byte(overlay: &Overlay<Vec<u8>>, offset: u64) -> u8 {
        let mut buf = [0; 3];
        overlay.read_exact_at(&mut buf, offset).unwrap();
        buf[1]
    }

    const PLACE: u64 = 3 << 20;

    #[test]
    fn entries_are_carried_out_in_order_and_the_file_grows() {
        let one = entry(5, 0, &[(PLACE, 1), (PLACE + 4096, 1)], None);
        let two = entry(6, 0, &[(PLACE, 2)], Some((PLACE + 8192, 4096)));
        let overlay = overlay(&[(0, one.clone()), (one.len(), two)]).unwrap();
        assert_eq!((overlay.size(), overlay.file_size()), (8 << 20, 4 << 20));
        for (offset, expected) in [
            (PLACE - 5, 0xee),
            (PLACE, 2),
            (PLACE + 4092, 2),
            (PLACE + 4095, 1),
            (PLACE + 8188, 1),
            (PLACE + 8191, 0),
            (PLACE + 12286, 0),
            (PLACE + 12287, 0xee),
            ((4 << 20) - 1, 0),
            ((8 << 20) - 3, 0),
        ] {
            assert_eq!(byte(&overlay, offset), expected, "{offset}");
        }
        assert!(overlay.read_exact_at(&mut [0; 3], (8 << 20) - 2).is_err());
        let payload = |offset| Region {
            name: "payload",
            offset,
            len: 4096,
        };
        assert!(overlay.keeps_off_payload(payload(PLACE - 4096)).is_ok());
        assert!(overlay.keeps_off_payload(payload(PLACE - 4095)).is_err());
    }

    #[test]
    fn what_lies_before_the_tail_is_done() {
        let one = entry(5, 0, &[(PLACE, 1)], None);
        let two = entry(6, 8192, &[(PLACE + 4096, 2)], None);
        let overlay = overlay(&[(0, one), (8192, two)]).unwrap();
        assert_eq!(byte(&overlay, PLACE), 0xee);
        assert_eq!(byte(&overlay, PLACE + 4096), 2);
    }

    #[test]
    fn the_newest_sequence_counts_and_may_go_around() {
        let old = entry(5, 0x10000, &[(PLACE, 1)], None);
        let last = u32::try_from(LOG - 4096).unwrap();
        let new = entry(9, last, &[(PLACE, 9)], None);
        let overlay = overlay(&[(0x10000, old), (LOG - 4096, new)]).unwrap();
        assert_eq!(byte(&overlay, PLACE), 9);
    }

    #[test]
    fn an_entry_that_was_cut_off_ends_the_sequence() {
        let one = entry(5, 0, &[(PLACE, 1)], None);
        let mut two = entry(6, 0, &[(PLACE, 2)], None);
        two[5000] ^= 1;
        let overlay = overlay(&[(0, one), (8192, two)]).unwrap();
        assert_eq!(byte(&overlay, PLACE), 1);
    }

    #[test]
    fn logs_without_a_valid_sequence_are_refused() {
        let spoilt = |place: usize, value: u8| {
            let mut bytes = entry(5, 0, &[(PLACE, 1)], None);
            bytes[place] = value;
            seal(&mut bytes);
            bytes
        };
        for (what, bytes) in [
            ("no entry", vec![]),
            ("signature", spoilt(0, b'L')),
            ("length beyond the log", spoilt(11, 1)),
            ("length not in sectors", spoilt(8, 1)),
            ("no sequence number", spoilt(16, 0)),
            ("tail elsewhere", spoilt(13, 0x20)),
            ("descriptors beyond the entry", spoilt(25, 0x10)),
            ("other log", spoilt(32, 0)),
            ("descriptor signature", spoilt(64, 0)),
            ("descriptor place", spoilt(80, 1)),
            ("descriptor number", spoilt(88, 4)),
            ("sector signature", spoilt(4096, 0)),
            ("sector number", spoilt(8191, 4)),
        ] {
            let error = overlay(&[(0, bytes)]).expect_err(what);
            assert_eq!(
                error.reason(),
                "the log is in use, but has no valid sequence of entries",
                "{what}"
            );
            assert_eq!(error.offset(), Some(1 << 20), "{what}");
        }
    }

    #[test]
    fn sizes_that_the_log_promises_are_held_against_the_file() {
        let with = |place: usize| {
            let mut bytes = entry(5, 0, &[(PLACE, 1)], None);
            bytes[place + 6] = 1;
            seal(&mut bytes);
            overlay(&[(0, bytes)]).unwrap_err()
        };
        assert!(with(48).reason().starts_with("the log says that the file had"));
        assert_eq!(with(56).kind(), ErrorKind::TooLarge);
    }
}
