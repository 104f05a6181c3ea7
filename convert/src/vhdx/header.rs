//! The two headers, of which the newer one counts.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | signature `head` |
//! | 4 | 4 | checksum, of 4096 bytes |
//! | 8 | 8 | sequence number |
//! | 16 | 16 | file write GUID |
//! | 32 | 16 | data write GUID |
//! | 48 | 16 | log GUID, zero if the log is empty |
//! | 64 | 2 | log version |
//! | 66 | 2 | version |
//! | 68 | 4 | log length |
//! | 72 | 8 | log offset |
//!
//! Format: MS-VHDX, "Headers".

use nom::bytes::complete::{tag, take};
use nom::number::complete::{le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use super::{Guid, HEADER_SECTION, MIB_SIZE, PART_LEN, check_sum, seal};
use crate::safety::{self, Region};
use crate::{Error, ErrorKind, ReadAt};

const SIGNATURE: &[u8; 4] = b"head";
const VERSION: u16 = 1;
const LOG_VERSION: u16 = 0;
const HEADER_LEN: u64 = 4096;

/// Where fields stand, for errors.
mod field {
    pub(super) const LOG_VERSION: u64 = 64;
    pub(super) const VERSION: u64 = 66;
    pub(super) const LOG_LENGTH: u64 = 68;
    pub(super) const LOG_OFFSET: u64 = 72;
}

/// A header whose checksum and version are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence_number: u64,
    pub(super) file_write_guid: Guid,
    pub(super) data_write_guid: Guid,
    pub(super) log_guid: Guid,
    pub(super) log_version: u16,
    pub(super) log_length: u32,
    pub(super) log_offset: u64,
}

impl Header {
    pub(super) fn new(sequence_number: u64, file_write_guid: Guid, data_write_guid: Guid) -> Self {
        Self {
            sequence_number,
            file_write_guid,
            data_write_guid,
            log_guid: Guid::default(),
            log_version: LOG_VERSION,
            log_length: 1 << 20,
            log_offset: MIB_SIZE,
        }
    }

    /// Reads the header that counts: the one with the higher sequence number, if both are valid.
    ///
    /// Two with the same number have to be the same; Disk2vhd makes such.
    pub(super) fn read_current(source: &dyn ReadAt) -> Result<Self, Error> {
        let [first, second] = [PART_LEN, PART_LEN.saturating_mul(2)].map(|offset| (offset, Self::read(source, offset)));
        let (offset, header) = match (first, second) {
            ((_, Err(error)), _) | (_, (_, Err(error))) if error.kind() == ErrorKind::Io => return Err(error),
            ((_, Err(error)), (_, Err(_))) => return Err(error),
            ((offset, Ok(header)), (_, Err(_))) | ((_, Err(_)), (offset, Ok(header))) => (offset, header),
            ((offset, Ok(first)), (other, Ok(second))) => match first.sequence_number.cmp(&second.sequence_number) {
                std::cmp::Ordering::Less => (other, second),
                std::cmp::Ordering::Greater => (offset, first),
                std::cmp::Ordering::Equal if first == second => (offset, first),
                std::cmp::Ordering::Equal => {
                    let reason = format!(
                        "both headers have sequence number {}, but differ",
                        first.sequence_number
                    );
                    return Err(Error::corrupt(reason).at(offset));
                }
            },
        };
        header.check(source.size()).map_err(|error| error.shifted(offset))?;
        Ok(header)
    }

    fn read(source: &dyn ReadAt, offset: u64) -> Result<Self, Error> {
        let region = Region {
            name: "header",
            offset,
            len: HEADER_LEN,
        };
        let bytes = safety::read_region(source, region.inside(source.size()).map_err(|error| error.at(offset))?)?;
        Self::parse(&bytes).map_err(|error| error.shifted(offset))
    }

    /// Parses the 4096 bytes of a header. Places in errors count from its start.
    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (_, (stored, version, header)) =
            parse(bytes).map_err(|_| Error::corrupt("the signature of the header is missing").at(0))?;
        check_sum("header", bytes, stored)?;
        if version != VERSION {
            let reason = format!("version {version}, only {VERSION} is known");
            return Err(Error::unsupported(reason).at(field::VERSION));
        }
        Ok(header)
    }

    /// Holds the log against the file. Places in errors count from the start of the header.
    fn check(&self, file_size: u64) -> Result<(), Error> {
        if self.log_version != LOG_VERSION {
            let reason = format!("log version {}, only {LOG_VERSION} is known", self.log_version);
            return Err(Error::unsupported(reason).at(field::LOG_VERSION));
        }
        let log = self.log();
        if !log.len.is_multiple_of(MIB_SIZE) {
            let reason = format!("log length {} is not a multiple of {MIB_SIZE}", log.len);
            return Err(Error::corrupt(reason).at(field::LOG_LENGTH));
        }
        log.aligned(MIB_SIZE)
            .and_then(|log| log.inside(file_size))
            .and_then(|log| log.keeps_off(&[HEADER_SECTION]))
            .map_err(|error| error.at(field::LOG_OFFSET))?;
        Ok(())
    }

    pub(super) fn log(&self) -> Region {
        Region {
            name: "log",
            offset: self.log_offset,
            len: u64::from(self.log_length),
        }
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 4]);
        bytes.extend(self.sequence_number.to_le_bytes());
        for guid in [self.file_write_guid, self.data_write_guid, self.log_guid] {
            bytes.extend(guid);
        }
        bytes.extend(self.log_version.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.log_length.to_le_bytes());
        bytes.extend(self.log_offset.to_le_bytes());
        bytes.resize(4096, 0);
        seal(&mut bytes);
        bytes
    }
}

fn parse(input: &[u8]) -> IResult<&[u8], (u32, u16, Header)> {
    let (input, (_, stored, sequence_number)) = (tag(&SIGNATURE[..]), le_u32, le_u64).parse(input)?;
    let (input, (file_write_guid, data_write_guid, log_guid)) = (guid, guid, guid).parse(input)?;
    let (input, (log_version, version, log_length, log_offset)) = (le_u16, le_u16, le_u32, le_u64).parse(input)?;
    let header = Header {
        sequence_number,
        file_write_guid,
        data_write_guid,
        log_guid,
        log_version,
        log_length,
        log_offset,
    };
    Ok((input, (stored, version, header)))
}

/// Sixteen bytes.
pub(super) fn guid(input: &[u8]) -> IResult<&[u8], Guid> {
    let (input, bytes) = take(16_usize).parse(input)?;
    Ok((input, bytes.first_chunk().copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with two headers, each as it is or broken.
    fn file(first: Option<&Header>, second: Option<&Header>) -> Vec<u8> {
        let mut bytes = vec![0; 2 << 20];
        for (index, header) in [first, second].into_iter().enumerate() {
            let start = (index + 1) << 16;
            if let Some(header) = header {
                bytes[start..start + 4096].copy_from_slice(&header.render());
            }
        }
        bytes
    }

    #[test]
    fn the_newer_valid_header_counts() {
        let header = |number| Header::new(number, [1; 16], [2; 16]);
        let (one, two) = (header(1), header(2));
        let other = Header::new(2, [3; 16], [2; 16]);
        for (first, second, expected) in [
            (Some(&one), Some(&two), Ok(2)),
            (Some(&two), Some(&one), Ok(2)),
            (Some(&one), None, Ok(1)),
            (None, Some(&two), Ok(2)),
            (Some(&two), Some(&two), Ok(2)),
            (
                Some(&two),
                Some(&other),
                Err("both headers have sequence number 2, but differ"),
            ),
            (None, None, Err("the signature of the header is missing")),
        ] {
            let read = Header::read_current(&file(first, second));
            let read = read
                .as_ref()
                .map(|header| header.sequence_number)
                .map_err(Error::reason);
            assert_eq!(read, expected);
        }
        assert_eq!(Header::parse(&one.render()).unwrap(), one);
    }
}
