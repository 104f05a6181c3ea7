//! What the fuzz targets share: sparse files, checksums that hold, and the whole way from bytes to a planned target.
//!
//! An image of a few MiB has a few KiB that mean something. So that a fuzzer changes these, an input is a packed file:
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | size of the file, in bytes |
//! | 4 | number of a sector of 512 bytes |
//! | 512 | its content; what is cut off is zeros |
//! | | … more sectors |
//!
//! All numbers are little-endian, and sectors that are not there are zeros.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, checksum};
use lithos_convert::{ErrorKind, Format, Image, ReadAt, Run, RunKind, Segment, Target, decode, inspect, open, plan, probe};

const SECTOR_LEN: usize = 512;
const RECORD_LEN: usize = SECTOR_LEN + 4;
/// How large a packed file may say that it is: beyond the largest disk.
const SIZE_MAX: u64 = 1 << 47;
/// How many bytes are decoded for one input, so that inputs stay quick.
const DECODED_MAX: u64 = 8 << 20;
/// How many segments are looked at for one input.
const SEGMENT_COUNT_MAX: usize = 4096;
/// How much of a large file is packed.
const SECTOR_COUNT_MAX: usize = 64;

/// A file of which most is zeros.
#[derive(Debug, Clone, Default)]
pub struct Sparse {
    size: u64,
    sectors: BTreeMap<u64, [u8; SECTOR_LEN]>,
}

impl Sparse {
    /// Unpacks an input; every input is one.
    pub fn unpack(input: &[u8]) -> Self {
        let Some((size, records)) = input.split_first_chunk() else {
            return Self::default();
        };
        let mut file = Self {
            size: u64::from_le_bytes(*size) % SIZE_MAX,
            sectors: BTreeMap::new(),
        };
        for record in records.chunks(RECORD_LEN) {
            let Some((number, content)) = record.split_first_chunk() else { break };
            let mut sector = [0; SECTOR_LEN];
            sector[..content.len()].copy_from_slice(content);
            file.sectors.insert(u64::from(u32::from_le_bytes(*number)), sector);
        }
        file
    }

    /// Packs a file: its sectors that are not zeros, those of its start and its end first.
    pub fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut packed = (bytes.len() as u64).to_le_bytes().to_vec();
        let sectors = bytes.chunks(SECTOR_LEN).enumerate();
        let used: Vec<_> = sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0)).collect();
        let tail = used.len().saturating_sub(SECTOR_COUNT_MAX / 8).max(SECTOR_COUNT_MAX * 7 / 8);
        let kept = used.iter().take(SECTOR_COUNT_MAX * 7 / 8).chain(used.iter().skip(tail));
        for (number, sector) in kept {
            let Ok(number) = u32::try_from(*number) else { break };
            packed.extend(number.to_le_bytes());
            packed.extend(*sector);
            let records = (packed.len() - 8).div_ceil(RECORD_LEN);
            packed.resize(8 + records * RECORD_LEN, 0);
        }
        packed
    }

    /// The bytes at `offset`, as many as are asked for.
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let first = offset / SECTOR_LEN as u64;
        let last = (offset + len as u64).div_ceil(SECTOR_LEN as u64);
        for (number, sector) in self.sectors.range(first..last) {
            let start = number * SECTOR_LEN as u64;
            let skipped = offset.saturating_sub(start) as usize;
            let target = &mut bytes[start.saturating_sub(offset) as usize..];
            let count = target.len().min(SECTOR_LEN - skipped);
            target[..count].copy_from_slice(&sector[skipped..skipped + count]);
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (place, byte) in (offset..).zip(bytes) {
            let sector = self.sectors.entry(place / SECTOR_LEN as u64).or_insert([0; SECTOR_LEN]);
            sector[(place % SECTOR_LEN as u64) as usize] = *byte;
        }
    }

    /// Makes the checksums of VHD hold, so that what is behind them is reached.
    pub fn mend_vhd(&mut self) {
        let sum = |bytes: &[u8], at: usize| {
            let all: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
            let own: u32 = bytes[at..at + 4].iter().map(|byte| u32::from(*byte)).sum();
            (!(all - own)).to_be_bytes()
        };
        let footer = self.read(0, 512);
        if footer.starts_with(b"conectix") {
            self.write(64, &sum(&footer, 64));
            let header = u64::from_be_bytes(footer[16..24].try_into().expect("eight bytes"));
            if header < self.size.saturating_sub(1024) {
                let bytes = self.read(header, 1024);
                self.write(header + 36, &sum(&bytes, 36));
            }
            let footer = self.read(0, 512);
            if self.size >= 1024 && self.read(self.size - 512, 8) == b"conectix" {
                self.write(self.size - 512, &footer);
            }
        } else if self.size >= 512 {
            let end = self.size - 512;
            let footer = self.read(end, 512);
            self.write(end + 64, &sum(&footer, 64));
        }
    }

    /// Makes the checksums of VHDX hold, but for those of the log.
    pub fn mend_vhdx(&mut self) {
        for (offset, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
            let mut bytes = self.read(offset, len);
            bytes[4..8].fill(0);
            let crc = checksum(CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
            self.write(offset + 4, &crc.to_le_bytes());
        }
    }

    /// Makes the checksums of a GPT hold, for sectors of 512 bytes.
    pub fn mend_gpt(&mut self) {
        if self.read(512, 8) != *b"EFI PART" {
            return;
        }
        let crc = |bytes: &[u8]| (checksum(CrcAlgorithm::Crc32IsoHdlc, bytes) as u32).to_le_bytes();
        let header = self.read(512, 92);
        let word = |place: usize| u32::from_le_bytes(header[place..place + 4].try_into().expect("four bytes"));
        let len = u64::from(word(80)) * u64::from(word(84));
        if len <= 1 << 18 {
            let entries = self.read(u64::from(word(72)) * 512, len as usize);
            self.write(512 + 88, &crc(&entries));
        }
        let mut header = self.read(512, word(12).clamp(92, 512) as usize);
        header[16..20].fill(0);
        self.write(512 + 16, &crc(&header));
    }
}

impl ReadAt for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // What is read at once has a bound, whatever the image says.
        assert!(buf.len() <= 8 << 20, "a read of {} bytes", buf.len());
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&self.read(offset, buf.len()));
        Ok(())
    }

    fn run_at(&self, offset: u64) -> io::Result<Run> {
        let first = offset / SECTOR_LEN as u64;
        let next = self.sectors.range(first..).next().map(|(number, _)| *number);
        let (kind, end) = match next {
            Some(number) if number == first => (RunKind::Data, (first + 1) * SECTOR_LEN as u64),
            Some(number) => (RunKind::Zero, number * SECTOR_LEN as u64),
            None => (RunKind::Zero, self.size),
        };
        Ok(Run {
            kind,
            len: end.min(self.size) - offset,
        })
    }
}

/// Goes the whole way: probe, inspect, open, plan for two targets, and walk over the segments.
///
/// # Panics
///
/// If a refusal is not one: an error that blames the source, or an inspection and a conversion that disagree.
pub fn walk(file: Sparse) {
    let probed = probe(&file).expect("every content has a format");
    let inspection = inspect(&file).expect("the source can be read");
    assert_eq!(probed.format, inspection.format);
    let source: Arc<dyn ReadAt> = Arc::new(file);
    let image: Arc<dyn Image> = match open(Arc::clone(&source)) {
        Ok(image) => image.into(),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Io, "{error}");
            assert!(inspection.refusal.is_some(), "{error}");
            return;
        }
    };
    for target in [Target::RAW, Target::QCOW2] {
        let plan = match plan(Arc::clone(&image), &target) {
            Ok(plan) => plan,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Io, "{error}");
                continue;
            }
        };
        assert!(inspection.refusal.is_none(), "{:?}", inspection.refusal);
        carry_out(&*source, plan.segments().take(SEGMENT_COUNT_MAX), plan.size());
    }
}

/// Holds segments to the source and the target, and decodes some.
fn carry_out(source: &dyn ReadAt, segments: impl Iterator<Item = Result<Segment, lithos_convert::Error>>, size: u64) {
    let (mut covered, mut decoded) = (0, 0);
    for segment in segments {
        let segment = segment.expect("the plan has seen all tables");
        assert!(segment.len() > 0);
        covered += segment.len();
        assert!(covered <= size);
        match segment {
            Segment::Copy { source_offset, len } => assert!(source_offset + len <= source.size()),
            Segment::Decode {
                source_offset,
                compressed_len,
                codec,
                len,
                skip,
                take,
            } => {
                assert!(source_offset + compressed_len <= source.size());
                assert!(skip + take <= len && len <= 2 << 20);
                decoded += len;
                if decoded <= DECODED_MAX {
                    let mut compressed = vec![0; compressed_len as usize];
                    source.read_exact_at(&mut compressed, source_offset).expect("inside");
                    let _ = decode(codec, &compressed, &mut vec![0; len as usize]);
                }
            }
            _ => {}
        }
    }
}

/// [`walk`] for inputs of one format; others are left to the target for all of them.
pub fn walk_as(format: Format, file: Sparse) {
    if probe(&file).is_ok_and(|probe| probe.format == format) {
        walk(file);
    }
}
