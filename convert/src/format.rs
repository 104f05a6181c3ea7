//! The formats that are recognised, and their names.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::{Error, ErrorKind};

/// A disk image format, or an envelope around one, that is told apart by content.
///
/// Recognised is not yet readable: [`open`](crate::open) says which of them it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The bytes of the disk itself.
    Raw,
    /// QEMU copy-on-write, versions 2 and 3.
    Qcow2,
    /// QEMU copy-on-write, version 1.
    Qcow,
    /// QEMU enhanced disk.
    Qed,
    /// `VMware` virtual disk.
    Vmdk,
    /// Microsoft virtual hard disk, fixed or dynamic.
    Vhd,
    /// Microsoft virtual hard disk, version 2.
    Vhdx,
    /// `VirtualBox` disk image.
    Vdi,
    /// Loop device of Parallels and `OpenVZ`.
    Ploop,
    /// Encrypted volume of the Linux unified key setup.
    Luks,
    /// Linux kernel, which clouds call Amazon kernel image.
    Aki,
    /// Initial ramdisk, which clouds call Amazon ramdisk image.
    Ari,
    /// gzip envelope.
    Gzip,
    /// xz envelope.
    Xz,
    /// Zstandard envelope.
    Zstd,
    /// bzip2 envelope.
    Bzip2,
    /// ZIP archive.
    Zip,
    /// tar archive, which an OVA is.
    Tar,
    /// LZ4 frames.
    Lz4,
    /// 7-Zip archive.
    SevenZip,
    /// RAR archive, versions 4 and 5.
    Rar,
    /// Members of lzip.
    Lzip,
    /// A file of lzop.
    Lzop,
    /// A file of compress, with the extension `.Z`.
    Compress,
    /// A stream of LZMA alone, as from before xz.
    Lzma,
}

impl Format {
    /// Every format that is recognised.
    pub const ALL: [Self; 25] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow,
        Self::Qed,
        Self::Vmdk,
        Self::Vhd,
        Self::Vhdx,
        Self::Vdi,
        Self::Ploop,
        Self::Luks,
        Self::Aki,
        Self::Ari,
        Self::Gzip,
        Self::Xz,
        Self::Zstd,
        Self::Bzip2,
        Self::Zip,
        Self::Tar,
        Self::Lz4,
        Self::SevenZip,
        Self::Rar,
        Self::Lzip,
        Self::Lzop,
        Self::Compress,
        Self::Lzma,
    ];

    /// Whether it is an envelope around a disk, not a disk itself, of the sort that can be [opened](crate::unwrap()).
    pub const fn is_envelope(self) -> bool {
        matches!(
            self,
            Self::Gzip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Zip | Self::Tar
        )
    }

    /// Whether it is an envelope of the sort that is recognised and cannot be opened.
    pub const fn is_closed_envelope(self) -> bool {
        matches!(
            self,
            Self::Lz4 | Self::SevenZip | Self::Rar | Self::Lzip | Self::Lzop | Self::Compress | Self::Lzma
        )
    }

    /// The name, as in `convert-to` tags and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Ploop => "ploop",
            Self::Luks => "luks",
            Self::Aki => "aki",
            Self::Ari => "ari",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Zip => "zip",
            Self::Tar => "tar",
            Self::Lz4 => "lz4",
            Self::SevenZip => "7z",
            Self::Rar => "rar",
            Self::Lzip => "lzip",
            Self::Lzop => "lzop",
            Self::Compress => "compress",
            Self::Lzma => "lzma",
        }
    }

    /// The file name extension, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Zstd => "zst",
            Self::Bzip2 => "bz2",
            Self::Lzip => "lz",
            Self::Lzop => "lzo",
            Self::Compress => "Z",
            other => other.name(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotThisFormat,
                    format!("{} is not the name of a format", crate::safety::quote(text.as_bytes())),
                )
            })
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().ok(), Some(format));
        }
    }

    #[test]
    fn unknown_name_is_quoted_in_the_error() {
        let error = "floppy\n".parse::<Format>().expect_err("no such format");
        assert_eq!(error.kind(), ErrorKind::NotThisFormat);
        assert_eq!(error.reason(), "\"floppy\\n\" is not the name of a format");
    }
}
