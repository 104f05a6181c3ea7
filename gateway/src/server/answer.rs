//! Answers one request: its id, its turn, its bounds, its line in the log and what is counted of it.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use hyper::body::Incoming;
use lithos_storage::LayoutId;
use s3s::S3ErrorCode;
use tokio::time::Instant;
use tracing::Instrument;

use super::{
    HttpResponse, RequestId, Service,
    body::{Leftover, Received, Sent, TOO_SLOW, Watch},
    client::{client, cost, cost_of_answer},
};
use crate::{
    admin,
    admission::{Admission, Limits, Permit, Refused},
    app::SharedApp,
    metrics::{self, Answered, Listener, Operation, Reason},
    s3,
};

/// How long a request may wait for its turn. Clients give up after a minute or so, and try again sooner if they are told
/// to.
pub(crate) const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Requests that may wait for each that may be under way: at ten times the usual 25 ms a request, the last of them would
/// wait for a second.
pub(crate) const QUEUE_FACTOR: usize = 4;
/// Requests of the management address at a time. Streams of jobs and what is open to all are not counted.
const MANAGEMENT_REQUESTS_MAX: usize = 64;
/// Memory for the bodies of these, which are small.
const MANAGEMENT_BUFFER_MAX: u64 = 64 << 20;
/// After how many seconds a client that was refused is asked to come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// The name of what a request does, once its service knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct OperationName(Arc<OnceLock<&'static str>>);

impl OperationName {
    /// Says it, the first time.
    pub(crate) fn set(&self, name: &'static str) {
        let _ = self.0.set(name);
    }
}

/// Which address is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Transfer,
    Management,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::Management => "management",
        }
    }

    /// Whether a request waits for its turn. What says how the server is must answer while it is busy, and a stream of
    /// jobs lasts for as long as somebody looks.
    fn takes_turns(self, path: &str) -> bool {
        match self {
            Self::Transfer => true,
            Self::Management => path.starts_with(admin::API) && !path.ends_with("/events"),
        }
    }

    /// What is told to a request that does not get its turn, in the language of the address.
    fn slow_down(self, id: &RequestId, why: Refused) -> HttpResponse {
        let message = format!("{why}: ask less often, or again later");
        match self {
            Self::Transfer => s3::refusal(id, S3ErrorCode::SlowDown, message),
            Self::Management => admin::slow_down(id, message),
        }
    }

    /// What a request is counted as whose service did not say.
    fn operation(self, path: &str) -> &'static str {
        match self {
            Self::Transfer if path.starts_with(s3::PEER_PREFIX) => "peer",
            Self::Management if path.starts_with(admin::API) => "admin",
            _ => "other",
        }
    }
}

/// What stands between the connections of an address and its service.
pub(super) struct Front {
    pub(super) app: SharedApp,
    pub(super) side: Side,
    service: Service,
    admission: Arc<Admission>,
}

impl Front {
    pub(super) fn transfer(app: &SharedApp, service: Service) -> Arc<Self> {
        Arc::new(Self {
            app: Arc::clone(app),
            side: Side::Transfer,
            service,
            admission: Arc::clone(&app.admission),
        })
    }

    pub(super) fn management(app: &SharedApp, service: Service) -> Arc<Self> {
        let limits = Limits {
            requests: MANAGEMENT_REQUESTS_MAX,
            bytes: MANAGEMENT_BUFFER_MAX,
            waiting: MANAGEMENT_REQUESTS_MAX * QUEUE_FACTOR,
            patience: QUEUE_WAIT,
        };
        Arc::new(Self {
            app: Arc::clone(app),
            side: Side::Management,
            service,
            admission: Admission::new(limits),
        })
    }

    /// Answers one request, with an id, when it is its turn, and logs it.
    pub(super) async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Sent> {
        let begun = Instant::now();
        let id = RequestId(LayoutId::generate(self.app.store.now()).to_string());
        let method = request.method().clone();
        // The query may hold a signature: it is not logged.
        let path = request.uri().path().to_owned();
        let operation = OperationName::default();
        let leftover = Leftover::default();
        let (mut response, permit) = match self.admit(peer, &request).await {
            Ok(permit) => {
                let request = self.watch(request, &leftover, &id, &operation);
                let span = tracing::info_span!("request", id = id.0);
                let mut response = (self.service)(request).instrument(span).await;
                let broken = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_REQUEST].contains(&response.status());
                if broken && leftover.is_too_slow() {
                    // Whoever reads an XML body sees it break off, and does not know why.
                    response = s3::refusal(&id, S3ErrorCode::RequestTimeout, TOO_SLOW.to_owned());
                }
                (response, permit)
            }
            Err(why) => {
                leftover.put(request.into_body());
                (self.refuse(&id, why), None)
            }
        };
        if let Ok(value) = HeaderValue::from_str(&id.0) {
            response.headers_mut().insert("x-amz-request-id", value);
        }
        let name = operation.0.get().copied();
        let name = name.unwrap_or_else(|| self.side.operation(&path));
        self.count(name, response.status(), begun);
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()).unwrap_or("-");
        let status = response.status().as_u16();
        tracing::info!(target: "access", listener = self.side.name(), %peer, %method, path, status, length, millis, id = id.0);
        response.map(|body| self.send(body, permit, leftover))
    }

    /// Waits for the request's turn, if it takes any.
    async fn admit(&self, peer: SocketAddr, request: &Request<Incoming>) -> Result<Option<Permit>, Refused> {
        if !self.side.takes_turns(request.uri().path()) {
            return Ok(None);
        }
        let (uri, headers) = (request.uri(), request.headers());
        let client = client(&self.app, uri, headers, peer.ip());
        let cost = cost(request.method(), headers);
        self.admission.admit(client, cost).await.map(Some)
    }

    fn refuse(&self, id: &RequestId, why: Refused) -> HttpResponse {
        let reason = match why {
            Refused::Full => "full",
            Refused::Late => "late",
        };
        self.app.metrics.slow_downs.get_or_create(&Reason { reason }).inc();
        let mut response = self.side.slow_down(id, why);
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        // Whatever else the client has sent or is about to send, it is not the next request.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The request as its service gets it.
    fn watch(
        &self,
        request: Request<Incoming>,
        leftover: &Leftover,
        id: &RequestId,
        operation: &OperationName,
    ) -> Request<s3s::Body> {
        let metrics = &self.app.metrics;
        let is_held_back = request.headers().contains_key(header::EXPECT);
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                return s3s::Body::from(body);
            }
            let label = Listener {
                listener: self.side.name(),
            };
            let watch = Watch {
                client_timeout: self.app.config.bounds.client_timeout,
                bytes: metrics.received_bytes.clone(),
                cut_off: metrics.cut_off.get_or_create_owned(&label),
                leftover: leftover.clone(),
                is_held_back,
            };
            s3s::Body::http_body_unsync(Received::new(body, watch))
        });
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(operation.clone());
        request
    }

    fn count(&self, operation: &'static str, status: StatusCode, begun: Instant) {
        let metrics = &self.app.metrics;
        let class = metrics::class(status);
        metrics.requests.get_or_create(&Answered { operation, class }).inc();
        let took = begun.elapsed().as_secs_f64();
        metrics
            .request_seconds
            .get_or_create(&Operation { operation })
            .observe(took);
    }

    /// The answer's body, which keeps the permit, and of that only what it needs.
    fn send(&self, inner: s3s::Body, mut permit: Option<Permit>, leftover: Leftover) -> Sent {
        if let Some(permit) = &mut permit {
            permit.shrink(cost_of_answer(inner.size_hint().exact()));
        }
        Sent {
            inner,
            bytes: self.app.metrics.sent_bytes.clone(),
            leftover,
            permit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_and_streams_of_jobs_take_no_turns() {
        for (side, path, expected) in [
            (Side::Transfer, "/healthz", true),
            (Side::Transfer, "/api/events", true),
            (Side::Management, "/healthz", false),
            (Side::Management, "/metrics", false),
            (Side::Management, "/api/v1/jobs", true),
            (Side::Management, "/api/v1/jobs/events", false),
            (Side::Management, "/api/v1/jobs/0123/events", false),
        ] {
            assert_eq!(side.takes_turns(path), expected, "{side:?} {path}");
        }
        assert_eq!(Side::Transfer.operation("/.lithos/v1/blobs/0"), "peer");
        assert_eq!(Side::Transfer.operation("/api/v1/jobs"), "other");
        assert_eq!(Side::Management.operation("/api/v1/jobs"), "admin");
    }
}
