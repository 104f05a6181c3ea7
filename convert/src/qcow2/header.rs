//! The fixed fields of a qcow2 header: parsed, rendered, not yet judged.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic `QFI\xfb` |
//! | 4 | 4 | version |
//! | 8 | 8 | backing file offset, 0 if none |
//! | 16 | 4 | backing file size |
//! | 20 | 4 | cluster bits |
//! | 24 | 8 | virtual size |
//! | 32 | 4 | encryption method |
//! | 36 | 4 | L1 size, in entries |
//! | 40 | 8 | L1 table offset |
//! | 48 | 8 | refcount table offset |
//! | 56 | 4 | refcount table clusters |
//! | 60 | 4 | number of snapshots |
//! | 64 | 8 | snapshot table offset |
//! | | | *from version 3* |
//! | 72 | 8 | incompatible features |
//! | 80 | 8 | compatible features |
//! | 88 | 8 | autoclear features |
//! | 96 | 4 | refcount order |
//! | 100 | 4 | header length |
//! | 104 | 1 | compression type, if the header is long enough |
//!
//! Format: QEMU qcow2 specification, "Header".

use std::num::NonZeroU64;

use nom::bytes::complete::tag;
use nom::number::complete::{be_u8, be_u32, be_u64};
use nom::{IResult, Parser};

use super::Version;
use super::refcount::REFCOUNT_ORDER;
use crate::safety::Region;
use crate::{Codec, Error, ErrorKind};

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";

/// Bit numbers and masks of `incompatible_features`.
pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(crate) const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(crate) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// `compatible_features`: refcounts may be postponed.
pub(crate) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;

pub(crate) const HEADER_LEN_V2: u32 = 72;
const HEADER_LEN_V3_MIN: u32 = 104;
/// The length that QEMU writes, and that includes the compression type.
pub(crate) const HEADER_LEN_V3: u32 = 112;

/// Where fields stand, for errors.
pub(crate) mod field {
    pub(crate) const VERSION: u64 = 4;
    pub(crate) const BACKING_FILE: u64 = 8;
    pub(crate) const CLUSTER_BITS: u64 = 20;
    pub(crate) const SIZE: u64 = 24;
    pub(crate) const CRYPT_METHOD: u64 = 32;
    pub(crate) const L1_SIZE: u64 = 36;
    pub(crate) const L1_TABLE: u64 = 40;
    pub(crate) const REFCOUNT_TABLE: u64 = 48;
    pub(crate) const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
    pub(crate) const SNAPSHOTS: u64 = 60;
    pub(crate) const INCOMPATIBLE: u64 = 72;
    pub(crate) const REFCOUNT_ORDER: u64 = 96;
    pub(crate) const HEADER_LEN: u64 = 100;
    pub(crate) const COMPRESSION_TYPE: u64 = 104;
}

/// The fixed fields, as they stand in the file. Version 2 lacks the last six, which then hold what it implies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "it is the length of the header")]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) backing_file_offset: u64,
    pub(crate) backing_file_size: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) crypt_method: u32,
    pub(crate) l1_size: u32,
    pub(crate) l1_table_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) snapshot_count: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) header_len: u32,
    pub(crate) compression_type: u8,
}

impl Header {
    /// The header of a file with nothing in it yet.
    pub(crate) fn new(version: Version, cluster_bits: u32) -> Self {
        Self {
            version: match version {
                Version::Two => 2,
                Version::Three => 3,
            },
            backing_file_offset: 0,
            backing_file_size: 0,
            cluster_bits,
            size: 0,
            crypt_method: 0,
            l1_size: 0,
            l1_table_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: REFCOUNT_ORDER,
            header_len: match version {
                Version::Two => HEADER_LEN_V2,
                Version::Three => HEADER_LEN_V3,
            },
            compression_type: 0,
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (rest, mut header) = parse_v2(bytes).map_err(|error| match error {
            nom::Err::Error(error) if error.code == nom::error::ErrorKind::Tag && bytes.len() >= MAGIC.len() => {
                Error::new(ErrorKind::NotThisFormat, "the magic number is missing").at(0)
            }
            _ => truncated(bytes),
        })?;
        match header.version {
            2 => return Ok(header),
            3 => {}
            other => {
                return Err(Error::unsupported(format!("version {other}, only 2 and 3 are known")).at(field::VERSION));
            }
        }
        let (rest, ()) = parse_v3(rest, &mut header).map_err(|_| truncated(bytes))?;
        if header.header_len < HEADER_LEN_V3_MIN || !header.header_len.is_multiple_of(8) {
            let reason = format!(
                "header length {} is not a multiple of 8 of at least {HEADER_LEN_V3_MIN}",
                header.header_len
            );
            return Err(Error::corrupt(reason).at(field::HEADER_LEN));
        }
        if header.header_len > HEADER_LEN_V3_MIN {
            let (_, compression_type) = be_u8::<_, nom::error::Error<_>>(rest).map_err(|_| truncated(bytes))?;
            header.compression_type = compression_type;
        }
        Ok(header)
    }

    pub(crate) fn render(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(self.backing_file_offset.to_be_bytes());
        bytes.extend(self.backing_file_size.to_be_bytes());
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.crypt_method.to_be_bytes());
        bytes.extend(self.l1_size.to_be_bytes());
        bytes.extend(self.l1_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        bytes.extend(self.snapshot_count.to_be_bytes());
        bytes.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            bytes.extend(self.incompatible.to_be_bytes());
            bytes.extend(self.compatible.to_be_bytes());
            bytes.extend(self.autoclear.to_be_bytes());
            bytes.extend(self.refcount_order.to_be_bytes());
            bytes.extend(self.header_len.to_be_bytes());
            bytes.push(self.compression_type);
            bytes.resize(self.header_len as usize, 0);
        }
        bytes
    }

    /// In bytes. The cluster bits have been checked.
    pub(crate) fn cluster_size(&self) -> u64 {
        power_of_two(self.cluster_bits).get()
    }

    pub(crate) fn is_extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// How much of the disk one L1 entry covers, in bytes.
    pub(crate) fn l2_span(&self) -> NonZeroU64 {
        let entry_bits = if self.is_extended_l2() { 4 } else { 3 };
        let span_bits = self.cluster_bits.saturating_mul(2).saturating_sub(entry_bits);
        power_of_two(span_bits)
    }

    pub(crate) fn l1_table(&self) -> Region {
        let len = u64::from(self.l1_size).saturating_mul(8);
        Region {
            name: "L1 table",
            offset: self.l1_table_offset,
            len,
        }
    }

    pub(crate) fn refcount_table(&self) -> Region {
        let len = u64::from(self.refcount_table_clusters).saturating_mul(self.cluster_size());
        Region {
            name: "refcount table",
            offset: self.refcount_table_offset,
            len,
        }
    }

    pub(crate) fn codec(&self) -> Result<Codec, Error> {
        match self.compression_type {
            0 => Ok(Codec::Deflate),
            1 => Ok(Codec::Zstd),
            other => Err(Error::unsupported(format!(
                "compression type {other}, only 0 (zlib) and 1 (zstd) are known"
            ))
            .at(field::COMPRESSION_TYPE)),
        }
    }
}

/// 2 to the power of `bits`, or the largest number there is.
pub(crate) fn power_of_two(bits: u32) -> NonZeroU64 {
    1_u64
        .checked_shl(bits)
        .and_then(NonZeroU64::new)
        .unwrap_or(NonZeroU64::MAX)
}

fn truncated(bytes: &[u8]) -> Error {
    Error::corrupt(format!(
        "the file ends inside of the header, after {} bytes",
        bytes.len()
    ))
    .at(bytes.len() as u64)
}

fn parse_v2(input: &[u8]) -> IResult<&[u8], Header> {
    let (input, _) = tag(&MAGIC[..])(input)?;
    let (input, (version, backing_file_offset, backing_file_size)) = (be_u32, be_u64, be_u32).parse(input)?;
    let (input, (cluster_bits, size, crypt_method)) = (be_u32, be_u64, be_u32).parse(input)?;
    let (input, (l1_size, l1_table_offset)) = (be_u32, be_u64).parse(input)?;
    let (input, (refcount_table_offset, refcount_table_clusters)) = (be_u64, be_u32).parse(input)?;
    let (input, (snapshot_count, snapshots_offset)) = (be_u32, be_u64).parse(input)?;
    let header = Header {
        version,
        backing_file_offset,
        backing_file_size,
        cluster_bits,
        size,
        crypt_method,
        l1_size,
        l1_table_offset,
        refcount_table_offset,
        refcount_table_clusters,
        snapshot_count,
        snapshots_offset,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        header_len: HEADER_LEN_V2,
        compression_type: 0,
    };
    Ok((input, header))
}

fn parse_v3<'a>(input: &'a [u8], header: &mut Header) -> IResult<&'a [u8], ()> {
    let (input, (incompatible, compatible, autoclear)) = (be_u64, be_u64, be_u64).parse(input)?;
    let (input, (refcount_order, header_len)) = (be_u32, be_u32).parse(input)?;
    *header = Header {
        incompatible,
        compatible,
        autoclear,
        refcount_order,
        header_len,
        ..header.clone()
    };
    Ok((input, ()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A good header of an empty disk of 1 MiB: header, refcount table, L1 table, a cluster each.
    pub(crate) fn header() -> Header {
        Header {
            version: 3,
            backing_file_offset: 0,
            backing_file_size: 0,
            cluster_bits: 16,
            size: 1 << 20,
            crypt_method: 0,
            l1_size: 1,
            l1_table_offset: 0x20000,
            refcount_table_offset: 0x10000,
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_len: 112,
            compression_type: 0,
        }
    }

    proptest! {
        #[test]
        fn rendered_headers_parse_back(
            (backing_file_offset, backing_file_size, cluster_bits, size) in any::<(u64, u32, u32, u64)>(),
            (crypt_method, l1_size, l1_table_offset) in any::<(u32, u32, u64)>(),
            (refcount_table_offset, refcount_table_clusters) in any::<(u64, u32)>(),
            (snapshot_count, snapshots_offset) in any::<(u32, u64)>(),
            (incompatible, compatible, autoclear, refcount_order) in any::<(u64, u64, u64, u32)>(),
            compression_type in any::<u8>(),
            version in 2_u32..=3,
        ) {
            let mut header = Header {
                version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method, l1_size,
                l1_table_offset, refcount_table_offset, refcount_table_clusters, snapshot_count, snapshots_offset,
                incompatible, compatible, autoclear, refcount_order, header_len: HEADER_LEN_V3, compression_type,
            };
            if version == 2 {
                let implied = self::header();
                let Header { incompatible, compatible, autoclear, refcount_order, compression_type, .. } = implied;
                header = Header { incompatible, compatible, autoclear, refcount_order, compression_type, header_len: HEADER_LEN_V2, ..header };
            }
            prop_assert_eq!(Header::parse(&header.render()).unwrap(), header);
        }
    }
}
