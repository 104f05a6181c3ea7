//! What images are said to be: warnings, the bucket tag `image-policy`, and what the admin API says and does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{Tag, Tagging};
use lithos_conformance::{
    target::{POLL, ServerOptions},
    tool::{qemu_img_check, qemu_img_compare, qemu_img_convert, run, tool},
    wire::Request,
};
use serde_json::json;

use crate::images::Images;

const MIB: u64 = 1 << 20;

impl Images {
    /// Tags the bucket.
    async fn tag_bucket(&self, key: &str, value: &str) -> Result<(), aws_sdk_s3::Error> {
        let tag = Tag::builder().key(key).value(value).build()?;
        let client = &self.bench.client;
        let put = client.put_bucket_tagging().bucket(&self.bench.bucket);
        put.tagging(Tagging::builder().tag_set(tag).build()?).send().await?;
        Ok(())
    }
}

#[tokio::test]
async fn what_is_not_what_it_is_called_is_warned_of_or_refused() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 2 * MIB)?;
    let qcow2 = images.path("disk.qcow2");
    qemu_img_convert(&raw, &qcow2, &["-f", "raw", "-O", "qcow2"])?;
    images.put_file(&qcow2, "honest.qcow2").await?;
    images.put_file(&qcow2, "liar.vmdk").await?;
    images.put_file(&qcow2, "anything.img").await?;
    let says = "the name says \"vmdk\", the content is qcow2";
    for (key, warning) in [
        ("honest.qcow2", None),
        ("liar.vmdk", Some(says)),
        ("anything.img", None),
    ] {
        let found = images.metadata(key, "image-warning").await?;
        ensure!(found.as_deref() == warning, "{key}: {found:?}");
    }
    // A copy is looked at by its own name.
    for (from, to, warning) in [
        ("liar.vmdk", "truth.qcow2", None),
        ("honest.qcow2", "lie.vmdk", Some(says)),
    ] {
        let copy = images.bench.client.copy_object().bucket(&images.bench.bucket);
        let source = format!("{}/{from}", images.bench.bucket);
        copy.key(to).copy_source(source).send().await?;
        let found = images.metadata(to, "image-warning").await?;
        ensure!(found.as_deref() == warning, "{to}: {found:?}");
    }

    images.tag("liar.vmdk", &[("convert-to", "raw")]).await?;
    images.await_done("liar.vmdk").await?;

    let refused = images.tag_bucket("image-policy", "severe").await;
    ensure!(refused.is_err(), "a policy that there is not was taken");
    images.tag_bucket("image-policy", "strict").await?;
    images.put_file(&qcow2, "again.vmdk").await?;
    images.tag("again.vmdk", &[("convert-to", "raw")]).await?;
    let error = images.await_failure("again.vmdk").await?;
    ensure!(error.contains(says) && error.contains("image-policy=strict"), "{error}");
    // Nor is it inside of an envelope.
    let inside = images.path("inside.vmdk");
    std::fs::copy(&qcow2, &inside)?;
    run(tool("gzip").arg(&inside))?;
    images
        .put_file(&images.path("inside.vmdk.gz"), "inside.vmdk.gz")
        .await?;
    images.tag("inside.vmdk.gz", &[("convert-to", "raw")]).await?;
    let error = images.await_failure("inside.vmdk.gz").await?;
    ensure!(error.contains(says), "{error}");
    // What is what it is called is converted, and so is what is not called anything.
    for key in ["honest.qcow2", "anything.img"] {
        images.tag(key, &[("convert-to", "vhdx")]).await?;
        images.await_done(key).await?;
    }
    Ok(())
}

#[tokio::test]
async fn content_types_count_too() -> Result<()> {
    let images = Images::start().await?;
    images.tag_bucket("image-policy", "strict").await?;
    let raw = images.sparse_image("disk.img", 2 * MIB)?;
    let content = tokio::fs::read(&raw).await?;
    for (key, content_type, warning) in [
        (
            "a",
            "application/x-qemu-disk",
            Some("the media type says \"application/x-qemu-disk\", the content is raw"),
        ),
        ("b", "application/x-raw-disk-image", None),
        ("c", "application/octet-stream", None),
    ] {
        let put = images.bench.client.put_object().bucket(&images.bench.bucket).key(key);
        let put = put.content_type(content_type).tagging("convert-to=qcow2");
        put.body(content.clone().into()).send().await?;
        let found = images.metadata(key, "image-warning").await?;
        ensure!(found.as_deref() == warning, "{content_type}: {found:?}");
        if warning.is_some() {
            let error = images.await_failure(key).await?;
            ensure!(error.contains("strict"), "{error}");
        } else {
            images.await_done(key).await?;
        }
    }
    // What looks like nothing and is said to be a page is not looked at, until somebody wants a disk made of it.
    let put = images.bench.client.put_object().bucket(&images.bench.bucket).key("d");
    let put = put.content_type("text/html").tagging("convert-to=qcow2");
    put.body(content.into()).send().await?;
    let error = images.await_failure("d").await?;
    ensure!(error.contains("text/html") && error.contains("strict"), "{error}");
    Ok(())
}

#[tokio::test]
async fn what_a_conversion_leaves_behind_is_warned_of() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 2 * MIB)?;
    let qcow2 = images.path("disk.qcow2");
    qemu_img_convert(&raw, &qcow2, &["-f", "raw", "-O", "qcow2"])?;
    run(tool("qemu-img").args(["snapshot", "-c", "before"]).arg(&qcow2))?;
    images.put_file(&qcow2, "disk.qcow2").await?;
    let warning = images.metadata("disk.qcow2", "image-warning").await?;
    let warning = warning.context("no warning")?;
    ensure!(warning.contains("1 internal snapshots"), "{warning}");
    images.tag("disk.qcow2", &[("convert-to", "raw")]).await?;
    images.await_done("disk.qcow2").await
}

#[tokio::test]
async fn the_admin_api_inspects_and_converts() -> Result<()> {
    let images = Images::start().await?;
    let bucket = images.bench.bucket.clone();
    let raw = images.sparse_image("disk.img", 2 * MIB)?;
    images.put_file(&raw, "a b/disk.img").await?;
    let inspect = |key: &str| {
        let request = Request::new("GET", "/api/v1/inspections");
        request.query("bucket", &bucket).query("key", key)
    };
    let found = images.admin(inspect("a b/disk.img")).await?;
    ensure!(
        found["format"] == "raw" && found["virtual_size"] == 2 * MIB && found["refusal"].is_null(),
        "{found}"
    );
    ensure!(images.admin(inspect("nothing")).await.is_err(), "nothing was inspected");

    let convert = |targets: &[&str]| {
        let body = json!({ "bucket": bucket, "key": "a b/disk.img", "targets": targets }).to_string();
        Request::new("POST", "/api/v1/conversions").body(body.into_bytes())
    };
    for wrong in [&["qcow3"][..], &[]] {
        ensure!(images.admin(convert(wrong)).await.is_err(), "{wrong:?} was taken");
    }
    let accepted = images.admin(convert(&["qcow2:zstd", "profile=azure"])).await?;
    let jobs = accepted["jobs"].as_array().context("no jobs")?;
    ensure!(jobs.len() == 2, "{accepted}");
    images.await_done("a b/disk.img").await?;
    let qcow2 = images.get_file("a b/disk.zstd.qcow2", "disk.qcow2").await?;
    qemu_img_check(&qcow2, "qcow2")?;
    qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))?;
    for job in jobs {
        let job = images.job(job.as_str().context("an id")?).await?;
        ensure!(job["state"] == "done", "{job}");
    }
    Ok(())
}

#[tokio::test]
async fn images_over_a_bound_of_the_server_are_refused() -> Result<()> {
    let bounds = ["--image-virtual-size-max", "1MiB", "--image-expanded-max", "512KiB"];
    let images = Images::start_with(ServerOptions {
        arguments: bounds.map(str::to_owned).into(),
        ..ServerOptions::default()
    })
    .await?;
    let raw = images.sparse_image("disk.img", 2 * MIB)?;
    images.put_file(&raw, "disk.img").await?;
    images.tag("disk.img", &[("convert-to", "qcow2")]).await?;
    let error = images.await_failure("disk.img").await?;
    ensure!(error.contains("2097152") && error.contains("1048576"), "{error}");
    let inspect = Request::new("GET", "/api/v1/inspections").query("bucket", &images.bench.bucket);
    let found = images.admin(inspect.query("key", "disk.img")).await?;
    let refusal = found["refusal"]["reason"].as_str().unwrap_or_default();
    ensure!(refusal.contains("image-virtual-size-max"), "{found}");
    run(tool("gzip").arg(&raw))?;
    images.put_file(&images.path("disk.img.gz"), "packed.img.gz").await?;
    images.tag("packed.img.gz", &[("convert-to", "qcow2")]).await?;
    let error = images.await_failure("packed.img.gz").await?;
    ensure!(error.contains("524288"), "{error}");
    Ok(())
}

/// An encoding that is cancelled in its midst leaves nothing, and can be begun again.
#[tokio::test]
async fn an_encoding_that_is_cancelled_leaves_nothing() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.noise_image("disk.img", 256 * MIB)?;
    images.put_file(&raw, "disk.img").await?;
    let stored = images.server.stored_bytes()?;
    images.tag("disk.img", &[("convert-to", "qcow2:zlib-4k")]).await?;
    let job = images.await_stage("disk.img", "encoding").await?;
    images
        .admin(Request::new("POST", format!("/api/v1/jobs/{job}/cancel")))
        .await?;
    let jobs = images.await_jobs("disk.img").await?;
    ensure!(jobs.iter().all(|(_, state)| state == "cancelled"), "{jobs:?}");
    images.bench.expect_absent("disk.zlib-4k.qcow2").await?;
    let begun = Instant::now();
    while images.server.stored_bytes()? > stored {
        ensure!(begun.elapsed() < Duration::from_secs(20), "blobs are left over");
        tokio::time::sleep(POLL).await;
    }
    images
        .admin(Request::new("POST", format!("/api/v1/jobs/{job}/retry")))
        .await?;
    images.await_done("disk.img").await?;
    let qcow2 = images.get_file("disk.zlib-4k.qcow2", "disk.qcow2").await?;
    qemu_img_check(&qcow2, "qcow2")?;
    qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))
}

/// A conversion that takes long writes nothing over what was made of a newer version, nor beside what is gone.
#[tokio::test]
async fn a_conversion_of_what_was_replaced_or_deleted_writes_nothing() -> Result<()> {
    let images = Images::start().await?;
    let large = images.noise_image("large.img", 256 * MIB)?;
    let small = images.sparse_image("small.img", 4 * MIB)?;
    images.put_file(&large, "disk.img").await?;
    images.tag("disk.img", &[("convert-to", "qcow2:zlib-4k")]).await?;
    let overtaken = images.await_stage("disk.img", "encoding").await?;
    images.put_file(&small, "disk.img").await?;
    images.tag("disk.img", &[("convert-to", "qcow2:zlib-4k")]).await?;
    images.await_done("disk.img").await?;
    let result = await_result(&images, &overtaken).await?;
    ensure!(result.contains("disk.img was replaced"), "{result}");
    let qcow2 = images.get_file("disk.zlib-4k.qcow2", "disk.qcow2").await?;
    qemu_img_compare((&small, "raw"), (&qcow2, "qcow2"))?;
    let head = images.head("disk.img").await?;
    let made_of = images.metadata("disk.zlib-4k.qcow2", "image-source-etag").await?;
    ensure!(
        head.e_tag.map(|etag| etag.replace('"', "")) == made_of,
        "the derivative does not say of what version it is: {made_of:?}"
    );

    images.put_file(&large, "gone.img").await?;
    images.tag("gone.img", &[("convert-to", "qcow2:zlib-4k")]).await?;
    let job = images.await_stage("gone.img", "encoding").await?;
    let delete = images.bench.client.delete_object().bucket(&images.bench.bucket);
    delete.key("gone.img").send().await?;
    let result = await_result(&images, &job).await?;
    ensure!(result.contains("gone.img was replaced or deleted"), "{result}");
    images.bench.expect_absent("gone.zlib-4k.qcow2").await
}

/// What a job that is done says of itself.
async fn await_result(images: &Images, id: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let job = images.job(id).await?;
        if job["state"] == "done" {
            return Ok(job["result"].as_str().unwrap_or_default().to_owned());
        }
        ensure!(
            begun.elapsed() < Duration::from_mins(1),
            "a job that is not done: {job}"
        );
        tokio::time::sleep(POLL).await;
    }
}
