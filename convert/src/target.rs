//! What an image is to become: a format, and for some a variant after a colon.

use std::fmt;
use std::str::FromStr;

use crate::safety::quote;
use crate::{Error, Format};

/// A format that [`plan`](crate::plan()) can make.
///
/// Written as in the `convert-to` tag and on the command line: `qcow2`, `vhd`, `vhd:fixed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    format: Format,
    fixed: bool,
}

impl Target {
    /// Plain qcow2: version 3, clusters of 64 KiB, nothing compressed.
    pub const QCOW2: Self = Self::plain(Format::Qcow2);
    /// The bytes of the disk.
    pub const RAW: Self = Self::plain(Format::Raw);
    /// VMDK of one sparse file (monolithicSparse), nothing compressed.
    pub const VMDK: Self = Self::plain(Format::Vmdk);
    /// Dynamic VHD with blocks of 2 MiB.
    pub const VHD: Self = Self::plain(Format::Vhd);
    /// Fixed VHD: the bytes of the disk and a footer.
    pub const VHD_FIXED: Self = Self::fixed(Format::Vhd);
    /// Dynamic VHDX with blocks of 2 MiB or, for disks of more than 512 GiB, larger ones.
    pub const VHDX: Self = Self::plain(Format::Vhdx);
    /// Fixed VHDX.
    pub const VHDX_FIXED: Self = Self::fixed(Format::Vhdx);
    /// Dynamic VDI with blocks of 1 MiB.
    pub const VDI: Self = Self::plain(Format::Vdi);
    /// Fixed VDI.
    pub const VDI_FIXED: Self = Self::fixed(Format::Vdi);
    /// Every target there is.
    pub const ALL: [Self; 9] = [
        Self::QCOW2,
        Self::RAW,
        Self::VMDK,
        Self::VHD,
        Self::VHD_FIXED,
        Self::VHDX,
        Self::VHDX_FIXED,
        Self::VDI,
        Self::VDI_FIXED,
    ];

    const fn plain(format: Format) -> Self {
        Self { format, fixed: false }
    }

    const fn fixed(format: Format) -> Self {
        Self { format, fixed: true }
    }

    /// The format of the file that is made.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether all of the disk has a place in the file, though zeros need not be stored.
    pub const fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// What stands in the place of the source's file name extension, without the leading dot: a variant comes before the
    /// format (`fixed.vhd`), so that the variants of a format have names beside each other.
    pub const fn extension(&self) -> &'static str {
        match (self.format, self.fixed) {
            (Format::Vhd, true) => "fixed.vhd",
            (Format::Vhdx, true) => "fixed.vhdx",
            (Format::Vdi, true) => "fixed.vdi",
            (format, _) => format.extension(),
        }
    }

    fn supported() -> String {
        Self::ALL.map(|target| target.to_string()).join(", ")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fixed {
            f.pad(&format!("{}:fixed", self.format))
        } else {
            self.format.fmt(f)
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(target) = Self::ALL.into_iter().find(|target| target.to_string() == text) {
            return Ok(target);
        }
        let what = match text.split_once(':') {
            Some((format, _)) if Self::ALL.iter().any(|target| target.format.name() == format) => {
                "variant of a target format"
            }
            _ => "target format",
        };
        Err(Error::unsupported(format!(
            "{} is not a supported {what}; supported: {}",
            quote(text.as_bytes()),
            Self::supported()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn every_target_parses_back_and_has_a_name_of_its_own() {
        for (index, target) in Target::ALL.into_iter().enumerate() {
            assert_eq!(target.to_string().parse::<Target>().ok(), Some(target));
            assert!(target.extension().ends_with(target.format().extension()));
            let others = &Target::ALL[..index];
            assert!(others.iter().all(|other| other.extension() != target.extension()));
        }
        assert_eq!(Target::VHD_FIXED.to_string(), "vhd:fixed");
        assert_eq!(format!("{:>10}", Target::VHD_FIXED), " vhd:fixed");
    }

    #[test]
    fn others_are_refused_with_a_list_of_what_is_supported() {
        for (text, what) in [
            ("qcow2:zlib", "variant of a target format"),
            ("qcow2:", "variant of a target format"),
            ("qcow2:fixed", "variant of a target format"),
            ("vhd:dynamic", "variant of a target format"),
            ("vmdk:stream", "variant of a target format"),
            ("vmdk:fixed", "variant of a target format"),
            ("qed", "target format"),
            ("qed:fixed", "target format"),
            ("QCOW2", "target format"),
            ("", "target format"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let all = Target::supported();
            assert_eq!(
                error.reason(),
                format!("{text:?} is not a supported {what}; supported: {all}")
            );
        }
    }
}
