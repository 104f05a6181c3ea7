//! PutObject, GetObject, HeadObject, DeleteObject, DeleteObjects.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    primitives::{ByteStream, DateTime},
    types::{ChecksumAlgorithm, ChecksumMode},
};

use super::ODD_KEYS;
use crate::{
    case::Bench,
    pattern::{Pattern, md5_hex},
    sdk::{expect_code, expect_status},
};

crate::cases! {
    "PutObject": content_and_headers_come_back, odd_keys_are_kept_apart, longest_key_is_taken, empty_object,
        the_last_put_counts, if_none_match_keeps_the_first, if_match_wants_the_current, checksums_are_verified_and_kept;
    "GetObject": ranges, ranges_outside_are_refused, conditions, headers_can_be_overridden, zeros_are_bytes;
    "HeadObject": a_missing_key_is_404;
    "DeleteObject": deleting_twice_is_no_error;
    "DeleteObjects": a_thousand_keys_at_once, quiet_names_errors_only;
}

async fn content_and_headers_come_back(bench: Bench) -> Result<()> {
    let content = Pattern(1).bytes(0..300_000);
    let put = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key("a/b")
        .body(ByteStream::from(content.clone()))
        .content_type("application/x-disk")
        .content_encoding("gzip")
        .content_language("de")
        .content_disposition("attachment; filename=\"b\"")
        .cache_control("max-age=5")
        .expires(DateTime::from_secs(2_000_000_000))
        .metadata("Color", "dark red")
        .metadata("n", "1")
        .send()
        .await?;
    let etag = format!("\"{}\"", md5_hex(&content));
    ensure!(
        put.e_tag() == Some(&etag),
        "the ETag is {:?}, and should be the MD5, {etag}",
        put.e_tag()
    );
    let head = bench
        .client
        .head_object()
        .bucket(&bench.bucket)
        .key("a/b")
        .send()
        .await?;
    ensure!(head.e_tag() == put.e_tag());
    ensure!(
        head.content_length() == Some(300_000),
        "the length is {:?}",
        head.content_length()
    );
    ensure!(head.content_type() == Some("application/x-disk"));
    ensure!(head.content_encoding() == Some("gzip"));
    ensure!(head.content_language() == Some("de"));
    ensure!(head.content_disposition() == Some("attachment; filename=\"b\""));
    ensure!(head.cache_control() == Some("max-age=5"));
    ensure!(
        head.expires_string() == Some("Wed, 18 May 2033 03:33:20 GMT"),
        "{:?}",
        head.expires_string()
    );
    ensure!(head.accept_ranges() == Some("bytes"));
    let metadata = HashMap::from([
        ("color".to_owned(), "dark red".to_owned()),
        ("n".to_owned(), "1".to_owned()),
    ]);
    ensure!(head.metadata() == Some(&metadata), "{:?}", head.metadata());
    ensure!(bench.get("a/b").await? == content, "the content is another one");
    Ok(())
}

async fn odd_keys_are_kept_apart(bench: Bench) -> Result<()> {
    for key in ODD_KEYS {
        bench
            .put(key, key.as_bytes())
            .await
            .with_context(|| format!("put {key:?}"))?;
    }
    for key in ODD_KEYS {
        let found = bench.get(key).await.with_context(|| format!("get {key:?}"))?;
        ensure!(
            found == key.as_bytes(),
            "{key:?} holds what was put to {:?}",
            String::from_utf8_lossy(&found)
        );
        bench
            .client
            .delete_object()
            .bucket(&bench.bucket)
            .key(key)
            .send()
            .await?;
        bench.expect_absent(key).await?;
    }
    Ok(())
}

async fn longest_key_is_taken(bench: Bench) -> Result<()> {
    let longest = "k".repeat(1024);
    bench.put(&longest, b"x").await?;
    ensure!(bench.get(&longest).await? == b"x");
    // 1024 bytes are meant, not characters.
    let wide = "ü".repeat(512);
    bench.put(&wide, b"y").await?;
    ensure!(bench.get(&wide).await? == b"y");
    Ok(())
}

async fn empty_object(bench: Bench) -> Result<()> {
    let etag = bench.put("empty", b"").await?;
    ensure!(etag == "\"d41d8cd98f00b204e9800998ecf8427e\"", "{etag}");
    ensure!(bench.get("empty").await?.is_empty());
    let range = bench
        .client
        .get_object()
        .bucket(&bench.bucket)
        .key("empty")
        .range("bytes=0-")
        .send()
        .await;
    expect_code(range, "InvalidRange")
}

async fn the_last_put_counts(bench: Bench) -> Result<()> {
    for n in 0..5_u8 {
        bench.put("k", &vec![n + 1; 70_000 * usize::from(n)]).await?;
        ensure!(
            bench.get("k").await? == vec![n + 1; 70_000 * usize::from(n)],
            "put {n} is not what is read"
        );
    }
    Ok(())
}

async fn if_none_match_keeps_the_first(bench: Bench) -> Result<()> {
    let put = |body: &'static [u8]| {
        let body = ByteStream::from_static(body);
        bench
            .client
            .put_object()
            .bucket(&bench.bucket)
            .key("k")
            .if_none_match("*")
            .body(body)
            .send()
    };
    put(b"first").await?;
    expect_code(put(b"second").await, "PreconditionFailed")?;
    ensure!(bench.get("k").await? == b"first");
    Ok(())
}

async fn if_match_wants_the_current(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"first").await?;
    let put = |etag: String, body: &'static [u8]| {
        let body = ByteStream::from_static(body);
        bench
            .client
            .put_object()
            .bucket(&bench.bucket)
            .key("k")
            .if_match(etag)
            .body(body)
            .send()
    };
    put(etag.clone(), b"second").await?;
    expect_code(put(etag, b"third").await, "PreconditionFailed")?;
    ensure!(bench.get("k").await? == b"second");
    Ok(())
}

async fn checksums_are_verified_and_kept(bench: Bench) -> Result<()> {
    let content = Pattern(2).bytes(0..100_001);
    for algorithm in [
        ChecksumAlgorithm::Crc32,
        ChecksumAlgorithm::Crc32C,
        ChecksumAlgorithm::Crc64Nvme,
        ChecksumAlgorithm::Sha1,
        ChecksumAlgorithm::Sha256,
    ] {
        let put = bench
            .client
            .put_object()
            .bucket(&bench.bucket)
            .key("k")
            .checksum_algorithm(algorithm.clone());
        let put = put
            .body(ByteStream::from(content.clone()))
            .send()
            .await
            .with_context(|| algorithm.to_string())?;
        let head = bench
            .client
            .head_object()
            .bucket(&bench.bucket)
            .key("k")
            .checksum_mode(ChecksumMode::Enabled);
        let head = head.send().await?;
        let (was, is) = match algorithm {
            ChecksumAlgorithm::Crc32 => (put.checksum_crc32, head.checksum_crc32),
            ChecksumAlgorithm::Crc32C => (put.checksum_crc32_c, head.checksum_crc32_c),
            ChecksumAlgorithm::Crc64Nvme => (put.checksum_crc64_nvme, head.checksum_crc64_nvme),
            ChecksumAlgorithm::Sha1 => (put.checksum_sha1, head.checksum_sha1),
            _ => (put.checksum_sha256, head.checksum_sha256),
        };
        ensure!(
            was.is_some() && was == is,
            "{algorithm}: PutObject says {was:?}, HeadObject {is:?}"
        );
        // The SDK verifies it once more.
        let got = bench
            .client
            .get_object()
            .bucket(&bench.bucket)
            .key("k")
            .checksum_mode(ChecksumMode::Enabled);
        ensure!(got.send().await?.body.collect().await?.to_vec() == content);
    }
    Ok(())
}

async fn ranges(bench: Bench) -> Result<()> {
    let content = Pattern(3).bytes(0..200_000);
    bench.put("k", &content).await?;
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 200_000),
        ("bytes=5-9", 5, 10),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=131071-131073", 131_071, 131_074),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=199999-999999999999", 199_999, 200_000),
        ("bytes=-1", 199_999, 200_000),
        ("bytes=-200000", 0, 200_000),
        ("bytes=-300000", 0, 200_000),
    ] {
        let got = bench
            .client
            .get_object()
            .bucket(&bench.bucket)
            .key("k")
            .range(range)
            .send()
            .await;
        let got = got.with_context(|| range.to_owned())?;
        let expected = format!("bytes {start}-{}/200000", end - 1);
        ensure!(
            got.content_range() == Some(&expected),
            "{range}: {:?}, not {expected}",
            got.content_range()
        );
        ensure!(
            got.content_length() == Some(end - start),
            "{range}: the length is {:?}",
            got.content_length()
        );
        let bytes = got.body.collect().await?.to_vec();
        let expected = content.get(usize::try_from(start)?..usize::try_from(end)?);
        ensure!(Some(bytes.as_slice()) == expected, "{range}: the bytes are other ones");
    }
    let partial = bench
        .object("GET", "k")
        .header("range", "bytes=1-2")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    partial.expect_status(206)
}

async fn ranges_outside_are_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"0123456789").await?;
    for range in ["bytes=10-", "bytes=10-20", "bytes=999999999999-", "bytes=-0"] {
        let answer = bench
            .object("GET", "k")
            .header("range", range)
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        answer
            .expect_error(416, "InvalidRange")
            .with_context(|| range.to_owned())?;
        ensure!(
            answer.header("content-range") == Some("bytes */10"),
            "{range}: {:?}",
            answer.header("content-range")
        );
    }
    Ok(())
}

async fn conditions(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"x").await?;
    let (past, future) = (DateTime::from_secs(1_000_000_000), DateTime::from_secs(4_000_000_000));
    let get = || bench.client.get_object().bucket(&bench.bucket).key("k");
    get().if_match(&etag).send().await?;
    get().if_match("*").send().await?;
    expect_code(get().if_match("\"0\"").send().await, "PreconditionFailed")?;
    get().if_none_match("\"0\"").send().await?;
    expect_status(get().if_none_match(&etag).send().await, 304)?;
    get().if_modified_since(past).send().await?;
    expect_status(get().if_modified_since(future).send().await, 304)?;
    get().if_unmodified_since(future).send().await?;
    expect_code(get().if_unmodified_since(past).send().await, "PreconditionFailed")?;
    // RFC 9110, "Precedence of Preconditions": the ETag decides.
    get().if_match(&etag).if_unmodified_since(past).send().await?;
    expect_status(get().if_none_match(&etag).if_modified_since(past).send().await, 304)
}

async fn headers_can_be_overridden(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    let got = bench.client.get_object().bucket(&bench.bucket).key("k");
    let got = got
        .response_content_type("text/x")
        .response_content_disposition("inline")
        .response_cache_control("no-store");
    let got = got.send().await?;
    ensure!(got.content_type() == Some("text/x"), "{:?}", got.content_type());
    ensure!(
        got.content_disposition() == Some("inline"),
        "{:?}",
        got.content_disposition()
    );
    ensure!(got.cache_control() == Some("no-store"), "{:?}", got.cache_control());
    Ok(())
}

/// Runs of zeros are not stored: their edges are where mistakes would be.
async fn zeros_are_bytes(bench: Bench) -> Result<()> {
    const GRAIN: usize = 64 << 10;
    let mut content = vec![0; 20 * GRAIN + 1];
    for (start, end) in [
        (GRAIN - 1, GRAIN + 1),
        (3 * GRAIN, 4 * GRAIN),
        (7 * GRAIN + 5, 9 * GRAIN - 5),
        (20 * GRAIN, 20 * GRAIN + 1),
    ] {
        for (place, byte) in content
            .iter_mut()
            .zip(Pattern(4).bytes(0..20 * 65_536 + 1))
            .take(end)
            .skip(start)
        {
            *place = byte | 1;
        }
    }
    bench.put("k", &content).await?;
    ensure!(bench.get("k").await? == content, "the whole is another one");
    let edges = [
        0,
        1,
        GRAIN - 2,
        GRAIN - 1,
        GRAIN,
        GRAIN + 1,
        2 * GRAIN,
        3 * GRAIN - 1,
        4 * GRAIN,
        7 * GRAIN + 6,
        9 * GRAIN,
        20 * GRAIN,
    ];
    for (n, start) in edges.iter().enumerate() {
        for end in edges.iter().skip(n) {
            let range = format!("bytes={start}-{end}");
            let got = bench
                .client
                .get_object()
                .bucket(&bench.bucket)
                .key("k")
                .range(&range)
                .send()
                .await?;
            let got = got.body.collect().await?.to_vec();
            ensure!(
                Some(got.as_slice()) == content.get(*start..=*end),
                "{range} is another one"
            );
        }
    }
    bench.put("all", &vec![0; 5 << 20]).await?;
    ensure!(
        bench.get("all").await? == vec![0; 5 << 20],
        "nothing but zeros comes back as something else"
    );
    Ok(())
}

async fn a_missing_key_is_404(bench: Bench) -> Result<()> {
    expect_status(
        bench
            .client
            .head_object()
            .bucket(&bench.bucket)
            .key("missing")
            .send()
            .await,
        404,
    )?;
    bench.expect_absent("missing").await
}

async fn deleting_twice_is_no_error(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    for _ in 0..2 {
        let answer = bench
            .object("DELETE", "k")
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        answer.expect_status(204)?;
        bench.expect_absent("k").await?;
    }
    Ok(())
}

async fn a_thousand_keys_at_once(bench: Bench) -> Result<()> {
    bench.put("kept", b"x").await?;
    let keys: Vec<String> = (0..1000).map(|n| format!("k & {n}")).collect();
    for key in keys.iter().take(20) {
        bench.put(key, b"x").await?;
    }
    let delete = |keys: Vec<String>| -> Result<_> {
        Ok(bench
            .client
            .delete_objects()
            .bucket(&bench.bucket)
            .delete(Bench::deletion(keys)?)
            .send())
    };
    let deleted = delete(keys.clone())?.await?;
    ensure!(deleted.errors().is_empty(), "{:?}", deleted.errors());
    let names: Vec<&str> = deleted.deleted().iter().filter_map(|deleted| deleted.key()).collect();
    ensure!(names.len() == 1000, "{} keys are named", names.len());
    bench.expect_absent("k & 0").await?;
    ensure!(bench.get("kept").await? == b"x");
    expect_code(
        delete((0..1001).map(|n| n.to_string()).collect())?.await,
        "MalformedXML",
    )
}

async fn quiet_names_errors_only(bench: Bench) -> Result<()> {
    bench.put("a", b"x").await?;
    let mut delete = Bench::deletion(["a".to_owned()])?;
    delete.quiet = Some(true);
    let deleted = bench
        .client
        .delete_objects()
        .bucket(&bench.bucket)
        .delete(delete)
        .send()
        .await?;
    ensure!(
        deleted.deleted().is_empty() && deleted.errors().is_empty(),
        "{deleted:?}"
    );
    bench.expect_absent("a").await
}
