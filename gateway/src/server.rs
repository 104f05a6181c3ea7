//! Listeners, limits and shutdown.
//!
//! Two listeners: the transfer address speaks S3, the management address the admin API. When the addresses are bound,
//! `endpoints.json` in the data folder says where. SIGTERM and SIGINT stop accepting, let requests under way finish
//! within [`DRAIN`], stop the jobs (the next start goes on with them), and end with success.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use http::{HeaderValue, Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use lithos_storage::LayoutId;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::Instrument;

use crate::{
    admin::server::Endpoints,
    app::{App, SharedApp},
    config::Config,
    job::runner::run_jobs,
    s3,
    zone::ZoneName,
};

/// How long requests under way may take to finish when the server stops.
const DRAIN: Duration = Duration::from_secs(30);
/// Most connections at a time, of each listener; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take to send the head of a request: an idle or slow client costs a connection no longer.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);
/// Most bytes of a connection's read buffer: it bounds the memory of a connection and the head of a request.
const READ_BUFFER_MAX: usize = 128 << 10;
/// How often the sweep looks around without having been asked.
const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// How often all blobs are compared with the index, and expired intents given up.
const STRAYS_EVERY: Duration = Duration::from_hours(1);

/// Runs the server until it is told to stop.
pub(crate) async fn serve(config: Config) -> anyhow::Result<()> {
    let app = App::open(config).await?;
    let transfer = bind(app.config.listen).await?;
    let management = bind(app.config.admin_listen).await?;
    announce(&app, transfer.local_addr()?, management.local_addr()?)?;

    let mut background = JoinSet::new();
    if !app.config.read_only {
        background.spawn(run_jobs(Arc::clone(&app)));
        background.spawn(sweep(Arc::clone(&app)));
    }
    let mut listeners = JoinSet::new();
    listeners.spawn(accept(Arc::clone(&app), transfer, s3::service(&app)?, "transfer"));
    listeners.spawn(accept(
        Arc::clone(&app),
        management,
        crate::admin::service(&app),
        "management",
    ));

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
pub(crate) type HttpRequest = Request<Incoming>;
/// A response as the services give it.
pub(crate) type HttpResponse = Response<s3s::Body>;
/// What answers the requests of a listener. Never fails: an error is a response.
pub(crate) type Service = Arc<dyn Fn(HttpRequest) -> futures::future::BoxFuture<'static, HttpResponse> + Send + Sync>;

async fn accept(app: SharedApp, listener: TcpListener, service: Service, name: &'static str) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = app.stopping.cancelled() => break,
            accepted = accept_one(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else {
            continue;
        };
        let service = Arc::clone(&service);
        let app = Arc::clone(&app);
        let answer = service_fn(move |request| answer(Arc::clone(&app), Arc::clone(&service), request, peer, name));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(READ_BUFFER_MAX)
            .serve_connection(TokioIo::new(stream), answer);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "{name}: some requests did not finish within {} s and are cut off",
            DRAIN.as_secs()
        );
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept_one(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<Accepted> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Small responses must not wait for an acknowledgement of the one before.
            let _ = stream.set_nodelay(true);
            Some((stream, peer, place))
        }
        Err(error) => {
            // Out of file descriptors, most likely: it passes when connections end.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Answers one request, with an id, and logs it.
async fn answer(
    app: SharedApp,
    service: Service,
    mut request: HttpRequest,
    peer: SocketAddr,
    listener: &'static str,
) -> Result<HttpResponse, std::convert::Infallible> {
    let begun = tokio::time::Instant::now();
    let id = LayoutId::generate(app.store.now()).to_string();
    let method = request.method().clone();
    // The query may hold a signature: it is not logged.
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", id);
    let mut response = service(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-amz-request-id", value);
    }
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let length = response
        .headers()
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("-");
    tracing::info!(target: "access", listener, %peer, %method, path, status = response.status().as_u16(), length, millis, id);
    Ok(response)
}

/// Sweeps whenever there is something to sweep.
async fn sweep(app: SharedApp) {
    // The first tick comes at once: a crash of the machine may have left something.
    let mut strays = tokio::time::interval(STRAYS_EVERY);
    loop {
        let report = tokio::select! {
            () = app.stopping.cancelled() => return,
            () = app.store.sweep_due() => app.store.sweep().await,
            () = tokio::time::sleep(SWEEP_EVERY) => app.store.sweep().await,
            _ = strays.tick() => sweep_all(&app).await,
        };
        match report {
            Ok(report) if report != lithos_storage::SweepReport::default() => tracing::debug!(?report, "swept"),
            Ok(_) => {}
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the sweep failed; it will go on"
            ),
        }
    }
}

async fn sweep_all(app: &App) -> lithos_storage::Result<lithos_storage::SweepReport> {
    app.store.sweep_intents(app.store.now()).await?;
    app.store.sweep_strays().await
}
