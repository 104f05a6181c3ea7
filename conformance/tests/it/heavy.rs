//! What has the machine to itself, after all other tests: memory, large images, time.
//!
//! `LITHOS_TEST_FULL=1` takes the sizes of the promises (1 GiB objects, a 2 GiB image) instead of smaller ones with the
//! same bounds.

use std::time::Instant;

use anyhow::{Result, ensure};
use lithos_conformance::{
    pattern::{Dice, Pattern, SparseImage},
    tool::{aws, qemu_img_check, qemu_img_compare, run, s3cmd},
    wire::{object_path, stream},
};

use crate::images::{Images, ensure_same};

const MIB: u64 = 1 << 20;
/// What the server may use, whatever clients do.
const MEMORY_MAX: u64 = 256 * MIB;

fn is_full() -> bool {
    std::env::var_os("LITHOS_TEST_FULL").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_uploads_and_four_downloads_fit_in_256_mib() -> Result<()> {
    let len = if is_full() { 1024 * MIB } else { 128 * MIB };
    let images = Images::start().await?;
    let (target, bucket) = (images.bench.target.clone(), images.bench.bucket.clone());
    let put = |n: u64| {
        let (target, path) = (target.clone(), object_path(&bucket, &n.to_string()));
        async move { stream::put(&target, &path, len, move |range| Pattern(n).bytes(range)).await }
    };
    let get = |n: u64| {
        let (target, path) = (target.clone(), object_path(&bucket, &n.to_string()));
        async move {
            let take = move |offset: u64, bytes: &[u8]| {
                let expected = Pattern(n).bytes(offset..offset + bytes.len() as u64);
                ensure!(bytes == expected, "object {n} differs behind {offset}");
                Ok(())
            };
            ensure!(
                stream::get(&target, &path, take).await? == len,
                "object {n} is too short"
            );
            Ok(())
        }
    };
    for n in 0..4 {
        put(n).await?;
    }
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..4 {
        clients.spawn(get(n));
        clients.spawn(put(n + 4));
    }
    let mut anonymous = 0;
    while !clients.is_empty() {
        tokio::select! {
            Some(ended) = clients.join_next() => ended??,
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        anonymous = anonymous.max(images.server.memory("RssAnon")?);
    }
    let peak = images.server.memory("VmHWM")?;
    println!(
        "4 uploads and 4 downloads of {} MiB in {:.1} s: peak {} MiB resident, {} MiB of it anonymous",
        len / MIB,
        begun.elapsed().as_secs_f64(),
        peak / MIB,
        anonymous / MIB
    );
    ensure!(
        peak < MEMORY_MAX,
        "{} MiB are over {} MiB",
        peak / MIB,
        MEMORY_MAX / MIB
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_image_by_aws_and_s3cmd_comes_back_whole() -> Result<()> {
    let size = if is_full() { 2048 * MIB } else { 512 * MIB };
    let images = Images::start().await?;
    let path = images.sparse_image("disk.img", size)?;
    let image = SparseImage {
        size,
        pattern: Pattern(size),
    };
    let bucket = images.bench.bucket.clone();
    let url = |key: &str| format!("s3://{bucket}/{key}");

    let mut stored = 0;
    let timed = |what: &str, begun: Instant| println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    for client in ["aws", "s3cmd"] {
        let key = format!("{client}.img");
        let begun = Instant::now();
        match client {
            "aws" => run(aws(images.server.target(), images.server.scratch())
                .args(["s3", "cp", "--no-progress"])
                .arg(&path)
                .arg(url(&key)))?,
            _ => run(s3cmd(images.server.target(), images.server.scratch())?
                .arg("put")
                .arg(&path)
                .arg(url(&key)))?,
        };
        timed(&format!("{client} uploads {} MiB", size / MIB), begun);
        let now = images.server.stored_bytes()?;
        let ratio = percent(now - stored, image.content_len());
        println!("stored: {} MiB, {ratio} % of what is not zero", (now - stored) / MIB);
        ensure!(ratio <= 103, "{ratio} % of the content is stored");
        stored = now;
        ranges(&images, &key, image).await?;
        let back = images.path("back.img");
        let begun = Instant::now();
        match client {
            "aws" => run(aws(images.server.target(), images.server.scratch())
                .args(["s3", "cp", "--no-progress"])
                .arg(url(&key))
                .arg(&back))?,
            _ => run(s3cmd(images.server.target(), images.server.scratch())?
                .args(["get", "--force"])
                .arg(url(&key))
                .arg(&back))?,
        };
        timed(&format!("{client} downloads it"), begun);
        ensure_same(&path, &back)?;
    }
    std::fs::remove_file(images.path("back.img"))?;

    images.tag("aws.img", &[("convert-to", "qcow2")]).await?;
    let took = images.await_object("aws.qcow2").await?;
    let grown = images.server.stored_bytes()? - stored;
    println!(
        "qcow2 visible {} ms after the tag; {grown} bytes more stored",
        took.as_millis()
    );
    ensure!(took.as_secs() < 2, "the qcow2 took {took:?}");
    ensure!(grown * 100 < stored / 2, "the qcow2 took {grown} bytes");
    images.await_done("aws.img").await?;
    let qcow2 = images.get_file("aws.qcow2", "disk.qcow2").await?;
    qemu_img_check(&qcow2, "qcow2")?;
    qemu_img_compare((&path, "raw"), (&qcow2, "qcow2"))
}

fn percent(part: u64, whole: u64) -> u64 {
    (part * 100).div_ceil(whole)
}

/// Random ranges, by the SDK.
async fn ranges(images: &Images, key: &str, image: SparseImage) -> Result<()> {
    let mut dice = Dice(42);
    for _ in 0..50 {
        let start = dice.below(image.size);
        let end = (start + 1 + dice.below(3 * MIB)).min(image.size);
        let get = images.bench.client.get_object().bucket(&images.bench.bucket).key(key);
        let got = get
            .range(format!("bytes={start}-{}", end - 1))
            .send()
            .await?
            .body
            .collect()
            .await?
            .to_vec();
        ensure!(got == image.bytes(start..end), "{key} differs in {start}..{end}");
    }
    Ok(())
}
