//! Formats made by tags, judged by qemu-img.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use lithos_conformance::{
    pattern::Pattern,
    sdk::expect_code,
    tool::{qemu_img_check, qemu_img_compare, qemu_img_convert, run, tool},
};

use crate::images::{Images, ensure_same};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn raw_becomes_qcow2_and_shares_its_bytes() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 256 * MIB)?;
    images.put_file(&raw, "vm/disk.img").await?;
    let stored = images.server.stored_bytes()?;
    images.tag("vm/disk.img", &[("convert-to", "qcow2")]).await?;
    let took = images.await_object("vm/disk.qcow2").await?;
    let grown = images.server.stored_bytes()? - stored;
    println!("256 MiB raw: qcow2 visible after {took:?}; {stored} bytes stored before, {grown} more after");
    ensure!(took.as_secs() < 2, "the qcow2 took {took:?}");
    ensure!(grown * 100 < stored, "the qcow2 took {grown} bytes more");
    images.await_done("vm/disk.img").await?;
    let qcow2 = images.get_file("vm/disk.qcow2", "disk.qcow2").await?;
    qemu_img_check(&qcow2, "qcow2")?;
    qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))?;
    let derived = images.head("vm/disk.qcow2").await?;
    let metadata = derived.metadata().context("no metadata")?;
    ensure!(
        metadata.get("image-format").map(String::as_str) == Some("qcow2"),
        "{metadata:?}"
    );
    ensure!(
        metadata.get("image-virtual-size").map(String::as_str) == Some("268435456"),
        "{metadata:?}"
    );
    ensure!(
        metadata.get("image-derived-from").map(String::as_str) == Some("vm/disk.img"),
        "{metadata:?}"
    );
    // The derivative is an object of its own: it outlives its source.
    images
        .bench
        .client
        .delete_object()
        .bucket(&images.bench.bucket)
        .key("vm/disk.img")
        .send()
        .await?;
    let again = images.get_file("vm/disk.qcow2", "again.qcow2").await?;
    ensure_same(&qcow2, &again)?;
    images
        .bench
        .client
        .delete_object()
        .bucket(&images.bench.bucket)
        .key("vm/disk.qcow2")
        .send()
        .await?;
    images.server.await_no_blobs()
}

#[tokio::test]
async fn qcow2_becomes_raw_from_plain_and_compressed_clusters() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 48 * MIB)?;
    // Something that can be compressed, or the clusters would be stored as they are.
    let text = "All work and no play makes Jack a dull boy.\n".repeat(300_000);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&raw)?,
        text.as_bytes(),
        20 * MIB,
    )?;
    for (name, arguments) in [
        ("plain", &["-f", "raw", "-O", "qcow2"][..]),
        ("small", &["-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k"]),
        ("old", &["-f", "raw", "-O", "qcow2", "-o", "compat=0.10"]),
        (
            "zlib",
            &["-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zlib"],
        ),
        (
            "zstd",
            &[
                "-f",
                "raw",
                "-O",
                "qcow2",
                "-c",
                "-o",
                "compression_type=zstd,cluster_size=128k",
            ],
        ),
        (
            "subclusters",
            &["-f", "raw", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"],
        ),
    ] {
        let qcow2 = images.path(&format!("{name}.qcow2"));
        qemu_img_convert(&raw, &qcow2, arguments)?;
        let key = format!("{name}.qcow2");
        images.put_file(&qcow2, &key).await?;
        images.tag(&key, &[("convert-to", "raw")]).await?;
        images.await_done(&key).await.with_context(|| name.to_owned())?;
        let made = derived_key(&images, name).await?;
        let made = images.get_file(&made, &format!("{name}.made")).await?;
        ensure_same(&raw, &made).with_context(|| name.to_owned())?;
        ensure!(
            images.metadata(&key, "image-virtual-size").await?.as_deref() == Some("50331648"),
            "{name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn compressed_formats_are_made_and_stand_by_themselves() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 48 * MIB)?;
    let text = "All work and no play makes Jack a dull boy.\n".repeat(200_000);
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&raw)?,
        text.as_bytes(),
        20 * MIB,
    )?;
    images.put_file(&raw, "disk.img").await?;
    let wishes = "qcow2:zlib qcow2:zlib-4k qcow2:zstd qcow2:v2 vmdk:stream raw:gz raw:zst";
    images.tag("disk.img", &[("convert-to", wishes)]).await?;
    images.await_done("disk.img").await?;
    let keys = [
        ("disk.zlib.qcow2", "qcow2"),
        ("disk.zlib-4k.qcow2", "qcow2"),
        ("disk.zstd.qcow2", "qcow2"),
        ("disk.v2.qcow2", "qcow2"),
        ("disk.stream.vmdk", "vmdk"),
    ];
    for (key, format) in keys {
        let made = images.get_file(key, key).await?;
        qemu_img_check(&made, format).context(key)?;
        qemu_img_compare((&raw, "raw"), (&made, format)).context(key)?;
        ensure!(
            images.metadata(key, "image-format").await?.as_deref() == Some(format),
            "{key}"
        );
    }
    for (key, program, format) in [("disk.raw.gz", "gzip", "gzip"), ("disk.raw.zst", "zstd", "zstd")] {
        let made = images.get_file(key, key).await?;
        let unpacked = std::process::Command::new(program).arg("-dc").arg(&made).output()?;
        ensure!(
            unpacked.status.success() && unpacked.stdout == std::fs::read(&raw)?,
            "{key}"
        );
        ensure!(
            images.metadata(key, "image-format").await?.as_deref() == Some(format),
            "{key}"
        );
    }
    // What is encoded refers to nothing of its source, and goes with its object.
    for key in ["disk.img", "disk.raw.gz", "disk.raw.zst"]
        .into_iter()
        .chain(keys.map(|(key, _)| key))
    {
        let client = &images.bench.client;
        client
            .delete_object()
            .bucket(&images.bench.bucket)
            .key(key)
            .send()
            .await?;
    }
    images.server.await_no_blobs()
}

/// Makes an envelope by the tool that everybody has.
fn wrap(images: &Images, program: &str, arguments: &[&str], to: &str) -> Result<()> {
    let out = std::fs::File::create(images.path(to))?;
    let mut command = std::process::Command::new(program);
    let status = command
        .args(arguments)
        .current_dir(images.path(""))
        .stdout(out)
        .status()
        .with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

#[tokio::test]
async fn images_are_taken_out_of_their_envelopes() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 48 * MIB)?;
    let qcow2 = images.path("disk.qcow2");
    qemu_img_convert(&raw, &qcow2, &["-c", "-O", "qcow2"])?;
    wrap(&images, "gzip", &["-1", "-c", "disk.img"], "gz.img.gz")?;
    wrap(&images, "xz", &["-0", "-c", "disk.qcow2"], "xz.qcow2.xz")?;
    wrap(&images, "tar", &["-cf", "-", "disk.img"], "tar.tar")?;
    wrap(&images, "tar", &["-czf", "-", "disk.qcow2"], "targz.tar.gz")?;
    let names = ["gz.img.gz", "xz.qcow2.xz", "tar.tar", "targz.tar.gz"];
    for name in names {
        images.put_file(&images.path(name), name).await?;
        images.tag(name, &[("convert-to", "qcow2 vmdk:stream")]).await?;
        images.await_done(name).await?;
        let stem = name.split('.').next().unwrap_or_default();
        for (key, format) in [
            (format!("{stem}.qcow2"), "qcow2"),
            (format!("{stem}.stream.vmdk"), "vmdk"),
        ] {
            let made = images.get_file(&key, &key).await?;
            qemu_img_check(&made, format).context(key.clone())?;
            qemu_img_compare((&raw, "raw"), (&made, format)).context(key)?;
        }
        ensure!(images.metadata(name, "image-warning").await?.is_none(), "{name}");
    }
    // Nothing of an envelope whose checksum is wrong becomes an image.
    let mut broken = std::fs::read(images.path("gz.img.gz"))?;
    let middle = broken.len() / 2;
    broken[middle] ^= 0x10;
    images.bench.put("broken.img.gz", &broken).await?;
    images.tag("broken.img.gz", &[("convert-to", "qcow2")]).await?;
    let reason = images.await_failure("broken.img.gz").await?;
    ensure!(reason.contains("gzip: corrupt"), "{reason}");
    images.bench.clear().await?;
    images.server.await_no_blobs()
}

#[tokio::test]
async fn clouds_get_what_they_take_and_an_ova_comes_back() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("disk.img", 48 * MIB + 512)?;
    images.put_file(&raw, "disk.img").await?;
    images
        .tag(
            "disk.img",
            &[("convert-to", "profile=azure profile=vsphere profile=hyperv ova")],
        )
        .await?;
    images.await_done("disk.img").await?;
    let azure = images.get_file("disk.azure.vhd", "disk.azure.vhd").await?;
    let size = std::fs::metadata(&azure)?.len();
    ensure!(
        size == 49 * MIB + 512,
        "a fixed VHD of whole mebibytes and a footer has {size} bytes"
    );
    qemu_img_compare((&raw, "raw"), (&azure, "vpc"))?;
    let vhdx = images.get_file("disk.hyperv.vhdx", "disk.hyperv.vhdx").await?;
    qemu_img_compare((&raw, "raw"), (&vhdx, "vhdx"))?;

    let ova = images.get_file("disk.vsphere.ova", "back.ova").await?;
    images.put_file(&ova, "back.ova").await?;
    images.tag("back.ova", &[("convert-to", "qcow2")]).await?;
    images.await_done("back.ova").await?;
    let back = images.get_file("back.qcow2", "back.qcow2").await?;
    qemu_img_check(&back, "qcow2")?;
    qemu_img_compare((&raw, "raw"), (&back, "qcow2"))
}

/// The raw image beside `NAME.qcow2`: its extension is the server's to choose.
async fn derived_key(images: &Images, name: &str) -> Result<String> {
    let list = images
        .bench
        .client
        .list_objects_v2()
        .bucket(&images.bench.bucket)
        .prefix(format!("{name}."))
        .send()
        .await?;
    let keys: Vec<&str> = list.contents().iter().filter_map(|object| object.key()).collect();
    let derived = keys.iter().find(|key| **key != format!("{name}.qcow2"));
    derived
        .map(|key| (*key).to_owned())
        .with_context(|| format!("nothing but {keys:?}"))
}

#[tokio::test]
async fn tags_may_come_with_the_upload() -> Result<()> {
    let images = Images::start().await?;
    let client = &images.bench.client;
    let content = Pattern(9).bytes(0..6 * MIB);
    let put = client
        .put_object()
        .bucket(&images.bench.bucket)
        .key("put.img")
        .tagging("convert-to=qcow2");
    put.body(ByteStream::from(content.clone())).send().await?;

    let created = client
        .create_multipart_upload()
        .bucket(&images.bench.bucket)
        .key("parts.img");
    let created = created.tagging("convert-to=qcow2").send().await?;
    let id = created.upload_id.context("no upload id")?;
    let part = client
        .upload_part()
        .bucket(&images.bench.bucket)
        .key("parts.img")
        .upload_id(&id)
        .part_number(1);
    let part = part.body(ByteStream::from(content.clone())).send().await?;
    let part = aws_sdk_s3::types::CompletedPart::builder()
        .part_number(1)
        .set_e_tag(part.e_tag)
        .build();
    let parts = aws_sdk_s3::types::CompletedMultipartUpload::builder()
        .parts(part)
        .build();
    let complete = client
        .complete_multipart_upload()
        .bucket(&images.bench.bucket)
        .key("parts.img")
        .upload_id(id);
    complete.multipart_upload(parts).send().await?;

    let copy = client.copy_object().bucket(&images.bench.bucket).key("copied.img");
    copy.copy_source(format!("{}/put.img", images.bench.bucket))
        .send()
        .await?;

    let raw = images.path("disk.img");
    std::fs::write(&raw, &content)?;
    for name in ["put", "parts", "copied"] {
        images.await_object(&format!("{name}.qcow2")).await?;
        images.await_done(&format!("{name}.img")).await?;
        let qcow2 = images.get_file(&format!("{name}.qcow2"), name).await?;
        qemu_img_check(&qcow2, "qcow2")?;
        qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_new_version_of_the_source_makes_the_derivative_anew() -> Result<()> {
    let images = Images::start().await?;
    let mut last = String::new();
    for seed in 0..3 {
        let content = Pattern(seed).bytes(0..3 * MIB);
        let put = images
            .bench
            .client
            .put_object()
            .bucket(&images.bench.bucket)
            .key("disk.img");
        put.tagging("convert-to=qcow2")
            .body(ByteStream::from(content.clone()))
            .send()
            .await?;
        images.await_object("disk.qcow2").await?;
        images.await_done("disk.img").await?;
        let etag = images.head("disk.qcow2").await?.e_tag.context("no ETag")?;
        ensure!(etag != last, "the derivative of another content has the same ETag");
        last = etag;
        let raw = images.path("disk.img");
        std::fs::write(&raw, &content)?;
        let qcow2 = images.get_file("disk.qcow2", "disk.qcow2").await?;
        qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))?;
    }
    images.bench.clear().await?;
    images.server.await_no_blobs()
}

#[tokio::test]
async fn a_foreign_object_of_the_derived_name_stays() -> Result<()> {
    let images = Images::start().await?;
    images.bench.put("disk.qcow2", b"somebody's").await?;
    images.bench.put("disk.img", &Pattern(1).bytes(0..MIB)).await?;
    images.tag("disk.img", &[("convert-to", "qcow2")]).await?;
    let error = images.await_failure("disk.img").await?;
    println!("foreign object: {error}");
    ensure!(
        error.contains("disk.qcow2"),
        "the error does not name the object: {error}"
    );
    ensure!(
        images.bench.get("disk.qcow2").await? == b"somebody's",
        "it was replaced"
    );
    Ok(())
}

/// Broken and unsafe images: stored as the bytes they are, never converted, with a reason.
#[tokio::test]
async fn unsafe_images_are_kept_and_not_converted() -> Result<()> {
    let images = Images::start().await?;
    let raw = images.sparse_image("base.img", 2 * MIB)?;
    for (name, path, reason) in [
        ("backing", with_backing_file(&images, &raw)?, "backing"),
        ("external", with_external_data(&images)?, "data file"),
        (
            "forged-l1",
            forged(&images, &raw, "forged-l1", 36, &u32::MAX.to_be_bytes())?,
            "l1",
        ),
        (
            "forged-l1-offset",
            forged(&images, &raw, "forged-l1-offset", 40, &u64::MAX.to_be_bytes())?,
            "l1",
        ),
        (
            "forged-size",
            forged(&images, &raw, "forged-size", 24, &u64::MAX.to_be_bytes())?,
            "size",
        ),
        (
            "forged-version",
            forged(&images, &raw, "forged-version", 4, &99_u32.to_be_bytes())?,
            "version",
        ),
        (
            "forged-bits",
            forged(&images, &raw, "forged-bits", 20, &1_u32.to_be_bytes())?,
            "",
        ),
        (
            "encrypted",
            forged(&images, &raw, "encrypted", 32, &1_u32.to_be_bytes())?,
            "encrypt",
        ),
    ] {
        let key = format!("{name}.qcow2");
        images.put_file(&path, &key).await?;
        let kept = images.get_file(&key, "kept").await?;
        ensure_same(&path, &kept).with_context(|| name.to_owned())?;
        let warning = images.metadata(&key, "image-warning").await?;
        let warning = warning.with_context(|| format!("{name}: there is no warning"))?;
        images.tag(&key, &[("convert-to", "raw")]).await?;
        let error = images.await_failure(&key).await.with_context(|| name.to_owned())?;
        println!("{name}: warning {warning:?}, error {error:?}");
        for text in [&warning, &error] {
            ensure!(
                text.to_lowercase().contains(reason),
                "{name}: {text:?} does not speak of {reason:?}"
            );
        }
        ensure!(derived_key(&images, name).await.is_err(), "{name} was converted");
    }
    Ok(())
}

fn with_backing_file(images: &Images, raw: &Path) -> Result<PathBuf> {
    let path = images.path("backing.qcow2");
    run(tool("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(raw)
        .arg(&path))?;
    Ok(path)
}

fn with_external_data(images: &Images) -> Result<PathBuf> {
    let path = images.path("external.qcow2");
    let option = format!("data_file={},data_file_raw=on", images.path("external.data").display());
    run(tool("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", &option])
        .arg(&path)
        .arg("2M"))?;
    Ok(path)
}

/// A good image with other bytes at `offset` of its header.
fn forged(images: &Images, raw: &Path, name: &str, offset: u64, bytes: &[u8]) -> Result<PathBuf> {
    let path = images.path(&format!("{name}.qcow2"));
    qemu_img_convert(raw, &path, &["-f", "raw", "-O", "qcow2"])?;
    let file = std::fs::File::options().write(true).open(&path)?;
    // Header field incompatible_features is 72..80; its corrupt bit is in the last byte.
    let offset = if name == "forged-bits" { 72 + 4 } else { offset };
    let bytes = if name == "forged-bits" {
        &2_u32.to_be_bytes()[..]
    } else {
        bytes
    };
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset)?;
    Ok(path)
}

#[tokio::test]
async fn wishes_that_cannot_come_true_are_refused_at_once() -> Result<()> {
    let images = Images::start().await?;
    let client = &images.bench.client;
    for wish in ["convert-to=nonsense", "convert-to=qcow2+exe", "replicate-to=a%2Fb"] {
        let put = client.put_object().bucket(&images.bench.bucket).key("k").tagging(wish);
        expect_code(put.body(ByteStream::from_static(b"x")).send().await, "InvalidTag").context(wish)?;
        let create = client
            .create_multipart_upload()
            .bucket(&images.bench.bucket)
            .key("k")
            .tagging(wish);
        expect_code(create.send().await, "InvalidTag").context(wish)?;
    }
    images.bench.put("k", b"x").await?;
    ensure!(images.tag("k", &[("convert-to", "nonsense")]).await.is_err());
    ensure!(
        images.metadata("k", "image-jobs").await?.is_none(),
        "a refused wish made a job"
    );
    images.bench.expect_absent("k.qcow2").await
}
