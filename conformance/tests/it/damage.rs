//! What happens when disks and files go bad: nothing wrong is ever served, what works goes on, what is hurt is named, and
//! when the disk is well again so is the server.
//!
//! | module | shows |
//! | --- | --- |
//! | `full` | a disk that is full, or nearly |
//! | `refusing` | one that takes no writes, and a process that may open no more files |
//! | `index` | damaged tables and logs of the index |
//! | `blob` | blobs that are damaged or missing, compressed or not |
//! | `spread` | that conversions and replicas are not made of damage |
//! | `heavy` | compression of a real file system, which takes a while |
//!
//! Disks fail while the server runs by the library of `powercut`, files are spoilt while it does not run: a server trusts
//! for minutes what it has just found whole.

mod blob;
mod full;
mod heavy;
mod index;
mod refusing;
mod spread;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{Tag, Tagging};
use lithos_conformance::{
    case::Bench,
    target::{POLL, Server, ServerOptions, Target, built},
    wire::{Request, Response},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::images::Images;

/// How long it may take until a server that is well again shows it: it tries every five seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the file by which the library is told.
const CONTROL_LEN: u64 = 16;

/// What the disk does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Sound = 0,
    /// Nothing gets larger.
    Full = 1,
    /// Nothing is written.
    ReadOnly = 2,
    /// Nothing is opened.
    NoFiles = 3,
}

/// A server, and the switch of its disk.
#[derive(Debug)]
struct Faulty {
    images: Images,
    control: File,
}

impl Faulty {
    async fn start(arguments: &[&str]) -> Result<Self> {
        let options = ServerOptions {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            import_allow: vec!["127.0.0.1/32".to_owned()],
            ..ServerOptions::default()
        };
        let mut server = Server::prepare(options)?;
        let disk = server.disk();
        let control = preload(&mut server, &disk)?;
        server.run()?;
        let bench = Bench::new(server.target()).await?;
        Ok(Self {
            images: Images { server, bench },
            control,
        })
    }

    fn set(&self, disk: Disk) -> Result<()> {
        set(&self.control, disk)
    }

    /// Has the server believe that so much is free.
    fn set_free(&self, mebibytes: u32) -> Result<()> {
        put(&self.control, mebibytes, 4)
    }

    /// Puts until it is acknowledged.
    async fn await_put(&self, key: &str, bytes: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let answer = self.send(self.images.bench.object("PUT", key).body(bytes)).await?;
            if answer.status == 200 {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "writes do not come back: {}\n{}",
                answer.text(),
                self.images.server.log_end()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Puts until it is refused as it should be: what is known of the disk is some moments old.
    async fn await_refusal(&self, key: &str, status: u16, code: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let put = self.images.bench.object("PUT", key).body(vec![7; 100_000]);
            let answer = self.send(put).await?;
            if answer.status == status {
                return answer.expect_error(status, code);
            }
            ensure!(begun.elapsed() < PATIENCE, "{} {}", answer.status, answer.text());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn send(&self, request: Request) -> Result<Response> {
        let target = &self.images.bench.target;
        request.signed(target)?.send(target).await
    }

    /// That nobody was told of damage: a disk that refuses is not one that is damaged.
    async fn ensure_no_damage(&self) -> Result<()> {
        let damage = self.images.admin(Request::new("GET", "/api/v1/damage")).await?;
        ensure!(damage.as_array().is_some_and(Vec::is_empty), "{damage}");
        Ok(())
    }

    /// That no blob is left half-written.
    async fn await_no_unfinished(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let left = self.images.server.unfinished_files()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{left:?} are left over");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the server, and has the folder checked; then all is deleted, and no file may be left.
    async fn end(mut self) -> Result<()> {
        self.images.server.stop()?;
        ensure!(!self.images.server.log().contains("panicked"), "the server has a bug");
        let report = fsck(&self.images.server.data())?;
        ensure!(report["clean"] == true, "{report:#}");
        self.images.server.set_environment(Vec::new());
        self.images.run()?;
        self.images.bench.clear().await?;
        self.images.server.await_no_blobs()
    }
}

/// Has the next process of `server` run with the library, over the folder `disk`. Gives the switch.
fn preload(server: &mut Server, disk: &Path) -> Result<File> {
    let path = server.scratch().join("control");
    let control = File::create(&path)?;
    control.set_len(CONTROL_LEN)?;
    let library = built("liblithos_powercut.so", "LITHOS_POWERCUT")?;
    let environment = [
        ("LD_PRELOAD", library.display().to_string()),
        ("POWERCUT_DIR", disk.display().to_string()),
        ("POWERCUT_CONTROL", path.display().to_string()),
    ];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value));
    server.set_environment(environment.collect());
    Ok(control)
}

fn set(control: &File, disk: Disk) -> Result<()> {
    put(control, disk as u32, 0)
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the server maps the file into its memory, on this machine"
)]
fn put(control: &File, word: u32, offset: u64) -> Result<()> {
    Ok(control.write_all_at(&word.to_ne_bytes(), offset)?)
}

/// The report of `lithos fsck --deep`.
fn fsck(data: &Path) -> Result<serde_json::Value> {
    let mut command = Server::offline_command()?;
    let output = command
        .args(["fsck", "--deep", "--json", "--data"])
        .arg(data)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = serde_json::from_str(&said);
    report.with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Text of `len` bytes that differs everywhere and compresses well.
fn text(len: usize) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(len + 64);
    let mut number = 0_u64;
    while text.len() < len {
        number += 1;
        let _ = writeln!(text, "line {number} of a log that says the same as the line before it");
    }
    text.truncate(len);
    text.into_bytes()
}

/// The largest file of a blob.
fn largest_blob(server: &Server) -> Result<PathBuf> {
    let files = server.blob_files()?;
    let largest = files
        .into_iter()
        .max_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    largest.context("there are no blobs")
}

/// Flips a bit of the byte at `offset`.
fn flip(path: &Path, offset: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x10], offset)?)
}

/// Sets the tag `compression` of the bucket.
async fn compress(bench: &Bench, value: &str) -> Result<()> {
    let tag = Tag::builder().key("compression").value(value).build()?;
    let tags = Tagging::builder().tag_set(tag).build()?;
    let put = bench.client.put_bucket_tagging().bucket(&bench.bucket).tagging(tags);
    put.send().await?;
    Ok(())
}

/// What came of an answer before its end, or before the connection broke.
#[derive(Debug)]
struct Broken {
    status: u16,
    /// The length that the head says.
    declared: u64,
    body: Vec<u8>,
}

/// Gets a path, and takes what comes.
async fn get_as_it_comes(target: &Target, path: String) -> Result<Broken> {
    let request = Request::new("GET", path).signed(target)?;
    let mut stream = TcpStream::connect(target.authority()?).await?;
    stream.write_all(request.head(target)?.as_bytes()).await?;
    let mut answer = Vec::new();
    // A reset is a way to break off too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .context("the answer does not end")?;
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = answer.split_off(head_end.context("the answer has no head")? + 4);
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let declared = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(Broken {
        status: status.context("no status")?,
        declared: declared.map_or(Ok(body.len() as u64), |declared| declared.trim().parse())?,
        body,
    })
}
