//! Multipart uploads and their parts.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::{Checksum, ChecksumAlgorithm, ChecksumType, ContentHeaders, Tags, VersionLock};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    layout::Layout,
};

/// The number of a part: 1 to 10,000 (S3 User Guide, "Multipart upload limits").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct PartNumber(#[n(0)] u16);

impl PartNumber {
    /// The largest part number, and so the largest count of parts.
    pub const MAX: u16 = 10_000;

    /// Checks the bounds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if `number` is not within 1 and 10,000.
    pub fn new(number: i64) -> Result<Self> {
        match u16::try_from(number) {
            Ok(number @ 1..=Self::MAX) => Ok(Self(number)),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("part number {number} is not within 1 and {}", Self::MAX),
            )),
        }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A multipart upload in progress. Its id is the id of the layout that it will complete to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct UploadRecord {
    /// When it was created.
    #[n(0)]
    pub initiated: Timestamp,
    /// Headers for the object.
    #[n(1)]
    pub headers: ContentHeaders,
    /// User metadata for the object.
    #[n(2)]
    pub metadata: BTreeMap<String, String>,
    /// Tags for the object.
    #[n(3)]
    pub tags: Tags,
    /// The checksum algorithm the client announced.
    #[n(4)]
    pub checksum_algorithm: Option<ChecksumAlgorithm>,
    /// The checksum type the client announced.
    #[n(5)]
    pub checksum_type: Option<ChecksumType>,
    /// Who began it, as in [`BucketRecord::owner`](super::BucketRecord::owner).
    #[n(6)]
    pub owner: String,
    /// What is to protect the object that it becomes.
    #[n(7)]
    #[cbor(default)]
    pub lock: VersionLock,
}

/// A part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct PartRecord {
    /// Where its bytes are; its blobs are owned by the upload.
    #[n(0)]
    pub layout: Layout,
    /// MD5 in hexadecimal digits.
    #[n(1)]
    pub etag: String,
    /// When it was written.
    #[n(2)]
    pub last_modified: Timestamp,
    /// A checksum beside the `ETag`.
    #[n(3)]
    pub checksum: Option<Checksum>,
    /// The indexes of the blobs that were written for it, to be cleared if another upload of the part replaces it.
    #[n(4)]
    pub blobs: Vec<u64>,
}

/// An upload that was completed or aborted, and whose part records wait to be cleared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct EndedUpload {
    /// The part numbers that went into the object, as runs of `first`, `count`. Blobs of all others are deleted.
    #[n(0)]
    pub(crate) kept: Vec<(u16, u16)>,
}

impl EndedUpload {
    /// Notes that part `number`, larger than all before, is kept.
    pub(crate) fn keep(&mut self, number: PartNumber) {
        if let Some((first, count)) = self.kept.last_mut()
            && first.checked_add(*count) == Some(number.0)
        {
            *count += 1;
            return;
        }
        self.kept.push((number.0, 1));
    }

    /// Whether part `number` went into the object.
    pub(crate) fn keeps(&self, number: u16) -> bool {
        self.kept
            .iter()
            .any(|&(first, count)| (u32::from(first)..u32::from(first) + u32::from(count)).contains(&u32::from(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_numbers_are_bounded() {
        for good in [1, 10_000] {
            assert!(PartNumber::new(good).is_ok());
        }
        for bad in [0, -1, 10_001, 65_537, i64::MAX, i64::MIN] {
            assert_eq!(PartNumber::new(bad).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn kept_parts_fold_into_runs() {
        let mut ended = EndedUpload::default();
        for number in [1, 2, 3, 7, 8, 10_000] {
            ended.keep(PartNumber::new(number).unwrap());
        }
        assert_eq!(ended.kept, [(1, 3), (7, 2), (10_000, 1)]);
        for (number, kept) in [(1, true), (3, true), (4, false), (8, true), (9, false), (10_000, true)] {
            assert_eq!(ended.keeps(number), kept, "{number}");
        }
    }
}
