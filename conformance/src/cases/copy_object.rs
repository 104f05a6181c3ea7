//! CopyObject.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    operation::copy_object::builders::CopyObjectFluentBuilder,
    primitives::{ByteStream, DateTime},
    types::{MetadataDirective, TaggingDirective},
};

use super::ODD_KEYS;
use crate::{case::Bench, pattern::Pattern, sdk::expect_code, wire::object_path};

crate::cases! {
    "CopyObject": a_copy_is_the_same, directives_replace, onto_itself_needs_a_change, sources_may_have_odd_keys,
        a_copy_outlives_its_source, a_missing_source_is_said, conditions_on_the_source, between_buckets;
}

fn copy(bench: &Bench, from: &str, to: &str) -> CopyObjectFluentBuilder {
    bench
        .client
        .copy_object()
        .bucket(&bench.bucket)
        .key(to)
        .copy_source(object_path(&bench.bucket, from).split_off(1))
}

async fn put_rich(bench: &Bench, key: &str) -> Result<Vec<u8>> {
    let content = Pattern(5).bytes(0..150_000);
    let put = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key(key)
        .body(ByteStream::from(content.clone()));
    put.content_type("text/a")
        .metadata("color", "red")
        .tagging("team=a")
        .send()
        .await?;
    Ok(content)
}

async fn a_copy_is_the_same(bench: Bench) -> Result<()> {
    let content = put_rich(&bench, "a").await?;
    let copied = copy(&bench, "a", "b").send().await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("b").send().await?;
    ensure!(copied.copy_object_result().and_then(|result| result.e_tag()) == head.e_tag());
    ensure!(head.content_type() == Some("text/a"));
    ensure!(
        head.metadata()
            .and_then(|metadata| metadata.get("color"))
            .map(String::as_str)
            == Some("red")
    );
    ensure!(bench.get("b").await? == content);
    ensure!(tags(&bench, "b").await? == [("team".to_owned(), "a".to_owned())]);
    Ok(())
}

async fn tags(bench: &Bench, key: &str) -> Result<Vec<(String, String)>> {
    let tags = bench
        .client
        .get_object_tagging()
        .bucket(&bench.bucket)
        .key(key)
        .send()
        .await?;
    Ok(tags.tag_set.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

async fn directives_replace(bench: Bench) -> Result<()> {
    put_rich(&bench, "a").await?;
    let copied = copy(&bench, "a", "b")
        .metadata_directive(MetadataDirective::Replace)
        .metadata("size", "xl");
    copied.content_type("text/b").send().await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("b").send().await?;
    ensure!(head.content_type() == Some("text/b"));
    let metadata = head.metadata().context("no metadata")?;
    ensure!(
        metadata.get("size").is_some() && metadata.get("color").is_none(),
        "{metadata:?}"
    );
    ensure!(
        tags(&bench, "b").await? == [("team".to_owned(), "a".to_owned())],
        "the tags were to be copied"
    );
    copy(&bench, "a", "c")
        .tagging_directive(TaggingDirective::Replace)
        .tagging("x=y")
        .send()
        .await?;
    ensure!(tags(&bench, "c").await? == [("x".to_owned(), "y".to_owned())]);
    // Without the directive, what the request says of metadata does not count.
    copy(&bench, "a", "d")
        .content_type("text/d")
        .metadata("size", "xl")
        .send()
        .await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("d").send().await?;
    ensure!(head.content_type() == Some("text/a"), "{:?}", head.content_type());
    Ok(())
}

async fn onto_itself_needs_a_change(bench: Bench) -> Result<()> {
    let content = put_rich(&bench, "a").await?;
    expect_code(copy(&bench, "a", "a").send().await, "InvalidRequest")?;
    let change = copy(&bench, "a", "a")
        .metadata_directive(MetadataDirective::Replace)
        .metadata("color", "blue");
    change.send().await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("a").send().await?;
    ensure!(
        head.metadata()
            .and_then(|metadata| metadata.get("color"))
            .map(String::as_str)
            == Some("blue")
    );
    ensure!(
        bench.get("a").await? == content,
        "the content went away under its own copy"
    );
    Ok(())
}

async fn sources_may_have_odd_keys(bench: Bench) -> Result<()> {
    for key in ODD_KEYS {
        bench.put(key, key.as_bytes()).await?;
        copy(&bench, key, "copy")
            .send()
            .await
            .with_context(|| format!("{key:?}"))?;
        ensure!(
            bench.get("copy").await? == key.as_bytes(),
            "{key:?}: another one was copied"
        );
    }
    Ok(())
}

async fn a_copy_outlives_its_source(bench: Bench) -> Result<()> {
    let content = put_rich(&bench, "a").await?;
    copy(&bench, "a", "b").send().await?;
    copy(&bench, "b", "c").send().await?;
    for key in ["a", "b"] {
        bench
            .client
            .delete_object()
            .bucket(&bench.bucket)
            .key(key)
            .send()
            .await?;
    }
    // The sweep may take its time: what it must not take is this.
    for n in 0..20 {
        bench.put("other", &[n; 100_000]).await?;
        ensure!(bench.get("c").await? == content, "the copy went with its source");
    }
    Ok(())
}

async fn a_missing_source_is_said(bench: Bench) -> Result<()> {
    expect_code(copy(&bench, "missing", "b").send().await, "NoSuchKey")?;
    let source = format!("{}-missing/a", bench.bucket);
    let copied = bench
        .client
        .copy_object()
        .bucket(&bench.bucket)
        .key("b")
        .copy_source(source)
        .send()
        .await;
    expect_code(copied, "NoSuchBucket")?;
    let nonsense = bench
        .object("PUT", "b")
        .header("x-amz-copy-source", "nonsense")
        .signed(&bench.target)?;
    let answer = nonsense.send(&bench.target).await?;
    ensure!(answer.status == 400, "{} {}", answer.status, answer.text());
    bench.expect_absent("b").await
}

async fn conditions_on_the_source(bench: Bench) -> Result<()> {
    let etag = bench.put("a", b"x").await?;
    copy(&bench, "a", "b").copy_source_if_match(&etag).send().await?;
    expect_code(
        copy(&bench, "a", "c").copy_source_if_match("\"0\"").send().await,
        "PreconditionFailed",
    )?;
    expect_code(
        copy(&bench, "a", "c").copy_source_if_none_match(&etag).send().await,
        "PreconditionFailed",
    )?;
    let future = DateTime::from_secs(4_000_000_000);
    expect_code(
        copy(&bench, "a", "c")
            .copy_source_if_modified_since(future)
            .send()
            .await,
        "PreconditionFailed",
    )?;
    bench.expect_absent("c").await
}

async fn between_buckets(bench: Bench) -> Result<()> {
    let other = Bench::new(&bench.target).await?;
    let content = put_rich(&bench, "a").await?;
    let source = object_path(&bench.bucket, "a");
    other
        .client
        .copy_object()
        .bucket(&other.bucket)
        .key("b")
        .copy_source(source)
        .send()
        .await?;
    bench
        .client
        .delete_object()
        .bucket(&bench.bucket)
        .key("a")
        .send()
        .await?;
    let found = other.get("b").await;
    other.clear().await?;
    ensure!(found? == content);
    Ok(())
}
