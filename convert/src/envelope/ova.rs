//! OVA: a tar archive of a virtual machine, whose descriptor (OVF, DMTF DSP0243 2.1) names its disks.

use std::collections::BTreeSet;
use std::ops::Range;

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::archive::Entry;
use super::quoted;
use crate::safety::{Region, at_most, quote, read_region};
use crate::{Error, Format, ReadAt};

/// Longest descriptor and longest manifest: they describe a machine, and list its files.
const TEXT_LEN_MAX: u64 = 1 << 20;
/// How much is read at once to be digested.
const CHUNK_LEN: usize = 1 << 20;
/// Most prefixes of namespaces in a descriptor: where elements lie in each other, the parser holds all that are in force
/// against all others. Those who make descriptors use some ten.
const PREFIXES_MAX: usize = 32;
/// Most attributes of an element: the parser holds each against all others. Those who make descriptors use some ten.
const ATTRIBUTES_MAX: usize = 256;

/// Digests of files of an archive, to be held against their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest(Vec<Line>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    range: Range<u64>,
    algorithm: Algorithm,
    /// As the manifest writes it, in lower case.
    digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Crc32,
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC-32",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }
}

impl Manifest {
    /// The checksum that a ZIP archive has for a file.
    pub(super) fn of_crc(name: &str, range: Range<u64>, crc: u32) -> Self {
        Self(vec![Line {
            name: name.to_owned(),
            range,
            algorithm: Algorithm::Crc32,
            digest: format!("{crc:08x}"),
        }])
    }

    /// How many bytes [`Manifest::check`] reads.
    pub fn len(&self) -> u64 {
        let lens = self
            .0
            .iter()
            .map(|line| line.range.end.saturating_sub(line.range.start));
        lens.fold(0, u64::saturating_add)
    }

    /// Whether nothing came along.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads all that there is a digest of, and compares. `goes_on` is asked after each mebibyte, with its length, and may
    /// end it.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if a file has another digest, [`Io`](crate::ErrorKind::Io) if the source
    /// cannot be read or `goes_on` says no.
    pub fn check(&self, source: &dyn ReadAt, mut goes_on: impl FnMut(u64) -> bool) -> Result<(), Error> {
        for line in &self.0 {
            let digest = line.digest(source, &mut goes_on)?;
            if digest != line.digest {
                let (name, algorithm) = (quote(line.name.as_bytes()), line.algorithm.name());
                let reason = format!(
                    "{name} has the {algorithm} digest {digest}, and should have {}",
                    quote(line.digest.as_bytes())
                );
                return Err(Error::corrupt(reason).at(line.range.start));
            }
        }
        Ok(())
    }
}

impl Line {
    fn digest(&self, source: &dyn ReadAt, goes_on: &mut dyn FnMut(u64) -> bool) -> Result<String, Error> {
        match self.algorithm {
            Algorithm::Crc32 => {
                let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
                self.read(source, goes_on, |bytes| digest.update(bytes))?;
                Ok(format!("{:08x}", digest.finalize()))
            }
            Algorithm::Sha1 => self.digest_by::<Sha1>(source, goes_on),
            Algorithm::Sha256 => self.digest_by::<Sha256>(source, goes_on),
            Algorithm::Sha512 => self.digest_by::<Sha512>(source, goes_on),
        }
    }

    fn digest_by<D: Digest>(&self, source: &dyn ReadAt, goes_on: &mut dyn FnMut(u64) -> bool) -> Result<String, Error> {
        let mut digest = D::new();
        self.read(source, goes_on, |bytes| digest.update(bytes))?;
        Ok(hex::encode(digest.finalize()))
    }

    fn read(
        &self,
        source: &dyn ReadAt,
        goes_on: &mut dyn FnMut(u64) -> bool,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let mut chunk = vec![0; CHUNK_LEN];
        let mut at = self.range.start;
        while at < self.range.end {
            let left = usize::try_from(self.range.end.saturating_sub(at)).unwrap_or(CHUNK_LEN);
            let part = chunk.get_mut(..left.min(CHUNK_LEN)).unwrap_or_default();
            crate::safety::read_into(source, part, at)?;
            each(part);
            at = at.saturating_add(part.len() as u64);
            if !goes_on(part.len() as u64) {
                return Err(Error::io("the check was ended", std::io::ErrorKind::Interrupted.into()));
            }
        }
        Ok(())
    }
}

/// The disk that the descriptor names.
pub(super) fn disk<'a>(source: &dyn ReadAt, entries: &'a [Entry]) -> Result<&'a Entry, Error> {
    let Some((descriptor, others)) = entries.split_first() else {
        return Err(Error::corrupt("an OVA without a descriptor"));
    };
    let text = text(source, descriptor)?;
    let name = disk_file(&text).map_err(|error| error.at(descriptor.offset))?;
    let mut named = others.iter().filter(|entry| entry.name == name);
    let wrong = |what: &str| {
        let name = quote(name.as_bytes());
        Error::corrupt(format!("the descriptor names the disk {name}, which is {what}")).at(descriptor.offset)
    };
    match (named.next(), named.next()) {
        (Some(disk), None) => Ok(disk),
        (None, _) => Err(wrong("not in the archive")),
        // Which one is meant, tools do not agree on.
        (Some(_), Some(_)) => Err(wrong("in the archive twice")),
    }
}

/// The digests that come along, if any do.
pub(super) fn digests(source: &dyn ReadAt, entries: &[Entry]) -> Result<Manifest, Error> {
    match entries.iter().find(|entry| entry.extension().as_deref() == Some("mf")) {
        Some(entry) => manifest(&text(source, entry)?, entries).map_err(|error| error.at(entry.offset)),
        None => Ok(Manifest::default()),
    }
}

fn text(source: &dyn ReadAt, entry: &Entry) -> Result<String, Error> {
    at_most("the length of a descriptor or manifest", entry.len, TEXT_LEN_MAX)
        .map_err(|error| error.at(entry.offset))?;
    let region = Region {
        name: "a descriptor or manifest",
        offset: entry.offset,
        len: entry.len,
    };
    let bytes = read_region(source, region.inside(source.size())?)?;
    String::from_utf8(bytes).map_err(|_| {
        let name = quote(entry.name.as_bytes());
        Error::corrupt(format!("{name} is not UTF-8")).at(entry.offset)
    })
}

/// The file of the only disk: `References/File` by the `fileRef` of `DiskSection/Disk`.
fn disk_file(descriptor: &str) -> Result<String, Error> {
    let broken = |what: &str| Error::corrupt(format!("the OVF descriptor {what}"));
    bounded(descriptor)?;
    let document = roxmltree::Document::parse(descriptor)
        .map_err(|error| Error::corrupt(format!("the OVF descriptor is no XML: {error}")))?;
    // Attributes are in the namespace of OVF, of which there are several: the local name tells.
    let attribute = |node: roxmltree::Node<'_, '_>, name: &str| {
        let found = node.attributes().find(|attribute| attribute.name() == name);
        found.map(|attribute| attribute.value().to_owned())
    };
    let named = |name: &'static str| {
        document
            .descendants()
            .filter(move |node| node.tag_name().name() == name)
    };
    let disks: Vec<_> = named("Disk").filter_map(|disk| attribute(disk, "fileRef")).collect();
    let [reference] = disks.as_slice() else {
        return Err(Error::unsupported(format!(
            "the OVF descriptor names {} disks with a file; exactly one can be converted",
            disks.len()
        )));
    };
    let file = named("File").find(|file| attribute(*file, "id").as_deref() == Some(reference));
    let file = file.ok_or_else(|| broken(&format!("has no file {}", quote(reference.as_bytes()))))?;
    let href = attribute(file, "href").ok_or_else(|| broken("has a file without href"))?;
    if href.contains(['/', '\\', ':']) {
        let href = quoted(std::iter::once(href.as_str()));
        return Err(Error::new(
            crate::ErrorKind::ReferenceDenied,
            format!("the OVF descriptor refers to {href}, which is not the name of a file in the archive"),
        ));
    }
    if attribute(file, "chunkSize").is_some() {
        return Err(Error::unsupported("the OVF descriptor splits its disk into chunks"));
    }
    Ok(href)
}

/// Refuses what would keep the parser busy for minutes.
///
/// Nothing is parsed here: what looks like an attribute in a text counts as well.
fn bounded(descriptor: &str) -> Result<(), Error> {
    let ends_name = |char: char| char == '=' || char.is_whitespace();
    let declarations = descriptor.split("xmlns").skip(1);
    let prefixes: BTreeSet<_> = declarations.filter_map(|rest| rest.split(ends_name).next()).collect();
    at_most("the number of namespaces", prefixes.len() as u64, PREFIXES_MAX as u64)?;

    let is_quoted = |value: &&str| value.trim_start().starts_with(['"', '\'']);
    let attributes = descriptor
        .split('<')
        .map(|tag| tag.split('=').skip(1).filter(is_quoted).count());
    let attributes = attributes.max().unwrap_or_default();
    at_most("the number of attributes", attributes as u64, ATTRIBUTES_MAX as u64)?;
    Ok(())
}

/// Lines of a manifest: `SHA256(disk.vmdk)= 6b86…` (DSP0243, "Manifest file").
fn manifest(text: &str, entries: &[Entry]) -> Result<Manifest, Error> {
    let mut lines: Vec<Line> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let broken = || {
            let line = quote(line.as_bytes());
            Error::corrupt(format!(
                "the manifest has the line {line}, which is no digest of a file"
            ))
            .with_format(Format::Tar)
        };
        let (algorithm, rest) = line.split_once('(').ok_or_else(broken)?;
        let (name, digest) = rest
            .rsplit_once(")=")
            .or_else(|| rest.rsplit_once(") ="))
            .ok_or_else(broken)?;
        let algorithm = match algorithm.trim().to_ascii_uppercase().replace('-', "").as_str() {
            "SHA1" => Algorithm::Sha1,
            "SHA256" => Algorithm::Sha256,
            "SHA512" => Algorithm::Sha512,
            _ => return Err(broken()),
        };
        let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
            let name = quote(name.as_bytes());
            return Err(Error::corrupt(format!(
                "the manifest lists {name}, which is not in the archive"
            )));
        };
        // Each line costs a read of the whole file.
        if lines
            .iter()
            .any(|line| line.name == name && line.algorithm == algorithm)
        {
            let (name, algorithm) = (quote(name.as_bytes()), algorithm.name());
            return Err(Error::corrupt(format!(
                "the manifest has two {algorithm} digests of {name}"
            )));
        }
        lines.push(Line {
            name: name.to_owned(),
            range: entry.offset..entry.offset.saturating_add(entry.len),
            algorithm,
            digest: digest.trim().to_ascii_lowercase(),
        });
    }
    Ok(Manifest(lines))
}
