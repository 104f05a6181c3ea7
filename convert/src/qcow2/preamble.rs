//! The header cluster as a whole, and the rules that an image has to obey before a table of it is touched.
//!
//! Reading holds only to what is needed to understand the cluster, so that an inspection can tell of images that
//! [`Preamble::check`] refuses.

use super::extension::Extensions;
use super::header::{
    HEADER_LEN_V3, Header, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_EXTERNAL_DATA, field,
};
use crate::safety::{self, Region, quote};
use crate::{Error, ErrorKind, Format, ReadAt};

/// The incompatible feature bits 0 to 4.
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
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

/// The header of an image with everything in it that is not a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) header: Header,
    pub(crate) extensions: Extensions,
    pub(crate) backing_file: Option<BackingFile>,
    pub(crate) file_size: u64,
}

/// The backing file that an image needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackingFile {
    /// By this name.
    Named(Vec<u8>),
    /// By a name that is not where it may be.
    OutsideOfHeader,
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
        let backing_file = (backing_start != 0).then(|| backing_file(&cluster, &header));
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
            let name = data_file.map_or("without a name".to_owned(), quote);
            return refuse(
                format!("the data is in an external data file {name}"),
                field::INCOMPATIBLE,
            );
        }
        let name = match &self.backing_file {
            Some(BackingFile::Named(name)) => quote(name),
            Some(BackingFile::OutsideOfHeader) => "with a name outside of the header".to_owned(),
            None => return Ok(()),
        };
        refuse(format!("the image needs a backing file {name}"), field::BACKING_FILE)
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

fn backing_file(cluster: &[u8], header: &Header) -> BackingFile {
    let len = u64::from(header.backing_file_size);
    let start = usize::try_from(header.backing_file_offset).ok();
    let end = start.and_then(|start| start.checked_add(usize::try_from(len).ok()?));
    match start.zip(end).and_then(|(start, end)| cluster.get(start..end)) {
        Some(name) if len <= BACKING_NAME_LEN_MAX => BackingFile::Named(name.to_vec()),
        _ => BackingFile::OutsideOfHeader,
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::header;
    use super::super::header::{HEADER_LEN_V2, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2};
    use super::*;
    use proptest::prelude::*;

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
