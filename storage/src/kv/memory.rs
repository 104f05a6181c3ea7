//! An engine in memory, for tests: short enough to be believed, and able to fail on demand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Commit, Fold, Kv, Order, Outcome, Page, Scan, Snapshot, Version,
    occ::{Admitted, History, LiveVersion, Validator},
    page,
};
use crate::error::{Error, ErrorKind, Result};

type Rows = BTreeMap<Bytes, Bytes>;

/// A store that ends with the process. Snapshots share the rows until the next commit copies them.
#[derive(Debug)]
pub struct MemoryKv {
    history: Arc<History>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rows: Arc<Rows>,
    validator: Validator,
    failure: Option<UnknownCommit>,
}

/// What really happens to a commit that ends in [`Outcome::Unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownCommit {
    /// Its writes are there.
    Applied,
    /// Its writes are not there.
    Lost,
}

impl MemoryKv {
    /// An empty store.
    pub fn new() -> Self {
        let empty = Version(0);
        let state = State {
            rows: Arc::default(),
            validator: Validator::new(empty),
            failure: None,
        };
        Self {
            history: History::new(empty),
            state: Mutex::new(state),
        }
    }

    /// Lets the next commit that meets no conflict end in [`Outcome::Unknown`].
    ///
    /// # Panics
    ///
    /// If a commit panicked before.
    pub fn fail_next_commit(&self, effect: UnknownCommit) {
        self.lock().failure = Some(effect);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Default for MemoryKv {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Kv for MemoryKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let live = self.history.enter();
        let rows = Arc::clone(&self.lock().rows);
        Ok(Box::new(MemorySnapshot { live, rows }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        let mut state = self.lock();
        state.validator.forget(self.history.oldest());
        let rows = Arc::clone(&state.rows);
        let Admitted { version, sums } = match state.validator.admit(&commit, |key| Ok(rows.get(key).cloned())) {
            Ok(Some(admitted)) => admitted,
            Ok(None) => return Outcome::Conflict,
            Err(error) => return Outcome::Unknown(error),
        };
        drop(rows);
        let failure = state.failure.take();
        if failure != Some(UnknownCommit::Lost) {
            let rows = Arc::make_mut(&mut state.rows);
            apply(rows, commit.writes);
            apply(rows, sums);
        }
        // A lost commit leaves a version with nothing in it; were it not visible, all who read its keys would conflict.
        self.history.publish(version);
        match failure {
            Some(_) => Outcome::Unknown(Error::new(ErrorKind::Io, "this commit was told to fail")),
            None => Outcome::Committed(version),
        }
    }
}

fn apply(rows: &mut Rows, writes: BTreeMap<Bytes, Option<Bytes>>) {
    for (key, value) in writes {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

#[derive(Debug)]
struct MemorySnapshot {
    live: LiveVersion,
    rows: Arc<Rows>,
}

#[async_trait]
impl Snapshot for MemorySnapshot {
    fn version(&self) -> Version {
        self.live.version()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.rows.get(key).cloned())
    }

    async fn scan(&self, scan: &Scan) -> Result<Page> {
        if scan.range.is_empty() {
            return Ok(Page::default());
        }
        let rows = self
            .rows
            .range(scan.range.clone())
            .map(|(key, value)| Ok((key.clone(), value.clone())));
        let Ok::<_, Infallible>(page) = match scan.order {
            Order::Ascending => page::collect(scan, rows),
            Order::Descending => page::collect(scan, rows.rev()),
        };
        Ok(page)
    }

    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page> {
        if scan.range.is_empty() {
            return Ok(Page::default());
        }
        let first = |start: &[u8]| {
            let (key, value) = self
                .rows
                .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
                .next()?;
            Some((key.clone(), value.clone()))
        };
        let Ok::<_, Infallible>(page) = page::collect_folded(scan, fold, |start| Ok(first(start)));
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Txn, contract};

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_the_contract() {
        contract::run(async || Arc::new(MemoryKv::new()) as Arc<dyn Kv>).await;
    }

    #[tokio::test]
    async fn an_unknown_commit_is_there_or_not_as_told() {
        let memory = Arc::new(MemoryKv::new());
        let kv: Arc<dyn Kv> = memory.clone();
        for (effect, there) in [(UnknownCommit::Lost, false), (UnknownCommit::Applied, true)] {
            memory.fail_next_commit(effect);
            let mut txn = Txn::begin(&kv).await.unwrap();
            txn.put("key", "value").unwrap();
            assert!(matches!(txn.commit().await, Outcome::Unknown(_)));
            let mut txn = Txn::begin(&kv).await.unwrap();
            assert_eq!(txn.get(b"key").await.unwrap().is_some(), there, "{effect:?}");
            txn.put("key", "again").unwrap();
            assert!(
                matches!(txn.commit().await, Outcome::Committed(_)),
                "the next commit succeeds"
            );
            let mut txn = Txn::begin(&kv).await.unwrap();
            txn.delete("key").unwrap();
            txn.commit().await;
        }
    }
}
