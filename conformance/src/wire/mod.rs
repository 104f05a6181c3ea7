//! HTTP/1.1 by hand, for what an SDK would never send: bad signatures, cut bodies, absurd numbers.
//!
//! One connection a request, but for [`Connection`]. `sign` makes and spoils signatures, `chunked` the aws-chunked encoding.

pub mod chunked;
mod connection;
mod sign;

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

pub use self::{
    connection::Connection,
    sign::{AmzTime, Payload, PolicyScope, Presign, sha256_hex},
};
use crate::target::Target;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest answer that is kept in memory.
const ANSWER_LEN_MAX: usize = 64 << 20;
/// What is not encoded in a path and in a query (S3 API Reference, `UriEncode`).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// Encodes a value of a query.
pub fn uri_encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// The path of an object, path style.
pub fn object_path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(key, UNRESERVED_PATH))
}

/// A request as it goes out.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: &'static str,
    /// The path, encoded.
    pub path: String,
    /// The query, not encoded; a parameter without a value has an empty one.
    pub query: Vec<(String, String)>,
    /// Headers beside `Host`, `Connection` and `Content-Length`, which are made.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// `Host`, if it is not the target's authority.
    pub host: Option<String>,
    /// `Content-Length`, if it is not the body's.
    pub content_length: Option<String>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
            host: None,
            content_length: None,
        }
    }

    /// With another parameter in the query.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Signs in the `Authorization` header, and declares the hash of the body.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn signed(self, target: &Target) -> Result<Self> {
        let payload = Payload::Hashed;
        sign::sign(self, target, &payload, &AmzTime::now()).map(|signed| signed.request)
    }

    /// Signs in the `Authorization` header as told. Nothing of what was signed may be changed any more, unless that is
    /// the point.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn signed_as(self, target: &Target, payload: &Payload, time: &AmzTime) -> Result<Self> {
        sign::sign(self, target, payload, time).map(|signed| signed.request)
    }

    /// Signs in the query.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn presigned(self, target: &Target, presign: &Presign) -> Result<Self> {
        sign::presign(self, target, presign)
    }

    /// Sends it, and reads the answer.
    ///
    /// # Errors
    ///
    /// If there is none, or it is not HTTP.
    pub async fn send(&self, target: &Target) -> Result<Response> {
        let bytes = [self.head(target)?.as_bytes(), &self.body].concat();
        exchange(target, &bytes, After::Listen).await
    }

    /// Sends the head and `len` bytes of the body, and then ends the connection's sending side. Gives the answer, if
    /// there is one.
    ///
    /// # Errors
    ///
    /// If no connection can be made.
    pub async fn send_cut(&self, target: &Target, len: usize) -> Result<Option<Response>> {
        let part = self.body.get(..len).context("the cut is behind the body")?;
        let bytes = [self.head(target)?.as_bytes(), part].concat();
        // A server may well close the connection without a word.
        Ok(exchange(target, &bytes, After::Close).await.ok())
    }

    /// The request line and headers.
    ///
    /// # Errors
    ///
    /// If the target is not plain HTTP.
    pub fn head(&self, target: &Target) -> Result<String> {
        self.head_with(target, "close")
    }

    /// The same, with what `Connection` is to say.
    fn head_with(&self, target: &Target, connection: &str) -> Result<String> {
        let host = match &self.host {
            Some(host) => host.as_str(),
            None => target.authority()?,
        };
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n",
            self.method,
            self.uri()
        );
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        match &self.content_length {
            Some(len) => write!(head, "content-length: {len}\r\n")?,
            None if self.body.is_empty() && matches!(self.method, "GET" | "HEAD" | "DELETE") => {}
            None => write!(head, "content-length: {}\r\n", self.body.len())?,
        }
        head.push_str("\r\n");
        Ok(head)
    }

    /// Path and query as they go out.
    pub fn uri(&self) -> String {
        if self.query.is_empty() {
            return self.path.clone();
        }
        let pairs: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", uri_encode(name), uri_encode(value)))
            .collect();
        format!("{}?{}", self.path, pairs.join("&"))
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers, their names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// Whether a 100 Continue came before it.
    pub continued: bool,
}

impl Response {
    /// A header by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Holds it against a status.
    ///
    /// # Errors
    ///
    /// If it has another one.
    pub fn expect_status(&self, status: u16) -> Result<()> {
        ensure!(
            self.status == status,
            "the status is {}, and should be {status}: {}",
            self.status,
            self.text()
        );
        Ok(())
    }

    /// Holds it against an S3 error: its code, its status, and that it says something to a person.
    ///
    /// # Errors
    ///
    /// If it is not this error.
    pub fn expect_error(&self, status: u16, code: &str) -> Result<()> {
        let text = self.text();
        let found = element(&text, "Code").unwrap_or("none");
        ensure!(
            found == code && self.status == status,
            "the answer is {} {found}, and should be {status} {code}: {text}",
            self.status
        );
        let message = element(&text, "Message").unwrap_or_default();
        ensure!(
            message.len() > 3 && !message.contains('\n'),
            "{code} says nothing: {text}"
        );
        Ok(())
    }
}

/// The text of the first element `name`. Not a parser: values with entities stay as they are.
pub fn element<'t>(xml: &'t str, name: &str) -> Option<&'t str> {
    elements(xml, name).next()
}

/// The texts of all elements `name`.
pub fn elements<'t>(xml: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, behind) = rest.split_once(open.as_str())?;
        let (text, behind) = behind.split_once(close.as_str())?;
        rest = behind;
        Some(text)
    })
}

/// What to do when all bytes are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Wait for the answer.
    Listen,
    /// End the sending side, and then wait for the answer.
    Close,
}

/// Sends bytes as they are, and reads the answer.
///
/// # Errors
///
/// If there is none, or it is not HTTP.
pub async fn send_bytes(target: &Target, bytes: &[u8]) -> Result<Response> {
    exchange(target, bytes, After::Listen).await
}

/// Sends bytes as they are, ends the sending side, and gives the answer, if there is one.
pub async fn send_bytes_and_close(target: &Target, bytes: &[u8]) -> Option<Response> {
    exchange(target, bytes, After::Close).await.ok()
}

async fn exchange(target: &Target, bytes: &[u8], after: After) -> Result<Response> {
    let stream = TcpStream::connect(target.authority()?)
        .await
        .context("cannot connect")?;
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        // A server may answer and close before it has read all: the answer counts.
        let _ = writer.write_all(bytes).await;
        if after == After::Close {
            let _ = writer.shutdown().await;
        }
        writer
    };
    let is_head = bytes.starts_with(b"HEAD ");
    let read = async {
        let mut answer = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match reader.read(&mut chunk).await {
                Ok(0) => break,
                Ok(len) => answer.extend_from_slice(chunk.get(..len).unwrap_or_default()),
                // Reset, because it did not read all that was sent.
                Err(_) if !answer.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
            ensure!(answer.len() <= ANSWER_LEN_MAX, "the answer does not end");
        }
        parse(&answer, is_head)
    };
    let both = async {
        let (_writer, answer) = tokio::join!(write, read);
        answer
    };
    timeout(PATIENCE, both).await.context("no answer in time")?
}

fn parse(answer: &[u8], is_head: bool) -> Result<Response> {
    let head_end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no head")?;
    let (head, body) = answer.split_at(head_end);
    let body = body.get(4..).unwrap_or_default();
    let head = std::str::from_utf8(head).context("the head of the answer is not text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status: u16 = status_line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("no status")?;
    if status == 100 {
        return Ok(Response {
            continued: true,
            ..parse(body, is_head)?
        });
    }
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| {
        headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    };
    let body = if is_head {
        Vec::new()
    } else if header("transfer-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked")) {
        dechunk(body)?
    } else {
        let declared: usize = header("content-length").map_or(Ok(body.len()), str::parse)?;
        ensure!(
            body.len() >= declared,
            "the body breaks off after {} of {declared} bytes",
            body.len()
        );
        body.get(..declared).unwrap_or_default().to_vec()
    };
    Ok(Response {
        status,
        headers,
        body,
        continued: false,
    })
}

/// Decodes `Transfer-Encoding: chunked` (RFC 9112, "Chunked Transfer Coding").
fn dechunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut decoded = Vec::new();
    loop {
        let line_end = body
            .windows(2)
            .position(|window| window == b"\r\n")
            .context("a chunk has no size")?;
        let line = std::str::from_utf8(body.get(..line_end).unwrap_or_default())?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
        body = body.get(line_end + 2..).unwrap_or_default();
        if size == 0 {
            return Ok(decoded);
        }
        let Some(chunk) = body.get(..size) else {
            bail!("a chunk breaks off")
        };
        decoded.extend_from_slice(chunk);
        body = body.get(size + 2..).unwrap_or_default();
    }
}

/// Bytes that stream in either direction without being held: for large contents.
pub mod stream {
    use super::{
        AmzTime, AsyncReadExt, AsyncWriteExt, Context, PATIENCE, Payload, Request, Result, Target, TcpStream, ensure,
        parse, timeout,
    };

    /// Puts `len` bytes, which `chunk` makes from an offset on, 1 MiB at a time.
    ///
    /// # Errors
    ///
    /// If it is not acknowledged.
    pub async fn put(
        target: &Target,
        path: &str,
        len: u64,
        chunk: impl Fn(std::ops::Range<u64>) -> Vec<u8>,
    ) -> Result<()> {
        let mut request = Request::new("PUT", path);
        request.content_length = Some(len.to_string());
        let request = request.signed_as(target, &Payload::Unsigned, &AmzTime::now())?;
        let mut stream = TcpStream::connect(target.authority()?).await?;
        stream.write_all(request.head(target)?.as_bytes()).await?;
        let mut offset = 0;
        while offset < len {
            let end = (offset + (1 << 20)).min(len);
            stream
                .write_all(&chunk(offset..end))
                .await
                .context("the upload broke off")?;
            offset = end;
        }
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .context("no answer in time")??;
        parse(&answer, false)?.expect_status(200)
    }

    /// Gets an object, and has `take` look at its bytes as they come, each time with their offset.
    ///
    /// # Errors
    ///
    /// If it is not answered, or ends early.
    pub async fn get(target: &Target, path: &str, mut take: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
        let request = Request::new("GET", path).signed(target)?;
        let mut stream = TcpStream::connect(target.authority()?).await?;
        stream.write_all(request.head(target)?.as_bytes()).await?;
        let mut buffer = Vec::new();
        let head_end = loop {
            ensure!(
                stream.read_buf(&mut buffer).await? > 0,
                "the answer breaks off in its head"
            );
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(buffer.get(..head_end).unwrap_or_default()).to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{head}");
        let len = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .context("no length")?;
        let len: u64 = len.trim().parse()?;
        let mut offset = 0;
        let rest = buffer.split_off(head_end);
        take(offset, &rest)?;
        offset += rest.len() as u64;
        buffer.resize(1 << 20, 0);
        while offset < len {
            let count = stream.read(&mut buffer).await?;
            ensure!(count > 0, "the body breaks off after {offset} of {len} bytes");
            take(offset, buffer.get(..count).unwrap_or_default())?;
            offset += count as u64;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let response = parse(answer, false).unwrap();
        assert_eq!(
            (response.status, response.header("x-a"), response.body.as_slice()),
            (200, Some("b"), &b"abcde"[..])
        );
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", false).is_err());
        assert!(parse(b"", false).is_err());
        assert_eq!(elements("<A>1</A><B/><A>2</A>", "A").collect::<Vec<_>>(), ["1", "2"]);
    }
}
