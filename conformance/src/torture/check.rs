//! What must hold of the server that was started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    client::{self, BUCKET, Client, tags_of, unquoted},
    load::{Qcow2, SHARED_KEYS, Worker, shared_value},
    model::{Part, Upload, Version},
};
use crate::{
    pattern::md5_hex,
    target::{POLL, Target},
    tool::{qemu_img_check, qemu_img_compare},
    wire::{Request, element, elements},
};

/// How long jobs may take to end: one that failed waits before it is tried again, longer each time.
const JOBS_PATIENCE: Duration = Duration::from_mins(2);

/// An object as it was found.
#[derive(Debug, Clone)]
struct Found {
    version: Version,
    etag: String,
}

async fn find(client: &Client, key: &str) -> Result<Option<Found>> {
    let answer = client.ask(client::object("GET", key)).await?;
    if answer.status == 404 {
        return Ok(None);
    }
    answer.expect_status(200)?;
    let etag = unquoted(answer.header("etag").context("an object has no ETag")?);
    let tags = tags_of(&client.ask(client::object("GET", key).query("tagging", "")).await?);
    let version = Version {
        bytes: answer.body.into(),
        etag: None,
        tags,
    };
    Ok(Some(Found { version, etag }))
}

/// Whether it was found as one attempt wrote it: content, tags and ETag.
fn is(found: Option<&Found>, may: Option<&Version>) -> bool {
    match (found, may) {
        (None, None) => true,
        (Some(found), Some(may)) => {
            found.version.bytes == may.bytes
                && found.version.tags == may.tags
                && may.etag.as_ref().is_none_or(|etag| *etag == found.etag)
        }
        _ => false,
    }
}

/// Checks all that a client knows, and settles what was not certain. Gives how many things were checked.
pub(super) async fn worker(client: &Client, worker: &mut Worker) -> Result<u64> {
    let listed = listing(client, &worker.prefix()).await?;
    let mut checks = 0;
    for (key, known) in &mut worker.model.objects {
        let found = find(client, key).await?;
        let may = known.may.iter().find(|may| is(found.as_ref(), may.as_ref()));
        let Some(may) = may else {
            let shown = |version: &Version| {
                format!(
                    "{} bytes, ETag {:?}, {:?}",
                    version.bytes.len(),
                    version.etag,
                    version.tags
                )
            };
            let may: Vec<_> = known.may.iter().map(|may| may.as_ref().map(shown)).collect();
            let found = found.map(|found| (shown(&found.version), found.etag));
            anyhow::bail!("{key} is {found:?}, and should be one of {may:?}");
        };
        let in_listing = found
            .as_ref()
            .map(|found| (found.etag.clone(), found.version.bytes.len()));
        ensure!(
            listed.get(key) == in_listing.as_ref(),
            "{key} is listed as {:?}, and is {in_listing:?}",
            listed.get(key)
        );
        let etag = found.map(|found| found.etag);
        known.may = vec![may.clone().map(|version| Version { etag, ..version })];
        checks += 1;
    }
    let is_derived = |key: &str| matches!(key.rsplit_once('.'), Some((_, "qcow2" | "raw")));
    let is_known = |key: &str| worker.model.objects.contains_key(key) || is_derived(key);
    for key in listed.keys() {
        ensure!(is_known(key), "{key} is listed, and nobody wrote it");
    }
    Ok(checks + uploads(client, worker).await?)
}

/// Keys with their ETags and sizes.
async fn listing(client: &Client, prefix: &str) -> Result<BTreeMap<String, (String, usize)>> {
    let request = Request::new("GET", format!("/{BUCKET}"))
        .query("list-type", "2")
        .query("prefix", prefix);
    let answer = client.ask(request).await?;
    answer.expect_status(200)?;
    let text = answer.text();
    let entries = elements(&text, "Contents").map(|entry| {
        let size = element(entry, "Size").context("no size")?.parse()?;
        let etag = unquoted(element(entry, "ETag").context("no ETag")?);
        Ok((element(entry, "Key").context("no key")?.to_owned(), (etag, size)))
    });
    entries.collect()
}

/// Uploads in progress: ids with their keys.
async fn open_uploads(client: &Client, prefix: &str) -> Result<BTreeMap<String, String>> {
    let request = Request::new("GET", format!("/{BUCKET}"))
        .query("uploads", "")
        .query("prefix", prefix);
    let answer = client.ask(request).await?;
    answer.expect_status(200)?;
    let text = answer.text();
    let uploads = elements(&text, "Upload").filter_map(|upload| {
        Some((
            element(upload, "UploadId")?.to_owned(),
            element(upload, "Key")?.to_owned(),
        ))
    });
    Ok(uploads.collect())
}

async fn uploads(client: &Client, worker: &mut Worker) -> Result<u64> {
    let mut open = open_uploads(client, &worker.prefix()).await?;
    let mut checks = 0;
    let mut ended = BTreeSet::new();
    for (id, upload) in &mut worker.model.uploads {
        match open.remove(id) {
            Some(key) => {
                ensure!(
                    key == upload.key,
                    "the upload {id} is listed for {key}, and is for {}",
                    upload.key
                );
                checks += parts(client, id, upload).await?;
                upload.may_have_ended = false;
            }
            None if upload.may_have_ended => drop(ended.insert(id.clone())),
            None => anyhow::bail!("the upload {id} of {} is gone", upload.key),
        }
    }
    worker.model.uploads.retain(|id, _| !ended.contains(id));
    ensure!(
        open.len() <= worker.model.nameless,
        "the uploads {open:?} are listed, and {} may have been begun that were not answered",
        worker.model.nameless
    );
    for (id, key) in open {
        client.ask(client::abort(&key, &id)).await?.expect_status(204)?;
    }
    worker.model.nameless = 0;
    Ok(checks)
}

async fn parts(client: &Client, id: &str, upload: &mut Upload) -> Result<u64> {
    let answer = client
        .ask(client::object("GET", &upload.key).query("uploadId", id))
        .await?;
    answer.expect_status(200)?;
    let text = answer.text();
    let mut listed = BTreeMap::new();
    for part in elements(&text, "Part") {
        let number: u16 = element(part, "PartNumber").context("no number")?.parse()?;
        let size: usize = element(part, "Size").context("no size")?.parse()?;
        listed.insert(number, (unquoted(element(part, "ETag").context("no ETag")?), size));
    }
    for (number, may) in &mut upload.parts {
        let found = listed.remove(number);
        let is = |part: &&Option<Part>| match (&found, part) {
            (None, None) => true,
            (Some((etag, size)), Some(part)) => {
                part.bytes.len() == *size && part.etag.as_ref().is_none_or(|known| known == etag)
            }
            _ => false,
        };
        let part = may.iter().find(is).cloned();
        let part = part.with_context(|| format!("part {number} of {id} is listed as {found:?}, which nobody sent"))?;
        let etag = found.map(|(etag, _)| etag);
        *may = vec![part.map(|part| Part { etag, ..part })];
    }
    ensure!(
        listed.is_empty(),
        "the parts {listed:?} of {id} are listed, and nobody sent them"
    );
    Ok(upload.parts.len() as u64)
}

/// What the shared keys are.
pub(super) async fn shared(client: &Client) -> Result<BTreeMap<&'static str, Option<u64>>> {
    let mut values = BTreeMap::new();
    for key in SHARED_KEYS {
        let value = match find(client, key).await? {
            None => None,
            Some(found) => {
                ensure!(
                    found.etag == md5_hex(&found.version.bytes),
                    "{key} has the ETag {}",
                    found.etag
                );
                Some(shared_value(&found.version.bytes)?)
            }
        };
        values.insert(key, value);
    }
    Ok(values)
}

/// Waits until no job waits or runs.
pub(super) async fn jobs_end(management: &Target) -> Result<()> {
    let client = Client {
        target: management.clone(),
    };
    let begun = Instant::now();
    loop {
        let page = client
            .ask(Request::new("GET", "/api/v1/jobs").query("state", "queued,running"))
            .await?;
        let page: serde_json::Value = serde_json::from_slice(&page.body)?;
        let jobs = page
            .get("jobs")
            .and_then(|jobs| jobs.as_array())
            .context("no list of jobs")?;
        let Some(job) = jobs.first() else { return Ok(()) };
        ensure!(
            begun.elapsed() < JOBS_PATIENCE,
            "{} jobs do not end, such as {job}",
            jobs.len()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Holds derivatives against the objects they are made of; all jobs have ended.
pub(super) async fn derivatives(
    client: &Client,
    worker: &Worker,
    scratch: &Path,
    image: Option<&Qcow2>,
) -> Result<u64> {
    let mut checks = 0;
    for (key, known) in &worker.model.objects {
        let Some(Some(version)) = known.settled() else { continue };
        let Some(format) = version.tags.get("convert-to").filter(|_| !version.bytes.is_empty()) else {
            continue;
        };
        let stem = key.rsplit_once('.').map_or(key.as_str(), |(stem, _)| stem);
        let derived = format!("{stem}.{format}");
        let Some(found) = find(client, &derived).await? else {
            let head = client.ask(client::object("HEAD", key)).await?;
            let jobs = head.header("x-amz-meta-image-jobs").unwrap_or_default();
            // A disk that is full, or fails again and again, is a reason to give up.
            ensure!(
                jobs.contains(":failed"),
                "{derived} is missing; the jobs of {key} are {jobs:?}"
            );
            continue;
        };
        if format == "raw" {
            let same = image.is_some_and(|image| image.raw == found.version.bytes);
            ensure!(same, "{derived} is not what a guest sees in {key}");
        } else {
            let (raw, qcow2) = (scratch.join("source.img"), scratch.join("derived.qcow2"));
            std::fs::write(&raw, &version.bytes)?;
            std::fs::write(&qcow2, &found.version.bytes)?;
            qemu_img_check(&qcow2, "qcow2").with_context(|| derived.clone())?;
            qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2")).with_context(|| derived.clone())?;
        }
        checks += 1;
    }
    Ok(checks)
}

/// Deletes all objects and aborts all uploads.
pub(super) async fn clear(client: &Client) -> Result<()> {
    let keys: Vec<String> = listing(client, "").await?.into_keys().collect();
    if !keys.is_empty() {
        let answer = client.ask(client::delete_many(&keys)).await?;
        answer.expect_status(200)?;
        ensure!(
            !answer.text().contains("<Error>"),
            "not all could be deleted: {}",
            answer.text()
        );
    }
    for (id, key) in open_uploads(client, "").await? {
        client.ask(client::abort(&key, &id)).await?.expect_status(204)?;
    }
    ensure!(listing(client, "").await?.is_empty(), "deleted objects are listed");
    Ok(())
}

/// Asks for compression at rest.
const COMPRESSED: &str = "<Tagging><TagSet><Tag><Key>compression</Key><Value>zstd:1</Value></Tag></TagSet></Tagging>";

/// Makes the bucket; whether it was there before is told.
pub(super) async fn make_bucket(client: &Client) -> Result<bool> {
    let answer = client.ask(Request::new("PUT", format!("/{BUCKET}"))).await?;
    ensure!(
        matches!(answer.status, 200 | 409),
        "no bucket can be made: {}",
        answer.text()
    );
    let was_there = answer.status == 409;
    if !was_there {
        let tagging = Request::new("PUT", format!("/{BUCKET}")).query("tagging", "");
        // In a round of failing calls it may fail too; the load is as good without.
        let _ = client.ask(tagging.body(COMPRESSED)).await;
    }
    Ok(was_there)
}
