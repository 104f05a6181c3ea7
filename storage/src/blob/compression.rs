//! The physical form of a blob: as it came, or compressed.

use std::ops::RangeInclusive;

use crate::error::{Error, ErrorKind, Result};

/// Levels of zstd that a blob may be compressed at. Those below 1 hardly compress, those above 19 ask for memory that
/// the short groups of a blob cannot repay.
pub const ZSTD_LEVELS: RangeInclusive<i32> = 1..=19;

/// The least that compression must save, as a part of what the blob takes: one in this many bytes. Less is not worth
/// the time of every later read.
pub const SAVED_PART_MIN: u64 = 16;

/// How the bytes of a blob are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are, which is how every blob is written first.
    None,
    /// As frames of zstd, at a level of [`ZSTD_LEVELS`].
    Zstd(i32),
}

impl Compression {
    /// Gives this back if it is within its bounds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the level is not one of [`ZSTD_LEVELS`].
    pub fn checked(self) -> Result<Self> {
        match self {
            Self::Zstd(level) if !ZSTD_LEVELS.contains(&level) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "blobs are compressed at level {} to {}, not {level}",
                    ZSTD_LEVELS.start(),
                    ZSTD_LEVELS.end()
                ),
            )),
            _ => Ok(self),
        }
    }
}

/// What a blob takes before and after it was repacked, in stored bytes; the same if it stayed as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repacked {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

impl Repacked {
    /// A blob of `len` stored bytes that stays as it is.
    pub fn unchanged(len: u64) -> Self {
        Self {
            before: len,
            after: len,
        }
    }
}

/// The most stored bytes that a compressed form of a blob of `before` stored bytes may take to be worth it.
pub(crate) fn worthwhile_len_max(before: u64) -> u64 {
    before - before.div_ceil(SAVED_PART_MIN)
}
