//! Bodies on their way in.

use std::{os::unix::fs::MetadataExt, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use lithos_storage::{
    BodyError, ChecksumAlgorithm, DigestSet, ErrorKind, IngestOptions, Ingested, Limits, Store,
    blob::FsBlobs,
    clock::{ManualClock, Timestamp},
    kv::MemoryKv,
    layout::{Extent, Layout},
};
use proptest::prelude::*;

use crate::world::{GRAIN, SMALL, World, body, key, new_object, noise};

/// Lengths and kinds of the extents, with blobs numbered in order of appearance.
fn shape(ingested: &Ingested) -> Vec<(u64, String)> {
    let Layout::Listed(list) = ingested.content.layout() else {
        panic!("a short layout")
    };
    let mut blobs = Vec::new();
    list.pieces()
        .map(|piece| {
            let what = match &piece.extent {
                Extent::Zero => "zeros".to_owned(),
                Extent::Inline(bytes) => format!("{bytes:?}"),
                Extent::Blob { id, offset } => {
                    if !blobs.contains(id) {
                        blobs.push(*id);
                    }
                    format!("blob {:?} at {offset}", blobs.iter().position(|known| known == id))
                }
            };
            (piece.len, what)
        })
        .collect()
}

fn options() -> IngestOptions {
    IngestOptions {
        digests: DigestSet {
            checksums: vec![ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Sha256],
            sha512: true,
        },
        ..IngestOptions::default()
    }
}

fn disk_image() -> Vec<u8> {
    let mut data = noise(1, 3 * GRAIN);
    data.extend(vec![0; 5 * GRAIN]);
    data.extend(noise(2, GRAIN + 100));
    // Zeros that are no whole grain are stored.
    data.extend(vec![0; GRAIN - 101]);
    data.extend(vec![0; 2 * GRAIN + 17]);
    data
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn layout_and_digests_do_not_depend_on_the_chunks(lens in prop::collection::vec(1_usize..300_000, 1..20)) {
        let data = disk_image();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::memory(Limits { blob_len_max: 128 << 10, ..Limits::default() }).await;
            let whole = world.store.ingest(body(&data, data.len()), options()).await.unwrap();
            let mut rest = Bytes::from(data.clone());
            let mut chunks: Vec<Result<Bytes, BodyError>> = Vec::new();
            for len in lens.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                chunks.push(Ok(rest.split_to(rest.len().min(*len))));
            }
            let chunked = world.store.ingest(stream::iter(chunks), options()).await.unwrap();
            prop_assert_eq!(shape(&chunked), shape(&whole));
            prop_assert_eq!(&chunked.digests, &whole.digests);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn zeros_take_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    let clock = ManualClock::new(Timestamp(1));
    let store = Store::open(Arc::new(MemoryKv::new()), Arc::new(blobs), Arc::new(clock))
        .await
        .unwrap();
    let zeros = stream::repeat(Bytes::from(vec![0; 1 << 20])).take(1024).map(Ok);
    let data = stream::once(async { Ok(Bytes::from(noise(1, GRAIN))) });
    let ingested = store.ingest(zeros.chain(data), IngestOptions::default()).await.unwrap();
    assert_eq!(ingested.content.size(), (1 << 30) + GRAIN as u64);
    assert!(
        stored_bytes(folder.path()) < 2 * GRAIN as u64,
        "1 GiB of zeros is not stored"
    );
}

fn stored_bytes(folder: &std::path::Path) -> u64 {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                stored_bytes(&entry.path())
            } else {
                entry.metadata().unwrap().blocks() * 512
            }
        })
        .sum()
}

#[tokio::test]
async fn small_bodies_need_no_blob() {
    let world = World::memory(Limits::default()).await;
    for (len, blobs) in [(0, 0), (1, 0), (4096, 0), (4097, 1)] {
        let ingested = world.store.ingest(body(&noise(1, len), 1000), options()).await.unwrap();
        assert_eq!(world.listed_blobs().await.len(), blobs, "{len} bytes");
        drop(ingested);
        world.store.sweep().await.unwrap();
    }
    let zeros = world.store.ingest(body(&[0; 10_000], 1000), options()).await.unwrap();
    assert_eq!(shape(&zeros), [(10_000, "zeros".to_owned())]);
}

#[tokio::test]
async fn bodies_of_another_length_than_declared_leave_nothing() {
    let world = World::memory(SMALL).await;
    let data = disk_image();
    let len = data.len() as u64;
    let cases = [
        (Some(len + 1), None, Some(ErrorKind::IncompleteBody)),
        (Some(len - 1), None, Some(ErrorKind::IncompleteBody)),
        (Some(0), None, Some(ErrorKind::IncompleteBody)),
        (None, Some(len - 1), Some(ErrorKind::TooLarge)),
        (Some(len), Some(len), None),
    ];
    for (declared_len, len_max, error) in cases {
        let options = IngestOptions {
            declared_len,
            len_max,
            ..IngestOptions::default()
        };
        let ingested = world.store.ingest(body(&data, 50_000), options).await;
        assert_eq!(ingested.as_ref().err().map(lithos_storage::Error::kind), error);
        drop(ingested);
        world.check_consistent().await;
        assert!(world.listed_blobs().await.is_empty());
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing_and_says_why() {
    let world = World::memory(SMALL).await;
    let broken = body(&disk_image(), 50_000).chain(stream::once(async { Err("the client went away".into()) }));
    let error = world.store.ingest(broken, IngestOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BodyFailed);
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the client went away");
    world.check_nothing_left().await;
}

/// A body that gives up the processor before each chunk, so that its ingest can be dropped there.
fn slow_body(data: &[u8]) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + use<> {
    body(data, 40_000).then(|chunk| async {
        tokio::task::yield_now().await;
        chunk
    })
}

#[tokio::test]
async fn an_ingest_that_is_dropped_anywhere_leaves_nothing() {
    for world in [World::memory(SMALL).await, World::disk(SMALL).await] {
        let data = [disk_image(), noise(3, 5 * GRAIN)].concat();
        let mut polls = 0;
        loop {
            polls += 1;
            let mut ingest = Box::pin(world.store.ingest(slow_body(&data), IngestOptions::default()));
            let mut ended = false;
            for _ in 0..polls {
                if futures::poll!(&mut ingest).is_ready() {
                    ended = true;
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(ingest);
            if ended {
                break;
            }
        }
        assert!(polls > 10);
        world.check_nothing_left().await;
    }
}

#[tokio::test]
async fn content_that_waited_over_a_day_cannot_be_committed() {
    let world = World::memory(SMALL).await;
    let ingested = world
        .store
        .ingest(body(&disk_image(), 50_000), IngestOptions::default())
        .await
        .unwrap();
    world.reopen_elsewhere().await;
    let new = new_object(ingested.content, "0".repeat(32));
    let late = key("late");
    let put = world.store.put_object(&world.bucket, &late, new, |_, _| Ok(Vec::new()));
    assert_eq!(put.await.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    assert_eq!(world.get("late").await, None);
    world.check_nothing_left().await;
}
