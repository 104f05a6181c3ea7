//! Recovery from a failed write: closes the database and opens it again, beside the committer's thread.
//!
//! After a failed write or sync the log may hold the group that was being written, or a part of it, or hold it only in a
//! page cache that the kernel has marked clean without writing it. Trying again could acknowledge what the disk does not
//! have, and appending behind a torn record could hide what follows it. Only an opening, which reads what the log really
//! holds, may decide. Until one has, every commit is refused at once, without being written, and reads go on; they
//! see the rows from before the failure, as if the group were still on its way.
//!
//! # An attempt
//!
//! | step | what happens | if it fails, or the process ends, after it |
//! | --- | --- | --- |
//! | 1 | rehearse: is there room, does the disk take a write, can the log be read | reads go on; a later attempt |
//! | 2 | new snapshots wait; those that are open get [`DRAIN_MAX`] to end | one stays: the others go on; a later attempt |
//! | 3 | close the database; the folder stays ours by its own lock | the log is as it was |
//! | 4 | open it: the rows of the log go into tables, synced, and the log begins anew | reads fail too; a later attempt |
//! | 5 | publish a version above all that were given; commits and snapshots go on | |
//!
//! Attempts follow each other with a pause that doubles from [`PAUSE_MIN`] to [`PAUSE_MAX`], for as long as it takes: a
//! full disk is emptied at some time. A damaged log is found in step 1, and stays: each attempt finds it again, commits
//! stay refused with that reason, and reads go on. Step 4 fails only if the disk changes its mind after step 1.
//!
//! # What is guaranteed
//!
//! - **No acknowledged commit is lost.** A synced one is in the log below the failed write, or in a table, and opening
//!   reads both. Closing writes nothing into the log. A buffered one is there unless the disk has lost what it took
//!   before: the same as in a crash of the machine.
//! - **Unknown commits are decided exactly once.** The failed group is one record under one checksum: step 4 finds the
//!   whole of it or none. What it finds it writes to synced tables, and the manifest then points past the old log; so the
//!   decision is durable before anybody can see it, and no later opening reads that record again. Refused commits were
//!   never written: they are decided already.
//! - **The order holds.** No snapshot of the old database is left after step 2, and the validator begins above every
//!   version that was given before: a transaction that has read the old rows, and commits only now, conflicts.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rocksdb::DB;

use super::{
    folder::Opener,
    seat::{Failure, Seat},
};
use crate::{
    error::{Error, ErrorKind, Result},
    kv::Version,
};

/// Before the first attempt: a passing fault is over then, and nobody has waited long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between later attempts: soon enough after somebody has made room, seldom enough for a disk that stays full.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long new snapshots wait for the open ones to end. Transactions take milliseconds; who has a longer one delays the
/// recovery, but not the others.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How often the open snapshots are counted meanwhile.
const DRAIN_STEP: Duration = Duration::from_millis(2);

/// The thread's side.
pub(super) struct Recovery {
    pub(super) seat: Arc<Seat>,
    pub(super) opener: Box<dyn Opener>,
    /// The last version that was given when a write failed. The sender ends with the committer.
    pub(super) failures: mpsc::Receiver<Version>,
}

impl Recovery {
    /// Recovers from each failure, until the committer ends.
    pub(super) fn run(self) {
        while let Ok(last) = self.failures.recv() {
            self.recover(last);
        }
    }

    /// Tries until it succeeds or the committer ends.
    fn recover(&self, last: Version) {
        let mut pause = PAUSE_MIN;
        // No write fails while none is made, so all that can come is the end.
        while let Err(mpsc::RecvTimeoutError::Timeout) = self.failures.recv_timeout(pause) {
            match self.attempt(last) {
                Ok(()) => {
                    tracing::warn!("the index has recovered from a failed write");
                    return;
                }
                Err(error) => {
                    let failure = Failure::of(&error);
                    if self.seat.explain(failure.clone()) {
                        tracing::error!(?failure, "the index could not recover yet, and tries again");
                    }
                }
            }
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    fn attempt(&self, last: Version) -> Result<()> {
        self.opener.rehearse()?;
        if let Some(db) = self.seat.take_out() {
            match drain(db) {
                Ok(db) => drop(db),
                Err(db) => {
                    self.seat.put_back(db);
                    return Err(Error::new(
                        ErrorKind::Io,
                        "a snapshot of the index stays open, so that it cannot be opened again",
                    ));
                }
            }
        }
        match self.opener.open() {
            Ok(db) => {
                let start = last.max(Version(db.latest_sequence_number()));
                self.seat.reopened(db, start);
                Ok(())
            }
            Err(error) => {
                self.seat.close(Failure::of(&error));
                Err(error)
            }
        }
    }
}

/// Waits until nobody else has `db`.
fn drain(mut db: Arc<DB>) -> std::result::Result<DB, Arc<DB>> {
    let mut waited = Duration::ZERO;
    loop {
        db = match Arc::try_unwrap(db) {
            Ok(db) => return Ok(db),
            Err(shared) if waited >= DRAIN_MAX => return Err(shared),
            Err(shared) => shared,
        };
        thread::sleep(DRAIN_STEP);
        waited += DRAIN_STEP;
    }
}
