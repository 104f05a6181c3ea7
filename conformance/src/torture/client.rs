//! The S3 requests of the torture, and what is known of them afterwards.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use md5::{Digest, Md5};

use super::model::{Outcome, Tags};
use crate::{
    target::Target,
    wire::{AmzTime, Payload, Request, Response, element, elements, object_path, uri_encode},
};

/// The one bucket.
pub(super) const BUCKET: &str = "torture";

/// What came back.
#[derive(Debug)]
pub(super) enum Answer {
    /// An answer that says what was done: below 500.
    Said(Response),
    /// An answer that leaves open whether it was done.
    Failed,
    /// No answer: the server is gone.
    Gone,
}

impl Answer {
    /// What it says of a write. 404 and 412 refuse; any other error to a sound request is a bug.
    pub(super) fn outcome(&self) -> Result<Outcome> {
        match self {
            Self::Said(answer) if answer.status < 300 => Ok(Outcome::Done),
            Self::Said(answer) if matches!(answer.status, 404 | 412) => Ok(Outcome::Refused),
            Self::Said(answer) => bail!("a sound request is answered with {}: {}", answer.status, answer.text()),
            Self::Failed | Self::Gone => Ok(Outcome::Unknown),
        }
    }

    /// The answer of a request that succeeded.
    pub(super) fn done(&self) -> Option<&Response> {
        match self {
            Self::Said(answer) if answer.status < 300 => Some(answer),
            _ => None,
        }
    }
}

/// A connection's worth of requests to one server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) target: Target,
}

impl Client {
    pub(super) async fn send(&self, request: Request) -> Answer {
        let signed = request.signed_as(&self.target, &Payload::Unsigned, &AmzTime::now());
        let Ok(signed) = signed else { return Answer::Gone };
        match signed.send(&self.target).await {
            Ok(answer) if answer.status < 500 => Answer::Said(answer),
            Ok(_) => Answer::Failed,
            Err(_) => Answer::Gone,
        }
    }

    /// Sends a request that must be answered: the server is up and its disk is sound.
    pub(super) async fn ask(&self, request: Request) -> Result<Response> {
        let what = format!("{} {}", request.method, request.uri());
        let signed = request.signed_as(&self.target, &Payload::Unsigned, &AmzTime::now())?;
        let answer = signed.send(&self.target).await.with_context(|| what.clone())?;
        if answer.status >= 500 {
            bail!("{what} is answered with {}: {}", answer.status, answer.text());
        }
        Ok(answer)
    }
}

pub(super) fn object(method: &'static str, key: &str) -> Request {
    Request::new(method, object_path(BUCKET, key))
}

pub(super) fn put(key: &str, bytes: &Bytes, tags: &Tags) -> Request {
    let request = object("PUT", key).body(bytes.to_vec());
    with_tags(request, tags)
}

pub(super) fn with_tags(request: Request, tags: &Tags) -> Request {
    if tags.is_empty() {
        return request;
    }
    let pairs: Vec<String> = tags
        .iter()
        .map(|(name, value)| format!("{}={}", uri_encode(name), uri_encode(value)))
        .collect();
    request.header("x-amz-tagging", pairs.join("&"))
}

pub(super) fn copy(from: &str, to: &str) -> Request {
    object("PUT", to).header("x-amz-copy-source", object_path(BUCKET, from))
}

pub(super) fn put_tags(key: &str, tags: &Tags) -> Request {
    let mut xml = "<Tagging><TagSet>".to_owned();
    for (name, value) in tags {
        let _ = write!(xml, "<Tag><Key>{name}</Key><Value>{value}</Value></Tag>");
    }
    xml.push_str("</TagSet></Tagging>");
    with_md5(object("PUT", key).query("tagging", "").body(xml))
}

pub(super) fn delete_many(keys: &[String]) -> Request {
    let mut body = "<Delete>".to_owned();
    for key in keys {
        let _ = write!(body, "<Object><Key>{key}</Key></Object>");
    }
    body.push_str("</Delete>");
    with_md5(
        Request::new("POST", format!("/{BUCKET}"))
            .query("delete", "")
            .body(body),
    )
}

fn with_md5(request: Request) -> Request {
    let digest = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&request.body));
    request.header("content-md5", digest)
}

pub(super) fn create_upload(key: &str, tags: &Tags) -> Request {
    with_tags(object("POST", key).query("uploads", ""), tags)
}

pub(super) fn part(key: &str, id: &str, number: u16) -> Request {
    object("PUT", key)
        .query("partNumber", &number.to_string())
        .query("uploadId", id)
}

pub(super) fn complete(key: &str, id: &str, body: &str) -> Request {
    object("POST", key).query("uploadId", id).body(body)
}

/// The body of a completion, of part numbers and ETags.
pub(super) fn completion<'p>(parts: impl Iterator<Item = (u16, &'p str)>) -> String {
    let parts = parts
        .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"));
    format!(
        "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
        parts.collect::<String>()
    )
}

pub(super) fn abort(key: &str, id: &str) -> Request {
    object("DELETE", key).query("uploadId", id)
}

/// An ETag without its quotes, however they are written.
pub(super) fn unquoted(etag: &str) -> String {
    etag.replace("&quot;", "").replace("&#34;", "").replace('"', "")
}

/// The tags of a GetObjectTagging.
pub(super) fn tags_of(answer: &Response) -> Tags {
    let text = answer.text();
    let tags = elements(&text, "Tag").filter_map(|tag| Some((element(tag, "Key")?, element(tag, "Value")?)));
    tags.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
