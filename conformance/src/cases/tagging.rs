//! PutObjectTagging, GetObjectTagging, DeleteObjectTagging, and the same for buckets.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{Tag, Tagging},
};

use crate::{case::Bench, sdk::expect_code};

crate::cases! {
    "PutObjectTagging": tags_replace_each_other, tags_over_the_bounds_are_refused, a_missing_key_is_said;
    "GetObjectTagging": an_object_without_tags_has_none;
    "PutObject": tags_come_with_the_upload, bad_tags_refuse_the_upload;
    "DeleteObjectTagging": deleted_tags_are_gone;
    "PutBucketTagging": bucket_tags_replace_each_other;
}

fn tagging(tags: &[(&str, &str)]) -> Result<Tagging> {
    let tags = tags
        .iter()
        .map(|(key, value)| Tag::builder().key(*key).value(*value).build());
    Ok(Tagging::builder()
        .set_tag_set(Some(tags.collect::<Result<Vec<_>, _>>()?))
        .build()?)
}

async fn tags_of(bench: &Bench, key: &str) -> Result<Vec<(String, String)>> {
    let tags = bench
        .client
        .get_object_tagging()
        .bucket(&bench.bucket)
        .key(key)
        .send()
        .await?;
    let mut tags: Vec<_> = tags.tag_set.into_iter().map(|tag| (tag.key, tag.value)).collect();
    tags.sort();
    Ok(tags)
}

fn owned(tags: &[(&str, &str)]) -> Vec<(String, String)> {
    tags.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn tags_replace_each_other(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"x").await?;
    for tags in [&[("a", "1"), ("b ü", "<&>+ =")][..], &[("c", "")], &[("d", "3")]] {
        bench
            .client
            .put_object_tagging()
            .bucket(&bench.bucket)
            .key("k")
            .tagging(tagging(tags)?)
            .send()
            .await?;
        let found = tags_of(&bench, "k").await?;
        ensure!(found == owned(tags), "{found:?}, not {tags:?}");
    }
    let head = bench.client.get_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(head.tag_count() == Some(1), "the count is {:?}", head.tag_count());
    ensure!(head.e_tag() == Some(&etag), "tagging changed the object");
    Ok(())
}

async fn an_object_without_tags_has_none(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    ensure!(tags_of(&bench, "k").await?.is_empty());
    let missing = bench
        .client
        .get_object_tagging()
        .bucket(&bench.bucket)
        .key("missing")
        .send()
        .await;
    expect_code(missing, "NoSuchKey")
}

async fn tags_over_the_bounds_are_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    bench
        .client
        .put_object_tagging()
        .bucket(&bench.bucket)
        .key("k")
        .tagging(tagging(&[("a", "1")])?)
        .send()
        .await?;
    let many: Vec<String> = (0..11).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "x")).collect();
    let (long_key, long_value) = ("k".repeat(129), "v".repeat(257));
    for (tags, codes) in [
        (many.as_slice(), &["BadRequest", "InvalidTag"][..]),
        (&[(long_key.as_str(), "x")], &["InvalidTag"]),
        (&[("x", long_value.as_str())], &["InvalidTag"]),
        (&[("", "x")], &["InvalidTag"]),
        (&[("x", "1"), ("x", "2")], &["InvalidTag"]),
    ] {
        let put = bench
            .client
            .put_object_tagging()
            .bucket(&bench.bucket)
            .key("k")
            .tagging(tagging(tags)?)
            .send()
            .await;
        let error = put.err().context("too much was taken")?;
        let code = aws_sdk_s3::error::ProvideErrorMetadata::code(&error)
            .unwrap_or_default()
            .to_owned();
        ensure!(codes.contains(&code.as_str()), "the code is {code}: {:?}", tags.first());
        ensure!(
            tags_of(&bench, "k").await? == owned(&[("a", "1")]),
            "refused tags replaced good ones"
        );
    }
    Ok(())
}

async fn a_missing_key_is_said(bench: Bench) -> Result<()> {
    let put = bench
        .client
        .put_object_tagging()
        .bucket(&bench.bucket)
        .key("k")
        .tagging(tagging(&[("a", "1")])?);
    expect_code(put.send().await, "NoSuchKey")?;
    let put = bench.object("PUT", "k").query("tagging", "").body("<Tagging><TagSet>");
    let answer = put.signed(&bench.target)?.send(&bench.target).await?;
    answer.expect_error(400, "MalformedXML")
}

async fn tags_come_with_the_upload(bench: Bench) -> Result<()> {
    let put = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key("k")
        .body(ByteStream::from_static(b"x"));
    put.tagging("a=1&b+c=%26%2B%C3%BC&d=").send().await?;
    let found = tags_of(&bench, "k").await?;
    ensure!(found == owned(&[("a", "1"), ("b c", "&+ü"), ("d", "")]), "{found:?}");
    bench.put("k", b"y").await?;
    ensure!(
        tags_of(&bench, "k").await?.is_empty(),
        "a new object has the old one's tags"
    );
    Ok(())
}

async fn bad_tags_refuse_the_upload(bench: Bench) -> Result<()> {
    for tags in ["a=1&a=2", "=1"] {
        let put = bench
            .client
            .put_object()
            .bucket(&bench.bucket)
            .key("k")
            .body(ByteStream::from_static(b"x"));
        let error = put
            .tagging(tags)
            .send()
            .await
            .err()
            .with_context(|| format!("{tags} was taken"))?;
        let code = aws_sdk_s3::error::ProvideErrorMetadata::code(&error)
            .unwrap_or_default()
            .to_owned();
        ensure!(
            ["InvalidTag", "InvalidArgument"].contains(&code.as_str()),
            "{tags}: the code is {code}"
        );
        bench.expect_absent("k").await?;
    }
    Ok(())
}

async fn deleted_tags_are_gone(bench: Bench) -> Result<()> {
    let put = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key("k")
        .body(ByteStream::from_static(b"x"));
    put.tagging("a=1").send().await?;
    bench
        .client
        .delete_object_tagging()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    ensure!(tags_of(&bench, "k").await?.is_empty());
    ensure!(bench.get("k").await? == b"x");
    Ok(())
}

async fn bucket_tags_replace_each_other(bench: Bench) -> Result<()> {
    let get = || bench.client.get_bucket_tagging().bucket(&bench.bucket).send();
    expect_code(get().await, "NoSuchTagSet")?;
    for tags in [&[("a", "1"), ("b", "2")][..], &[("c", "3")]] {
        bench
            .client
            .put_bucket_tagging()
            .bucket(&bench.bucket)
            .tagging(tagging(tags)?)
            .send()
            .await?;
        let mut found: Vec<_> = get()
            .await?
            .tag_set
            .into_iter()
            .map(|tag| (tag.key, tag.value))
            .collect();
        found.sort();
        ensure!(found == owned(tags), "{found:?}");
    }
    bench
        .client
        .delete_bucket_tagging()
        .bucket(&bench.bucket)
        .send()
        .await?;
    expect_code(get().await, "NoSuchTagSet")
}
