//! What an image is to become: a format, and later a variant after a colon.

use std::fmt;
use std::str::FromStr;

use crate::safety::quote;
use crate::{Error, Format};

/// A format that [`plan`](crate::plan()) can make.
///
/// Written as in the `convert-to` tag and on the command line: `qcow2`, `raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    format: Format,
}

impl Target {
    /// Plain qcow2: version 3, clusters of 64 KiB, nothing compressed.
    pub const QCOW2: Self = Self { format: Format::Qcow2 };
    /// The bytes of the disk.
    pub const RAW: Self = Self { format: Format::Raw };
    /// Every target there is.
    pub const ALL: [Self; 2] = [Self::QCOW2, Self::RAW];

    /// The format of the file that is made.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// What stands in the place of the source's file name extension, without the leading dot.
    pub const fn extension(&self) -> &'static str {
        self.format.extension()
    }

    fn supported() -> String {
        Self::ALL.map(|target| target.to_string()).join(", ")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.format.fmt(f)
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(target) = Self::ALL.into_iter().find(|target| target.format.name() == text) {
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
    fn every_target_parses_back() {
        for target in Target::ALL {
            assert_eq!(target.to_string().parse::<Target>().ok(), Some(target));
        }
    }

    #[test]
    fn others_are_refused_with_a_list_of_what_is_supported() {
        for (text, reason) in [
            (
                "qcow2:zlib",
                "\"qcow2:zlib\" is not a supported variant of a target format; supported: qcow2, raw",
            ),
            (
                "qcow2:",
                "\"qcow2:\" is not a supported variant of a target format; supported: qcow2, raw",
            ),
            (
                "vmdk",
                "\"vmdk\" is not a supported target format; supported: qcow2, raw",
            ),
            (
                "vmdk:stream",
                "\"vmdk:stream\" is not a supported target format; supported: qcow2, raw",
            ),
            (
                "QCOW2",
                "\"QCOW2\" is not a supported target format; supported: qcow2, raw",
            ),
            ("", "\"\" is not a supported target format; supported: qcow2, raw"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.reason(), reason);
        }
    }
}
