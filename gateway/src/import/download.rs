//! A body that survives broken connections.
//!
//! When the connection breaks, or the body ends before its length, the rest is asked for with `Range` and `If-Range`
//! (RFC 9110, sections 13.1.5 and 14), so that pieces of two versions are never joined. That takes a strong validator:
//! a strong `ETag`, or a `Last-Modified` that is older than the response. Without one, and if the other side has a new
//! version or no ranges, the whole has to be fetched again ([`FetchError::Stale`]).

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use reqwest::Response;
use url::Url;

use super::{
    FetchError, Fetcher, OBJECT_LEN_MAX,
    fetch::{IDLE_TIMEOUT, idle, status_error, transport_error},
};
use crate::job::redact_url;

/// How often a body is gone on with while there is no progress. With doubling waits, the last comes after 15 s.
const RESUMES_MAX: u32 = 5;
/// How many bytes are progress: a server that breaks off after less each time would keep us for years.
const PROGRESS_LEN_MIN: u64 = 1 << 20;
/// Longest `Content-Type` that is taken over, in bytes.
const CONTENT_TYPE_LEN_MAX: usize = 256;

/// The body of a URL, on its way.
#[derive(Debug)]
pub(crate) struct Download {
    fetcher: Fetcher,
    /// What was asked for.
    url: Url,
    /// Where its redirects ended.
    at: Url,
    response: Response,
    len: Option<u64>,
    validator: Option<Validator>,
    /// How much has come.
    offset: u64,
    /// Attempts to go on since there was progress.
    resumes: u32,
    /// What `offset` was when there was progress.
    progress: u64,
}

/// A header whose value changes whenever the body does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Validator {
    name: HeaderName,
    value: HeaderValue,
}

impl Download {
    /// The body of a response that was found `at`, when `url` was asked for.
    pub(super) fn new(fetcher: Fetcher, url: Url, at: Url, response: Response) -> Result<Self, FetchError> {
        let len = response.content_length();
        if let Some(len) = len
            && len > OBJECT_LEN_MAX
        {
            let here = redact_url(at.as_str());
            return Err(FetchError::Failed(format!(
                "{here} has {len} bytes, which is over {OBJECT_LEN_MAX} bytes"
            )));
        }
        let validator = Validator::of(response.headers());
        Ok(Self {
            fetcher,
            url,
            at,
            response,
            len,
            validator,
            offset: 0,
            resumes: 0,
            progress: 0,
        })
    }

    /// Its length in bytes, if the server says so.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether a body that was cut off can be told from a whole one. It cannot where only the end of the connection ends
    /// the body (RFC 9112, section 6.3).
    pub(crate) fn shows_its_end(&self) -> bool {
        self.len.is_some() || self.response.headers().contains_key(header::TRANSFER_ENCODING)
    }

    /// What the server says the body is.
    pub(crate) fn content_type(&self) -> Option<String> {
        let value = self.response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
        (!value.is_empty() && value.len() <= CONTENT_TYPE_LEN_MAX).then(|| value.to_owned())
    }

    /// The bytes.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, FetchError>> + Send {
        futures::stream::try_unfold(self, async |mut download| {
            Ok(download.next().await?.map(|chunk| (chunk, download)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let broken = match self.chunk().await {
                Ok(Some(chunk)) => {
                    self.offset = self.offset.saturating_add(chunk.len() as u64);
                    if self.offset.saturating_sub(self.progress) >= PROGRESS_LEN_MIN {
                        self.progress = self.offset;
                        self.resumes = 0;
                    }
                    return Ok(Some(chunk));
                }
                // A body that is too long is for the reader to refuse.
                Ok(None) if self.len.is_none_or(|len| self.offset >= len) => return Ok(None),
                Ok(None) => FetchError::Broken(format!("{} ended early", redact_url(self.at.as_str()))),
                Err(error) => error,
            };
            self.resume(broken).await?;
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        match tokio::time::timeout(IDLE_TIMEOUT, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|e| transport_error(&self.at, e)),
            Err(_) => Err(idle(&self.at)),
        }
    }

    /// Connects again and goes on where the body broke off because of `cause`.
    async fn resume(&mut self, mut cause: FetchError) -> Result<(), FetchError> {
        let offset = self.offset;
        let Some(validator) = self.validator.clone() else {
            return Err(FetchError::Stale(format!(
                "{cause}, after {offset} bytes; the server offers no way to go on from there"
            )));
        };
        while self.resumes < RESUMES_MAX {
            tokio::time::sleep(self.wait()).await;
            self.resumes = self.resumes.saturating_add(1);
            match self.reconnect(&validator).await {
                Err(FetchError::Broken(why)) => cause = FetchError::Broken(why),
                result => return result,
            }
        }
        Err(FetchError::Broken(format!(
            "{cause}, after {offset} bytes and {RESUMES_MAX} attempts to go on"
        )))
    }

    /// None before the first attempt, then one that doubles.
    fn wait(&self) -> Duration {
        match self.resumes.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self.fetcher.resume_wait.saturating_mul(1 << doublings.min(16)),
        }
    }

    async fn reconnect(&mut self, validator: &Validator) -> Result<(), FetchError> {
        let range = HeaderValue::from_str(&format!("bytes={}-", self.offset)).expect("digits can stand in a header");
        let headers = HeaderMap::from_iter([(header::RANGE, range), (header::IF_RANGE, validator.value.clone())]);
        let (mut at, mut response) = self.fetcher.get(&self.at, &headers).await?;
        if response.status().is_client_error() && self.at != self.url {
            // What a redirect leads to may be good for a short while only.
            (at, response) = self.fetcher.get(&self.url, &headers).await?;
        }
        let here = redact_url(at.as_str());
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if validator.matches(response.headers()) => {
                return Err(FetchError::Stale(format!(
                    "{here} broke off, and its server does not send parts of it"
                )));
            }
            StatusCode::OK | StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(changed(&here));
            }
            status => return Err(status_error(&at, status)),
        }
        let content_range = response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        let Some(content_range) = content_range.and_then(ContentRange::parse) else {
            return Err(FetchError::Stale(format!("{here} sent a part without saying which")));
        };
        let expected_total = self.len.unwrap_or(content_range.total);
        if content_range.first != self.offset
            || content_range.total != expected_total
            || !validator.matches(response.headers())
        {
            return Err(changed(&here));
        }
        self.len = Some(content_range.total);
        (self.at, self.response) = (at, response);
        Ok(())
    }
}

fn changed(url: &str) -> FetchError {
    FetchError::Stale(format!("{url} was changed while it was being fetched"))
}

/// Refuses a body that is not sent as it is.
pub(super) fn check_encoding(url: &Url, headers: &HeaderMap) -> Result<(), FetchError> {
    for encoding in headers.get_all(header::CONTENT_ENCODING) {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
            let (here, encoding) = (redact_url(url.as_str()), String::from_utf8_lossy(encoding.as_bytes()));
            return Err(FetchError::Failed(format!(
                "{here} comes encoded as {encoding}, although it was asked for as it is"
            )));
        }
    }
    Ok(())
}

impl Validator {
    /// The strong validator of a response, if it has one and can be gone on with.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if headers
            .get(header::ACCEPT_RANGES)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"none"))
        {
            return None;
        }
        if let Some(etag) = headers.get(header::ETAG) {
            // A weak one must not be used, nor anything else in its place.
            return (!etag.as_bytes().starts_with(b"W/")).then(|| Self {
                name: header::ETAG,
                value: etag.clone(),
            });
        }
        let time = |name| parse_time(headers.get(name)?.to_str().ok()?);
        let modified = time(header::LAST_MODIFIED)?;
        // Within the same second it might change again and keep its time (RFC 9110, section 8.8.2.2).
        (modified.as_second() < time(header::DATE)?.as_second())
            .then(|| headers.get(header::LAST_MODIFIED).cloned())
            .flatten()
            .map(|value| Self {
                name: header::LAST_MODIFIED,
                value,
            })
    }

    /// Whether a response is of the same version. One of a part may leave it out.
    fn matches(&self, headers: &HeaderMap) -> bool {
        headers.get(&self.name).is_none_or(|value| *value == self.value)
    }
}

/// Parses an HTTP-date (RFC 9110, section 5.6.7), in the one form that may still be sent.
fn parse_time(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// `Content-Range` of a part: `bytes FIRST-LAST/TOTAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    total: u64,
}

impl ContentRange {
    /// Parses one that makes sense and names the total.
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last, total): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
        (first <= last && last < total).then_some(Self { first, total })
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::{
        config::ImportConfig,
        import::origin::{self, Origin, Request, cut_reply, reply},
    };

    const BODY: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    async fn download(origin: &Origin) -> Result<Vec<u8>, FetchError> {
        let config = ImportConfig {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            ca_pem: None,
        };
        let chunks: Vec<Bytes> = origin::fetcher(&config)
            .open(origin.url("/image"))
            .await?
            .into_stream()
            .try_collect()
            .await?;
        Ok(chunks.concat())
    }

    /// Where a request wants to go on.
    fn first(request: &Request) -> Option<usize> {
        request
            .header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }

    /// Answers with `BODY`, or the rest of it, and breaks off after `len` bytes.
    fn piece(request: &Request, headers: &[(&str, &str)], len: usize) -> Vec<u8> {
        match first(request) {
            None => cut_reply("200 OK", headers, BODY, len),
            Some(first) => {
                let range = format!("bytes {first}-{}/{}", BODY.len() - 1, BODY.len());
                let headers = [headers, &[("content-range", &range)]].concat();
                cut_reply("206 Partial Content", &headers, &BODY[first..], len)
            }
        }
    }

    #[tokio::test]
    async fn a_whole_body_takes_one_request() {
        let origin = Origin::start("127.0.0.1", |request| piece(request, &[("etag", "\"v1\"")], usize::MAX));
        assert_eq!(download(&origin).await.unwrap(), BODY);
        assert_eq!(origin.requests().len(), 1);
    }

    #[tokio::test]
    async fn a_broken_body_is_gone_on_with() {
        let old = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let now = ("date", "Sun, 06 Nov 1994 08:49:38 GMT");
        for headers in [vec![("etag", "\"v1\"")], vec![old, now]] {
            let validator = headers[0].1;
            let origin = Origin::start("127.0.0.1", move |request| piece(request, &headers, 13));
            assert_eq!(download(&origin).await.unwrap(), BODY);
            let requests = origin.requests();
            assert_eq!(
                requests.iter().map(first).collect::<Vec<_>>(),
                [None, Some(13), Some(26)]
            );
            assert!(
                requests[1..]
                    .iter()
                    .all(|request| request.header("if-range") == Some(validator))
            );
        }
    }

    #[tokio::test]
    async fn a_broken_chunked_body_is_gone_on_with() {
        let origin = Origin::start("127.0.0.1", |request| match first(request) {
            None => {
                b"HTTP/1.1 200 OK\r\netag: \"v1\"\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n".to_vec()
            }
            Some(_) => piece(request, &[("etag", "\"v1\"")], usize::MAX),
        });
        assert_eq!(download(&origin).await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn a_server_may_send_less_than_was_asked_for() {
        let origin = Origin::start("127.0.0.1", |request| match first(request) {
            None => cut_reply("200 OK", &[("etag", "\"v1\"")], BODY, 10),
            Some(first) => {
                let last = (first + 9).min(BODY.len() - 1);
                let range = format!("bytes {first}-{last}/{}", BODY.len());
                reply("206 Partial Content", &[("content-range", &range)], &BODY[first..=last])
            }
        });
        assert_eq!(download(&origin).await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn where_a_redirect_led_to_is_gone_on_with_until_it_expires() {
        let origin = Origin::start("127.0.0.1", |request| match (request.path.as_str(), first(request)) {
            ("/image", None) => reply("302 Found", &[("location", "/mirror-1")], b""),
            ("/image", Some(_)) => reply("302 Found", &[("location", "/mirror-2")], b""),
            ("/mirror-1", Some(20..)) => reply("403 Forbidden", &[], b"expired"),
            _ => piece(request, &[("etag", "\"v1\"")], 10),
        });
        assert_eq!(download(&origin).await.unwrap(), BODY);
        let paths: Vec<String> = origin.requests().into_iter().map(|request| request.path).collect();
        assert_eq!(
            paths,
            [
                "/image",
                "/mirror-1",
                "/mirror-1",
                "/mirror-1",
                "/image",
                "/mirror-2",
                "/mirror-2"
            ]
        );
    }

    #[tokio::test]
    async fn pieces_of_two_versions_are_never_joined() {
        type Answer = fn(&Request) -> Vec<u8>;
        let second: [(Answer, &str); 7] = [
            (|_| reply("200 OK", &[("etag", "\"v2\"")], BODY), "was changed"),
            (|_| reply("200 OK", &[("etag", "\"v1\"")], BODY), "does not send parts"),
            (
                |request| piece(request, &[("etag", "\"v2\"")], usize::MAX),
                "was changed",
            ),
            (
                |_| reply("416 Range Not Satisfiable", &[("content-range", "bytes */3")], b""),
                "was changed",
            ),
            (
                |_| {
                    reply(
                        "206 Partial Content",
                        &[("content-range", "bytes 13-35/37")],
                        &BODY[13..],
                    )
                },
                "was changed",
            ),
            (
                |_| {
                    reply(
                        "206 Partial Content",
                        &[("content-range", "bytes 12-35/36")],
                        &BODY[12..],
                    )
                },
                "was changed",
            ),
            (
                |_| reply("206 Partial Content", &[], &BODY[13..]),
                "without saying which",
            ),
        ];
        for (answer, why) in second {
            let origin = Origin::start("127.0.0.1", move |request| match first(request) {
                None => piece(request, &[("etag", "\"v1\"")], 13),
                Some(_) => answer(request),
            });
            let error = download(&origin).await.expect_err(why);
            assert!(
                matches!(&error, FetchError::Stale(text) if text.contains(why)),
                "{why}: {error:?}"
            );
        }
    }

    #[tokio::test]
    async fn without_a_strong_validator_a_broken_body_is_fetched_anew() {
        let cases: [&[(&str, &str)]; 5] = [
            &[],
            &[("etag", "W/\"v1\"")],
            &[("etag", "\"v1\""), ("accept-ranges", "none")],
            &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")],
            &[
                ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
        ];
        for headers in cases {
            let origin = Origin::start("127.0.0.1", move |request| piece(request, headers, 13));
            let error = download(&origin).await.unwrap_err();
            assert!(
                matches!(&error, FetchError::Stale(text) if text.contains("after 13 bytes")),
                "{error:?}"
            );
            assert_eq!(origin.requests().len(), 1);
        }
    }

    #[tokio::test]
    async fn attempts_without_progress_come_to_an_end() {
        let origin = Origin::start("127.0.0.1", |request| match first(request) {
            None => piece(request, &[("etag", "\"v1\"")], 13),
            Some(_) => reply("503 Service Unavailable", &[], b""),
        });
        let error = download(&origin).await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Broken(text) if text.contains("503") && text.contains("after 13 bytes")),
            "{error:?}"
        );
        assert_eq!(origin.requests().len(), 6);

        let gone = Origin::start("127.0.0.1", |request| match first(request) {
            None => piece(request, &[("etag", "\"v1\"")], 13),
            Some(_) => reply("404 Not Found", &[], b""),
        });
        assert!(matches!(download(&gone).await, Err(FetchError::Failed(text)) if text.contains("404")));
    }

    #[test]
    fn content_ranges_make_sense_or_are_none() {
        let parse = |text| ContentRange::parse(text).map(|range| (range.first, range.total));
        assert_eq!(parse("bytes 0-0/1"), Some((0, 1)));
        assert_eq!(parse("bytes 42-1233/1234"), Some((42, 1234)));
        for bad in [
            "",
            "bytes",
            "bytes */47022",
            "bytes 42-1233/*",
            "bytes 2-1/9",
            "bytes 0-9/9",
            "items 0-0/1",
            "bytes 0-0/99999999999999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
