//! The descriptor: text that says of which files a disk is made.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=53e70c43
//! parentCID=ffffffff
//! createType="twoGbMaxExtentSparse"
//!
//! # Extent description
//! RW 4194304 SPARSE "disk-s001.vmdk"
//! RW 2048 ZERO
//!
//! # The Disk Data Base
//! ddb.adapterType = "ide"
//! ```
//!
//! A line of an extent has its access, its size in sectors, its type, and but for `ZERO` a name; behind that of a `FLAT` one is
//! the sector of the file where it starts. A name must be no path. In a disk of one file it is that of the file when it was
//! made, and is not looked at any further. The disk data base is for virtual machines. Any other line may change what the disk
//! is and is refused.
//!
//! Format: "Virtual Disk Format", "The Descriptor File".

use nom::bytes::complete::{tag, take_till, take_while1};
use nom::character::complete::{char, space1, u64 as number};
use nom::combinator::{all_consuming, opt};
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};

use super::SECTOR_SIZE;
use crate::safety::{self, quote};
use crate::{Error, ErrorKind};

/// The parent content identifier of a disk without one.
const NO_PARENT: &str = "ffffffff";
/// Keys with nothing that a reader needs.
const KEYS_IGNORED: [&str; 3] = ["encoding", "cid", "isnativesnapshot"];
/// Keys that name another file.
const KEYS_OF_REFERENCES: [&str; 2] = ["parentfilenamehint", "changetrackpath"];
/// Most extents of a disk: as many as an archive may have files. In extents of 2 GiB, which is what everybody makes, that is a
/// disk of 2 TB.
const EXTENT_COUNT_MAX: usize = 1000;

/// How a disk is cut into files, and how these are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CreateType {
    MonolithicSparse,
    StreamOptimized,
    MonolithicFlat,
    TwoGbMaxExtentFlat,
    TwoGbMaxExtentSparse,
}

impl CreateType {
    const ALL: [Self; 5] = [
        Self::MonolithicSparse,
        Self::StreamOptimized,
        Self::MonolithicFlat,
        Self::TwoGbMaxExtentFlat,
        Self::TwoGbMaxExtentSparse,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
        }
    }

    /// Whether the descriptor is in the one file that there is.
    pub(super) const fn is_one_file(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }

    /// Whether a disk of it may have an extent like that.
    const fn has(self, content: &Content) -> bool {
        match self {
            Self::MonolithicSparse | Self::StreamOptimized => matches!(content, Content::Sparse { .. }),
            Self::MonolithicFlat => matches!(content, Content::Flat { .. }),
            Self::TwoGbMaxExtentFlat => matches!(content, Content::Flat { .. } | Content::Zero),
            Self::TwoGbMaxExtentSparse => matches!(content, Content::Sparse { .. } | Content::Zero),
        }
    }

    const fn has_one_extent(self) -> bool {
        self.is_one_file() || matches!(self, Self::MonolithicFlat)
    }
}

/// What a descriptor says about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) create_type: CreateType,
    /// Where the line of the create type starts.
    pub(super) create_type_place: u64,
    /// What the disk is made of, from its first sector to its last. There is at least one.
    pub(super) extents: Vec<Extent>,
}

/// A stretch of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: u64,
    pub(super) content: Content,
    /// Where its line starts.
    pub(super) place: u64,
}

/// What an extent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Zero,
    /// Sectors of the file `name`, from `sector` on.
    Flat {
        name: String,
        sector: u64,
    },
    /// The grains of the file `name`.
    Sparse {
        name: String,
    },
}

impl Content {
    const fn type_name(&self) -> &'static str {
        match self {
            Self::Zero => "ZERO",
            Self::Flat { .. } => "FLAT",
            Self::Sparse { .. } => "SPARSE",
        }
    }
}

impl Extent {
    /// What to call it in a reason.
    pub(super) fn shown(&self) -> String {
        match &self.content {
            Content::Zero => "of zeros".to_owned(),
            Content::Flat { name, .. } | Content::Sparse { name } => quote(name.as_bytes()),
        }
    }

    /// In bytes. The sum over a disk has been checked.
    pub(super) fn len(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR_SIZE)
    }
}

/// What has been found on the way.
#[derive(Default)]
struct Found {
    version: bool,
    /// With the place of its line.
    create_type: Option<(CreateType, u64)>,
    extents: Vec<Extent>,
    sectors: u64,
}

impl Descriptor {
    /// Parses the text up to the first zero byte. Places in errors, and in what is found, count from its start.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        if text.is_empty() {
            let reason = "the descriptor is empty: the file is an extent of a disk of several files";
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(0));
        }
        let mut found = Found::default();
        let mut place = 0;
        for line in text.split(|byte| *byte == b'\n') {
            found.take(line.trim_ascii(), place).map_err(|error| error.at(place))?;
            place = place.saturating_add(line.len() as u64).saturating_add(1);
        }
        let missing = |what: &str| Error::corrupt(format!("the descriptor has no {what}")).at(0);
        if !found.version {
            return Err(missing("version"));
        }
        let (create_type, create_type_place) = found.create_type.ok_or_else(|| missing("createType"))?;
        if found.extents.is_empty() {
            return Err(missing("extent"));
        }
        let descriptor = Self {
            create_type,
            create_type_place,
            extents: found.extents,
        };
        descriptor.check_extents()?;
        Ok(descriptor)
    }

    /// The descriptor of a disk that is in the file of its only extent.
    pub(super) fn of_one_file(bytes: &[u8]) -> Result<Self, Error> {
        let descriptor = Self::parse(bytes)?;
        if descriptor.create_type.is_one_file() {
            return Ok(descriptor);
        }
        let name = descriptor.create_type.name();
        let reason = format!("create type \"{name}\", only monolithicSparse and streamOptimized are of one file");
        Err(Error::unsupported(reason).at(descriptor.create_type_place))
    }

    /// The descriptor that is a file of its own, beside the extents.
    pub(super) fn of_files(bytes: &[u8]) -> Result<Self, Error> {
        let descriptor = Self::parse(bytes)?;
        if !descriptor.create_type.is_one_file() {
            return Ok(descriptor);
        }
        let name = descriptor.create_type.name();
        let reason = format!("create type \"{name}\", whose descriptor is in its only file, in a file of its own");
        Err(Error::corrupt(reason).at(descriptor.create_type_place))
    }

    /// The size of the guest's disk in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.sectors))
    }

    fn check_extents(&self) -> Result<(), Error> {
        if let Some(wrong) = self
            .extents
            .iter()
            .find(|extent| !self.create_type.has(&extent.content))
        {
            let reason = format!(
                "the extent {} is of the type \"{}\", which is none for the create type \"{}\"",
                wrong.shown(),
                wrong.content.type_name(),
                self.create_type.name()
            );
            return Err(Error::corrupt(reason).at(wrong.place));
        }
        if let (true, Some(second)) = (self.create_type.has_one_extent(), self.extents.get(1)) {
            let reason = format!("the disk has a second extent {}", second.shown());
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(second.place));
        }
        Ok(())
    }
}

impl Found {
    fn take(&mut self, line: &[u8], place: u64) -> Result<(), Error> {
        let unknown = || Error::unsupported(format!("unknown descriptor line {}", quote(line)));
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        if let Ok((_, parts)) = all_consuming(extent_line).parse(line) {
            let content = parts.content()?.ok_or_else(unknown)?;
            let sectors = parts.sectors;
            return self.take_extent(Extent {
                sectors,
                content,
                place,
            });
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
            "createtype" => self.take_create_type(value, place)?,
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

    fn take_create_type(&mut self, value: &str, place: u64) -> Result<(), Error> {
        let known = CreateType::ALL.into_iter().find(|known| known.name() == value);
        let Some(create_type) = known else {
            let known = CreateType::ALL.map(CreateType::name).join(", ");
            let value = quote(value.as_bytes());
            return Err(Error::unsupported(format!(
                "create type {value}, only {known} can be read"
            )));
        };
        match self.create_type.replace((create_type, place)) {
            Some((before, _)) if before != create_type => Err(Error::corrupt(format!(
                "create type \"{value}\" behind create type \"{}\"",
                before.name()
            ))),
            _ => Ok(()),
        }
    }

    fn take_extent(&mut self, extent: Extent) -> Result<(), Error> {
        if extent.sectors == 0 {
            return Err(Error::corrupt(format!("the extent {} is empty", extent.shown())));
        }
        if self.extents.len() == EXTENT_COUNT_MAX {
            let reason = format!("the disk has more than {EXTENT_COUNT_MAX} extents");
            return Err(Error::new(ErrorKind::TooLarge, reason));
        }
        self.sectors = self.sectors.saturating_add(extent.sectors);
        safety::virtual_size(self.sectors.saturating_mul(SECTOR_SIZE))?;
        self.extents.push(extent);
        Ok(())
    }
}

/// A line such as `RW 20480 SPARSE "disk.vmdk"`.
struct Line<'a> {
    access: &'a [u8],
    sectors: u64,
    kind: &'a [u8],
    name: Option<&'a [u8]>,
    sector: Option<u64>,
}

impl Line<'_> {
    /// What the extent holds; `None` if the line has more or less than its type needs.
    fn content(&self) -> Result<Option<Content>, Error> {
        let shown = self.name.map_or_else(|| "without a name".to_owned(), quote);
        let is_path = |name: &[u8]| name.iter().any(|byte| matches!(byte, b'/' | b'\\' | b':'));
        if self.name.is_some_and(is_path) {
            let reason = format!("the extent {shown} is a path");
            return Err(Error::new(ErrorKind::ReferenceDenied, reason));
        }
        if self.access != b"RW" && self.access != b"RDONLY" {
            let reason = format!("the extent {shown} has the access {}", quote(self.access));
            return Err(Error::unsupported(reason));
        }
        // Names of an archive are compared in the same way, and may not be alike.
        let name = self.name.map(|name| String::from_utf8_lossy(name).into_owned());
        match (self.kind, name, self.sector) {
            (b"SPARSE", Some(name), None) => Ok(Some(Content::Sparse { name })),
            (b"FLAT", Some(name), Some(sector)) => Ok(Some(Content::Flat { name, sector })),
            (b"ZERO", None, None) => Ok(Some(Content::Zero)),
            (b"FLAT", Some(_), None) => {
                let reason = format!("the extent {shown} is of the type \"FLAT\", but has no offset");
                Err(Error::corrupt(reason))
            }
            (b"SPARSE" | b"FLAT" | b"ZERO", ..) => Ok(None),
            (other, ..) => {
                let other = quote(other);
                let reason = format!(
                    "the extent {shown} is of the type {other}, only \"SPARSE\", \"FLAT\" and \"ZERO\" are known"
                );
                Err(Error::unsupported(reason))
            }
        }
    }
}

fn extent_line(line: &[u8]) -> IResult<&[u8], Line<'_>> {
    let word = || take_while1(|byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let name = delimited(char('"'), take_till(|byte| byte == b'"'), char('"'));
    let (rest, (access, _, sectors, _, kind)) = (word(), space1, number, space1, word()).parse(line)?;
    let (rest, name) = opt(preceded(space1, name)).parse(rest)?;
    let (rest, sector) = opt(preceded(space1, number)).parse(rest)?;
    let line = Line {
        access,
        sectors,
        kind,
        name,
        sector,
    };
    Ok((rest, line))
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
        Descriptor::of_one_file(format!("{text}{line}\n\0\0garbage").as_bytes())
    }

    /// A disk of several files, with these extents.
    fn of_files(create_type: &str, extents: &[&str]) -> Result<Descriptor, Error> {
        let lines = extents.join("\n");
        let text = format!("# Disk DescriptorFile\nversion=1\ncreateType=\"{create_type}\"\n{lines}");
        Descriptor::of_files(text.as_bytes())
    }

    #[test]
    fn our_own_descriptor_is_read_back() {
        for line in [
            "",
            "# a comment",
            "encoding=\"windows-1252\"\r",
            "isNativeSnapshot=\"no\"",
            "ddb.uuid = \"60 00 C2 9e\"",
            "PARENTCID=FFFFFFFF",
            "createType = \"monolithicSparse\"",
        ] {
            let descriptor = with(line).unwrap();
            assert_eq!(descriptor.create_type, CreateType::MonolithicSparse, "{line}");
            assert_eq!(descriptor.sectors(), 20_480, "{line}");
        }
    }

    /// Adds a line to a good descriptor.
    fn is_refused(line: &str, kind: ErrorKind, reason: &str) {
        let error = with(line).expect_err(line);
        assert_eq!((error.kind(), error.reason()), (kind, reason));
        let place = render(CreateType::MonolithicSparse, 20_480, 0).len() as u64;
        assert_eq!(error.offset(), Some(place));
    }

    #[test]
    fn lines_that_are_not_understood_are_refused() {
        use ErrorKind::{Corrupt, ReferenceDenied, Unsupported};
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
                "create type \"vmfs\", only monolithicSparse, streamOptimized, monolithicFlat, twoGbMaxExtentFlat, \
                 twoGbMaxExtentSparse can be read",
            ),
            (
                "createType=\"streamOptimized\"",
                Corrupt,
                "create type \"streamOptimized\" behind create type \"monolithicSparse\"",
            ),
            ("digest=1", Unsupported, "unknown descriptor line \"digest=1\""),
            ("nonsense", Unsupported, "unknown descriptor line \"nonsense\""),
            ("=", Unsupported, "unknown descriptor line \"=\""),
        ] {
            is_refused(line, kind, reason);
        }
    }

    #[test]
    fn extents_that_are_not_the_one_file_are_refused() {
        use ErrorKind::{Corrupt, ReferenceDenied, Unsupported};
        for (line, kind, reason) in [
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
                "the extent \"b.vmdk\" is of the type \"SESPARSE\", only \"SPARSE\", \"FLAT\" and \"ZERO\" are known",
            ),
            (
                "NOACCESS 10 SPARSE \"b.vmdk\"",
                Unsupported,
                "the extent \"b.vmdk\" has the access \"NOACCESS\"",
            ),
            (
                "RW 10 FLAT \"b.vmdk\" 0",
                Corrupt,
                "the extent \"b.vmdk\" is of the type \"FLAT\", which is none for the create type \"monolithicSparse\"",
            ),
            (
                "RW 10 SPARSE \"b.vmdk\" 0",
                Unsupported,
                "unknown descriptor line \"RW 10 SPARSE \\\"b.vmdk\\\" 0\"",
            ),
            ("RW 0 SPARSE \"b.vmdk\"", Corrupt, "the extent \"b.vmdk\" is empty"),
        ] {
            is_refused(line, kind, reason);
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
    #[test]
    fn extents_of_several_files_are_in_order() {
        let lines = ["RW 10 FLAT \"a\" 0", "RDONLY 5 ZERO", "RW 7 FLAT \"b c.vmdk\" 128"];
        let descriptor = of_files("twoGbMaxExtentFlat", &lines).unwrap();
        let flat = |name: &str, sector| Content::Flat {
            name: name.to_owned(),
            sector,
        };
        let contents: Vec<_> = descriptor.extents.iter().map(|extent| &extent.content).collect();
        assert_eq!(contents, [&flat("a", 0), &Content::Zero, &flat("b c.vmdk", 128)]);
        assert_eq!(descriptor.sectors(), 22);
        let places: Vec<_> = descriptor.extents.iter().map(|extent| extent.place).collect();
        assert_eq!(places, [64, 81, 95]);
    }

    #[test]
    fn extents_that_do_not_fit_are_refused() {
        let many = vec!["RW 1 ZERO"; EXTENT_COUNT_MAX];
        assert!(of_files("twoGbMaxExtentSparse", &many).is_ok());
        let too_many = vec!["RW 1 ZERO"; EXTENT_COUNT_MAX + 1];
        let (flat, sparse) = ("RW 8 FLAT \"a\" 0", "RW 8 SPARSE \"b\"");
        let large = "RW 137438953472 ZERO";
        let cases: [(&str, &[&str], &str); 12] = [
            (
                "monolithicFlat",
                &[sparse],
                "the extent \"b\" is of the type \"SPARSE\", which is none",
            ),
            (
                "monolithicFlat",
                &["RW 8 ZERO"],
                "the extent of zeros is of the type \"ZERO\", which is none",
            ),
            ("monolithicFlat", &[flat, flat], "the disk has a second extent \"a\""),
            (
                "twoGbMaxExtentFlat",
                &[flat, sparse],
                "is of the type \"SPARSE\", which is none",
            ),
            (
                "twoGbMaxExtentSparse",
                &[sparse, flat],
                "is of the type \"FLAT\", which is none",
            ),
            (
                "monolithicSparse",
                &[sparse],
                "create type \"monolithicSparse\", whose descriptor",
            ),
            ("custom", &[flat], "create type \"custom\", only"),
            ("twoGbMaxExtentSparse", &too_many, "the disk has more than 1000 extents"),
            (
                "twoGbMaxExtentSparse",
                &[large, "RW 1 ZERO"],
                "virtual size 70368744178176 is more than",
            ),
            (
                "twoGbMaxExtentSparse",
                &[large, "RW 18446744073709551615 ZERO"],
                "virtual size",
            ),
            ("twoGbMaxExtentFlat", &["RW 8 FLAT \"a\" -1"], "unknown descriptor line"),
            ("twoGbMaxExtentFlat", &["RW 8 ZERO \"a\""], "unknown descriptor line"),
        ];
        for (create_type, extents, reason) in cases {
            let error = of_files(create_type, extents).expect_err(reason);
            assert!(error.reason().contains(reason), "{error}");
            assert!(error.offset().is_some_and(|offset| offset > 0), "{error}");
        }
    }
}
