//! The descriptor: text that says of which files a disk is made.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=53e70c43
//! parentCID=ffffffff
//! createType="monolithicSparse"
//!
//! # Extent description
//! RW 20480 SPARSE "disk.vmdk"
//!
//! # The Disk Data Base
//! ddb.adapterType = "ide"
//! ```
//!
//! The name of the extent is that of the file when it was made, and is not looked at any further, as long as it is no path.
//! The disk data base is for virtual machines. Any other line may change what the disk is and is refused.
//!
//! Format: "Virtual Disk Format", "The Descriptor File".

use nom::bytes::complete::{tag, take_till, take_while1};
use nom::character::complete::{char, space1, u64 as number};
use nom::combinator::all_consuming;
use nom::sequence::delimited;
use nom::{IResult, Parser};

use crate::safety::quote;
use crate::{Error, ErrorKind};

/// The parent content identifier of a disk without one.
const NO_PARENT: &str = "ffffffff";
/// Keys with nothing that a reader needs.
const KEYS_IGNORED: [&str; 3] = ["encoding", "cid", "isnativesnapshot"];
/// Keys that name another file.
const KEYS_OF_REFERENCES: [&str; 2] = ["parentfilenamehint", "changetrackpath"];

/// How the one file of a disk is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CreateType {
    MonolithicSparse,
    StreamOptimized,
}

impl CreateType {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

/// What a descriptor says about a disk of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) create_type: CreateType,
    /// The size of the extent.
    pub(super) sectors: u64,
}

/// What has been found on the way.
#[derive(Default)]
struct Found {
    version: bool,
    create_type: Option<CreateType>,
    sectors: Option<u64>,
}

impl Descriptor {
    /// Parses the text up to the first zero byte. Places in errors count from its start.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        if text.is_empty() {
            let reason = "the descriptor is empty: the file is an extent of a disk of several files";
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(0));
        }
        let mut found = Found::default();
        let mut place = 0;
        for line in text.split(|byte| *byte == b'\n') {
            found.take(line.trim_ascii()).map_err(|error| error.at(place))?;
            place = place.saturating_add(line.len() as u64).saturating_add(1);
        }
        let missing = |what: &str| Error::corrupt(format!("the descriptor has no {what}")).at(0);
        if !found.version {
            return Err(missing("version"));
        }
        Ok(Self {
            create_type: found.create_type.ok_or_else(|| missing("createType"))?,
            sectors: found.sectors.ok_or_else(|| missing("extent"))?,
        })
    }
}

impl Found {
    fn take(&mut self, line: &[u8]) -> Result<(), Error> {
        let unknown = || Error::unsupported(format!("unknown descriptor line {}", quote(line)));
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        if let Ok((_, extent)) = all_consuming(extent).parse(line) {
            return self.take_extent(&extent);
        }
        let (value, key) = key(line).map_err(|_| unknown())?;
        let key = key.to_ascii_lowercase();
        let key = str::from_utf8(&key).map_err(|_| unknown())?;
        let value = str::from_utf8(value).map_err(|_| unknown())?.trim().trim_matches('"');
        match key {
            "version" if value == "1" => self.version = true,
            "version" => {
                let reason = format!("descriptor version {}, only 1 is known", quote(value.as_bytes()));
                return Err(Error::unsupported(reason));
            }
            "createtype" => self.create_type = Some(create_type(value)?),
            "parentcid" if value.eq_ignore_ascii_case(NO_PARENT) => {}
            "parentcid" => {
                let reason = format!(
                    "the disk needs its parent, with the content {}",
                    quote(value.as_bytes())
                );
                return Err(Error::new(ErrorKind::ReferenceDenied, reason));
            }
            key if KEYS_OF_REFERENCES.contains(&key) => {
                let reason = format!("the disk refers to another file by {}", quote(line));
                return Err(Error::new(ErrorKind::ReferenceDenied, reason));
            }
            key if KEYS_IGNORED.contains(&key) || key.starts_with("ddb.") => {}
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn take_extent(&mut self, extent: &Extent<'_>) -> Result<(), Error> {
        let name = quote(extent.name);
        if extent.name.iter().any(|byte| matches!(byte, b'/' | b'\\' | b':')) {
            let reason = format!("the extent {name} is a path");
            return Err(Error::new(ErrorKind::ReferenceDenied, reason));
        }
        if extent.access != b"RW" && extent.access != b"RDONLY" {
            let reason = format!("the extent {name} has the access {}", quote(extent.access));
            return Err(Error::unsupported(reason));
        }
        if extent.kind != b"SPARSE" {
            let reason = format!(
                "the extent {name} is of the type {}, only \"SPARSE\" is known",
                quote(extent.kind)
            );
            return Err(Error::unsupported(reason));
        }
        if self.sectors.replace(extent.sectors).is_some() {
            let reason = format!("the disk has a second extent {name}");
            return Err(Error::new(ErrorKind::ReferenceDenied, reason));
        }
        Ok(())
    }
}

fn create_type(value: &str) -> Result<CreateType, Error> {
    let known = [CreateType::MonolithicSparse, CreateType::StreamOptimized];
    known.into_iter().find(|known| known.name() == value).ok_or_else(|| {
        Error::unsupported(format!(
            "create type {}, only monolithicSparse and streamOptimized can be read",
            quote(value.as_bytes())
        ))
    })
}

/// A line such as `RW 20480 SPARSE "disk.vmdk"`.
struct Extent<'a> {
    access: &'a [u8],
    sectors: u64,
    kind: &'a [u8],
    name: &'a [u8],
}

fn extent(line: &[u8]) -> IResult<&[u8], Extent<'_>> {
    let word = || take_while1(|byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let (rest, (access, _, sectors, _, kind, _)) = (word(), space1, number, space1, word(), space1).parse(line)?;
    let (rest, name) = delimited(char('"'), take_till(|byte| byte == b'"'), char('"')).parse(rest)?;
    let extent = Extent {
        access,
        sectors,
        kind,
        name,
    };
    Ok((rest, extent))
}

/// The key of a line such as `version=1`, and the rest after the equals sign.
fn key(line: &[u8]) -> IResult<&[u8], &[u8]> {
    let (rest, key) =
        take_while1(|byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')).parse(line)?;
    let (rest, _) = (take_till(|byte: u8| !byte.is_ascii_whitespace()), tag(&b"="[..])).parse(rest)?;
    Ok((rest, key))
}

/// The text for a new file of one extent.
pub(super) fn render(create_type: CreateType, sectors: u64, content_id: u32) -> String {
    // The geometry of an IDE disk, as every guest understands it; larger disks have the largest.
    let (heads, track_sectors) = (16_u64, 63_u64);
    let cylinders = sectors
        .checked_div(heads.saturating_mul(track_sectors))
        .unwrap_or_default()
        .min(16383);
    format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         CID={content_id:08x}\n\
         parentCID={NO_PARENT}\n\
         createType=\"{}\"\n\
         \n\
         # Extent description\n\
         RW {sectors} SPARSE \"disk.vmdk\"\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{track_sectors}\"\n\
         ddb.adapterType = \"ide\"\n",
        create_type.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(line: &str) -> Result<Descriptor, Error> {
        let text = render(CreateType::MonolithicSparse, 20_480, 0x1234_5678);
        Descriptor::parse(format!("{text}{line}\n\0\0garbage").as_bytes())
    }

    #[test]
    fn our_own_descriptor_is_read_back() {
        let expected = Descriptor {
            create_type: CreateType::MonolithicSparse,
            sectors: 20_480,
        };
        for line in [
            "",
            "# a comment",
            "encoding=\"windows-1252\"\r",
            "isNativeSnapshot=\"no\"",
            "ddb.uuid = \"60 00 C2 9e\"",
            "PARENTCID=FFFFFFFF",
            "createType = \"monolithicSparse\"",
        ] {
            assert_eq!(with(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn lines_that_are_not_understood_are_refused() {
        use ErrorKind::{ReferenceDenied, Unsupported};
        for (line, kind, reason) in [
            ("version=2", Unsupported, "descriptor version \"2\", only 1 is known"),
            (
                "parentCID=12345678",
                ReferenceDenied,
                "the disk needs its parent, with the content \"12345678\"",
            ),
            (
                "parentFileNameHint=\"/base.vmdk\"",
                ReferenceDenied,
                "the disk refers to another file by \"parentFileNameHint=\\\"/base.vmdk\\\"\"",
            ),
            (
                "changeTrackPath=\"a.ctk\"",
                ReferenceDenied,
                "the disk refers to another file by \"changeTrackPath=\\\"a.ctk\\\"\"",
            ),
            (
                "createType=\"vmfs\"",
                Unsupported,
                "create type \"vmfs\", only monolithicSparse and streamOptimized can be read",
            ),
            (
                "RW 10 SPARSE \"/dev/sda\"",
                ReferenceDenied,
                "the extent \"/dev/sda\" is a path",
            ),
            (
                "RW 10 SPARSE \"..\\x.vmdk\"",
                ReferenceDenied,
                "the extent \"..\\\\x.vmdk\" is a path",
            ),
            (
                "RW 10 SPARSE \"b.vmdk\"",
                ReferenceDenied,
                "the disk has a second extent \"b.vmdk\"",
            ),
            (
                "RW 10 SESPARSE \"b.vmdk\"",
                Unsupported,
                "the extent \"b.vmdk\" is of the type \"SESPARSE\", only \"SPARSE\" is known",
            ),
            (
                "NOACCESS 10 SPARSE \"b.vmdk\"",
                Unsupported,
                "the extent \"b.vmdk\" has the access \"NOACCESS\"",
            ),
            (
                "RW 10 FLAT \"b.vmdk\" 0",
                Unsupported,
                "unknown descriptor line \"RW 10 FLAT \\\"b.vmdk\\\" 0\"",
            ),
            ("digest=1", Unsupported, "unknown descriptor line \"digest=1\""),
            ("nonsense", Unsupported, "unknown descriptor line \"nonsense\""),
            ("=", Unsupported, "unknown descriptor line \"=\""),
        ] {
            let error = with(line).expect_err(line);
            assert_eq!((error.kind(), error.reason()), (kind, reason));
            assert_eq!(
                error.offset(),
                Some(render(CreateType::MonolithicSparse, 20_480, 0).len() as u64)
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = render(CreateType::MonolithicSparse, 1, 2);
        for (without, reason) in [
            ("version", "the descriptor has no version"),
            ("createType", "the descriptor has no createType"),
            ("RW", "the descriptor has no extent"),
        ] {
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(without)).collect();
            let error = Descriptor::parse(lines.join("\n").as_bytes()).unwrap_err();
            assert_eq!(error.reason(), reason);
        }
    }
}
