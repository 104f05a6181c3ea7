//! Checksums: what is declared is verified, kept and shown.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, ObjectAttributes},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::digest::{SHA256, digest};

use crate::{
    case::Bench,
    pattern::Pattern,
    sdk::expect_code,
    wire::{AmzTime, Payload, object_path},
};

crate::cases! {
    "PutObject": announcements_are_kept_to, a_body_of_another_hash_is_refused;
    "DeleteObjects": documents_are_verified;
    "CreateMultipartUpload": types_follow_algorithms;
    "CompleteMultipartUpload": parts_and_whole_keep_their_checksums, what_the_client_says_of_the_object_is_verified;
    "CopyObject": a_copy_may_have_another_algorithm;
    "GetObjectAttributes": attributes_of_an_object, what_is_asked_for_is_named;
}

const PART: u64 = 5 << 20;

fn sha256(bytes: &[u8]) -> String {
    BASE64.encode(digest(&SHA256, bytes))
}

async fn announcements_are_kept_to(bench: Bench) -> Result<()> {
    for headers in [
        vec![("x-amz-sdk-checksum-algorithm", "CRC32")],
        vec![
            ("x-amz-sdk-checksum-algorithm", "SHA256"),
            ("x-amz-checksum-crc32", "AAAAAA=="),
        ],
        vec![("x-amz-checksum-crc32", "not base64")],
        vec![("x-amz-checksum-crc32", "AAAA")],
        vec![
            ("x-amz-checksum-crc32", "AAAAAA=="),
            ("x-amz-checksum-crc32c", "AAAAAA=="),
        ],
    ] {
        let mut put = bench.object("PUT", "k").body("x");
        for (name, value) in &headers {
            put = put.header(name, *value);
        }
        let answer = put.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, "InvalidRequest")
            .with_context(|| format!("{headers:?}"))?;
    }
    for (md5, code) in [
        ("", "InvalidDigest"),
        ("abc", "InvalidDigest"),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "BadDigest"),
    ] {
        let put = bench.object("PUT", "k").body("x").header("content-md5", md5);
        put.signed(&bench.target)?
            .send(&bench.target)
            .await?
            .expect_error(400, code)
            .with_context(|| format!("Content-MD5: {md5}"))?;
    }
    bench.expect_absent("k").await
}

async fn a_body_of_another_hash_is_refused(bench: Bench) -> Result<()> {
    bench.put("kept", b"x").await?;
    let hash = Payload::Declared("0".repeat(64));
    let put = bench.object("PUT", "k").body("x");
    let document = bench
        .bucket("POST")
        .query("delete", "")
        .body("<Delete><Object><Key>kept</Key></Object></Delete>");
    for request in [put, document] {
        let request = request.signed_as(&bench.target, &hash, &AmzTime::now())?;
        request
            .send(&bench.target)
            .await?
            .expect_error(400, "XAmzContentSHA256Mismatch")?;
    }
    bench.expect_absent("k").await?;
    ensure!(bench.get("kept").await? == b"x");
    Ok(())
}

async fn documents_are_verified(bench: Bench) -> Result<()> {
    bench.put("kept", b"x").await?;
    for (name, value, code) in [
        ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==", "BadDigest"),
        ("content-md5", "abc", "InvalidDigest"),
        ("x-amz-checksum-crc32", "AAAAAA==", "BadDigest"),
        ("x-amz-checksum-sha256", "AAAA", "InvalidRequest"),
    ] {
        let post = bench
            .bucket("POST")
            .query("delete", "")
            .header(name, value)
            .body("<Delete><Object><Key>kept</Key></Object></Delete>");
        post.signed(&bench.target)?
            .send(&bench.target)
            .await?
            .expect_error(400, code)
            .with_context(|| format!("{name}: {value}"))?;
    }
    ensure!(bench.get("kept").await? == b"x");
    Ok(())
}

async fn types_follow_algorithms(bench: Bench) -> Result<()> {
    use ChecksumAlgorithm as Algorithm;
    for (algorithm, asked, given) in [
        (Algorithm::Crc32, None, Ok(ChecksumType::Composite)),
        (Algorithm::Crc32C, None, Ok(ChecksumType::Composite)),
        (Algorithm::Sha1, None, Ok(ChecksumType::Composite)),
        (Algorithm::Sha256, None, Ok(ChecksumType::Composite)),
        (Algorithm::Crc64Nvme, None, Ok(ChecksumType::FullObject)),
        (
            Algorithm::Crc32,
            Some(ChecksumType::FullObject),
            Ok(ChecksumType::FullObject),
        ),
        (Algorithm::Sha256, Some(ChecksumType::FullObject), Err("InvalidRequest")),
        (
            Algorithm::Crc64Nvme,
            Some(ChecksumType::Composite),
            Err("InvalidRequest"),
        ),
    ] {
        let create = bench.client.create_multipart_upload().bucket(&bench.bucket).key("k");
        let create = create
            .checksum_algorithm(algorithm.clone())
            .set_checksum_type(asked.clone());
        let created = create.send().await;
        match given {
            Ok(kind) => {
                let created = created?;
                ensure!(
                    created.checksum_type() == Some(&kind),
                    "{algorithm} {asked:?}: {:?}",
                    created.checksum_type()
                );
            }
            Err(code) => expect_code(created, code).with_context(|| format!("{algorithm} {asked:?}"))?,
        }
    }
    let nothing = bench.object("POST", "k").query("uploads", "");
    let nothing = nothing
        .header("x-amz-checksum-type", "COMPOSITE")
        .signed(&bench.target)?;
    nothing.send(&bench.target).await?.expect_error(400, "InvalidRequest")
}

/// An upload of three parts with SHA256 sums, and what they hold.
async fn upload(bench: &Bench, key: &str) -> Result<(String, Vec<CompletedPart>, Vec<Vec<u8>>)> {
    let contents = vec![
        Pattern(1).bytes(0..PART),
        Pattern(2).bytes(0..PART + 1),
        b"end".to_vec(),
    ];
    let (client, bucket) = (&bench.client, &bench.bucket);
    let create = client.create_multipart_upload().bucket(bucket).key(key);
    let created = create.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await?;
    let id = created.upload_id.context("no upload id")?;
    let mut parts = Vec::new();
    for (number, content) in (1..).zip(&contents) {
        let part = client
            .upload_part()
            .bucket(bucket)
            .key(key)
            .upload_id(&id)
            .part_number(number);
        let part = part
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .body(ByteStream::from(content.clone()))
            .send()
            .await?;
        ensure!(part.checksum_sha256() == Some(sha256(content).as_str()));
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .set_e_tag(part.e_tag)
                .set_checksum_sha256(part.checksum_sha256)
                .build(),
        );
    }
    Ok((id, parts, contents))
}

async fn parts_and_whole_keep_their_checksums(bench: Bench) -> Result<()> {
    let (client, bucket) = (&bench.client, &bench.bucket);
    let (id, parts, contents) = upload(&bench, "k").await?;
    let other = client
        .upload_part()
        .bucket(bucket)
        .key("k")
        .upload_id(&id)
        .part_number(4);
    let other = other
        .checksum_algorithm(ChecksumAlgorithm::Crc32)
        .body(ByteStream::from_static(b"x"));
    expect_code(other.send().await, "InvalidRequest")?;
    let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = client
        .complete_multipart_upload()
        .bucket(bucket)
        .key("k")
        .upload_id(&id);
    let whole = complete.multipart_upload(list).send().await?;
    let sums: Vec<u8> = contents
        .iter()
        .flat_map(|part| digest(&SHA256, part).as_ref().to_vec())
        .collect();
    let composite = format!("{}-3", sha256(&sums));
    ensure!(
        whole.checksum_sha256() == Some(&composite),
        "{:?}",
        whole.checksum_sha256()
    );

    let mut number = 0;
    for content in &contents {
        number += 1;
        let get = client.get_object().bucket(bucket).key("k").part_number(number);
        let got = get.checksum_mode(ChecksumMode::Enabled).send().await?;
        ensure!(got.parts_count() == Some(3), "{:?}", got.parts_count());
        ensure!(
            got.checksum_sha256() == Some(&sha256(content)),
            "part {number}: {:?}",
            got.checksum_sha256()
        );
        ensure!(
            got.body.collect().await?.to_vec() == *content,
            "part {number} is another one"
        );
    }
    let beyond = client.get_object().bucket(bucket).key("k").part_number(4).send().await;
    expect_code(beyond, "InvalidPartNumber")?;

    let attributes = client.get_object_attributes().bucket(bucket).key("k");
    let attributes = attributes
        .object_attributes(ObjectAttributes::Checksum)
        .object_attributes(ObjectAttributes::ObjectParts)
        .max_parts(2);
    let first = attributes.clone().send().await?;
    let sum = first.checksum().context("no checksum")?;
    ensure!(sum.checksum_sha256() == Some(&composite) && sum.checksum_type() == Some(&ChecksumType::Composite));
    let page = first.object_parts().context("no parts")?;
    ensure!(page.total_parts_count() == Some(3) && page.is_truncated() == Some(true));
    ensure!(page.next_part_number_marker() == Some("2"), "{page:?}");
    let second = attributes.part_number_marker("2").send().await?;
    let rest = second.object_parts().context("no parts")?;
    ensure!(rest.is_truncated() == Some(false), "{rest:?}");
    let shown: Vec<_> = page.parts().iter().chain(rest.parts()).collect();
    ensure!(shown.len() == 3, "{shown:?}");
    for ((number, content), part) in (1..).zip(&contents).zip(shown) {
        ensure!(part.part_number() == Some(number) && part.size() == Some(i64::try_from(content.len())?));
        ensure!(part.checksum_sha256() == Some(sha256(content).as_str()), "{part:?}");
    }
    Ok(())
}

async fn what_the_client_says_of_the_object_is_verified(bench: Bench) -> Result<()> {
    let (id, parts, contents) = upload(&bench, "k").await?;
    let complete = || {
        let list = CompletedMultipartUpload::builder()
            .set_parts(Some(parts.clone()))
            .build();
        let complete = bench.client.complete_multipart_upload().bucket(&bench.bucket).key("k");
        complete.upload_id(&id).multipart_upload(list)
    };
    expect_code(complete().mpu_object_size(5).send().await, "InvalidRequest")?;
    expect_code(
        complete().checksum_type(ChecksumType::FullObject).send().await,
        "InvalidRequest",
    )?;
    let wrong = format!("{}-3", sha256(b"x"));
    expect_code(complete().checksum_sha256(wrong).send().await, "BadDigest")?;
    bench.expect_absent("k").await?;
    let size: usize = contents.iter().map(Vec::len).sum();
    complete().mpu_object_size(i64::try_from(size)?).send().await?;
    Ok(())
}

async fn a_copy_may_have_another_algorithm(bench: Bench) -> Result<()> {
    let content = Pattern(7).bytes(0..100_000);
    bench.put("a", &content).await?;
    let copy = bench.client.copy_object().bucket(&bench.bucket).key("b");
    let copied = copy
        .copy_source(object_path(&bench.bucket, "a").split_off(1))
        .checksum_algorithm(ChecksumAlgorithm::Sha256)
        .send()
        .await?;
    let sum = copied.copy_object_result().and_then(|result| result.checksum_sha256());
    ensure!(sum == Some(&sha256(&content)), "{sum:?}");
    let head = bench.client.head_object().bucket(&bench.bucket).key("b");
    let head = head.checksum_mode(ChecksumMode::Enabled).send().await?;
    ensure!(head.checksum_sha256() == Some(sha256(&content).as_str()));
    ensure!(bench.get("b").await? == content);
    Ok(())
}

async fn attributes_of_an_object(bench: Bench) -> Result<()> {
    let put = bench.client.put_object().bucket(&bench.bucket).key("k");
    let put = put
        .checksum_algorithm(ChecksumAlgorithm::Sha256)
        .body(ByteStream::from_static(b"x"));
    let put = put.send().await?;
    let get = bench.client.get_object_attributes().bucket(&bench.bucket).key("k");
    let all = get
        .clone()
        .object_attributes(ObjectAttributes::Etag)
        .object_attributes(ObjectAttributes::Checksum)
        .object_attributes(ObjectAttributes::ObjectParts)
        .object_attributes(ObjectAttributes::StorageClass)
        .object_attributes(ObjectAttributes::ObjectSize);
    let all = all.send().await?;
    // Without quotes, in this answer alone.
    ensure!(
        all.e_tag() == put.e_tag().map(|etag| etag.trim_matches('"')),
        "{:?}",
        all.e_tag()
    );
    ensure!(all.object_size() == Some(1) && all.last_modified().is_some());
    ensure!(all.storage_class().map(aws_sdk_s3::types::StorageClass::as_str) == Some("STANDARD"));
    ensure!(all.object_parts().is_none(), "{:?}", all.object_parts());
    let sum = all.checksum().context("no checksum")?;
    ensure!(sum.checksum_sha256() == put.checksum_sha256() && sum.checksum_type() == Some(&ChecksumType::FullObject));
    let some = get.object_attributes(ObjectAttributes::ObjectSize).send().await?;
    ensure!(some.e_tag().is_none() && some.storage_class().is_none() && some.checksum().is_none());
    let missing = bench
        .client
        .get_object_attributes()
        .bucket(&bench.bucket)
        .key("missing");
    let missing = missing.object_attributes(ObjectAttributes::ObjectSize).send().await;
    expect_code(missing, "NoSuchKey")
}

async fn what_is_asked_for_is_named(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    let ask = || bench.object("GET", "k").query("attributes", "");
    let answer = ask().signed(&bench.target)?.send(&bench.target).await?;
    ensure!(answer.status == 400, "{} {}", answer.status, answer.text());
    let unknown = ask()
        .header("x-amz-object-attributes", "ETag,Color")
        .signed(&bench.target)?;
    unknown.send(&bench.target).await?.expect_error(400, "InvalidArgument")
}
