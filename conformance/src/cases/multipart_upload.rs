//! CreateMultipartUpload, UploadPart, UploadPartCopy, CompleteMultipartUpload, AbortMultipartUpload, ListParts,
//! ListMultipartUploads.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures::{StreamExt, TryStreamExt};
use md5::{Digest, Md5};

use crate::{
    case::Bench,
    pattern::{Pattern, md5_hex},
    sdk::{expect_code, expect_status},
    wire::object_path,
};

crate::cases! {
    "CreateMultipartUpload": headers_and_tags_are_of_the_object;
    "UploadPart": a_part_can_be_sent_again, absurd_part_numbers_are_refused, an_unknown_upload_is_said;
    "UploadPartCopy": slices_of_objects, ranges_outside_are_refused;
    "CompleteMultipartUpload": parts_join_in_the_order_of_their_numbers, parts_can_be_left_out, wrong_lists_are_refused,
        checksums_of_the_whole, twice_is_harmless, the_first_fault_is_told, ten_thousand_parts, an_abort_ends_it_for_all, if_none_match_keeps_the_first;
    "AbortMultipartUpload": an_aborted_upload_is_gone;
    "ListParts": parts_come_in_pages;
    "ListMultipartUploads": uploads_come_in_pages;
}

/// Smallest part but the last.
const PART: u64 = 5 << 20;

/// An upload under way.
struct Upload<'b> {
    bench: &'b Bench,
    key: String,
    id: String,
}

impl<'b> Upload<'b> {
    async fn begin(bench: &'b Bench, key: &str) -> Result<Self> {
        let created = bench
            .client
            .create_multipart_upload()
            .bucket(&bench.bucket)
            .key(key)
            .send()
            .await?;
        let id = created.upload_id.context("there is no upload id")?;
        Ok(Self {
            bench,
            key: key.to_owned(),
            id,
        })
    }

    async fn part(&self, number: i32, bytes: &[u8]) -> Result<CompletedPart> {
        let part = self
            .bench
            .client
            .upload_part()
            .bucket(&self.bench.bucket)
            .key(&self.key)
            .upload_id(&self.id);
        let part = part
            .part_number(number)
            .body(ByteStream::from(bytes.to_vec()))
            .send()
            .await?;
        let etag = part.e_tag.clone().context("the part has no ETag")?;
        ensure!(etag == format!("\"{}\"", md5_hex(bytes)), "the part's ETag is {etag}");
        Ok(CompletedPart::builder()
            .part_number(number)
            .e_tag(etag)
            .set_checksum_crc32(part.checksum_crc32)
            .build())
    }

    fn complete(
        &self,
        parts: Vec<CompletedPart>,
    ) -> aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder {
        let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self
            .bench
            .client
            .complete_multipart_upload()
            .bucket(&self.bench.bucket)
            .key(&self.key);
        complete.upload_id(&self.id).multipart_upload(upload)
    }

    async fn abort(&self) -> Result<()> {
        let abort = self
            .bench
            .client
            .abort_multipart_upload()
            .bucket(&self.bench.bucket)
            .key(&self.key);
        abort.upload_id(&self.id).send().await?;
        Ok(())
    }
}

async fn headers_and_tags_are_of_the_object(bench: Bench) -> Result<()> {
    let created = bench.client.create_multipart_upload().bucket(&bench.bucket).key("k");
    let created = created
        .content_type("text/a")
        .metadata("color", "red")
        .tagging("team=a")
        .send()
        .await?;
    let upload = Upload {
        bench: &bench,
        key: "k".into(),
        id: created.upload_id.context("no upload id")?,
    };
    bench.expect_absent("k").await?;
    let part = upload.part(1, b"x").await?;
    upload.complete(vec![part]).send().await?;
    let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(head.content_type() == Some("text/a"));
    ensure!(head.metadata().and_then(|metadata| metadata.get("color")).is_some());
    let tags = bench
        .client
        .get_object_tagging()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    ensure!(
        tags.tag_set().iter().any(|tag| tag.key == "team" && tag.value == "a"),
        "{tags:?}"
    );
    Ok(())
}

async fn parts_join_in_the_order_of_their_numbers(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let contents = [
        Pattern(1).bytes(0..PART),
        Pattern(2).bytes(0..PART + 17),
        Pattern(3).bytes(0..100),
    ];
    let mut parts = Vec::new();
    // Numbers need not follow each other, nor come in their order.
    for (number, content) in [(10_000, &contents[2]), (1, &contents[0]), (7, &contents[1])] {
        parts.push(upload.part(number, content).await?);
    }
    parts.sort_by_key(|part| part.part_number);
    let completed = upload.complete(parts).send().await?;
    let digests: Vec<u8> = contents
        .iter()
        .flat_map(|content| Md5::digest(content).to_vec())
        .collect();
    let etag = format!("\"{}-3\"", md5_hex(&digests));
    ensure!(
        completed.e_tag() == Some(&etag),
        "the ETag is {:?}, not {etag}",
        completed.e_tag()
    );
    let whole = contents.concat();
    ensure!(bench.get("k").await? == whole, "the whole is not its parts");
    let get = || bench.client.get_object().bucket(&bench.bucket).key("k");
    let across = get()
        .range(format!("bytes={}-{}", PART - 3, PART + 3))
        .send()
        .await?
        .body
        .collect()
        .await?
        .to_vec();
    let at = usize::try_from(PART)?;
    ensure!(
        Some(across.as_slice()) == whole.get(at - 3..at + 4),
        "a range across parts is another one"
    );
    let second = get().part_number(2).send().await?;
    ensure!(second.parts_count() == Some(3), "{:?}", second.parts_count());
    ensure!(
        second.body.collect().await?.to_vec() == contents[1],
        "part 2 is another one"
    );
    expect_status(get().part_number(4).send().await, 416)
}

async fn a_part_can_be_sent_again(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let first = upload.part(1, b"first").await?;
    let second = upload.part(1, b"second").await?;
    expect_code(upload.complete(vec![first]).send().await, "InvalidPart")?;
    upload.complete(vec![second]).send().await?;
    ensure!(bench.get("k").await? == b"second");
    Ok(())
}

async fn absurd_part_numbers_are_refused(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    for number in ["0", "-1", "10001", "99999999999999999999", "one", "", "1.5"] {
        let put = bench
            .object("PUT", "k")
            .query("partNumber", number)
            .query("uploadId", &upload.id)
            .body("x");
        let answer = put.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, "InvalidArgument")
            .with_context(|| format!("part number {number:?}"))?;
    }
    let parts = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&upload.id)
        .send()
        .await?;
    ensure!(parts.parts().is_empty(), "a refused part is there: {parts:?}");
    upload.abort().await
}

async fn an_unknown_upload_is_said(bench: Bench) -> Result<()> {
    let real = Upload::begin(&bench, "k").await?;
    for (key, id) in [
        ("k", "nonsense"),
        ("k", "0000000000000000000000000000000"),
        ("k", ""),
        ("other", real.id.as_str()),
    ] {
        let upload = Upload {
            bench: &bench,
            key: key.to_owned(),
            id: id.to_owned(),
        };
        let put = bench
            .object("PUT", key)
            .query("partNumber", "1")
            .query("uploadId", id)
            .body("x");
        let answer = put.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(404, "NoSuchUpload")
            .with_context(|| format!("UploadPart {key} {id:?}"))?;
        let list = bench
            .object("GET", key)
            .query("uploadId", id)
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        list.expect_error(404, "NoSuchUpload")
            .with_context(|| format!("ListParts {key} {id:?}"))?;
        let abort = bench
            .object("DELETE", key)
            .query("uploadId", id)
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        abort
            .expect_error(404, "NoSuchUpload")
            .with_context(|| format!("AbortMultipartUpload {key} {id:?}"))?;
        let part = CompletedPart::builder().part_number(1).e_tag("\"0\"").build();
        if !id.is_empty() {
            expect_code(upload.complete(vec![part]).send().await, "NoSuchUpload")?;
        }
    }
    real.abort().await
}

async fn slices_of_objects(bench: Bench) -> Result<()> {
    let source = Pattern(4).bytes(0..PART + 1000);
    bench.put("source ü", &source).await?;
    let upload = Upload::begin(&bench, "k").await?;
    let copy = |number: i32, range: Option<&str>| {
        let copy = bench
            .client
            .upload_part_copy()
            .bucket(&bench.bucket)
            .key("k")
            .upload_id(&upload.id);
        let copy = copy
            .part_number(number)
            .copy_source(object_path(&bench.bucket, "source ü").split_off(1));
        copy.set_copy_source_range(range.map(str::to_owned)).send()
    };
    let whole = copy(1, None).await?;
    let slice = copy(2, Some("bytes=3-70000")).await?;
    let mut parts = Vec::new();
    for (number, copied) in [(1, whole), (2, slice)] {
        let etag = copied
            .copy_part_result
            .and_then(|result| result.e_tag)
            .context("a copied part has no ETag")?;
        parts.push(CompletedPart::builder().part_number(number).e_tag(etag).build());
    }
    bench
        .client
        .delete_object()
        .bucket(&bench.bucket)
        .key("source ü")
        .send()
        .await?;
    upload.complete(parts).send().await?;
    let expected = [source.as_slice(), source.get(3..70_001).unwrap_or_default()].concat();
    ensure!(bench.get("k").await? == expected, "the copied parts are other ones");
    Ok(())
}

async fn ranges_outside_are_refused(bench: Bench) -> Result<()> {
    bench.put("source", b"0123456789").await?;
    let upload = Upload::begin(&bench, "k").await?;
    for (range, codes) in [
        ("bytes=0-10", &["InvalidRange", "InvalidArgument"][..]),
        ("bytes=10-12", &["InvalidRange", "InvalidArgument"]),
        ("bytes=5-", &["InvalidArgument"]),
        ("bytes=-5", &["InvalidArgument"]),
        ("bytes=7-3", &["InvalidArgument", "InvalidRange"]),
        ("nonsense", &["InvalidArgument"]),
    ] {
        let copy = bench
            .client
            .upload_part_copy()
            .bucket(&bench.bucket)
            .key("k")
            .upload_id(&upload.id)
            .part_number(1);
        let copy = copy
            .copy_source(format!("{}/source", bench.bucket))
            .copy_source_range(range)
            .send()
            .await;
        let error = copy.err().with_context(|| format!("{range} was copied"))?;
        let code = aws_sdk_s3::error::ProvideErrorMetadata::code(&error)
            .unwrap_or_default()
            .to_owned();
        ensure!(codes.contains(&code.as_str()), "{range}: the code is {code:?}");
    }
    upload.abort().await
}

async fn parts_can_be_left_out(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let content = Pattern(5).bytes(0..PART);
    let first = upload.part(1, &content).await?;
    upload.part(2, &Pattern(6).bytes(0..PART)).await?;
    let third = upload.part(3, b"end").await?;
    upload.complete(vec![first, third]).send().await?;
    ensure!(bench.get("k").await? == [&content[..], b"end"].concat());
    Ok(())
}

async fn wrong_lists_are_refused(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let small = upload.part(1, b"small").await?;
    let second = upload.part(2, b"second").await?;
    let whole = upload.part(4, &Pattern(9).bytes(0..PART)).await?;
    let forged = CompletedPart::builder()
        .part_number(1)
        .e_tag("\"00000000000000000000000000000000\"")
        .build();
    let missing = CompletedPart::builder().part_number(3).e_tag("\"0\"").build();
    for (parts, code) in [
        (vec![small.clone(), second], "EntityTooSmall"),
        (vec![whole.clone(), small.clone()], "InvalidPartOrder"),
        (vec![whole.clone(), whole.clone()], "InvalidPartOrder"),
        (vec![forged], "InvalidPart"),
        (vec![missing], "InvalidPart"),
        (vec![], "MalformedXML"),
    ] {
        expect_code(upload.complete(parts).send().await, code)?;
        bench.expect_absent("k").await?;
    }
    for body in ["", "nonsense", "<CompleteMultipartUpload>", "<Other/>"] {
        let post = bench.object("POST", "k").query("uploadId", &upload.id).body(body);
        let answer = post.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, "MalformedXML")
            .with_context(|| format!("{body:?}"))?;
    }
    // None of these ended it.
    upload.complete(vec![small]).send().await?;
    ensure!(bench.get("k").await? == b"small");
    Ok(())
}

async fn checksums_of_the_whole(bench: Bench) -> Result<()> {
    let contents = [Pattern(7).bytes(0..PART), Pattern(8).bytes(0..1000)];
    for (algorithm, kind) in [
        (ChecksumAlgorithm::Crc32, ChecksumType::FullObject),
        (ChecksumAlgorithm::Crc32, ChecksumType::Composite),
        (ChecksumAlgorithm::Sha256, ChecksumType::Composite),
        (ChecksumAlgorithm::Crc64Nvme, ChecksumType::FullObject),
    ] {
        let what = format!("{algorithm} {kind}");
        let was = upload_with(&bench, &contents, &algorithm, &kind)
            .await
            .with_context(|| what.clone())?;
        let head = bench.client.head_object().bucket(&bench.bucket).key("k");
        let head = head.checksum_mode(ChecksumMode::Enabled).send().await?;
        ensure!(
            head.checksum_type() == Some(&kind),
            "{what}: {:?}",
            head.checksum_type()
        );
        let is = [&head.checksum_crc32, &head.checksum_sha256, &head.checksum_crc64_nvme];
        ensure!(
            was.each_ref() == is && is.iter().any(|sum| sum.is_some()),
            "{what}: {was:?} and {is:?}"
        );
        if algorithm == ChecksumAlgorithm::Crc32 && kind == ChecksumType::FullObject {
            let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &contents.concat());
            let expected = BASE64.encode(u32::try_from(expected)?.to_be_bytes());
            ensure!(
                head.checksum_crc32() == Some(&expected),
                "{:?}, not {expected}",
                head.checksum_crc32()
            );
        }
    }
    Ok(())
}

/// Uploads `k` in parts with checksums; gives those that the completion answers: CRC32, SHA256, CRC64NVME.
async fn upload_with(
    bench: &Bench,
    contents: &[Vec<u8>],
    algorithm: &ChecksumAlgorithm,
    kind: &ChecksumType,
) -> Result<[Option<String>; 3]> {
    let created = bench.client.create_multipart_upload().bucket(&bench.bucket).key("k");
    let created = created
        .checksum_algorithm(algorithm.clone())
        .checksum_type(kind.clone())
        .send()
        .await?;
    let id = created.upload_id.context("no upload id")?;
    let mut parts = Vec::new();
    for (number, content) in (1..).zip(contents) {
        let part = bench
            .client
            .upload_part()
            .bucket(&bench.bucket)
            .key("k")
            .upload_id(&id)
            .part_number(number);
        let part = part
            .checksum_algorithm(algorithm.clone())
            .body(ByteStream::from(content.clone()))
            .send()
            .await?;
        let completed = CompletedPart::builder().part_number(number).set_e_tag(part.e_tag);
        let completed = completed
            .set_checksum_crc32(part.checksum_crc32)
            .set_checksum_sha256(part.checksum_sha256);
        parts.push(completed.set_checksum_crc64_nvme(part.checksum_crc64_nvme).build());
    }
    let key = "k".to_owned();
    let completed = Upload { bench, key, id }.complete(parts).send().await?;
    Ok([
        completed.checksum_crc32,
        completed.checksum_sha256,
        completed.checksum_crc64_nvme,
    ])
}

/// S3 answers the second time as the first, or that there is no such upload.
async fn twice_is_harmless(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let part = upload.part(1, b"x").await?;
    upload.complete(vec![part.clone()]).send().await?;
    if let Err(error) = upload.complete(vec![part]).send().await {
        expect_code::<(), _, _>(Err(error), "NoSuchUpload")?;
    }
    ensure!(bench.get("k").await? == b"x");
    Ok(())
}

async fn if_none_match_keeps_the_first(bench: Bench) -> Result<()> {
    bench.put("k", b"first").await?;
    let upload = Upload::begin(&bench, "k").await?;
    let part = upload.part(1, b"second").await?;
    expect_code(
        upload.complete(vec![part]).if_none_match("*").send().await,
        "PreconditionFailed",
    )?;
    ensure!(bench.get("k").await? == b"first");
    Ok(())
}

async fn an_aborted_upload_is_gone(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let part = upload.part(1, b"x").await?;
    upload.abort().await?;
    expect_code(upload.complete(vec![part]).send().await, "NoSuchUpload")?;
    let list = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&upload.id)
        .send()
        .await;
    expect_code(list, "NoSuchUpload")?;
    let uploads = bench
        .client
        .list_multipart_uploads()
        .bucket(&bench.bucket)
        .send()
        .await?;
    ensure!(uploads.uploads().is_empty(), "{uploads:?}");
    bench.expect_absent("k").await
}

async fn parts_come_in_pages(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let numbers = [1, 2, 5, 10, 9999];
    for number in numbers {
        upload.part(number, number.to_string().as_bytes()).await?;
    }
    for size in [1, 2, 4, 5, 1000] {
        let mut found = Vec::new();
        let mut marker: Option<String> = None;
        loop {
            let page = bench
                .client
                .list_parts()
                .bucket(&bench.bucket)
                .key("k")
                .upload_id(&upload.id)
                .max_parts(size);
            let page = page.set_part_number_marker(marker).send().await?;
            ensure!(page.parts().len() <= usize::try_from(size)?, "a page is too long");
            for part in page.parts() {
                let number = part.part_number().unwrap_or_default();
                ensure!(
                    part.size() == Some(i64::try_from(number.to_string().len())?),
                    "{part:?}"
                );
                ensure!(
                    part.e_tag() == Some(&format!("\"{}\"", md5_hex(number.to_string().as_bytes()))),
                    "{part:?}"
                );
                found.push(number);
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            marker = page.next_part_number_marker;
            ensure!(marker.is_some() && found.len() <= numbers.len(), "the pages do not end");
        }
        ensure!(found == numbers, "pages of {size}: {found:?}");
    }
    upload.abort().await
}

async fn uploads_come_in_pages(bench: Bench) -> Result<()> {
    let mut expected = Vec::new();
    for key in ["a/1", "a/1", "a/2", "b", "c d/ü"] {
        let upload = Upload::begin(&bench, key).await?;
        expected.push((upload.key, upload.id));
    }
    expected.sort();
    for size in [1, 2, 3, 1000] {
        let mut found = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let page = bench
                .client
                .list_multipart_uploads()
                .bucket(&bench.bucket)
                .max_uploads(size);
            let page = page
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker)
                .send()
                .await?;
            for upload in page.uploads() {
                found.push((
                    upload.key.clone().unwrap_or_default(),
                    upload.upload_id.clone().unwrap_or_default(),
                ));
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
            ensure!(
                key_marker.is_some() && found.len() <= expected.len(),
                "the pages do not end"
            );
        }
        // Uploads of one key come in the order of their beginning.
        found.sort();
        ensure!(found == expected, "pages of {size}: {found:?}, not {expected:?}");
    }
    let rolled = bench
        .client
        .list_multipart_uploads()
        .bucket(&bench.bucket)
        .delimiter("/")
        .send()
        .await?;
    let prefixes: Vec<&str> = rolled
        .common_prefixes()
        .iter()
        .filter_map(|prefix| prefix.prefix())
        .collect();
    ensure!(prefixes == ["a/", "c d/"], "{prefixes:?}");
    ensure!(rolled.uploads().len() == 1, "{:?}", rolled.uploads());
    let some = bench
        .client
        .list_multipart_uploads()
        .bucket(&bench.bucket)
        .prefix("a/")
        .send()
        .await?;
    ensure!(some.uploads().len() == 3, "{:?}", some.uploads());
    Ok(())
}

/// The order of a list is looked at before what it names, and sizes at last.
async fn the_first_fault_is_told(bench: Bench) -> Result<()> {
    let upload = Upload::begin(&bench, "k").await?;
    let small = upload.part(1, b"small").await?;
    let last = upload.part(3, b"last").await?;
    let missing = CompletedPart::builder().part_number(2).e_tag("\"0\"").build();
    for (parts, code) in [
        (vec![last.clone(), missing.clone(), small.clone()], "InvalidPartOrder"),
        (vec![small.clone(), small.clone()], "InvalidPartOrder"),
        (vec![small.clone(), missing, last.clone()], "InvalidPart"),
        (vec![small, last], "EntityTooSmall"),
    ] {
        expect_code(upload.complete(parts).send().await, code)?;
    }
    bench.expect_absent("k").await?;
    for body in [
        "<CompleteMultipartUpload></CompleteMultipartUpload>",
        "<CompleteMultipartUpload><Part></Part></CompleteMultipartUpload>",
        "<CompleteMultipartUpload><Part>",
        "nonsense",
    ] {
        let complete = bench.object("POST", "k").query("uploadId", &upload.id).body(body);
        let answer = complete.signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(400, "MalformedXML")
            .with_context(|| body.to_owned())?;
    }
    upload.abort().await
}

/// The longest upload there is: its listing comes in pages, and completing it does not keep anybody waiting. All parts are
/// slices of one object, so that they need not be sent.
async fn ten_thousand_parts(bench: Bench) -> Result<()> {
    const COUNT: i32 = 10_000;
    const AT_A_TIME: usize = 16;
    bench.put("source", &Pattern(8).bytes(0..PART)).await?;
    let upload = Upload::begin(&bench, "k").await?;
    let source = object_path(&bench.bucket, "source").split_off(1);
    let copies = (1..=COUNT).map(|number| {
        let copy = bench.client.upload_part_copy().bucket(&bench.bucket).key("k");
        let copy = copy.upload_id(&upload.id).part_number(number).copy_source(&source);
        async move {
            let copied = copy.send().await?;
            let etag = copied.copy_part_result().and_then(|result| result.e_tag());
            Ok::<_, anyhow::Error>(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(etag.map(str::to_owned))
                    .build(),
            )
        }
    });
    let parts: Vec<CompletedPart> = futures::stream::iter(copies).buffered(AT_A_TIME).try_collect().await?;
    let page = bench
        .client
        .list_parts()
        .bucket(&bench.bucket)
        .key("k")
        .upload_id(&upload.id);
    let page = page.part_number_marker("9500").send().await?;
    ensure!(
        page.parts().len() == 500 && page.is_truncated() == Some(false),
        "{}",
        page.parts().len()
    );
    let begun = std::time::Instant::now();
    upload.complete(parts).send().await?;
    let took = begun.elapsed();
    // A client or a proxy in between gives up on an answer that says nothing for much longer.
    ensure!(took < std::time::Duration::from_secs(20), "completing took {took:?}");
    let head = bench
        .client
        .head_object()
        .bucket(&bench.bucket)
        .key("k")
        .part_number(COUNT)
        .send()
        .await?;
    ensure!(head.parts_count() == Some(COUNT), "{:?}", head.parts_count());
    ensure!(head.content_length() == Some(i64::try_from(PART)?));
    Ok(())
}

/// Whatever races with an abort, nothing of the upload is left afterwards.
async fn an_abort_ends_it_for_all(bench: Bench) -> Result<()> {
    for round in 0..8 {
        let upload = Upload::begin(&bench, "k").await?;
        let part = upload.part(1, b"first").await?;
        let content = Pattern(round).bytes(0..300_000);
        let (sent, aborted, completed) = tokio::join!(
            upload.part(2, &content),
            upload.abort(),
            upload.complete(vec![part]).send()
        );
        // Either of them was first; the other is told that there is no upload any more.
        ensure!(aborted.is_ok() != completed.is_ok(), "{aborted:?}, {completed:?}");
        drop(sent);
        if aborted.is_ok() {
            bench.expect_absent("k").await?;
        } else {
            ensure!(bench.get("k").await? == b"first");
            bench
                .client
                .delete_object()
                .bucket(&bench.bucket)
                .key("k")
                .send()
                .await?;
        }
        expect_code(
            bench
                .client
                .list_parts()
                .bucket(&bench.bucket)
                .key("k")
                .upload_id(&upload.id)
                .send()
                .await,
            "NoSuchUpload",
        )?;
    }
    Ok(())
}
