//! The AWS SDK for Rust, for what the cases by operation do not do with it: streams, managed parts, pages, waiters.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    client::Waiters,
    presigning::PresigningConfig,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use futures::{StreamExt, TryStreamExt, stream};

use super::Client;
use crate::{
    case::Bench,
    pattern::Pattern,
    tool::{run, tool},
};

crate::cases! {
    "streams": files_go_up_and_come_back_as_streams;
    "multipart": parts_go_up_four_at_a_time_and_are_copied;
    "paginators": pages_of_keys_and_parts;
    "waiters": an_object_is_waited_for;
    "presigned": urls_are_for_others_to_put_and_get;
}

const PART: u64 = 5 << 20;
/// Longest time that a waiter waits.
const WAIT: Duration = Duration::from_secs(20);

/// The client with its cases.
pub fn client() -> Client {
    Client {
        name: "AWS SDK for Rust",
        module: module_path!(),
        version: || Some(aws_sdk_s3::meta::PKG_VERSION.to_owned()),
        cases: all(),
    }
}

async fn files_go_up_and_come_back_as_streams(bench: Bench) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk.img");
    let content = Pattern(1).bytes(0..9_000_001);
    std::fs::write(&path, &content)?;
    let put = bench.client.put_object().bucket(&bench.bucket).key("a/ü +%");
    put.metadata("color", "red")
        .body(ByteStream::from_path(&path).await?)
        .send()
        .await?;
    let get = bench.client.get_object().bucket(&bench.bucket).key("a/ü +%");
    let mut got = get.send().await?;
    ensure!(
        got.metadata()
            .and_then(|all| all.get("color"))
            .is_some_and(|color| color == "red")
    );
    let mut back = Vec::new();
    while let Some(chunk) = got.body.try_next().await? {
        back.extend_from_slice(&chunk);
    }
    ensure!(back == content, "what came back differs");
    Ok(())
}

async fn parts_go_up_four_at_a_time_and_are_copied(bench: Bench) -> Result<()> {
    let content = Pattern(2).bytes(0..4 * PART + 77);
    let parts: Vec<Vec<u8>> = content.chunks(usize::try_from(PART)?).map(<[u8]>::to_vec).collect();
    let id = begin(&bench, "parts").await?;
    let done = stream::iter((1..).zip(parts)).map(|(number, part)| {
        let upload = bench.client.upload_part().bucket(&bench.bucket).key("parts");
        let upload = upload.upload_id(&id).part_number(number).body(ByteStream::from(part));
        async move { anyhow::Ok((number, upload.send().await?.e_tag)) }
    });
    complete(&bench, "parts", &id, done.buffer_unordered(4).try_collect().await?).await?;
    ensure!(bench.get("parts").await? == content, "what came back differs");

    let id = begin(&bench, "copied").await?;
    let source = format!("{}/parts", bench.bucket);
    let copies = stream::iter(1..=5_u32).map(|number| {
        let start = u64::from(number - 1) * PART;
        let end = (start + PART).min(4 * PART + 77) - 1;
        let number = i32::try_from(number).unwrap_or_default();
        let copy = bench
            .client
            .upload_part_copy()
            .bucket(&bench.bucket)
            .key("copied")
            .upload_id(&id);
        let copy = copy
            .part_number(number)
            .copy_source(&source)
            .copy_source_range(format!("bytes={start}-{end}"));
        async move {
            let copied = copy.send().await?;
            anyhow::Ok((number, copied.copy_part_result.and_then(|part| part.e_tag)))
        }
    });
    complete(&bench, "copied", &id, copies.buffer_unordered(4).try_collect().await?).await?;
    ensure!(bench.get("copied").await? == content, "the copy differs");
    Ok(())
}

async fn begin(bench: &Bench, key: &str) -> Result<String> {
    let begin = bench.client.create_multipart_upload().bucket(&bench.bucket).key(key);
    begin.send().await?.upload_id.context("no upload id")
}

async fn complete(bench: &Bench, key: &str, id: &str, mut parts: Vec<(i32, Option<String>)>) -> Result<()> {
    parts.sort();
    let named = parts
        .into_iter()
        .map(|(number, etag)| CompletedPart::builder().part_number(number).set_e_tag(etag).build());
    let named = CompletedMultipartUpload::builder()
        .set_parts(Some(named.collect()))
        .build();
    let complete = bench.client.complete_multipart_upload().bucket(&bench.bucket).key(key);
    complete.upload_id(id).multipart_upload(named).send().await?;
    Ok(())
}

async fn pages_of_keys_and_parts(bench: Bench) -> Result<()> {
    let keys: Vec<String> = (0..7).map(|n| format!("page/{n}")).collect();
    for key in &keys {
        bench.put(key, b"").await?;
    }
    let list = bench.client.list_objects_v2().bucket(&bench.bucket).prefix("page/");
    let mut pages = list.into_paginator().page_size(2).send();
    let mut found = Vec::new();
    while let Some(page) = pages.try_next().await? {
        found.extend(
            page.contents()
                .iter()
                .filter_map(|object| object.key().map(str::to_owned)),
        );
    }
    ensure!(found == keys, "{found:?}");
    let id = begin(&bench, "parts").await?;
    for number in 1..=5 {
        let upload = bench
            .client
            .upload_part()
            .bucket(&bench.bucket)
            .key("parts")
            .upload_id(&id);
        upload
            .part_number(number)
            .body(ByteStream::from_static(b"x"))
            .send()
            .await?;
    }
    let list = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("parts")
        .upload_id(&id);
    let found: Vec<_> = list
        .into_paginator()
        .page_size(2)
        .items()
        .send()
        .collect::<Result<_, _>>()
        .await?;
    let found: Vec<_> = found.iter().filter_map(aws_sdk_s3::types::Part::part_number).collect();
    ensure!(found == [1, 2, 3, 4, 5], "{found:?}");
    Ok(())
}

async fn an_object_is_waited_for(bench: Bench) -> Result<()> {
    let exists = bench
        .client
        .wait_until_object_exists()
        .bucket(&bench.bucket)
        .key("late");
    let put = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        bench.put("late", b"").await
    };
    let (waited, put) = tokio::join!(exists.wait(WAIT), put);
    waited.context("the object was not seen")?;
    put?;
    bench
        .client
        .delete_object()
        .bucket(&bench.bucket)
        .key("late")
        .send()
        .await?;
    let gone = bench
        .client
        .wait_until_object_not_exists()
        .bucket(&bench.bucket)
        .key("late");
    gone.wait(WAIT).await.context("the object is still seen")?;
    Ok(())
}

async fn urls_are_for_others_to_put_and_get(bench: Bench) -> Result<()> {
    let config = || PresigningConfig::expires_in(Duration::from_mins(1));
    let put = bench.client.put_object().bucket(&bench.bucket).key("by url/ü+");
    let url = put.presigned(config()?).await?.uri().to_owned();
    run(tool("curl").args([
        "-fsS",
        "-X",
        "PUT",
        "--data-binary",
        "by url",
        "-H",
        "content-type:",
        &url,
    ]))?;
    let get = bench.client.get_object().bucket(&bench.bucket).key("by url/ü+");
    let url = get.presigned(config()?).await?.uri().to_owned();
    let got = run(tool("curl").args(["-fsS", &url]))?;
    ensure!(got == "by url", "{got}");
    Ok(())
}
