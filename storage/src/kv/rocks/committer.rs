//! Group commit: one thread that turns waiting commits into one write.
//!
//! The thread takes everything that waits, up to a bound, and then, for the whole group:
//!
//! 1. checks each commit in order, a later one against the writes of the earlier ones too;
//! 2. writes those that pass as one batch: one record of the log, synced unless all of them are
//!    [`Buffered`](Durability::Buffered), and one step in what readers see;
//! 3. publishes the new version;
//! 4. answers: `Committed` or `Conflict`. Conflicts wait for step 3 as well, because what they lost against may be in
//!    this very group, and a retry must see it.
//!
//! While a write is being synced the next commits gather in the channel: the slower the disk, the larger the groups.
//!
//! A crash before the batch is written leaves nothing of the group, a crash after it all of it: a batch is one record
//! under one checksum. Nobody was told anything yet.
//!
//! # A failed write
//!
//! After a failed write or sync the log may hold the batch, or part of it, or hold it in a page cache that the kernel
//! has marked clean without writing it. Trying again could acknowledge what the disk does not have, and appending behind
//! a torn record could hide what follows it. So the group ends in `Unknown`, as does every later commit without being
//! written, until the store is opened again and has read what the log really holds. Reads go on meanwhile; they see
//! the rows from before the failure, as if the unknown commits were still on their way.

use std::{sync::Arc, thread::JoinHandle};

use bytes::Bytes;
use rocksdb::{DB, WriteBatch, WriteOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::engine_error;
use crate::{
    error::{Error, ErrorKind, Result},
    kv::{
        Commit, Durability, Outcome, Version,
        occ::{History, Validator},
    },
};

/// Most commits in one group; it bounds how long the first of them waits for the checks of the others.
const GROUP_COMMITS_MAX: usize = 256;
/// A group that holds this many bytes takes no further commit: several of the largest transactions.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Most commits that wait in the channel; further callers wait outside of it.
const WAITING_COMMITS_MAX: usize = 256;
/// Most bytes of commits that wait or are being written, in kibibytes, the unit of the semaphore.
const WAITING_KIB_MAX: u32 = 32 << 10;

/// The caller's side of the thread. Dropping it lets the thread finish what waits, and joins it.
#[derive(Debug)]
pub(super) struct Committer {
    /// `None` only while this is dropped.
    requests: Option<mpsc::Sender<Request>>,
    budget: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Request {
    commit: Commit,
    len: usize,
    done: oneshot::Sender<Outcome>,
    _budget: OwnedSemaphorePermit,
}

impl Committer {
    pub(super) fn start(db: Arc<DB>, history: Arc<History>, start: Version) -> Result<Self> {
        let (requests, waiting) = mpsc::channel(WAITING_COMMITS_MAX);
        let worker = Worker {
            db,
            history,
            validator: Validator::new(start),
            waiting,
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("kv-commit".into())
            .spawn(move || worker.run())
            .map_err(|error| Error::io("start the thread of the index", error))?;
        let budget = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
        Ok(Self {
            requests: Some(requests),
            budget,
            thread: Some(thread),
        })
    }

    /// Hands `commit` to the thread and waits for its end. If the future is dropped, a commit that was handed over is
    /// done all the same, and its answer goes nowhere.
    pub(super) async fn commit(&self, commit: Commit) -> Outcome {
        let len = len(&commit);
        let kib = u32::try_from(len >> 10)
            .unwrap_or(u32::MAX)
            .saturating_add(1)
            .min(WAITING_KIB_MAX);
        let Ok(permit) = Arc::clone(&self.budget).acquire_many_owned(kib).await else {
            return ended();
        };
        let Some(requests) = &self.requests else { return ended() };
        let (done, outcome) = oneshot::channel();
        if requests
            .send(Request {
                commit,
                len,
                done,
                _budget: permit,
            })
            .await
            .is_err()
        {
            return ended();
        }
        outcome.await.unwrap_or_else(|_| ended())
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.requests = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the commit thread of the index has panicked");
        }
    }
}

fn ended() -> Outcome {
    Outcome::Unknown(Error::new(ErrorKind::Io, "the commit thread of the index has ended"))
}

/// What a commit takes in memory, more or less.
fn len(commit: &Commit) -> usize {
    let keys = commit.read_keys.iter().map(Bytes::len);
    let ranges = commit
        .read_ranges
        .iter()
        .map(|range| range.start.len() + range.end.len());
    let writes = commit
        .writes
        .iter()
        .map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len));
    keys.chain(ranges)
        .chain(writes)
        .map(|len| len + size_of::<Bytes>())
        .sum()
}

struct Worker {
    db: Arc<DB>,
    history: Arc<History>,
    validator: Validator,
    waiting: mpsc::Receiver<Request>,
    failed: Option<String>,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.waiting.blocking_recv() {
            let group = self.gather(first);
            self.commit(group);
        }
        if self.failed.is_none()
            && let Err(error) = self.db.flush()
        {
            // Nothing is lost: the log has it all, and the next opening reads it.
            tracing::warn!(%error, "the index could not be flushed while closing");
        }
    }

    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut len = first.len;
        let mut group = vec![first];
        while group.len() < GROUP_COMMITS_MAX
            && len < GROUP_BYTES_MAX
            && let Ok(next) = self.waiting.try_recv()
        {
            len += next.len;
            group.push(next);
        }
        group
    }

    fn commit(&mut self, group: Vec<Request>) {
        if let Some(reason) = &self.failed {
            for request in group {
                request.answer(Outcome::Unknown(refusal(reason)));
            }
            return;
        }
        self.validator.forget(self.history.oldest());
        let mut batch = WriteBatch::default();
        let mut durability = Durability::Buffered;
        let mut visible = None;
        let mut versions = Vec::with_capacity(group.len());
        for Request { commit, .. } in &group {
            let version = self.validator.admit(commit);
            if version.is_some() {
                add(&mut batch, commit);
                durability = stronger(durability, commit.durability);
                visible = version;
            }
            versions.push(version);
        }
        let written = visible.map_or(Ok(()), |version| self.write(batch, durability, version));
        for (request, version) in group.into_iter().zip(versions) {
            request.answer(match (version, &written) {
                (None, _) => Outcome::Conflict,
                (Some(version), Ok(())) => Outcome::Committed(version),
                (Some(_), Err(error)) => Outcome::Unknown(engine_error("write to the index", error.clone())),
            });
        }
    }

    fn write(
        &mut self,
        batch: WriteBatch,
        durability: Durability,
        visible: Version,
    ) -> std::result::Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        match self.db.write_opt(batch, &options) {
            Ok(()) => {
                self.history.publish(visible);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the index cannot be written and takes no commit until the server restarts");
                self.failed = Some(error.to_string());
                Err(error)
            }
        }
    }
}

impl Request {
    /// Gives the answer, if somebody still waits for it.
    fn answer(self, outcome: Outcome) {
        let _ = self.done.send(outcome);
    }
}

fn add(batch: &mut WriteBatch, commit: &Commit) {
    for (key, value) in &commit.writes {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
}

fn stronger(one: Durability, other: Durability) -> Durability {
    match (one, other) {
        (Durability::Buffered, Durability::Buffered) => Durability::Buffered,
        _ => Durability::Synced,
    }
}

fn refusal(reason: &str) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("the index has failed and takes no commit until the server restarts: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use rocksdb::Options;

    use super::*;

    fn commit(key: &'static str, reads: &[&'static str]) -> Commit {
        Commit {
            read_version: Version(0),
            read_keys: reads.iter().map(|key| Bytes::from_static(key.as_bytes())).collect(),
            read_ranges: Vec::new(),
            writes: [(Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(b"value")))].into(),
            durability: Durability::Synced,
        }
    }

    /// Runs the thread's work over commits that all wait already, and gives the answers.
    fn run(db: DB, commits: Vec<Commit>) -> (Arc<DB>, Arc<History>, Vec<Outcome>) {
        let db = Arc::new(db);
        let history = History::new(Version(0));
        let (requests, waiting) = mpsc::channel(commits.len());
        let budget = Arc::new(Semaphore::new(commits.len()));
        let answers: Vec<_> = commits
            .into_iter()
            .map(|commit| {
                let permit = Arc::clone(&budget).try_acquire_owned().unwrap();
                let (done, answer) = oneshot::channel();
                requests
                    .try_send(Request {
                        len: len(&commit),
                        commit,
                        done,
                        _budget: permit,
                    })
                    .unwrap();
                answer
            })
            .collect();
        drop(requests);
        let validator = Validator::new(Version(0));
        let mut worker = Worker {
            db: Arc::clone(&db),
            history: Arc::clone(&history),
            validator,
            waiting,
            failed: None,
        };
        while let Some(first) = worker.waiting.blocking_recv() {
            let group = worker.gather(first);
            worker.commit(group);
        }
        let outcomes = answers
            .into_iter()
            .map(|answer| answer.blocking_recv().unwrap())
            .collect();
        (db, history, outcomes)
    }

    #[test]
    fn commits_that_wait_share_one_write() {
        let folder = tempfile::tempdir().unwrap();
        let commits = (0..=GROUP_COMMITS_MAX).map(|_| commit("key", &[])).collect();
        let (db, history, outcomes) = run(DB::open_default(folder.path()).unwrap(), commits);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed(_))));
        let records = db.get_updates_since(0).unwrap().count();
        assert_eq!(records, 2, "a full group, and the one that was left");
        assert_eq!(history.oldest(), Version(GROUP_COMMITS_MAX as u64 + 1));
    }

    #[test]
    fn later_commit_of_a_group_sees_the_writes_of_earlier_ones() {
        let folder = tempfile::tempdir().unwrap();
        let commits = vec![
            commit("a", &["a"]),
            commit("b", &["a"]),
            commit("c", &["b"]),
            commit("d", &["c"]),
        ];
        let (db, _, outcomes) = run(DB::open_default(folder.path()).unwrap(), commits);
        let committed: Vec<_> = outcomes
            .iter()
            .map(|outcome| matches!(outcome, Outcome::Committed(_)))
            .collect();
        assert_eq!(committed, [true, false, true, false]);
        assert!(db.get("b").unwrap().is_none());
    }

    #[test]
    fn failed_write_is_unknown_and_stops_later_commits() {
        let folder = tempfile::tempdir().unwrap();
        drop(DB::open_default(folder.path()).unwrap());
        let read_only = DB::open_for_read_only(&Options::default(), folder.path(), false).unwrap();
        let mut commits: Vec<_> = (0..GROUP_COMMITS_MAX).map(|_| commit("key", &[])).collect();
        commits.push(commit("later", &[]));
        let (_, history, outcomes) = run(read_only, commits);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unknown(_))));
        assert!(format!("{:?}", outcomes.last()).contains("takes no commit until the server restarts"));
        assert_eq!(history.oldest(), Version(0), "nothing was published");
    }
}
