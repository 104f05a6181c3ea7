//! A connection that is kept: for clients that send many requests, and for what is timed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{ANSWER_LEN_MAX, PATIENCE, Request, Response, parse};
use crate::target::Target;

/// Room for what comes in at a time.
const CHUNK: usize = 256 << 10;
/// Ends a chunked body (RFC 9112, "Chunked Transfer Coding"), where there are no trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A connection for one request after the other.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    target: Target,
    received: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.authority()?)
            .await
            .context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            target: target.clone(),
            received: Vec::with_capacity(CHUNK),
        })
    }

    /// Sends a signed request, and reads the answer.
    ///
    /// # Errors
    ///
    /// If there is none, or it is not HTTP. Then the connection is of no more use.
    pub async fn send(&mut self, request: &Request) -> Result<Response> {
        Ok(self.send_timed(request).await?.0)
    }

    /// As [`Connection::send`], with the time from the first byte out to the last one in.
    ///
    /// # Errors
    ///
    /// As [`Connection::send`].
    pub async fn send_timed(&mut self, request: &Request) -> Result<(Response, Duration)> {
        let head = request.head_with(&self.target, "keep-alive")?;
        let begun = Instant::now();
        timeout(PATIENCE, self.exchange(head.as_bytes(), &request.body))
            .await
            .context("no answer in time")??;
        let took = begun.elapsed();
        Ok((parse(&self.received, request.method == "HEAD")?, took))
    }

    /// Writes a request, and reads until its answer is whole.
    async fn exchange(&mut self, head: &[u8], body: &[u8]) -> Result<()> {
        self.stream.write_all(head).await?;
        self.stream.write_all(body).await?;
        self.received.clear();
        while !self.is_whole(head.starts_with(b"HEAD "))? {
            self.received.reserve(CHUNK);
            let count = self.stream.read_buf(&mut self.received).await?;
            ensure!(count > 0, "the connection was closed within an answer");
            ensure!(self.received.len() <= ANSWER_LEN_MAX, "the answer does not end");
        }
        Ok(())
    }

    /// Whether an answer is whole, by its own words.
    fn is_whole(&self, is_head: bool) -> Result<bool> {
        let Some(head_end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(false);
        };
        let (head, body) = self.received.split_at(head_end + 4);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let has_none = is_head || head.starts_with("http/1.1 204") || head.starts_with("http/1.1 304");
        if has_none {
            return Ok(true);
        }
        let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        match len {
            Some(len) => Ok(body.len() >= len.trim().parse::<usize>()?),
            None => Ok(body.ends_with(LAST_CHUNK)),
        }
    }
}
