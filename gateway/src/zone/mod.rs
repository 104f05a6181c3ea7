//! Zones: failure domains of a cloud. A server serves some, and knows peers that serve others.
//!
//! | module | holds |
//! | --- | --- |
//! | `registry` | the peers: who they are, which zones they serve, with what keys they are asked |
//! | `wire` | what one server says to another |
//! | `receive` | what a server answers to it |
//!
//! The sending side is a job (`job/replicate.rs`). An object is pushed by the server that has it to each server of the
//! zone; a replica is not passed on by the binding of its bucket, so that there are no circles.

mod receive;
pub(crate) mod registry;
pub(crate) mod wire;

use std::{fmt, str::FromStr};

use lithos_storage::ObjectRecord;
use serde::{Deserialize, Serialize};

pub(crate) use self::receive::routes;
use crate::image::wishes::PENDING;

/// The servers of a zone have the object.
pub(crate) const COMPLETED: &str = "COMPLETED";
/// The object cannot be replicated to a zone; its job says why.
pub(crate) const FAILED: &str = "FAILED";
/// The object came here from another server.
pub(crate) const REPLICA: &str = "REPLICA";

/// Where the replication of an object stands, over all zones (S3 User Guide, "Getting replication status information").
pub(crate) fn status(record: &ObjectRecord) -> Option<&'static str> {
    let some = |wanted: &str| record.replication.values().any(|status| status == wanted);
    [REPLICA, FAILED, PENDING, COMPLETED]
        .into_iter()
        .find(|status| some(status))
}

/// The name of a zone: 1 to 63 letters, digits, hyphens, dots and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ZoneName(String);

impl ZoneName {
    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !(1..=63).contains(&name.len()) || !name.bytes().all(legal) {
            let shown: String = name.chars().take(64).collect();
            return Err(format!(
                "{shown:?} is not a zone: 1 to 63 letters, digits, hyphens, dots and underscores"
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for ZoneName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<ZoneName> for String {
    fn from(name: ZoneName) -> Self {
        name.0
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_zones_are_words() {
        for good in ["az1", "eu-west_1.b", &"z".repeat(63)] {
            assert!(good.parse::<ZoneName>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a,b", &"z".repeat(64)] {
            assert!(bad.parse::<ZoneName>().is_err(), "{bad}");
        }
    }
}
