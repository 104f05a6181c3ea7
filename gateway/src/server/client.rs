//! What is known of a request before its signature has been verified: whose it claims to be, and what it may hold.

use std::{net::IpAddr, sync::Arc};

use http::{
    HeaderMap, Method, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH, RANGE},
};
use percent_encoding::percent_decode_str;

use crate::{admission::Client, app::App, s3};

/// Bytes that any request holds: its head, records of the index, a short answer.
pub(super) const REQUEST_LEN: u64 = 64 << 10;
/// Bytes that a body holds while it streams, in either direction. A download: two chunks of 512 KiB that are read ahead,
/// and one that is being sent. An upload: two batches of 256 KiB at the hasher, one at the disk, hyper's buffer of 128
/// KiB, and the buffers that small pieces hold on to.
const STREAM_LEN: u64 = 1536 << 10;
/// An XML body is held whole, and once more as what it says.
const XML_FACTOR: u64 = 2;

/// Whose line a request stands in: that of the key it claims, if it is the root's or has been used lately, and of where it
/// comes from.
///
/// The claim is not verified yet. Who lies gets into another's line for as long as it takes to verify a signature, and
/// only from an address that is also the other's.
pub(super) fn client(app: &App, uri: &Uri, headers: &HeaderMap, address: IpAddr) -> Client {
    let claimed = claimed_key(uri, headers);
    let claimed = claimed.filter(|key| *key == app.keyring.root().access_key || app.users.knows(key));
    Client {
        address,
        access_key: claimed.map(Arc::from),
    }
}

/// The access key in `Authorization` (signature version 4 or 2), or in the query of a presigned URL.
fn claimed_key(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(value) = header {
        if let Some((_, rest)) = value.split_once("Credential=") {
            return scope_key(rest.split([',', ' ']).next()?);
        }
        let (key, _) = value.strip_prefix("AWS ")?.rsplit_once(':')?;
        return Some(key.to_owned());
    }
    uri.query()?.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value).decode_utf8().ok()?;
        match name {
            "X-Amz-Credential" => scope_key(&value),
            "AWSAccessKeyId" => Some(value.into_owned()),
            _ => None,
        }
    })
}

/// The key in `KEY/DATE/REGION/SERVICE/aws4_request`. Access keys may hold slashes.
fn scope_key(credential: &str) -> Option<String> {
    credential.rsplitn(5, '/').nth(4).map(str::to_owned)
}

/// The bytes that a request may hold in memory.
pub(super) fn cost(method: &Method, headers: &HeaderMap) -> u64 {
    let declared = header(headers, CONTENT_LENGTH.as_str()).and_then(|len| len.parse().ok());
    let body = match *method {
        Method::GET => asked_len(headers).unwrap_or(STREAM_LEN).min(STREAM_LEN),
        Method::PUT if has_signed_chunks(headers) => {
            // A chunk is held until its signature has been verified.
            STREAM_LEN + declared.unwrap_or(u64::MAX).min(s3::CHUNK_LEN_MAX as u64)
        }
        Method::PUT => declared.unwrap_or(u64::MAX).min(STREAM_LEN),
        Method::POST => declared.unwrap_or(u64::MAX).min(s3::XML_LEN_MAX as u64) * XML_FACTOR,
        _ => 0,
    };
    REQUEST_LEN + body
}

/// What a request holds from the head of its answer on: its own body has been read.
pub(super) fn cost_of_answer(len: Option<u64>) -> u64 {
    REQUEST_LEN + len.unwrap_or(STREAM_LEN).min(STREAM_LEN)
}

fn has_signed_chunks(headers: &HeaderMap) -> bool {
    header(headers, "x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-AWS4-"))
}

/// The length of a range with both ends. Of all others, the answer tells.
fn asked_len(headers: &HeaderMap) -> Option<u64> {
    let (first, last) = header(headers, RANGE.as_str())?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn the_claimed_key_is_found_wherever_clients_put_it() {
        for (uri, authorization, expected) in [
            (
                "/b/k",
                "AWS4-HMAC-SHA256 Credential=A/B/20260101/r/s3/aws4_request, SignedHeaders=host, Signature=0",
                Some("A/B"),
            ),
            ("/b/k", "AWS AKID:c2ln", Some("AKID")),
            ("/b/k", "AWS4-HMAC-SHA256 Credential=AKID", None),
            ("/b/k", "Bearer x", None),
            (
                "/b/k?a=b&X-Amz-Credential=AKID%2F20260101%2Fr%2Fs3%2Faws4_request",
                "",
                Some("AKID"),
            ),
            ("/b/k?AWSAccessKeyId=AK%2BID&Signature=x", "", Some("AK+ID")),
            ("/b/k?X-Amz-Credential=%ff", "", None),
            ("/b/k", "", None),
        ] {
            let mut all = HeaderMap::new();
            if !authorization.is_empty() {
                all.insert(AUTHORIZATION, HeaderValue::from_static(authorization));
            }
            let found = claimed_key(&uri.parse().unwrap(), &all);
            assert_eq!(found.as_deref(), expected, "{uri} {authorization}");
        }
    }

    #[test]
    fn a_request_costs_what_its_body_may_hold() {
        let cost =
            |method: Method, pairs: &[(&'static str, &'static str)]| cost(&method, &headers(pairs)) - REQUEST_LEN;
        assert_eq!(cost(Method::HEAD, &[]), 0);
        assert_eq!(cost(Method::GET, &[]), STREAM_LEN);
        assert_eq!(cost(Method::GET, &[("range", "bytes=0-65535")]), 65536);
        for whole in ["bytes=0-", "bytes=-5", "bytes=9-5", "bytes=0-18446744073709551615", "x"] {
            assert_eq!(cost(Method::GET, &[("range", whole)]), STREAM_LEN, "{whole}");
        }
        assert_eq!(cost(Method::PUT, &[("content-length", "10")]), 10);
        assert_eq!(cost(Method::PUT, &[("content-length", "99999999999")]), STREAM_LEN);
        let chunked = ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
        assert_eq!(
            cost(Method::PUT, &[chunked, ("content-length", "99999999999")]),
            STREAM_LEN + (8 << 20)
        );
        assert_eq!(cost(Method::POST, &[("content-length", "100")]), 200);
        assert_eq!(cost_of_answer(Some(1)), REQUEST_LEN + 1);
        assert_eq!(cost_of_answer(None), REQUEST_LEN + STREAM_LEN);
    }
}
