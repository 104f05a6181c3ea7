//! A durable queue of jobs.
//!
//! A job is a kind and a payload that the store does not look into. It waits in a queue ordered by when it is due. A
//! worker claims it: in one transaction the job gets a [`Lease`] of owner, epoch and end, and moves in the queue to the
//! lease's end. So a job whose worker died becomes due again by itself; the worker that claims it next has a higher
//! epoch. Every commit of a job asserts its epoch ([`Fence`]), so a stalled worker that wakes up late changes nothing.
//!
//! Progress is committed without a sync, all else with one. A crash leaves the job as of its last commit.

use minicbor::{Decode, Encode};

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Durability, Order, SCAN_ROWS_MAX, Scan, Txn, transact},
    rows::Rows,
    schema::{JobId, Keys, decode, encode},
    staging::get,
    store::Store,
};

/// How long a lease lasts without a heartbeat.
pub const LEASE_MILLIS: u64 = 30_000;
/// How long a finished job is remembered.
pub const KEEP_MILLIS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Longest payload, in bytes.
const PAYLOAD_LEN_MAX: usize = 32 << 10;
/// Longest result or error text, in bytes.
const TEXT_LEN_MAX: usize = 8 << 10;

/// A job to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// What kind of job it is; a worker knows what to do with it.
    pub kind: String,
    /// What it is about, for people: `bucket/key`.
    pub subject: String,
    /// What the worker needs.
    pub payload: Vec<u8>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JobRecord {
    /// Its id.
    #[n(0)]
    pub id: JobId,
    /// As in [`NewJob::kind`].
    #[n(1)]
    pub kind: String,
    /// As in [`NewJob::subject`].
    #[n(2)]
    pub subject: String,
    /// As in [`NewJob::payload`].
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// Where it stands.
    #[n(4)]
    pub state: JobState,
    /// What it is doing, in a word or two.
    #[n(5)]
    pub stage: String,
    /// Bytes done.
    #[n(6)]
    pub done: u64,
    /// Bytes to do, once known.
    #[n(7)]
    pub total: Option<u64>,
    /// How often it was begun.
    #[n(8)]
    pub attempts: u32,
    /// When it was queued.
    #[n(9)]
    pub created: Timestamp,
    /// When it last changed.
    #[n(10)]
    pub updated: Timestamp,
    /// When it stands in the queue, while it does.
    #[n(11)]
    pub due: Option<Timestamp>,
    /// The epoch of the latest lease.
    #[n(12)]
    pub epoch: u64,
    /// What came of it, when it is done; why it failed, when it has; why the last attempt failed, while it waits.
    #[n(13)]
    pub message: String,
    /// The process that has it.
    #[n(14)]
    pub worker: Option<u64>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum JobState {
    /// It waits for a worker, or for the time of its next attempt.
    #[n(0)]
    Queued,
    /// A worker has it.
    #[n(1)]
    Running,
    /// It came to its end.
    #[n(2)]
    Done,
    /// It failed for good.
    #[n(3)]
    Failed,
    /// Somebody cancelled it.
    #[n(4)]
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen by itself.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job that this worker has.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The job as claimed.
    pub job: JobRecord,
}

impl Lease {
    /// What commits of this job assert.
    pub fn fence(&self) -> Fence {
        Fence {
            job: self.job.id,
            epoch: self.job.epoch,
        }
    }
}

/// Asserts that a job is still this worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    job: JobId,
    epoch: u64,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// As in [`JobRecord::stage`].
    pub stage: String,
    /// As in [`JobRecord::done`].
    pub done: u64,
    /// As in [`JobRecord::total`].
    pub total: Option<u64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With this result.
    Done(String),
    /// With this error, which another attempt would meet again.
    Failed(String),
    /// With this error; try again after so many milliseconds.
    Retry {
        /// The error.
        message: String,
        /// How long to wait.
        after_millis: u64,
    },
}

impl Store {
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] if its payload is; [`ErrorKind::Io`] if the index fails.
    pub async fn queue_job(&self, job: NewJob) -> Result<JobId> {
        let id = transact!(&self.core.kv, |txn| { enqueue(&mut txn, self.now(), job.clone()) });
        self.queued(&[id]);
        Ok(id)
    }

    /// Claims a job that is due, for the process `worker`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn claim_job(&self, worker: u64) -> Result<Option<Lease>> {
        let now = self.now();
        let job = transact!(&self.core.kv, |txn| {
            let page = txn
                .scan(&Scan {
                    range: Keys::queued_jobs(),
                    limit: 1,
                    order: Order::Ascending,
                })
                .await?;
            let Some((key, _)) = page.rows.first() else {
                return Ok(None);
            };
            if Keys::parse_due(key)? > now {
                return Ok(None);
            }
            let mut job = require_job(&mut txn, JobId(Keys::parse_last_id(key)?)).await?;
            move_in_queue(&mut txn, &mut job, Some(now.plus_millis(LEASE_MILLIS)))?;
            job.state = JobState::Running;
            job.epoch = job.epoch.saturating_add(1);
            job.attempts = job.attempts.saturating_add(1);
            job.worker = Some(worker);
            put_job(&mut txn, now, &mut job)?;
            Ok(Some(job))
        });
        Ok(job.map(|job| {
            self.tell(job.id);
            Lease { job }
        }))
    }

    /// Reports progress and renews the lease.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PreconditionFailed`] if the job is no longer this worker's, or was cancelled: it must stop.
    pub async fn report_progress(&self, fence: Fence, progress: &Progress) -> Result<()> {
        let job = transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            let mut job = leased_job(&mut txn, fence).await?;
            move_in_queue(&mut txn, &mut job, Some(self.now().plus_millis(LEASE_MILLIS)))?;
            job.stage.clone_from(&progress.stage);
            job.done = progress.done;
            job.total = progress.total;
            put_job(&mut txn, self.now(), &mut job)?;
            Ok(job)
        });
        self.tell(job.id);
        Ok(())
    }

    /// Ends an attempt.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PreconditionFailed`] if the job is no longer this worker's.
    pub async fn end_job(&self, fence: Fence, ending: Ending) -> Result<JobRecord> {
        let now = self.now();
        let job = transact!(&self.core.kv, |txn| {
            let mut job = leased_job(&mut txn, fence).await?;
            let (state, message, due) = match ending.clone() {
                Ending::Done(result) => (JobState::Done, result, None),
                Ending::Failed(error) => (JobState::Failed, error, None),
                Ending::Retry { message, after_millis } => {
                    (JobState::Queued, message, Some(now.plus_millis(after_millis)))
                }
            };
            finish(&mut txn, now, &mut job, state, message, due)?;
            Ok(job)
        });
        self.tell(job.id);
        if job.state == JobState::Queued {
            self.core.queued.notify_waiters();
        }
        Ok(job)
    }

    /// Cancels a job that has not finished. A worker that has it finds out at its next commit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchJob`]; [`ErrorKind::PreconditionFailed`] if it has finished.
    pub async fn cancel_job(&self, id: JobId) -> Result<JobRecord> {
        let job = transact!(&self.core.kv, |txn| {
            let mut job = require_job(&mut txn, id).await?;
            if job.state.is_finished() {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("job {id} has finished already"),
                ));
            }
            job.epoch = job.epoch.saturating_add(1);
            finish(
                &mut txn,
                self.now(),
                &mut job,
                JobState::Cancelled,
                "cancelled".to_owned(),
                None,
            )?;
            Ok(job)
        });
        self.tell(job.id);
        Ok(job)
    }

    /// Queues a job that failed or was cancelled once more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchJob`]; [`ErrorKind::PreconditionFailed`] if it is under way or done.
    pub async fn retry_job(&self, id: JobId) -> Result<JobRecord> {
        let job = transact!(&self.core.kv, |txn| {
            let mut job = require_job(&mut txn, id).await?;
            if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("job {id} has neither failed nor been cancelled"),
                ));
            }
            let now = self.now();
            job.stage.clear();
            job.done = 0;
            finish(&mut txn, now, &mut job, JobState::Queued, String::new(), Some(now))?;
            Ok(job)
        });
        self.tell(job.id);
        self.core.queued.notify_waiters();
        Ok(job)
    }

    /// A job by its id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchJob`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn job(&self, id: JobId) -> Result<JobRecord> {
        require_job(&mut self.begin().await?, id).await
    }

    /// Jobs from the newest to the oldest, at most `limit`, beginning after `after`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_jobs(&self, after: Option<JobId>, limit: usize) -> Result<Vec<JobRecord>> {
        let mut range = Keys::jobs();
        if let Some(after) = after {
            range.end = Keys::job(after);
        }
        let limit = limit.clamp(1, SCAN_ROWS_MAX);
        let page = self
            .begin()
            .await?
            .scan(&Scan {
                range,
                limit,
                order: Order::Descending,
            })
            .await?;
        page.rows.iter().map(|(_, job)| decode(job)).collect()
    }

    /// Jobs that are queued or change from now on; a job that brings about others is not done before they are told.
    pub fn watch_jobs(&self) -> tokio::sync::broadcast::Receiver<JobId> {
        self.core.job_events.subscribe()
    }

    /// Waits until a job may be due: one was queued, or the time of the first in the queue has come.
    pub async fn job_due(&self) {
        let queued = self.core.queued.notified();
        let due = match self.first_due().await {
            Ok(Some(due)) => due.0.saturating_sub(self.now().0),
            Ok(None) => LEASE_MILLIS,
            // The engine is in trouble; whoever claims next will say so.
            Err(_) => 1000,
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(due.clamp(1, LEASE_MILLIS)), queued).await;
    }

    async fn first_due(&self) -> Result<Option<Timestamp>> {
        let scan = Scan {
            range: Keys::queued_jobs(),
            limit: 1,
            order: Order::Ascending,
        };
        let page = self.begin().await?.scan(&scan).await?;
        page.rows.first().map(|(key, _)| Keys::parse_due(key)).transpose()
    }

    /// Makes jobs due at once whose worker was another process, which cannot be alive: for engines that one process has
    /// at a time. Returns how many.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn take_over_jobs(&self, worker: u64) -> Result<usize> {
        let now = self.now();
        let mut taken = 0;
        let mut rows = Rows::of(Keys::queued_jobs());
        while let Some(page) = rows.next(self).await? {
            for (key, _) in page {
                let id = JobId(Keys::parse_last_id(&key)?);
                taken += usize::from(self.take_over_job(id, worker, now).await?);
            }
        }
        Ok(taken)
    }

    async fn take_over_job(&self, id: JobId, worker: u64, now: Timestamp) -> Result<bool> {
        let taken = transact!(&self.core.kv, |txn| {
            let mut job = require_job(&mut txn, id).await?;
            if job.state != JobState::Running || job.worker == Some(worker) {
                return Ok(false);
            }
            let message = "the server was restarted".to_owned();
            finish(&mut txn, now, &mut job, JobState::Queued, message, Some(now))?;
            Ok(true)
        });
        Ok(taken)
    }

    /// Forgets jobs that finished long ago. Returns how many.
    pub(crate) async fn forget_jobs(&self) -> Result<u64> {
        let oldest = Timestamp(self.now().0.saturating_sub(KEEP_MILLIS));
        let mut range = Keys::jobs();
        range.end = Keys::job(JobId::first_at(oldest));
        let mut forgotten = 0;
        let mut rows = Rows::of(range);
        while let Some(page) = rows.next(self).await? {
            for (_, job) in page {
                let job: JobRecord = decode(&job)?;
                if is_forgettable(&job, oldest) {
                    forgotten += u64::from(self.forget_job(job.id, oldest).await?);
                }
            }
        }
        Ok(forgotten)
    }

    async fn forget_job(&self, id: JobId, oldest: Timestamp) -> Result<bool> {
        let forgotten = transact!(&self.core.kv, |txn| {
            // It may have been tried again since.
            let job: Option<JobRecord> = get(&mut txn, &Keys::job(id)).await?;
            let forgettable = job.is_some_and(|job| is_forgettable(&job, oldest));
            if forgettable {
                txn.set_durability(Durability::Buffered);
                txn.delete(Keys::job(id))?;
            }
            Ok(forgettable)
        });
        Ok(forgotten)
    }

    /// These jobs have been committed to the queue, some of them perhaps before.
    pub(crate) fn queued(&self, jobs: &[JobId]) {
        for id in jobs {
            self.tell(*id);
        }
        if !jobs.is_empty() {
            self.core.queued.notify_waiters();
        }
    }

    fn tell(&self, job: JobId) {
        // No listener is no error.
        let _ = self.core.job_events.send(job);
    }
}

/// Queues a job in `txn`.
pub(crate) fn enqueue(txn: &mut Txn, now: Timestamp, new: NewJob) -> Result<JobId> {
    if new.payload.len() > PAYLOAD_LEN_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a job's payload is over {PAYLOAD_LEN_MAX} bytes"),
        ));
    }
    let mut job = JobRecord {
        id: JobId::generate(now),
        kind: new.kind,
        subject: new.subject,
        payload: new.payload,
        state: JobState::Queued,
        stage: String::new(),
        done: 0,
        total: None,
        attempts: 0,
        created: now,
        updated: now,
        due: None,
        epoch: 0,
        message: String::new(),
        worker: None,
    };
    move_in_queue(txn, &mut job, Some(now))?;
    put_job(txn, now, &mut job)?;
    Ok(job.id)
}

fn is_forgettable(job: &JobRecord, oldest: Timestamp) -> bool {
    job.state.is_finished() && job.updated < oldest
}

/// Asserts that the job is still the worker's who holds `fence`; without one there is nothing to assert.
pub(crate) async fn check_fence(txn: &mut Txn, fence: Option<&Fence>) -> Result<()> {
    match fence {
        Some(fence) => leased_job(txn, *fence).await.map(|_| ()),
        None => Ok(()),
    }
}

async fn leased_job(txn: &mut Txn, fence: Fence) -> Result<JobRecord> {
    let job = require_job(txn, fence.job).await?;
    if job.epoch != fence.epoch || job.state != JobState::Running {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("job {} was cancelled, or another worker has it", fence.job),
        ));
    }
    Ok(job)
}

async fn require_job(txn: &mut Txn, id: JobId) -> Result<JobRecord> {
    get(txn, &Keys::job(id))
        .await?
        .ok_or_else(|| Error::new(ErrorKind::NoSuchJob, format!("job {id} does not exist")))
}

fn finish(
    txn: &mut Txn,
    now: Timestamp,
    job: &mut JobRecord,
    state: JobState,
    mut message: String,
    due: Option<Timestamp>,
) -> Result<()> {
    message.truncate(message.floor_char_boundary(TEXT_LEN_MAX));
    job.state = state;
    job.message = message;
    job.worker = None;
    move_in_queue(txn, job, due)?;
    put_job(txn, now, job)
}

/// Takes the job out of the queue, and puts it back at `due`, if it shall be tried then.
fn move_in_queue(txn: &mut Txn, job: &mut JobRecord, due: Option<Timestamp>) -> Result<()> {
    if let Some(old) = job.due {
        txn.delete(Keys::queued_job(old, job.id))?;
    }
    if let Some(new) = due {
        txn.put(Keys::queued_job(new, job.id), bytes::Bytes::new())?;
    }
    job.due = due;
    Ok(())
}

fn put_job(txn: &mut Txn, now: Timestamp, job: &mut JobRecord) -> Result<()> {
    job.updated = now;
    txn.put(Keys::job(job.id), encode(job))
}
