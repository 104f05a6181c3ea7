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
//! A commit that writes nothing is checked at its place in the group and answered with it, so that it is refused when the
//! others are; a group of such commits writes nothing.
//!
//! After a failed write or sync the group ends in `Unknown`, and every later commit in `Refused`, until the database has
//! been opened again: see `recovery`.

use std::{
    sync::{Arc, mpsc as std_mpsc},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use rocksdb::{DB, WriteBatch, WriteOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    engine_error,
    folder::Opener,
    recovery::Recovery,
    seat::{Failure, Seat},
};
use crate::{
    error::{Error, ErrorKind, Result},
    kv::{
        Commit, Durability, Outcome, Version,
        counter::Rows,
        occ::{Admitted, Validator},
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

/// The caller's side of the thread, and of the one that recovers from its failures. Dropping it lets the thread finish
/// what waits, and joins both.
#[derive(Debug)]
pub(super) struct Committer {
    /// `None` only while this is dropped.
    requests: Option<mpsc::Sender<Request>>,
    budget: Arc<Semaphore>,
    /// The one that commits first: its end is the end of the other.
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Request {
    commit: Commit,
    len: usize,
    done: oneshot::Sender<Outcome>,
    _budget: OwnedSemaphorePermit,
}

impl Committer {
    /// Starts to commit to the database in `seat`, which was opened by `opener` and whose visible version is `start`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if a thread cannot be started.
    pub(super) fn start(seat: Arc<Seat>, start: Version, opener: Box<dyn Opener>) -> Result<Self> {
        let (requests, waiting) = mpsc::channel(WAITING_COMMITS_MAX);
        let (failed, failures) = std_mpsc::channel();
        let worker = Worker {
            seat: Arc::clone(&seat),
            start,
            validator: Validator::new(start),
            waiting,
            failed,
        };
        let recovery = Recovery { seat, opener, failures };
        let threads = vec![
            spawn("kv-commit", move || worker.run())?,
            spawn("kv-recover", move || recovery.run())?,
        ];
        Ok(Self {
            requests: Some(requests),
            budget: Arc::new(Semaphore::new(WAITING_KIB_MAX as usize)),
            threads,
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
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the index has panicked");
            }
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| Error::io("start a thread of the index", error))
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
    let counters = commit.adds.keys().chain(commit.at_most.keys()).map(Bytes::len);
    keys.chain(ranges)
        .chain(writes)
        .chain(counters)
        .map(|len| len + size_of::<Bytes>())
        .sum()
}

struct Worker {
    seat: Arc<Seat>,
    /// The version that was visible when the database was opened that `validator` is for.
    start: Version,
    validator: Validator,
    waiting: mpsc::Receiver<Request>,
    /// Takes the last version that was given, when a write has failed.
    failed: std_mpsc::Sender<Version>,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.waiting.blocking_recv() {
            let group = self.gather(first);
            self.commit(group);
        }
        if let Ok((db, _)) = self.seat.writer()
            && let Err(error) = db.flush()
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
        let (db, start) = match self.seat.writer() {
            Ok(writer) => writer,
            Err(failure) => {
                for request in group {
                    request.answer(Outcome::Refused(failure.no_commit()));
                }
                return;
            }
        };
        if start != self.start {
            self.start = start;
            self.validator = Validator::new(start);
        }
        self.validator.forget(self.seat.history().oldest());
        let mut batch = Batch::default();
        let verdicts: Vec<_> = group
            .iter()
            .map(|request| batch.admit(&mut self.validator, &db, &request.commit))
            .collect();
        let written = self.write(&db, batch);
        for (request, verdict) in group.into_iter().zip(verdicts) {
            request.answer(match (verdict, &written) {
                (Ok(None), _) => Outcome::Conflict,
                (Ok(Some(version)), Ok(())) => Outcome::Committed(version),
                (Ok(Some(_)), Err(error)) => Outcome::Unknown(engine_error("write to the index", error.clone())),
                (Err(error), _) => Outcome::Unknown(error),
            });
        }
    }

    fn write(&mut self, db: &DB, batch: Batch) -> std::result::Result<(), rocksdb::Error> {
        let Some(visible) = batch.visible else { return Ok(()) };
        let mut options = WriteOptions::default();
        options.set_sync(batch.synced);
        match db.write_opt(batch.writes, &options) {
            Ok(()) => {
                self.seat.history().publish(visible);
                Ok(())
            }
            Err(error) => {
                let failure = Failure::of(&engine_error("write to the index", error.clone()));
                tracing::error!(?failure, "the index takes no commit until it has recovered");
                self.seat.fail(failure);
                // Nobody listens only if the other thread has panicked: then commits stay refused.
                let _ = self.failed.send(self.validator.last());
                Err(error)
            }
        }
    }
}

/// What a group writes.
#[derive(Default)]
struct Batch {
    writes: WriteBatch,
    /// The rows in `writes`, for the counters of later commits.
    rows: Rows,
    /// The last version of the group; `None` if nothing was admitted.
    visible: Option<Version>,
    /// Synced as soon as one commit is.
    synced: bool,
}

impl Batch {
    /// Takes `commit` up if it is admitted, and says with which version.
    fn admit(&mut self, validator: &mut Validator, db: &DB, commit: &Commit) -> Result<Option<Version>> {
        let stored = |key: &[u8]| match self.rows.get(key) {
            Some(row) => Ok(row.clone()),
            None => read(db, key),
        };
        let Some(Admitted { version, sums }) = validator.admit(commit, stored)? else {
            return Ok(None);
        };
        if commit.is_empty() {
            return Ok(Some(version));
        }
        for (key, value) in commit.writes.iter().chain(&sums) {
            match value {
                Some(value) => self.writes.put(key, value),
                None => self.writes.delete(key),
            }
            self.rows.insert(key.clone(), value.clone());
        }
        self.visible = Some(version);
        self.synced |= commit.durability == Durability::Synced;
        Ok(Some(version))
    }
}

fn read(db: &DB, key: &[u8]) -> Result<Option<Bytes>> {
    let value = db.get_pinned(key);
    let value = value.map_err(|error| engine_error("read a counter of the index", error))?;
    Ok(value.map(|value| Bytes::copy_from_slice(&value)))
}

impl Request {
    /// Gives the answer, if somebody still waits for it.
    fn answer(self, outcome: Outcome) {
        let _ = self.done.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rocksdb::Options;

    use super::*;

    fn commit(key: &'static str, reads: &[&'static str]) -> Commit {
        Commit {
            read_version: Version(0),
            read_keys: reads.iter().map(|key| Bytes::from_static(key.as_bytes())).collect(),
            read_ranges: Vec::new(),
            writes: [(Bytes::from_static(key.as_bytes()), Some(Bytes::from_static(b"value")))].into(),
            adds: BTreeMap::new(),
            at_most: BTreeMap::new(),
            durability: Durability::Synced,
        }
    }

    /// Runs the thread's work over commits that all wait already, and gives the answers.
    fn run(db: DB, commits: Vec<Commit>) -> (Arc<Seat>, Vec<Outcome>) {
        let seat = Seat::new(db, Version(0));
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
        let mut worker = Worker {
            seat: Arc::clone(&seat),
            start: Version(0),
            validator: Validator::new(Version(0)),
            waiting,
            failed: std_mpsc::channel().0,
        };
        while let Some(first) = worker.waiting.blocking_recv() {
            let group = worker.gather(first);
            worker.commit(group);
        }
        let outcomes = answers
            .into_iter()
            .map(|answer| answer.blocking_recv().unwrap())
            .collect();
        (seat, outcomes)
    }

    #[test]
    fn commits_that_wait_share_one_write() {
        let folder = tempfile::tempdir().unwrap();
        let commits = (0..=GROUP_COMMITS_MAX).map(|_| commit("key", &[])).collect();
        let (seat, outcomes) = run(DB::open_default(folder.path()).unwrap(), commits);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed(_))));
        let (db, _) = seat.writer().unwrap();
        let records = db.get_updates_since(0).unwrap().count();
        assert_eq!(records, 2, "a full group, and the one that was left");
        assert_eq!(seat.history().oldest(), Version(GROUP_COMMITS_MAX as u64 + 1));
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
        let (seat, outcomes) = run(DB::open_default(folder.path()).unwrap(), commits);
        let committed: Vec<_> = outcomes
            .iter()
            .map(|outcome| matches!(outcome, Outcome::Committed(_)))
            .collect();
        assert_eq!(committed, [true, false, true, false]);
        assert!(seat.writer().unwrap().0.get("b").unwrap().is_none());
    }

    #[test]
    fn counters_of_a_group_are_summed_up_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let db = DB::open_default(folder.path()).unwrap();
        db.put("n", 2_u64.to_be_bytes()).unwrap();
        let add = |delta, max| {
            let n = Bytes::from("n");
            let mut commit = commit("other", &[]);
            commit.adds.insert(n.clone(), delta);
            commit.at_most.insert(n, max);
            commit
        };
        let mut put = commit("other", &[]);
        put.writes
            .insert(Bytes::from("n"), Some(Bytes::copy_from_slice(&100_u64.to_be_bytes())));
        let damaged = {
            let mut commit = commit("never", &[]);
            commit.adds.insert(Bytes::from("other"), 1);
            commit
        };
        let commits = vec![
            add(3, 5),
            add(1, 5),
            add(-4, 5),
            add(4, 5),
            put,
            add(1, 100),
            add(1, 101),
            damaged,
        ];
        let (seat, outcomes) = run(db, commits);
        let committed: Vec<_> = outcomes
            .iter()
            .map(|outcome| matches!(outcome, Outcome::Committed(_)))
            .collect();
        assert_eq!(committed, [true, false, true, true, true, false, true, false]);
        assert!(matches!(&outcomes[7], Outcome::Unknown(error) if error.kind() == ErrorKind::Corrupt));
        let (db, _) = seat.writer().expect("a damaged counter is no failed write");
        assert_eq!(db.get("n").unwrap().unwrap(), 101_u64.to_be_bytes());
        assert!(db.get("never").unwrap().is_none());
    }

    #[test]
    fn failed_write_is_unknown_and_stops_later_commits() {
        let folder = tempfile::tempdir().unwrap();
        drop(DB::open_default(folder.path()).unwrap());
        let read_only = DB::open_for_read_only(&Options::default(), folder.path(), false).unwrap();
        let mut commits: Vec<_> = (0..GROUP_COMMITS_MAX).map(|_| commit("key", &[])).collect();
        commits.push(commit("later", &[]));
        let mut nothing = commit("nothing", &["key"]);
        nothing.writes.clear();
        commits.push(nothing);
        let (seat, outcomes) = run(read_only, commits);
        let (group, later) = outcomes.split_at(GROUP_COMMITS_MAX);
        assert!(group.iter().all(|outcome| matches!(outcome, Outcome::Unknown(_))));
        assert_eq!(later.len(), 2);
        for refused in later {
            assert!(matches!(refused, Outcome::Refused(_)));
            assert!(format!("{refused:?}").contains("takes no commit until it has recovered"));
        }
        assert_eq!(seat.history().oldest(), Version(0), "nothing was published");
    }
}
