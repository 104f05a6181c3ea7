//! Checks a store that nobody writes to, without writing to it.
//!
//! Every row is decoded, and everything that a row refers to is looked up: the tables hold each other's facts twice, so
//! that what one has lost another still says. Then the blobs are compared with their rows, both ways.
//!
//! | module | checks |
//! | --- | --- |
//! | `object` | buckets, objects, uploads, parts: that the layouts refer to blobs that are there and stay |
//! | `version` | versions that are not current, delete markers, and which one is the null version |
//! | `layout` | who owns blobs and borrows them, and that the sweep finds what is released |
//! | `blob` | intents, and rows against files |
//! | `job` | jobs, the queue, peers, and tables of a later release |
//! | `lifecycle` | lifecycle rules and how far they are |
//! | `user` | users, their ids and access keys |
//! | `finding` | what can be found, what it means, and what to do |
//!
//! # Memory
//!
//! Tables are read in pages, and compared by looking rows up one by one, never by sets of them. What grows with the store
//! is the buckets' names, 100 bytes each, and findings up to [`FINDINGS_MAX`]; an object of many blobs takes up to
//! `REACH_MAX` entries while it is looked at. So ten million objects take what the engine's caches take.

mod blob;
mod finding;
mod job;
mod layout;
mod lifecycle;
mod object;
#[cfg(test)]
mod tests;
mod upkeep;
mod user;
mod version;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use minicbor::Decode;

pub(crate) use self::blob::check_blobs;
pub use self::finding::{Finding, FindingKind, Severity};
use crate::{
    blob::Blobs,
    error::Result,
    kv::{Kv, Snapshot},
    rows::Pages,
    schema::{BucketId, Keys, decode},
};

/// Most findings that are told one by one; the others are counted. A store with more has one cause for them.
pub const FINDINGS_MAX: usize = 10_000;

/// What is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsckOptions {
    /// Read every block of every blob and compare its checksum, which takes as long as reading the whole store.
    pub deep: bool,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being checked.
    pub stage: &'static str,
    /// Rows or blobs looked at in this stage; bytes where blocks are verified.
    pub done: u64,
}

/// What a check has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Buckets.
    pub buckets: u64,
    /// Object versions, current or not.
    pub objects: u64,
    /// Bytes of the objects, as clients see them.
    pub object_bytes: u64,
    /// Uploads in progress.
    pub uploads: u64,
    /// Parts of uploads.
    pub parts: u64,
    /// Layouts with a row of their own.
    pub layouts: u64,
    /// Blobs in use.
    pub blobs: u64,
    /// Bytes of content in them.
    pub blob_bytes: u64,
    /// Jobs.
    pub jobs: u64,
}

/// What a check has found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The findings, in the order of the tables, at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many there are of each severity, those included that are not listed.
    pub errors: u64,
    /// As [`Report::errors`].
    pub warnings: u64,
    /// As [`Report::errors`].
    pub notes: u64,
    /// What was looked at.
    pub counts: Counts,
}

impl Report {
    /// Whether all is well; there may be notes.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.warnings == 0
    }

    /// Notes files of blobs whose writer was cut off.
    pub(crate) fn note_drafts(&mut self, count: usize) {
        if count > 0 {
            self.add(FindingKind::Drafts, "blobs/tmp", format!("{count} files"));
        }
    }

    fn add(&mut self, kind: FindingKind, subject: impl Into<String>, detail: impl Into<String>) {
        match kind.severity() {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
            Severity::Note => self.notes += 1,
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                kind,
                subject: subject.into(),
                detail: detail.into(),
            });
        }
    }
}

/// Checks the store over an index and its blobs, which nobody changes meanwhile and whose format is this release's.
///
/// # Errors
///
/// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or a folder cannot be read at all.
pub async fn fsck(
    index: &Arc<dyn Kv>,
    blobs: &Arc<dyn Blobs>,
    options: &FsckOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<Report> {
    let mut check = Check::new(index, blobs, progress).await?;
    object::check(&mut check).await?;
    version::check(&mut check).await?;
    layout::check(&mut check).await?;
    job::check(&mut check).await?;
    user::check(&mut check).await?;
    lifecycle::check(&mut check).await?;
    upkeep::check(&mut check).await?;
    blob::check(&mut check, options).await?;
    Ok(check.report)
}

/// A check that is under way.
struct Check<'a> {
    snapshot: Box<dyn Snapshot>,
    blobs: &'a Arc<dyn Blobs>,
    /// The buckets' names by their ids.
    buckets: HashMap<BucketId, String>,
    report: Report,
    stage: Progress,
    progress: &'a mut (dyn FnMut(Progress) + Send + Sync),
}

impl<'a> Check<'a> {
    async fn new(
        index: &Arc<dyn Kv>,
        blobs: &'a Arc<dyn Blobs>,
        progress: &'a mut (dyn FnMut(Progress) + Send + Sync),
    ) -> Result<Self> {
        Ok(Self {
            snapshot: index.snapshot().await?,
            blobs,
            buckets: HashMap::new(),
            report: Report::default(),
            stage: Progress { stage: "", done: 0 },
            progress,
        })
    }

    fn add(&mut self, kind: FindingKind, subject: impl Into<String>, detail: impl Into<String>) {
        self.report.add(kind, subject, detail);
    }

    /// Begins to go through a table.
    fn table(&mut self, stage: &'static str, table: u8) -> Pages {
        self.stage = Progress { stage, done: 0 };
        (self.progress)(self.stage);
        Pages::of(Keys::table(table))
    }

    /// The next rows of it.
    async fn page(&mut self, pages: &mut Pages) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        let page = pages.next(&*self.snapshot).await?;
        self.step(page.as_ref().map_or(0, Vec::len) as u64);
        Ok(page)
    }

    /// Says that `count` more have been looked at.
    fn step(&mut self, count: u64) {
        self.stage.done = self.stage.done.saturating_add(count);
        (self.progress)(self.stage);
    }

    /// Reads a row's record, or says that it is damaged.
    fn read<T: for<'b> Decode<'b, ()>>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        self.take(key, decode(value))
    }

    /// A part of a row, or a finding.
    fn take<T>(&mut self, key: &[u8], parsed: Result<T>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(FindingKind::DamagedRow, row_name(key), error.to_string());
                None
            }
        }
    }

    /// Looks a record up. One that is damaged counts as missing here: its own table tells of it.
    async fn get<T: for<'b> Decode<'b, ()>>(&self, key: &[u8]) -> Result<Option<T>> {
        Ok(self.snapshot.get(key).await?.and_then(|value| decode(&value).ok()))
    }

    async fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.snapshot.get(key).await?.is_some())
    }

    /// A name for people: the bucket, by its id if it has none, and the key.
    fn object_name(&self, bucket: BucketId, key: &str) -> String {
        match self.buckets.get(&bucket) {
            Some(name) => format!("{name}/{key}"),
            None => format!("{bucket}/{key}"),
        }
    }
}

/// A row for people: its table's letter, and the rest in hexadecimal digits.
fn row_name(key: &[u8]) -> String {
    match key.split_first() {
        Some((table, rest)) => format!("row {}:{}", table.escape_ascii(), hex::encode(rest)),
        None => "row without a key".to_owned(),
    }
}
