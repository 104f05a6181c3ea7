//! Which file of an archive is the image.

use super::quoted;
use crate::Error;

/// Extensions of what comes beside an image: checksums, signatures, texts, descriptors.
const COMPANIONS: [&str; 16] = [
    "md5",
    "sha1",
    "sha256",
    "sha512",
    "sha256sum",
    "sha512sum",
    "sum",
    "asc",
    "sig",
    "sign",
    "txt",
    "md",
    "json",
    "mf",
    "cert",
    "xml",
];

/// A regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where its bytes start in the archive; for what is compressed there, the compressed ones.
    pub(crate) offset: u64,
    /// How many bytes there are.
    pub(crate) len: u64,
}

impl Entry {
    /// The last part of its name, in lower case.
    fn file_name(&self) -> String {
        self.name.rsplit('/').next().unwrap_or_default().to_lowercase()
    }

    pub(super) fn extension(&self) -> Option<String> {
        let name = self.file_name();
        name.rsplit_once('.').map(|(_, extension)| extension.to_owned())
    }

    /// Whether it may be what the archive was made for.
    fn is_candidate(&self) -> bool {
        let name = self.file_name();
        // What begins with `._` is the resource fork that macOS puts beside each file.
        let is_companion = name.starts_with('.') || name.starts_with("readme") || name.starts_with("license");
        let extension = self.extension();
        self.len > 0 && !is_companion && extension.is_none_or(|extension| !COMPANIONS.contains(&extension.as_str()))
    }
}

/// The one file that may be the image.
///
/// # Errors
///
/// [`Unsupported`](crate::ErrorKind::Unsupported) if there is none, or several.
pub(super) fn only_image(entries: &[Entry]) -> Result<&Entry, Error> {
    let mut candidates = entries.iter().filter(|entry| entry.is_candidate());
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Error::unsupported("the archive holds no image")),
        (Some(_), Some(_)) => {
            let names = entries.iter().filter(|entry| entry.is_candidate());
            Err(Error::unsupported(format!(
                "the archive holds several files, of which one has to be the image: {}",
                quoted(names.map(|entry| entry.name.as_str()))
            )))
        }
    }
}
