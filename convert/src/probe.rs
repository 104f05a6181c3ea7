//! What a file is, by its content and never by its name.
//!
//! Anything can be a raw disk, so raw is what remains when no other format shows. A guest may write any magic number into
//! the first sector of its own raw disk, and make it look like another format; nothing is gained by that, because no format
//! may refer to another file.

use serde::{Serialize, Serializer};

use crate::signature::HEAD_LEN;
use crate::vmdk::DESCRIPTOR_MAGIC;
use crate::{Error, Format, ReadAt, Signature, safety};

/// The outcome of [`probe`](probe()).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The format.
    pub format: Format,
    /// Why it is taken to be that.
    pub evidence: Evidence,
}

/// Why a file is taken to be of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The format's own magic number.
    Magic,
    /// A raw disk that shows a partition table or a file system.
    Signature(Signature),
    /// Nothing is known; raw is the default.
    Default,
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Magic => "magic",
            Self::Signature(signature) => signature.name(),
            Self::Default => "default",
        })
    }
}

/// Finds out the format of a file by its content.
///
/// # Errors
///
/// [`Io`](crate::ErrorKind::Io) if the source cannot be read; every content has a format.
pub fn probe(source: &dyn ReadAt) -> Result<Probe, Error> {
    Ok(probe_head(source, &head(source)?)?.0)
}

/// [`probe`](probe()), and the refusal of files that are of several formats at once.
///
/// Such a file is one disk to one reader and another disk to the next, and may be made to be checked as the one and used as
/// the other.
pub(crate) fn probe_strictly(source: &dyn ReadAt) -> Result<Probe, Error> {
    let head = head(source)?;
    let (probe, footer) = probe_head(source, &head)?;
    match second_sign(probe.format, &head, footer) {
        None => Ok(probe),
        Some((sign, offset)) => {
            let reason = format!(
                "the file is {} and {sign}: which of them is meant is not guessed",
                probe.format
            );
            Err(Error::corrupt(reason).at(offset).with_format(probe.format))
        }
    }
}

/// What a file is, and where its last sector is if that is the footer of a VHD.
fn probe_head(source: &dyn ReadAt, head: &[u8]) -> Result<(Probe, Option<u64>), Error> {
    let footer = vhd_footer(source)?;
    let at_start = signs(head).first().map(|(format, _)| *format);
    let (format, evidence) = match (at_start, footer) {
        (Some(format), _) => (format, Evidence::Magic),
        (None, Some(_)) => (Format::Vhd, Evidence::Magic),
        (None, None) => {
            let signature = Signature::find_all(head).first().copied();
            (Format::Raw, signature.map_or(Evidence::Default, Evidence::Signature))
        }
    };
    Ok((Probe { format, evidence }, footer))
}

/// What else a file shows that is of this format, and where.
fn second_sign(format: Format, head: &[u8], footer: Option<u64>) -> Option<(String, u64)> {
    let other = signs(head).into_iter().find(|(other, _)| *other != format);
    if let Some((other, offset)) = other {
        return Some((other.to_string(), offset));
    }
    if let Some(offset) = footer.filter(|_| !matches!(format, Format::Vhd | Format::Raw) && !format.is_envelope()) {
        return Some((Format::Vhd.to_string(), offset));
    }
    let dynamic_vhd = head.starts_with(b"conectix");
    let found = Signature::find_all(head);
    match format {
        Format::Raw => two_file_systems(&found),
        Format::Vhd if !dynamic_vhd => None,
        _ if format.is_envelope() || matches!(format, Format::Luks | Format::Aki | Format::Ari) => None,
        // Some of these begin with few bytes that are theirs alone, which a disk may begin with, too.
        _ if format.is_closed_envelope() => found
            .into_iter()
            .find(|found| found.is_partition_table() || found.is_whole_disk())
            .map(|found| (format!("a disk with {found}"), found.offset())),
        _ => found
            .into_iter()
            .find(|found| found.is_partition_table() || *found == Signature::Iso9660)
            .map(|found| (format!("a disk with {found}"), found.offset())),
    }
}

/// The second of two file systems on a whole disk. Behind a partition table there may be leftovers, which nobody reads.
fn two_file_systems(found: &[Signature]) -> Option<(String, u64)> {
    if found.iter().any(|found| found.is_partition_table()) {
        return None;
    }
    let mut whole = found.iter().filter(|found| found.is_whole_disk());
    let first = whole.next()?;
    let second = whole.next()?;
    Some((format!("holds both {first} and {second}"), second.offset()))
}

/// The first bytes of a disk: as many as any signature needs, or all there are.
fn head(source: &dyn ReadAt) -> Result<Vec<u8>, Error> {
    let len = source.size().min(HEAD_LEN);
    safety::read_region(
        source,
        safety::Region {
            name: "the start of the file",
            offset: 0,
            len,
        },
    )
}

/// The formats whose magic number is in the head of a file, and where it is. The first one decides.
fn signs(head: &[u8]) -> Vec<(Format, u64)> {
    let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let qcow1 = has(0, b"QFI\xfb\0\0\0\x01");
    let found = [
        (Format::Qcow, 0, qcow1),
        (Format::Qcow2, 0, has(0, b"QFI\xfb") && !qcow1),
        (Format::Qed, 0, has(0, b"QED\0")),
        (
            Format::Vmdk,
            0,
            has(0, b"KDMV")
                || has(0, b"COWD")
                || has(0, &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0])
                || has(0, DESCRIPTOR_MAGIC),
        ),
        (Format::Vhd, 0, has(0, b"conectix")),
        (Format::Vhdx, 0, has(0, b"vhdxfile")),
        (
            Format::Ploop,
            0,
            has(0, b"WithoutFreeSpace") || has(0, b"WithouFreSpacExt"),
        ),
        (Format::Luks, 0, has(0, b"LUKS\xba\xbe")),
        (Format::Ari, 0, has(0, b"070701") || has(0, b"070702")),
        (Format::Gzip, 0, has(0, &[0x1f, 0x8b, 0x08])),
        (Format::Xz, 0, has(0, b"\xfd7zXZ\0")),
        (Format::Zstd, 0, has(0, &[0x28, 0xb5, 0x2f, 0xfd])),
        (
            Format::Bzip2,
            0,
            has(0, b"BZh") && has(4, &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]),
        ),
        (Format::Zip, 0, has(0, b"PK\x03\x04")),
        (Format::Lz4, 0, has(0, &[0x04, 0x22, 0x4d, 0x18])),
        (Format::SevenZip, 0, has(0, b"7z\xbc\xaf\x27\x1c")),
        // The last byte is zero in version 4; in version 5 it is 1, and a zero follows.
        (
            Format::Rar,
            0,
            has(0, b"Rar!\x1a\x07\0") || has(0, b"Rar!\x1a\x07\x01\0"),
        ),
        (Format::Lzip, 0, has(0, b"LZIP\0") || has(0, b"LZIP\x01")),
        (Format::Lzop, 0, has(0, b"\x89LZO\0\r\n\x1a\n")),
        (Format::Compress, 0, is_compress(head)),
        (Format::Lzma, 0, is_lzma(head)),
        (Format::Vdi, 64, has(64, &[0x7f, 0x10, 0xda, 0xbe])),
        (Format::Tar, 257, has(257, b"ustar")),
        // The end of a boot sector, and the magic number of the header behind it.
        (Format::Aki, 514, has(510, &[0x55, 0xaa]) && has(514, b"HdrS")),
    ];
    let here = found.into_iter().filter(|(_, _, here)| *here);
    here.map(|(format, offset, _)| (format, offset)).collect()
}

/// Whether it begins as a file of compress: two bytes of magic, and the width of codes, 9 to 16 bits, with a flag for blocks. Two
/// more bits are unused.
fn is_compress(head: &[u8]) -> bool {
    let Some([0x1f, 0x9d, flags]) = head.first_chunk() else {
        return false;
    };
    flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1f))
}

/// Whether it begins as a stream of LZMA alone, which has no magic number.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 1 | properties: lc + 9 (lp + 5 pb) |
/// | 1 | 4 | size of the dictionary |
/// | 5 | 8 | size of what it decodes to, or all ones if the stream says where it ends |
/// | 13 | 1 | zero, the first byte of every range coder |
///
/// xz takes for one what has properties that it can decode, a dictionary of 2^n or 2^n + 2^(n-1) bytes and less than 256 GiB in it.
/// Here the dictionary has 4 KiB at least, the least that an encoder takes, and something is in the stream: the first sectors of
/// disks have many zeros.
fn is_lzma(head: &[u8]) -> bool {
    /// As many as there are below 9 · 5 · 5.
    const PROPERTIES_MAX: u8 = 224;
    /// Of lc and lp together.
    const LITERAL_BITS_MAX: u8 = 4;
    const DICTIONARY_LEN_MIN: u32 = 4 << 10;
    const SIZE_END: u64 = 256 << 30;
    let Some([properties, header @ .., 0]) = head.first_chunk::<14>() else {
        return false;
    };
    let [d0, d1, d2, d3, size @ ..] = *header;
    let dictionary = u32::from_le_bytes([d0, d1, d2, d3]);
    let size = u64::from_le_bytes(size);
    let (literal_bits, rest) = (properties % 9, properties / 9);
    // One bit, or two that are neighbours.
    let is_usual = dictionary >> dictionary.trailing_zeros().min(31) <= 3 || dictionary == u32::MAX;
    *properties <= PROPERTIES_MAX
        && literal_bits.saturating_add(rest % 5) <= LITERAL_BITS_MAX
        && dictionary >= DICTIONARY_LEN_MIN
        && is_usual
        && (size == u64::MAX || (1..SIZE_END).contains(&size))
}

/// Where the last sector is if it is the footer of a VHD: its cookie, and file format version 1.0 at byte 12.
fn vhd_footer(source: &dyn ReadAt) -> Result<Option<u64>, Error> {
    let Some(offset) = source.size().checked_sub(512) else {
        return Ok(None);
    };
    let mut footer = [0; 16];
    safety::read_into(source, &mut footer, offset)?;
    let is_footer = footer.starts_with(b"conectix") && footer.ends_with(&[0, 1, 0, 0]);
    Ok(is_footer.then_some(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn formats_are_told_apart_by_their_magic() {
        let cases: &[(usize, &[u8], Format)] = &[
            (0, b"QFI\xfb\0\0\0\x03", Format::Qcow2),
            (0, b"QFI\xfb\0\0\0\x02", Format::Qcow2),
            (0, b"QFI\xfb\0\0\0\x01", Format::Qcow),
            (0, b"QED\0", Format::Qed),
            (0, b"KDMV", Format::Vmdk),
            (0, b"COWD", Format::Vmdk),
            (0, &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], Format::Vmdk),
            (0, b"# Disk DescriptorFile\nversion=1\n", Format::Vmdk),
            (0, b"conectix", Format::Vhd),
            (70_000 - 512, b"conectix\0\0\0\x02\0\x01\0\0", Format::Vhd),
            (0, b"vhdxfile", Format::Vhdx),
            (64, &[0x7f, 0x10, 0xda, 0xbe], Format::Vdi),
            (0, &[0x1f, 0x8b, 0x08], Format::Gzip),
            (0, b"\xfd7zXZ\0", Format::Xz),
            (0, &[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (0, b"BZh91AY&SY", Format::Bzip2),
            (0, b"PK\x03\x04", Format::Zip),
            (257, b"ustar", Format::Tar),
            (0, b"WithoutFreeSpace", Format::Ploop),
            (0, b"WithouFreSpacExt", Format::Ploop),
            (0, b"LUKS\xba\xbe\0\x02", Format::Luks),
            (0, b"070701", Format::Ari),
            (510, b"\x55\xaa\xeb\x66HdrS", Format::Aki),
            (0, &[0x04, 0x22, 0x4d, 0x18], Format::Lz4),
            (0, b"7z\xbc\xaf\x27\x1c\0\x04", Format::SevenZip),
            (0, b"Rar!\x1a\x07\0", Format::Rar),
            (0, b"Rar!\x1a\x07\x01\0", Format::Rar),
            (0, b"LZIP\x01", Format::Lzip),
            (0, b"\x89LZO\0\r\n\x1a\n", Format::Lzop),
            (0, &[0x1f, 0x9d, 0x90], Format::Compress),
            (0, b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0", Format::Lzma),
        ];
        for (offset, magic, format) in cases {
            let probe = probe(&file(*offset, magic)).unwrap();
            assert_eq!(
                probe,
                Probe {
                    format: *format,
                    evidence: Evidence::Magic
                },
                "{magic:?}"
            );
        }
    }

    #[test]
    fn raw_says_whether_it_was_recognised() {
        for (offset, magic, evidence) in [
            (32769, &b"CD001"[..], Evidence::Signature(Signature::Iso9660)),
            (510, &[0x55, 0xaa], Evidence::Signature(Signature::BootSector)),
            (512, b"EFI PART", Evidence::Signature(Signature::Gpt)),
            (100, b"QFI\xfb", Evidence::Default),
            (0, b"BZh91 is not bzip2", Evidence::Default),
            (70_000 - 512, b"conectix\0\0\0\x02\0\x02\0\0", Evidence::Default),
            (0, &[0x1f, 0x9d, 0x08], Evidence::Default),
            (0, &[0x1f, 0x9d, 0xf0], Evidence::Default),
            (0, b"LZIP\x02", Evidence::Default),
            (0, b"Rar!\x1a\x07\x02\0", Evidence::Default),
        ] {
            assert_eq!(
                probe(&file(offset, magic)).unwrap(),
                Probe {
                    format: Format::Raw,
                    evidence
                }
            );
        }
    }

    /// Bytes and where they stand.
    type Part<'a> = (usize, &'a [u8]);
    /// A file, what it is besides, and where that shows.
    type Refused<'a> = (&'a [Part<'a>], &'a str, u64);

    #[test]
    fn a_file_is_of_one_format() {
        /// A partition of an MBR, and its signature.
        const PARTITION: Part<'_> = (446, &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
        const BOOT: Part<'_> = (510, &[0x55, 0xaa]);
        const FOOTER: Part<'_> = (70_000 - 512, b"conectix\0\0\0\x02\0\x01\0\0");
        const ISO: Part<'_> = (32769, b"CD001");
        const EXT: Part<'_> = (1080, &[0x53, 0xef]);
        const BTRFS: Part<'_> = (65600, b"_BHRfS_M");
        let qcow2: Part<'_> = (0, b"QFI\xfb\0\0\0\x03");
        let vdi: Part<'_> = (64, &[0x7f, 0x10, 0xda, 0xbe]);
        let gpt: Part<'_> = (512, b"EFI PART");
        let compress: Part<'_> = (0, &[0x1f, 0x9d, 0x90]);
        let lzma: Part<'_> = (0, &[0x5d, 0, 0, 0x80, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        let refused: [Refused<'_>; 14] = [
            (&[compress, PARTITION, BOOT], "compress and a disk with mbr", 446),
            (&[lzma, gpt], "lzma and a disk with gpt", 512),
            (&[(0, &[0x04, 0x22, 0x4d, 0x18]), EXT], "lz4 and a disk with ext", 1080),
            (&[compress, FOOTER], "compress and vhd", 70_000 - 512),
            (&[lzma, (257, b"ustar")], "lzma and tar", 257),
            (&[qcow2, vdi], "qcow2 and vdi", 64),
            (&[qcow2, (257, b"ustar")], "qcow2 and tar", 257),
            (&[vdi, (257, b"ustar")], "vdi and tar", 257),
            (&[qcow2, FOOTER], "qcow2 and vhd", 70_000 - 512),
            (&[(0, b"KDMV"), PARTITION, BOOT], "vmdk and a disk with mbr", 446),
            (&[(0, b"vhdxfile"), gpt], "vhdx and a disk with gpt", 512),
            (&[qcow2, ISO], "qcow2 and a disk with iso9660", 32769),
            (&[EXT, BTRFS], "raw and holds both ext and btrfs", 65600),
            (&[ISO, EXT], "raw and holds both iso9660 and ext", 1080),
        ];
        let make = |parts: &[Part<'_>]| {
            let mut bytes = vec![0; 70_000];
            for (offset, part) in parts {
                bytes[*offset..*offset + part.len()].copy_from_slice(part);
            }
            bytes
        };
        for (parts, reason, offset) in refused {
            let error = probe_strictly(&make(parts)).unwrap_err();
            assert!(
                error.reason().starts_with(&format!("the file is {reason}: ")),
                "{error}"
            );
            assert_eq!(error.offset(), Some(offset), "{error}");
        }
        for parts in [
            &[ISO, PARTITION, BOOT, gpt][..],
            &[ISO, BOOT],
            &[PARTITION, BOOT, EXT],
            &[gpt, EXT, BTRFS],
            &[FOOTER, ISO],
            &[FOOTER, PARTITION, BOOT, gpt],
            &[EXT, BOOT],
            &[(0, b"PK\x03\x04"), FOOTER],
        ] {
            probe_strictly(&make(parts)).unwrap();
        }
    }

    #[test]
    fn lzma_is_told_by_a_header_that_makes_sense() {
        let header = |properties: u8, dictionary: u32, size: u64, first: u8| {
            let fields = [
                &[properties][..],
                &dictionary.to_le_bytes(),
                &size.to_le_bytes(),
                &[first],
            ];
            is_lzma(&fields.concat())
        };
        for (properties, dictionary, size) in [
            (0x5d, 8 << 20, u64::MAX),
            (0x5d, 12 << 20, 1),
            (0x5d, u32::MAX, (256 << 30) - 1),
            (0x5d, 1 << 31, 1 << 20),
            (0x5d, 3 << 30, 1 << 20),
            (0, 4096, 1),
            (4, 4096, 1),
            (224 - 8 - 4 * 9, 4096, 1),
        ] {
            assert!(
                header(properties, dictionary, size, 0),
                "{properties} {dictionary} {size}"
            );
            assert!(
                !header(properties, dictionary, size, 1),
                "{properties} {dictionary} {size}"
            );
        }
        for (properties, dictionary, size) in [
            (225, 8 << 20, u64::MAX),
            (5, 8 << 20, u64::MAX),
            (224, 8 << 20, u64::MAX),
            (0x5d, 0, u64::MAX),
            (0x5d, 2048, u64::MAX),
            (0x5d, 5 << 20, u64::MAX),
            (0x5d, 7 << 20, u64::MAX),
            (0x5d, (8 << 20) + 1, u64::MAX),
            (0x5d, 8 << 20, 0),
            (0x5d, 8 << 20, 256 << 30),
            (0x5d, 8 << 20, u64::MAX - 1),
        ] {
            assert!(
                !header(properties, dictionary, size, 0),
                "{properties} {dictionary} {size}"
            );
        }
        assert!(!is_lzma(&[0; 512]) && !is_lzma(b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff"));
    }

    #[test]
    fn short_files_are_raw() {
        for bytes in [&b""[..], b"Q", b"QFI", b"conecti"] {
            assert_eq!(
                probe(&bytes.to_vec()).unwrap(),
                Probe {
                    format: Format::Raw,
                    evidence: Evidence::Default
                }
            );
        }
    }
}
