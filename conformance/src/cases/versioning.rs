//! Versioning of buckets, and what it changes in every operation on objects (S3 User Guide, "Using versioning in S3
//! buckets").

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    operation::{
        delete_object::DeleteObjectOutput, list_object_versions::ListObjectVersionsOutput, put_object::PutObjectOutput,
    },
    primitives::ByteStream,
    types::{
        BucketVersioningStatus, CompletedMultipartUpload, CompletedPart, Delete, EncodingType, MfaDelete,
        ObjectAttributes, ObjectIdentifier, Tag, Tagging, VersioningConfiguration,
    },
};

use crate::{
    case::Bench,
    sdk::expect_code,
    wire::{element, elements, object_path},
};

crate::cases! {
    "PutBucketVersioning": states_are_shown_as_they_were_set, configurations_are_checked, a_second_factor_is_refused;
    "PutObject": a_bucket_that_never_kept_versions_shows_none, each_write_is_a_version_of_its_own,
        what_was_there_before_is_the_null_version, suspended_writes_replace_the_null_version_only;
    "GetObject": versions_are_read_by_their_ids, ids_that_are_none_are_refused, a_delete_marker_says_what_it_is;
    "GetObjectAttributes": attributes_are_those_of_the_version;
    "DeleteObject": a_delete_adds_a_marker_that_can_be_taken_away, a_suspended_delete_leaves_a_null_marker,
        the_version_before_comes_forward, deletes_of_versions_can_be_repeated;
    "DeleteObjects": results_name_versions_and_markers;
    "CopyObject": an_earlier_version_is_brought_back_by_a_copy, copies_are_of_the_version_they_name;
    "CompleteMultipartUpload": a_completed_upload_is_a_version;
    "UploadPartCopy": parts_are_copied_from_versions;
    "PutObjectTagging": each_version_has_its_own_tags;
    "If-None-Match": a_delete_marker_counts_as_absent;
    "ListObjectsV2": markers_and_earlier_versions_are_not_listed;
    "ListObjectVersions": versions_come_by_key_and_then_from_the_newest, pages_of_every_size_are_the_same,
        folders_are_folded, odd_keys_and_markers_are_listed, a_version_marker_needs_a_key_marker;
    "DeleteBucket": a_bucket_with_a_version_left_stays;
}

async fn set(bench: &Bench, status: BucketVersioningStatus) -> Result<()> {
    let configuration = VersioningConfiguration::builder().status(status).build();
    let set = bench.client.put_bucket_versioning().bucket(&bench.bucket);
    set.versioning_configuration(configuration).send().await?;
    Ok(())
}

async fn enable(bench: &Bench) -> Result<()> {
    set(bench, BucketVersioningStatus::Enabled).await
}

async fn suspend(bench: &Bench) -> Result<()> {
    set(bench, BucketVersioningStatus::Suspended).await
}

async fn put(bench: &Bench, key: &str, content: &str) -> Result<PutObjectOutput> {
    let body = ByteStream::from(content.as_bytes().to_vec());
    let put = bench.client.put_object().bucket(&bench.bucket).key(key).body(body);
    Ok(put.send().await?)
}

/// Writes a version and gives its id.
async fn version(bench: &Bench, key: &str, content: &str) -> Result<String> {
    let put = put(bench, key, content).await?;
    put.version_id.context("PutObject gave no version id")
}

async fn read(bench: &Bench, key: &str, version: &str) -> Result<String> {
    let got = bench.client.get_object().bucket(&bench.bucket).key(key);
    let got = got.version_id(version).send().await?;
    ensure!(got.version_id() == Some(version), "{:?}", got.version_id());
    Ok(String::from_utf8(got.body.collect().await?.to_vec())?)
}

async fn delete(bench: &Bench, key: &str, version: Option<&str>) -> Result<DeleteObjectOutput> {
    let delete = bench.client.delete_object().bucket(&bench.bucket).key(key);
    Ok(delete.set_version_id(version.map(str::to_owned)).send().await?)
}

/// Deletes the current version, and gives the id of the marker that stands there then.
async fn mark(bench: &Bench, key: &str) -> Result<String> {
    let deleted = delete(bench, key, None).await?;
    ensure!(deleted.delete_marker() == Some(true), "{deleted:?}");
    deleted.version_id.context("DeleteObject gave no version id")
}

/// All versions and markers of a listing, as key, id, whether it is a marker, and whether it is the latest. The library
/// gives them in two lists, each in order.
fn listed(list: &ListObjectVersionsOutput) -> Vec<(String, String, bool, bool)> {
    let versions = list.versions().iter().map(|version| {
        (
            version.key().unwrap_or_default().to_owned(),
            version.version_id().unwrap_or_default().to_owned(),
            false,
            version.is_latest().unwrap_or_default(),
        )
    });
    let markers = list.delete_markers().iter().map(|marker| {
        (
            marker.key().unwrap_or_default().to_owned(),
            marker.version_id().unwrap_or_default().to_owned(),
            true,
            marker.is_latest().unwrap_or_default(),
        )
    });
    versions.chain(markers).collect()
}

async fn list(bench: &Bench) -> Result<Vec<(String, String, bool, bool)>> {
    let list = bench.client.list_object_versions().bucket(&bench.bucket).send().await?;
    ensure!(list.is_truncated() != Some(true));
    Ok(listed(&list))
}

async fn states_are_shown_as_they_were_set(bench: Bench) -> Result<()> {
    let get = || bench.client.get_bucket_versioning().bucket(&bench.bucket).send();
    let state = get().await?;
    ensure!(state.status().is_none() && state.mfa_delete().is_none(), "{state:?}");
    for status in [
        BucketVersioningStatus::Enabled,
        BucketVersioningStatus::Enabled,
        BucketVersioningStatus::Suspended,
        BucketVersioningStatus::Enabled,
    ] {
        set(&bench, status.clone()).await?;
        ensure!(get().await?.status() == Some(&status));
    }
    let missing = format!("{}-missing", bench.bucket);
    let get = bench.client.get_bucket_versioning().bucket(&missing).send().await;
    expect_code(get, "NoSuchBucket")?;
    let configuration = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled);
    let put = bench.client.put_bucket_versioning().bucket(&missing);
    let put = put.versioning_configuration(configuration.build()).send().await;
    expect_code(put, "NoSuchBucket")
}

async fn configurations_are_checked(bench: Bench) -> Result<()> {
    for (body, code) in [
        (
            "<VersioningConfiguration></VersioningConfiguration>",
            "IllegalVersioningConfigurationException",
        ),
        (
            "<VersioningConfiguration><Status>On</Status></VersioningConfiguration>",
            "MalformedXML",
        ),
        ("<VersioningConfiguration><Status>Enabled", "MalformedXML"),
    ] {
        let request = bench.bucket("PUT").query("versioning", "").body(body);
        let answer = request.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_error(400, code).context(body)?;
    }
    let state = bench
        .client
        .get_bucket_versioning()
        .bucket(&bench.bucket)
        .send()
        .await?;
    ensure!(state.status().is_none());
    Ok(())
}

async fn a_second_factor_is_refused(bench: Bench) -> Result<()> {
    let configuration = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .mfa_delete(MfaDelete::Enabled);
    let put = bench.client.put_bucket_versioning().bucket(&bench.bucket);
    let put = put.versioning_configuration(configuration.build()).send().await;
    ensure!(put.is_err(), "nobody has a second factor here");
    let state = bench
        .client
        .get_bucket_versioning()
        .bucket(&bench.bucket)
        .send()
        .await?;
    ensure!(state.status().is_none() && state.mfa_delete().is_none(), "{state:?}");
    Ok(())
}

async fn a_bucket_that_never_kept_versions_shows_none(bench: Bench) -> Result<()> {
    ensure!(put(&bench, "k", "one").await?.version_id().is_none());
    for method in ["GET", "HEAD"] {
        for version in [None, Some("null")] {
            let mut request = bench.object(method, "k");
            if let Some(version) = version {
                request = request.query("versionId", version);
            }
            let answer = request.signed(&bench.target)?.send(&bench.target).await?;
            answer.expect_status(200)?;
            ensure!(answer.header("x-amz-version-id").is_none(), "{method} {version:?}");
        }
    }
    ensure!(list(&bench).await? == [("k".to_owned(), "null".to_owned(), false, true)]);
    let deleted = delete(&bench, "k", None).await?;
    ensure!(
        deleted.version_id().is_none() && deleted.delete_marker().is_none(),
        "{deleted:?}"
    );
    put(&bench, "k", "two").await?;
    delete(&bench, "k", Some("null")).await?;
    bench.expect_absent("k").await?;
    ensure!(list(&bench).await?.is_empty());
    Ok(())
}

async fn each_write_is_a_version_of_its_own(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(version(&bench, "k", &n.to_string()).await?);
    }
    ensure!(ids.iter().collect::<BTreeSet<_>>().len() == 5, "{ids:?}");
    for id in &ids {
        ensure!(
            id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c)),
            "{id}"
        );
        ensure!(id != "null");
    }
    let newest_first: Vec<_> = list(&bench).await?.into_iter().map(|(_, id, ..)| id).collect();
    ids.reverse();
    ensure!(newest_first == ids, "{newest_first:?}");
    ensure!(bench.get("k").await? == b"4");
    Ok(())
}

async fn what_was_there_before_is_the_null_version(bench: Bench) -> Result<()> {
    put(&bench, "k", "before").await?;
    enable(&bench).await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(head.version_id() == Some("null"), "{:?}", head.version_id());
    let id = version(&bench, "k", "after").await?;
    ensure!(read(&bench, "k", "null").await? == "before");
    ensure!(read(&bench, "k", &id).await? == "after");
    delete(&bench, "k", Some(&id)).await?;
    ensure!(bench.get("k").await? == b"before");
    Ok(())
}

async fn suspended_writes_replace_the_null_version_only(bench: Bench) -> Result<()> {
    put(&bench, "k", "null one").await?;
    enable(&bench).await?;
    let id = version(&bench, "k", "kept").await?;
    suspend(&bench).await?;
    for content in ["null two", "null three"] {
        ensure!(version(&bench, "k", content).await? == "null");
    }
    let found = list(&bench).await?;
    let expected = [
        ("k".to_owned(), "null".to_owned(), false, true),
        ("k".to_owned(), id.clone(), false, false),
    ];
    ensure!(found == expected, "{found:?}");
    ensure!(read(&bench, "k", "null").await? == "null three");
    ensure!(read(&bench, "k", &id).await? == "kept");
    Ok(())
}

async fn versions_are_read_by_their_ids(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "k", "version one").await?;
    let two = version(&bench, "k", "two").await?;
    ensure!(read(&bench, "k", &one).await? == "version one");
    ensure!(read(&bench, "k", &two).await? == "two");
    let head = bench.client.head_object().bucket(&bench.bucket).key("k");
    let head = head.version_id(&one).send().await?;
    ensure!(
        head.content_length() == Some(11) && head.version_id() == Some(&one),
        "{head:?}"
    );
    let part = bench.client.get_object().bucket(&bench.bucket).key("k");
    let part = part.version_id(&one).range("bytes=8-").send().await?;
    ensure!(part.body.collect().await?.to_vec() == b"one");
    let current = bench.client.get_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(current.version_id() == Some(&two), "{:?}", current.version_id());
    // A version id is a key's own.
    put(&bench, "l", "other").await?;
    let other = bench.client.get_object().bucket(&bench.bucket).key("l");
    expect_code(other.version_id(&one).send().await, "NoSuchVersion")
}

async fn ids_that_are_none_are_refused(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "k", "one").await?;
    delete(&bench, "k", Some(&id)).await?;
    put(&bench, "k", "two").await?;
    for key in ["k", "missing"] {
        let get = bench.client.get_object().bucket(&bench.bucket).key(key);
        expect_code(get.version_id(&id).send().await, "NoSuchVersion")?;
        let tags = bench.client.get_object_tagging().bucket(&bench.bucket).key(key);
        expect_code(tags.version_id(&id).send().await, "NoSuchVersion")?;
    }
    let head = bench.object("HEAD", "k").query("versionId", &id);
    let head = head.signed(&bench.target)?.send(&bench.target).await?;
    head.expect_status(404)?;
    let get = bench.client.get_object().bucket(&bench.bucket).key("k");
    expect_code(get.version_id("null").send().await, "NoSuchVersion")?;
    for bad in ["nonsense", "../k", "NULL"] {
        let get = bench.object("GET", "k").query("versionId", bad);
        let answer = get.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_error(400, "InvalidArgument").context(bad)?;
        let delete = bench.object("DELETE", "k").query("versionId", bad);
        let answer = delete.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_error(400, "InvalidArgument").context(bad)?;
    }
    ensure!(bench.get("k").await? == b"two");
    Ok(())
}

async fn a_delete_marker_says_what_it_is(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    put(&bench, "k", "one").await?;
    let marker = mark(&bench, "k").await?;
    for method in ["GET", "HEAD"] {
        let current = bench.object(method, "k").signed(&bench.target)?;
        let current = current.send(&bench.target).await?;
        current.expect_status(404)?;
        ensure!(current.header("x-amz-delete-marker") == Some("true"), "{method}");
        ensure!(current.header("x-amz-version-id") == Some(marker.as_str()), "{method}");
        let named = bench.object(method, "k").query("versionId", &marker);
        let named = named.signed(&bench.target)?.send(&bench.target).await?;
        named.expect_status(405)?;
        ensure!(named.header("x-amz-delete-marker") == Some("true"), "{method}");
        ensure!(named.header("last-modified").is_some(), "{method}");
        ensure!(named.header("allow") == Some("DELETE"), "{method}");
        if method == "GET" {
            current.expect_error(404, "NoSuchKey")?;
            named.expect_error(405, "MethodNotAllowed")?;
        }
    }
    let never = bench.object("GET", "never").signed(&bench.target)?;
    let never = never.send(&bench.target).await?;
    never.expect_error(404, "NoSuchKey")?;
    ensure!(never.header("x-amz-delete-marker").is_none());
    for query in ["tagging", "attributes"] {
        let request = bench.object("GET", "k").query(query, "").query("versionId", &marker);
        let request = request.header("x-amz-object-attributes", "ETag");
        let answer = request.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_error(405, "MethodNotAllowed").context(query)?;
    }
    Ok(())
}

async fn attributes_are_those_of_the_version(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "k", "12345").await?;
    let two = version(&bench, "k", "").await?;
    for (named, id, size) in [(Some(&one), &one, 5), (Some(&two), &two, 0), (None, &two, 0)] {
        let attributes = bench.client.get_object_attributes().bucket(&bench.bucket).key("k");
        let attributes = attributes
            .set_version_id(named.cloned())
            .object_attributes(ObjectAttributes::ObjectSize)
            .send()
            .await?;
        ensure!(attributes.object_size() == Some(size), "{attributes:?}");
        ensure!(attributes.version_id() == Some(id), "{attributes:?}");
    }
    Ok(())
}

async fn a_delete_adds_a_marker_that_can_be_taken_away(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "k", "kept").await?;
    let first = mark(&bench, "k").await?;
    let second = mark(&bench, "k").await?;
    ensure!(first != second, "each delete adds a marker");
    bench.expect_absent("k").await?;
    ensure!(read(&bench, "k", &id).await? == "kept");
    // Also where there is nothing to delete.
    let never = mark(&bench, "never").await?;
    ensure!(
        list(&bench)
            .await?
            .contains(&("never".to_owned(), never.clone(), true, true))
    );
    for (key, marker) in [("never", &never), ("k", &second), ("k", &first)] {
        let gone = delete(&bench, key, Some(marker)).await?;
        ensure!(
            gone.delete_marker() == Some(true) && gone.version_id() == Some(marker),
            "{gone:?}"
        );
    }
    ensure!(bench.get("k").await? == b"kept");
    ensure!(list(&bench).await?.len() == 1);
    Ok(())
}

async fn a_suspended_delete_leaves_a_null_marker(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "k", "kept").await?;
    suspend(&bench).await?;
    put(&bench, "k", "null").await?;
    for _ in 0..2 {
        ensure!(mark(&bench, "k").await? == "null");
    }
    let found = list(&bench).await?;
    let expected = [
        ("k".to_owned(), id.clone(), false, false),
        ("k".to_owned(), "null".to_owned(), true, true),
    ];
    ensure!(found == expected, "{found:?}");
    put(&bench, "k", "null again").await?;
    let found = list(&bench).await?;
    let expected = [
        ("k".to_owned(), "null".to_owned(), false, true),
        ("k".to_owned(), id, false, false),
    ];
    ensure!(found == expected, "the marker is replaced: {found:?}");
    Ok(())
}

async fn the_version_before_comes_forward(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(version(&bench, "k", &n.to_string()).await?);
    }
    let [zero, one, two, three] = &ids[..] else {
        anyhow::bail!("there are four")
    };
    delete(&bench, "k", Some(one)).await?;
    ensure!(bench.get("k").await? == b"3");
    let gone = delete(&bench, "k", Some(three)).await?;
    ensure!(
        gone.delete_marker().is_none() && gone.version_id() == Some(three),
        "{gone:?}"
    );
    ensure!(bench.get("k").await? == b"2");
    delete(&bench, "k", Some(two)).await?;
    ensure!(bench.get("k").await? == b"0");
    ensure!(list(&bench).await? == [("k".to_owned(), zero.clone(), false, true)]);
    Ok(())
}

async fn deletes_of_versions_can_be_repeated(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "k", "one").await?;
    for _ in 0..2 {
        delete(&bench, "k", Some(&id)).await?;
        ensure!(list(&bench).await?.is_empty());
    }
    delete(&bench, "never", Some(&id)).await?;
    delete(&bench, "never", Some("null")).await?;
    ensure!(list(&bench).await?.is_empty(), "no marker is added");
    Ok(())
}

async fn results_name_versions_and_markers(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "named", "one").await?;
    put(&bench, "current", "two").await?;
    let marker = mark(&bench, "marked").await?;
    let object = |key: &str, version: Option<&String>| {
        ObjectIdentifier::builder()
            .key(key)
            .set_version_id(version.cloned())
            .build()
    };
    let delete = Delete::builder()
        .objects(object("named", Some(&id))?)
        .objects(object("current", None)?)
        .objects(object("marked", Some(&marker))?)
        .objects(object("never", Some(&id))?)
        .build()?;
    let done = bench
        .client
        .delete_objects()
        .bucket(&bench.bucket)
        .delete(delete)
        .send()
        .await?;
    ensure!(done.errors().is_empty(), "{:?}", done.errors());
    let result = |key: &str| {
        let result = done.deleted().iter().find(|deleted| deleted.key() == Some(key));
        result.with_context(|| format!("no result for {key}"))
    };
    let named = result("named")?;
    ensure!(
        named.version_id() == Some(&id) && named.delete_marker() != Some(true),
        "{named:?}"
    );
    let current = result("current")?;
    ensure!(
        current.delete_marker() == Some(true) && current.version_id().is_none(),
        "{current:?}"
    );
    let left = current
        .delete_marker_version_id()
        .context("no id of the marker")?
        .to_owned();
    let marked = result("marked")?;
    ensure!(
        marked.delete_marker() == Some(true)
            && marked.delete_marker_version_id() == Some(&marker)
            && marked.version_id() == Some(&marker),
        "{marked:?}"
    );
    ensure!(result("never")?.version_id() == Some(id.as_str()));
    let found = list(&bench).await?;
    ensure!(
        found.contains(&("current".to_owned(), left, true, true)) && found.len() == 2,
        "{found:?}"
    );
    Ok(())
}

fn source(bench: &Bench, key: &str, version: &str) -> String {
    format!("{}?versionId={version}", object_path(&bench.bucket, key).split_off(1))
}

async fn an_earlier_version_is_brought_back_by_a_copy(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "k", "one").await?;
    let two = version(&bench, "k", "two").await?;
    mark(&bench, "k").await?;
    let copy = bench.client.copy_object().bucket(&bench.bucket).key("k");
    let copied = copy.copy_source(source(&bench, "k", &one)).send().await?;
    ensure!(copied.copy_source_version_id() == Some(&one), "{copied:?}");
    let new = copied.version_id().context("no version id")?;
    ensure!(![&one, &two].contains(&&new.to_owned()));
    ensure!(bench.get("k").await? == b"one");
    ensure!(read(&bench, "k", new).await? == "one");
    ensure!(list(&bench).await?.len() == 4);
    Ok(())
}

async fn copies_are_of_the_version_they_name(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "a", "one").await?;
    let two = version(&bench, "a", "two").await?;
    let copy = |source: String| {
        let copy = bench.client.copy_object().bucket(&bench.bucket).key("b");
        copy.copy_source(source).send()
    };
    copy(source(&bench, "a", &one)).await?;
    ensure!(bench.get("b").await? == b"one");
    let copied = copy(object_path(&bench.bucket, "a").split_off(1)).await?;
    ensure!(copied.copy_source_version_id() == Some(&two), "{copied:?}");
    ensure!(bench.get("b").await? == b"two");
    let marker = mark(&bench, "a").await?;
    expect_code(copy(source(&bench, "a", &marker)).await, "InvalidRequest")?;
    expect_code(copy(object_path(&bench.bucket, "a").split_off(1)).await, "NoSuchKey")?;
    delete(&bench, "a", Some(&one)).await?;
    expect_code(copy(source(&bench, "a", &one)).await, "NoSuchVersion")?;
    ensure!(bench.get("b").await? == b"two");
    Ok(())
}

async fn a_completed_upload_is_a_version(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let first = version(&bench, "k", "single").await?;
    let upload = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    let upload = upload.upload_id().context("no upload id")?;
    let part = bench
        .client
        .upload_part()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(upload);
    let part = part
        .part_number(1)
        .body(ByteStream::from_static(b"parts"))
        .send()
        .await?;
    let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    let complete = || {
        let complete = bench.client.complete_multipart_upload().bucket(&bench.bucket).key("k");
        complete.upload_id(upload).multipart_upload(parts.clone()).send()
    };
    let second = complete().await?.version_id.context("no version id")?;
    ensure!(read(&bench, "k", &second).await? == "parts");
    ensure!(read(&bench, "k", &first).await? == "single");
    put(&bench, "k", "third").await?;
    // The answer may have been lost: completing again gives the same one, current or not.
    ensure!(complete().await?.version_id() == Some(second.as_str()));
    ensure!(bench.get("k").await? == b"third");
    Ok(())
}

async fn parts_are_copied_from_versions(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "a", "one two three").await?;
    put(&bench, "a", "other").await?;
    let upload = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("b")
        .send()
        .await?;
    let upload = upload.upload_id().context("no upload id")?;
    let part = bench
        .client
        .upload_part_copy()
        .bucket(&bench.bucket)
        .key("b")
        .upload_id(upload);
    let part = part
        .part_number(1)
        .copy_source(source(&bench, "a", &one))
        .copy_source_range("bytes=4-6")
        .send()
        .await?;
    ensure!(part.copy_source_version_id() == Some(&one), "{part:?}");
    let etag = part
        .copy_part_result()
        .and_then(|result| result.e_tag())
        .context("no ETag")?;
    let part = CompletedPart::builder().part_number(1).e_tag(etag).build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    let complete = bench.client.complete_multipart_upload().bucket(&bench.bucket).key("b");
    complete.upload_id(upload).multipart_upload(parts).send().await?;
    ensure!(bench.get("b").await? == b"two");
    Ok(())
}

async fn each_version_has_its_own_tags(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let one = version(&bench, "k", "one").await?;
    let two = version(&bench, "k", "two").await?;
    let tags = |version: Option<&String>| {
        let get = bench.client.get_object_tagging().bucket(&bench.bucket).key("k");
        get.set_version_id(version.cloned()).send()
    };
    for (named, id, value) in [(Some(&one), &one, "1"), (None, &two, "2")] {
        let tag = Tag::builder().key("n").value(value).build()?;
        let put = bench.client.put_object_tagging().bucket(&bench.bucket).key("k");
        let put = put
            .set_version_id(named.cloned())
            .tagging(Tagging::builder().tag_set(tag).build()?)
            .send()
            .await?;
        ensure!(put.version_id() == Some(id), "{put:?}");
    }
    for (named, id, value) in [(Some(&one), &one, "1"), (Some(&two), &two, "2"), (None, &two, "2")] {
        let found = tags(named).await?;
        ensure!(found.version_id() == Some(id), "{found:?}");
        ensure!(
            found.tag_set().iter().map(Tag::value).collect::<Vec<_>>() == [value],
            "{found:?}"
        );
    }
    let removed = bench.client.delete_object_tagging().bucket(&bench.bucket).key("k");
    let removed = removed.version_id(&one).send().await?;
    ensure!(removed.version_id() == Some(&one), "{removed:?}");
    ensure!(tags(Some(&one)).await?.tag_set().is_empty() && tags(None).await?.tag_set().len() == 1);
    ensure!(list(&bench).await?.len() == 2, "tags make no version");
    Ok(())
}

async fn a_delete_marker_counts_as_absent(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let new = |content: &'static str| {
        let put = bench.client.put_object().bucket(&bench.bucket).key("k");
        put.body(ByteStream::from_static(content.as_bytes()))
            .if_none_match("*")
            .send()
    };
    let etag = new("one").await?.e_tag.context("no ETag")?;
    expect_code(new("two").await, "PreconditionFailed")?;
    mark(&bench, "k").await?;
    let change = bench.client.put_object().bucket(&bench.bucket).key("k").if_match(etag);
    expect_code(change.send().await, "NoSuchKey")?;
    new("three").await?;
    ensure!(bench.get("k").await? == b"three");
    Ok(())
}

async fn markers_and_earlier_versions_are_not_listed(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    for key in ["a", "b", "c/1", "c/2"] {
        for content in ["one", "two"] {
            put(&bench, key, content).await?;
        }
    }
    mark(&bench, "b").await?;
    mark(&bench, "c/1").await?;
    mark(&bench, "never").await?;
    let list = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
    let keys: Vec<_> = list.contents().iter().filter_map(|object| object.key()).collect();
    ensure!(keys == ["a", "c/2"], "{keys:?}");
    mark(&bench, "c/2").await?;
    let list = bench
        .client
        .list_objects()
        .bucket(&bench.bucket)
        .delimiter("/")
        .send()
        .await?;
    let keys: Vec<_> = list.contents().iter().filter_map(|object| object.key()).collect();
    ensure!(keys == ["a"] && list.common_prefixes().is_empty(), "{list:?}");
    Ok(())
}

async fn versions_come_by_key_and_then_from_the_newest(bench: Bench) -> Result<()> {
    put(&bench, "b", "null").await?;
    enable(&bench).await?;
    let b = version(&bench, "b", "newer").await?;
    let a = version(&bench, "a", "gone").await?;
    let marker = mark(&bench, "a").await?;
    let request = bench.bucket("GET").query("versions", "").signed(&bench.target)?;
    let answer = request.send(&bench.target).await?;
    answer.expect_status(200)?;
    let xml = answer.text();
    let versions: Vec<_> = elements(&xml, "Version").collect();
    let shown: Vec<_> = versions
        .iter()
        .map(|version| {
            (
                element(version, "Key").unwrap_or_default(),
                element(version, "VersionId").unwrap_or_default(),
                element(version, "IsLatest").unwrap_or_default(),
                element(version, "Size").unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("a", a.as_str(), "false", "4"),
        ("b", b.as_str(), "true", "5"),
        ("b", "null", "false", "4"),
    ];
    ensure!(shown == expected, "{shown:?}");
    for version in versions {
        for name in ["LastModified", "ETag", "StorageClass", "Owner"] {
            ensure!(element(version, name).is_some(), "a version has no {name}: {version}");
        }
    }
    let markers: Vec<_> = elements(&xml, "DeleteMarker").collect();
    let [listed] = markers[..] else {
        anyhow::bail!("there is one marker: {xml}")
    };
    ensure!(element(listed, "VersionId") == Some(&marker), "{xml}");
    ensure!(element(listed, "IsLatest") == Some("true"), "{xml}");
    for name in ["Key", "LastModified", "Owner"] {
        ensure!(element(listed, name).is_some(), "a marker has no {name}: {xml}");
    }
    Ok(())
}

async fn pages_of_every_size_are_the_same(bench: Bench) -> Result<()> {
    put(&bench, "a/1", "null").await?;
    enable(&bench).await?;
    for key in ["a/1", "a/2", "b", "c"] {
        for content in ["one", "two"] {
            put(&bench, key, content).await?;
        }
        if key != "b" {
            mark(&bench, key).await?;
            put(&bench, key, "three").await?;
            mark(&bench, key).await?;
        }
    }
    for (prefix, delimiter) in [("", None), ("", Some("/")), ("a/", None)] {
        let mut whole: Option<BTreeSet<_>> = None;
        for size in [1000, 1, 2, 3, 5] {
            let mut seen = Vec::new();
            let (mut key_marker, mut version_marker) = (None, None);
            loop {
                let page = bench.client.list_object_versions().bucket(&bench.bucket);
                let page = page
                    .prefix(prefix)
                    .set_delimiter(delimiter.map(str::to_owned))
                    .max_keys(size)
                    .set_key_marker(key_marker)
                    .set_version_id_marker(version_marker)
                    .send()
                    .await?;
                let entries = listed(&page);
                let folded = page.common_prefixes().iter().filter_map(|folded| folded.prefix());
                let folded: Vec<_> = folded
                    .map(|prefix| (prefix.to_owned(), String::new(), true, true))
                    .collect();
                ensure!(entries.len() + folded.len() <= usize::try_from(size)?, "{page:?}");
                seen.extend(entries);
                seen.extend(folded);
                if page.is_truncated() != Some(true) {
                    break;
                }
                key_marker = page.next_key_marker;
                version_marker = page.next_version_id_marker;
                ensure!(key_marker.is_some(), "there is no place to go on from");
            }
            let count = seen.len();
            let seen: BTreeSet<_> = seen.into_iter().collect();
            ensure!(seen.len() == count, "something is listed twice by pages of {size}");
            match &whole {
                None => whole = Some(seen),
                Some(whole) => ensure!(*whole == seen, "{prefix:?} {delimiter:?}, pages of {size}: {seen:?}"),
            }
        }
    }
    Ok(())
}

async fn folders_are_folded(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    for key in ["a", "f/1", "f/2", "g/1"] {
        put(&bench, key, "one").await?;
        put(&bench, key, "two").await?;
    }
    mark(&bench, "g/1").await?;
    let list = bench
        .client
        .list_object_versions()
        .bucket(&bench.bucket)
        .delimiter("/")
        .send()
        .await?;
    ensure!(listed(&list).len() == 2, "{list:?}");
    let folded: Vec<_> = list
        .common_prefixes()
        .iter()
        .filter_map(|folded| folded.prefix())
        .collect();
    ensure!(folded == ["f/", "g/"], "{folded:?}");
    let list = bench
        .client
        .list_object_versions()
        .bucket(&bench.bucket)
        .delimiter("/")
        .key_marker("f/");
    let list = list.send().await?;
    let folded: Vec<_> = list
        .common_prefixes()
        .iter()
        .filter_map(|folded| folded.prefix())
        .collect();
    ensure!(folded == ["g/"] && listed(&list).is_empty(), "{list:?}");
    Ok(())
}

async fn odd_keys_and_markers_are_listed(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    for key in super::ODD_KEYS {
        put(&bench, key, "one").await?;
        mark(&bench, key).await?;
    }
    let list = bench.client.list_object_versions().bucket(&bench.bucket);
    let list = list.encoding_type(EncodingType::Url).send().await?;
    let mut expected: Vec<_> = super::ODD_KEYS.iter().map(|key| (*key).to_owned()).collect();
    expected.sort_unstable();
    let decoded = |key: &str| {
        percent_encoding::percent_decode_str(key)
            .decode_utf8_lossy()
            .into_owned()
    };
    let versions: Vec<_> = list
        .versions()
        .iter()
        .filter_map(|version| version.key())
        .map(decoded)
        .collect();
    let markers: Vec<_> = list
        .delete_markers()
        .iter()
        .filter_map(|marker| marker.key())
        .map(decoded)
        .collect();
    ensure!(versions == expected, "{versions:?}");
    ensure!(markers == expected, "{markers:?}");
    Ok(())
}

async fn a_version_marker_needs_a_key_marker(bench: Bench) -> Result<()> {
    enable(&bench).await?;
    let id = version(&bench, "k", "one").await?;
    let newest = version(&bench, "k", "two").await?;
    let list = || bench.client.list_object_versions().bucket(&bench.bucket);
    expect_code(list().version_id_marker(&id).send().await, "InvalidArgument")?;
    expect_code(
        list().key_marker("k").version_id_marker("nonsense").send().await,
        "InvalidArgument",
    )?;
    expect_code(list().max_keys(-1).send().await, "InvalidArgument")?;
    let behind = list().key_marker("k").version_id_marker(&newest).send().await?;
    ensure!(listed(&behind) == [("k".to_owned(), id, false, false)], "{behind:?}");
    let behind = list().key_marker("k").send().await?;
    ensure!(listed(&behind).is_empty(), "{behind:?}");
    let none = list().max_keys(0).send().await?;
    ensure!(
        listed(&none).is_empty() && none.is_truncated() != Some(true),
        "{none:?}"
    );
    Ok(())
}

async fn a_bucket_with_a_version_left_stays(bench: Bench) -> Result<()> {
    let remove = || bench.client.delete_bucket().bucket(&bench.bucket).send();
    enable(&bench).await?;
    let id = version(&bench, "k", "one").await?;
    let marker = mark(&bench, "k").await?;
    let empty = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
    ensure!(empty.contents().is_empty());
    expect_code(remove().await, "BucketNotEmpty")?;
    delete(&bench, "k", Some(&id)).await?;
    expect_code(remove().await, "BucketNotEmpty")?;
    delete(&bench, "k", Some(&marker)).await?;
    remove().await?;
    // The bench takes it for its own.
    bench.client.create_bucket().bucket(&bench.bucket).send().await?;
    let state = bench
        .client
        .get_bucket_versioning()
        .bucket(&bench.bucket)
        .send()
        .await?;
    ensure!(state.status().is_none(), "a new bucket keeps no versions");
    Ok(())
}
