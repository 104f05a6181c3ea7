//! ListObjects and ListObjectsV2.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::EncodingType;
use futures::{StreamExt, TryStreamExt, stream};

use super::ODD_KEYS;
use crate::{case::Bench, sdk::expect_code, wire::elements};

crate::cases! {
    "ListObjectsV2": pages_of_every_size_agree_with_a_model, odd_keys_come_encoded, a_page_has_a_thousand,
        start_after_is_exclusive, what_cannot_be_listed_is_refused, entries_describe_objects;
    "ListObjects": version_1_pages_agree_with_a_model, no_keys_are_no_error;
}

const KEYS: [&str; 14] = [
    "a", "a/", "a/1", "a/2", "a/b/1", "a/b/2", "a0", "b", "b/1", "c//1", "c/1", "c|1", "z/1", "z/é",
];

/// What a listing is to have, as S3 defines it: keys, and keys rolled up to prefixes, in the order of their bytes.
fn model(prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
    let mut entries = BTreeSet::new();
    for key in KEYS.iter().filter(|key| key.starts_with(prefix)) {
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let rolled = match rest.find(delimiter) {
            Some(at) if !delimiter.is_empty() => key.get(..prefix.len() + at + delimiter.len()).unwrap_or_default(),
            _ => key,
        };
        entries.insert(rolled.to_owned());
    }
    entries.into_iter().filter(|entry| entry.as_str() > after).collect()
}

const ASKED: [(&str, &str); 12] = [
    ("", ""),
    ("", "/"),
    ("a", ""),
    ("a", "/"),
    ("a/", "/"),
    ("a/b", "/"),
    ("c/", "/"),
    ("", "//"),
    ("", "|"),
    ("nothing", "/"),
    ("z/", "/"),
    ("a/b/1", ""),
];

async fn put_keys(bench: &Bench, keys: Vec<String>) -> Result<()> {
    let put = |key: String| {
        let bench = bench.clone();
        async move { bench.put(&key, b"x").await.map(drop) }
    };
    stream::iter(keys).map(put).buffer_unordered(32).try_collect().await
}

async fn pages_of_every_size_agree_with_a_model(bench: Bench) -> Result<()> {
    put_keys(&bench, KEYS.map(str::to_owned).to_vec()).await?;
    for (prefix, delimiter) in ASKED {
        let expected = model(prefix, delimiter, "");
        for size in [1, 2, 3, 5, 14, 1000] {
            let mut found = Vec::new();
            let mut token: Option<String> = None;
            loop {
                let page = bench
                    .client
                    .list_objects_v2()
                    .bucket(&bench.bucket)
                    .prefix(prefix)
                    .max_keys(size);
                let page = page.set_delimiter((!delimiter.is_empty()).then(|| delimiter.to_owned()));
                let page = page.set_continuation_token(token.clone()).send().await?;
                let entries = merged(page.contents(), page.common_prefixes());
                let count = i32::try_from(entries.len())?;
                ensure!(
                    count <= size && page.key_count() == Some(count),
                    "a page of {size} has {count}"
                );
                ensure!(
                    page.is_truncated() == Some(page.next_continuation_token().is_some()),
                    "a page contradicts itself"
                );
                ensure!(
                    page.continuation_token() == token.as_deref(),
                    "the token is not given back"
                );
                found.extend(entries);
                token = page.next_continuation_token;
                if token.is_none() {
                    break;
                }
                ensure!(count > 0 && found.len() <= KEYS.len(), "the pages do not end");
            }
            ensure!(
                found == expected,
                "prefix {prefix:?}, delimiter {delimiter:?}, pages of {size}: {found:?}, not {expected:?}"
            );
        }
    }
    Ok(())
}

fn merged(contents: &[aws_sdk_s3::types::Object], prefixes: &[aws_sdk_s3::types::CommonPrefix]) -> Vec<String> {
    let keys = contents.iter().filter_map(|object| object.key.clone());
    let mut all: Vec<String> = keys
        .chain(prefixes.iter().filter_map(|prefix| prefix.prefix.clone()))
        .collect();
    all.sort();
    all
}

async fn version_1_pages_agree_with_a_model(bench: Bench) -> Result<()> {
    put_keys(&bench, KEYS.map(str::to_owned).to_vec()).await?;
    for (prefix, delimiter) in ASKED {
        let expected = model(prefix, delimiter, "");
        for size in [1, 2, 5, 1000] {
            let mut found = Vec::new();
            let mut marker = String::new();
            loop {
                let page = bench
                    .client
                    .list_objects()
                    .bucket(&bench.bucket)
                    .prefix(prefix)
                    .max_keys(size)
                    .marker(&marker);
                let page = page
                    .set_delimiter((!delimiter.is_empty()).then(|| delimiter.to_owned()))
                    .send()
                    .await?;
                let entries = merged(page.contents(), page.common_prefixes());
                found.extend(entries);
                if page.is_truncated() != Some(true) {
                    break;
                }
                // S3 API Reference: without a delimiter, the last key is the next marker.
                marker = match page.next_marker() {
                    Some(next) => next.to_owned(),
                    None if delimiter.is_empty() => found.last().cloned().context("an empty page is truncated")?,
                    None => anyhow::bail!("a truncated page with a delimiter has no next marker"),
                };
                ensure!(found.len() <= KEYS.len(), "the pages do not end");
            }
            ensure!(
                found == expected,
                "prefix {prefix:?}, delimiter {delimiter:?}, pages of {size}: {found:?}, not {expected:?}"
            );
        }
    }
    Ok(())
}

async fn start_after_is_exclusive(bench: Bench) -> Result<()> {
    put_keys(&bench, KEYS.map(str::to_owned).to_vec()).await?;
    for after in ["", "a", "a/", "a/b", "a/zzz", "b/1", "zz", "0"] {
        for delimiter in ["", "/"] {
            let page = bench.client.list_objects_v2().bucket(&bench.bucket).start_after(after);
            let page = page
                .set_delimiter((!delimiter.is_empty()).then(|| delimiter.to_owned()))
                .send()
                .await?;
            let found = merged(page.contents(), page.common_prefixes());
            // Behind "a/" with a delimiter, S3 does not give the prefix "a/" again; behind "a/b" neither.
            let expected: Vec<String> = model("", delimiter, after)
                .into_iter()
                .filter(|entry| delimiter.is_empty() || !after.starts_with(entry.as_str()) || !entry.ends_with('/'))
                .collect();
            let again =
                |entry: &String| !delimiter.is_empty() && entry.ends_with('/') && after.starts_with(entry.as_str());
            let found: Vec<String> = found.into_iter().filter(|entry| !again(entry)).collect();
            ensure!(
                found == expected,
                "after {after:?}, delimiter {delimiter:?}: {found:?}, not {expected:?}"
            );
        }
    }
    Ok(())
}

async fn odd_keys_come_encoded(bench: Bench) -> Result<()> {
    for key in ODD_KEYS {
        bench.put(key, b"x").await?;
    }
    let page = bench
        .client
        .list_objects_v2()
        .bucket(&bench.bucket)
        .encoding_type(EncodingType::Url)
        .send()
        .await?;
    ensure!(page.encoding_type() == Some(&EncodingType::Url));
    let mut found = Vec::new();
    for object in page.contents() {
        let key = object.key().unwrap_or_default();
        ensure!(
            key.bytes().all(|byte| byte.is_ascii_graphic()),
            "{key:?} is not encoded"
        );
        // As clients do it: "+" is a space in a form.
        let key = key.replace('+', " ");
        found.push(percent_encoding::percent_decode_str(&key).decode_utf8()?.into_owned());
    }
    let mut expected: Vec<String> = ODD_KEYS.iter().map(|key| (*key).to_owned()).collect();
    expected.sort();
    ensure!(found == expected, "{found:?}, not {expected:?}");
    // What is given back of the request is encoded too.
    let list = bench
        .bucket("GET")
        .query("list-type", "2")
        .query("encoding-type", "url");
    let list = list
        .query("prefix", "a&b")
        .query("delimiter", "<")
        .query("start-after", "a b");
    let answer = list.signed(&bench.target)?.send(&bench.target).await?;
    answer.expect_status(200)?;
    let text = answer.text();
    for (name, value) in [("Prefix", "a%26b"), ("Delimiter", "%3C")] {
        ensure!(
            elements(&text, name).any(|found| found.eq_ignore_ascii_case(value)),
            "{name} is not {value}: {text}"
        );
    }
    ensure!(
        elements(&text, "StartAfter").any(|found| matches!(found, "a%20b" | "a+b")),
        "{text}"
    );
    Ok(())
}

async fn a_page_has_a_thousand(bench: Bench) -> Result<()> {
    let keys: Vec<String> = (0..1003).map(|n| format!("key-{n:04}")).collect();
    put_keys(&bench, keys.clone()).await?;
    for max in [None, Some(1000), Some(5000)] {
        let page = bench
            .client
            .list_objects_v2()
            .bucket(&bench.bucket)
            .set_max_keys(max)
            .send()
            .await?;
        ensure!(
            page.contents().len() == 1000 && page.is_truncated() == Some(true),
            "{} keys",
            page.contents().len()
        );
        let next = bench.client.list_objects_v2().bucket(&bench.bucket);
        let next = next.set_continuation_token(page.next_continuation_token).send().await?;
        let rest: Vec<&str> = next.contents().iter().filter_map(|object| object.key()).collect();
        ensure!(rest == ["key-1000", "key-1001", "key-1002"], "{rest:?}");
    }
    let delete = Bench::deletion(keys.into_iter().take(1000))?;
    bench
        .client
        .delete_objects()
        .bucket(&bench.bucket)
        .delete(delete)
        .send()
        .await?;
    Ok(())
}

async fn what_cannot_be_listed_is_refused(bench: Bench) -> Result<()> {
    let list = || bench.client.list_objects_v2().bucket(&bench.bucket);
    expect_code(list().max_keys(-1).send().await, "InvalidArgument")?;
    expect_code(list().continuation_token("nonsense!").send().await, "InvalidArgument")?;
    expect_code(
        list().encoding_type(EncodingType::from("xml")).send().await,
        "InvalidArgument",
    )?;
    let answer = bench.bucket("GET").query("list-type", "2").query("max-keys", "many");
    let answer = answer.signed(&bench.target)?.send(&bench.target).await?;
    answer.expect_error(400, "InvalidArgument")
}

async fn no_keys_are_no_error(bench: Bench) -> Result<()> {
    bench.put("a", b"x").await?;
    let page = bench
        .client
        .list_objects_v2()
        .bucket(&bench.bucket)
        .max_keys(0)
        .send()
        .await?;
    ensure!(
        page.contents().is_empty() && page.is_truncated() == Some(false),
        "{page:?}"
    );
    let page = bench
        .client
        .list_objects()
        .bucket(&bench.bucket)
        .max_keys(0)
        .send()
        .await?;
    ensure!(
        page.contents().is_empty() && page.is_truncated() == Some(false),
        "{page:?}"
    );
    Ok(())
}

async fn entries_describe_objects(bench: Bench) -> Result<()> {
    let etag = bench.put("a", b"12345").await?;
    let page = bench
        .client
        .list_objects_v2()
        .bucket(&bench.bucket)
        .fetch_owner(true)
        .send()
        .await?;
    let entry = page.contents().first().context("it is not listed")?;
    ensure!(entry.e_tag() == Some(&etag) && entry.size() == Some(5), "{entry:?}");
    ensure!(entry.last_modified().is_some() && entry.owner().is_some(), "{entry:?}");
    let page = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
    ensure!(
        page.contents().first().is_some_and(|entry| entry.owner().is_none()),
        "an owner was not asked for"
    );
    Ok(())
}
