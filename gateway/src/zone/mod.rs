//! Zones: failure domains of a cloud. A server serves some, and knows peers that serve others.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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

/// TEMP
pub(crate) fn routes(_app: crate::app::SharedApp) -> axum::Router {
    axum::Router::new()
}
/// TEMP
pub(crate) fn status(_record: &lithos_storage::ObjectRecord) -> Option<&'static str> {
    None
}
