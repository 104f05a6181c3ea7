//! Requests that are wrong in what every operation shares: signatures, lengths, digests, names, XML.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use crate::{
    case::Bench,
    pattern::Pattern,
    target::Target,
    wire::{AmzTime, Payload, Request, element, send_bytes, send_bytes_and_close},
};

crate::cases! {
    "PutObject": cut_bodies_leave_nothing, wrong_digests_are_refused, a_wrong_body_hash_is_refused,
        a_length_is_needed, keys_over_the_bound_are_refused, metadata_over_the_bound_is_refused;
    "UploadPart": cut_parts_leave_nothing, wrong_digests_of_parts_are_refused;
    "Authentication": wrong_signatures_are_refused, requests_without_a_signature_are_refused, old_requests_are_refused;
    "DeleteObjects": broken_xml_is_refused, huge_xml_is_refused;
    "HTTP": nonsense_is_answered_or_cut_off;
    "NotImplemented": what_is_missing_says_so;
}

async fn cut_bodies_leave_nothing(bench: Bench) -> Result<()> {
    let content = Pattern(1).bytes(0..3 << 20);
    for payload in [Payload::Unsigned, Payload::Hashed] {
        for len in [0, 1, 1 << 20, content.len() - 1] {
            let put = bench.object("PUT", "k").body(content.clone());
            let put = put.signed_as(&bench.target, &payload, &AmzTime::now())?;
            if let Some(answer) = put.send_cut(&bench.target, len).await? {
                ensure!(
                    answer.status == 400,
                    "cut after {len}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
            bench.expect_absent("k").await?;
        }
    }
    // What was there before stays.
    bench.put("k", b"before").await?;
    let put = bench
        .object("PUT", "k")
        .body(content)
        .signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
    put.send_cut(&bench.target, 1 << 20).await?;
    ensure!(bench.get("k").await? == b"before");
    Ok(())
}

async fn cut_parts_leave_nothing(bench: Bench) -> Result<()> {
    let created = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    let id = created.upload_id.context("no upload id")?;
    let put = bench.object("PUT", "k").query("partNumber", "1").query("uploadId", &id);
    let put = put
        .body(Pattern(2).bytes(0..6 << 20))
        .signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
    put.send_cut(&bench.target, 3 << 20).await?;
    let parts = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&id)
        .send()
        .await?;
    ensure!(parts.parts().is_empty(), "half a part is there: {parts:?}");
    bench
        .client
        .abort_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&id)
        .send()
        .await?;
    Ok(())
}

/// Headers that declare a digest, and the code that refuses them for a body that has another one.
fn wrong_digests() -> [(&'static str, String, &'static str); 9] {
    [
        ("content-md5", BASE64.encode([7; 16]), "BadDigest"),
        ("content-md5", BASE64.encode([7; 15]), "InvalidDigest"),
        ("content-md5", "nonsense".to_owned(), "InvalidDigest"),
        ("x-amz-checksum-crc32", BASE64.encode([7; 4]), "BadDigest"),
        ("x-amz-checksum-crc32c", BASE64.encode([7; 4]), "BadDigest"),
        ("x-amz-checksum-crc64nvme", BASE64.encode([7; 8]), "BadDigest"),
        ("x-amz-checksum-sha1", BASE64.encode([7; 20]), "BadDigest"),
        ("x-amz-checksum-sha256", BASE64.encode([7; 32]), "BadDigest"),
        ("x-amz-checksum-crc32", "nonsense!".to_owned(), "InvalidRequest"),
    ]
}

async fn wrong_digests_are_refused(bench: Bench) -> Result<()> {
    for (name, value, code) in wrong_digests() {
        let put = bench
            .object("PUT", "k")
            .header(name, &value)
            .body(Pattern(3).bytes(0..200_000));
        let answer = put.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, code)
            .with_context(|| format!("{name}: {value}"))?;
        bench.expect_absent("k").await?;
    }
    Ok(())
}

async fn wrong_digests_of_parts_are_refused(bench: Bench) -> Result<()> {
    let created = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    let id = created.upload_id.context("no upload id")?;
    for (name, value, code) in wrong_digests() {
        let put = bench
            .object("PUT", "k")
            .query("partNumber", "1")
            .query("uploadId", &id)
            .header(name, &value);
        let put = put.body(Pattern(3).bytes(0..200_000)).signed(&bench.target)?;
        let answer = put.send(&bench.target).await?;
        answer
            .expect_error(400, code)
            .with_context(|| format!("{name}: {value}"))?;
    }
    let parts = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&id)
        .send()
        .await?;
    ensure!(parts.parts().is_empty(), "a refused part is there: {parts:?}");
    bench
        .client
        .abort_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&id)
        .send()
        .await?;
    Ok(())
}

async fn a_wrong_body_hash_is_refused(bench: Bench) -> Result<()> {
    let declared = Payload::Declared(crate::wire::sha256_hex(b"other"));
    let put = bench
        .object("PUT", "k")
        .body("body")
        .signed_as(&bench.target, &declared, &AmzTime::now())?;
    let answer = put.send(&bench.target).await?;
    // S3 says XAmzContentSHA256Mismatch; many libraries know only the other code.
    let code = element(&answer.text(), "Code").map(str::to_owned);
    let known = matches!(code.as_deref(), Some("XAmzContentSHA256Mismatch" | "BadDigest"));
    ensure!(known && answer.status == 400, "{} {}", answer.status, answer.text());
    bench.expect_absent("k").await
}

async fn a_length_is_needed(bench: Bench) -> Result<()> {
    let put = bench.object("PUT", "k").header("transfer-encoding", "chunked");
    let put = put.signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
    let head = put.head(&bench.target)?.replace("content-length: 0\r\n", "");
    let answer = send_bytes(&bench.target, format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await?;
    answer.expect_error(411, "MissingContentLength")?;
    bench.expect_absent("k").await
}

async fn keys_over_the_bound_are_refused(bench: Bench) -> Result<()> {
    for key in ["k".repeat(1025), "ü".repeat(513)] {
        let answer = bench
            .object("PUT", &key)
            .body("x")
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        answer.expect_error(400, "KeyTooLongError")?;
    }
    Ok(())
}

async fn metadata_over_the_bound_is_refused(bench: Bench) -> Result<()> {
    let put = bench
        .object("PUT", "k")
        .header("x-amz-meta-long", "v".repeat(2048))
        .body("x");
    put.signed(&bench.target)?
        .send(&bench.target)
        .await?
        .expect_error(400, "MetadataTooLarge")?;
    bench.expect_absent("k").await
}

async fn wrong_signatures_are_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"kept").await?;
    let wrong_secret = Target {
        secret_key: "wrong".into(),
        ..bench.target.clone()
    };
    let unknown = Target {
        access_key: "NOBODY".into(),
        ..bench.target.clone()
    };
    let requests = || {
        [
            bench.object("GET", "k"),
            bench.object("PUT", "k").body("x"),
            bench.object("DELETE", "k"),
            bench.bucket("GET"),
            Request::new("GET", "/"),
            bench.object("POST", "k").query("uploads", ""),
        ]
    };
    for request in requests() {
        let answer = request.clone().signed(&wrong_secret)?.send(&bench.target).await?;
        answer
            .expect_error(403, "SignatureDoesNotMatch")
            .with_context(|| request.uri())?;
        let answer = request.clone().signed(&unknown)?.send(&bench.target).await?;
        answer
            .expect_error(403, "InvalidAccessKeyId")
            .with_context(|| request.uri())?;
        let mut moved = request.clone().header("x-amz-meta-a", "1").signed(&bench.target)?;
        for (name, value) in &mut moved.headers {
            if name == "x-amz-meta-a" {
                "2".clone_into(value);
            }
        }
        let answer = moved.send(&bench.target).await?;
        answer
            .expect_error(403, "SignatureDoesNotMatch")
            .with_context(|| request.uri())?;
    }
    ensure!(bench.get("k").await? == b"kept");
    Ok(())
}

async fn requests_without_a_signature_are_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"kept").await?;
    for request in [
        bench.object("GET", "k"),
        bench.object("DELETE", "k"),
        bench.bucket("GET"),
        Request::new("GET", "/"),
    ] {
        let answer = request.send(&bench.target).await?;
        answer
            .expect_error(403, "AccessDenied")
            .with_context(|| request.uri())?;
    }
    for authorization in ["nonsense", "AWS4-HMAC-SHA256 Credential=a", "Basic YTpi"] {
        let answer = bench
            .object("GET", "k")
            .header("authorization", authorization)
            .send(&bench.target)
            .await?;
        ensure!(
            (400..404).contains(&answer.status),
            "{authorization}: {}",
            answer.status
        );
    }
    Ok(())
}

async fn old_requests_are_refused(bench: Bench) -> Result<()> {
    for seconds in [-3600, 3600] {
        let time = AmzTime::seconds_from_now(seconds);
        let answer = bench
            .object("GET", "k")
            .signed_as(&bench.target, &Payload::Hashed, &time)?
            .send(&bench.target)
            .await?;
        answer
            .expect_error(403, "RequestTimeTooSkewed")
            .with_context(|| format!("{seconds} s away"))?;
    }
    Ok(())
}

async fn broken_xml_is_refused(bench: Bench) -> Result<()> {
    for body in [
        "nonsense",
        "<Delete>",
        "<Delete></Delete>",
        "<Delete><Object></Object></Delete>",
        "<Other/>",
    ] {
        let md5 = BASE64.encode(<md5::Md5 as md5::Digest>::digest(body));
        let post = bench
            .bucket("POST")
            .query("delete", "")
            .header("content-md5", md5)
            .body(body);
        let answer = post.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, "MalformedXML")
            .with_context(|| format!("{body:?}"))?;
    }
    // Entities that grow are not expanded.
    let bomb = "<!DOCTYPE d [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>\
                <Delete><Object><Key>&b;</Key></Object></Delete>";
    let post = bench.bucket("POST").query("delete", "").body(bomb);
    let answer = post.signed(&bench.target)?.send(&bench.target).await?;
    ensure!(answer.status == 400, "{} {}", answer.status, answer.text());
    Ok(())
}

async fn huge_xml_is_refused(bench: Bench) -> Result<()> {
    bench.put("k", b"kept").await?;
    let body = format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(800_000));
    let post = bench
        .bucket("POST")
        .query("delete", "")
        .body(body)
        .signed(&bench.target)?;
    let answer = post.send(&bench.target).await?;
    ensure!(answer.status >= 400, "{} {}", answer.status, answer.text());
    ensure!(bench.get("k").await? == b"kept", "it was carried out");
    Ok(())
}

async fn nonsense_is_answered_or_cut_off(bench: Bench) -> Result<()> {
    let long_header = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for bytes in [
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "GET  /\r\n\r\n",
        &long_header,
    ] {
        if let Some(answer) = send_bytes_and_close(&bench.target, bytes.as_bytes()).await {
            let shown: String = bytes.chars().take(30).collect();
            ensure!((400..600).contains(&answer.status), "{shown:?}: {}", answer.status);
        }
    }
    for (length, body) in [("-1", "x"), ("nonsense", "x"), ("99999999999999999999999", "x")] {
        let mut put = bench.object("PUT", "k").body(body);
        put.content_length = Some(length.to_owned());
        let put = put.signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
        if let Some(answer) = put.send_cut(&bench.target, 1).await? {
            ensure!(answer.status == 400, "length {length}: {}", answer.status);
        }
    }
    bench.expect_absent("k").await?;
    bench
        .put("alive", b"x")
        .await
        .context("the server did not survive it")
        .map(drop)
}

async fn what_is_missing_says_so(bench: Bench) -> Result<()> {
    for parameter in ["acl", "website", "lifecycle", "versions", "replication", "policyStatus"] {
        let answer = bench
            .bucket("GET")
            .query(parameter, "")
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        if answer.status >= 500 {
            answer
                .expect_error(501, "NotImplemented")
                .with_context(|| parameter.to_owned())?;
        }
    }
    Ok(())
}
