//! Presigned URLs: signatures in the query (S3 API Reference, "Authenticating Requests: Using Query Parameters").

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::presigning::PresigningConfig;

use crate::{
    case::Bench,
    wire::{AmzTime, Presign, Request},
};

crate::cases! {
    "GetObject": presigned_by_the_sdk, presigned_by_hand, expired_is_refused, tampered_is_refused, too_long_is_refused,
        ranges_work_on_presigned_urls;
    "PutObject": presigned_put, presigned_put_with_another_header_is_refused;
}

const NEVER_MIND: i64 = 300;

fn now() -> Presign {
    Presign {
        time: AmzTime::now(),
        expires: NEVER_MIND,
    }
}

/// A request for what a URL names.
fn plain(method: &'static str, url: &str, endpoint: &str) -> Result<Request> {
    Ok(Request::new(
        method,
        url.strip_prefix(endpoint).context("the URL is elsewhere")?,
    ))
}

async fn presigned_by_the_sdk(bench: Bench) -> Result<()> {
    let key = "a b/ü+";
    bench.put(key, b"hello").await?;
    let config = PresigningConfig::expires_in(Duration::from_mins(1))?;
    let get = bench
        .client
        .get_object()
        .bucket(&bench.bucket)
        .key(key)
        .response_content_type("text/plain");
    let url = get.presigned(config).await?.uri().to_owned();
    let answer = plain("GET", &url, &bench.target.endpoint)?.send(&bench.target).await?;
    answer.expect_status(200)?;
    ensure!(
        answer.body == b"hello" && answer.header("content-type") == Some("text/plain"),
        "{answer:?}"
    );
    // A URL is for one method.
    let answer = plain("DELETE", &url, &bench.target.endpoint)?
        .send(&bench.target)
        .await?;
    answer.expect_error(403, "SignatureDoesNotMatch")
}

async fn presigned_by_hand(bench: Bench) -> Result<()> {
    bench.put("k", b"hello").await?;
    let answer = bench
        .object("GET", "k")
        .presigned(&bench.target, &now())?
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    let answer = bench
        .object("HEAD", "k")
        .presigned(&bench.target, &now())?
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    let answer = bench
        .object("GET", "missing")
        .presigned(&bench.target, &now())?
        .send(&bench.target)
        .await?;
    answer.expect_error(404, "NoSuchKey")
}

async fn ranges_work_on_presigned_urls(bench: Bench) -> Result<()> {
    bench.put("k", b"0123456789").await?;
    let mut request = bench.object("GET", "k").presigned(&bench.target, &now())?;
    // A hypervisor adds it to a URL that it was given: it is not signed.
    request = request.header("range", "bytes=2-4");
    let answer = request.send(&bench.target).await?;
    answer.expect_status(206)?;
    ensure!(answer.body == b"234", "{}", answer.text());
    Ok(())
}

async fn expired_is_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    let presign = Presign {
        time: AmzTime::seconds_from_now(-120),
        expires: 60,
    };
    let answer = bench
        .object("GET", "k")
        .presigned(&bench.target, &presign)?
        .send(&bench.target)
        .await?;
    answer.expect_error(403, "AccessDenied")
}

async fn too_long_is_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    for expires in [604_801, 0, -1] {
        let presign = Presign {
            time: AmzTime::now(),
            expires,
        };
        let answer = bench
            .object("GET", "k")
            .presigned(&bench.target, &presign)?
            .send(&bench.target)
            .await?;
        ensure!(
            (400..404).contains(&answer.status),
            "{expires} s: {} {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

async fn tampered_is_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    bench.put("other", b"y").await?;
    let good = bench.object("GET", "k").presigned(&bench.target, &now())?;
    let mut other = good.clone();
    other.path = bench.object("GET", "other").path;
    let mut longer = good.clone();
    let mut forged = good.clone();
    for (name, value) in longer.query.iter_mut().filter(|(name, _)| name == "X-Amz-Expires") {
        *value = format!("{name}9999").split_off(name.len());
    }
    for (_, value) in forged.query.iter_mut().filter(|(name, _)| name == "X-Amz-Signature") {
        *value = "0".repeat(64);
    }
    let with_signature = |text: &str| {
        let mut request = good.clone();
        for (_, value) in request.query.iter_mut().filter(|(name, _)| name == "X-Amz-Signature") {
            text.clone_into(value);
        }
        request
    };
    for none in ["", "x", "not hexadecimal digits", &"F".repeat(64), &"0".repeat(65)] {
        let answer = with_signature(none).send(&bench.target).await?;
        answer
            .expect_error(403, "SignatureDoesNotMatch")
            .context(none.to_owned())?;
    }
    let more = good.clone().query("response-content-type", "text/html");
    for (request, what) in [
        (other, "another key"),
        (longer, "a longer time"),
        (forged, "a forged signature"),
        (more, "more"),
    ] {
        let answer = request.send(&bench.target).await?;
        answer.expect_error(403, "SignatureDoesNotMatch").context(what)?;
    }
    let unknown = crate::target::Target {
        access_key: "NOBODY".into(),
        ..bench.target.clone()
    };
    let answer = bench
        .object("GET", "k")
        .presigned(&unknown, &now())?
        .send(&bench.target)
        .await?;
    answer.expect_error(403, "InvalidAccessKeyId")
}

async fn presigned_put(bench: Bench) -> Result<()> {
    let put = bench.object("PUT", "k").presigned(&bench.target, &now())?.body("hello");
    put.send(&bench.target).await?.expect_status(200)?;
    ensure!(bench.get("k").await? == b"hello");
    let config = PresigningConfig::expires_in(Duration::from_mins(1))?;
    let url = bench
        .client
        .put_object()
        .bucket(&bench.bucket)
        .key("l")
        .presigned(config)
        .await?
        .uri()
        .to_owned();
    let answer = plain("PUT", &url, &bench.target.endpoint)?
        .body("world")
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    ensure!(bench.get("l").await? == b"world");
    Ok(())
}

async fn presigned_put_with_another_header_is_refused(bench: Bench) -> Result<()> {
    let mut put = bench
        .object("PUT", "k")
        .header("x-amz-meta-color", "red")
        .presigned(&bench.target, &now())?
        .body("x");
    for (_, value) in &mut put.headers {
        "blue".clone_into(value);
    }
    put.send(&bench.target)
        .await?
        .expect_error(403, "SignatureDoesNotMatch")?;
    bench.expect_absent("k").await
}
