//! Metadata, content headers and storage classes: kept as they were sent, within bounds.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::StorageClass;

use crate::{case::Bench, sdk::expect_code, wire::object_path};

crate::cases! {
    "PutObject": storage_classes_are_kept_and_shown, expires_is_kept_word_for_word, metadata_may_be_any_text,
        two_kibibytes_of_metadata, a_body_over_the_bound_is_refused_unread;
    "CopyObject": classes_of_copies, directives_are_words;
    "CreateMultipartUpload": classes_of_uploads;
}

async fn storage_classes_are_kept_and_shown(bench: Bench) -> Result<()> {
    let put = |class: &str| {
        let put = bench.client.put_object().bucket(&bench.bucket).key("k");
        put.storage_class(StorageClass::from(class)).send()
    };
    for class in [
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER_IR",
    ] {
        put(class).await.with_context(|| class.to_owned())?;
        let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
        ensure!(
            head.storage_class().map(StorageClass::as_str) == Some(class),
            "{:?}",
            head.storage_class()
        );
        let list = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
        let listed = list.contents().first().and_then(|object| object.storage_class());
        ensure!(
            listed.map(aws_sdk_s3::types::ObjectStorageClass::as_str) == Some(class),
            "{listed:?}"
        );
    }
    put("STANDARD").await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(head.storage_class().is_none(), "{:?}", head.storage_class());
    expect_code(put("COLD").await, "InvalidStorageClass")
}

async fn classes_of_copies(bench: Bench) -> Result<()> {
    bench.put("a", b"x").await?;
    let copy = |class: &str| {
        let copy = bench.client.copy_object().bucket(&bench.bucket).key("b");
        let copy = copy.copy_source(object_path(&bench.bucket, "a").split_off(1));
        copy.storage_class(StorageClass::from(class)).send()
    };
    expect_code(copy("COLD").await, "InvalidStorageClass")?;
    bench.expect_absent("b").await?;
    copy("STANDARD_IA").await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("b").send().await?;
    ensure!(head.storage_class() == Some(&StorageClass::StandardIa));
    Ok(())
}

async fn classes_of_uploads(bench: Bench) -> Result<()> {
    let create = |class: &str| {
        let create = bench.client.create_multipart_upload().bucket(&bench.bucket).key("k");
        create.storage_class(StorageClass::from(class)).send()
    };
    expect_code(create("COLD").await, "InvalidStorageClass")?;
    let created = create("STANDARD_IA").await?;
    let parts = bench.client.list_parts().bucket(&bench.bucket).key("k");
    let parts = parts.set_upload_id(created.upload_id).send().await?;
    ensure!(parts.storage_class() == Some(&StorageClass::StandardIa), "{parts:?}");
    let uploads = bench
        .client
        .list_multipart_uploads()
        .bucket(&bench.bucket)
        .send()
        .await?;
    let listed = uploads.uploads().first().and_then(|upload| upload.storage_class());
    ensure!(listed == Some(&StorageClass::StandardIa), "{listed:?}");
    Ok(())
}

async fn expires_is_kept_word_for_word(bench: Bench) -> Result<()> {
    for expires in ["Wed, 18 May 2033 03:33:20 GMT", "never", "0"] {
        let put = bench
            .object("PUT", "k")
            .header("expires", expires)
            .signed(&bench.target)?;
        put.send(&bench.target).await?.expect_status(200)?;
        for method in ["GET", "HEAD"] {
            let answer = bench
                .object(method, "k")
                .signed(&bench.target)?
                .send(&bench.target)
                .await?;
            ensure!(
                answer.header("expires") == Some(expires),
                "{expires}: {:?}",
                answer.headers
            );
        }
    }
    Ok(())
}

/// S3 User Guide, "Working with object metadata": what is not ASCII comes back as RFC 2047 has it.
async fn metadata_may_be_any_text(bench: Bench) -> Result<()> {
    for (sent, received) in [
        ("plain", "plain"),
        ("two  words, \"quoted\"=; x", "two  words, \"quoted\"=; x"),
        ("größe", "=?UTF-8?B?Z3LDtsOfZQ==?="),
        ("=?UTF-8?B?Z3LDtsOfZQ==?=", "=?UTF-8?B?Z3LDtsOfZQ==?="),
    ] {
        let put = bench.object("PUT", "k").header("x-amz-meta-size", sent);
        put.signed(&bench.target)?
            .send(&bench.target)
            .await?
            .expect_status(200)
            .with_context(|| sent.to_owned())?;
        let head = bench
            .object("HEAD", "k")
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        ensure!(
            head.header("x-amz-meta-size") == Some(received),
            "{sent}: {:?}",
            head.headers
        );
    }
    Ok(())
}

async fn two_kibibytes_of_metadata(bench: Bench) -> Result<()> {
    // The name counts, without its prefix.
    let put = |len: usize| {
        let put = bench.object("PUT", "k").header("x-amz-meta-name", "v".repeat(len - 4));
        put.signed(&bench.target)
    };
    put(2048)?.send(&bench.target).await?.expect_status(200)?;
    put(2049)?
        .send(&bench.target)
        .await?
        .expect_error(400, "MetadataTooLarge")
}

async fn a_body_over_the_bound_is_refused_unread(bench: Bench) -> Result<()> {
    let over = ((5_u64 << 30) + 1).to_string();
    let created = bench.client.create_multipart_upload().bucket(&bench.bucket).key("k");
    let created = created.send().await?;
    let id = created.upload_id().context("no upload id")?;
    let put = bench.object("PUT", "k");
    let part = bench.object("PUT", "k").query("partNumber", "1").query("uploadId", id);
    for mut request in [put, part] {
        request.content_length = Some(over.clone());
        let unsigned = crate::wire::Payload::Unsigned;
        let request = request.signed_as(&bench.target, &unsigned, &crate::wire::AmzTime::now())?;
        request.send(&bench.target).await?.expect_error(400, "EntityTooLarge")?;
    }
    // Documents too, whoever sends them, and whatever they are.
    for (method, query) in [("POST", "delete"), ("PUT", "tagging"), ("PUT", "policy")] {
        let mut request = bench.bucket(method).query(query, "");
        request.content_length = Some("104857600".to_owned());
        let unsigned = crate::wire::Payload::Unsigned;
        let request = request.signed_as(&bench.target, &unsigned, &crate::wire::AmzTime::now())?;
        request
            .send(&bench.target)
            .await?
            .expect_error(400, "MalformedXML")
            .with_context(|| query.to_owned())?;
    }
    Ok(())
}

async fn directives_are_words(bench: Bench) -> Result<()> {
    bench.put("a", b"x").await?;
    for header in ["x-amz-metadata-directive", "x-amz-tagging-directive"] {
        let copy = bench
            .object("PUT", "b")
            .header("x-amz-copy-source", object_path(&bench.bucket, "a"))
            .header(header, "MERGE");
        copy.signed(&bench.target)?
            .send(&bench.target)
            .await?
            .expect_error(400, "InvalidArgument")
            .with_context(|| header.to_owned())?;
    }
    bench.expect_absent("b").await
}
