//! A connection's socket, which ends when the client takes too little of what is written to it.
//!
//! hyper has timers for the head of a request, and none for a client that stops reading an answer. Here a write that
//! waits too long fails, which ends the connection, and with it the request's permit, file and memory.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;

use super::stall::Stall;

/// A socket that is watched while it is written to.
#[derive(Debug)]
pub(super) struct Socket {
    inner: TokioIo<TcpStream>,
    stall: Stall,
    cut_off: Counter,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, client_timeout: Duration, cut_off: Counter) -> Self {
        Self {
            inner: TokioIo::new(stream),
            stall: Stall::new(client_timeout),
            cut_off,
        }
    }

    fn watch(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(len)) => {
                self.stall.moved(len);
                Poll::Ready(Ok(len))
            }
            Poll::Pending if self.stall.poll_waiting(cx).is_ready() => {
                self.cut_off.inc();
                let message = "the client takes its answer too slowly";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
            other => other,
        }
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(written, cx)
    }
}
