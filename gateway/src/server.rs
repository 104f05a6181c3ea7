//! Listeners, bounds and shutdown.
//!
//! Two listeners: the transfer address speaks S3, the management address the admin API. When the addresses are bound,
//! `endpoints.json` in the data folder says where. SIGTERM and SIGINT stop accepting, let requests under way finish
//! within half a minute, stop the jobs (the next start goes on with them), and end with success.
//!
//! | module | holds |
//! | --- | --- |
//! | `descriptors` | how many connections and requests the limit of open files has room for |
//! | `listener` | connections: accepted, counted, ended |
//! | `answer` | one request: its turn ([`admission`](crate::admission)), its log line, what is counted |
//! | `client` | whose a request is, and what it may hold in memory |
//! | `body`, `socket`, `stall` | bodies in and out, cut off when a client is too slow |
//! | `sweep` | the loop that clears what nothing names any more |

mod answer;
mod body;
mod client;
pub(crate) mod descriptors;
mod listener;
mod socket;
mod stall;
mod sweep;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use http::{Request, Response};
use tokio::{net::TcpListener, task::JoinSet};

pub(crate) use self::answer::{OperationName, QUEUE_FACTOR, QUEUE_WAIT};
use self::{answer::Front, listener::Listener};
use crate::{admin::server::Endpoints, app::App, config::Config, job::runner::run_jobs, maintain, s3, zone::ZoneName};

/// Runs the server until it is told to stop.
pub(crate) async fn serve(config: Config) -> anyhow::Result<()> {
    let app = App::open(config).await?;
    let transfer = bind(app.config.listen).await?;
    let management = bind(app.config.admin_listen).await?;
    announce(&app, transfer.local_addr()?, management.local_addr()?)?;

    let mut background = JoinSet::new();
    if !app.config.read_only {
        background.spawn(run_jobs(Arc::clone(&app)));
        background.spawn(sweep::run(Arc::clone(&app)));
        background.spawn(maintain::run(Arc::clone(&app)));
    }
    let mut listeners = JoinSet::new();
    let (transfer_max, management_max) = (app.budget.transfer, app.budget.management);
    for (socket, front, connections_max) in [
        (transfer, Front::transfer(&app, s3::service(&app)?), transfer_max),
        (
            management,
            Front::management(&app, crate::admin::service(&app)),
            management_max,
        ),
    ] {
        let listener = Listener {
            socket,
            front,
            connections_max,
        };
        listeners.spawn(listener.run());
    }

    stop_signal().await?;
    tracing::info!("stopping: requests under way may finish");
    app.stopping.cancel();
    while listeners.join_next().await.is_some() {}
    while background.join_next().await.is_some() {}
    if !app.config.read_only {
        let _ = std::fs::remove_file(app.config.data.join("endpoints.json"));
    }
    tracing::info!("stopped");
    Ok(())
}

async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}"))
}

/// Says where the server listens, in the log and, unless nothing is to be written, in a file.
fn announce(app: &App, transfer: SocketAddr, management: SocketAddr) -> anyhow::Result<()> {
    let endpoints = Endpoints {
        transfer: format!("http://{transfer}"),
        management: format!("http://{management}"),
    };
    if app.config.read_only {
        tracing::info!("read-only: writes are refused, no job runs, and endpoints.json is not written");
    } else {
        let path = app.config.data.join("endpoints.json");
        let text = serde_json::to_string(&endpoints)?;
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, format!("{text}\n"))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let _ = app.endpoints.set(endpoints);
    let zones: Vec<&str> = app.config.zones.iter().map(ZoneName::as_str).collect();
    tracing::info!(%transfer, %management, zones = zones.join(","), data = %app.config.data.display(), "serving");
    if let Some(credentials) = app.keyring.credentials_path() {
        tracing::info!("root keys are in {}", credentials.display());
    }
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The id of a request, for its response, its errors and its log lines.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// A request as the services get it.
pub(crate) type HttpRequest = Request<s3s::Body>;
/// A response as the services give it.
pub(crate) type HttpResponse = Response<s3s::Body>;
/// What answers the requests of a listener. Never fails: an error is a response.
pub(crate) type Service = Arc<dyn Fn(HttpRequest) -> futures::future::BoxFuture<'static, HttpResponse> + Send + Sync>;
