//! Multipart uploads beyond what the model covers.

use lithos_storage::{
    Checksum, ChecksumAlgorithm, ChecksumType, CompletedPart, DigestSet, ErrorKind, IngestOptions, Limits, NewUpload,
    PartNumber, PartSize, WriteCondition,
};

use crate::world::{SMALL, World, body, key, noise};

fn number(number: u16) -> PartNumber {
    PartNumber::new(i64::from(number)).unwrap()
}

#[tokio::test]
async fn completions_that_name_the_wrong_parts_are_refused_and_change_nothing() {
    let world = World::memory(SMALL).await;
    let upload = world.create_upload("key").await;
    let first = world.put_part("key", upload, 1, &noise(1, 2000)).await.unwrap();
    let second = world.put_part("key", upload, 2, &noise(2, 10)).await.unwrap();
    let third = world.put_part("key", upload, 3, &noise(3, 2000)).await.unwrap();
    let missing = CompletedPart {
        number: number(4),
        ..third.clone()
    };
    let other = CompletedPart {
        etag: second.etag.clone(),
        ..first.clone()
    };
    let cases = [
        (vec![], ErrorKind::InvalidArgument),
        (vec![first.clone(), missing], ErrorKind::InvalidPart),
        (vec![other], ErrorKind::InvalidPart),
        (vec![third.clone(), first.clone()], ErrorKind::InvalidPartOrder),
        (vec![first.clone(), first.clone()], ErrorKind::InvalidPartOrder),
        (
            vec![first.clone(), second.clone(), third.clone()],
            ErrorKind::PartTooSmall,
        ),
    ];
    for (parts, kind) in cases {
        assert_eq!(world.complete("key", upload, &parts).await.unwrap_err().kind(), kind);
    }
    for (name, id) in [("other", upload), ("key", lithos_storage::LayoutId([7; 16]))] {
        let refused = world
            .complete(name, id, std::slice::from_ref(&first))
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSuchUpload);
    }
    assert_eq!(world.get("key").await, None);
    world
        .complete("key", upload, &[first, third, second])
        .await
        .unwrap_err();
    world.check_nothing_left().await;
}

#[tokio::test]
async fn parts_are_listed_in_pages_and_the_latest_of_a_number_counts() {
    let world = World::memory(SMALL).await;
    let upload = world.create_upload("key").await;
    let mut parts = Vec::new();
    for n in [5, 1, 3, 2, 4, 10_000] {
        world.put_part("key", upload, n, &noise(99, 5000)).await.unwrap();
        parts.push(
            world
                .put_part("key", upload, n, &noise(u64::from(n), 5000))
                .await
                .unwrap(),
        );
    }
    parts.sort_by_key(|part| part.number);
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = world
            .store
            .list_parts(&world.bucket, &key("key"), upload, after, 4)
            .await
            .unwrap();
        listed.extend(page.parts.iter().map(|(number, part)| (*number, part.etag.clone())));
        after = page.parts.last().map(|(number, _)| *number);
        if !page.more {
            break;
        }
    }
    let expected: Vec<_> = parts.iter().map(|part| (part.number, part.etag.clone())).collect();
    assert_eq!(listed, expected);
    let record = world.complete("key", upload, &parts).await.unwrap();
    assert_eq!(record.part_sizes, [PartSize { size: 5000, count: 6 }]);
    assert!(record.etag.ends_with("-6"));
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_completion_whose_condition_fails_can_be_made_again() {
    let world = World::memory(SMALL).await;
    world.put("key", b"old").await.unwrap();
    let upload = world.create_upload("key").await;
    let parts = [world.put_part("key", upload, 1, &noise(1, 300_000)).await.unwrap()];
    let name = key("key");
    let complete = |condition| {
        let (store, bucket, name, parts) = (&world.store, &world.bucket, &name, &parts);
        async move {
            store
                .complete_upload(bucket, name, upload, parts, &condition, |_, _| Ok(Vec::new()))
                .await
        }
    };
    let refused = complete(WriteCondition::Absent).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    world.store.sweep().await.unwrap();
    complete(WriteCondition::Always).await.unwrap();
    assert!(world.get("key").await == Some(noise(1, 300_000)));
    world.check_nothing_left().await;
}

/// The worked out checksums are those of the whole, or of the parts' checksums.
#[tokio::test]
async fn checksums_of_parts_combine() {
    let cases = [
        (ChecksumAlgorithm::Crc32, Some(ChecksumType::FullObject)),
        (ChecksumAlgorithm::Crc32c, Some(ChecksumType::FullObject)),
        (ChecksumAlgorithm::Crc64Nvme, None),
        (ChecksumAlgorithm::Crc32, Some(ChecksumType::Composite)),
        (ChecksumAlgorithm::Sha256, None),
    ];
    for (algorithm, kind) in cases {
        let world = World::memory(SMALL).await;
        let new = NewUpload {
            checksum_algorithm: Some(algorithm),
            checksum_type: kind,
            ..NewUpload::default()
        };
        let upload = world
            .store
            .create_upload(&world.bucket, &key("key"), new)
            .await
            .unwrap();
        let digests = DigestSet {
            checksums: vec![algorithm],
            sha512: false,
        };
        let (mut parts, mut whole) = (Vec::new(), Vec::new());
        for n in 1..=3_u16 {
            let data = noise(u64::from(n), 100_000 * usize::from(n));
            let options = IngestOptions {
                upload: Some(upload),
                digests: digests.clone(),
                ..IngestOptions::default()
            };
            let part = world.store.ingest(body(&data, 70_000), options).await.unwrap();
            let etag = hex::encode(part.digests.md5);
            let checksum = Checksum {
                algorithm,
                value: part.digests.checksum(algorithm).unwrap().to_owned(),
                kind: ChecksumType::FullObject,
            };
            let (number, name) = (number(n), key("key"));
            let put = world
                .store
                .put_part(&world.bucket, &name, number, part.content, etag.clone(), Some(checksum));
            put.await.unwrap();
            parts.push(CompletedPart {
                number,
                etag,
                checksum: None,
            });
            whole.extend(data);
        }
        let combined = world.complete("key", upload, &parts).await.unwrap().checksum.unwrap();
        let options = IngestOptions {
            digests,
            ..IngestOptions::default()
        };
        let whole = world.store.ingest(body(&whole, 70_000), options).await.unwrap();
        let full = kind == Some(ChecksumType::FullObject) || algorithm == ChecksumAlgorithm::Crc64Nvme;
        assert_eq!(combined.kind == ChecksumType::FullObject, full);
        assert_eq!(
            combined.value == whole.digests.checksum(algorithm).unwrap(),
            full,
            "{algorithm:?}"
        );
        assert_eq!(combined.value.ends_with("-3"), !full);
    }
}

#[tokio::test]
async fn ten_thousand_parts_are_one_object() {
    let limits = Limits {
        part_len_min: 1,
        ..Limits::default()
    };
    let world = World::memory(limits).await;
    let upload = world.create_upload("key").await;
    let mut parts = Vec::new();
    for n in 1..=10_000 {
        parts.push(world.put_part("key", upload, n, &n.to_be_bytes()).await.unwrap());
    }
    let record = world.complete("key", upload, &parts).await.unwrap();
    assert_eq!(record.size(), 20_000);
    assert_eq!(record.part_sizes, [PartSize { size: 2, count: 10_000 }]);
    let expected: Vec<u8> = (1..=10_000_u16).flat_map(u16::to_be_bytes).collect();
    assert!(world.get("key").await == Some(expected));
    world.check_deletes_all().await;
}
