//! Reads that S3 takes and the library refuses: ranges and dates that it cannot parse.
//!
//! A range that is malformed, of another unit or one of several is as good as none, and the whole object is the answer (S3
//! API Reference, "GetObject"; RFC 9110, "Range"); so is a date that is none (RFC 9110, "If-Modified-Since"). The library
//! answers 400 to both. The header cannot simply be taken out before the library sees the request, because it is most
//! often signed. So such a request goes through the library twice: the first time it only verifies the signature, as for
//! our own routes, then the headers are mended, the request is signed again with the keys that were proven, and goes in
//! like any other. Requests that need no mending never come here.

use std::sync::{Arc, Mutex, PoisonError};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{AUTHORIZATION, DATE, HOST, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, RANGE},
    uri::PathAndQuery,
};
use lithos_storage::clock::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::{Body, S3Request, S3Result, dto, s3_error};
use s3s_sigv4::{AmzDate, Payload};

use super::bucket::DEFAULT_REGION;

/// What a presigned URL adds to the query, in either version of the signature.
const SIGNING_PARAMETERS: [&str; 11] = [
    "X-Amz-Algorithm",
    "X-Amz-Content-Sha256",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
    "AWSAccessKeyId",
    "Expires",
    "Signature",
];
/// Headers of a date that may be written in several ways.
const DATES: [HeaderName; 2] = [IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

/// Where a request waits, mended and signed again, for its second turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Mended(Arc<Mutex<Option<Request<Body>>>>);

impl Mended {
    /// The request, if its signature was good.
    pub(super) fn take(&self) -> Option<Request<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Mends a request whose signature has been verified, and keeps it.
    pub(super) fn put(&self, now: Timestamp, request: S3Request<Body>) -> S3Result<()> {
        let mended = signed_again(now, request)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(mended);
        Ok(())
    }
}

/// Looks whether a request needs mending. An unsigned one is mended here and now; a signed one gets a place among its
/// extensions, to be found there when its signature has been verified.
pub(super) fn prepare(request: &mut Request<Body>) -> Option<Mended> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads || mended(request.headers()).is_empty() {
        return None;
    }
    if is_signed(request) {
        let place = Mended::default();
        request.extensions_mut().insert(place.clone());
        Some(place)
    } else {
        mend(request.headers_mut());
        None
    }
}

fn is_signed(request: &Request<Body>) -> bool {
    request.headers().contains_key(AUTHORIZATION)
        || parameters(request.uri()).any(|(name, _)| name == "X-Amz-Signature" || name == "Signature")
}

/// The headers that need mending, and what to make of them; `None` to leave one out.
fn mended(headers: &HeaderMap) -> Vec<(HeaderName, Option<HeaderValue>)> {
    let mut changes = Vec::new();
    if let Some(value) = headers.get(RANGE) {
        let normal = value.to_str().ok().and_then(normal_range);
        if normal.as_deref().map(str::as_bytes) != Some(value.as_bytes()) {
            changes.push((RANGE, normal.and_then(|normal| normal.parse().ok())));
        }
    }
    for name in DATES {
        let Some(value) = headers.get(&name) else { continue };
        let text = value.to_str().unwrap_or_default();
        if dto::Timestamp::parse(dto::TimestampFormat::HttpDate, text).is_err() {
            let time = httpdate::parse_http_date(text).ok();
            let normal = time.and_then(|time| httpdate::fmt_http_date(time).parse().ok());
            changes.push((name, normal));
        }
    }
    changes
}

fn mend(headers: &mut HeaderMap) {
    for (name, value) in mended(headers) {
        match value {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
}

/// One range of bytes as the library writes it; `None` for what counts as no range.
fn normal_range(text: &str) -> Option<String> {
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", "") => None,
        ("", suffix) => Some(format!("bytes=-{}", position(suffix)?)),
        (first, "") => Some(format!("bytes={}-", position(first)?)),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then(|| format!("bytes={first}-{last}"))
        }
    }
}

/// A number of a range; the largest that there is for any that is larger.
fn position(text: &str) -> Option<u64> {
    const LARGEST: u64 = i64::MAX.cast_unsigned();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(LARGEST).min(LARGEST))
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (String, String)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
}

/// The request with its headers mended, signed with the keys of the credentials that came with it.
fn signed_again(now: Timestamp, request: S3Request<Body>) -> S3Result<Request<Body>> {
    let credentials = request
        .credentials
        .ok_or_else(|| s3_error!(AccessDenied, "the request is not signed"))?;
    let invalid = || s3_error!(InvalidURI, "the request cannot be understood");
    let mut headers = request.headers;
    mend(&mut headers);
    headers.remove(AUTHORIZATION);
    headers.remove(DATE);
    let date = jiff::Timestamp::from_millisecond(i64::try_from(now.0).unwrap_or(i64::MAX))
        .map(|now| now.strftime("%Y%m%dT%H%M%SZ").to_string())
        .map_err(|_| invalid())?;
    let amz_date = AmzDate::parse(&date).map_err(|_| invalid())?;
    headers.insert("x-amz-date", HeaderValue::try_from(&date).map_err(|_| invalid())?);
    headers.insert("x-amz-content-sha256", HeaderValue::from_static("UNSIGNED-PAYLOAD"));

    let mut query: Vec<(String, String)> = parameters(&request.uri)
        .filter(|(name, _)| !SIGNING_PARAMETERS.iter().any(|known| known == name))
        .collect();
    query.sort_by(|a, b| a.0.cmp(&b.0));
    let path = percent_decode_str(request.uri.path())
        .decode_utf8()
        .map_err(|_| invalid())?;
    let mut signed: Vec<(&str, &str)> = headers
        .iter()
        .filter(|(name, _)| *name == HOST || name.as_str().starts_with("x-amz-"))
        .filter_map(|(name, value)| Some((name.as_str(), std::str::from_utf8(value.as_bytes()).ok()?)))
        .collect();
    signed.sort_unstable();
    let method = request.method.as_str();
    let canonical = s3s_sigv4::create_canonical_request(method, &path, &query, signed.as_slice(), Payload::Unsigned);
    let text = s3s_sigv4::create_string_to_sign(&canonical, &amz_date, DEFAULT_REGION, "s3");
    let secret = credentials.secret_key.expose();
    let signature = s3s_sigv4::calculate_signature(&text, secret, &amz_date, DEFAULT_REGION, "s3");
    let mut names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    names.dedup();
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{}/{DEFAULT_REGION}/s3/aws4_request, SignedHeaders={}, Signature={}",
        credentials.access_key,
        amz_date.fmt_date(),
        names.join(";"),
        signature,
    );
    let uri = with_query(&request.uri, &query).ok_or_else(invalid)?;

    let mut again = Request::new(Body::empty());
    *again.method_mut() = request.method;
    *again.uri_mut() = uri;
    *again.headers_mut() = headers;
    let authorization = HeaderValue::try_from(authorization).map_err(|_| invalid())?;
    again.headers_mut().insert(AUTHORIZATION, authorization);
    *again.extensions_mut() = request.extensions;
    again.extensions_mut().remove::<Mended>();
    Ok(again)
}

fn with_query(uri: &Uri, query: &[(String, String)]) -> Option<Uri> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    let mut parts = uri.clone().into_parts();
    let text = if pairs.is_empty() {
        uri.path().to_owned()
    } else {
        format!("{}?{}", uri.path(), pairs.join("&"))
    };
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_one_of_bytes_or_none() {
        for (text, normal) in [
            ("bytes=0-1", Some("bytes=0-1")),
            ("Bytes=0-1", Some("bytes=0-1")),
            ("bytes= 0 - 1 ", Some("bytes=0-1")),
            ("bytes=007-", Some("bytes=7-")),
            ("bytes=-5", Some("bytes=-5")),
            ("bytes=-0", Some("bytes=-0")),
            ("bytes=99999999999999999999-", Some("bytes=9223372036854775807-")),
            ("bytes=0-99999999999999999999", Some("bytes=0-9223372036854775807")),
            ("bytes=5-2", None),
            ("bytes=0-1,3-4", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=--1", None),
            ("bytes=a-b", None),
            ("bytes=1", None),
            ("octets=0-1", None),
            ("0-1", None),
            ("", None),
        ] {
            assert_eq!(normal_range(text).as_deref(), normal, "{text:?}");
        }
    }

    #[test]
    fn dates_are_written_in_one_way_or_left_out() {
        let mend_one = |text: &'static str| {
            let mut headers = HeaderMap::from_iter([(IF_MODIFIED_SINCE, HeaderValue::from_static(text))]);
            mend(&mut headers);
            headers.remove(IF_MODIFIED_SINCE)
        };
        let normal = "Sun, 06 Nov 1994 08:49:37 GMT";
        // The three forms of RFC 9110, "Date/Time Formats".
        for good in [normal, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(mend_one(good).unwrap(), normal, "{good}");
        }
        for bad in ["yesterday", "1994-11-06", "784111777"] {
            assert!(mend_one(bad).is_none(), "{bad}");
        }
        assert!(mended(&HeaderMap::new()).is_empty());
    }
}
