//! In which format a store is written, and which release wrote it last.
//!
//! Two rows of table `M`: `format`, a number in 8 bytes, big-endian, and `release`, text. A store that has no row at all is
//! new, and gets the format of this release. A format changes when a release could misread what another has written; the
//! way from an older one is `upgrade`, offline and asked for, because there is no way back but a backup.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    error::{Error, ErrorKind, Result},
    kv::{Kv, Snapshot, Txn, prefix_range, transact},
    schema::{FORMAT_VERSION, Keys},
};

/// This release.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// The format's number.
    pub version: u64,
    /// The release that wrote last; `None` before format 2.
    pub release: Option<String>,
}

impl Format {
    /// Reads what the store of `snapshot` says; `None` if it is new.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`] if there are rows, but none that says it; [`ErrorKind::Io`] if the index cannot be read.
    pub(crate) async fn read(snapshot: &dyn Snapshot) -> Result<Option<Self>> {
        let release = snapshot.get(&Keys::meta("release")).await?;
        let release = release.map(|release| String::from_utf8_lossy(&release).into_owned());
        if let Some(version) = snapshot.get(&Keys::meta("format")).await? {
            let version = parse(&version)?;
            return Ok(Some(Self { version, release }));
        }
        let any = crate::kv::Scan {
            range: prefix_range(b""),
            limit: 1,
            order: crate::kv::Order::Ascending,
        };
        if snapshot.scan(&any).await?.rows.is_empty() {
            return Ok(None);
        }
        Err(Error::new(
            ErrorKind::Format,
            "the index does not say in which format it is: it is none of this server's, or damaged",
        ))
    }

    /// Refuses what this release cannot read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`], saying what to do.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_not_newer()?;
        if self.version < FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "the store is in format {}: run `lithos upgrade --data DIR` (offline; takes about a minute for a \
                     million objects; make a backup first)",
                    self.version
                ),
            ));
        }
        Ok(())
    }

    /// Refuses what a newer release has written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`], saying so.
    pub(crate) fn check_not_newer(&self) -> Result<()> {
        if self.version <= FORMAT_VERSION {
            return Ok(());
        }
        let release = self
            .release
            .as_ref()
            .map_or_else(String::new, |release| format!(", {release}"));
        Err(Error::new(
            ErrorKind::Format,
            format!(
                "the store was written in format {} by a newer release{release}; this release, {RELEASE}, reads up to \
                 {FORMAT_VERSION}",
                self.version
            ),
        ))
    }
}

/// Checks the format of a store that is to be written; a new one gets that of this release. Notes the release, too.
pub(crate) async fn adopt(kv: &Arc<dyn Kv>) -> Result<()> {
    if let Some(format) = Format::read(&*kv.snapshot().await?).await? {
        format.check()?;
        if format.release.as_deref() == Some(RELEASE) {
            return Ok(());
        }
    }
    stamp(kv).await
}

/// Checks the format of a store that is only read.
pub(crate) async fn check(kv: &Arc<dyn Kv>) -> Result<()> {
    match Format::read(&*kv.snapshot().await?).await? {
        Some(format) => format.check(),
        None => Err(Error::new(
            ErrorKind::Format,
            "the store is new: it has to be opened for writing once",
        )),
    }
}

/// Says that the store is in the format of this release. Synced, and with it everything before.
pub(crate) async fn stamp(kv: &Arc<dyn Kv>) -> Result<()> {
    transact!(kv, |txn| { put(&mut txn, FORMAT_VERSION) });
    Ok(())
}

fn put(txn: &mut Txn, version: u64) -> Result<()> {
    txn.put(Keys::meta("format"), Bytes::copy_from_slice(&version.to_be_bytes()))?;
    txn.put(Keys::meta("release"), RELEASE)
}

fn parse(version: &[u8]) -> Result<u64> {
    let version = version
        .try_into()
        .map_err(|_| Error::corrupt("the index holds a damaged format version"))?;
    Ok(u64::from_be_bytes(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::MemoryKv;

    async fn kv_of(version: Option<u64>) -> Arc<dyn Kv> {
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        let mut txn = Txn::begin(&kv).await.unwrap();
        txn.put("B", "x").unwrap();
        if let Some(version) = version {
            put(&mut txn, version).unwrap();
        }
        txn.commit().await;
        kv
    }

    #[tokio::test]
    async fn new_stores_get_the_format_of_this_release() {
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        assert_eq!(check(&kv).await.unwrap_err().kind(), ErrorKind::Format);
        adopt(&kv).await.unwrap();
        let found = Format::read(&*kv.snapshot().await.unwrap()).await.unwrap().unwrap();
        assert_eq!(found.version, FORMAT_VERSION);
        assert_eq!(found.release.as_deref(), Some(RELEASE));
        adopt(&kv).await.unwrap();
        check(&kv).await.unwrap();
    }

    #[tokio::test]
    async fn other_formats_are_refused_with_what_to_do() {
        for (version, words) in [
            (Some(FORMAT_VERSION + 1), "by a newer release"),
            (Some(1), "lithos upgrade --data DIR"),
            (None, "does not say"),
        ] {
            let kv = kv_of(version).await;
            for error in [adopt(&kv).await.unwrap_err(), check(&kv).await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Format);
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }
}
