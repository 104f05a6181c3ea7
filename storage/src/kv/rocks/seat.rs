//! Where the open database is, for those who read and the one who writes.
//!
//! | state | snapshots | commits | left by |
//! | --- | --- | --- | --- |
//! | open | of this database | written | a failed write: failed |
//! | failed | of this database, as it was before the failed write | refused | an exchange: exchanging |
//! | exchanging | wait | refused | the database: open; a snapshot that stays: failed; an error: closed |
//! | closed | refused | refused | a later opening: open |

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rocksdb::DB;
use tokio::sync::Notify;

use super::view::View;
use crate::{
    error::{Error, ErrorKind, Result},
    kv::{
        Version,
        occ::{History, LiveVersion},
    },
};

/// The place of the database.
#[derive(Debug)]
pub(super) struct Seat {
    history: Arc<History>,
    state: RwLock<State>,
    /// An exchange has ended.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    access: Access,
    /// Why commits are refused, unless they are written.
    failure: Failure,
}

#[derive(Debug)]
enum Access {
    /// With the version that was visible when it was opened.
    Open(Arc<DB>, Version),
    Failed(Arc<DB>),
    Exchanging,
    Closed,
}

/// Why the database takes no commits: an error that can be given many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    kind: ErrorKind,
    reason: String,
}

impl Failure {
    /// The failure behind `error`.
    pub(super) fn of(error: &Error) -> Self {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        Self {
            kind: error.kind(),
            reason,
        }
    }

    /// The error for a commit.
    pub(super) fn no_commit(&self) -> Error {
        self.error("the index takes no commit")
    }

    fn error(&self, what: &str) -> Error {
        Error::new(self.kind, format!("{what} until it has recovered: {}", self.reason))
    }
}

impl Seat {
    /// The seat of a database whose visible version is `start`.
    pub(super) fn new(db: DB, start: Version) -> Arc<Self> {
        Arc::new(Self {
            history: History::new(start),
            state: RwLock::new(State {
                access: Access::Open(Arc::new(db), start),
                failure: Failure {
                    kind: ErrorKind::Io,
                    reason: String::new(),
                },
            }),
            changed: Notify::new(),
        })
    }

    /// What is visible, and which snapshots are open.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// A snapshot. Waits while the database is exchanged.
    ///
    /// # Errors
    ///
    /// The failure, if the database could not be opened again.
    pub(super) async fn snapshot(&self) -> Result<(LiveVersion, View)> {
        loop {
            // Before the look: an exchange that ends in between is not missed.
            let changed = self.changed.notified();
            if let Some(snapshot) = self.try_snapshot() {
                return snapshot;
            }
            changed.await;
        }
    }

    fn try_snapshot(&self) -> Option<Result<(LiveVersion, View)>> {
        let state = self.read();
        match &state.access {
            Access::Open(db, _) | Access::Failed(db) => {
                // In this order: see `occ` for why.
                let live = self.history.enter();
                Some(Ok((live, View::of(db))))
            }
            Access::Exchanging => None,
            Access::Closed => Some(Err(state.failure.error("the index cannot be read"))),
        }
    }

    /// The database to write to, and the version that was visible when it was opened: another one tells of an exchange.
    ///
    /// # Errors
    ///
    /// The failure, while commits are refused.
    pub(super) fn writer(&self) -> std::result::Result<(Arc<DB>, Version), Failure> {
        let state = self.read();
        match &state.access {
            Access::Open(db, start) => Ok((Arc::clone(db), *start)),
            _ => Err(state.failure.clone()),
        }
    }

    /// Refuses commits from now on.
    pub(super) fn fail(&self, failure: Failure) {
        let mut state = self.write();
        state.failure = failure;
        state.access = match std::mem::replace(&mut state.access, Access::Closed) {
            Access::Open(db, _) => Access::Failed(db),
            other => other,
        };
    }

    /// Notes why the last attempt to recover has failed. Says whether that is another reason than before.
    pub(super) fn explain(&self, failure: Failure) -> bool {
        let mut state = self.write();
        let news = state.failure != failure;
        state.failure = failure;
        news
    }

    /// Takes a failed database out, for as long as snapshots may wait; `None` if there is none.
    pub(super) fn take_out(&self) -> Option<Arc<DB>> {
        let mut state = self.write();
        match std::mem::replace(&mut state.access, Access::Exchanging) {
            Access::Failed(db) => Some(db),
            other => {
                state.access = other;
                None
            }
        }
    }

    /// Puts a failed database back.
    pub(super) fn put_back(&self, db: Arc<DB>) {
        self.write().access = Access::Failed(db);
        self.changed.notify_waiters();
    }

    /// Seats a database that was opened again, whose visible version is `start`.
    pub(super) fn reopened(&self, db: DB, start: Version) {
        let mut state = self.write();
        self.history.publish(start);
        state.access = Access::Open(Arc::new(db), start);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Refuses snapshots from now on: there is no database.
    pub(super) fn close(&self, failure: Failure) {
        let mut state = self.write();
        state.access = Access::Closed;
        state.failure = failure;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Every change of the state is one assignment, so a panic elsewhere leaves it whole.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
