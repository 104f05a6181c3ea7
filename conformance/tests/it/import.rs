//! Import by URL: whole and verified, or not at all; and never from where a stranger must not look.

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    pattern::Pattern,
    target::ServerOptions,
    tool::{run, run_failing},
    wire::{Request, sha256_hex},
};

use crate::{
    images::{Images, PATIENCE},
    origin::Origin,
};

const LEN: u64 = (9 << 20) + 77;

/// A server that may fetch from 127.0.0.1, and from no other address of its own machine.
async fn start() -> Result<(Images, Origin)> {
    let options = ServerOptions {
        import_allow: vec!["127.0.0.1/32".to_owned()],
        ..ServerOptions::default()
    };
    Ok((
        Images::start_with(options).await?,
        Origin::serve(Pattern(1).bytes(0..LEN)).await?,
    ))
}

/// Asks for an import by an empty PutObject; gives the id of the job.
async fn import(images: &Images, key: &str, url: &str, checksum: Option<&str>) -> Result<String> {
    let mut put = images.bench.object("PUT", key).header("x-amz-meta-import-url", url);
    if let Some(checksum) = checksum {
        put = put.header("x-amz-meta-import-checksum", checksum);
    }
    let answer = put.signed(&images.bench.target)?.send(&images.bench.target).await?;
    answer.expect_status(200)?;
    answer
        .header("x-lithos-job")
        .map(str::to_owned)
        .context("the answer does not name the job")
}

/// Waits until a job has ended.
async fn ended(images: &Images, id: &str) -> Result<serde_json::Value> {
    let begun = std::time::Instant::now();
    loop {
        let job = images.job(id).await?;
        if matches!(job["state"].as_str(), Some("done" | "failed" | "cancelled")) {
            return Ok(job);
        }
        ensure!(begun.elapsed() < PATIENCE, "the import does not end: {job}");
        tokio::time::sleep(lithos_conformance::target::POLL).await;
    }
}

async fn expect_failure(images: &Images, key: &str, url: &str, checksum: Option<&str>, words: &[&str]) -> Result<()> {
    let id = import(images, key, url, checksum).await?;
    let job = ended(images, &id).await?;
    let error = job["error"].as_str().unwrap_or_default().to_owned();
    println!("{url}: {error}");
    ensure!(job["state"] == "failed", "{url}: {job}");
    ensure!(
        words.iter().any(|word| error.to_lowercase().contains(word)),
        "{url}: {error:?} says nothing of {words:?}"
    );
    images.bench.expect_absent(key).await
}

#[tokio::test]
async fn a_url_becomes_an_object() -> Result<()> {
    let (images, origin) = start().await?;
    let content = Pattern(1).bytes(0..LEN);
    let checksum = format!("sha256:{}", sha256_hex(&content));
    for (key, path) in [
        ("plain", "/image".to_owned()),
        ("redirected", format!("/to?{}", origin.url("/image"))),
    ] {
        let id = import(&images, key, &origin.url(&path), Some(&checksum)).await?;
        let job = ended(&images, &id).await?;
        ensure!(job["state"] == "done" && job["kind"] == "import", "{job}");
        ensure!(job["done"] == LEN && job["total"] == LEN, "{job}");
        ensure!(images.bench.get(key).await? == content, "{key} is another content");
    }
    let head = images.head("plain").await?;
    ensure!(
        head.content_type() == Some("application/x-image"),
        "{:?}",
        head.content_type()
    );
    ensure!(
        head.metadata()
            .is_none_or(|metadata| metadata.keys().all(|name| !name.starts_with("import"))),
        "{head:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_again() -> Result<()> {
    let (images, origin) = start().await?;
    let id = import(&images, "k", &origin.url("/flaky"), None).await?;
    let job = ended(&images, &id).await?;
    ensure!(job["state"] == "done", "{job}");
    ensure!(images.bench.get("k").await? == Pattern(1).bytes(0..LEN));
    ensure!(origin.requests() >= 3, "{} connections", origin.requests());
    Ok(())
}

#[tokio::test]
async fn addresses_of_ones_own_network_are_refused() -> Result<()> {
    let (images, origin) = start().await?;
    for url in [
        origin.url_at("127.0.0.2", "/image"),
        origin.url_at("localhost.localdomain.invalid", "/image"),
        origin.url_at("[::1]", "/image"),
        origin.url_at("[::ffff:127.0.0.2]", "/image"),
        origin.url_at("0.0.0.0", "/image"),
        origin.url_at("2130706434", "/image"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://192.168.0.1/".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
    ] {
        let resolves = !url.contains("invalid");
        // Where it is refused, it is at once; a name that does not resolve may be tried again.
        if resolves {
            expect_failure(
                &images,
                "direct",
                &url,
                None,
                &["not allowed", "refused", "loopback", "private", "address"],
            )
            .await?;
            let redirect = origin.url(&format!("/to?{url}"));
            expect_failure(
                &images,
                "redirected",
                &redirect,
                None,
                &["not allowed", "refused", "loopback", "private", "address"],
            )
            .await?;
        }
    }
    images.server.await_blob_files(|files| files.is_empty())
}

#[tokio::test]
async fn what_cannot_be_verified_is_not_kept() -> Result<()> {
    let (images, origin) = start().await?;
    let wrong = format!("sha256:{}", "0".repeat(64));
    expect_failure(
        &images,
        "k",
        &origin.url("/image"),
        Some(&wrong),
        &["sha256", "checksum"],
    )
    .await?;
    expect_failure(&images, "k", &origin.url("/missing"), None, &["404"]).await?;
    expect_failure(&images, "k", &origin.url("/loop"), None, &["redirect"]).await?;
    expect_failure(
        &images,
        "k",
        &origin.url("/to?file:///etc/passwd"),
        None,
        &["http", "file"],
    )
    .await?;
    images.server.await_blob_files(|files| files.is_empty())
}

#[tokio::test]
async fn wrong_requests_are_refused_at_once() -> Result<()> {
    let (images, origin) = start().await?;
    for (url, checksum) in [
        ("nonsense", None),
        ("file:///etc/passwd", None),
        ("ftp://example.com/x", None),
        ("http://", None),
        (origin.url("/image").as_str(), Some("nonsense")),
        (origin.url("/image").as_str(), Some("sha256:12")),
        (origin.url("/image").as_str(), Some("crc32:00000000")),
    ] {
        let mut put = images.bench.object("PUT", "k").header("x-amz-meta-import-url", url);
        if let Some(checksum) = checksum {
            put = put.header("x-amz-meta-import-checksum", checksum);
        }
        let answer = put.signed(&images.bench.target)?.send(&images.bench.target).await?;
        answer
            .expect_error(400, "InvalidArgument")
            .with_context(|| format!("{url} {checksum:?}"))?;
    }
    let put = images
        .bench
        .object("PUT", "k")
        .header("x-amz-meta-import-url", origin.url("/image"))
        .body("body");
    put.signed(&images.bench.target)?
        .send(&images.bench.target)
        .await?
        .expect_error(400, "InvalidRequest")?;
    let missing = Request::new("PUT", format!("/{}-missing/k", images.bench.bucket));
    let missing = missing
        .header("x-amz-meta-import-url", origin.url("/image"))
        .signed(&images.bench.target)?;
    missing
        .send(&images.bench.target)
        .await?
        .expect_error(404, "NoSuchBucket")?;
    ensure!(origin.requests() == 0, "it was fetched all the same");
    Ok(())
}

#[tokio::test]
async fn an_import_survives_a_kill() -> Result<()> {
    let (mut images, origin) = start().await?;
    let id = import(&images, "k", &origin.url("/flaky"), None).await?;
    images.server.kill()?;
    images.run()?;
    let job = ended(&images, &id).await?;
    ensure!(job["state"] == "done", "{job}");
    ensure!(images.bench.get("k").await? == Pattern(1).bytes(0..LEN));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_imports_and_waits() -> Result<()> {
    let (images, origin) = start().await?;
    let url = format!("s3://{}/by-command", images.bench.bucket);
    run(images
        .server
        .command()?
        .args(["import", &origin.url("/image"), &url, "--tag", "team=a", "--wait"]))?;
    ensure!(images.bench.get("by-command").await? == Pattern(1).bytes(0..LEN));
    let refused =
        run_failing(
            images
                .server
                .command()?
                .args(["import", &origin.url_at("127.0.0.2", "/image"), &url, "--wait"]),
        )?;
    ensure!(!refused.trim().is_empty(), "it does not say why");
    Ok(())
}
