//! Jobs as they change, as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! | event | data | meaning |
//! | --- | --- | --- |
//! | `job` | a job, as elsewhere | how the job stands now |
//! | `synced` | `{}` | all unfinished jobs have been told; from now on, changes |
//! | `resync` | `{}` | changes were missed; all unfinished jobs follow, then `synced` |
//!
//! A change only says that there is something to read: what is sent is read from the store. So a job never goes backwards
//! in a stream, in whatever order its changes were told. A comment every [`KEEP_ALIVE`] shows that the server is there.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, TryStreamExt};
use lithos_storage::{ErrorKind, JobId, job::JobRecord};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{
    error::ApiError,
    job::{JobView, unfinished},
    request::Id,
};
use crate::app::SharedApp;

/// How often a stream shows that it lives. Clients give up after a minute of silence, proxies often too.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that may wait for a slow client; then changes pile up at the store, which drops the oldest.
const WAITING_MAX: usize = 64;

/// Why a stream ends before its time: the client is gone, or the store is in trouble.
enum Ended {
    Gone,
    Failed(lithos_storage::Error),
}

impl From<lithos_storage::Error> for Ended {
    fn from(error: lithos_storage::Error) -> Self {
        Self::Failed(error)
    }
}

/// All jobs.
pub(super) async fn all(State(app): State<SharedApp>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.store.watch_jobs();
    stream(app.stopping.clone(), move |out| async move {
        tell_all(&app, changes, &out).await
    })
}

/// One job, until it has finished.
pub(super) async fn one(
    State(app): State<SharedApp>,
    Id(id): Id,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let changes = app.store.watch_jobs();
    let job = app.store.job(id).await?;
    Ok(stream(app.stopping.clone(), move |out| async move {
        tell_one(&app, job, changes, &out).await
    }))
}

/// The events that `tell` sends, until it ends, the client goes, or the server stops.
fn stream<F>(
    stopping: CancellationToken,
    tell: impl FnOnce(mpsc::Sender<Event>) -> F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let (out, events) = mpsc::channel(WAITING_MAX);
    let telling = tell(out.clone());
    tokio::spawn(async move {
        tokio::select! {
            told = telling => {
                if let Err(Ended::Failed(error)) = told {
                    tracing::error!(error = &error as &dyn std::error::Error, "a stream of jobs breaks off");
                }
            }
            () = out.closed() => {}
            () = stopping.cancelled() => {}
        }
    });
    let events = futures::stream::unfold(events, |mut events| async {
        events.recv().await.map(|e| (Ok(e), events))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

async fn tell_all(app: &SharedApp, mut changes: Receiver<JobId>, out: &mpsc::Sender<Event>) -> Result<(), Ended> {
    loop {
        let mut pages = std::pin::pin!(unfinished(app));
        while let Some(page) = pages.try_next().await? {
            for job in page {
                send(out, job_event(job)).await?;
            }
        }
        send(out, marker("synced")).await?;
        loop {
            match changes.recv().await {
                Ok(change) => {
                    if let Some(job) = current(app, change).await? {
                        send(out, job_event(job)).await?;
                    }
                }
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
        send(out, marker("resync")).await?;
    }
}

async fn tell_one(
    app: &SharedApp,
    mut job: JobRecord,
    mut changes: Receiver<JobId>,
    out: &mpsc::Sender<Event>,
) -> Result<(), Ended> {
    let id = job.id;
    loop {
        let finished = job.state.is_finished();
        send(out, job_event(job)).await?;
        if finished {
            return Ok(());
        }
        loop {
            match changes.recv().await {
                Ok(change) if change != id => {}
                Ok(_) | Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
        let Some(now) = current(app, id).await? else {
            return Ok(());
        };
        job = now;
    }
}

/// The job as it stands, if it is still known.
async fn current(app: &SharedApp, id: JobId) -> Result<Option<JobRecord>, Ended> {
    match app.store.job(id).await {
        Ok(job) => Ok(Some(job)),
        Err(error) if error.kind() == ErrorKind::NoSuchJob => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn send(out: &mpsc::Sender<Event>, event: Event) -> Result<(), Ended> {
    out.send(event).await.map_err(|_| Ended::Gone)
}

fn job_event(job: JobRecord) -> Event {
    let data = serde_json::to_string(&JobView::from(job)).expect("a job has no map keys but strings");
    Event::default().event("job").data(data)
}

fn marker(name: &str) -> Event {
    Event::default().event(name).data("{}")
}
