//! Layouts of either form, through the content that they describe.

use bytes::Bytes;
use lithos_storage::{
    Content, ErrorKind, Limits, ObjectReader, OpenObject,
    layout::{Extent, Layout},
};
use proptest::{collection::vec, prelude::*};

use crate::world::{SMALL, World, key, new_object, noise};

const SOURCE_LEN: usize = 300_000;

#[derive(Debug, Clone)]
enum Piece {
    Zeros(u64),
    Bytes(usize),
    Range(u64, u64),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (1_u64..5000).prop_map(Piece::Zeros),
        (1_usize..3000).prop_map(Piece::Bytes),
        (0..SOURCE_LEN as u64 - 5000, 1_u64..5000).prop_map(|(offset, len)| Piece::Range(offset, len)),
    ]
}

async fn source(world: &World) -> OpenObject {
    world.put("source", &noise(1, SOURCE_LEN)).await.unwrap();
    world.store.open_object(&world.bucket, &key("source")).await.unwrap()
}

async fn build(world: &World, source: &OpenObject, pieces: &[Piece]) -> (Content, Vec<u8>) {
    let (mut builder, mut reader) = (
        world.store.content_builder(Some(source)).await.unwrap(),
        source.reader(),
    );
    let (data, mut expected) = (noise(1, SOURCE_LEN), Vec::new());
    for (n, piece) in pieces.iter().enumerate() {
        match *piece {
            Piece::Zeros(len) => {
                expected.resize(expected.len() + usize::try_from(len).unwrap(), 0);
                builder.push_zeros(len).await.unwrap();
            }
            Piece::Bytes(len) => {
                let bytes = noise(n as u64 + 2, len);
                expected.extend_from_slice(&bytes);
                builder.push_bytes(Bytes::from(bytes)).await.unwrap();
            }
            Piece::Range(offset, len) => {
                let start = usize::try_from(offset).unwrap();
                expected.extend_from_slice(&data[start..start + usize::try_from(len).unwrap()]);
                builder.push_range(&mut reader, offset, len).await.unwrap();
            }
        }
    }
    (builder.finish().await.unwrap(), expected)
}

/// The extents from `offset` on, with what differs between two attempts left out.
async fn extents(reader: &mut ObjectReader, mut offset: u64) -> Vec<(u64, bool)> {
    let mut extents = Vec::new();
    while let Some(piece) = reader.piece_at(offset, u64::MAX).await.unwrap() {
        offset += piece.len;
        extents.push((piece.len, piece.extent == Extent::Zero));
    }
    extents
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_paged_layout_reads_like_a_listed_one(
        pieces in vec(piece(), 0..60),
        seeks in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = Limits { blob_len_max: 10_000, ..SMALL };
            let (listing, paging) = (World::memory(Limits { listed_count_max: 500, ..limits }).await, World::memory(limits).await);
            let (listing_source, paging_source) = (source(&listing).await, source(&paging).await);
            let (listed, expected) = build(&listing, &listing_source, &pieces).await;
            let (paged, _) = build(&paging, &paging_source, &pieces).await;
            prop_assert!(matches!(listed.layout(), Layout::Listed(_)));
            let mut listed_reader = listing.store.staged_reader(listed.layout());
            let mut paged_reader = paging.store.staged_reader(paged.layout());
            prop_assert_eq!(paged.size(), expected.len() as u64);
            let seeks = seeks.iter().map(|seek| seek.index(expected.len() + 1) as u64);
            for offset in std::iter::once(0).chain(seeks) {
                // The listed form keeps up to 4 KiB of bytes as they are, and blobs end at other places than pieces.
                let zeros = |extents: Vec<(u64, bool)>| -> u64 { extents.iter().filter(|(_, zero)| *zero).map(|(len, _)| len).sum() };
                prop_assert_eq!(
                    zeros(extents(&mut listed_reader, offset).await),
                    zeros(extents(&mut paged_reader, offset).await)
                );
                let end = expected.len() as u64;
                let rest = &expected[usize::try_from(offset).unwrap()..];
                prop_assert!(listed_reader.read(offset..end).await.unwrap() == rest);
                prop_assert!(paged_reader.read(offset..end).await.unwrap() == rest);
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_layout_of_200_000_extents_is_found_anywhere() {
    const COUNT: u64 = 200_000;
    const ZEROS: u64 = 1 << 20;
    let world = World::memory(Limits::default()).await;
    let source = source(&world).await;
    let (mut builder, mut reader) = (
        world.store.content_builder(Some(&source)).await.unwrap(),
        source.reader(),
    );
    // A grain of data, from anywhere in the source, and a MiB of zeros, in turn: 100 GiB.
    let offset = |n: u64| n * 7919 % (SOURCE_LEN as u64 - 4096);
    for n in 0..COUNT / 2 {
        builder.push_range(&mut reader, offset(n), 4096).await.unwrap();
        builder.push_zeros(ZEROS).await.unwrap();
    }
    drop(reader);
    let content = builder.finish().await.unwrap();
    let Layout::Paged(paged) = content.layout().clone() else {
        panic!("a long layout is paged")
    };
    assert_eq!(paged.count, COUNT);
    let mut reader = world.store.staged_reader(content.layout());
    for step in 0..2000 {
        let n = step * 104_729 % (COUNT / 2);
        let start = n * (4096 + ZEROS);
        let data = reader.piece_at(start + 96, u64::MAX).await.unwrap().unwrap();
        assert!(matches!(data.extent, Extent::Blob { offset: at, .. } if at == offset(n) + 96));
        assert_eq!(data.len, 4000);
        let zeros = reader.piece_at(start + 4096, 5).await.unwrap().unwrap();
        assert_eq!((zeros.len, zeros.extent), (5, Extent::Zero));
    }
    assert_eq!(reader.piece_at(content.size(), 1).await.unwrap(), None);
    let new = new_object(content, "0".repeat(32));
    world
        .store
        .put_object(&world.bucket, &key("large"), new, |_, _| Ok(Vec::new()))
        .await
        .unwrap();
    let record = world.rows(b"O").await;
    assert_eq!(record.len(), 2);
    drop((reader, source));
    world.check_deletes_all().await;
}

#[tokio::test]
async fn content_refers_only_to_the_source_it_named() {
    let world = World::memory(SMALL).await;
    let source = source(&world).await;
    world.put("other", &noise(2, 5000)).await.unwrap();
    let other = world.store.open_object(&world.bucket, &key("other")).await.unwrap();
    let mut builder = world.store.content_builder(Some(&source)).await.unwrap();
    for (mut reader, len) in [(other.reader(), 10), (source.reader(), SOURCE_LEN as u64 + 1)] {
        let refused = builder.push_range(&mut reader, 0, len).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
}

#[tokio::test]
async fn ranges_beyond_the_object_are_refused() {
    let world = World::memory(SMALL).await;
    let source = source(&world).await;
    let size = SOURCE_LEN as u64;
    for range in [0..size + 1, size..size + 1, u64::MAX - 1..u64::MAX] {
        let refused = source.reader().read(range).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
    assert!(source.reader().read(size..size).await.unwrap().is_empty());
}
