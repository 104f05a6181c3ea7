//! Everything that can be said about an image without converting it.

use serde::Serialize;

use crate::disk::{self, Disk};
use crate::limits::LookLimits;
use crate::map::open_any;
use crate::plan::Totals;
use crate::probe::probe_strictly;
use crate::qcow2::header::{
    COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTERNAL_DATA,
};
use crate::qcow2::preamble::{BackingFile, Preamble};
use crate::safety::{self, Region, quote};
use crate::signature::HEAD_LEN;
use crate::{
    Codec, Error, ErrorKind, Evidence, Format, Guest, Image, Limits, Probe, ReadAt, Signature, envelope, probe,
};

/// What is known of an image.
///
/// A broken or refused image has an inspection too: as much as could be read of it, and the [`refusal`](Self::refusal).
///
/// Names and labels are those of the image, cut to 128 bytes, and may hold any character: whoever shows them passes them through
/// [`printable`](crate::printable). Warnings and reasons are fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The format.
    pub format: Format,
    /// Why it is taken to be that.
    pub evidence: Evidence,
    /// Which flavour of the format it is, in the words of the format, if there are several and the image could be opened.
    pub variant: Option<&'static str>,
    /// The size of the image file in bytes.
    pub file_size: u64,
    /// The size of the guest's disk in bytes, if the header could be read.
    pub virtual_size: Option<u64>,
    /// How many bytes of the disk are not known to be zeros, if the tables could be read.
    pub allocated_size: Option<u64>,
    /// The size of the clusters, grains or blocks that the disk is cut into, in bytes, if it is and the image could be opened.
    pub block_size: Option<u64>,
    /// Partition tables and file systems at the start of the disk, the most telling first.
    pub contents: Vec<Signature>,
    /// What is on the disk, if the image could be opened.
    pub disk: Option<Disk>,
    /// What only a qcow2 image has.
    pub qcow2: Option<Qcow2Details>,
    /// What a conversion leaves behind, or what an operator should look at; a clause each.
    pub warnings: Vec<String>,
    /// Why the image cannot be converted, if it cannot.
    pub refusal: Option<Refusal>,
}

/// Why an image cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The sort of reason.
    pub kind: ErrorKind,
    /// The whole of the error in words.
    pub reason: String,
}

impl Refusal {
    fn of(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            reason: error.to_string(),
        }
    }
}

/// What the header of a qcow2 image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "they are independent flags of the format")]
pub struct Qcow2Details {
    /// 2 or 3.
    pub version: u32,
    /// The version as `qemu-img` calls it: `0.10` or `1.1`.
    pub compat: &'static str,
    /// In bytes.
    pub cluster_size: u64,
    /// How compressed clusters are compressed, if there are any; unknown types have none.
    pub compression_type: Option<Codec>,
    /// How many bytes of the disk are in compressed clusters, if the tables could be read.
    pub compressed_size: Option<u64>,
    /// The width of a reference count.
    pub refcount_bits: u64,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// Whether refcounts may be postponed.
    pub lazy_refcounts: bool,
    /// Whether the image was not closed properly, so that refcounts may be wrong.
    pub dirty: bool,
    /// Whether the image is marked as corrupt.
    pub corrupt: bool,
    /// Whether it has persistent dirty bitmaps.
    pub bitmaps: bool,
    /// How many internal snapshots there are.
    pub snapshot_count: u32,
    /// How the content is encrypted, if it is.
    pub encryption: Option<String>,
    /// The name of the backing file, which is never opened; empty if it is not in the header.
    pub backing_file: Option<String>,
    /// The format of the backing file, as the image calls it.
    pub backing_format: Option<String>,
    /// The name of the external data file, which is never opened; empty if it has none.
    pub data_file: Option<String>,
}

/// Finds out what there is to know about an image, however broken it is.
///
/// Walks over the tables once to see what is allocated, and looks at the guest's disk within bounds of its own. Of an envelope
/// there is little to say, unless it is an OVA that [`open`](crate::open) reads as it is.
///
/// # Errors
///
/// [`Io`](ErrorKind::Io) if the source cannot be read. Anything wrong with the image is a [`Refusal`], not an error.
pub fn inspect(source: &dyn ReadAt) -> Result<Inspection, Error> {
    let Probe { format, evidence } = probe(source)?;
    let mut inspection = Inspection {
        format,
        evidence,
        variant: None,
        file_size: source.size(),
        virtual_size: None,
        allocated_size: None,
        block_size: None,
        contents: Vec::new(),
        disk: None,
        qcow2: None,
        warnings: Vec::new(),
        refusal: None,
    };
    let is_open = format == Format::Tar && envelope::split_disk(source)?.is_some();
    let is_wrapped = format.is_envelope() && !is_open;
    let look_closer = if is_wrapped { look_at_envelope } else { look_inside };
    for look in [look_at_header, look_closer] {
        match look(source, &mut inspection) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                inspection.refusal = Some(Refusal::of(&error));
                break;
            }
        }
    }
    Ok(inspection)
}

/// [`inspect`](inspect()) for an image that somebody has said to be of some format: `declared` is a file name, or an extension.
///
/// What is said decides nothing; where the content is something else, there is a warning.
///
/// # Errors
///
/// Those of [`inspect`](inspect()).
pub fn inspect_declared(source: &dyn ReadAt, declared: &str) -> Result<Inspection, Error> {
    let mut inspection = inspect(source)?;
    let disagreement = inspection.disagreement(Declared::Name(declared));
    inspection.warnings.extend(disagreement);
    if extension(declared).eq_ignore_ascii_case("ami") {
        let warning = "a machine image (ami) is a file system that boots with a kernel from elsewhere";
        inspection.warnings.push(warning.to_owned());
    }
    Ok(inspection)
}

/// What somebody says an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared<'a> {
    /// A file name, the key of an object, or an extension.
    Name(&'a str),
    /// A media type (RFC 6838), as in `Content-Type`.
    MediaType(&'a str),
}

impl Declared<'_> {
    /// Whether it says that something is a disk image or an envelope.
    pub fn says_something(&self) -> bool {
        self.look_up().1.is_some()
    }

    /// The word that decides, in lower case, and the formats that it may stand for.
    fn look_up(&self) -> (String, Option<&'static [Format]>) {
        let (table, word) = match self {
            Self::Name(name) => (EXTENSIONS.as_slice(), extension(name)),
            Self::MediaType(media_type) => {
                let word = media_type.split(';').next().unwrap_or(media_type).trim();
                (MEDIA_TYPES.as_slice(), word)
            }
        };
        let word = word.to_ascii_lowercase();
        let row = table.iter().find(|(words, _)| words.contains(&word.as_str()));
        (word, row.map(|(_, formats)| *formats))
    }
}

/// The extensions of file names that mean something, with the formats that may be behind them.
///
/// `img` is missing because people call any format so.
const EXTENSIONS: [(&[&str], &[Format]); 23] = [
    (&["raw", "dd", "iso", "ami"], &[Format::Raw]),
    (&["qcow2"], &[Format::Qcow2]),
    (&["qcow"], &[Format::Qcow, Format::Qcow2]),
    (&["qed"], &[Format::Qed]),
    (&["vmdk"], &[Format::Vmdk]),
    (&["vhd", "vpc"], &[Format::Vhd]),
    (&["vhdx"], &[Format::Vhdx]),
    (&["vdi"], &[Format::Vdi]),
    (&["ploop", "hdd"], &[Format::Ploop]),
    (&["luks"], &[Format::Luks]),
    (&["aki"], &[Format::Aki]),
    (&["gz", "gzip", "tgz"], &[Format::Gzip]),
    (&["xz"], &[Format::Xz]),
    (&["zst", "zstd"], &[Format::Zstd]),
    (&["bz2"], &[Format::Bzip2]),
    (&["tar", "ova"], &[Format::Tar]),
    (&["lz4"], &[Format::Lz4]),
    (&["7z"], &[Format::SevenZip]),
    (&["rar"], &[Format::Rar]),
    (&["lz", "tlz"], &[Format::Lzip, Format::Lzma]),
    (&["lzo", "tzo"], &[Format::Lzop]),
    (&["z", "taz"], &[Format::Compress]),
    (&["lzma"], &[Format::Lzma]),
];

/// The media types that mean something: those that IANA has registered, and what desktops call disks (shared-mime-info).
///
/// `application/octet-stream` is missing because it says nothing.
const MEDIA_TYPES: [(&[&str], &[Format]); 21] = [
    (
        &[
            "application/x-iso9660-image",
            "application/vnd.efi.iso",
            "application/x-cd-image",
            "application/vnd.efi.img",
            "application/x-raw-disk-image",
        ],
        &[Format::Raw],
    ),
    (&["application/x-qemu-disk"], &[Format::Qcow2, Format::Qcow]),
    (&["application/x-qed-disk"], &[Format::Qed]),
    (
        &["application/x-vmdk-disk", "application/x-virtualbox-vmdk"],
        &[Format::Vmdk],
    ),
    (
        &["application/x-vhd-disk", "application/x-virtualbox-vhd"],
        &[Format::Vhd],
    ),
    (
        &["application/x-vhdx-disk", "application/x-virtualbox-vhdx"],
        &[Format::Vhdx],
    ),
    (
        &["application/x-vdi-disk", "application/x-virtualbox-vdi"],
        &[Format::Vdi],
    ),
    (&["application/gzip", "application/x-gzip"], &[Format::Gzip]),
    (
        &["application/x-xz", "application/x-raw-disk-image-xz-compressed"],
        &[Format::Xz],
    ),
    (&["application/zstd"], &[Format::Zstd]),
    (&["application/x-bzip2", "application/x-bzip"], &[Format::Bzip2]),
    (&["application/zip"], &[Format::Zip]),
    (
        &["application/x-tar", "application/ovf", "application/x-virtualbox-ova"],
        &[Format::Tar],
    ),
    (&["application/x-compressed-tar"], &[Format::Gzip]),
    (&["application/x-lz4"], &[Format::Lz4]),
    (&["application/x-7z-compressed"], &[Format::SevenZip]),
    (
        &[
            "application/vnd.rar",
            "application/x-rar",
            "application/x-rar-compressed",
        ],
        &[Format::Rar],
    ),
    (&["application/x-lzip"], &[Format::Lzip]),
    (&["application/x-lzop"], &[Format::Lzop]),
    (&["application/x-compress"], &[Format::Compress]),
    (&["application/x-lzma"], &[Format::Lzma]),
];

/// The top-level media types (RFC 6838, section 4.2) of what is no disk image, nor an envelope around one.
const OTHER_MEDIA: [&str; 8] = [
    "text",
    "image",
    "audio",
    "video",
    "font",
    "message",
    "multipart",
    "model",
];

impl Inspection {
    /// Refuses the image, unless it is refused already, for what `limits` leave out: a disk of too many bytes, or any envelope if
    /// none may be opened.
    pub fn hold_to(&mut self, limits: &Limits) {
        let is_closed = self.format.is_envelope() && limits.nesting_max == 0;
        let held = if is_closed {
            Err(envelope::too_deep(self.format))
        } else {
            self.virtual_size
                .map_or(Ok(()), |size| limits.check_size(size, self.format))
        };
        if let (Err(error), None) = (held, &self.refusal) {
            self.refusal = Some(Refusal::of(&error));
        }
    }

    /// How the content disagrees with what somebody said that it is, if it does.
    ///
    /// What is said to be text, a picture or the like disagrees with every disk image, and so with whatever is inspected; though it
    /// does not [say](Declared::says_something) that there is one. What says nothing of either sort agrees with everything.
    pub fn disagreement(&self, declared: Declared<'_>) -> Option<String> {
        let who = match declared {
            Declared::Name(_) => "name",
            Declared::MediaType(_) => "media type",
        };
        let (word, formats) = declared.look_up();
        let is_other = matches!(declared, Declared::MediaType(_))
            && word
                .split_once('/')
                .is_some_and(|(top_level, _)| OTHER_MEDIA.contains(&top_level));
        let formats = formats.or(is_other.then_some(&[] as &[Format]))?;
        let (format, quoted) = (self.format, quote(word.as_bytes()));
        if !formats.contains(&format) {
            return Some(format!("the {who} says {quoted}, the content is {format}"));
        }
        match word.as_str() {
            "iso" | "application/x-iso9660-image" | "application/vnd.efi.iso" | "application/x-cd-image"
                if !self.contents.contains(&Signature::Iso9660) =>
            {
                Some(format!("the {who} says {quoted}, but there is no ISO 9660 file system"))
            }
            "ova" | "application/ovf" | "application/x-virtualbox-ova" if self.variant.is_none() => Some(format!(
                "the {who} says {quoted}, but the archive does not begin with a descriptor"
            )),
            _ => None,
        }
    }
}

/// What follows the last dot of a name, or all of it.
fn extension(name: &str) -> &str {
    name.rsplit(['.', '/']).next().unwrap_or(name)
}

fn look_at_header(source: &dyn ReadAt, inspection: &mut Inspection) -> Result<(), Error> {
    match inspection.format {
        Format::Raw => inspection.virtual_size = Some(source.size()),
        Format::Qcow2 => {
            let preamble = Preamble::read(source)?;
            inspection.virtual_size = Some(preamble.header.size);
            inspection.warnings = warnings(&preamble);
            inspection.qcow2 = Some(details(&preamble));
        }
        Format::Vmdk | Format::Tar => inspection.variant = variant_by_start(source)?,
        _ => {}
    }
    Ok(())
}

/// The flavour of a format that is not opened, by the start of the file.
fn variant_by_start(source: &dyn ReadAt) -> Result<Option<&'static str>, Error> {
    let start = Region {
        name: "the start of the file",
        offset: 0,
        len: source.size().min(512),
    };
    let start = safety::read_region(source, start)?;
    // The descriptor comes first in an OVA; the name of the first file is at the start of a tar archive.
    let name = start.get(..100).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(if start.starts_with(b"COWD") {
        Some("COWD")
    } else if start.starts_with(&[0xbe, 0xba, 0xfe, 0xca]) {
        Some("SESparse")
    } else if name.to_ascii_lowercase().ends_with(b".ovf") {
        Some("ova")
    } else {
        None
    })
}

fn look_at_envelope(source: &dyn ReadAt, inspection: &mut Inspection) -> Result<(), Error> {
    let warning = "what is in the envelope is seen once it is taken out, as a conversion does";
    inspection.warnings.push(warning.to_owned());
    probe_strictly(source).map(drop)
}

fn look_inside(source: &dyn ReadAt, inspection: &mut Inspection) -> Result<(), Error> {
    let image = open_any(source)?;
    inspection.virtual_size = Some(image.virtual_size());
    // An archive that is opened as it is stays an OVA.
    inspection.variant = inspection.variant.or(image.variant());
    inspection.block_size = image.block_size();
    inspection.warnings.extend(image.warnings());
    let totals = Totals::of(&*image, |_| ())?;
    inspection.allocated_size = Some(totals.copied.saturating_add(totals.decoded));
    if let Some(qcow2) = &mut inspection.qcow2 {
        qcow2.compressed_size = Some(totals.decoded);
    }
    let mut head = vec![0; usize::try_from(image.virtual_size().min(HEAD_LEN)).unwrap_or_default()];
    match Guest::new(source, &*image).read(&mut head, 0) {
        Ok(()) => inspection.contents = Signature::find_all(&head),
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => {
            let warning = format!("the first sectors of the disk cannot be read: {error}");
            inspection.warnings.push(warning);
            return Ok(());
        }
    }
    let disk = disk::look_at(source, &*image, LookLimits::DEFAULT, &mut inspection.warnings)?;
    inspection.disk = Some(disk);
    Ok(())
}

fn warnings(preamble: &Preamble) -> Vec<String> {
    let Preamble { header, extensions, .. } = preamble;
    let mut warnings = Vec::new();
    if header.incompatible & INCOMPATIBLE_DIRTY != 0 {
        warnings.push("the image was not closed properly; its reference counts may be out of date".to_owned());
    }
    if header.snapshot_count > 0 {
        warnings.push(format!(
            "{} internal snapshots, which a conversion leaves behind",
            header.snapshot_count
        ));
    }
    if extensions.bitmaps {
        warnings.push("persistent dirty bitmaps, which a conversion leaves behind".to_owned());
    }
    if !header.size.is_multiple_of(512) {
        warnings.push(format!("virtual size {} is not a multiple of 512", header.size));
    }
    warnings
}

fn details(preamble: &Preamble) -> Qcow2Details {
    let Preamble {
        header,
        extensions,
        backing_file,
        ..
    } = preamble;
    let external = header.incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0;
    let backing_file = backing_file.as_ref().map(|file| match file {
        BackingFile::Named(name) => safety::text(name),
        BackingFile::OutsideOfHeader => String::new(),
    });
    let as_text = |name: &Option<Vec<u8>>| name.as_deref().map(safety::text);
    Qcow2Details {
        version: header.version,
        compat: if header.version < 3 { "0.10" } else { "1.1" },
        cluster_size: header.cluster_size(),
        compression_type: header.codec().ok(),
        compressed_size: None,
        refcount_bits: 1_u64.checked_shl(header.refcount_order).unwrap_or_default(),
        extended_l2: header.is_extended_l2(),
        lazy_refcounts: header.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
        dirty: header.incompatible & INCOMPATIBLE_DIRTY != 0,
        corrupt: header.incompatible & INCOMPATIBLE_CORRUPT != 0,
        bitmaps: extensions.bitmaps,
        snapshot_count: header.snapshot_count,
        encryption: match header.crypt_method {
            0 => extensions.encryption_header.then(|| "unknown".to_owned()),
            1 => Some("aes".to_owned()),
            2 => Some("luks".to_owned()),
            other => Some(format!("method {other}")),
        },
        backing_file,
        backing_format: as_text(&extensions.backing_format),
        data_file: as_text(&extensions.data_file).or(external.then(String::new)),
    }
}
