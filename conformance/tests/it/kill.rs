//! SIGKILL at random moments, while clients write: what was acknowledged is whole afterwards, what was not is there or
//! not, but never half; jobs go on; nothing is left over.
//!
//! `LITHOS_KILL_ROUNDS` says how often, `LITHOS_KILL_SEED` repeats the choices of a run (its moments vary all the same).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use lithos_conformance::{
    case::Bench,
    pattern::{Dice, Pattern, fresh_seed},
    tool::{qemu_img_check, qemu_img_compare},
    wire::Request,
};

use crate::images::Images;

const ROUNDS: u64 = 10;
const CLIENTS: u64 = 4;
/// Keys of each client: few, so that they are replaced and deleted often.
const KEYS: u64 = 5;
const PART: u64 = 5 << 20;

/// The content of an object, to be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    seed: u64,
    len: u64,
}

impl Content {
    /// Some of it is zeros, which are not stored.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Pattern(self.seed).bytes(0..self.len);
        let len = bytes.len();
        if let Some(hole) = bytes.get_mut(len / 3..len / 2) {
            hole.fill(0);
        }
        bytes
    }
}

/// What an object may be: one thing when the last write was answered, the old or the new while it was not.
#[derive(Debug, Clone, Default)]
struct Known {
    may: Vec<Option<Content>>,
    /// Whether the object as it is was acknowledged with the wish for a qcow2.
    converted: bool,
}

/// A client with keys of its own, and what it knows of them.
#[derive(Debug)]
struct Writer {
    number: u64,
    dice: Dice,
    objects: BTreeMap<String, Known>,
    acknowledged: u64,
}

impl Writer {
    /// Writes until the server is gone.
    async fn work(mut self, bench: Bench) -> Self {
        while self.step(&bench).await.is_ok() {
            self.acknowledged += 1;
        }
        self
    }

    async fn step(&mut self, bench: &Bench) -> Result<()> {
        let key = format!("{}/{}.img", self.number, self.dice.below(KEYS));
        let content = Content {
            seed: self.dice.below(u64::MAX),
            len: self.len(),
        };
        match self.dice.below(10) {
            0..=3 => {
                self.write(&key, Some(content), false, put(bench, &key, content, None))
                    .await
            }
            4..=5 => {
                self.write(
                    &key,
                    Some(content),
                    true,
                    put(bench, &key, content, Some("convert-to=qcow2")),
                )
                .await
            }
            6 => {
                let content = Content {
                    len: PART + self.dice.below(2 << 20),
                    ..content
                };
                self.write(&key, Some(content), false, put_parts(bench, &key, content))
                    .await
            }
            7 => self.write(&key, None, false, delete(bench, &key)).await,
            _ => self.copy(bench, &key).await,
        }
    }

    fn len(&mut self) -> u64 {
        let most = [100, 5_000, 100_000, 1 << 20, 4 << 20][usize::try_from(self.dice.below(5)).unwrap()];
        self.dice.below(most)
    }

    /// Keeps account of a write: before it is answered, the object may be either.
    async fn write(
        &mut self,
        key: &str,
        content: Option<Content>,
        converted: bool,
        write: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let known = self.objects.entry(key.to_owned()).or_insert_with(|| Known {
            may: vec![None],
            converted: false,
        });
        known.may.push(content);
        known.converted = false;
        write.await?;
        *known = Known {
            may: vec![content],
            converted,
        };
        Ok(())
    }

    async fn copy(&mut self, bench: &Bench, key: &str) -> Result<()> {
        let Some(Known { may, converted }) = self.objects.get(key).cloned() else {
            return Ok(());
        };
        let [Some(content)] = may[..] else { return Ok(()) };
        let to = format!("{}/copy.img", self.number);
        let copy = async {
            let copy = bench.client.copy_object().bucket(&bench.bucket).key(&to);
            copy.copy_source(format!("{}/{key}", bench.bucket)).send().await?;
            Ok(())
        };
        self.write(&to, Some(content), converted, copy).await
    }

    /// Holds what is there now against what may be.
    async fn check(&mut self, bench: &Bench) -> Result<()> {
        for (key, known) in &mut self.objects {
            let found = match bench.client.get_object().bucket(&bench.bucket).key(key).send().await {
                Ok(got) => Some(
                    got.body
                        .collect()
                        .await
                        .with_context(|| format!("{key} cannot be read"))?
                        .to_vec(),
                ),
                Err(error) if error.code() == Some("NoSuchKey") => None,
                Err(error) => return Err(error).context(format!("{key} cannot be opened")),
            };
            let what = known.may.iter().find(|may| may.map(Content::bytes) == found);
            let what = *what.with_context(|| {
                format!(
                    "{key} is {:?} bytes, and should be one of {:?}",
                    found.map(|bytes| bytes.len()),
                    known.may
                )
            })?;
            known.may = vec![what];
        }
        Ok(())
    }
}

async fn put(bench: &Bench, key: &str, content: Content, tags: Option<&str>) -> Result<()> {
    let put = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key(key)
        .set_tagging(tags.map(str::to_owned));
    put.body(ByteStream::from(content.bytes())).send().await?;
    Ok(())
}

async fn put_parts(bench: &Bench, key: &str, content: Content) -> Result<()> {
    let created = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key(key)
        .send()
        .await?;
    let id = created.upload_id.context("no upload id")?;
    let bytes = content.bytes();
    let (first, second) = bytes.split_at(usize::try_from(PART)?);
    let mut parts = Vec::new();
    for (number, bytes) in [(1, first), (2, second)] {
        let part = bench
            .client
            .upload_part()
            .bucket(&bench.bucket)
            .key(key)
            .upload_id(&id)
            .part_number(number);
        let part = part.body(ByteStream::from(bytes.to_vec())).send().await?;
        let crc32 = part.checksum_crc32;
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .set_e_tag(part.e_tag)
                .set_checksum_crc32(crc32)
                .build(),
        );
    }
    let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = bench.client.complete_multipart_upload().bucket(&bench.bucket).key(key);
    complete.upload_id(id).multipart_upload(upload).send().await?;
    Ok(())
}

async fn delete(bench: &Bench, key: &str) -> Result<()> {
    bench
        .client
        .delete_object()
        .bucket(&bench.bucket)
        .key(key)
        .send()
        .await?;
    Ok(())
}

/// Waits until no job waits or runs.
async fn await_all_jobs(images: &Images) -> Result<()> {
    let begun = std::time::Instant::now();
    loop {
        let page = images
            .admin(Request::new("GET", "/api/v1/jobs").query("state", "queued,running"))
            .await?;
        let jobs = page["jobs"].as_array().context("no list of jobs")?;
        if jobs.is_empty() {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "{} jobs do not end, such as {}",
            jobs.len(),
            jobs[0]
        );
        tokio::time::sleep(lithos_conformance::target::POLL).await;
    }
}

/// Holds the derivatives against their sources.
async fn check_derivatives(images: &Images, writer: &Writer) -> Result<u64> {
    let mut checked = 0;
    for (key, known) in writer.objects.iter().filter(|(_, known)| known.converted) {
        let [Some(content)] = known.may[..] else { continue };
        if content.len == 0 {
            continue;
        }
        let derived = key.replace(".img", ".qcow2");
        let qcow2 = images
            .get_file(&derived, "derived.qcow2")
            .await
            .with_context(|| format!("{derived} is missing"))?;
        let raw = images.path("source.img");
        std::fs::write(&raw, content.bytes())?;
        qemu_img_check(&qcow2, "qcow2").with_context(|| derived.clone())?;
        qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2")).with_context(|| derived.clone())?;
        checked += 1;
    }
    Ok(checked)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_keep_what_they_acknowledged() -> Result<()> {
    let rounds = number("LITHOS_KILL_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("LITHOS_KILL_SEED").unwrap_or_else(fresh_seed);
    println!("LITHOS_KILL_SEED={seed}");
    let mut images = Images::start().await?;
    let mut dice = Dice(seed);
    let mut writers: Vec<Writer> = (0..CLIENTS)
        .map(|number| Writer {
            number,
            dice: Dice(dice.below(u64::MAX)),
            objects: BTreeMap::new(),
            acknowledged: 0,
        })
        .collect();
    for round in 0..rounds {
        let work: Vec<_> = writers
            .drain(..)
            .map(|writer| tokio::spawn(writer.work(images.bench.clone())))
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + dice.below(900))).await;
        images.server.kill()?;
        for writer in work {
            writers.push(writer.await?);
        }
        images.run()?;
        for writer in &mut writers {
            writer
                .check(&images.bench)
                .await
                .with_context(|| format!("round {round}"))?;
        }
    }
    await_all_jobs(&images).await?;
    let mut derivatives = 0;
    for writer in &mut writers {
        writer.check(&images.bench).await?;
        derivatives += check_derivatives(&images, writer).await?;
    }
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    println!("{rounds} kills, {acknowledged} acknowledged writes, {derivatives} derivatives compared");
    ensure!(
        images.server.unfinished_files()?.is_empty(),
        "{:?} is left over",
        images.server.unfinished_files()?
    );
    ensure!(
        !images.server.log().contains("panicked"),
        "the server has a bug: {}",
        images.server.log_end()
    );
    // When nothing refers to them any more, no blob may be left: one that is was an orphan.
    images.bench.clear().await?;
    images.server.await_blob_files(|files| files.is_empty())
}

#[test]
fn a_server_told_to_stop_ends_well() -> Result<()> {
    let mut server = lithos_conformance::target::Server::start()?;
    let status = server.stop()?;
    ensure!(status.success(), "it ended with {status}");
    server.run()
}
