//! The peers a server knows. They are few, so that they are read where they are needed and never cached.

use lithos_storage::{Error, ErrorKind, PeerRecord, Result};
use serde::{Deserialize, Serialize};

use super::ZoneName;
use crate::{
    app::App,
    client::{self, Client},
    config::RootKeys,
};

/// Longest name, in bytes.
const NAME_LEN_MAX: usize = 63;
/// Most zones of a peer.
const ZONES_MAX: usize = 64;
/// Longest key, in bytes.
const KEY_LEN_MAX: usize = 256;

/// A peer to be added.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPeer {
    /// Its name here: 1 to 63 letters, digits, hyphens, dots and underscores, beginning with a letter or digit.
    pub(crate) name: String,
    /// URL of its management address.
    pub(crate) management: String,
    /// URL of its transfer address.
    pub(crate) transfer: String,
    /// The zones it serves.
    pub(crate) zones: Vec<ZoneName>,
    /// The access key to use there.
    pub(crate) access_key: String,
    /// The secret key that belongs to it. The index holds it sealed.
    pub(crate) secret_key: String,
}

impl std::fmt::Debug for NewPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewPeer")
            .field("name", &self.name)
            .field("transfer", &self.transfer)
            .field("zones", &self.zones)
            .finish_non_exhaustive()
    }
}

/// A peer as it is shown: without its secret key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerView {
    /// As in [`NewPeer::name`].
    pub(crate) name: String,
    /// As in [`NewPeer::management`].
    pub(crate) management: String,
    /// As in [`NewPeer::transfer`].
    pub(crate) transfer: String,
    /// As in [`NewPeer::zones`].
    pub(crate) zones: Vec<String>,
    /// As in [`NewPeer::access_key`].
    pub(crate) access_key: String,
}

impl From<PeerRecord> for PeerView {
    fn from(peer: PeerRecord) -> Self {
        Self {
            name: peer.name,
            management: peer.management,
            transfer: peer.transfer,
            zones: peer.zones,
            access_key: peer.access_key,
        }
    }
}

/// The peers by name.
pub(crate) async fn list(app: &App) -> Result<Vec<PeerView>> {
    Ok(app.store.list_peers().await?.into_iter().map(Into::into).collect())
}

/// Adds a peer, or replaces the one of that name. It need not be up: jobs that want it wait for it.
///
/// # Errors
///
/// [`ErrorKind::InvalidArgument`] and what is wrong with it; [`ErrorKind::TooLarge`] if there are too many.
pub(crate) async fn add(app: &App, new: NewPeer) -> Result<PeerView> {
    check_name(&new.name)?;
    let management = address("management", &new.management)?;
    let transfer = address("transfer", &new.transfer)?;
    if new.zones.is_empty() || new.zones.len() > ZONES_MAX {
        return Err(invalid(format!("a server serves 1 to {ZONES_MAX} zones")));
    }
    for (what, key) in [("access", &new.access_key), ("secret", &new.secret_key)] {
        if key.is_empty() || key.len() > KEY_LEN_MAX || key.chars().any(char::is_control) {
            return Err(invalid(format!(
                "the {what} key is not 1 to {KEY_LEN_MAX} printable characters"
            )));
        }
    }
    let sealed_secret = app
        .keyring
        .seal(&secret_context(&new.name), &new.secret_key)
        .map_err(|e| Error::new(ErrorKind::Io, "seal the secret key of a server").caused_by(e))?;
    let mut zones: Vec<String> = new.zones.into_iter().map(Into::into).collect();
    zones.sort_unstable();
    zones.dedup();
    let peer = PeerRecord {
        name: new.name,
        management,
        transfer,
        zones,
        access_key: new.access_key,
        sealed_secret,
    };
    app.store.put_peer(&peer).await?;
    tracing::info!(
        peer = peer.name,
        transfer = peer.transfer,
        zones = peer.zones.join(","),
        "server added"
    );
    Ok(peer.into())
}

/// Forgets a peer. What was replicated to it stays there.
///
/// # Errors
///
/// [`ErrorKind::NoSuchRecord`] if it is not known.
pub(crate) async fn remove(app: &App, name: &str) -> Result<()> {
    check_name(name)?;
    app.store.delete_peer(name).await?;
    tracing::info!(peer = name, "server removed");
    Ok(())
}

/// The peers that serve `zone`.
pub(crate) async fn serving(app: &App, zone: &ZoneName) -> Result<Vec<PeerRecord>> {
    let mut peers = app.store.list_peers().await?;
    peers.retain(|peer| peer.zones.iter().any(|served| served == zone.as_str()));
    Ok(peers)
}

/// A client of the peer's transfer address.
pub(crate) fn transfer_client(app: &App, peer: &PeerRecord) -> anyhow::Result<Client> {
    let secret_key = app.keyring.unseal(&secret_context(&peer.name), &peer.sealed_secret)?;
    let base = client::parse_server(&peer.transfer).map_err(anyhow::Error::msg)?;
    let keys = RootKeys {
        access_key: peer.access_key.clone(),
        secret_key,
    };
    Ok(Client::new(base, keys)?)
}

/// What the secret key of peer `name` is sealed for.
fn secret_context(name: &str) -> String {
    format!("peer {name}")
}

fn check_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    // It is a segment of the path in the admin API, where one of dots only would mean something else.
    if bytes.len() > NAME_LEN_MAX || !bytes.first().is_some_and(u8::is_ascii_alphanumeric) || !bytes.iter().all(legal) {
        let shown: String = name.chars().take(64).collect();
        return Err(invalid(format!(
            "{shown:?} is not a name for a server: 1 to {NAME_LEN_MAX} letters, digits, hyphens, dots and underscores, \
             beginning with a letter or digit"
        )));
    }
    Ok(())
}

fn address(which: &str, url: &str) -> Result<String> {
    let url = client::parse_server(url).map_err(|e| invalid(format!("the {which} address: {e}")))?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_are_segments_of_a_path() {
        for good in ["a", "az2-server.1_b", "9"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let new = NewPeer {
            name: "az2".into(),
            management: "http://h:1".into(),
            transfer: "http://h:2".into(),
            zones: Vec::new(),
            access_key: "access".into(),
            secret_key: "hush".into(),
        };
        assert!(!format!("{new:?}").contains("hush"));
    }
}
