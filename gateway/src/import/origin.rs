//! A web server for tests: short enough to be believed, and rude on demand.
//!
//! It answers one request a connection with whatever bytes the test makes, on a thread that lives as long as the process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use url::Url;

use super::Fetcher;
use crate::config::ImportConfig;

/// A fetcher that does not wait.
pub(crate) fn fetcher(config: &ImportConfig) -> Fetcher {
    let mut fetcher = Fetcher::new(config).unwrap();
    fetcher.resume_wait = Duration::ZERO;
    fetcher
}

/// A server of one test.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, whose name is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn read(stream: impl Read) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                line.split_once(':')
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect();
        Some(Self { path, headers })
    }
}

/// A whole response.
pub(crate) fn reply(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    cut_reply(status, headers, body, body.len())
}

/// A response whose connection breaks after `len` bytes of the body.
pub(crate) fn cut_reply(status: &str, headers: &[(&str, &str)], body: &[u8], len: usize) -> Vec<u8> {
    let len_sent = len.min(body.len());
    let mut bytes = format!("HTTP/1.1 {status}\r\nconnection: close\r\n").into_bytes();
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        write!(bytes, "content-length: {}\r\n", body.len()).unwrap();
    }
    for (name, value) in headers {
        write!(bytes, "{name}: {value}\r\n").unwrap();
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body[..len_sent]);
    bytes
}

impl Origin {
    /// Listens on a free port of `ip`.
    pub(crate) fn start(ip: &str, answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Self {
        Self::serve(ip, "http", answer, |stream, answer| answer_one(stream, answer))
    }

    /// As [`Origin::start`], with a certificate of an authority whose own is given back in PEM.
    pub(crate) fn start_tls(ip: &str, answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> (Self, Vec<u8>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([ip.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let origin = Self::serve(ip, "https", answer, move |stream, answer| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            answer_one(&mut stream, answer);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        });
        let pem = BASE64.encode(authority.der());
        (
            origin,
            format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n").into_bytes(),
        )
    }

    fn serve<A: Fn(&Request) -> Vec<u8> + Send + 'static>(
        ip: &str,
        scheme: &'static str,
        answer: A,
        serve_one: impl Fn(TcpStream, &dyn Fn(&Request) -> Vec<u8>) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve_one(stream, &|request| {
                    seen.lock().unwrap().push(request.clone());
                    answer(request)
                });
            }
        });
        Self { addr, scheme, requests }
    }

    /// The URL of `path` here.
    pub(crate) fn url(&self, path: &str) -> Url {
        format!("{}://{}{path}", self.scheme, self.addr).parse().unwrap()
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Clients may go away at any time, so errors are no surprise.
fn answer_one(mut stream: impl Read + Write, answer: &dyn Fn(&Request) -> Vec<u8>) {
    if let Some(request) = Request::read(&mut stream) {
        let _ = stream.write_all(&answer(&request)).and_then(|()| stream.flush());
    }
}
