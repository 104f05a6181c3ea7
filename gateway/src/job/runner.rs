//! Claims jobs that are due, runs them, and writes down how they ended.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lithos_storage::{
    ErrorKind,
    job::{Ending, Lease},
};
use tokio::task::JoinSet;

use super::{JobContext, JobError, SCRUB, Task, run};
use crate::app::SharedApp;

/// How often progress is written down, and the lease renewed.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// How often a job that keeps failing is tried before it has failed for good.
pub(super) const ATTEMPTS_MAX: u32 = 6;
/// The first wait before another attempt; it doubles each time.
const RETRY_MILLIS_MIN: u64 = 1_000;
/// The longest wait before another attempt.
const RETRY_MILLIS_MAX: u64 = 60_000;
/// The longest wait for a peer that is away: it should notice soon that we look for it.
const UNREACHABLE_MILLIS_MAX: u64 = 10_000;

/// Runs jobs until the server stops, as many at a time as it is configured to.
pub(crate) async fn run_jobs(app: SharedApp) {
    let mut workers = JoinSet::new();
    for _ in 0..app.config.workers {
        workers.spawn(work(Arc::clone(&app)));
    }
    while workers.join_next().await.is_some() {}
}

async fn work(app: SharedApp) {
    while !app.stopping.is_cancelled() {
        match app.store.claim_job(app.worker).await {
            // A scrub takes hours and spends them waiting: it must not keep a worker from what people wait for.
            Ok(Some(lease)) if lease.job.kind == SCRUB => {
                let app = Arc::clone(&app);
                tokio::spawn(async move { run_claimed(&app, lease).await });
            }
            Ok(Some(lease)) => run_claimed(&app, lease).await,
            Ok(None) => {
                tokio::select! {
                    () = app.store.job_due() => {}
                    () = app.stopping.cancelled() => {}
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot claim a job");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    () = app.stopping.cancelled() => {}
                }
            }
        }
    }
}

async fn run_claimed(app: &SharedApp, lease: Lease) {
    let job = &lease.job;
    let context = Arc::new(JobContext {
        app: Arc::clone(app),
        fence: lease.fence(),
        attempt: job.attempts,
        stop: app.stopping.child_token(),
        progress: Mutex::default(),
    });
    tracing::info!(job = %job.id, kind = job.kind, subject = job.subject, attempt = job.attempts, "job begins");
    let task = Task::of(job);
    // What this release does not know could be called anything.
    let kind = task.as_ref().map_or("unknown", |_| job.kind.as_str());
    app.metrics.job_begun(kind);
    let outcome = match task {
        Err(error) => Err(error),
        Ok(task) => {
            // A task of its own, so that a bug in one job ends that job only.
            let running = tokio::spawn({
                let context = Arc::clone(&context);
                async move { run(&context, task).await }
            });
            watch(&context, running).await
        }
    };
    if app.stopping.is_cancelled() && outcome.is_err() {
        // Its lease is taken over at the next start; nothing is written down that would count against it.
        return;
    }
    let ending = ending(outcome, context.attempt);
    let _ = app.store.report_progress(context.fence, &context.snapshot()).await;
    match app.store.end_job(context.fence, ending.clone()).await {
        Ok(job) => {
            app.metrics.job_ended(kind, job.state);
            tracing::info!(job = %job.id, state = ?job.state, message = job.message, "job ends");
        }
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => {
            tracing::info!(job = %job.id, "job ends: it is no longer ours");
        }
        Err(error) => tracing::error!(job = %job.id, error = &error as &dyn std::error::Error, "cannot end a job"),
    }
}

/// Reports progress while the job runs, and stops it when it is no longer ours.
async fn watch(
    context: &JobContext,
    mut running: tokio::task::JoinHandle<Result<String, JobError>>,
) -> Result<String, JobError> {
    let mut tick = tokio::time::interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut running => {
                return ended.unwrap_or_else(|e| Err(JobError::Failed(format!("the job ended in a bug: {e}"))));
            }
            _ = tick.tick() => {
                let reported = context.app.store.report_progress(context.fence, &context.snapshot()).await;
                if reported.is_err_and(|e| e.kind() == ErrorKind::PreconditionFailed) {
                    context.stop.cancel();
                }
            }
            () = context.stop.cancelled() => {
                running.abort();
                let _ = running.await;
                return Err(JobError::Retry("stopped".to_owned()));
            }
        }
    }
}

fn ending(outcome: Result<String, JobError>, attempt: u32) -> Ending {
    let wait = |longest: u64| {
        RETRY_MILLIS_MIN
            .saturating_mul(1 << attempt.saturating_sub(1).min(16))
            .min(longest)
    };
    match outcome {
        Ok(result) => Ending::Done(result),
        Err(JobError::Failed(message)) => Ending::Failed(message),
        Err(JobError::Retry(message)) if attempt >= ATTEMPTS_MAX => {
            Ending::Failed(format!("{message} (given up after {attempt} attempts)"))
        }
        Err(JobError::Retry(message)) => Ending::Retry {
            message,
            after_millis: wait(RETRY_MILLIS_MAX),
        },
        Err(JobError::Unreachable(message)) => Ending::Retry {
            message,
            after_millis: wait(UNREACHABLE_MILLIS_MAX),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_retried_with_growing_waits_and_then_given_up() {
        let retry = |attempt| ending(Err(JobError::Retry("x".into())), attempt);
        assert_eq!(
            retry(1),
            Ending::Retry {
                message: "x".into(),
                after_millis: 1_000
            }
        );
        assert_eq!(
            retry(3),
            Ending::Retry {
                message: "x".into(),
                after_millis: 4_000
            }
        );
        assert!(matches!(retry(ATTEMPTS_MAX), Ending::Failed(_)));
        let away = ending(Err(JobError::Unreachable("x".into())), 1_000);
        assert_eq!(
            away,
            Ending::Retry {
                message: "x".into(),
                after_millis: UNREACHABLE_MILLIS_MAX
            }
        );
    }
}
