//! A web server to import from: honest, flaky, and malicious, by the path.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The web server, until it is dropped.
#[derive(Debug)]
pub(crate) struct Origin {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    requests: Arc<AtomicU64>,
}

impl Origin {
    /// Serves `content`:
    ///
    /// | path | answer |
    /// | --- | --- |
    /// | `/image` | the content, and ranges of it |
    /// | `/flaky` | the same, but each answer breaks off after a third of it |
    /// | `/short` | less than it declares, however often it is asked, and no ranges |
    /// | `/to?URL` | a redirect |
    /// | `/loop` | a redirect to itself |
    /// | else | 404 |
    pub(crate) async fn serve(content: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let content = Arc::new(content);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let content = Arc::clone(&content);
                tokio::spawn(async move {
                    let _ = answer(stream, &content).await;
                });
            }
        });
        Ok(Self {
            address,
            task,
            requests,
        })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The same place by another address of this machine.
    pub(crate) fn url_at(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.address.port())
    }

    /// Connections so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, content: &[u8]) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let start = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let range = name
            .eq_ignore_ascii_case("range")
            .then(|| value.trim().strip_prefix("bytes="))??;
        range.split('-').next()?.parse::<usize>().ok()
    });
    let (answer, body): (String, &[u8]) = match path {
        "/image" | "/flaky" => {
            let body = content.get(start.unwrap_or(0)..).unwrap_or_default();
            let range = start.map(|start| {
                format!(
                    "content-range: bytes {start}-{}/{}\r\n",
                    content.len() - 1,
                    content.len()
                )
            });
            let status = if start.is_some() {
                "206 Partial Content"
            } else {
                "200 OK"
            };
            let answer = format!(
                "{status}\r\ncontent-length: {}\r\netag: \"v1\"\r\naccept-ranges: bytes\r\ncontent-type: application/x-image\r\n{}",
                body.len(),
                range.unwrap_or_default()
            );
            let sent = if path == "/flaky" {
                body.len().min(content.len() / 3)
            } else {
                body.len()
            };
            (answer, body.get(..sent).unwrap_or_default())
        }
        "/short" => (format!("200 OK\r\ncontent-length: {}\r\n", content.len() + 1), content),
        "/to" => (format!("302 Found\r\nlocation: {query}\r\ncontent-length: 0\r\n"), b""),
        "/loop" => ("302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\n".to_owned(), b""),
        _ => ("404 Not Found\r\ncontent-length: 0\r\n".to_owned(), b""),
    };
    stream
        .write_all(format!("HTTP/1.1 {answer}connection: close\r\n\r\n").as_bytes())
        .await?;
    stream.write_all(body).await?;
    stream.shutdown().await?;
    Ok(())
}
