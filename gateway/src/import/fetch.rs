//! One request for a URL, to its end: redirects, addresses, statuses.
//!
//! Redirects are followed here and not by the client, because each URL on the way is judged: its scheme, that it does not
//! fall back from https to http, and its address. Credentials in a URL go to the origin they were given for and to no
//! other. Proxies of the environment are not used: they would connect to addresses that nobody has checked.

use std::{error::Error, io, iter, time::Duration};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Certificate, Client, ClientBuilder, Response};
use url::Url;

use super::{
    Download, check_scheme, download,
    guard::{Guard, Refused},
    parse_url,
};
use crate::{
    config::ImportConfig,
    job::{chain, redact_url},
};

/// How long a server may be silent, before the head of a response and between pieces of its body. Some take their time
/// to fetch what they serve from a slow archive.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Most redirects on the way to a body.
const REDIRECTS_MAX: usize = 10;

/// Why a URL was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// It would not be another time.
    #[error("{0}")]
    Failed(String),
    /// It may be another time; what has come so far is good.
    #[error("{0}")]
    Broken(String),
    /// It may be another time, from the beginning: what has come so far is of no use.
    #[error("{0}")]
    Stale(String),
}

/// Fetches URLs.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    client: Client,
    guard: Guard,
    /// The first wait between attempts to go on with a body.
    pub(super) resume_wait: Duration,
}

impl Fetcher {
    /// A client that fetches what `config` allows. It trusts the certificate authorities that the system has now.
    ///
    /// # Errors
    ///
    /// [`FetchError::Failed`] if the configured certificates cannot be read.
    pub(crate) fn new(config: &ImportConfig) -> Result<Self, FetchError> {
        let failed = |e: reqwest::Error| {
            FetchError::Failed(format!("the configured certificates cannot be used: {}", chain(&e)))
        };
        let extra = match &config.ca_pem {
            None => Vec::new(),
            Some(pem) => Certificate::from_pem_bundle(pem).map_err(failed)?,
        };
        if config.ca_pem.is_some() && extra.is_empty() {
            return Err(FetchError::Failed(
                "the file of --import-ca holds no certificate in PEM".to_owned(),
            ));
        }
        let guard = Guard::new(&config.allow);
        let client = if extra.is_empty() {
            // A system without any authorities can still fetch http: URLs.
            builder(&guard)
                .build()
                .or_else(|_| builder(&guard).tls_certs_only([]).build())
        } else {
            builder(&guard).tls_certs_merge(extra).build()
        };
        Ok(Self {
            client: client.map_err(failed)?,
            guard,
            resume_wait: Duration::from_secs(1),
        })
    }

    /// Asks for `url`, and gives what it answers with once there is a body to fetch.
    ///
    /// # Errors
    ///
    /// A [`FetchError`] that names the URL without its secrets.
    pub(crate) async fn open(&self, url: Url) -> Result<Download, FetchError> {
        let (at, response) = self.get(&url, &HeaderMap::new()).await?;
        match response.status() {
            StatusCode::OK => Download::new(self.clone(), url, at, response),
            status => Err(status_error(&at, status)),
        }
    }

    /// Asks for `url` with `headers` and follows redirects, to a response that is none.
    pub(super) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<(Url, Response), FetchError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(&url, headers).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                download::check_encoding(&url, response.headers())?;
                return Ok((url, response));
            }
            url = next_hop(&url, response.headers().get(header::LOCATION))?;
        }
        Err(FetchError::Failed(format!(
            "{} is the last of more than {REDIRECTS_MAX} redirects",
            redact_url(url.as_str())
        )))
    }

    async fn send(&self, url: &Url, headers: &HeaderMap) -> Result<Response, FetchError> {
        let refused = |e: Refused| FetchError::Failed(e.to_string());
        self.guard.check_url(url).map_err(refused)?;
        let request = self.client.get(url.clone()).headers(headers.clone()).send();
        let response = match tokio::time::timeout(IDLE_TIMEOUT, request).await {
            Ok(response) => response.map_err(|e| transport_error(url, e))?,
            Err(_) => return Err(idle(url)),
        };
        // The resolver and the check above leave nothing to be found here; should they ever, it goes no further.
        if let Some(addr) = response.remote_addr() {
            self.guard
                .check(url.host_str().unwrap_or_default(), addr.ip())
                .map_err(refused)?;
        }
        Ok(response)
    }
}

fn builder(guard: &Guard) -> ClientBuilder {
    // Bytes are stored as they are sent, so none may be encoded on the way.
    let identity = (header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    crate::outgoing::client()
        .user_agent(concat!("lithos/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([identity]))
        .dns_resolver(guard.clone())
}

/// Where a redirect from `from` leads.
fn next_hop(from: &Url, location: Option<&HeaderValue>) -> Result<Url, FetchError> {
    let here = redact_url(from.as_str());
    let failed = |why: String| FetchError::Failed(format!("{here} redirects to what cannot be fetched: {why}"));
    let location = location.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let location = location.ok_or_else(|| failed("it does not say where".to_owned()))?;
    let mut to = from.join(location).map_err(|e| failed(e.to_string()))?;
    check_scheme(&to).map_err(failed)?;
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(failed("it falls back from https to http".to_owned()));
    }
    let same_origin = from.origin() == to.origin();
    let (username, password) = if same_origin {
        (from.username(), from.password())
    } else {
        ("", None)
    };
    let carried = to.set_username(username).and_then(|()| to.set_password(password));
    carried.map_err(|()| failed("it has no host".to_owned()))?;
    // Its length, once more: the server chose it.
    parse_url(to.as_str()).map_err(failed)
}

/// What to make of a status that comes without the body wanted (RFC 9110, section 15).
pub(super) fn status_error(url: &Url, status: StatusCode) -> FetchError {
    let text = format!("{} answered {status}", redact_url(url.as_str()));
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => FetchError::Broken(text),
        _ => FetchError::Failed(text),
    }
}

/// What to make of a connection that could not be made, or broke.
pub(super) fn transport_error(url: &Url, error: reqwest::Error) -> FetchError {
    // The client's error would show the whole URL.
    let error = error.without_url();
    for cause in causes(&error) {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return FetchError::Failed(refused.to_string());
        }
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            let host = url.host_str().unwrap_or_default();
            return FetchError::Failed(format!(
                "the certificate of {host} is not trusted ({why}); --import-ca adds authorities"
            ));
        }
    }
    FetchError::Broken(format!("cannot fetch {}: {}", redact_url(url.as_str()), chain(&error)))
}

pub(super) fn idle(url: &Url) -> FetchError {
    let seconds = IDLE_TIMEOUT.as_secs();
    FetchError::Broken(format!("{} sent nothing for {seconds} s", redact_url(url.as_str())))
}

/// An error and all that caused it. An I/O error hides the one it was made of from [`Error::source`].
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::origin::{Origin, reply};

    /// A fetcher that may connect to `allow`.
    fn fetcher(allow: &str) -> Fetcher {
        let allow = allow.split_whitespace().map(|net| net.parse().unwrap()).collect();
        crate::import::origin::fetcher(&ImportConfig { allow, ca_pem: None })
    }

    async fn failure(fetcher: &Fetcher, url: &str) -> FetchError {
        fetcher
            .open(url.parse().unwrap())
            .await
            .map(|download| download.len())
            .expect_err(url)
    }

    fn redirect_to(location: &str) -> Vec<u8> {
        reply("302 Found", &[("location", location)], b"moved")
    }

    #[test]
    fn redirects_lead_to_http_and_do_not_fall_back() {
        let hop = |from: &str, to: &str| next_hop(&from.parse().unwrap(), Some(&HeaderValue::from_str(to).unwrap()));
        let good = [
            ("http://a/x/y", "z?q=1", "http://a/x/z?q=1"),
            ("http://a/x/y", "/z", "http://a/z"),
            ("http://a/x", "//b/z", "http://b/z"),
            ("http://a/x", "https://a/x", "https://a/x"),
            ("https://a/x", "https://b:8443/", "https://b:8443/"),
            // Credentials stay with their origin.
            ("http://u:p@a/x", "/z", "http://u:p@a/z"),
            ("http://u:p@a/x", "http://a/z", "http://u:p@a/z"),
            ("http://u:p@a/x", "http://b/z", "http://b/z"),
            ("http://u:p@a/x", "https://a/z", "https://a/z"),
            ("http://u:p@a/x", "http://a:81/z", "http://a:81/z"),
            ("http://a/x", "http://v:q@b/z", "http://b/z"),
        ];
        for (from, to, expected) in good {
            assert_eq!(
                hop(from, to).map(String::from),
                Ok(expected.to_owned()),
                "{from} to {to}"
            );
        }
        let long = "a".repeat(9000);
        let bad = [
            ("https://a/x", "http://a/x", "falls back"),
            ("http://a/x", "file:///etc/shadow", "not with file:"),
            ("http://a/x", "gopher://b/", "not with gopher:"),
            ("http://a/x", "http://", "host"),
            ("http://a/x", &long, "over 8192"),
        ];
        for (from, to, why) in bad {
            let error = hop(from, to).expect_err(to);
            assert!(
                matches!(&error, FetchError::Failed(text) if text.contains(why)),
                "{from} to {to}: {error}"
            );
        }
        assert!(next_hop(&"http://a/x".parse().unwrap(), None).is_err());
    }

    #[tokio::test]
    async fn redirects_are_followed_as_far_as_ten() {
        let origin = Origin::start("127.0.0.1", |request| {
            match request.path.trim_start_matches('/').parse::<u32>() {
                Ok(0) => reply("200 OK", &[], b"there"),
                Ok(hops) => redirect_to(&format!("/{}", hops - 1)),
                Err(_) => reply("404 Not Found", &[], b""),
            }
        });
        let fetcher = fetcher("127.0.0.1/32");
        assert_eq!(fetcher.open(origin.url("/10")).await.unwrap().len(), Some(5));
        let requests = origin.requests();
        assert_eq!(requests.len(), 11);
        assert!(
            requests
                .iter()
                .all(|request| request.header("accept-encoding") == Some("identity"))
        );
        let error = failure(&fetcher, origin.url("/11").as_str()).await;
        assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    }

    #[tokio::test]
    async fn a_redirect_to_a_refused_address_is_not_followed() {
        let inner = Origin::start("127.0.0.2", |_| reply("200 OK", &[], b"secret"));
        let targets = [
            (inner.url("/").to_string(), "127.0.0.2 is a loopback address"),
            (
                "http://169.254.169.254/latest/meta-data/".to_owned(),
                "metadata service",
            ),
            ("http://[fd00:ec2::254]/".to_owned(), "metadata service"),
            (format!("http://[::ffff:127.0.0.2]:{}/", inner.addr.port()), "loopback"),
            ("http://10.0.0.1/".to_owned(), "private network"),
        ];
        for (target, why) in targets {
            let location = target.clone();
            let outer = Origin::start("127.0.0.1", move |_| redirect_to(&location));
            let error = failure(&fetcher("127.0.0.1/32"), outer.url("/").as_str()).await;
            assert!(
                matches!(&error, FetchError::Failed(text) if text.contains(why)),
                "{target}: {error}"
            );
        }
        assert!(inner.requests().is_empty());
    }

    #[tokio::test]
    async fn a_redirect_to_a_name_of_a_refused_address_is_not_followed() {
        let outer = Origin::start("127.0.0.2", |_| redirect_to("http://localhost:9/"));
        let error = failure(&fetcher("127.0.0.2/32"), outer.url("/").as_str()).await;
        let FetchError::Failed(text) = error else {
            panic!("{error:?}")
        };
        assert!(
            text.starts_with("localhost is at") && text.contains("a loopback address"),
            "{text}"
        );
        assert!(text.contains("--import-allow"), "{text}");
    }

    #[tokio::test]
    async fn addresses_and_names_are_refused_before_anything_is_sent() {
        let origin = Origin::start("127.0.0.1", |_| reply("200 OK", &[], b""));
        for host in ["127.0.0.1", "localhost"] {
            let error = failure(&fetcher(""), &format!("http://{host}:{}/", origin.addr.port())).await;
            assert!(
                matches!(&error, FetchError::Failed(text) if text.contains("loopback")),
                "{host}: {error}"
            );
        }
        assert!(origin.requests().is_empty());
    }

    #[tokio::test]
    async fn statuses_tell_whether_to_try_again() {
        let cases = [
            ("404 Not Found", false),
            ("403 Forbidden", false),
            ("410 Gone", false),
            ("304 Not Modified", false),
            ("204 No Content", false),
            ("206 Partial Content", false),
            ("408 Request Timeout", true),
            ("429 Too Many Requests", true),
            ("500 Internal Server Error", true),
            ("503 Service Unavailable", true),
        ];
        let fetcher = fetcher("127.0.0.1/32");
        for (status, again) in cases {
            let origin = Origin::start("127.0.0.1", move |_| reply(status, &[], b""));
            let error = failure(&fetcher, origin.url("/?sig=secret").as_str()).await;
            assert_eq!(matches!(error, FetchError::Broken(_)), again, "{error:?}");
            let text = error.to_string();
            assert!(text.contains(status) && !text.contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_tried_again() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = failure(&fetcher("127.0.0.1/32"), &format!("http://{unused}/?sig=secret")).await;
        assert!(matches!(error, FetchError::Broken(_)), "{error:?}");
        assert!(
            error.to_string().contains("refused") && !error.to_string().contains("secret"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn encoded_and_endless_responses_are_refused() {
        let cases = [
            (vec![("content-encoding", "gzip")], "encoded as gzip"),
            (vec![("content-length", "5497558138881")], "over 5497558138880 bytes"),
        ];
        for (headers, why) in cases {
            let origin = Origin::start("127.0.0.1", move |_| reply("200 OK", &headers, b""));
            let error = failure(&fetcher("127.0.0.1/32"), origin.url("/").as_str()).await;
            assert!(
                matches!(&error, FetchError::Failed(text) if text.contains(why)),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn only_certificates_of_known_authorities_are_trusted() {
        let (origin, ca_pem) = Origin::start_tls("127.0.0.1", |_| reply("200 OK", &[], b"sealed"));
        let allow = vec!["127.0.0.1/32".parse().unwrap()];
        let trusting = Fetcher::new(&ImportConfig {
            allow: allow.clone(),
            ca_pem: Some(ca_pem),
        })
        .unwrap();
        assert_eq!(trusting.open(origin.url("/")).await.unwrap().len(), Some(6));

        let (_, other) = Origin::start_tls("127.0.0.1", |_| Vec::new());
        for ca_pem in [None, Some(other)] {
            let fetcher = Fetcher::new(&ImportConfig {
                allow: allow.clone(),
                ca_pem,
            })
            .unwrap();
            let error = failure(&fetcher, origin.url("/").as_str()).await;
            assert!(
                matches!(&error, FetchError::Failed(text) if text.contains("not trusted")),
                "{error:?}"
            );
        }
        for no_pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let config = ImportConfig {
                allow: allow.clone(),
                ca_pem: Some(no_pem.into()),
            };
            assert!(
                matches!(Fetcher::new(&config), Err(FetchError::Failed(_))),
                "{no_pem:?}"
            );
        }
    }
}
