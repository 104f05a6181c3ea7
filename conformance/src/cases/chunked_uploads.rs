//! Uploads in the aws-chunked encoding, signed and unsigned, with trailers, made by hand.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use crate::{
    case::Bench,
    pattern::Pattern,
    wire::chunked::{Chunked, Chunks, Spoil},
};

crate::cases! {
    "PutObject": every_encoding_is_understood, wrong_signatures_are_refused, wrong_trailers_are_refused,
        bodies_without_an_end_are_refused, wrong_lengths_are_refused;
    "UploadPart": parts_come_in_chunks;
}

fn crc32(bytes: &[u8]) -> String {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes);
    BASE64.encode(u32::try_from(sum).unwrap_or_default().to_be_bytes())
}

const TRAILER: &str = "x-amz-checksum-crc32";
const KINDS: [(Chunks, bool); 3] = [
    (Chunks::Signed, false),
    (Chunks::Signed, true),
    (Chunks::Unsigned, true),
];

async fn every_encoding_is_understood(bench: Bench) -> Result<()> {
    for (kind, trails) in KINDS {
        for len in [0, 1, 65_536, 200_001] {
            let content = Pattern(1).bytes(0..len);
            let chunked = Chunked {
                chunks: content.chunks(65_536).collect(),
                kind,
                trailer: trails.then(|| (TRAILER, crc32(&content))),
                spoil: Spoil::Nothing,
            };
            let request = chunked.request(bench.object("PUT", "k"), &bench.target)?;
            let answer = request.send(&bench.target).await?;
            answer
                .expect_status(200)
                .with_context(|| format!("{kind:?}, trailer {trails}, {len} bytes"))?;
            ensure!(
                bench.get("k").await? == content,
                "{kind:?}, trailer {trails}, {len} bytes: another content"
            );
        }
    }
    let head = bench.client.head_object().bucket(&bench.bucket).key("k").send().await?;
    ensure!(
        head.content_encoding().is_none_or(str::is_empty),
        "{:?}",
        head.content_encoding()
    );
    Ok(())
}

/// Sends it, and wants it refused without a trace.
async fn expect_refused(bench: &Bench, chunked: &Chunked<'_>, status: u16, code: &str) -> Result<()> {
    let answer = chunked
        .request(bench.object("PUT", "k"), &bench.target)?
        .send(&bench.target)
        .await?;
    answer.expect_error(status, code)?;
    bench.expect_absent("k").await
}

async fn wrong_signatures_are_refused(bench: Bench) -> Result<()> {
    let content = Pattern(2).bytes(0..150_000);
    for (trails, spoil) in [
        (false, Spoil::ChunkSignature),
        (true, Spoil::ChunkSignature),
        (true, Spoil::TrailerSignature),
    ] {
        let chunked = Chunked {
            chunks: content.chunks(65_536).collect(),
            kind: Chunks::Signed,
            trailer: trails.then(|| (TRAILER, crc32(&content))),
            spoil,
        };
        let refused = expect_refused(&bench, &chunked, 403, "SignatureDoesNotMatch").await;
        refused.with_context(|| format!("{spoil:?}, trailer {trails}"))?;
    }
    Ok(())
}

async fn wrong_trailers_are_refused(bench: Bench) -> Result<()> {
    let content = Pattern(3).bytes(0..150_000);
    for kind in [Chunks::Signed, Chunks::Unsigned] {
        let chunked = |value: String| Chunked {
            chunks: content.chunks(65_536).collect(),
            kind,
            trailer: Some((TRAILER, value)),
            spoil: Spoil::Nothing,
        };
        expect_refused(&bench, &chunked(crc32(b"other")), 400, "BadDigest")
            .await
            .with_context(|| format!("{kind:?}"))?;
        let answer = chunked("nonsense".into()).request(bench.object("PUT", "k"), &bench.target)?;
        let answer = answer.send(&bench.target).await?;
        ensure!(answer.status == 400, "{kind:?}: {} {}", answer.status, answer.text());
        bench.expect_absent("k").await?;
    }
    Ok(())
}

async fn bodies_without_an_end_are_refused(bench: Bench) -> Result<()> {
    let content = Pattern(4).bytes(0..150_000);
    for (kind, trails) in KINDS {
        let chunked = Chunked {
            chunks: content.chunks(65_536).collect(),
            kind,
            trailer: trails.then(|| (TRAILER, crc32(&content))),
            spoil: Spoil::End,
        };
        let answer = chunked
            .request(bench.object("PUT", "k"), &bench.target)?
            .send(&bench.target)
            .await?;
        if answer.status == 200 && !trails {
            // All declared bytes came, and each was signed: what is missing adds nothing.
            ensure!(bench.get("k").await? == content, "{kind:?}: half an object was taken");
            bench
                .client
                .delete_object()
                .bucket(&bench.bucket)
                .key("k")
                .send()
                .await?;
            continue;
        }
        ensure!(
            (400..404).contains(&answer.status),
            "{kind:?}: {} {}",
            answer.status,
            answer.text()
        );
        bench.expect_absent("k").await?;
    }
    Ok(())
}

async fn wrong_lengths_are_refused(bench: Bench) -> Result<()> {
    let content = Pattern(5).bytes(0..100_000);
    for (kind, trails) in KINDS {
        for len in [99_999, 100_001, 0] {
            let chunked = Chunked {
                chunks: content.chunks(65_536).collect(),
                kind,
                trailer: trails.then(|| (TRAILER, crc32(&content))),
                spoil: Spoil::Nothing,
            };
            let answer = chunked
                .request_of_len(bench.object("PUT", "k"), &bench.target, len)?
                .send(&bench.target)
                .await?;
            ensure!(
                answer.status == 400,
                "{kind:?}, {len} declared: {} {}",
                answer.status,
                answer.text()
            );
            bench.expect_absent("k").await?;
        }
    }
    Ok(())
}

async fn parts_come_in_chunks(bench: Bench) -> Result<()> {
    let created = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("k")
        .send()
        .await?;
    let id = created.upload_id.context("no upload id")?;
    let content = Pattern(6).bytes(0..100_000);
    let mut etag = String::new();
    for (kind, trails) in KINDS {
        let chunked = Chunked {
            chunks: content.chunks(65_536).collect(),
            kind,
            trailer: trails.then(|| (TRAILER, crc32(&content))),
            spoil: Spoil::Nothing,
        };
        let part = bench.object("PUT", "k").query("partNumber", "1").query("uploadId", &id);
        let answer = chunked.request(part, &bench.target)?.send(&bench.target).await?;
        answer.expect_status(200).with_context(|| format!("{kind:?}"))?;
        answer.header("etag").context("no ETag")?.clone_into(&mut etag);
    }
    let body = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let complete = bench.object("POST", "k").query("uploadId", &id).body(body);
    complete
        .signed(&bench.target)?
        .send(&bench.target)
        .await?
        .expect_status(200)?;
    ensure!(bench.get("k").await? == content);
    Ok(())
}
