//! Accepts connections, as many at a time as there are places.
//!
//! When there is no place for a connection, the others are asked to end: idle ones do so at once, busy ones after the
//! answer they are at. One that has got no place after [`PLACE_WAIT`] is closed, so that its client knows.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::task::TaskTracker;

use super::{answer::Front, socket::Socket};
use crate::metrics::Listener as Label;

/// How long requests under way may take to finish when the server stops.
const DRAIN: Duration = Duration::from_secs(30);
/// Most bytes of a connection's read buffer: it bounds the memory of a connection and the head of a request.
const READ_BUFFER_MAX: usize = 128 << 10;
/// How long a connection waits for a place: others end within the time of a request.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// How long to wait when the system has no descriptor left: it passes when connections end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// An address, and what answers there.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) front: Arc<Front>,
    pub(super) connections_max: usize,
}

impl Listener {
    /// Serves until the server stops, and then lets requests under way finish.
    pub(super) async fn run(self) {
        let Self {
            socket,
            front,
            connections_max,
        } = self;
        let places = Arc::new(Semaphore::new(connections_max));
        let crowded = watch::Sender::new(());
        let connections = TaskTracker::new();
        let mut is_failing = false;
        loop {
            let accepted = tokio::select! {
                () = front.app.stopping.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Once, and not ten times a second.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "cannot accept a connection; trying on");
                    }
                    let _ = crowded.send(());
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            is_failing = false;
            let place = tokio::select! {
                () = front.app.stopping.cancelled() => break,
                place = find_place(&places, &crowded) => place,
            };
            let Some(place) = place else {
                tracing::debug!(%peer, "no place for a connection");
                let label = Label {
                    listener: front.side.name(),
                };
                front.app.metrics.connections_refused.get_or_create(&label).inc();
                continue;
            };
            connections.spawn(serve(Arc::clone(&front), stream, peer, place, crowded.subscribe()));
        }
        drop(socket);
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!(
                "{}: some requests did not finish within {} s and are cut off",
                front.side.name(),
                DRAIN.as_secs()
            );
        }
    }
}

/// A place for a connection. If there is none, others are asked to end, and it is waited for.
async fn find_place(places: &Arc<Semaphore>, crowded: &watch::Sender<()>) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    let _ = crowded.send(());
    let place = tokio::time::timeout(PLACE_WAIT, Arc::clone(places).acquire_owned()).await;
    place.ok().and_then(Result::ok)
}

/// Serves one connection to its end.
async fn serve(
    front: Arc<Front>,
    stream: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    mut crowded: watch::Receiver<()>,
) {
    // Small responses must not wait for an acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let label = Label {
        listener: front.side.name(),
    };
    let open = front.app.metrics.connections.get_or_create_owned(&label);
    open.inc();
    let client_timeout = front.app.config.bounds.client_timeout;
    let stopping = front.app.stopping.clone();
    let cut_off = front.app.metrics.cut_off.get_or_create_owned(&label);
    let service = service_fn(move |request: Request<Incoming>| {
        let front = Arc::clone(&front);
        async move { Ok::<_, std::convert::Infallible>(front.answer(peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(client_timeout)
        .max_buf_size(READ_BUFFER_MAX)
        .serve_connection(Socket::new(stream, client_timeout, cut_off), service);
    let mut connection = pin!(connection);
    let mut is_ending = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = crowded.changed(), if !is_ending => {}
            () = stopping.cancelled(), if !is_ending => {}
        }
        is_ending = true;
        connection.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
    open.dec();
    drop(place);
}
