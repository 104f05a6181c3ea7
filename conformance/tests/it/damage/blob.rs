//! Blobs that are damaged or missing: never served, found by reads and by scrubs, named with their objects, and forgotten
//! when they are deleted.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lithos_conformance::{
    target::{POLL, Server, Target},
    tool::{run, run_failing},
    wire::{Request, object_path},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{PATIENCE, compress, flip, fsck, get_as_it_comes, largest_blob, text};
use crate::{exposition::await_metric, images::Images};

const LEN: usize = 4 << 20;
/// What is asked for at either end, far from the damage in the middle.
const EDGE: usize = 100_000;
/// Of the object that is not hurt: less than the other one when that is compressed.
const WHOLE_LEN: usize = 20_000;

/// How a blob is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurt {
    Bit,
    /// A bit of one that has been compressed.
    PackedBit,
    Missing,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_named_and_never_served() -> Result<()> {
    life_of_damage(Hurt::Bit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_of_a_compressed_blob_is_found_named_and_never_served() -> Result<()> {
    life_of_damage(Hurt::PackedBit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_is_found_and_named() -> Result<()> {
    life_of_damage(Hurt::Missing).await
}

async fn life_of_damage(hurt: Hurt) -> Result<()> {
    let mut images = Images::start().await?;
    spoil(&mut images, hurt).await?;
    let bucket = images.bench.bucket.clone();
    let report = fsck(&images.server.data())?;
    let kind = if hurt == Hurt::Missing {
        "missing-blob"
    } else {
        "damaged-blob"
    };
    let named = report["findings"].as_array().into_iter().flatten().any(|finding| {
        let detail = finding["detail"].as_str().unwrap_or_default();
        finding["kind"] == kind && detail.contains(&format!("{bucket}/hurt"))
    });
    ensure!(named, "fsck does not name the object: {report:#}");

    images.run()?;
    let events = tokio::spawn(events_until_failure(images.server.management_target(), bucket.clone()));
    await_stream(&images).await?;
    read(&images, hurt).await?;
    let damage = await_damage(&images, |damage| !damage.is_empty()).await?;
    ensure!(damage.len() == 1, "{damage:?}");
    let objects = damage[0]["objects"].as_array().context("no objects")?;
    for key in ["hurt", "copy"] {
        ensure!(
            objects.contains(&format!("{bucket}/{key}").into()),
            "{key} is not named: {damage:?}"
        );
    }
    ensure!(!objects.contains(&format!("{bucket}/whole").into()), "{damage:?}");
    let places = damage[0]["offsets"].as_array().context("no offsets")?.len();
    ensure!((places == 0) == (hurt == Hurt::Missing), "{damage:?}");
    let listed = images.server.command()?.arg("damage").output()?;
    let said = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(
        !listed.status.success() && said.contains(&format!("{bucket}/hurt")),
        "{said}"
    );
    let job = tokio::time::timeout(PATIENCE, events)
        .await
        .context("no event tells of it")???;
    let error = job["error"].as_str().unwrap_or_default();
    ensure!(
        error.contains(&format!("{bucket}/hurt")),
        "the job does not name the object: {job}"
    );
    await_metric(&images.server, "a count of damage", |counted| {
        counted.value("lithos_damaged_blocks_total") > 0.5
    })
    .await?;

    run_failing(images.server.command()?.args(["scrub", "--hurry", "--wait"]))?;
    let jobs = images.admin(Request::new("GET", "/api/v1/jobs")).await?;
    let told = jobs["jobs"].as_array().into_iter().flatten().any(|job| {
        let error = job["error"].as_str().unwrap_or_default();
        job["kind"] == "scrub"
            && error.contains("1 of 2 blobs are damaged")
            && error.contains(&format!("{bucket}/hurt"))
    });
    ensure!(told, "{jobs:#}");
    forget(images).await
}

/// Deletes what is hurt: then nothing is.
async fn forget(mut images: Images) -> Result<()> {
    let bucket = images.bench.bucket.clone();
    // It stays known over a restart.
    images.server.stop()?;
    images.run()?;
    await_damage(&images, |damage| damage.len() == 1).await?;
    for key in ["hurt", "copy"] {
        images
            .bench
            .client
            .delete_object()
            .bucket(&bucket)
            .key(key)
            .send()
            .await?;
    }
    await_damage(&images, <[_]>::is_empty).await?;
    run(images.server.command()?.arg("damage"))?;
    run(images.server.command()?.args(["scrub", "--hurry", "--wait"]))?;
    ensure!(images.bench.get("whole").await? == text(WHOLE_LEN));
    images.server.stop()?;
    let report = fsck(&images.server.data())?;
    ensure!(report["clean"] == true, "{report:#}");
    Ok(())
}

/// Puts the objects `hurt`, its copy and `whole`, and hurts the blob of the first. The server is stopped then: what was read
/// just before would be trusted.
async fn spoil(images: &mut Images, hurt: Hurt) -> Result<()> {
    if hurt == Hurt::PackedBit {
        compress(&images.bench, "zstd").await?;
    }
    images.bench.put("hurt", &text(LEN)).await?;
    images.bench.put("whole", &text(WHOLE_LEN)).await?;
    let copy = images
        .bench
        .client
        .copy_object()
        .bucket(&images.bench.bucket)
        .key("copy");
    copy.copy_source(format!("{}/hurt", images.bench.bucket)).send().await?;
    if hurt == Hurt::PackedBit {
        let begun = Instant::now();
        while fs::metadata(largest_blob(&images.server)?)?.len() > LEN as u64 / 2 {
            ensure!(begun.elapsed() < PATIENCE, "the blob was not compressed");
            tokio::time::sleep(POLL).await;
        }
    }
    images.server.stop()?;
    let blob = largest_blob(&images.server)?;
    match hurt {
        Hurt::Missing => fs::remove_file(blob)?,
        Hurt::Bit | Hurt::PackedBit => flip(&blob, fs::metadata(&blob)?.len() / 2)?,
    }
    Ok(())
}

/// Reads what is hurt, and what is not.
async fn read(images: &Images, hurt: Hurt) -> Result<()> {
    let (truth, path) = (text(LEN), object_path(&images.bench.bucket, "hurt"));
    let got = get_as_it_comes(&images.bench.target, path.clone()).await?;
    if got.status == 200 {
        ensure!(
            got.declared == LEN as u64 && got.body.len() < LEN,
            "all of it came: {} bytes",
            got.body.len()
        );
        ensure!(truth.starts_with(&got.body), "wrong bytes were served");
    } else {
        ensure!(got.status == 500 && hurt == Hurt::Missing, "{got:?}");
    }
    if hurt == Hurt::Missing {
        return Ok(());
    }
    println!("{} of {LEN} bytes came before it broke off", got.body.len());
    for range in [0..EDGE, LEN - EDGE..LEN] {
        let ranged =
            Request::new("GET", path.clone()).header("range", format!("bytes={}-{}", range.start, range.end - 1));
        let ranged = ranged.signed(&images.bench.target)?.send(&images.bench.target).await?;
        ranged.expect_status(206)?;
        ensure!(
            Some(&ranged.body[..]) == truth.get(range.clone()),
            "{range:?} is another"
        );
    }
    ensure!(images.bench.get("whole").await? == text(WHOLE_LEN));
    Ok(())
}

/// Waits until the list of damage is as it should be.
async fn await_damage(images: &Images, is_so: impl Fn(&[serde_json::Value]) -> bool) -> Result<Vec<serde_json::Value>> {
    let begun = Instant::now();
    loop {
        let damage = images.admin(Request::new("GET", "/api/v1/damage")).await?;
        let damage = damage.as_array().context("no list")?.clone();
        if is_so(&damage) {
            return Ok(damage);
        }
        ensure!(begun.elapsed() < PATIENCE, "the list of damage stays {damage:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until somebody follows the events: what happened before they are told as unfinished jobs or not at all.
async fn await_stream(images: &Images) -> Result<()> {
    await_metric(&images.server, "a listener", |counted| {
        counted.value("lithos_connections{listener=\"management\"}") > 1.5
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Follows the events of jobs until a scrub has failed; that job.
async fn events_until_failure(target: Target, bucket: String) -> Result<serde_json::Value> {
    let request = Request::new("GET", "/api/v1/jobs/events").signed(&target)?;
    let mut stream = TcpStream::connect(target.authority()?).await?;
    stream.write_all(request.head(&target)?.as_bytes()).await?;
    let mut told = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut told).await? > 0, "the events of {bucket} end");
        for line in String::from_utf8_lossy(&told).lines() {
            let job = line
                .strip_prefix("data:")
                .and_then(|data| serde_json::from_str(data.trim()).ok());
            let job: serde_json::Value = job.unwrap_or_default();
            if job["kind"] == "scrub" && job["state"] == "failed" {
                return Ok(job);
            }
        }
        if told.len() > 1 << 20 {
            bail!("no scrub of {bucket} failed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_what_nobody_reads() -> Result<()> {
    let mut images = Images::start().await?;
    spoil(&mut images, Hurt::Bit).await?;
    images.run()?;
    let scrub =
        |server: &Server| Ok::<_, anyhow::Error>(server.command()?.args(["scrub", "--hurry", "--wait"]).output()?);
    let found = scrub(&images.server)?;
    ensure!(!found.status.success(), "the scrub found nothing");
    let damage = await_damage(&images, |damage| damage.len() == 1).await?;
    ensure!(damage[0]["offsets"] == serde_json::json!([LEN / 2]), "{damage:?}");
    // The right bytes, brought back under the same name, are found whole.
    images.server.stop()?;
    let blob = largest_blob(&images.server)?;
    flip(&blob, fs::metadata(&blob)?.len() / 2)?;
    images.run()?;
    ensure!(scrub(&images.server)?.status.success(), "the blob is whole again");
    await_damage(&images, <[_]>::is_empty).await?;
    ensure!(images.bench.get("hurt").await? == text(LEN));
    Ok(())
}
