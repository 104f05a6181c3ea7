//! What is done to answers when the library has made them.
//!
//! Errors are completed with what S3 puts into each (S3 API Reference, "REST Error Responses"). Names that XML 1.0 cannot
//! hold are written as S3 writes them, as character references; the library would rather answer 500.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::server::HttpResponse;

/// Stands in front of a character that XML cannot hold, and never in XML that leaves the server: Unicode keeps it for
/// such purposes ("Noncharacters").
const MARK: char = '\u{fdd0}';

/// A name as it is put into an answer of XML: characters that XML 1.0 cannot hold, or does not give back, are marked. When
/// the answer is finished they become character references.
pub(super) fn xml_text(name: &str) -> String {
    let plain =
        |c: char| matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..) && c != MARK;
    if name.chars().all(plain) {
        return name.to_owned();
    }
    let mut text = String::with_capacity(name.len() + 16);
    for c in name.chars() {
        if plain(c) {
            text.push(c);
        } else {
            let _ = write!(text, "{MARK}{:x};", u32::from(c));
        }
    }
    text
}

/// An answer whose `ETag` elements have no quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unquoted;

/// Completes an answer to a request for `path`, which is as it was sent: percent-encoded.
pub(super) async fn finish(response: HttpResponse, path: &str, id: &str) -> HttpResponse {
    let is_xml = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/xml"));
    // An answer that streams is none of those.
    if !is_xml || response.body().size_hint().exact().is_none_or(|len| len == 0) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(body) = body.collect().await else {
        return HttpResponse::from_parts(parts, s3s::Body::empty());
    };
    let body = body.to_bytes();
    let body = if parts.status.is_client_error() || parts.status.is_server_error() {
        let body = completed_error(&body, path, id);
        match against_policy(&body) {
            Some(body) => {
                parts.status = StatusCode::FORBIDDEN;
                body
            }
            None => body,
        }
    } else {
        let body = restored(body);
        if parts.extensions.get::<Unquoted>().is_some() {
            unquoted(&body)
        } else {
            body
        }
    };
    if parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    HttpResponse::from_parts(parts, s3s::Body::from(body))
}

fn completed_error(body: &[u8], path: &str, id: &str) -> Bytes {
    let text = String::from_utf8_lossy(body);
    let Some(start) = text.strip_suffix("</Error>") else {
        return Bytes::copy_from_slice(body);
    };
    let resource: String = path.chars().flat_map(escaped).collect();
    let mut error = start.to_owned();
    let _ = write!(error, "<Resource>{resource}</Resource>");
    if !start.contains("<RequestId>") {
        let _ = write!(error, "<RequestId>{id}</RequestId>");
    }
    let _ = write!(error, "<HostId>{id}</HostId></Error>");
    error.into()
}

/// The refusal of a form that is not as its policy wants it. The library says that the policy is invalid, S3 that access
/// is denied.
fn against_policy(error: &Bytes) -> Option<Bytes> {
    const INVALID: &str = "<Code>InvalidPolicyDocument</Code><Message>";
    const DENIED: &str = "<Code>AccessDenied</Code><Message>";
    /// What the library begins its refusals with where the policy can be read.
    const REFUSALS: [&str; 5] = [
        "Policy condition",
        "Bucket in form field",
        "x-amz-date does not match policy",
        "x-amz-credential does not match policy",
        "x-amz-algorithm does not match policy",
    ];
    let text = std::str::from_utf8(error).ok()?;
    let (_, message) = text.split_once(INVALID)?;
    let refused = REFUSALS.iter().any(|refusal| message.starts_with(refusal));
    refused.then(|| text.replacen(INVALID, DENIED, 1).into())
}

/// A path is ASCII without control characters, so only markup matters.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let entity = match c {
        '&' => "&amp;",
        '<' => "&lt;",
        '>' => "&gt;",
        _ => "",
    };
    entity.chars().chain(entity.is_empty().then_some(c))
}

/// Takes the quotes off `ETag` elements.
fn unquoted(body: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(body);
    text.replace("<ETag>\"", "<ETag>")
        .replace("\"</ETag>", "</ETag>")
        .into()
}

/// Turns marks into character references.
fn restored(body: Bytes) -> Bytes {
    let mut mark = [0; MARK.len_utf8()];
    MARK.encode_utf8(&mut mark);
    if !body.windows(mark.len()).any(|window| window == mark) {
        return body;
    }
    String::from_utf8_lossy(&body).replace(MARK, "&#x").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_xml_cannot_hold_become_references() {
        for (name, shown) in [
            ("plain/ümläut 日本\t\n", "plain/ümläut 日本\t\n"),
            ("\u{1}a\u{0}", "&#x1;a&#x0;"),
            ("line\r", "line&#xd;"),
            ("\u{fffe}\u{ffff}", "&#xfffe;&#xffff;"),
            // The mark itself is no way to write markup.
            ("\u{fdd0}1;", "&#xfdd0;1;"),
        ] {
            assert_eq!(restored(xml_text(name).into()), shown.as_bytes(), "{name:?}");
        }
    }

    #[test]
    fn errors_say_what_they_are_about() {
        let error = b"<Error><Code>NoSuchKey</Code><RequestId>7</RequestId></Error>";
        assert_eq!(
            completed_error(error, "/b/a&b", "7"),
            "<Error><Code>NoSuchKey</Code><RequestId>7</RequestId><Resource>/b/a&amp;b</Resource><HostId>7</HostId></Error>"
        );
        assert!(
            completed_error(b"<Error></Error>", "/", "8")
                .ends_with(b"<RequestId>8</RequestId><HostId>8</HostId></Error>")
        );
        assert_eq!(completed_error(b"nonsense", "/", "8"), "nonsense");
    }
}
