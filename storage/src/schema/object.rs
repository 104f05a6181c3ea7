//! Objects.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::{JobId, LayoutId, VersionLock, VersionStamp};
use crate::{clock::Timestamp, layout::Layout};

/// Tags of an object or a bucket.
pub type Tags = BTreeMap<String, String>;

/// One version of an object.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ObjectRecord {
    /// The id of its layout, unique to this version.
    #[n(0)]
    pub layout_id: LayoutId,
    /// Where its bytes are.
    #[n(1)]
    pub layout: Layout,
    /// When it was last written.
    #[n(2)]
    pub last_modified: Timestamp,
    /// Its `ETag`, without quotes: the MD5 in hexadecimal digits, for multipart uploads followed by `-` and the number
    /// of parts.
    #[n(3)]
    pub etag: String,
    /// Headers that are given back with it.
    #[n(4)]
    pub headers: ContentHeaders,
    /// The user's metadata, names in lower case without the `x-amz-meta-` prefix.
    #[n(5)]
    pub metadata: BTreeMap<String, String>,
    /// Its tags.
    #[n(6)]
    pub tags: Tags,
    /// A checksum beside the `ETag`, if the client asked for one.
    #[n(7)]
    pub checksum: Option<Checksum>,
    /// The parts it was completed from; empty for a single upload.
    #[n(8)]
    pub part_sizes: Vec<PartSize>,
    /// What the server itself knows of the object, by name. Never the user's.
    #[n(9)]
    pub annotations: BTreeMap<String, String>,
    /// Jobs that were made for it, the latest last.
    #[n(10)]
    pub jobs: Vec<JobId>,
    /// Who wrote it, as in [`BucketRecord::owner`](super::BucketRecord::owner).
    #[n(11)]
    pub owner: String,
    /// Where replication to each zone stands, by zone.
    #[n(12)]
    pub replication: BTreeMap<String, String>,
    /// Its name and its place among the versions of its key. The store gives it.
    #[n(13)]
    #[cbor(default)]
    pub version: VersionStamp,
    /// What protects it from being deleted.
    #[n(14)]
    #[cbor(default)]
    pub lock: VersionLock,
}

impl ObjectRecord {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }
}

/// A run of parts of the same size, in the order of their numbers: 10,000 parts are two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct PartSize {
    /// Size of each part in bytes.
    #[n(0)]
    pub size: u64,
    /// How many parts.
    #[n(1)]
    pub count: u32,
}

/// Headers that a client sets with an upload and gets back with a download.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct ContentHeaders {
    /// `Content-Type`
    #[n(0)]
    pub content_type: Option<String>,
    /// `Content-Encoding`
    #[n(1)]
    pub content_encoding: Option<String>,
    /// `Content-Disposition`
    #[n(2)]
    pub content_disposition: Option<String>,
    /// `Content-Language`
    #[n(3)]
    pub content_language: Option<String>,
    /// `Cache-Control`
    #[n(4)]
    pub cache_control: Option<String>,
    /// `Expires`
    #[n(5)]
    pub expires: Option<String>,
    /// `x-amz-website-redirect-location`
    #[n(6)]
    pub website_redirect_location: Option<String>,
    /// `x-amz-storage-class`
    #[n(7)]
    pub storage_class: Option<String>,
}

/// A checksum of an object or a part, as in the S3 User Guide, "Checking object integrity".
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Checksum {
    /// The algorithm.
    #[n(0)]
    pub algorithm: ChecksumAlgorithm,
    /// The value in base64; a composite one ends in `-` and the number of parts.
    #[n(1)]
    pub value: String,
    /// Of what it is the checksum.
    #[n(2)]
    pub kind: ChecksumType,
}

/// Checksum algorithms of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum ChecksumAlgorithm {
    /// CRC32 (ISO-HDLC)
    #[n(0)]
    Crc32,
    /// CRC32C (Castagnoli)
    #[n(1)]
    Crc32c,
    /// CRC64NVME
    #[n(2)]
    Crc64Nvme,
    /// SHA1
    #[n(3)]
    Sha1,
    /// SHA256
    #[n(4)]
    Sha256,
}

/// Of what a checksum is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ChecksumType {
    /// Of the object's bytes.
    #[n(0)]
    FullObject,
    /// Of the checksums of its parts.
    #[n(1)]
    Composite,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        blob::BlobId,
        kv::VALUE_LEN_MAX,
        layout::{Extent, ExtentList, INLINE_LEN_MAX, Piece},
        multipart::PART_SIZES_MAX,
        schema::{VersionRow, encode},
        store::Limits,
    };

    fn texts(count: usize, name: usize, value: usize) -> BTreeMap<String, String> {
        (0..count).map(|n| (format!("{n:0name$}"), "v".repeat(value))).collect()
    }

    /// All that S3 lets a client set, and the worst layout: each extent in a blob of its own.
    #[test]
    fn the_largest_record_fits_a_value() {
        let limits = Limits::default();
        let blob = |n: usize| Piece {
            len: limits.blob_len_max - n as u64,
            extent: Extent::Blob {
                id: BlobId {
                    owner: LayoutId([0xff; 16]),
                    index: u64::MAX - n as u64,
                },
                offset: limits.blob_len_max - n as u64,
            },
        };
        let inline = Piece {
            len: INLINE_LEN_MAX,
            extent: Extent::Inline(vec![1; usize::try_from(INLINE_LEN_MAX).unwrap()].into()),
        };
        let layout: ExtentList = (1..limits.listed_count_max).map(blob).chain([inline]).collect();
        assert_eq!(layout.count(), limits.listed_count_max);
        let header = || Some("h".repeat(1024));
        let record = ObjectRecord {
            layout_id: LayoutId([0xff; 16]),
            layout: Layout::Listed(layout),
            last_modified: Timestamp(u64::MAX),
            etag: "e".repeat(38),
            headers: ContentHeaders {
                content_type: header(),
                content_encoding: header(),
                content_disposition: header(),
                content_language: header(),
                cache_control: header(),
                expires: header(),
                website_redirect_location: header(),
                storage_class: header(),
            },
            metadata: texts(64, 16, 16),
            // Ten tags of 128 and 256 characters, each of up to four bytes.
            tags: texts(10, 512, 1024),
            checksum: Some(Checksum {
                algorithm: ChecksumAlgorithm::Sha256,
                value: "c".repeat(50),
                kind: ChecksumType::Composite,
            }),
            part_sizes: (0..PART_SIZES_MAX as u64)
                .map(|n| PartSize {
                    size: (5 << 30) - n,
                    count: 1,
                })
                .collect(),
            annotations: texts(16, 32, 256),
            jobs: vec![JobId([0xff; 16]); 16],
            owner: "o".repeat(128),
            replication: texts(16, 64, 16),
            version: VersionStamp {
                sequence: u64::MAX,
                token: Some(u64::MAX),
            },
            lock: VersionLock {
                retention: Some(crate::schema::Retention {
                    mode: crate::schema::LockMode::Compliance,
                    until: Timestamp(u64::MAX),
                }),
                legal_hold: Some(true),
            },
        };
        let since = Timestamp(u64::MAX);
        let record = Box::new(record);
        let len = encode(&VersionRow::Object { record, since }).len();
        assert!(len <= VALUE_LEN_MAX, "{len} bytes");
    }
}
