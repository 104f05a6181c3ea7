//! Sizes and durations as people write them: `256MiB`, `60s`.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

/// A number of bytes with its unit: `B`, `KiB`, `MiB`, `GiB`, `TiB`, or `K`, `M`, `G` and `T` for the same, as QEMU has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ByteSize(pub(crate) u64);

/// The units of a size, and by how many bits each shifts a byte.
const SIZE_UNITS: [(&str, u32); 9] = [
    ("KiB", 10),
    ("MiB", 20),
    ("GiB", 30),
    ("TiB", 40),
    ("B", 0),
    ("K", 10),
    ("M", 20),
    ("G", 30),
    ("T", 40),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = SIZE_UNITS.iter().find_map(|(unit, shift)| {
            let count: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            count.checked_mul(1 << shift)
        });
        parsed
            .map(Self)
            .ok_or_else(|| format!("{text} is not a size such as 512KiB, 256MiB or 1GiB"))
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A duration with its unit: `500ms`, `60s`, `2m`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<jiff::SignedDuration>().ok();
        parsed
            .and_then(|duration| Duration::try_from(duration).ok())
            .map(Self)
            .ok_or_else(|| format!("{text} is not a duration such as 500ms, 60s or 2m"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_that_is_known() {
        for (text, expected) in [
            ("0B", Some(0)),
            ("512KiB", Some(512 << 10)),
            ("256 MiB", Some(256 << 20)),
            ("1GiB", Some(1 << 30)),
            ("16777216TiB", None),
            ("256", None),
            ("256MB", None),
            ("-1MiB", None),
            ("1.5MiB", None),
            ("MiB", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<ByteSize>().ok().map(|size| size.0), expected, "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_are_not_negative() {
        for (text, expected) in [
            ("500ms", Some(500)),
            ("60s", Some(60_000)),
            ("2m", Some(120_000)),
            ("-2m", None),
            ("60", None),
            ("", None),
        ] {
            let parsed = text.parse::<Span>().ok().map(|span| span.0.as_millis());
            assert_eq!(parsed, expected, "{text}");
        }
    }
}
