//! What every store of blobs must do: the cases behind the contract in [`blob`](super).
//!
//! A new store passes [`run`] in its own tests. Each case gets an empty store.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{BLOB_LEN_MAX, BLOCK_LEN, BlobId, BlobWriter, Blobs};
use crate::{
    error::{ErrorKind, Result},
    schema::LayoutId,
};

/// Runs all cases on the empty stores that `make` gives.
///
/// # Panics
///
/// If the store breaks the contract; the message or the place tells where.
pub async fn run(make: impl AsyncFn() -> Arc<dyn Blobs>) {
    ranges_are_read_back(&*make().await).await;
    range_outside_is_an_error(&*make().await).await;
    empty_blob_is_a_blob(&*make().await).await;
    blob_is_not_visible_before_it_is_sealed(&*make().await).await;
    dropped_writer_leaves_nothing(&*make().await).await;
    missing_blob_cannot_be_opened(&*make().await).await;
    blob_over_the_bound_is_refused(&*make().await).await;
    blob_is_deleted_once_or_twice(&*make().await).await;
    open_blob_survives_its_deletion(&*make().await).await;
    list_pages_through_all_blobs(&*make().await).await;
    writers_do_not_disturb_each_other(&*make().await).await;
}

/// The `index`-th blob of some owner; owners are spread over the first and last bytes of their ids.
fn id(index: u8) -> BlobId {
    let mut owner = [0; 16];
    owner[0] = index.wrapping_mul(3);
    owner[15] = index.wrapping_mul(101);
    BlobId {
        owner: LayoutId(owner),
        index: u64::from(index),
    }
}

/// [`BLOCK_LEN`] as a length in memory.
const BLOCK: usize = 64 << 10;
const _: () = assert!(BLOCK as u64 == BLOCK_LEN, "the cases cut at the edges of blocks");

/// Bytes that differ from block to block.
fn pattern(len: usize) -> Bytes {
    (0..len as u64)
        .map(|offset| (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

async fn create(blobs: &dyn Blobs, id: BlobId) -> Box<dyn BlobWriter> {
    blobs.create(id).await.expect("a blob can be created")
}

async fn append(writer: &mut dyn BlobWriter, data: Bytes) {
    writer.append(data).await.expect("a blob can be written");
}

/// Writes a blob in pieces of `piece` bytes.
async fn store(blobs: &dyn Blobs, id: BlobId, data: &Bytes, piece: usize) {
    let mut writer = create(blobs, id).await;
    let mut rest = data.clone();
    while !rest.is_empty() {
        append(&mut *writer, rest.split_to(piece.min(rest.len()))).await;
    }
    let len = writer.seal().await.expect("a blob can be sealed");
    assert_eq!(len, data.len() as u64);
}

async fn read(blobs: &dyn Blobs, id: BlobId, range: Range<u64>) -> Result<Bytes> {
    blobs.open(id).await?.read(range).await
}

async fn exists(blobs: &dyn Blobs, id: BlobId) -> bool {
    blobs.exists(id).await.expect("a blob can be looked for")
}

async fn list(blobs: &dyn Blobs, after: Option<BlobId>, limit: usize) -> Vec<BlobId> {
    blobs.list(after, limit).await.expect("blobs can be listed")
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn ranges_are_read_back(blobs: &dyn Blobs) {
    let len = 3 * BLOCK + 5;
    let data = pattern(len);
    for (index, piece) in [(0, 1000), (1, 65_536), (2, 100_000), (3, 1 << 20)] {
        store(blobs, id(index), &data, piece).await;
        let blob = blobs.open(id(index)).await.expect("the blob is there");
        assert_eq!((blob.len(), blob.is_empty()), (len as u64, false));
        let edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, len - 1, len];
        for start in edges {
            for end in edges.into_iter().filter(|end| *end >= start) {
                let bytes = blob
                    .read(start as u64..end as u64)
                    .await
                    .expect("the range is readable");
                assert!(bytes == data.slice(start..end), "{start}..{end} of pieces of {piece}");
            }
        }
    }
}

async fn range_outside_is_an_error(blobs: &dyn Blobs) {
    store(blobs, id(0), &pattern(10), 10).await;
    #[expect(clippy::reversed_empty_ranges, reason = "it is one of the cases")]
    for range in [0..11, 11..11, 5..4, 0..u64::MAX, u64::MAX..0] {
        assert_eq!(
            kind(read(blobs, id(0), range.clone()).await),
            Some(ErrorKind::Corrupt),
            "{range:?}"
        );
    }
}

async fn empty_blob_is_a_blob(blobs: &dyn Blobs) {
    store(blobs, id(0), &Bytes::new(), 1).await;
    let mut writer = create(blobs, id(1)).await;
    append(&mut *writer, Bytes::new()).await;
    assert_eq!(writer.seal().await.expect("a blob can be sealed"), 0);
    for index in 0..2 {
        let blob = blobs.open(id(index)).await.expect("the blob is there");
        assert_eq!((blob.len(), blob.is_empty()), (0, true));
        assert!(blob.read(0..0).await.expect("the range is readable").is_empty());
    }
}

async fn blob_is_not_visible_before_it_is_sealed(blobs: &dyn Blobs) {
    let mut writer = create(blobs, id(0)).await;
    for _ in 0..2 {
        assert!(!exists(blobs, id(0)).await);
        assert_eq!(kind(blobs.open(id(0)).await), Some(ErrorKind::Corrupt));
        assert_eq!(list(blobs, None, 10).await, []);
        append(&mut *writer, pattern(2 << 20)).await;
    }
    writer.seal().await.expect("a blob can be sealed");
    assert!(exists(blobs, id(0)).await);
    assert_eq!(list(blobs, None, 10).await, [id(0)]);
}

async fn dropped_writer_leaves_nothing(blobs: &dyn Blobs) {
    drop(create(blobs, id(0)).await);
    let mut writer = create(blobs, id(1)).await;
    append(&mut *writer, pattern(2 << 20)).await;
    drop(writer);
    assert_eq!(list(blobs, None, 10).await, []);
    assert!(!exists(blobs, id(1)).await);
}

async fn missing_blob_cannot_be_opened(blobs: &dyn Blobs) {
    let error = blobs.open(id(0)).await.expect_err("there is no such blob");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains(&id(0).to_string()),
        "the error names the blob: {error}"
    );
    assert!(!exists(blobs, id(0)).await);
}

async fn blob_over_the_bound_is_refused(blobs: &dyn Blobs) {
    let mut writer = create(blobs, id(0)).await;
    let piece = pattern(1 << 20);
    for _ in 0..BLOB_LEN_MAX / piece.len() as u64 {
        append(&mut *writer, piece.clone()).await;
    }
    assert_eq!(
        kind(writer.append(Bytes::from_static(b"x")).await),
        Some(ErrorKind::TooLarge)
    );
}

async fn blob_is_deleted_once_or_twice(blobs: &dyn Blobs) {
    store(blobs, id(0), &pattern(10), 10).await;
    store(blobs, id(1), &pattern(10), 10).await;
    for _ in 0..2 {
        blobs.delete(id(0)).await.expect("a blob can be deleted");
        assert!(!exists(blobs, id(0)).await);
        assert_eq!(kind(blobs.open(id(0)).await), Some(ErrorKind::Corrupt));
        assert_eq!(list(blobs, None, 10).await, [id(1)]);
    }
}

async fn open_blob_survives_its_deletion(blobs: &dyn Blobs) {
    let data = pattern(2 * BLOCK);
    store(blobs, id(0), &data, 1 << 20).await;
    let blob = blobs.open(id(0)).await.expect("the blob is there");
    blobs.delete(id(0)).await.expect("a blob can be deleted");
    let bytes = blob.read(0..blob.len()).await.expect("the blob is still readable");
    assert!(bytes == data);
    assert_eq!(
        kind(blobs.open(id(0)).await),
        Some(ErrorKind::Corrupt),
        "it cannot be opened again"
    );
}

async fn list_pages_through_all_blobs(blobs: &dyn Blobs) {
    let mut stored = Vec::new();
    for index in 0..40 {
        // Every fourth shares its owner with the one before.
        let id = if index % 4 == 3 {
            BlobId {
                index: 77,
                ..id(index - 1)
            }
        } else {
            id(index)
        };
        store(blobs, id, &Bytes::from_static(b"x"), 1).await;
        stored.push(id);
    }
    let all = list(blobs, None, 100).await;
    assert_eq!(list(blobs, None, 40).await, all, "the order is stable");
    let mut sorted = all.clone();
    sorted.sort_unstable();
    stored.sort_unstable();
    assert_eq!(sorted, stored);
    for limit in [1, 7, 39] {
        let mut paged = Vec::new();
        loop {
            let page = list(blobs, paged.last().copied(), limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, all, "in pages of {limit}");
    }
    assert_eq!(list(blobs, None, 0).await, []);
    // The cursor need not be there any more.
    let (before, after) = all.split_at(20);
    let gone = *before.last().expect("there are 40");
    blobs.delete(gone).await.expect("a blob can be deleted");
    assert_eq!(list(blobs, Some(gone), 100).await, after);
}

async fn writers_do_not_disturb_each_other(blobs: &dyn Blobs) {
    let data = pattern(3 * BLOCK);
    let mut writers = Vec::new();
    for index in 0..8 {
        writers.push(create(blobs, id(index)).await);
    }
    for chunk in 0..3 {
        for writer in &mut writers {
            append(&mut **writer, data.slice(chunk * BLOCK..(chunk + 1) * BLOCK)).await;
        }
    }
    for writer in writers {
        writer.seal().await.expect("a blob can be sealed");
    }
    for index in 0..8 {
        let bytes = read(blobs, id(index), 0..3 * BLOCK_LEN)
            .await
            .expect("the blob is readable");
        assert!(bytes == data, "blob {index}");
    }
}
