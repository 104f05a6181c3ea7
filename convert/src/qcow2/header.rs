//! The qcow2 header, its extensions, and the rules that an image has to obey before a table of it is touched.
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
//! Extensions follow the header: type, length, content padded to eight bytes; type 0 ends them.
//!
//! Format: QEMU qcow2 specification, "Header" and "Header extensions".

use std::num::NonZeroU64;

use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u8, be_u32, be_u64};
use nom::{IResult, Parser};

use crate::safety::{self, Region, quote};
use crate::{Codec, Error, ErrorKind, Format, ReadAt};

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";

/// Bit numbers and masks of `incompatible_features`.
pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(crate) const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(crate) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
/// `compatible_features`: refcounts may be postponed.
pub(crate) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;

pub(crate) const HEADER_LEN_V2: u32 = 72;
const HEADER_LEN_V3_MIN: u32 = 104;
/// The length that QEMU writes, and that includes the compression type.
pub(crate) const HEADER_LEN_V3: u32 = 112;

/// 2 MiB clusters are the largest that QEMU makes or reads, and 512 bytes the smallest that the specification allows.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Subclusters, 32 of them in a cluster, are at least a sector.
const CLUSTER_BITS_EXTENDED_MIN: u32 = 14;
/// QEMU's bound: 32 MiB of L1 table.
const L1_TABLE_LEN_MAX: u64 = 32 << 20;
/// QEMU's bound: 8 MiB of refcount table.
const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;
/// QEMU's bound on internal snapshots.
const SNAPSHOT_COUNT_MAX: u32 = 65536;
/// The fixed part of a snapshot table entry.
const SNAPSHOT_LEN_MIN: u64 = 40;
/// The specification's bound on the backing file name.
const BACKING_NAME_LEN_MAX: u64 = 1023;

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

/// What the header extensions say, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// Quoted already: these are foreign names.
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
    /// Type (0 incompatible, 1 compatible, 2 autoclear), bit number and quoted name.
    pub(crate) feature_names: Vec<(u8, u8, String)>,
    pub(crate) bitmaps: bool,
    pub(crate) encryption_header: bool,
}

/// The header of an image with everything in it that is not a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) header: Header,
    pub(crate) extensions: Extensions,
    /// The backing file's name, quoted.
    pub(crate) backing_file: Option<String>,
    pub(crate) file_size: u64,
}

impl Header {
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

impl Extensions {
    /// Parses the extensions that start at byte `start` of the file.
    fn parse(bytes: &[u8], start: u64) -> Result<Self, Error> {
        let mut extensions = Self::default();
        let mut input = bytes;
        while !input.is_empty() {
            let place = start.saturating_add(bytes.len().saturating_sub(input.len()) as u64);
            let (rest, (kind, content)) = extension(input).map_err(|_| {
                Error::corrupt("a header extension reaches beyond the header cluster or the backing file name")
                    .at(place)
            })?;
            match kind {
                0 => break,
                0xe279_2aca => extensions.backing_format = Some(quote(content)),
                0x4441_5441 => extensions.data_file = Some(quote(content)),
                0x6803_f857 => extensions.feature_names = feature_names(content),
                0x2385_2875 => extensions.bitmaps = true,
                0x0537_be77 => extensions.encryption_header = true,
                _ => {} // The specification says to ignore what is unknown.
            }
            input = rest;
        }
        Ok(extensions)
    }
}

fn extension(input: &[u8]) -> IResult<&[u8], (u32, &[u8])> {
    let (input, (kind, len)) = (be_u32, be_u32).parse(input)?;
    if kind == 0 {
        return Ok((input, (0, &[])));
    }
    let (input, content) = take(len)(input)?;
    let padding = (len.wrapping_neg() % 8) as usize;
    // The last extension may end with the area, without its padding.
    let (input, _) = take(padding.min(input.len()))(input)?;
    Ok((input, (kind, content)))
}

/// Entries of 48 bytes: type, bit number, and a name padded with zeros.
fn feature_names(content: &[u8]) -> Vec<(u8, u8, String)> {
    let (entries, _) = content.as_chunks::<48>();
    let named = entries.iter().filter_map(|[kind, bit, name @ ..]| {
        let name = name.split(|byte| *byte == 0).next()?;
        Some((*kind, *bit, quote(name)))
    });
    // Three fields of 64 bits are all that there is to name.
    named.take(192).collect()
}

impl Preamble {
    /// Reads the header cluster. It holds only to what is needed to understand it; [`check`](Self::check) judges it.
    pub(crate) fn read(source: &dyn ReadAt) -> Result<Self, Error> {
        Self::read_unnamed(source).map_err(|error| error.with_format(Format::Qcow2))
    }

    fn read_unnamed(source: &dyn ReadAt) -> Result<Self, Error> {
        let file_size = source.size();
        let start = |len: u64| {
            safety::read_region(
                source,
                Region {
                    name: "header",
                    offset: 0,
                    len: len.min(file_size),
                },
            )
        };
        let header = Header::parse(&start(u64::from(HEADER_LEN_V3))?)?;
        check_cluster_bits(&header)?;
        if u64::from(header.header_len) > header.cluster_size().min(file_size) {
            let reason = format!("header length {} is more than the header cluster", header.header_len);
            return Err(Error::corrupt(reason).at(field::HEADER_LEN));
        }
        let cluster = start(header.cluster_size())?;
        let (extensions_start, backing_start) = (header.header_len as usize, header.backing_file_offset);
        let extensions_end = match usize::try_from(backing_start) {
            Ok(end) if (extensions_start..=cluster.len()).contains(&end) => end,
            _ => cluster.len(),
        };
        let area = cluster.get(extensions_start..extensions_end).unwrap_or_default();
        let extensions = Extensions::parse(area, u64::from(header.header_len))?;
        let backing_file = (backing_start != 0).then(|| backing_name(&cluster, &header));
        Ok(Self {
            header,
            extensions,
            backing_file,
            file_size,
        })
    }

    /// Refuses what cannot be read, or should not be.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let checks = [
            Self::check_features,
            Self::check_encryption,
            Self::check_references,
            Self::check_tables,
        ];
        checks
            .iter()
            .try_for_each(|check| check(self))
            .map_err(|error| error.with_format(Format::Qcow2))
    }

    fn check_features(&self) -> Result<(), Error> {
        let Header {
            incompatible,
            compression_type,
            ..
        } = self.header;
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(
                Error::corrupt("the image is marked as corrupt (incompatible feature bit 1)").at(field::INCOMPATIBLE),
            );
        }
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            let named = |name: &&(u8, u8, String)| name.0 == 0 && u32::from(name.1) == bit;
            let name = self
                .extensions
                .feature_names
                .iter()
                .find(named)
                .map_or(String::new(), |name| format!(" {}", name.2));
            let reason = format!("unknown incompatible feature bit {bit}{name}");
            return Err(Error::unsupported(reason).at(field::INCOMPATIBLE));
        }
        self.header.codec()?;
        if (incompatible & INCOMPATIBLE_COMPRESSION != 0) != (compression_type != 0) {
            let reason =
                format!("compression type {compression_type} and incompatible feature bit 3 contradict each other");
            return Err(Error::corrupt(reason).at(field::COMPRESSION_TYPE));
        }
        if self.header.is_extended_l2() && self.header.cluster_bits < CLUSTER_BITS_EXTENDED_MIN {
            let reason = format!(
                "extended L2 entries need clusters of 16384 bytes, not {}",
                self.header.cluster_size()
            );
            return Err(Error::corrupt(reason).at(field::CLUSTER_BITS));
        }
        if self.header.refcount_order > 6 {
            let reason = format!("refcount order {} is more than 6", self.header.refcount_order);
            return Err(Error::corrupt(reason).at(field::REFCOUNT_ORDER));
        }
        Ok(())
    }

    fn check_encryption(&self) -> Result<(), Error> {
        let refuse = |method: &str| {
            Err(Error::unsupported(format!("the image is encrypted ({method})")).at(field::CRYPT_METHOD))
        };
        match self.header.crypt_method {
            0 if self.extensions.encryption_header => refuse("an encryption header extension"),
            0 => Ok(()),
            1 => refuse("AES, encryption method 1"),
            2 => refuse("LUKS, encryption method 2"),
            other => refuse(&format!("unknown encryption method {other}")),
        }
    }

    fn check_references(&self) -> Result<(), Error> {
        let refuse = |reason: String, offset| Err(Error::new(ErrorKind::ReferenceDenied, reason).at(offset));
        let data_file = self.extensions.data_file.as_deref();
        if self.header.incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 || data_file.is_some() {
            let name = data_file.unwrap_or("without a name");
            return refuse(
                format!("the data is in an external data file {name}"),
                field::INCOMPATIBLE,
            );
        }
        match &self.backing_file {
            Some(name) => refuse(format!("the image needs a backing file {name}"), field::BACKING_FILE),
            None => Ok(()),
        }
    }

    fn check_tables(&self) -> Result<(), Error> {
        let Self { header, file_size, .. } = self;
        safety::virtual_size(header.size).map_err(|error| error.at(field::SIZE))?;
        self.check_l1()?;
        let refcounts = header.refcount_table();
        if refcounts.len > REFCOUNT_TABLE_LEN_MAX {
            let reason = format!(
                "refcount table of {} bytes is more than {REFCOUNT_TABLE_LEN_MAX}",
                refcounts.len
            );
            return Err(Error::new(ErrorKind::TooLarge, reason).at(field::REFCOUNT_TABLE_CLUSTERS));
        }
        if refcounts.len == 0 {
            return Err(Error::corrupt("there is no refcount table").at(field::REFCOUNT_TABLE_CLUSTERS));
        }
        let placed = |region: Region| region.aligned(header.cluster_size())?.inside(*file_size);
        placed(refcounts).map_err(|error| error.at(field::REFCOUNT_TABLE))?;
        if header.snapshot_count > SNAPSHOT_COUNT_MAX {
            let reason = format!("{} snapshots are more than {SNAPSHOT_COUNT_MAX}", header.snapshot_count);
            return Err(Error::new(ErrorKind::TooLarge, reason).at(field::SNAPSHOTS));
        }
        if header.snapshot_count > 0 {
            let len = u64::from(header.snapshot_count).saturating_mul(SNAPSHOT_LEN_MIN);
            let snapshots = Region {
                name: "snapshot table",
                offset: header.snapshots_offset,
                len,
            };
            placed(snapshots).map_err(|error| error.at(field::SNAPSHOTS))?;
        }
        self.check_overlaps()
    }

    fn check_l1(&self) -> Result<(), Error> {
        let header = &self.header;
        let l1 = header.l1_table();
        if l1.len > L1_TABLE_LEN_MAX {
            let reason = format!("L1 table of {} bytes is more than {L1_TABLE_LEN_MAX}", l1.len);
            return Err(Error::new(ErrorKind::TooLarge, reason).at(field::L1_SIZE));
        }
        let needed = header.size.div_ceil(header.l2_span().get());
        if u64::from(header.l1_size) < needed {
            let reason = format!(
                "L1 size {} is too small for virtual size {}, which needs {needed}",
                header.l1_size, header.size
            );
            return Err(Error::corrupt(reason).at(field::L1_SIZE));
        }
        if l1.len > 0 {
            l1.aligned(header.cluster_size())
                .map_err(|error| error.at(field::L1_TABLE))?;
            l1.inside(self.file_size).map_err(|error| error.at(field::L1_SIZE))?;
        }
        Ok(())
    }

    /// What the tables' pointers must keep away from: the header cluster and the two tables it points to.
    pub(crate) fn metadata(&self) -> [Region; 3] {
        let header = Region {
            name: "header",
            offset: 0,
            len: self.header.cluster_size(),
        };
        [header, self.header.l1_table(), self.header.refcount_table()]
    }

    fn check_overlaps(&self) -> Result<(), Error> {
        let [header, l1, refcounts] = self.metadata();
        for (one, other, place) in [
            (l1, header, field::L1_TABLE),
            (refcounts, header, field::REFCOUNT_TABLE),
            (refcounts, l1, field::REFCOUNT_TABLE),
        ] {
            if one.len > 0 && other.len > 0 && one.overlaps(other) {
                return Err(Error::corrupt(format!("{} overlaps the {}", one.name, other.name)).at(place));
            }
        }
        Ok(())
    }
}

fn check_cluster_bits(header: &Header) -> Result<(), Error> {
    if CLUSTER_BITS.contains(&header.cluster_bits) {
        return Ok(());
    }
    let (min, max) = (CLUSTER_BITS.start(), CLUSTER_BITS.end());
    let reason = format!("cluster bits {} are not between {min} and {max}", header.cluster_bits);
    Err(Error::corrupt(reason).at(field::CLUSTER_BITS))
}

/// The backing file's name for a refusal: quoted, and only if it is where it may be.
fn backing_name(cluster: &[u8], header: &Header) -> String {
    let len = u64::from(header.backing_file_size);
    let start = usize::try_from(header.backing_file_offset).ok();
    let end = start.and_then(|start| start.checked_add(usize::try_from(len).ok()?));
    match start.zip(end).and_then(|(start, end)| cluster.get(start..end)) {
        Some(name) if len <= BACKING_NAME_LEN_MAX => quote(name),
        _ => "with a name outside of the header".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A good header of an empty disk of 1 MiB: header, refcount table, L1 table, a cluster each.
    fn header() -> Header {
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

    /// A file of three clusters with `header`, and `extensions` behind it.
    fn file(header: &Header, extensions: &[u8]) -> Vec<u8> {
        let mut bytes = header.render();
        bytes.extend(extensions);
        bytes.resize(3 << 16, 0);
        bytes
    }

    fn extension(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn judge(header: &Header, extensions: &[u8]) -> Result<Preamble, Error> {
        let preamble = Preamble::read(&file(header, extensions))?;
        preamble.check()?;
        Ok(preamble)
    }

    #[test]
    fn good_headers_pass() {
        let v2 = Header {
            version: 2,
            header_len: HEADER_LEN_V2,
            ..header()
        };
        let lazy = Header {
            incompatible: INCOMPATIBLE_DIRTY,
            compatible: 1,
            ..header()
        };
        let zstd = Header {
            incompatible: INCOMPATIBLE_COMPRESSION,
            compression_type: 1,
            ..header()
        };
        let short = Header {
            header_len: 104,
            ..header()
        };
        let empty = Header {
            size: 0,
            l1_size: 0,
            l1_table_offset: 0,
            ..header()
        };
        let extended = Header {
            incompatible: INCOMPATIBLE_EXTENDED_L2,
            ..header()
        };
        for good in [header(), v2, lazy, zstd, empty, extended] {
            assert_eq!(judge(&good, &[]).unwrap().header, good);
        }
        assert_eq!(
            Preamble::read(&file(
                &Header {
                    header_len: 112,
                    ..short.clone()
                },
                &[]
            ))
            .unwrap()
            .header,
            header()
        );
        let mut bytes = short.render();
        bytes.resize(3 << 16, 0);
        assert_eq!(Preamble::read(&bytes).unwrap().header, short);
    }

    #[test]
    fn bad_headers_are_refused_with_the_field_at_fault() {
        use ErrorKind::{Corrupt, ReferenceDenied, TooLarge, Unsupported};
        type Case = (fn(&mut Header), ErrorKind, u64, &'static str);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (|h| h.version = 4, Unsupported, 4, "version 4, only 2 and 3 are known"),
            (|h| h.cluster_bits = 8, Corrupt, 20, "cluster bits 8 are not between 9 and 21"),
            (|h| h.cluster_bits = 22, Corrupt, 20, "cluster bits 22 are not between 9 and 21"),
            (|h| h.cluster_bits = u32::MAX, Corrupt, 20, "cluster bits 4294967295 are not between 9 and 21"),
            (|h| h.header_len = 96, Corrupt, 100, "header length 96 is not a multiple of 8 of at least 104"),
            (|h| h.header_len = 106, Corrupt, 100, "header length 106 is not a multiple of 8 of at least 104"),
            (|h| h.header_len = 65544, Corrupt, 100, "header length 65544 is more than the header cluster"),
            (|h| h.incompatible = 2, Corrupt, 72, "the image is marked as corrupt (incompatible feature bit 1)"),
            (|h| h.incompatible = 4, ReferenceDenied, 72, "the data is in an external data file without a name"),
            (|h| h.incompatible = 1 << 5, Unsupported, 72, "unknown incompatible feature bit 5"),
            (|h| h.incompatible = 1 << 63, Unsupported, 72, "unknown incompatible feature bit 63"),
            (|h| h.incompatible = 8, Corrupt, 104, "compression type 0 and incompatible feature bit 3 contradict each other"),
            (|h| h.compression_type = 1, Corrupt, 104, "compression type 1 and incompatible feature bit 3 contradict each other"),
            (|h| (h.compression_type, h.incompatible) = (2, 8), Unsupported, 104, "compression type 2, only 0 (zlib) and 1 (zstd) are known"),
            (|h| (h.cluster_bits, h.incompatible) = (13, 16), Corrupt, 20, "extended L2 entries need clusters of 16384 bytes, not 8192"),
            (|h| h.refcount_order = 7, Corrupt, 96, "refcount order 7 is more than 6"),
            (|h| h.crypt_method = 1, Unsupported, 32, "the image is encrypted (AES, encryption method 1)"),
            (|h| h.crypt_method = 2, Unsupported, 32, "the image is encrypted (LUKS, encryption method 2)"),
            (|h| h.crypt_method = 3, Unsupported, 32, "the image is encrypted (unknown encryption method 3)"),
            (|h| h.backing_file_offset = 1 << 40, ReferenceDenied, 8, "the image needs a backing file with a name outside of the header"),
            (|h| h.size = u64::MAX, TooLarge, 24, "virtual size 18446744073709551615 is more than 70368744177664 bytes (64 TiB)"),
            (|h| h.l1_size = u32::MAX, TooLarge, 36, "L1 table of 34359738360 bytes is more than 33554432"),
            (|h| h.l1_size = 4 << 20, Corrupt, 36, "L1 table of 33554432 bytes at 131072 reaches beyond the end of the file at 196608"),
            (|h| h.l1_size = 0, Corrupt, 36, "L1 size 0 is too small for virtual size 1048576, which needs 1"),
            (|h| h.size = (512 << 20) + 1, Corrupt, 36, "L1 size 1 is too small for virtual size 536870913, which needs 2"),
            (|h| h.l1_table_offset = 0x20008, Corrupt, 40, "L1 table offset 131080 is not a multiple of 65536"),
            (|h| h.l1_table_offset = 0x30000, Corrupt, 36, "L1 table of 8 bytes at 196608 reaches beyond the end of the file at 196608"),
            (|h| h.l1_table_offset = u64::MAX << 16, Corrupt, 36, "L1 table of 8 bytes at 18446744073709486080 reaches beyond the end of the file at 196608"),
            (|h| h.l1_table_offset = 0, Corrupt, 40, "L1 table overlaps the header"),
            (|h| h.l1_table_offset = 0x10000, Corrupt, 48, "refcount table overlaps the L1 table"),
            (|h| h.refcount_table_offset = 0, Corrupt, 48, "refcount table overlaps the header"),
            (|h| h.refcount_table_offset = 0x10200, Corrupt, 48, "refcount table offset 66048 is not a multiple of 65536"),
            (|h| h.refcount_table_offset = 1 << 50, Corrupt, 48, "refcount table of 65536 bytes at 1125899906842624 reaches beyond the end of the file at 196608"),
            (|h| h.refcount_table_clusters = 0, Corrupt, 56, "there is no refcount table"),
            (|h| h.refcount_table_clusters = 129, TooLarge, 56, "refcount table of 8454144 bytes is more than 8388608"),
            (|h| h.snapshot_count = 65537, TooLarge, 60, "65537 snapshots are more than 65536"),
            (|h| (h.snapshot_count, h.snapshots_offset) = (1, 1), Corrupt, 60, "snapshot table offset 1 is not a multiple of 65536"),
            (|h| (h.snapshot_count, h.snapshots_offset) = (1, 0x30000), Corrupt, 60, "snapshot table of 40 bytes at 196608 reaches beyond the end of the file at 196608"),
        ];
        for (spoil, kind, offset, reason) in cases {
            let mut bad = header();
            spoil(&mut bad);
            let mut bytes = Header {
                header_len: 112,
                ..bad.clone()
            }
            .render();
            bytes[100..104].copy_from_slice(&bad.header_len.to_be_bytes());
            bytes.resize(3 << 16, 0);
            let error = Preamble::read(&bytes)
                .and_then(|preamble| preamble.check())
                .expect_err(reason);
            assert_eq!(
                (error.reason(), error.kind(), error.offset()),
                (*reason, *kind, Some(*offset))
            );
            assert_eq!(error.format(), Some(Format::Qcow2));
        }
    }

    #[test]
    fn foreign_names_are_quoted_and_never_more() {
        let backing = |name: &[u8]| {
            let header = Header {
                backing_file_offset: 512,
                backing_file_size: u32::try_from(name.len()).unwrap(),
                ..header()
            };
            let mut extensions = extension(0xe279_2aca, b"raw");
            extensions.resize(512 - 112, 0);
            extensions.extend(name);
            judge(&header, &extensions)
                .expect_err("a backing file")
                .reason()
                .to_owned()
        };
        assert_eq!(
            backing(b"/etc/shadow"),
            "the image needs a backing file \"/etc/shadow\""
        );
        assert_eq!(
            backing(b"json:{\"a\n"),
            "the image needs a backing file \"json:{\\\"a\\n\""
        );
        assert!(backing(&[b'x'; 1023]).ends_with("(cut, 1023 bytes in all)"));
        assert_eq!(
            backing(&[b'x'; 1024]),
            "the image needs a backing file with a name outside of the header"
        );
    }

    #[test]
    fn extensions_are_understood() {
        let mut names = vec![0; 96];
        names[..8].copy_from_slice(b"\x00\x07warp\0\0");
        names[48..56].copy_from_slice(b"\x01\x07other\0");
        let mut extensions = extension(0x6803_f857, &names);
        extensions.extend(extension(0x1234_5678, b"unknown"));
        extensions.extend(extension(0x2385_2875, &[0; 24]));
        let preamble = judge(&header(), &extensions).unwrap();
        assert!(preamble.extensions.bitmaps);

        let warp = Header {
            incompatible: 1 << 7,
            ..header()
        };
        let error = judge(&warp, &extensions).unwrap_err();
        assert_eq!(error.reason(), "unknown incompatible feature bit 7 \"warp\"");

        let error = judge(&header(), &extension(0x4441_5441, b"data.raw")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReferenceDenied);
        assert_eq!(error.reason(), "the data is in an external data file \"data.raw\"");

        let error = judge(&header(), &extension(0x0537_be77, &[0; 16])).unwrap_err();
        assert_eq!(
            error.reason(),
            "the image is encrypted (an encryption header extension)"
        );
    }

    #[test]
    fn extension_beyond_the_header_cluster_is_corrupt() {
        let mut endless = 0x1234_5678_u32.to_be_bytes().to_vec();
        endless.extend(u32::MAX.to_be_bytes());
        let error = judge(&header(), &endless).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(112)));
        assert_eq!(
            error.reason(),
            "a header extension reaches beyond the header cluster or the backing file name"
        );
    }

    #[test]
    fn truncated_headers_say_where_the_file_ends() {
        let bytes = header().render();
        for len in [4, 5, 71, 72, 103, 104, 111] {
            let error = Preamble::read(&bytes[..len].to_vec()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
        }
        assert_eq!(
            Header::parse(b"QFI\xfa0000").unwrap_err().kind(),
            ErrorKind::NotThisFormat
        );
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
                let implied = super::tests::header();
                let Header { incompatible, compatible, autoclear, refcount_order, compression_type, .. } = implied;
                header = Header { incompatible, compatible, autoclear, refcount_order, compression_type, header_len: HEADER_LEN_V2, ..header };
            }
            prop_assert_eq!(Header::parse(&header.render()).unwrap(), header);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut file = header().render();
            file.truncate(112 - bytes.len().min(40));
            file.extend(bytes);
            if let Ok(preamble) = Preamble::read(&file) {
                let _judged = preamble.check();
            }
        }
    }
}
