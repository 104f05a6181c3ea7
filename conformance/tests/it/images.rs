//! A server with a bucket for images, and what tests do with both.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_s3::{
    operation::head_object::HeadObjectOutput,
    types::{Tag, Tagging},
};
use lithos_conformance::{
    case::Bench,
    pattern::{Pattern, SparseImage},
    sdk,
    target::{POLL, Server, ServerOptions},
    wire::{Request, object_path, stream},
};

/// How long a job of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A server of the test's own, and a bucket on it.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) server: Server,
    pub(crate) bench: Bench,
}

impl Images {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(ServerOptions::default()).await
    }

    pub(crate) async fn start_with(options: ServerOptions) -> Result<Self> {
        let server = Server::start_with(options)?;
        let bench = Bench::new(server.target()).await?;
        Ok(Self { server, bench })
    }

    /// Starts the server again, where it may have other ports.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.server.run()?;
        self.bench.target = self.server.target().clone();
        self.bench.client = sdk::client(&self.bench.target);
        Ok(())
    }

    /// A path in a folder that goes with the server.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.server.scratch().join(name)
    }

    /// A sparse image as a file.
    pub(crate) fn sparse_image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path(name);
        SparseImage {
            size,
            pattern: Pattern(size),
        }
        .write(&path)?;
        Ok(path)
    }

    /// An image without a run of zeros, as a file.
    pub(crate) fn noise_image(&self, name: &str, size: u64) -> Result<PathBuf> {
        /// What is made at once.
        const CHUNK_LEN: u64 = 4 << 20;
        let path = self.path(name);
        let mut file = File::create(&path)?;
        for start in (0..size).step_by(usize::try_from(CHUNK_LEN)?) {
            file.write_all(&Pattern(size).bytes(start..size.min(start + CHUNK_LEN)))?;
        }
        Ok(path)
    }

    /// Puts a file.
    pub(crate) async fn put_file(&self, path: &Path, key: &str) -> Result<()> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let chunk = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
            file.read_exact_at(&mut bytes, range.start).unwrap();
            bytes
        };
        stream::put(&self.bench.target, &object_path(&self.bench.bucket, key), len, chunk).await
    }

    /// Gets an object into a file.
    pub(crate) async fn get_file(&self, key: &str, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let mut file = File::create(&path)?;
        let take = |_, bytes: &[u8]| Ok(file.write_all(bytes)?);
        stream::get(&self.bench.target, &object_path(&self.bench.bucket, key), take).await?;
        Ok(path)
    }

    /// Sets the tags of an object.
    pub(crate) async fn tag(&self, key: &str, tags: &[(&str, &str)]) -> Result<()> {
        let tags = tags
            .iter()
            .map(|(key, value)| Tag::builder().key(*key).value(*value).build());
        let tagging = Tagging::builder()
            .set_tag_set(Some(tags.collect::<Result<Vec<_>, _>>()?))
            .build()?;
        self.bench
            .client
            .put_object_tagging()
            .bucket(&self.bench.bucket)
            .key(key)
            .tagging(tagging)
            .send()
            .await?;
        Ok(())
    }

    pub(crate) async fn head(&self, key: &str) -> Result<HeadObjectOutput> {
        Ok(self
            .bench
            .client
            .head_object()
            .bucket(&self.bench.bucket)
            .key(key)
            .send()
            .await?)
    }

    /// One entry of the metadata of an object.
    pub(crate) async fn metadata(&self, key: &str, name: &str) -> Result<Option<String>> {
        let head = self.head(key).await?;
        Ok(head.metadata().and_then(|metadata| metadata.get(name)).cloned())
    }

    /// Waits until an object is there; gives how long that took.
    pub(crate) async fn await_object(&self, key: &str) -> Result<Duration> {
        let begun = Instant::now();
        while self.head(key).await.is_err() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "{key} did not appear; its jobs: {}",
                self.job_list().await?
            );
            tokio::time::sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// Waits until the jobs of an object have ended, and gives their ids and states.
    pub(crate) async fn await_jobs(&self, key: &str) -> Result<Vec<(String, String)>> {
        let begun = Instant::now();
        loop {
            let jobs = self
                .metadata(key, "image-jobs")
                .await?
                .with_context(|| format!("{key} has no jobs"))?;
            let jobs: Vec<(String, String)> = jobs
                .split(' ')
                .filter_map(|job| job.split_once(':'))
                .map(|(id, state)| (id.to_owned(), state.to_owned()))
                .collect();
            if jobs
                .iter()
                .all(|(_, state)| matches!(state.as_str(), "done" | "failed" | "cancelled"))
            {
                return Ok(jobs);
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the jobs of {key} do not end: {}",
                self.job_list().await?
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the only job of an object has come to a stage; gives its id.
    pub(crate) async fn await_stage(&self, key: &str, stage: &str) -> Result<String> {
        let begun = Instant::now();
        let jobs = self.metadata(key, "image-jobs").await?;
        let jobs = jobs.with_context(|| format!("{key} has no jobs"))?;
        let (id, _) = jobs.split_once(':').context("a job without a state")?;
        loop {
            let job = self.job(id).await?;
            if job["stage"] == stage {
                return Ok(id.to_owned());
            }
            let is_in_time = begun.elapsed() < PATIENCE && job["state"] != "done";
            ensure!(is_in_time, "a job that does not come to {stage:?}: {job}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all jobs of an object are done.
    pub(crate) async fn await_done(&self, key: &str) -> Result<()> {
        for (id, state) in self.await_jobs(key).await? {
            ensure!(state == "done", "a job of {key} {state}: {}", self.job(&id).await?);
        }
        Ok(())
    }

    /// The error of the one job of an object that has failed.
    pub(crate) async fn await_failure(&self, key: &str) -> Result<String> {
        let jobs = self.await_jobs(key).await?;
        let Some((id, _)) = jobs.iter().find(|(_, state)| state == "failed") else {
            bail!("no job of {key} failed: {jobs:?}")
        };
        let job = self.job(id).await?;
        job.get("error")
            .and_then(|error| error.as_str())
            .map(str::to_owned)
            .context("the job does not say why")
    }

    /// A job as the admin API shows it.
    pub(crate) async fn job(&self, id: &str) -> Result<serde_json::Value> {
        self.admin(Request::new("GET", format!("/api/v1/jobs/{id}"))).await
    }

    async fn job_list(&self) -> Result<serde_json::Value> {
        self.admin(Request::new("GET", "/api/v1/jobs")).await
    }

    /// Asks the admin API.
    pub(crate) async fn admin(&self, request: Request) -> Result<serde_json::Value> {
        let target = self.server.management_target();
        let answer = request.signed(&target)?.send(&target).await?;
        ensure!(
            (200..300).contains(&answer.status),
            "the API answers {} {}",
            answer.status,
            answer.text()
        );
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

/// Whether two files hold the same bytes.
pub(crate) fn ensure_same(ours: &Path, theirs: &Path) -> Result<()> {
    let (a, b) = (File::open(ours)?, File::open(theirs)?);
    let len = a.metadata()?.len();
    ensure!(
        len == b.metadata()?.len(),
        "{} and {} differ in length",
        ours.display(),
        theirs.display()
    );
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < len {
        let count = usize::try_from((len - offset).min(1 << 20))?;
        a.read_exact_at(&mut x[..count], offset)?;
        b.read_exact_at(&mut y[..count], offset)?;
        ensure!(
            x[..count] == y[..count],
            "{} and {} differ behind {offset}",
            ours.display(),
            theirs.display()
        );
        offset += count as u64;
    }
    Ok(())
}
