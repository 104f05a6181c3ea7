//! Versions of objects: their names, their order, and the rows of those that are not current.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

use super::{ObjectRecord, random_u64};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
};

/// How the name of the null version is written (S3 User Guide, "Using versioning in S3 buckets").
const NULL: &str = "null";

/// Whether a bucket keeps the versions that are replaced or deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Versioning {
    /// It does not, and never did: there is nothing but current versions, and all of them are null.
    #[default]
    #[n(0)]
    Never,
    /// It does. There is no way back from here to [`Versioning::Never`].
    #[n(1)]
    Enabled,
    /// It keeps those that it has; what is written is the null version, in the place of the null version before.
    #[n(2)]
    Suspended,
}

/// The name of a version among those of its key: 32 hexadecimal digits, or `null`.
///
/// The digits say where the version lies, so that it is found by one read. Nothing else may be read out of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VersionId {
    /// The version that was written while the bucket kept none. A key has at most one.
    Null,
    /// Another one.
    Named {
        /// As in [`VersionStamp::sequence`].
        sequence: u64,
        /// As in [`VersionStamp::token`].
        token: u64,
    },
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str(NULL),
            Self::Named { sequence, token } => write!(f, "{sequence:016x}{token:016x}"),
        }
    }
}

impl FromStr for VersionId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == NULL {
            return Ok(Self::Null);
        }
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).map_err(|_| {
            let shown: String = text.chars().take(64).collect();
            Error::new(ErrorKind::InvalidArgument, format!("{shown:?} is not a version id"))
        })?;
        let id = u128::from_be_bytes(id);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        Ok(Self::Named {
            sequence: half(id >> 64),
            token: half(id),
        })
    }
}

/// The name of a version, and its place among those of its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct VersionStamp {
    /// Larger than that of every version that the key had when it was written; about the milliseconds since 1970. 0 for
    /// what was written before there were versions.
    #[n(0)]
    pub sequence: u64,
    /// Random, so that a name never comes again; `None` for the null version.
    #[n(1)]
    pub token: Option<u64>,
}

impl VersionStamp {
    /// The stamp of a version that is written after one with the sequence `newest`.
    pub(crate) fn after(newest: Option<u64>, now: Timestamp, versioning: Versioning) -> Self {
        Self {
            sequence: newest.map_or(now.0, |newest| now.0.max(newest.saturating_add(1))),
            token: (versioning == Versioning::Enabled).then(random_u64),
        }
    }

    /// The version's name.
    pub fn id(self) -> VersionId {
        match self.token {
            None => VersionId::Null,
            Some(token) => VersionId::Named {
                sequence: self.sequence,
                token,
            },
        }
    }

    /// Whether it is that of the null version.
    pub fn is_null(self) -> bool {
        self.token.is_none()
    }
}

/// What a delete leaves in a bucket that keeps versions: the key counts as absent from then on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeleteMarker {
    /// Its name and its place.
    #[n(0)]
    pub version: VersionStamp,
    /// When it was made.
    #[n(1)]
    pub last_modified: Timestamp,
    /// The owner of the bucket.
    #[n(2)]
    pub owner: String,
}

/// A version of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Version {
    /// An object.
    Object(Box<ObjectRecord>),
    /// The mark that there was none from then on.
    DeleteMarker(DeleteMarker),
}

impl Version {
    /// Who wrote it, or, of a delete marker, owns its bucket.
    pub fn owner(&self) -> &str {
        match self {
            Self::Object(record) => &record.owner,
            Self::DeleteMarker(marker) => &marker.owner,
        }
    }

    /// Its name and its place.
    pub fn stamp(&self) -> VersionStamp {
        match self {
            Self::Object(record) => record.version,
            Self::DeleteMarker(marker) => marker.version,
        }
    }
}

/// A row of table `V`: a version that reads without a version id do not see.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) enum VersionRow {
    /// An object version that another version came after.
    #[n(0)]
    Object {
        /// The version.
        #[n(0)]
        record: Box<ObjectRecord>,
        /// Since when it is not the current one.
        #[n(1)]
        since: Timestamp,
    },
    /// A delete marker: one behind which no version came is the latest version of its key.
    #[n(1)]
    Marker(#[n(0)] DeleteMarker),
}

impl VersionRow {
    pub(crate) fn stamp(&self) -> VersionStamp {
        match self {
            Self::Object { record, .. } => record.version,
            Self::Marker(marker) => marker.version,
        }
    }

    /// The object, if it is one.
    pub(crate) fn object(self) -> Option<ObjectRecord> {
        match self {
            Self::Object { record, .. } => Some(*record),
            Self::Marker(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_ids_survive_text() {
        let named = VersionId::Named {
            sequence: 0x0123_4567_89ab_cdef,
            token: u64::MAX,
        };
        assert_eq!(named.to_string(), "0123456789abcdefffffffffffffffff");
        for id in [VersionId::Null, named] {
            assert_eq!(id.to_string().parse::<VersionId>().unwrap(), id);
        }
        for bad in ["", "NULL", "0", &"g".repeat(32), &"0".repeat(31), &"0".repeat(33), "é"] {
            let error = bad.parse::<VersionId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn later_versions_have_larger_sequences_whatever_the_clock_says() {
        let stamp = |newest, now| VersionStamp::after(newest, Timestamp(now), Versioning::Enabled).sequence;
        assert_eq!(stamp(None, 5), 5);
        assert_eq!(stamp(Some(4), 5), 5);
        assert_eq!(stamp(Some(5), 5), 6);
        assert_eq!(stamp(Some(9), 5), 10);
        let suspended = VersionStamp::after(None, Timestamp(5), Versioning::Suspended);
        assert!(suspended.is_null());
        assert_eq!(suspended.id(), VersionId::Null);
    }
}
