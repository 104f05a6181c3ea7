//! Quotas and usage.

use std::fmt;

use minicbor::{Decode, Encode};

/// The most that a bucket, or all buckets of a user together, may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct QuotaRecord {
    /// Most bytes, as [`Usage::bytes`] counts them; `None` for no bound.
    #[n(0)]
    pub bytes: Option<u64>,
    /// Most objects; `None` for no bound.
    #[n(1)]
    pub objects: Option<u64>,
}

/// What a bucket, or all buckets of a user together, hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sizes of the objects, and of the parts of uploads in progress, in bytes, as clients read them: zeros and shared
    /// blobs count in full.
    pub bytes: u64,
    /// Objects. An upload in progress is none yet.
    pub objects: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    Bytes,
    Objects,
}

impl Measure {
    pub(crate) const ALL: [Self; 2] = [Self::Bytes, Self::Objects];

    /// Its byte in keys.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Bytes => b'b',
            Self::Objects => b'o',
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Objects => "objects",
        })
    }
}

impl QuotaRecord {
    pub(crate) fn of(&self, measure: Measure) -> Option<u64> {
        match measure {
            Measure::Bytes => self.bytes,
            Measure::Objects => self.objects,
        }
    }
}
