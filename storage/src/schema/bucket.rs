//! Buckets.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

use super::{BucketId, ObjectLock, QuotaRecord, Tags, Versioning};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
};

/// A bucket's name: 3 to 63 lower-case letters, digits, hyphens and dots, as in the S3 User Guide, "Bucket naming rules".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

impl BucketName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BucketName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = name.as_bytes();
        let legal = (3..=63).contains(&bytes.len())
            && bytes.iter().all(|&byte| edge(byte) || byte == b'-' || byte == b'.')
            && bytes.first().is_some_and(|&byte| edge(byte))
            && bytes.last().is_some_and(|&byte| edge(byte))
            && !name.contains("..")
            && name.parse::<std::net::Ipv4Addr>().is_err();
        if !legal {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "{:?} is not a bucket name: 3 to 63 lower-case letters, digits, hyphens and single dots, \
                     beginning and ending with a letter or digit, and not an IP address",
                    name.chars().take(64).collect::<String>()
                ),
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct BucketRecord {
    /// Its id; objects live under it.
    #[n(0)]
    pub id: BucketId,
    /// When it was created.
    #[n(1)]
    pub created: Timestamp,
    /// The region it was created in: its home zone, if it was given one.
    #[n(2)]
    pub region: Option<String>,
    /// Its tags.
    #[n(3)]
    pub tags: Tags,
    /// Who created it: the id of a user, or the access key of the root keys of then.
    #[n(4)]
    pub owner: String,
    /// The most that it may hold.
    #[n(5)]
    pub quota: Option<QuotaRecord>,
    /// The level of zstd at which its objects are compressed at rest, if they are.
    #[n(6)]
    pub compression: Option<i32>,
    /// Whether it keeps versions.
    #[n(7)]
    #[cbor(default)]
    pub versioning: Versioning,
    /// Whether it has lifecycle rules, which are in a row of their own.
    #[n(8)]
    #[cbor(default)]
    pub lifecycle: bool,
    /// Its object lock, if it has that.
    #[n(9)]
    pub object_lock: Option<ObjectLock>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{decode, encode};

    /// A record as it was before there were quotas.
    #[derive(Encode)]
    struct Earlier {
        #[n(0)]
        id: BucketId,
        #[n(1)]
        created: Timestamp,
        #[n(2)]
        region: Option<String>,
        #[n(3)]
        tags: Tags,
        #[n(4)]
        owner: String,
    }

    #[test]
    fn earlier_records_have_no_quota() {
        let earlier = Earlier {
            id: BucketId([7; 16]),
            created: Timestamp(5),
            region: Some("az1".into()),
            tags: Tags::new(),
            owner: "owner".into(),
        };
        let record: BucketRecord = decode(&encode(&earlier)).unwrap();
        assert_eq!(
            (record.id, record.owner.as_str(), record.quota, record.versioning),
            (earlier.id, "owner", None, Versioning::Never)
        );
        let quota = QuotaRecord {
            bytes: Some(u64::MAX),
            objects: None,
        };
        let record = BucketRecord {
            quota: Some(quota),
            versioning: Versioning::Suspended,
            ..record
        };
        assert_eq!(decode::<BucketRecord>(&encode(&record)).unwrap(), record);
    }

    #[test]
    fn bucket_names_follow_the_naming_rules() {
        for good in ["abc", "a-b.c", "0aa", &"a".repeat(63)] {
            assert!(good.parse::<BucketName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            "a..b",
            "192.168.0.1",
            &"a".repeat(64),
            "a/b",
            ".ab",
            "äbc",
        ] {
            assert!(bad.parse::<BucketName>().is_err(), "{bad}");
        }
    }
}
