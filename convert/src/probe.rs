//! What a file is, by its content and never by its name.
//!
//! Anything can be a raw disk, so raw is what remains when no other format shows. A guest may write any magic number into
//! the first sector of its own raw disk, and make it look like another format; nothing is gained by that, because no format
//! may refer to another file.

use serde::{Serialize, Serializer};

use crate::signature::HEAD_LEN;
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
    let head = head(source)?;
    if let Some(format) = format_of(&head) {
        return Ok(Probe {
            format,
            evidence: Evidence::Magic,
        });
    }
    if has_vhd_footer(source)? {
        return Ok(Probe {
            format: Format::Vhd,
            evidence: Evidence::Magic,
        });
    }
    let evidence = Signature::find_all(&head)
        .first()
        .map_or(Evidence::Default, |found| Evidence::Signature(*found));
    Ok(Probe {
        format: Format::Raw,
        evidence,
    })
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

fn format_of(head: &[u8]) -> Option<Format> {
    let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let found = [
        (Format::Qcow, has(0, b"QFI\xfb\0\0\0\x01")),
        (Format::Qcow2, has(0, b"QFI\xfb")),
        (Format::Qed, has(0, b"QED\0")),
        (
            Format::Vmdk,
            has(0, b"KDMV")
                || has(0, b"COWD")
                || has(0, &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0])
                || has(0, b"# Disk DescriptorFile"),
        ),
        (Format::Vhd, has(0, b"conectix")),
        (Format::Vhdx, has(0, b"vhdxfile")),
        (Format::Vdi, has(64, &[0x7f, 0x10, 0xda, 0xbe])),
        (Format::Gzip, has(0, &[0x1f, 0x8b, 0x08])),
        (Format::Xz, has(0, b"\xfd7zXZ\0")),
        (Format::Zstd, has(0, &[0x28, 0xb5, 0x2f, 0xfd])),
        (
            Format::Bzip2,
            has(0, b"BZh") && has(4, &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]),
        ),
        (Format::Zip, has(0, b"PK\x03\x04")),
        (Format::Tar, has(257, b"ustar")),
    ];
    found.into_iter().find_map(|(format, here)| here.then_some(format))
}

/// Whether the last sector is the footer of a fixed VHD: its cookie, and file format version 1.0 at byte 12.
fn has_vhd_footer(source: &dyn ReadAt) -> Result<bool, Error> {
    let Some(offset) = source.size().checked_sub(512) else {
        return Ok(false);
    };
    let mut footer = [0; 16];
    safety::read_into(source, &mut footer, offset)?;
    Ok(footer.starts_with(b"conectix") && footer.ends_with(&[0, 1, 0, 0]))
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
