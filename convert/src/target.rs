//! What an image is to become: a format, and for some a variant after a colon.

use std::fmt;
use std::str::FromStr;

use crate::encode::archived_len;
use crate::safety::quote;
use crate::{Error, ErrorKind, Format, Limits, Profile};

/// A format that [`plan`](crate::plan()) or [`encode`](crate::encode()) can make.
///
/// Written as in the `convert-to` tag and on the command line: `qcow2`, `vhd`, `vhd:fixed`, `qcow2:zstd`, `profile=azure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    format: Format,
    variant: Variant,
    /// For whom it is made.
    profile: Option<Profile>,
}

/// What stands before the name of a profile.
const PROFILE: &str = "profile=";

/// How a format is made, where there are several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Variant {
    /// The one that needs no name.
    Plain,
    Fixed,
    Version2,
    Zlib,
    Zlib4k,
    Zstd,
    Stream,
    Gz,
    Zst,
    TarGz,
    Ova,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Fixed => "fixed",
            Self::Version2 => "v2",
            Self::Zlib => "zlib",
            Self::Zlib4k => "zlib-4k",
            Self::Zstd => "zstd",
            Self::Stream => "stream",
            Self::Gz => "gz",
            Self::Zst => "zst",
            Self::TarGz => "tar.gz",
            Self::Ova => "ova",
        }
    }
}

impl Target {
    /// Plain qcow2: version 3, clusters of 64 KiB, nothing compressed.
    pub const QCOW2: Self = Self::new(Format::Qcow2, Variant::Plain);
    /// qcow2 of version 2 (compat 0.10), for readers from before 2013; nothing compressed.
    pub const QCOW2_V2: Self = Self::new(Format::Qcow2, Variant::Version2);
    /// qcow2 with clusters compressed by deflate, which every reader of qcow2 knows.
    pub const QCOW2_ZLIB: Self = Self::new(Format::Qcow2, Variant::Zlib);
    /// The same, and no match reaches back further than 4 KiB: for readers that keep no more of what they inflate. QEMU, which
    /// asks for just this window, inflates a cluster in one go and needs no such care.
    pub const QCOW2_ZLIB_4K: Self = Self::new(Format::Qcow2, Variant::Zlib4k);
    /// qcow2 with clusters compressed by Zstandard, for QEMU from version 5.1 on.
    pub const QCOW2_ZSTD: Self = Self::new(Format::Qcow2, Variant::Zstd);
    /// The bytes of the disk.
    pub const RAW: Self = Self::new(Format::Raw, Variant::Plain);
    /// The bytes of the disk as gzip, in members of 2 MiB each.
    pub const RAW_GZ: Self = Self::new(Format::Raw, Variant::Gz);
    /// The bytes of the disk as Zstandard, in frames of 2 MiB each.
    pub const RAW_ZST: Self = Self::new(Format::Raw, Variant::Zst);
    /// A `tar.gz` that holds the bytes of the disk as `disk.raw`.
    pub const RAW_TAR_GZ: Self = Self::new(Format::Raw, Variant::TarGz);
    /// VMDK of one sparse file (monolithicSparse), nothing compressed.
    pub const VMDK: Self = Self::new(Format::Vmdk, Variant::Plain);
    /// VMDK of one file of compressed grains (streamOptimized), as in an OVA.
    pub const VMDK_STREAM: Self = Self::new(Format::Vmdk, Variant::Stream);
    /// OVA: a tar archive with a descriptor of a machine (OVF), a manifest and a streamOptimized VMDK.
    pub const OVA: Self = Self::new(Format::Vmdk, Variant::Ova);
    /// Dynamic VHD with blocks of 2 MiB.
    pub const VHD: Self = Self::new(Format::Vhd, Variant::Plain);
    /// Fixed VHD: the bytes of the disk and a footer.
    pub const VHD_FIXED: Self = Self::new(Format::Vhd, Variant::Fixed);
    /// Dynamic VHDX with blocks of 2 MiB or, for disks of more than 512 GiB, larger ones.
    pub const VHDX: Self = Self::new(Format::Vhdx, Variant::Plain);
    /// Fixed VHDX.
    pub const VHDX_FIXED: Self = Self::new(Format::Vhdx, Variant::Fixed);
    /// Dynamic VDI with blocks of 1 MiB.
    pub const VDI: Self = Self::new(Format::Vdi, Variant::Plain);
    /// Fixed VDI.
    pub const VDI_FIXED: Self = Self::new(Format::Vdi, Variant::Fixed);
    /// Every target there is, beside the profiles.
    pub const ALL: [Self; 18] = [
        Self::QCOW2,
        Self::QCOW2_V2,
        Self::QCOW2_ZLIB,
        Self::QCOW2_ZLIB_4K,
        Self::QCOW2_ZSTD,
        Self::RAW,
        Self::RAW_GZ,
        Self::RAW_ZST,
        Self::RAW_TAR_GZ,
        Self::VMDK,
        Self::VMDK_STREAM,
        Self::OVA,
        Self::VHD,
        Self::VHD_FIXED,
        Self::VHDX,
        Self::VHDX_FIXED,
        Self::VDI,
        Self::VDI_FIXED,
    ];

    const fn new(format: Format, variant: Variant) -> Self {
        Self {
            format,
            variant,
            profile: None,
        }
    }

    /// What a cloud or hypervisor takes; written `profile=azure`.
    pub const fn of_profile(profile: Profile) -> Self {
        Self {
            profile: Some(profile),
            ..profile.target()
        }
    }

    /// What is made, whoever it is made for.
    pub(crate) const fn made(self) -> Self {
        Self { profile: None, ..self }
    }

    /// What the size of the disk is rounded up to, in bytes.
    pub(crate) const fn alignment(self) -> u64 {
        match self.profile {
            Some(profile) => profile.alignment(),
            None => 1,
        }
    }

    /// The format of the disk image that is made, inside of its envelope if it has one.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The format of the file that is made: of its envelope, if it has one.
    pub const fn file_format(&self) -> Format {
        match self.variant {
            Variant::Gz | Variant::TarGz => Format::Gzip,
            Variant::Ova => Format::Tar,
            Variant::Zst => Format::Zstd,
            _ => self.format,
        }
    }

    /// Whether all of the disk has a place in the file, though zeros need not be stored.
    pub const fn is_fixed(&self) -> bool {
        matches!(self.variant, Variant::Fixed)
    }

    /// Whether it has to be [encoded](crate::encode()), because its bytes are not those of the source; else it can be
    /// [planned](crate::plan()).
    pub const fn is_encoded(&self) -> bool {
        matches!(
            self.variant,
            Variant::Zlib
                | Variant::Zlib4k
                | Variant::Zstd
                | Variant::Stream
                | Variant::Gz
                | Variant::Zst
                | Variant::TarGz
                | Variant::Ova
        )
    }

    /// Refuses to make of a disk of `virtual_size` bytes a file that could not be opened again within `limits`: a compressed
    /// envelope that spells out more than [`expanded_bytes_max`](Limits::expanded_bytes_max).
    ///
    /// # Errors
    ///
    /// [`TooLarge`](ErrorKind::TooLarge), with both sizes.
    pub fn check(&self, virtual_size: u64, limits: &Limits) -> Result<(), Error> {
        let disk = virtual_size.checked_next_multiple_of(self.alignment());
        let disk = disk.unwrap_or(u64::MAX);
        let expanded = match self.variant {
            Variant::Gz | Variant::Zst => disk,
            Variant::TarGz => archived_len(disk),
            _ => return Ok(()),
        };
        let max = limits.expanded_bytes_max;
        if expanded <= max {
            return Ok(());
        }
        let reason = format!(
            "{self} spells out all of a disk of {virtual_size} bytes, and {max} are the most that are accepted out of an envelope \
             here (image-expanded-max)"
        );
        Err(Error::new(ErrorKind::TooLarge, reason).with_format(self.file_format()))
    }

    /// Whether the file can be written from its first byte to its last, as a pipe asks for.
    pub const fn is_streamed(&self) -> bool {
        match self.format {
            Format::Raw => true,
            _ => matches!(self.variant, Variant::Stream),
        }
    }

    /// What stands in the place of the source's file name extension, without the leading dot.
    ///
    /// A variant comes before the format (`fixed.vhd`), so that the variants of a format have names beside each other. What is
    /// in an envelope is called as everybody does: `raw.gz` is what `gunzip` turns into `raw`.
    pub const fn extension(&self) -> &'static str {
        if let Some(profile) = self.profile {
            return profile.extension();
        }
        match (self.format, self.variant) {
            (Format::Vhd, Variant::Fixed) => "fixed.vhd",
            (Format::Vhdx, Variant::Fixed) => "fixed.vhdx",
            (Format::Vdi, Variant::Fixed) => "fixed.vdi",
            (Format::Qcow2, Variant::Version2) => "v2.qcow2",
            (Format::Qcow2, Variant::Zlib) => "zlib.qcow2",
            (Format::Qcow2, Variant::Zlib4k) => "zlib-4k.qcow2",
            (Format::Qcow2, Variant::Zstd) => "zstd.qcow2",
            (Format::Vmdk, Variant::Stream) => "stream.vmdk",
            (Format::Raw, Variant::Gz) => "raw.gz",
            (Format::Raw, Variant::Zst) => "raw.zst",
            (Format::Raw, Variant::TarGz) => "tar.gz",
            (Format::Vmdk, Variant::Ova) => "ova",
            (format, _) => format.extension(),
        }
    }

    fn supported() -> String {
        let profiles = Profile::ALL.map(Self::of_profile);
        let all = Self::ALL.into_iter().chain(profiles);
        all.map(|target| target.to_string()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(profile) = self.profile {
            return f.pad(&format!("{PROFILE}{}", profile.name()));
        }
        match self.variant {
            Variant::Plain => self.format.fmt(f),
            Variant::Ova => f.pad(Variant::Ova.name()),
            variant => f.pad(&format!("{}:{}", self.format, variant.name())),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(target) = Self::ALL.into_iter().find(|target| target.to_string() == text) {
            return Ok(target);
        }
        if let Some(name) = text.strip_prefix(PROFILE) {
            let profile = Profile::ALL.into_iter().find(|profile| profile.name() == name);
            return profile.map(Self::of_profile).ok_or_else(|| {
                let names = Profile::ALL.map(Profile::name).join(", ");
                Error::unsupported(format!(
                    "{} is not a profile; there are {names}",
                    quote(name.as_bytes())
                ))
            });
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

    #[test]
    fn every_target_parses_back_and_has_a_name_of_its_own() {
        let profiles = Profile::ALL.map(Target::of_profile);
        let all: Vec<_> = Target::ALL.into_iter().chain(profiles).collect();
        for (index, target) in all.iter().enumerate() {
            assert_eq!(target.to_string().parse::<Target>().ok(), Some(*target));
            let others = &all[..index];
            assert!(others.iter().all(|other| other.extension() != target.extension()));
            let last = |target: &Target| target.extension().rsplit('.').next();
            assert_eq!(last(target), last(&target.made()), "{target}");
        }
        assert_eq!(Target::VHD_FIXED.to_string(), "vhd:fixed");
        assert_eq!(format!("{:>10}", Target::VHD_FIXED), " vhd:fixed");
        assert_eq!(Target::OVA.to_string(), "ova");
        assert_eq!("profile=gcp".parse::<Target>().unwrap().alignment(), 1 << 30);
        let error = "profile=moon".parse::<Target>().unwrap_err();
        assert!(
            error
                .reason()
                .starts_with("\"moon\" is not a profile; there are aws, azure, "),
            "{error}"
        );
    }

    #[test]
    fn what_could_not_be_opened_again_is_not_made() {
        let limits = Limits {
            expanded_bytes_max: 10 << 30,
            ..Limits::DEFAULT
        };
        let spelled_out = [Target::RAW_GZ, Target::RAW_ZST, Target::RAW_TAR_GZ];
        for target in Target::ALL {
            let is_bounded = spelled_out.contains(&target);
            assert_eq!(target.check((10 << 30) + 1, &limits).is_err(), is_bounded, "{target}");
            target.check((10 << 30) - 1536, &limits).unwrap();
        }
        // An archive has a header and an end beside the disk.
        Target::RAW_ZST.check(10 << 30, &limits).unwrap();
        Target::RAW_TAR_GZ.check((10 << 30) - 1535, &limits).unwrap_err();
        let gcp: Target = "profile=gcp".parse().unwrap();
        gcp.check((9 << 30) - 1, &limits).unwrap();
        let error = gcp.check((9 << 30) + 1, &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(
            error.to_string(),
            "gzip: too large: profile=gcp spells out all of a disk of 9663676417 bytes, and 10737418240 are the most that are accepted \
             out of an envelope here (image-expanded-max)"
        );
        Target::RAW_GZ.check(u64::MAX, &limits).unwrap_err();
    }

    #[test]
    fn others_are_refused_with_a_list_of_what_is_supported() {
        for (text, what) in [
            ("qcow2:lz4", "variant of a target format"),
            ("raw:xz", "variant of a target format"),
            ("qcow2:", "variant of a target format"),
            ("qcow2:fixed", "variant of a target format"),
            ("vhd:dynamic", "variant of a target format"),
            ("vmdk:zlib", "variant of a target format"),
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
