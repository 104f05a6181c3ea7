//! Conditional reads, writes, copies and deletes.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    primitives::{ByteStream, DateTime},
    types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier},
};
use futures::future::join_all;

use crate::{
    case::Bench,
    sdk::expect_code,
    wire::{AmzTime, Presign, Response, object_path},
};

crate::cases! {
    "GetObject": lists_of_etags_are_looked_through, not_modified_names_what_it_is_about, dates_that_are_none_count_as_none;
    "PutObject": conditions_of_every_form, a_condition_on_nothing_is_not_found, one_of_many_wins;
    "CompleteMultipartUpload": the_condition_is_looked_at_last;
    "CopyObject": conditions_on_the_target;
    "DeleteObject": only_what_is_meant_is_deleted, what_is_gone_is_no_error_unless_wanted;
    "DeleteObjects": each_key_has_its_own_condition;
}

async fn ask(bench: &Bench, method: &'static str, key: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let mut request = bench.object(method, key);
    if method == "PUT" {
        request = request.body("x");
    }
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.signed(&bench.target)?.send(&bench.target).await
}

async fn lists_of_etags_are_looked_through(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"x").await?;
    let bare = etag.trim_matches('"');
    for method in ["GET", "HEAD"] {
        for (name, value, status) in [
            ("if-match", format!("\"0\", {etag}"), 200),
            ("if-match", format!("\"0\",\"1\",{etag}"), 200),
            ("if-match", bare.to_owned(), 200),
            ("if-match", "*".to_owned(), 200),
            ("if-match", "\"0\", \"1\"".to_owned(), 412),
            ("if-none-match", format!("\"0\", {etag}"), 304),
            ("if-none-match", format!("W/{etag}"), 304),
            ("if-none-match", format!("\"0\", W/{etag}"), 304),
            ("if-none-match", bare.to_owned(), 304),
            ("if-none-match", "*".to_owned(), 304),
            ("if-none-match", "\"0\", \"1\"".to_owned(), 200),
        ] {
            ask(&bench, method, "k", &[(name, &value)])
                .await?
                .expect_status(status)
                .with_context(|| format!("{method} {name}: {value}"))?;
        }
    }
    Ok(())
}

async fn not_modified_names_what_it_is_about(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"x").await?;
    let whole = ask(&bench, "GET", "k", &[]).await?;
    for method in ["GET", "HEAD"] {
        let answer = ask(&bench, method, "k", &[("if-none-match", &etag)]).await?;
        answer.expect_status(304)?;
        ensure!(answer.header("etag") == Some(&etag), "{:?}", answer.headers);
        ensure!(
            answer.header("last-modified") == whole.header("last-modified"),
            "{:?}",
            answer.headers
        );
        ensure!(answer.body.is_empty(), "{}", answer.text());
    }
    Ok(())
}

async fn dates_that_are_none_count_as_none(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    // RFC 9110, "Date/Time Formats": two old forms are dates too.
    for (name, value, status) in [
        ("if-modified-since", "yesterday", 200),
        ("if-unmodified-since", "1994-11-06", 200),
        ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", 200),
        ("if-unmodified-since", "Sunday, 06-Nov-94 08:49:37 GMT", 412),
        ("if-unmodified-since", "Sun Nov  6 08:49:37 1994", 412),
    ] {
        ask(&bench, "GET", "k", &[(name, value)])
            .await?
            .expect_status(status)
            .with_context(|| format!("{name}: {value}"))?;
    }
    let presign = Presign {
        time: AmzTime::now(),
        expires: 60,
    };
    let presigned = bench.object("GET", "k").presigned(&bench.target, &presign)?;
    presigned
        .header("if-modified-since", "yesterday")
        .send(&bench.target)
        .await?
        .expect_status(200)
}

async fn conditions_of_every_form(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"x").await?;
    for (headers, status) in [
        (vec![("if-match", "\"0\"")], 412),
        (vec![("if-match", "*")], 200),
        (vec![("if-match", etag.as_str())], 200),
        (vec![("if-match", etag.trim_matches('"'))], 200),
        (vec![("if-none-match", "*")], 412),
        (vec![("if-none-match", etag.as_str())], 412),
        (vec![("if-none-match", "\"0\"")], 200),
        (vec![("if-match", "*"), ("if-none-match", "*")], 501),
    ] {
        ask(&bench, "PUT", "k", &headers)
            .await?
            .expect_status(status)
            .with_context(|| format!("{headers:?}"))?;
    }
    Ok(())
}

async fn a_condition_on_nothing_is_not_found(bench: Bench) -> Result<()> {
    for value in ["*", "\"0\""] {
        ask(&bench, "PUT", "missing", &[("if-match", value)])
            .await?
            .expect_error(404, "NoSuchKey")?;
    }
    bench.expect_absent("missing").await?;
    ask(&bench, "PUT", "missing", &[("if-none-match", "\"0\"")])
        .await?
        .expect_status(200)
}

/// However many write at a time, one finds what it wants.
async fn one_of_many_wins(bench: Bench) -> Result<()> {
    for round in 0..4 {
        let key = format!("k{round}");
        let first = join_all((0..16).map(|_| ask(&bench, "PUT", &key, &[("if-none-match", "*")]))).await;
        ensure!(winners(first)? == 1, "several made the object anew");
        let etag = bench.put(&key, format!("round {round}").as_bytes()).await?;
        let headers = [("if-match", etag.as_str())];
        let then = join_all((0..16).map(|_| ask(&bench, "PUT", &key, &headers))).await;
        ensure!(winners(then)? == 1, "several replaced the same version");
    }
    Ok(())
}

fn winners(answers: Vec<Result<Response>>) -> Result<usize> {
    let mut won = 0;
    for answer in answers {
        match answer?.status {
            200 => won += 1,
            409 | 412 => {}
            status => anyhow::bail!("a write that lost was answered by {status}"),
        }
    }
    Ok(won)
}

async fn the_condition_is_looked_at_last(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"there").await?;
    let (client, bucket) = (&bench.client, &bench.bucket);
    let created = client.create_multipart_upload().bucket(bucket).key("k").send().await?;
    let id = created.upload_id().context("no upload id")?;
    let part = client
        .upload_part()
        .bucket(bucket)
        .key("k")
        .upload_id(id)
        .part_number(1);
    let part = part.body(ByteStream::from_static(b"parts")).send().await?;
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(part.e_tag)
        .set_checksum_crc32(part.checksum_crc32)
        .build();
    let complete = || {
        let parts = CompletedMultipartUpload::builder().parts(part.clone()).build();
        let complete = client.complete_multipart_upload().bucket(bucket).key("k");
        complete.upload_id(id).multipart_upload(parts)
    };
    expect_code(complete().if_match("\"0\"").send().await, "PreconditionFailed")?;
    expect_code(complete().if_none_match("*").send().await, "PreconditionFailed")?;
    ensure!(bench.get("k").await? == b"there");
    complete().if_match(&etag).send().await?;
    ensure!(bench.get("k").await? == b"parts");
    Ok(())
}

async fn conditions_on_the_target(bench: Bench) -> Result<()> {
    bench.put("a", b"source").await?;
    let etag = bench.put("b", b"there").await?;
    let source = object_path(&bench.bucket, "a").split_off(1);
    let copy = || {
        let copy = bench.client.copy_object().bucket(&bench.bucket).copy_source(&source);
        copy.key("b")
    };
    expect_code(copy().if_none_match("*").send().await, "PreconditionFailed")?;
    expect_code(copy().if_match("\"0\"").send().await, "PreconditionFailed")?;
    ensure!(bench.get("b").await? == b"there");
    copy().if_match(etag).send().await?;
    ensure!(bench.get("b").await? == b"source");
    Ok(())
}

async fn only_what_is_meant_is_deleted(bench: Bench) -> Result<()> {
    let etag = bench.put("k", b"0123").await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
    let modified = *head.last_modified().context("no Last-Modified")?;
    let delete = || bench.client.delete_object().bucket(&bench.bucket).key("k");
    expect_code(delete().if_match("\"0\"").send().await, "PreconditionFailed")?;
    expect_code(delete().if_match_size(5).send().await, "PreconditionFailed")?;
    let other = DateTime::from_secs(modified.secs() - 1);
    expect_code(
        delete().if_match_last_modified_time(other).send().await,
        "PreconditionFailed",
    )?;
    ensure!(bench.get("k").await? == b"0123");
    delete()
        .if_match(etag)
        .if_match_size(4)
        .if_match_last_modified_time(modified)
        .send()
        .await?;
    bench.expect_absent("k").await
}

/// S3 API Reference, "DeleteObject": a condition holds of what does not exist, but `*` wants something.
async fn what_is_gone_is_no_error_unless_wanted(bench: Bench) -> Result<()> {
    let delete = || bench.client.delete_object().bucket(&bench.bucket).key("missing");
    delete().if_match("\"0\"").send().await?;
    delete().if_match_size(1).send().await?;
    expect_code(delete().if_match("*").send().await, "PreconditionFailed")
}

async fn each_key_has_its_own_condition(bench: Bench) -> Result<()> {
    let etag = bench.put("a", b"x").await?;
    bench.put("b", b"x").await?;
    let entry = |key: &str, etag: &str| ObjectIdentifier::builder().key(key).e_tag(etag).build();
    let delete = Delete::builder()
        .objects(entry("a", &etag)?)
        .objects(entry("b", "\"0\"")?)
        .objects(ObjectIdentifier::builder().key("b").size(2).build()?)
        .objects(
            ObjectIdentifier::builder()
                .key("b")
                .last_modified_time(DateTime::from_secs(1))
                .build()?,
        )
        .build()?;
    let answer = bench.client.delete_objects().bucket(&bench.bucket).delete(delete);
    let answer = answer.send().await?;
    let deleted: Vec<_> = answer.deleted().iter().filter_map(|entry| entry.key()).collect();
    ensure!(deleted == ["a"], "{deleted:?}");
    let failed: Vec<_> = answer
        .errors()
        .iter()
        .map(|entry| (entry.key(), entry.code()))
        .collect();
    ensure!(failed == [(Some("b"), Some("PreconditionFailed")); 3], "{failed:?}");
    ensure!(bench.get("b").await? == b"x");
    Ok(())
}
