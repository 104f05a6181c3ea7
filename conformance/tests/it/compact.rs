//! A slice that keeps a whole image on the disk, until compaction frees the image.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    pattern::Pattern,
    target::{POLL, Server, ServerOptions},
    wire::element,
};

use crate::images::{Images, PATIENCE};

const LEN: u64 = 32 << 20;
const SLICE: std::ops::Range<u64> = 10_000_001..10_700_000;
/// The slice, and what the store needs beside the bytes.
const LEFT_MAX: u64 = 2 << 20;

/// Makes `slice` of a part of `whole`, by UploadPartCopy.
async fn copy_slice(images: &Images) -> Result<()> {
    let bench = &images.bench;
    let create = bench.object("POST", "slice").query("uploads", "");
    let created = create.signed(&bench.target)?.send(&bench.target).await?;
    let text = created.text();
    let upload = element(&text, "UploadId").context("no upload id")?;
    let copy = bench
        .object("PUT", "slice")
        .query("uploadId", upload)
        .query("partNumber", "1")
        .header("x-amz-copy-source", format!("/{}/whole", bench.bucket))
        .header(
            "x-amz-copy-source-range",
            format!("bytes={}-{}", SLICE.start, SLICE.end - 1),
        );
    let copied = copy.signed(&bench.target)?.send(&bench.target).await?;
    copied.expect_status(200)?;
    let text = copied.text();
    let etag = element(&text, "ETag").context("no ETag")?;
    let body = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let complete = bench.object("POST", "slice").query("uploadId", upload).body(body);
    let completed = complete.signed(&bench.target)?.send(&bench.target).await?;
    completed.expect_status(200)
}

async fn await_at_most(server: &Server, most: u64) -> Result<u64> {
    let begun = Instant::now();
    loop {
        let stored = server.stored_bytes()?;
        if stored <= most {
            return Ok(stored);
        }
        ensure!(begun.elapsed() < PATIENCE, "{stored} bytes are still stored");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_does_not_keep_the_whole() -> Result<()> {
    let mut images = Images::start_with(ServerOptions {
        arguments: ["--compact-after", "1s"].map(str::to_owned).into(),
        ..ServerOptions::default()
    })
    .await?;
    let whole = Pattern(3).bytes(0..LEN);
    let slice = &whole[usize::try_from(SLICE.start)?..usize::try_from(SLICE.end)?];
    images.bench.put("whole", &whole).await?;
    copy_slice(&images).await?;
    let before = images.server.stored_bytes()?;
    ensure!(before < LEN + LEFT_MAX, "the copy took bytes: {before} are stored");
    images
        .bench
        .client
        .delete_object()
        .bucket(&images.bench.bucket)
        .key("whole")
        .send()
        .await?;
    let after = await_at_most(&images.server, LEFT_MAX).await?;
    println!("{before} bytes stored with the image, {after} once only the slice is left");
    ensure!(images.bench.get("slice").await? == slice, "the slice is another");
    images.server.kill()?;
    images.run()?;
    ensure!(
        images.bench.get("slice").await? == slice,
        "the slice is another after a kill"
    );
    Ok(())
}
