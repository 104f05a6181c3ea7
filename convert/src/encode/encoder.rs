//! One job after another: read, decoded, compressed.

use std::fmt;

use super::compressor::Compressor;
use super::job::Content;
use super::{JOB_LEN, Job, Recipe};
use crate::map::{Origin, Piece};
use crate::safety::{self, Region};
use crate::{Decoder, Error, ErrorKind, ReadAt};

/// Encodes jobs, with the memory for it kept from one to the next.
pub struct Encoder {
    recipe: Recipe,
    compressor: Compressor,
    decoder: Decoder,
    /// The job's part of the disk.
    disk: Vec<u8>,
    /// A compressed cluster of the source.
    compressed: Vec<u8>,
    /// What it decodes to, if only a part of that is wanted.
    cluster: Vec<u8>,
    /// A unit, encoded.
    unit: Vec<u8>,
    /// What a whole unit of zeros becomes, once that is known.
    zero_unit: Option<Vec<u8>>,
}

/// What a job became.
#[derive(Debug)]
pub struct Encoded {
    pub(crate) guest: u64,
    pub(crate) len: u64,
    /// The units in their order, and
    pub(crate) units: Vec<Unit>,
    /// the bytes of those that have some, one after another.
    pub(crate) bytes: Vec<u8>,
}

/// What became of a cluster, grain, member or frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// It is all zeros, and has no bytes.
    Zero,
    /// It is compressed into so many bytes.
    Compressed(usize),
    /// It did not shrink, and its bytes are as they were.
    Plain(usize),
}

impl Unit {
    fn len(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::Compressed(len) | Self::Plain(len) => len,
        }
    }
}

impl Encoded {
    /// Where the job ended, as an offset on the guest's disk: how far the conversion has come.
    pub fn end(&self) -> u64 {
        self.guest.saturating_add(self.len)
    }

    /// Each unit with its number on the disk, where units are of `unit_size` bytes, and its bytes.
    pub(crate) fn units(&self, unit_size: u64) -> impl Iterator<Item = (u64, Unit, &[u8])> {
        let first = self.guest.checked_div(unit_size).unwrap_or_default();
        let mut rest = &self.bytes[..];
        (first..).zip(&self.units).map(move |(number, unit)| {
            let (bytes, after) = rest.split_at_checked(unit.len()).unwrap_or((rest, &[]));
            rest = after;
            (number, *unit, bytes)
        })
    }
}

impl Encoder {
    pub(super) fn new(recipe: Recipe) -> Self {
        let mut compressor = Compressor::new(recipe.compression);
        let unit_len = if recipe.may_stay_plain {
            // What fills this has not shrunk.
            recipe.unit_len.saturating_sub(1)
        } else {
            compressor.bound(recipe.unit_len)
        };
        Self {
            recipe,
            compressor,
            decoder: Decoder::default(),
            disk: vec![0; JOB_LEN],
            compressed: Vec::new(),
            cluster: Vec::new(),
            unit: vec![0; unit_len],
            zero_unit: None,
        }
    }

    /// Encodes a job, whose bytes are in `source` if they are not in the job itself.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) if the source cannot be read, [`Corrupt`](ErrorKind::Corrupt) if a compressed cluster of it is broken.
    pub fn encode(&mut self, job: &Job, source: &dyn ReadAt) -> Result<Encoded, Error> {
        if let Content::Zeros { parts } = job.content {
            return Ok(self.encode_zeros(job, parts));
        }
        let filled = self.fill(job, source)?;
        let used = if self.recipe.keeps_zeros {
            filled
        } else {
            // The last cluster or grain of a disk is a whole one.
            filled.next_multiple_of(self.recipe.unit_len)
        };
        let disk = std::mem::take(&mut self.disk);
        let mut encoded = Encoded {
            guest: job.guest,
            len: filled as u64,
            units: Vec::new(),
            bytes: Vec::new(),
        };
        for unit in disk.get(..used).unwrap_or_default().chunks(self.recipe.unit_len) {
            let done = self.encode_unit(unit, &mut encoded.bytes);
            encoded.units.push(done);
        }
        self.disk = disk;
        Ok(encoded)
    }

    /// Encodes parts of the disk that are known to be zeros, without looking at any.
    fn encode_zeros(&mut self, job: &Job, parts: u64) -> Encoded {
        let parts = usize::try_from(parts).expect("a job has few parts");
        let units = parts.saturating_mul(JOB_LEN.div_ceil(self.recipe.unit_len));
        let (unit, bytes) = if self.recipe.keeps_zeros {
            let zeros = self.zero_unit();
            (Unit::Compressed(zeros.len()), zeros.repeat(units))
        } else {
            (Unit::Zero, Vec::new())
        };
        Encoded {
            guest: job.guest,
            len: job.len(),
            units: vec![unit; units],
            bytes,
        }
    }

    /// What a whole unit of zeros becomes.
    fn zero_unit(&mut self) -> &[u8] {
        let (compressor, len) = (&mut self.compressor, self.recipe.unit_len);
        self.zero_unit
            .get_or_insert_with(|| compressor.compress_to_vec(&vec![0; len]))
    }

    fn encode_unit(&mut self, unit: &[u8], bytes: &mut Vec<u8>) -> Unit {
        if is_zero(unit) {
            if !self.recipe.keeps_zeros {
                return Unit::Zero;
            }
            if unit.len() == self.recipe.unit_len {
                let zeros = self.zero_unit();
                bytes.extend_from_slice(zeros);
                return Unit::Compressed(zeros.len());
            }
        }
        let len = self.compressor.compress(unit, &mut self.unit);
        if let Some(compressed) = len.and_then(|len| self.unit.get(..len)) {
            bytes.extend_from_slice(compressed);
            Unit::Compressed(compressed.len())
        } else {
            bytes.extend_from_slice(unit);
            Unit::Plain(unit.len())
        }
    }

    /// Reads the job's part of the disk into `self.disk`, with zeros behind it, and says how long it is.
    fn fill(&mut self, job: &Job, source: &dyn ReadAt) -> Result<usize, Error> {
        let mut disk = std::mem::take(&mut self.disk);
        let filled = self.fill_disk(&mut disk, job, source);
        if let Ok(filled) = filled {
            disk.get_mut(filled..).unwrap_or_default().fill(0);
        }
        self.disk = disk;
        filled
    }

    fn fill_disk(&mut self, disk: &mut [u8], job: &Job, source: &dyn ReadAt) -> Result<usize, Error> {
        let too_long = || Error::new(ErrorKind::TooLarge, format!("a job of {} bytes", job.len()));
        match &job.content {
            Content::Bytes(bytes) => {
                let disk = disk.get_mut(..bytes.len()).ok_or_else(too_long)?;
                disk.copy_from_slice(bytes);
                Ok(bytes.len())
            }
            Content::Zeros { .. } => {
                let len = usize::try_from(job.len()).map_err(|_| too_long())?;
                disk.get_mut(..len).ok_or_else(too_long)?.fill(0);
                Ok(len)
            }
            Content::Pieces(pieces) => {
                let mut filled: usize = 0;
                for piece in pieces {
                    let end = usize::try_from(piece.len).ok().and_then(|len| filled.checked_add(len));
                    let range = filled..end.ok_or_else(too_long)?;
                    filled = range.end;
                    self.fill_piece(disk.get_mut(range).ok_or_else(too_long)?, piece, source)?;
                }
                Ok(filled)
            }
        }
    }

    fn fill_piece(&mut self, disk: &mut [u8], piece: &Piece, source: &dyn ReadAt) -> Result<(), Error> {
        match piece.origin {
            Origin::Zero => disk.fill(0),
            Origin::Data { offset } => safety::read_into(source, disk, offset)?,
            Origin::Compressed {
                offset,
                compressed_len,
                codec,
                decoded_len,
                skip,
            } => {
                let region = Region {
                    name: "compressed cluster",
                    offset,
                    len: compressed_len,
                };
                let too_large = |_| Error::new(ErrorKind::TooLarge, region.name).at(offset);
                self.compressed
                    .resize(usize::try_from(compressed_len).map_err(too_large)?, 0);
                safety::read_into(source, &mut self.compressed, offset)?;
                let decode = |decoder: &mut Decoder, compressed: &[u8], out: &mut [u8]| {
                    decoder.decode(codec, compressed, out).map_err(|error| error.at(offset))
                };
                if decoded_len == disk.len() as u64 {
                    return decode(&mut self.decoder, &self.compressed, disk);
                }
                self.cluster.resize(usize::try_from(decoded_len).map_err(too_large)?, 0);
                decode(&mut self.decoder, &self.compressed, &mut self.cluster)?;
                let start = usize::try_from(skip).map_err(too_large)?;
                let part = self.cluster.get(start..).and_then(|rest| rest.get(..disk.len()));
                disk.copy_from_slice(part.expect("a piece is inside of its cluster"));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("recipe", &self.recipe)
            .finish_non_exhaustive()
    }
}

/// Whether all bytes are zero. Most data shows it is not within the first few bytes.
fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_byte_is_not_zero_wherever_it_is() {
        for len in [0, 1, 255, 256, 257, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for index in 0..len {
                bytes[index] = 1;
                assert!(!is_zero(&bytes), "{index} of {len}");
                bytes[index] = 0;
            }
        }
    }
}
