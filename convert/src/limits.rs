//! How much of everything is accepted or done for one image, in one place.
//!
//! Errors name a limit as it is called where it can be set: `image-` and its name here.

use crate::{Error, ErrorKind, Format, Image};

/// What is accepted, whatever an image says of itself; whoever opens images may ask for less.
///
/// Bounds on single tables are those of the formats and stand beside their parsers; each is held against the real size of the
/// file as well. What one compressed byte may become is [`Codec`](crate::Codec)'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest disk, in bytes; never more than [`MAX_VIRTUAL_SIZE`](crate::MAX_VIRTUAL_SIZE).
    pub virtual_size_max: u64,
    /// How many bytes may come out of a compressed envelope.
    pub expanded_bytes_max: u64,
    /// How deep envelopes may lie in each other, from here on.
    pub nesting_max: usize,
    /// How many entries an archive may have.
    pub entries_max: usize,
}

impl Limits {
    /// What is used unless somebody says otherwise.
    ///
    /// - 64 TiB of disk: VHDX, the largest of the common formats, ends there, and tables made for a disk within it stay small
    ///   (an L1 table of 1 MiB).
    /// - 2 TiB out of an envelope: more than the images that people compress, and some hours of work.
    /// - 2 envelopes: a `tar.gz`, or an OVA with a compressed disk. What is deeper was made to be.
    /// - 1,000 entries: an image comes alone or with a few companions.
    pub const DEFAULT: Self = Self {
        virtual_size_max: 64 << 40,
        expanded_bytes_max: 2 << 40,
        nesting_max: 2,
        entries_max: 1000,
    };

    /// What is accepted of what came out of an envelope.
    #[must_use]
    pub fn inside(&self) -> Self {
        Self {
            nesting_max: self.nesting_max.saturating_sub(1),
            ..*self
        }
    }

    /// Refuses a disk that is too large, or empty.
    ///
    /// # Errors
    ///
    /// Those of [`check_size`](Self::check_size).
    pub fn check(&self, image: &dyn Image) -> Result<(), Error> {
        self.check_size(image.virtual_size(), image.format())
    }

    /// Refuses a disk of more than [`virtual_size_max`](Self::virtual_size_max) bytes, or of none, of which some formats would make
    /// a disk of some size.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](ErrorKind::TooLarge), with both sizes; [`Unsupported`](ErrorKind::Unsupported).
    pub fn check_size(&self, virtual_size: u64, format: Format) -> Result<(), Error> {
        let max = self.virtual_size_max;
        if virtual_size == 0 {
            let reason = "the disk is empty: there is nothing to convert";
            return Err(Error::unsupported(reason).with_format(format));
        }
        if virtual_size <= max {
            return Ok(());
        }
        let reason = format!(
            "the disk has {virtual_size} bytes, and {max} are the most that are accepted here (image-virtual-size-max)"
        );
        Err(Error::new(ErrorKind::TooLarge, reason).with_format(format))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How much is done to see what is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LookLimits {
    /// How many bytes of the disk are read.
    pub(crate) bytes: u64,
    /// How many bytes are decoded, from compressed clusters, for these.
    pub(crate) expanded_bytes: u64,
    /// How many partitions, folder entries, attributes and links in chains are looked at.
    pub(crate) entries: u64,
    /// How deep things lie in each other: links that lead to links, and trees of extents.
    pub(crate) nesting: u32,
    /// How much of a text file is read, in bytes.
    pub(crate) text_bytes: u64,
}

impl LookLimits {
    /// - 8 MiB looked at: some hundred pages of 64 KiB, where a disk with ten partitions and Linux on it takes thirty.
    /// - 64 MiB decoded: each of these pages may be in a cluster of 2 MiB; this takes a fraction of a second.
    /// - 20,000 entries: `/etc` and `/usr/lib` of a full installation have some thousand.
    /// - 8 levels: ext4's trees have at most 5, and Linux follows 40 links where one is usual.
    /// - 64 KiB of text: an `os-release` has less than one.
    pub(crate) const DEFAULT: Self = Self {
        bytes: 8 << 20,
        expanded_bytes: 64 << 20,
        entries: 20_000,
        nesting: 8,
        text_bytes: 64 << 10,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    #[test]
    fn disks_over_the_bound_are_refused_with_both_sizes() {
        let limits = Limits {
            virtual_size_max: 1024,
            ..Limits::DEFAULT
        };
        limits.check(&Raw::open(vec![0; 1024]).unwrap()).unwrap();
        let error = limits.check(&Raw::open(vec![0; 1536]).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(
            error.reason(),
            "the disk has 1536 bytes, and 1024 are the most that are accepted here (image-virtual-size-max)"
        );
        let error = limits.check(&Raw::open(Vec::new()).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
