//! Jobs: what tags, imports and bindings ask for, carried out in the background.
//!
//! A [`Task`] says what to do; it travels as JSON in the payload of a durable job. [`runner`] claims jobs and gives each a
//! [`JobContext`] to report progress to. One file a kind of task does the work.

mod backup;
mod bind;
mod compress;
mod convert;
mod import;
mod replicate;
pub(crate) mod runner;
mod scrub;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use lithos_storage::{
    LayoutId,
    job::{Fence, JobRecord, NewJob, Progress},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{app::SharedApp, zone::ZoneName};

/// The kind of a scrub, which runs beside the workers.
const SCRUB: &str = "scrub";

/// What a job is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Make another format of an object.
    Convert {
        /// The source's bucket.
        bucket: String,
        /// The source's key.
        key: String,
        /// The version of the source, as the layout id in hexadecimal digits.
        version: String,
        /// The format, as in the tag: `qcow2`.
        target: String,
    },
    /// Copy an object to the servers of a zone.
    Replicate {
        /// The object's bucket.
        bucket: String,
        /// The object's key.
        key: String,
        /// The zone.
        zone: ZoneName,
    },
    /// Replicate all objects of a bucket that was bound to a zone.
    Bind {
        /// The bucket.
        bucket: String,
        /// The zone.
        zone: ZoneName,
    },
    /// Fetch a URL into an object.
    Import(Box<ImportTask>),
    /// Copy the whole store, as of a moment, to a new folder of this machine.
    Backup {
        /// The folder, an absolute path.
        to: PathBuf,
    },
    /// Hold stored bytes against their checksums.
    Scrub {
        /// The one blob to read; all, without it.
        blob: Option<String>,
        /// Whether to read as fast as it goes, rather than at the pace of background work.
        hurry: bool,
    },
    /// Compress what a bucket held before it was told to.
    Compress {
        /// The bucket.
        bucket: String,
    },
}

/// What an import is to fetch, and what it is to become.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImportTask {
    /// The object's bucket.
    pub(crate) bucket: String,
    /// The object's key.
    pub(crate) key: String,
    /// Where the bytes are.
    pub(crate) url: String,
    /// What they must hash to: `sha256:…`, `sha512:…` or `md5:…` in hexadecimal digits.
    pub(crate) checksum: Option<String>,
    /// `Content-Type` of the object; the one the URL has by default.
    pub(crate) content_type: Option<String>,
    /// User metadata of the object.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
    /// Tags of the object.
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    /// The access key of the user who asked.
    pub(crate) owner: String,
}

impl Task {
    /// The job that does this.
    pub(crate) fn job(&self) -> NewJob {
        let (kind, subject) = match self {
            Self::Convert {
                bucket, key, target, ..
            } => ("convert", format!("{bucket}/{key} to {target}")),
            Self::Replicate { bucket, key, zone } => ("replicate", format!("{bucket}/{key} to {zone}")),
            Self::Bind { bucket, zone } => ("bind", format!("{bucket} to {zone}")),
            Self::Import(import) => (
                "import",
                format!("{} to {}/{}", redact_url(&import.url), import.bucket, import.key),
            ),
            Self::Scrub { blob: None, .. } => (SCRUB, "all blobs".to_owned()),
            Self::Scrub { blob: Some(blob), .. } => (SCRUB, format!("blob {blob}")),
            Self::Compress { bucket } => ("compress", bucket.clone()),
            Self::Backup { to } => ("backup", format!("to {}", to.display())),
        };
        let payload = serde_json::to_vec(self).expect("a task has no map keys but strings");
        NewJob {
            kind: kind.to_owned(),
            subject,
            payload,
        }
    }

    /// What `job` is to do.
    pub(crate) fn of(job: &JobRecord) -> Result<Self, JobError> {
        serde_json::from_slice(&job.payload)
            .map_err(|e| JobError::Failed(format!("this release does not know how to do the job: {e}")))
    }
}

/// A URL without credentials and query, which may hold secrets.
pub(crate) fn redact_url(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            let had_query = url.query().is_some();
            url.set_query(None);
            url.set_fragment(None);
            if had_query { format!("{url}?…") } else { url.into() }
        }
        Err(_) => text.chars().take(128).collect(),
    }
}

/// Why an attempt at a job ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    /// Another attempt would fail as well.
    #[error("{0}")]
    Failed(String),
    /// Another attempt may succeed.
    #[error("{0}")]
    Retry(String),
    /// As [`JobError::Retry`], however often: the other side is only away, or the disk full.
    #[error("{0}")]
    Unreachable(String),
}

impl From<lithos_storage::Error> for JobError {
    fn from(error: lithos_storage::Error) -> Self {
        use lithos_storage::ErrorKind as Kind;
        let text = chain(&error);
        match error.kind() {
            Kind::Io | Kind::Contended | Kind::OutcomeUnknown | Kind::BodyFailed | Kind::IncompleteBody => {
                Self::Retry(text)
            }
            // It waits for space, or for the disk to take writes again.
            Kind::StorageFull | Kind::ReadOnly => Self::Unreachable(text),
            _ => Self::Failed(text),
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Libraries often repeat the cause in their own message.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a job may use while it runs.
#[derive(Debug)]
pub(crate) struct JobContext {
    pub(crate) app: SharedApp,
    /// What every commit of the job asserts.
    pub(crate) fence: Fence,
    /// How often it was begun, this time included.
    pub(crate) attempt: u32,
    /// Cancelled when the job is cancelled or the server stops: the work so far is in vain.
    pub(crate) stop: CancellationToken,
    progress: Mutex<Progress>,
}

impl JobContext {
    /// Says what the job is doing, and how much there is to do, in bytes.
    pub(crate) fn stage(&self, stage: &str, total: Option<u64>) {
        let mut progress = self.lock();
        stage.clone_into(&mut progress.stage);
        progress.done = 0;
        progress.total = total;
    }

    /// Says how many bytes are done.
    pub(crate) fn done(&self, done: u64) {
        self.lock().done = done;
    }

    fn snapshot(&self) -> Progress {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Does `task`, and gives its result in a few words.
async fn run(context: &Arc<JobContext>, task: Task) -> Result<String, JobError> {
    match task {
        Task::Convert {
            bucket,
            key,
            version,
            target,
        } => {
            let version: LayoutId = version.parse()?;
            convert::run(context, &bucket.parse()?, &key.parse()?, version, &target).await
        }
        Task::Replicate { bucket, key, zone } => replicate::run(context, &bucket.parse()?, &key.parse()?, &zone).await,
        Task::Bind { bucket, zone } => bind::run(context, &bucket.parse()?, &zone).await,
        Task::Import(task) => import::run(context, *task).await,
        Task::Scrub { blob: None, hurry } => scrub::run(context, hurry).await,
        Task::Scrub { blob: Some(blob), .. } => scrub::run_one(context, blob.parse()?).await,
        Task::Compress { bucket } => compress::run(context, &bucket.parse()?).await,
        Task::Backup { to } => backup::run(context, &to).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_survive_their_payload() {
        let task = Task::Import(Box::new(ImportTask {
            url: "https://u:p@h/i.img?sig=x".into(),
            ..ImportTask::default()
        }));
        let job = task.job();
        assert_eq!(serde_json::from_slice::<Task>(&job.payload).unwrap(), task);
        assert!(
            !job.subject.contains("sig=") && !job.subject.contains("u:p"),
            "{}",
            job.subject
        );
    }
}
