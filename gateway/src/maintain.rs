//! What the server does for its store by itself: compresses, compacts, scrubs, carries out lifecycle rules, and deals with
//! damage.
//!
//! All of it is slow work in small steps; [`Pace`](crate::pace::Pace) makes each wait for clients. What is left when the
//! server stops is taken up by the next start: the rows that ask for it are in the index.

use std::{sync::Arc, time::Duration};

use lithos_storage::{blob::BlobId, job::JobState};

use crate::{
    app::{App, SharedApp},
    job::Task,
};

/// How often each kind of work is looked for without having been announced.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often it is asked whether there is something to compact: one look at the index, at most and at least.
const COMPACT_LOOKS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How often it is asked whether a scrub is due.
const SCRUB_LOOK_EVERY: Duration = Duration::from_mins(10);
/// How long work that failed is left alone.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// A day, in milliseconds.
const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;
/// The latest jobs among which a scrub is looked for.
const JOBS_LOOKED_AT: usize = 1000;

/// Does it all until the server stops.
pub(crate) async fn run(app: SharedApp) {
    tokio::join!(
        repeat(&app, "compression", compress),
        repeat(&app, "compaction", compact),
        repeat(&app, "damage", damage),
        repeat(&app, "scrub", schedule_scrub),
        repeat(&app, "lifecycle", crate::lifecycle::run),
    );
}

/// Calls `work`, which waits for something to do and does it, until the server stops.
async fn repeat<F>(app: &SharedApp, what: &str, work: impl Fn(SharedApp) -> F)
where
    F: Future<Output = lithos_storage::Result<()>>,
{
    loop {
        let done = tokio::select! {
            () = app.stopping.cancelled() => return,
            done = work(Arc::clone(app)) => done,
        };
        let Err(error) = done else { continue };
        tracing::warn!(
            what,
            error = &error as &dyn std::error::Error,
            "background work failed; it is tried again"
        );
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(AFTER_FAILURE) => {}
        }
    }
}

async fn compress(app: SharedApp) -> lithos_storage::Result<()> {
    while let Some(step) = app.store.compress_step().await? {
        tracing::debug!(?step, "compressed");
        app.pace.step(step.bytes).await;
    }
    tokio::select! {
        () = app.store.compress_due() => {}
        () = tokio::time::sleep(LOOK_EVERY) => {}
    }
    Ok(())
}

async fn compact(app: SharedApp) -> lithos_storage::Result<()> {
    while let Some(step) = app.store.compact_step().await? {
        tracing::debug!(?step, "compacted");
        app.pace.step(step.bytes).await;
    }
    let [least, most] = COMPACT_LOOKS;
    tokio::time::sleep(app.config.compact_after.clamp(least, most)).await;
    Ok(())
}

/// Writes down what reads have met, and has each blob that was not known looked at as a whole.
async fn damage(app: SharedApp) -> lithos_storage::Result<()> {
    app.store.damage_due().await;
    for blob in app.store.record_damage().await? {
        tracing::error!(%blob, "a read has met damage: the blob is looked at by a job");
        app.metrics.damaged_blocks.inc();
        app.store.queue_job(scrub_of(blob).job()).await?;
    }
    Ok(())
}

fn scrub_of(blob: BlobId) -> Task {
    Task::Scrub {
        blob: Some(blob.to_string()),
        hurry: true,
    }
}

/// Queues a scrub when the last one is as old as the settings say.
async fn schedule_scrub(app: SharedApp) -> lithos_storage::Result<()> {
    tokio::time::sleep(SCRUB_LOOK_EVERY).await;
    if scrub_is_due(&app).await? {
        start_scrub(&app, false).await?;
    }
    Ok(())
}

async fn scrub_is_due(app: &App) -> lithos_storage::Result<bool> {
    let every = u64::from(app.config.scrub_days).saturating_mul(DAY_MILLIS);
    if every == 0 {
        return Ok(false);
    }
    if let Some(state) = app.store.scrub_state().await? {
        return Ok(state.begun.plus_millis(every) <= app.store.now());
    }
    // A store that is new need not be read at once; this notes when it was first seen.
    let now = app.store.now();
    let seen = lithos_storage::ScrubState {
        begun: now,
        ended: Some(now),
        ..lithos_storage::ScrubState::default()
    };
    app.store.set_scrub_state(&seen).await?;
    Ok(false)
}

/// Queues a scrub of everything, unless one is under way; gives its job.
pub(crate) async fn start_scrub(app: &App, hurry: bool) -> lithos_storage::Result<lithos_storage::JobId> {
    let jobs = app.store.list_jobs(None, JOBS_LOOKED_AT).await?;
    let under_way = jobs.into_iter().find(|job| {
        matches!(job.state, JobState::Queued | JobState::Running)
            && matches!(Task::of(job), Ok(Task::Scrub { blob: None, .. }))
    });
    match under_way {
        Some(job) => Ok(job.id),
        None => app.store.queue_job(Task::Scrub { blob: None, hurry }.job()).await,
    }
}
