//! Jobs: list, show, cancel, retry.

use axum::{Json, extract::State};
use lithos_storage::{
    clock::Timestamp,
    job::{JobRecord, JobState},
};
use serde::{Deserialize, Serialize};

use super::{
    error::ApiError,
    request::{Id, Parameters, parse_id},
};
use crate::app::SharedApp;

/// Jobs in an answer, unless the request says how many.
const LIMIT_DEFAULT: usize = 100;
/// Most jobs in an answer.
const LIMIT_MAX: usize = 1000;
/// Jobs that are read at a time where not all of them are wanted.
const PAGE: usize = 256;
/// Most jobs that one request looks at: where few match, it answers with what it found and where to go on.
const LOOK_AT_MAX: usize = 20_000;

/// A job as the API shows it. Its payload stays inside: it may hold a URL with a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobView {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) state: JobStateView,
    pub(crate) stage: String,
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    pub(crate) percent: Option<u8>,
    pub(crate) attempts: u32,
    pub(crate) created: String,
    pub(crate) updated: String,
    /// When a job that waits is due.
    pub(crate) next_attempt: Option<String>,
    pub(crate) result: Option<String>,
    /// Why it failed, or why its last attempt did.
    pub(crate) error: Option<String>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobStateView {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl JobStateView {
    /// Whether nothing more will happen by itself.
    pub(crate) fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl From<JobState> for JobStateView {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Done => Self::Done,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

impl std::fmt::Display for JobStateView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

impl From<JobRecord> for JobView {
    fn from(job: JobRecord) -> Self {
        let message = Some(job.message).filter(|message| !message.is_empty());
        let (result, error) = match job.state {
            JobState::Done => (message, None),
            JobState::Queued | JobState::Running | JobState::Failed | JobState::Cancelled => (None, message),
        };
        Self {
            id: job.id.to_string(),
            kind: job.kind,
            subject: job.subject,
            state: job.state.into(),
            stage: job.stage,
            done: job.done,
            total: job.total,
            percent: percent(job.state, job.done, job.total),
            attempts: job.attempts,
            created: rfc3339(job.created),
            updated: rfc3339(job.updated),
            // While it runs, this is when its lease ends.
            next_attempt: job.due.filter(|_| job.state == JobState::Queued).map(rfc3339),
            result,
            error,
        }
    }
}

/// How much of a job is done, in hundredths, rounded down.
fn percent(state: JobState, done: u64, total: Option<u64>) -> Option<u8> {
    if state == JobState::Done {
        return Some(100);
    }
    let hundredths = u128::from(done).saturating_mul(100).checked_div(u128::from(total?))?;
    Some(u8::try_from(hundredths).unwrap_or(100).min(100))
}

/// A time as RFC 3339 has it, in UTC.
pub(super) fn rfc3339(time: Timestamp) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// Jobs, from the newest to the oldest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct JobPage {
    pub(crate) jobs: Vec<JobView>,
    /// What to give as `after` for those that follow, if any may.
    pub(crate) next: Option<String>,
}

/// Which jobs to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    /// States, separated by commas; all without it.
    state: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

pub(super) async fn list(
    State(app): State<SharedApp>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<JobPage>, ApiError> {
    let states = parameters.state.as_deref().map(parse_states).transpose()?;
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!(
            "limit must be between 1 and {LIMIT_MAX}, not {limit}"
        )));
    }
    let mut after = parameters.after.as_deref().map(parse_id).transpose()?;
    let mut jobs = Vec::new();
    let mut looked_at = 0;
    while looked_at < LOOK_AT_MAX {
        let size = if states.is_none() { limit } else { PAGE };
        let page = app.store.list_jobs(after, size).await?;
        let last = page.len() < size;
        for job in page {
            looked_at += 1;
            after = Some(job.id);
            if states.as_ref().is_none_or(|states| states.contains(&job.state.into())) {
                jobs.push(job.into());
            }
            if jobs.len() == limit {
                return Ok(Json(JobPage {
                    jobs,
                    next: after.map(|id| id.to_string()),
                }));
            }
        }
        if last {
            return Ok(Json(JobPage { jobs, next: None }));
        }
    }
    Ok(Json(JobPage {
        jobs,
        next: after.map(|id| id.to_string()),
    }))
}

fn parse_states(text: &str) -> Result<Vec<JobStateView>, ApiError> {
    let parse = |word| {
        clap::ValueEnum::from_str(word, false).map_err(|_| {
            ApiError::invalid(format!(
                "{word:?} is not a state: queued, running, done, failed or cancelled"
            ))
        })
    };
    text.split(',').map(parse).collect()
}

pub(super) async fn show(State(app): State<SharedApp>, Id(id): Id) -> Result<Json<JobView>, ApiError> {
    Ok(Json(app.store.job(id).await?.into()))
}

pub(super) async fn cancel(State(app): State<SharedApp>, Id(id): Id) -> Result<Json<JobView>, ApiError> {
    Ok(Json(app.store.cancel_job(id).await?.into()))
}

pub(super) async fn retry(State(app): State<SharedApp>, Id(id): Id) -> Result<Json<JobView>, ApiError> {
    Ok(Json(app.store.retry_job(id).await?.into()))
}

/// All jobs that have not finished, page by page.
pub(super) fn unfinished(
    app: &SharedApp,
) -> impl futures::Stream<Item = Result<Vec<JobRecord>, lithos_storage::Error>> + use<'_> {
    futures::stream::try_unfold(Some(None), move |position| async move {
        let Some(after) = position else { return Ok(None) };
        let mut page = app.store.list_jobs(after, PAGE).await?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|job| Some(job.id));
        page.retain(|job| !job.state.is_finished());
        Ok(Some((page, next)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_never_over_100_and_100_only_at_the_end() {
        for (state, done, total, expected) in [
            (JobState::Running, 0, None, None),
            (JobState::Running, 5, Some(0), None),
            (JobState::Running, 999, Some(1000), Some(99)),
            (JobState::Running, u64::MAX, Some(u64::MAX), Some(100)),
            (JobState::Running, u64::MAX, Some(1), Some(100)),
            (JobState::Failed, 1, Some(2), Some(50)),
            (JobState::Done, 0, None, Some(100)),
        ] {
            assert_eq!(percent(state, done, total), expected, "{state:?} {done} {total:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Timestamp(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert!(rfc3339(Timestamp(u64::MAX)).starts_with("9999-12-"));
    }
}
