//! Damage does not spread: no image is converted, and no replica is made, of bytes that are not what was stored.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aws_sdk_s3::types::ReplicationStatus;
use lithos_conformance::{
    target::{POLL, ServerOptions},
    tool::{qemu_img_convert, run},
};

use super::{flip, largest_blob, text};
use crate::images::Images;

const LEN: usize = 8 << 20;
/// A job that may be tried again waits up to half a minute in all.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_not_converted() -> Result<()> {
    let mut images = Images::start().await?;
    let (raw, qcow2) = (images.path("a.raw"), images.path("a.qcow2"));
    fs::write(&raw, text(LEN))?;
    qemu_img_convert(&raw, &qcow2, &["-f", "raw", "-O", "qcow2", "-c"])?;
    images.put_file(&qcow2, "a.qcow2").await?;
    images.server.stop()?;
    let blob = largest_blob(&images.server)?;
    flip(&blob, fs::metadata(&blob)?.len() / 2)?;
    images.run()?;
    images.tag("a.qcow2", &[("convert-to", "raw")]).await?;
    let error = images.await_failure("a.qcow2").await?;
    println!("{error}");
    ensure!(error.contains("damaged"), "{error}");
    images.bench.expect_absent("a.raw").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_not_replicated() -> Result<()> {
    let options = |zone: &str| ServerOptions {
        zones: vec![zone.to_owned()],
        ..ServerOptions::default()
    };
    let mut here = Images::start_with(options("az1")).await?;
    let there = Images::start_with(options("az2")).await?;
    let peer = there.server.target();
    let mut add = here.server.command()?;
    add.args([
        "server",
        "add",
        "az2",
        "--zone",
        "az2",
        "--management",
        there.server.management(),
    ]);
    add.args(["--transfer", &peer.endpoint, "--access-key", &peer.access_key]);
    run(add.args(["--secret-key", &peer.secret_key]))?;
    here.bench.put("hurt", &text(LEN)).await?;
    here.server.stop()?;
    let blob = largest_blob(&here.server)?;
    flip(&blob, fs::metadata(&blob)?.len() / 2)?;
    here.run()?;
    here.bench.put("whole", &text(100_000)).await?;
    for key in ["hurt", "whole"] {
        here.tag(key, &[("replicate-to", "az2")]).await?;
    }
    for (key, wanted) in [("whole", "COMPLETED"), ("hurt", "FAILED")] {
        let begun = Instant::now();
        loop {
            let head = here.head(key).await?;
            let found = head.replication_status().map_or("nowhere", ReplicationStatus::as_str);
            if found == wanted {
                break;
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{key} is {found}: {}",
                here.server.log_end()
            );
            tokio::time::sleep(POLL).await;
        }
    }
    let error = here.await_failure("hurt").await.unwrap_or_default();
    println!("{error}");
    let copy = |key: &'static str| {
        there
            .bench
            .client
            .get_object()
            .bucket(&here.bench.bucket)
            .key(key)
            .send()
    };
    ensure!(copy("hurt").await.is_err(), "the damaged object was replicated");
    let whole = copy("whole").await?.body.collect().await?.to_vec();
    ensure!(whole == text(100_000));
    ensure!(
        there.server.unfinished_files()?.is_empty(),
        "a part of the blob is left there"
    );
    Ok(())
}
