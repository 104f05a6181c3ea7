//! How much of everything is accepted or done for one image, in one place.

/// The bounds that hold for every image, whatever it says of itself.
///
/// Bounds on single tables are those of the formats and stand beside their parsers; each is held against the real size of the
/// file as well. What one compressed byte may become is [`Codec`](crate::Codec)'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest disk, in bytes.
    pub virtual_size_max: u64,
    /// How many bytes of a disk are read to see what is on it.
    pub look_bytes_max: u64,
    /// How many bytes are decoded, from compressed clusters, for these.
    pub expanded_bytes_max: u64,
    /// How many partitions, folder entries, attributes and links in chains are looked at.
    pub entries_max: u64,
    /// How deep things lie in each other: links that lead to links, and trees of extents.
    pub nesting_max: u32,
    /// How much of a text file is read, in bytes.
    pub text_bytes_max: u64,
}

impl Limits {
    /// What is used unless somebody says otherwise.
    ///
    /// - 64 TiB of disk: VHDX, the largest of the common formats, ends there, and tables made for a disk within it stay small
    ///   (an L1 table of 1 MiB).
    /// - 8 MiB looked at: some hundred pages of 64 KiB, where a disk with ten partitions and Linux on it takes thirty.
    /// - 64 MiB decoded: each of these pages may be in a cluster of 2 MiB; this takes a fraction of a second.
    /// - 20,000 entries: `/etc` and `/usr/lib` of a full installation have some thousand.
    /// - 8 levels: ext4's trees have at most 5, and Linux follows 40 links where one is usual.
    /// - 64 KiB of text: an `os-release` has less than one.
    pub const DEFAULT: Self = Self {
        virtual_size_max: 64 << 40,
        look_bytes_max: 8 << 20,
        expanded_bytes_max: 64 << 20,
        entries_max: 20_000,
        nesting_max: 8,
        text_bytes_max: 64 << 10,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
