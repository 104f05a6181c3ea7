//! Bodies of requests that are XML: bounded, and held against what the request declares of them.
//!
//! The library reads such a body into memory once the request's signature is good. It verifies no `Content-MD5` and no
//! checksum, and answers 500 to a body that is too long or does not have its signed hash. So the body is watched as it is
//! read: its pieces are kept, which copies nothing, and compared by whoever carries the request out.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, Method, Request, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use lithos_storage::Digests;
use s3s::{Body, S3Error, S3ErrorCode, S3Result};
use sha2::{Digest as _, Sha256};

use super::{XML_LEN_MAX, checksum::Expected, wire::refuse};
use crate::{auth::route::names_bucket, server::HttpResponse};

/// Parameters of the query whose PUT or POST has a body of XML or JSON.
const DOCUMENTS: [&str; 29] = [
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "publicAccessBlock",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "tagging",
    "versioning",
    "website",
];

/// Longest document that is read to its end only to refuse it.
const DISCARD_LEN_MAX: u64 = 256 << 20;
/// How long that may take; the connection of whoever is slower is closed.
const DISCARD_TIME: Duration = Duration::from_secs(20);
/// How long the next bytes may take: a client that is silent has nothing under way that could cost it the answer.
const DISCARD_IDLE: Duration = Duration::from_secs(1);

/// What has been read of a body.
#[derive(Debug, Clone, Default)]
struct Seen {
    pieces: Arc<Mutex<Vec<Bytes>>>,
    /// Whether checksums in the headers are of the object to be completed, and not of the body.
    completes: bool,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.lock().iter().map(Bytes::len).sum()
    }
}

/// A body that notes what is read of it.
struct Watched {
    inner: Body,
    seen: Seen,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame?,
        };
        if let Some(data) = frame.data_ref() {
            self.seen.lock().push(data.clone());
            if self.seen.len() > XML_LEN_MAX {
                return Poll::Ready(Some(Err("the body is too long".into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

/// A body under watch, to look at when the answer is there.
pub(super) struct Watch {
    seen: Seen,
    len: u64,
    sha256: Option<String>,
}

/// Refuses a document that is declared longer than any that is well-formed.
///
/// The body is read and thrown away behind the answer, unless the client waits to be told to send it: a connection that is
/// closed on bytes under way loses the answer too (RFC 9112, "Tear-down").
pub(super) fn refuse_long(request: Request<Body>, domains: &[String]) -> Result<Request<Body>, Box<S3Error>> {
    let declared = request.body().size_hint().lower();
    if declared <= XML_LEN_MAX as u64 || !is_document(&request, domains) {
        return Ok(request);
    }
    if declared <= DISCARD_LEN_MAX && !request.headers().contains_key(EXPECT) {
        let mut body = request.into_body();
        tokio::spawn(tokio::time::timeout(DISCARD_TIME, async move {
            while let Ok(Some(Ok(_))) = tokio::time::timeout(DISCARD_IDLE, body.frame()).await {}
        }));
    }
    Err(Box::new(too_long()))
}

/// Puts a request's body under watch, if it is XML.
pub(super) fn watch(request: Request<Body>, domains: &[String]) -> (Request<Body>, Option<Watch>) {
    if !is_document(&request, domains) {
        return (request, None);
    }
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let len: u64 = text(CONTENT_LENGTH.as_str())
        .and_then(|len| len.parse().ok())
        .unwrap_or_default();
    let hash = text("x-amz-content-sha256").unwrap_or_default();
    if hash.starts_with("STREAMING-") {
        // What passes here is framed; the library verifies the frames.
        return (request, None);
    }
    let watch = Watch {
        seen: Seen {
            completes: parameters(&request).any(|name| name == "uploadId"),
            ..Seen::default()
        },
        len,
        sha256: (hash.len() == 64).then(|| hash.to_ascii_lowercase()),
    };
    let (mut parts, inner) = request.into_parts();
    parts.extensions.insert(watch.seen.clone());
    let body = Watched {
        inner,
        seen: watch.seen.clone(),
    };
    let request = Request::from_parts(parts, Body::http_body_unsync(body));
    (request, Some(watch))
}

fn is_document(request: &Request<Body>, domains: &[String]) -> bool {
    let names_document = || parameters(request).any(|name| DOCUMENTS.contains(&name));
    match *request.method() {
        Method::PUT if names_document() => true,
        // CreateBucket: nothing but a bucket is named.
        Method::PUT => {
            let path = request.uri().path().trim_matches('/');
            !path.contains('/') && !names_bucket(request.headers(), domains)
        }
        Method::POST => names_document() || parameters(request).any(|name| name == "uploadId"),
        _ => false,
    }
}

/// The names of the parameters in the query.
fn parameters(request: &Request<Body>) -> impl Iterator<Item = &str> {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').filter_map(|pair| pair.split('=').next())
}

/// Holds the body of a request that is about to be carried out against the digests that the request declares.
///
/// # Errors
///
/// `BadDigest` if they differ, `InvalidDigest` or `InvalidRequest` if one cannot be understood.
pub(super) fn verify(extensions: &Extensions, headers: &HeaderMap) -> S3Result<()> {
    let Some(seen) = extensions.get::<Seen>() else {
        return Ok(());
    };
    let expected = Expected::of_document(headers, seen.completes)?;
    let digests = Digests::of(seen.lock().iter(), &expected.digests(None));
    expected.verify(&digests, None, None).map(|_| ())
}

impl Watch {
    /// What to answer instead of `response`, which is the library's, if that says no more than that the body could not be
    /// read.
    pub(super) fn refusal(&self, response: &HttpResponse) -> Option<S3Error> {
        if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
            return None;
        }
        let len = self.seen.len();
        if len > XML_LEN_MAX {
            return Some(too_long());
        }
        if (len as u64) < self.len {
            return Some(refuse(
                S3ErrorCode::IncompleteBody,
                "the body broke off before its declared length",
            ));
        }
        let declared = self.sha256.as_deref()?;
        let mut sha256 = Sha256::new();
        for piece in self.seen.lock().iter() {
            sha256.update(piece);
        }
        (hex::encode(sha256.finalize()) != declared).then(crate::error::content_mismatch)
    }
}

fn too_long() -> S3Error {
    refuse(
        S3ErrorCode::MalformedXML,
        format!("a document of over {XML_LEN_MAX} bytes is none that S3 knows"),
    )
}

/// Whether a request is a form whose length is not known: the library would hold its file in memory.
pub(super) fn is_endless_form(request: &Request<Body>) -> bool {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |kind| kind.as_bytes());
    *request.method() == Method::POST
        && kind.to_ascii_lowercase().starts_with(b"multipart/form-data")
        && !request.headers().contains_key(CONTENT_LENGTH)
}
