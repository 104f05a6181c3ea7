//! Bodies on their way in and out: counted, watched, and ended so that the client sees its answer.
//!
//! A request that is refused before its body has been read would, if the connection were simply closed, lose its answer:
//! the system resets a connection that is closed with bytes unread, and many clients look at the answer only when they
//! have sent everything. So what a service leaves of a body ([`Leftover`]) is read and thrown away, within bounds, while
//! the answer goes out.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use s3s::{S3Error, S3ErrorCode, StdError};

use super::stall::Stall;
use crate::admission::Permit;

/// Most bytes of a refused body that are read and thrown away.
const DISCARD_LEN_MAX: u64 = 64 << 20;
/// How long that may take. After it the connection is closed.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(10);

/// What is told to a client whose body comes too slowly.
pub(super) const TOO_SLOW: &str = "the body came too slowly, or not at all, for too long";

/// What a service left of a request's body.
#[derive(Debug, Clone, Default)]
pub(super) struct Leftover(Arc<Mutex<Left>>);

#[derive(Debug, Default)]
enum Left {
    /// It was read to its end, or there was none.
    #[default]
    Nothing,
    /// The rest was not wanted.
    Rest(Incoming),
    /// The rest came too slowly.
    TooSlow,
}

impl Leftover {
    pub(super) fn put(&self, body: Incoming) {
        self.set(Left::Rest(body));
    }

    /// Whether the client was cut off while its body was being read.
    pub(super) fn is_too_slow(&self) -> bool {
        matches!(*self.lock(), Left::TooSlow)
    }

    fn take(&self) -> Option<Incoming> {
        match std::mem::take(&mut *self.lock()) {
            Left::Rest(body) => Some(body),
            Left::Nothing | Left::TooSlow => None,
        }
    }

    fn set(&self, left: Left) {
        *self.lock() = left;
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Reads a body to its end, or to a bound. When it is dropped before its end, hyper closes the connection.
async fn discard(mut body: Incoming) {
    let reading = async {
        let mut len = 0;
        while let Some(Ok(frame)) = body.frame().await {
            len += frame.data_ref().map_or(0, |data| data.len() as u64);
            if len > DISCARD_LEN_MAX {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, reading).await;
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Received {
    /// Gone when it has ended, whichever way.
    inner: Option<Incoming>,
    stall: Stall,
    bytes: Counter,
    cut_off: Counter,
    leftover: Leftover,
    /// Whether the client may be waiting for a 100 Continue, which goes out with the first look at the body. Until then
    /// there may be no body to throw away, but another request.
    is_held_back: bool,
}

/// What a request's body needs to know.
pub(super) struct Watch {
    pub(super) client_timeout: Duration,
    pub(super) bytes: Counter,
    pub(super) cut_off: Counter,
    pub(super) leftover: Leftover,
    pub(super) is_held_back: bool,
}

impl Received {
    pub(super) fn new(inner: Incoming, watch: Watch) -> Self {
        Self {
            inner: Some(inner),
            stall: Stall::new(watch.client_timeout),
            bytes: watch.bytes,
            cut_off: watch.cut_off,
            leftover: watch.leftover,
            is_held_back: watch.is_held_back,
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        this.is_held_back = false;
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let len = frame.data_ref().map_or(0, Bytes::len);
                this.stall.moved(len);
                this.bytes.inc_by(len as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(ended) => {
                this.inner = None;
                Poll::Ready(ended.map(|ended| ended.map_err(StdError::from)))
            }
            Poll::Pending => {
                ready!(this.stall.poll_waiting(cx));
                // Without it hyper closes the connection once the answer is out.
                this.inner = None;
                this.cut_off.inc();
                this.leftover.set(Left::TooSlow);
                Poll::Ready(Some(Err(too_slow())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take()
            && !inner.is_end_stream()
            && !self.is_held_back
        {
            self.leftover.put(inner);
        }
    }
}

/// What becomes of a body that comes too slowly: the S3 error of that name, wherever the store passes it on.
fn too_slow() -> StdError {
    StdError::from(S3Error::with_message(S3ErrorCode::RequestTimeout, TOO_SLOW))
}

/// The body of an answer, and what lives as long as it does.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) inner: s3s::Body,
    pub(super) bytes: Counter,
    pub(super) leftover: Leftover,
    /// Given back when the last byte has been taken.
    pub(super) permit: Option<Permit>,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.bytes.inc_by(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        drop(self.permit.take());
        // The head of the answer is out by now, so that reading on does not ask for the body with a 100 Continue.
        if let Some(body) = self.leftover.take() {
            tokio::spawn(discard(body));
        }
    }
}
