//! A store of [`RocksKv`](super::RocksKv) that is only read.
//!
//! Nothing is written, neither a table nor RocksDB's own text log, so that the folder may be on a read-only file system.
//! What the log (WAL) holds is read into memory; a cut-off record at its end stays where it is. RocksDB takes no lock for
//! this: who opens it sees to it that nobody writes meanwhile, because tables that go away cannot be read any more.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use rocksdb::DB;

use super::{
    RocksSnapshot,
    folder::{open_error, options},
    view::View,
};
use crate::{
    error::{Error, ErrorKind, Result},
    kv::{Commit, Kv, Outcome, Snapshot, Version, occ::History},
};

/// A store in a folder, for reading.
#[derive(Debug)]
pub struct RocksReader {
    db: Arc<DB>,
    history: Arc<History>,
}

impl RocksReader {
    /// Opens the store in the folder `path`. Blocks while the log is read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if stored bytes are damaged; [`ErrorKind::Io`] if there is none, or the disk fails.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = options();
        options.create_if_missing(false);
        let db = DB::open_for_read_only(&options, path, false).map_err(|error| open_error(path, error))?;
        let history = History::new(Version(db.latest_sequence_number()));
        Ok(Self {
            db: Arc::new(db),
            history,
        })
    }
}

#[async_trait]
impl Kv for RocksReader {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(RocksSnapshot {
            live: self.history.enter(),
            view: Arc::new(View::of(&self.db)),
        }))
    }

    async fn commit(&self, _: Commit) -> Outcome {
        Outcome::Refused(Error::new(ErrorKind::ReadOnly, "the index was opened for reading only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{RocksKv, Txn, transact};

    async fn put(kv: &Arc<dyn Kv>, key: &'static str) -> Result<()> {
        transact!(kv, |txn| { txn.put(key, "value") });
        Ok(())
    }

    #[tokio::test]
    async fn it_reads_the_log_and_refuses_commits() {
        let folder = tempfile::tempdir().unwrap();
        let kv: Arc<dyn Kv> = Arc::new(RocksKv::open(folder.path()).unwrap());
        put(&kv, "logged").await.unwrap();
        // While the writer has it, so that the row is in the log only.
        let reader: Arc<dyn Kv> = Arc::new(RocksReader::open(folder.path()).unwrap());
        let mut txn = Txn::begin(&reader).await.unwrap();
        assert_eq!(txn.get(b"logged").await.unwrap().unwrap(), "value");
        assert_eq!(put(&reader, "key").await.unwrap_err().kind(), ErrorKind::ReadOnly);
        drop((kv, reader));
    }

    #[tokio::test]
    async fn a_checkpoint_has_what_was_committed_and_nothing_later() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Arc::new(RocksKv::open(&folder.path().join("from")).unwrap());
        let kv: Arc<dyn Kv> = engine.clone();
        put(&kv, "before").await.unwrap();
        let to = folder.path().join("to");
        engine.checkpoint(&to).unwrap();
        put(&kv, "after").await.unwrap();
        assert_eq!(engine.checkpoint(&to).unwrap_err().kind(), ErrorKind::Io);
        let reader: Arc<dyn Kv> = Arc::new(RocksReader::open(&to).unwrap());
        let mut txn = Txn::begin(&reader).await.unwrap();
        assert!(txn.get(b"before").await.unwrap().is_some());
        assert!(txn.get(b"after").await.unwrap().is_none());
    }
}
