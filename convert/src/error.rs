//! The one error of this crate: what kind, in which format, where, and why in words.

use std::fmt;
use std::io;

use serde::{Serialize, Serializer};

use crate::Format;

/// What sort of thing went wrong, for callers to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The source could not be read.
    Io,
    /// The bytes, or the word, are not of the format that was asked for.
    NotThisFormat,
    /// Valid, but uses something that is not supported.
    Unsupported,
    /// The image contradicts itself, its specification or its own size.
    Corrupt,
    /// The image, or a table in it, is beyond a named bound.
    TooLarge,
    /// The image refers to another file, which is never opened.
    ReferenceDenied,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "cannot read",
            Self::NotThisFormat => "not this format",
            Self::Unsupported => "not supported",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "too large",
            Self::ReferenceDenied => "reference denied",
        })
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why an image could not be read, mapped or planned.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    format: Option<Format>,
    offset: Option<u64>,
    reason: String,
    #[source]
    source: Option<io::Error>,
}

impl Error {
    /// The sort of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The format being read or written, where one is known.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// The byte of the image file that is at fault, where there is one.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The precise reason: one lower-case clause that names the field or flag.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            format: None,
            offset: None,
            reason: reason.into(),
            source: None,
        }
    }

    pub(crate) fn corrupt(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, reason)
    }

    pub(crate) fn unsupported(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, reason)
    }

    pub(crate) fn io(reason: impl Into<String>, source: io::Error) -> Self {
        Self {
            source: Some(source),
            ..Self::new(ErrorKind::Io, reason)
        }
    }

    /// A question about a place that the disk does not have.
    pub(crate) fn beyond_the_disk() -> Self {
        Self::io("beyond the end of the disk", io::ErrorKind::InvalidInput.into())
    }

    pub(crate) fn with_format(self, format: Format) -> Self {
        Self {
            format: Some(format),
            ..self
        }
    }

    /// Counts the byte at fault from the start of the file, when it was counted from a structure at `offset`.
    ///
    /// A failure to read names its place in the file already.
    pub(crate) fn shifted(self, offset: u64) -> Self {
        if self.kind == ErrorKind::Io {
            return self;
        }
        let place = self.offset.unwrap_or_default().saturating_add(offset);
        Self {
            offset: Some(place),
            ..self
        }
    }

    /// Says in which part of the file it is.
    pub(crate) fn within(self, part: &str) -> Self {
        Self {
            reason: format!("{part}: {}", self.reason),
            ..self
        }
    }

    /// Names the byte at fault, unless a closer look has named one already.
    pub(crate) fn at(self, offset: u64) -> Self {
        Self {
            offset: self.offset.or(Some(offset)),
            ..self
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.format {
            write!(f, "{format}: ")?;
        }
        write!(f, "{}", self.kind)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_format_kind_place_and_reason() {
        let error = Error::corrupt("L1 table offset 7 is not a multiple of 65536")
            .with_format(Format::Qcow2)
            .at(40);
        assert_eq!(
            error.to_string(),
            "qcow2: corrupt at byte 40: L1 table offset 7 is not a multiple of 65536"
        );
        assert_eq!(Error::unsupported("no").to_string(), "not supported: no");
    }

    #[test]
    fn display_leaves_the_source_to_the_reporter() {
        let error = Error::io("L2 table", io::Error::other("disk on fire"));
        assert_eq!(error.to_string(), "cannot read: L2 table");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("disk on fire"));
    }

    #[test]
    fn first_place_named_is_kept() {
        assert_eq!(Error::corrupt("x").at(1).at(2).offset(), Some(1));
    }
}
