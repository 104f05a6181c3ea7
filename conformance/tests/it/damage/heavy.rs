//! Compression at rest of a real file system: what it saves, and that nobody sees it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    tool::{run, tool},
    wire::Request,
};

use super::compress;
use crate::images::{Images, ensure_same};

/// Bytes of the file system.
const IMAGE_LEN: u64 = 256 << 20;
/// Files of each of these folders, up to so many bytes: programs, libraries and data, as they are on a root disk.
const SOURCES: [(&str, u64); 4] = [
    ("/usr/bin", 60 << 20),
    ("/usr/lib", 60 << 20),
    ("/usr/share", 40 << 20),
    ("/usr/include", 10 << 20),
];
/// Larger ones would have a source to themselves.
const FILE_LEN_MAX: u64 = 8 << 20;
/// What is not stored if it is zero is smaller than this; the least block of a file system.
const PAGE: usize = 4096;
/// The most that may be left of what is not zero.
const RATIO_MAX: f64 = 0.45;
/// At the pace of background work it takes seconds; on a loaded machine minutes.
const PATIENCE: Duration = Duration::from_mins(4);
/// How long nothing gets smaller before the pass is taken to be over.
const REST: Duration = Duration::from_secs(5);

/// Copies files below `from` to `to`, until they have `left` bytes.
fn copy_some(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(from)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        let metadata = fs::symlink_metadata(&path)?;
        let target = to.join(path.file_name().context("no name")?);
        if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy_some(&path, &target, left)?;
        } else if metadata.is_file() && metadata.len() <= FILE_LEN_MAX.min(*left) {
            fs::copy(&path, &target)?;
            *left -= metadata.len();
        }
        if *left < PAGE as u64 {
            break;
        }
    }
    Ok(())
}

/// Makes a file system with a part of `/usr`.
fn make_image(images: &Images) -> Result<PathBuf> {
    let (content, image) = (images.path("content"), images.path("disk.img"));
    fs::create_dir(&content)?;
    for (source, mut left) in SOURCES {
        let source = Path::new(source);
        let target = content.join(source.file_name().context("no name")?);
        fs::create_dir(&target)?;
        copy_some(source, &target, &mut left)?;
    }
    File::create(&image)?.set_len(IMAGE_LEN)?;
    run(tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(&content)
        .arg(&image))?;
    fs::remove_dir_all(&content)?;
    Ok(image)
}

/// Bytes in pages that are not all zero.
fn content_len(image: &Path) -> Result<u64> {
    let (file, mut page, mut len) = (File::open(image)?, [0; PAGE], 0);
    for offset in (0..IMAGE_LEN).step_by(PAGE) {
        file.read_exact_at(&mut page, offset)?;
        len += if page == [0; PAGE] { 0 } else { PAGE as u64 };
    }
    Ok(len)
}

async fn ensure_ranges(images: &Images, image: &Path) -> Result<()> {
    let file = File::open(image)?;
    for (start, len) in [
        (0, 1),
        (131_000, 200_000),
        (IMAGE_LEN / 3, 1 << 20),
        (IMAGE_LEN - 10, 10),
    ] {
        let mut truth = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut truth, start)?;
        let get = images
            .bench
            .object("GET", "disk.img")
            .header("range", format!("bytes={start}-{}", start + len - 1));
        let got = get.signed(&images.bench.target)?.send(&images.bench.target).await?;
        got.expect_status(206)?;
        ensure!(got.body == truth, "{len} bytes from {start} are others");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_disk_takes_less_and_reads_the_same() -> Result<()> {
    let mut images = Images::start().await?;
    for wrong in ["lz4", "zstd:0", "zstd:20", ""] {
        let bench = &images.bench;
        let tags =
            format!("<Tagging><TagSet><Tag><Key>compression</Key><Value>{wrong}</Value></Tag></TagSet></Tagging>");
        let put: Request = bench.bucket("PUT").query("tagging", "").body(tags);
        put.signed(&bench.target)?
            .send(&bench.target)
            .await?
            .expect_error(400, "InvalidTag")?;
    }
    compress(&images.bench, "none").await?;
    compress(&images.bench, "zstd").await?;
    let image = make_image(&images)?;
    let content = content_len(&image)?;
    images.put_file(&image, "disk.img").await?;
    let plain = images.server.stored_bytes()?;

    let begun = Instant::now();
    let (mut stored, mut since) = (plain, Instant::now());
    while since.elapsed() < REST || stored == plain {
        ensure!(begun.elapsed() < PATIENCE, "it is not compressed: {stored} bytes");
        let now = images.server.stored_bytes()?;
        if now != stored {
            (stored, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio of megabytes")]
    let ratio = stored as f64 / content as f64;
    println!(
        "{} MiB of ext4, {} MiB of it not zero: {} MiB stored at first, {} MiB compressed, {ratio:.3} of what is not zero",
        IMAGE_LEN >> 20,
        content >> 20,
        plain >> 20,
        stored >> 20
    );
    ensure_same(&image, &images.get_file("disk.img", "got").await?)?;
    ensure_ranges(&images, &image).await?;
    images.server.stop()?;
    images.run()?;
    ensure_same(&image, &images.get_file("disk.img", "got").await?)?;
    ensure_ranges(&images, &image).await?;
    ensure!(ratio <= RATIO_MAX, "{ratio:.3} of what is not zero is left");
    Ok(())
}
