//! A disk that is full, or has no more than its reserve left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use lithos_conformance::{
    pattern::Pattern,
    target::{POLL, Target},
    tool::{aws, run_failing},
    wire::{AmzTime, Payload, Request, object_path},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Disk, Faulty, PATIENCE};
use crate::{exposition::Exposition, images::Images, origin::Origin};

const PART: u64 = 5 << 20;
/// What the server is told to be free: in plenty, and less than the reserve.
const PLENTY_MIB: u32 = 1 << 10;
const LITTLE_MIB: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_only_writes_are_refused_and_they_come_back() -> Result<()> {
    let faulty = Faulty::start(&["--reserve", "100MiB"]).await?;
    faulty.set_free(PLENTY_MIB)?;
    let Faulty { images, .. } = &faulty;
    let (client, bucket) = (&images.bench.client, &images.bench.bucket);
    let kept = Pattern(1).bytes(0..300_000);
    faulty.await_put("kept", &kept).await?;
    faulty.await_put("gone", &kept).await?;
    let upload = client
        .create_multipart_upload()
        .bucket(bucket)
        .key("parts")
        .send()
        .await?;
    let upload = upload.upload_id().context("no upload")?;
    let part = |number: u64| {
        let request = images.bench.object("PUT", "parts");
        let request = request
            .query("partNumber", &number.to_string())
            .query("uploadId", upload);
        request.body(Pattern(number).bytes(0..PART))
    };
    let mut etags = vec![etag(&faulty.send(part(1)).await?)?];

    faulty.set_free(LITTLE_MIB)?;
    faulty.await_refusal("gone", 507, "StorageFull").await?;
    let copy = images
        .bench
        .object("PUT", "copy")
        .header("x-amz-copy-source", object_path(bucket, "kept"));
    for (what, request) in [("a part", part(2)), ("a copy", copy)] {
        let answer = faulty.send(request).await?;
        answer.expect_error(507, "StorageFull").context(what)?;
        ensure!(answer.text().starts_with("<?xml"), "{}", answer.text());
    }
    ensure_aws_says_so(images, &kept)?;
    let origin = Origin::serve(Pattern(3).bytes(0..PART)).await?;
    let import = images
        .bench
        .object("PUT", "imported")
        .header("x-amz-meta-import-url", origin.url("/image"));
    let import = faulty.send(import).await?;
    ensure!([200, 507].contains(&import.status), "{}", import.text());

    ensure_all_else_goes_on(images, &kept).await?;

    faulty.set_free(PLENTY_MIB)?;
    let took = faulty.await_put("new", &kept).await?;
    println!("writes came back {took:?} after the space");
    ensure!(images.bench.get("new").await? == kept);
    etags.push(etag(&faulty.send(part(2)).await?)?);
    complete(images, upload, etags).await?;
    let both = [Pattern(1).bytes(0..PART), Pattern(2).bytes(0..PART)].concat();
    ensure!(images.bench.get("parts").await? == both);
    if import.status == 200 {
        images.await_object("imported").await?;
        ensure!(images.bench.get("imported").await? == Pattern(3).bytes(0..PART));
    }
    faulty.ensure_no_damage().await?;
    faulty.end().await
}

/// Reads, deletes and the management address, with too little space.
async fn ensure_all_else_goes_on(images: &Images, kept: &[u8]) -> Result<()> {
    let (client, bucket) = (&images.bench.client, &images.bench.bucket);
    ensure!(images.bench.get("kept").await? == kept, "reads go on");
    images.head("kept").await?;
    let listed = client.list_objects_v2().bucket(bucket).send().await?;
    ensure!(listed.key_count() == Some(2), "{listed:?}");
    client.delete_object().bucket(bucket).key("gone").send().await?;
    images.bench.expect_absent("gone").await?;
    let ready = Request::new("GET", "/readyz")
        .send(&images.server.management_target())
        .await?;
    ready.expect_status(200)?;
    let counted = Exposition::of(&images.server).await?;
    let free = counted.value("lithos_space_free_bytes");
    ensure!(
        (free - f64::from(LITTLE_MIB << 20)).abs() < 1.0,
        "{free} bytes are said to be free"
    );
    ensure!(counted.value("lithos_space_total_bytes") > free, "{counted:?}");
    Ok(())
}

async fn complete(images: &Images, upload: &str, etags: Vec<String>) -> Result<()> {
    let parts = etags
        .into_iter()
        .zip(1..)
        .map(|(etag, number)| CompletedPart::builder().e_tag(etag).part_number(number).build());
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts.collect()))
        .build();
    let complete = images
        .bench
        .client
        .complete_multipart_upload()
        .bucket(&images.bench.bucket)
        .key("parts")
        .upload_id(upload);
    complete.multipart_upload(parts).send().await?;
    Ok(())
}

/// That a person at the command line of AWS is told.
fn ensure_aws_says_so(images: &Images, bytes: &[u8]) -> Result<()> {
    let file = images.path("file");
    std::fs::write(&file, bytes)?;
    let mut put = aws(images.server.target(), images.server.scratch());
    put.args([
        "s3api",
        "put-object",
        "--bucket",
        &images.bench.bucket,
        "--key",
        "new",
        "--body",
    ]);
    let said = run_failing(put.arg(&file))?;
    ensure!(said.contains("StorageFull") && said.contains("no space left"), "{said}");
    Ok(())
}

fn etag(answer: &lithos_conformance::wire::Response) -> Result<String> {
    answer.expect_status(200)?;
    answer.header("etag").map(str::to_owned).context("no ETag")
}

/// Begins an upload of `len` bytes, and sends all but the last `left` of them.
async fn begin_put(target: &Target, path: String, len: u64, left: u64) -> Result<TcpStream> {
    let mut request = Request::new("PUT", path);
    request.content_length = Some(len.to_string());
    let request = request.signed_as(target, &Payload::Unsigned, &AmzTime::now())?;
    let mut stream = TcpStream::connect(target.authority()?).await?;
    stream.write_all(request.head(target)?.as_bytes()).await?;
    stream.write_all(&Pattern(len).bytes(0..len - left)).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Sends the rest; the answer.
async fn end_put(stream: &mut TcpStream, len: u64, left: u64) -> Result<String> {
    // A server that has refused already may close.
    let _ = stream.write_all(&Pattern(len).bytes(len - left..len)).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_leaves_nothing_half_and_heals_by_itself() -> Result<()> {
    // Of an upload, what is left when the disk is full: much, so that the blob is being written, or the end of it, which
    // is written when the blob is sealed.
    const LEN: u64 = 12 << 20;
    let faulty = Faulty::start(&["--reserve", "0B"]).await?;
    let Faulty { images, .. } = &faulty;
    let kept = Pattern(1).bytes(0..300_000);
    let mut acknowledged = Vec::new();
    for (round, left) in [6 << 20, 50_000].into_iter().enumerate() {
        let key = format!("kept/{round}");
        faulty.await_put(&key, &kept).await?;
        acknowledged.push(key);
        let path = object_path(&images.bench.bucket, &format!("half/{round}"));
        let mut stream = begin_put(&images.bench.target, path, LEN, left).await?;
        // What was sent is in the blob, as far as it is not gathered.
        tokio::time::sleep(Duration::from_millis(500)).await;
        faulty.set(Disk::Full)?;
        let answer = end_put(&mut stream, LEN, left).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 507 ") && answer.contains("<Code>StorageFull</Code>"),
            "with {left} bytes left: {answer}"
        );
        for key in &acknowledged {
            ensure!(images.bench.get(key).await? == kept, "reads go on");
        }
        images.bench.expect_absent(&format!("half/{round}")).await?;
        faulty.await_no_unfinished().await?;
        faulty.set(Disk::Sound)?;
    }

    // A small object is a row of the index only. Whether the first commit that fails is there shows when the index has
    // recovered; those after it are refused.
    let small = b"inline".as_slice();
    faulty.await_put("small", small).await?;
    faulty.set(Disk::Full)?;
    let unknown = faulty.send(images.bench.object("PUT", "unknown").body(small)).await?;
    ensure!([500, 507].contains(&unknown.status), "{}", unknown.text());
    for _ in 0..5 {
        let refused = faulty.send(images.bench.object("PUT", "refused").body(small)).await?;
        refused.expect_error(507, "StorageFull")?;
        let delete = faulty.send(images.bench.object("DELETE", "small")).await?;
        delete.expect_error(507, "StorageFull")?;
    }
    faulty.await_refusal("refused", 507, "StorageFull").await?;
    ensure!(images.bench.get("small").await? == small, "reads go on");
    for key in &acknowledged {
        ensure!(images.bench.get(key).await? == kept, "reads go on");
    }
    faulty.set(Disk::Sound)?;
    let took = faulty.await_put("after", &kept).await?;
    println!("the index took writes again {took:?} after there was space");
    ensure!(took < Duration::from_secs(15), "it took {took:?}");
    ensure!(
        images.server.log().contains("the index has recovered"),
        "the log is silent"
    );
    ensure!(images.bench.get("small").await? == small);
    images.bench.expect_absent("refused").await?;
    match images.bench.get("unknown").await {
        Ok(found) => ensure!(found == small, "half of it is there"),
        Err(_) => images.bench.expect_absent("unknown").await?,
    }
    for key in &acknowledged {
        ensure!(images.bench.get(key).await? == kept, "{key} is gone");
    }
    tokio::time::sleep(POLL).await;
    faulty.await_no_unfinished().await?;
    faulty.ensure_no_damage().await?;
    faulty.end().await
}
