//! Peer servers, as this one knows them.

use minicbor::{Decode, Encode};

use crate::{
    error::{Error, ErrorKind, Result},
    kv::transact,
    schema::{Keys, decode, encode},
    staging::get,
    store::Store,
};

/// Most peers that a server knows.
pub const PEERS_MAX: usize = 256;

/// A peer server.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PeerRecord {
    /// Its name, unique here.
    #[n(0)]
    pub name: String,
    /// URL of its management address.
    #[n(1)]
    pub management: String,
    /// URL of its transfer address.
    #[n(2)]
    pub transfer: String,
    /// The zones it serves.
    #[n(3)]
    pub zones: Vec<String>,
    /// The access key to use there.
    #[n(4)]
    pub access_key: String,
    /// The secret key, sealed by whoever stores it: the index holds no secret in the clear.
    #[n(5)]
    #[cbor(with = "minicbor::bytes")]
    pub sealed_secret: Vec<u8>,
}

impl Store {
    /// Adds a peer, or replaces what was known of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] if there are too many; [`ErrorKind::Io`] if the index fails.
    pub async fn put_peer(&self, peer: &PeerRecord) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let key = Keys::peer(&peer.name);
            let peers = txn.scan_all(Keys::peers()).await?;
            let known = peers.iter().any(|(name, _)| *name == key);
            if !known && peers.len() >= PEERS_MAX {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("there are {PEERS_MAX} peers already"),
                ));
            }
            txn.put(key, encode(peer))
        });
        Ok(())
    }

    /// The peer `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn peer(&self, name: &str) -> Result<PeerRecord> {
        get(&mut self.begin().await?, &Keys::peer(name))
            .await?
            .ok_or_else(|| unknown(name))
    }

    /// Forgets a peer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`]; [`ErrorKind::Io`] if the index fails.
    pub async fn delete_peer(&self, name: &str) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            if get::<PeerRecord>(&mut txn, &Keys::peer(name)).await?.is_none() {
                return Err(unknown(name));
            }
            txn.delete(Keys::peer(name))
        });
        Ok(())
    }

    /// All peers by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_peers(&self) -> Result<Vec<PeerRecord>> {
        let rows = self.begin().await?.scan_all(Keys::peers()).await?;
        rows.iter().map(|(_, peer)| decode(peer)).collect()
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NoSuchRecord, format!("no server {name:?} is known here"))
}
