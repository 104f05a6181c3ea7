//! Bounds on images, as people give them: those of the server, and of the commands that open an image by themselves.

use std::ops::RangeInclusive;

use anyhow::bail;
use lithos_convert::{Limits, MAX_VIRTUAL_SIZE};
use serde::Deserialize;

use super::unit::ByteSize;

/// What is accepted of an image; what is missing is as [`Limits::DEFAULT`] has it. In a TOML file it is the table `[image]`.
#[derive(Debug, Default, Clone, Copy, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Bounds on images")]
pub(crate) struct ImageLimits {
    /// The largest disk that is converted [default: 64TiB]
    #[arg(
        long = "image-virtual-size-max",
        env = "LITHOS_IMAGE_VIRTUAL_SIZE_MAX",
        value_name = "SIZE"
    )]
    #[serde(rename = "virtual-size-max")]
    pub(crate) virtual_size: Option<ByteSize>,

    /// What may come out of a compressed envelope at most [default: 2TiB]
    #[arg(long = "image-expanded-max", env = "LITHOS_IMAGE_EXPANDED_MAX", value_name = "SIZE")]
    #[serde(rename = "expanded-max")]
    pub(crate) expanded: Option<ByteSize>,

    /// How deep envelopes may lie in each other [default: 2]
    #[arg(long = "image-nesting-max", env = "LITHOS_IMAGE_NESTING_MAX", value_name = "N")]
    #[serde(rename = "nesting-max")]
    pub(crate) nesting: Option<usize>,

    /// How many entries an archive may have [default: 1000]
    #[arg(long = "image-entries-max", env = "LITHOS_IMAGE_ENTRIES_MAX", value_name = "N")]
    #[serde(rename = "entries-max")]
    pub(crate) entries: Option<usize>,
}

/// The least and the most of bounds on sizes: a sector, and what no image is larger than.
const SIZES: RangeInclusive<u64> = 512..=MAX_VIRTUAL_SIZE;
/// Nothing that people make is in more envelopes than these; none at all can be forbidden.
const NESTINGS: RangeInclusive<usize> = 0..=8;
/// An archive has one entry; each takes some hundred bytes of memory.
const ENTRIES: RangeInclusive<usize> = 1..=100_000;

impl ImageLimits {
    /// These, and where they are silent, those of `file`.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            virtual_size: self.virtual_size.or(file.virtual_size),
            expanded: self.expanded.or(file.expanded),
            nesting: self.nesting.or(file.nesting),
            entries: self.entries.or(file.entries),
        }
    }

    /// Checks everything.
    pub(crate) fn check(&self) -> anyhow::Result<Limits> {
        let defaults = Limits::DEFAULT;
        let size = |size: Option<ByteSize>, default| size.map_or(default, |size| size.0);
        let limits = Limits {
            virtual_size_max: size(self.virtual_size, defaults.virtual_size_max),
            expanded_bytes_max: size(self.expanded, defaults.expanded_bytes_max),
            nesting_max: self.nesting.unwrap_or(defaults.nesting_max),
            entries_max: self.entries.unwrap_or(defaults.entries_max),
        };
        for (name, size) in [
            ("image-virtual-size-max", limits.virtual_size_max),
            ("image-expanded-max", limits.expanded_bytes_max),
        ] {
            if !SIZES.contains(&size) {
                bail!("{name} must be between 512B and 64TiB, not {size} bytes");
            }
        }
        for (name, count, range) in [
            ("image-nesting-max", limits.nesting_max, NESTINGS),
            ("image-entries-max", limits.entries_max, ENTRIES),
        ] {
            if !range.contains(&count) {
                bail!(
                    "{name} must be between {} and {}, not {count}",
                    range.start(),
                    range.end()
                );
            }
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(ImageLimits::default().check().unwrap(), Limits::DEFAULT);
        let file = ImageLimits {
            virtual_size: Some(ByteSize(1 << 40)),
            nesting: Some(1),
            ..ImageLimits::default()
        };
        let flags = ImageLimits {
            nesting: Some(0),
            ..ImageLimits::default()
        };
        let limits = flags.or(file).check().unwrap();
        assert_eq!((limits.virtual_size_max, limits.nesting_max), (1 << 40, 0));
    }

    #[test]
    fn bounds_have_bounds() {
        let default = ImageLimits::default;
        for (wrong, name) in [
            (
                ImageLimits {
                    virtual_size: Some(ByteSize(65 << 40)),
                    ..default()
                },
                "image-virtual-size-max",
            ),
            (
                ImageLimits {
                    expanded: Some(ByteSize(0)),
                    ..default()
                },
                "image-expanded-max",
            ),
            (
                ImageLimits {
                    nesting: Some(9),
                    ..default()
                },
                "image-nesting-max",
            ),
            (
                ImageLimits {
                    entries: Some(0),
                    ..default()
                },
                "image-entries-max",
            ),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
