//! What every store of blobs must do: the cases behind the contract in [`blob`](super).
//!
//! A new store passes [`run`] in its own tests. Each case gets an empty store.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{BLOB_LEN_MAX, BLOCK_LEN, BlobId, BlobWriter, Blobs, Compression, Repacked, SAVED_PART_MIN, ZSTD_LEVELS};
use crate::{
    error::{Damage, ErrorKind, Result},
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
    repacked_blob_has_the_same_bytes(&*make().await).await;
    open_blob_survives_its_repacking(&*make().await).await;
    repacking_has_bounds(&*make().await).await;
    deleted_blob_stays_deleted_while_it_is_repacked(make().await).await;
    stored_len_is_of_sealed_blobs(&*make().await).await;
    whole_blob_has_no_damage(&*make().await).await;
    space_is_within_itself(&*make().await).await;
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
    let damage = error.damage().expect("a missing blob is a damage");
    assert_eq!((damage.blob, damage.offset), (id(0), None));
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

/// Text that compresses well, and then bytes that do not.
fn compressible(len: usize) -> Bytes {
    let mut data = b"so much depends upon a red wheel barrow ".repeat(len / 40 + 1);
    data.truncate(len);
    let noise = pattern(len / 4);
    data.splice(len - noise.len().., noise);
    data.into()
}

async fn repack(blobs: &dyn Blobs, id: BlobId, compression: Compression) -> Repacked {
    let repacked = blobs.repack(id, compression).await.expect("a blob can be repacked");
    let stored_len = blobs.stored_len(id).await.expect("the blob is there");
    assert_eq!(repacked.after, stored_len, "{compression:?}");
    repacked
}

async fn verify(blobs: &dyn Blobs, id: BlobId, range: Range<u64>) -> Result<Vec<Damage>> {
    blobs.open(id).await?.verify(range).await
}

async fn repacked_blob_has_the_same_bytes(blobs: &dyn Blobs) {
    for (index, len) in (0..).zip([0, 1, 1000, 2 * BLOCK, 11 * BLOCK + 7]) {
        let data = compressible(len);
        store(blobs, id(index), &data, 100_000).await;
        let forms = [
            Compression::Zstd(1),
            Compression::Zstd(1),
            Compression::Zstd(9),
            Compression::None,
            Compression::Zstd(3),
        ];
        for form in forms {
            let before = blobs.stored_len(id(index)).await.expect("the blob is there");
            let repacked = repack(blobs, id(index), form).await;
            assert_eq!(repacked.before, before);
            let saved = before.saturating_sub(repacked.after);
            let is_worth_it = repacked.after == before || saved * SAVED_PART_MIN >= before;
            assert!(is_worth_it || form == Compression::None, "{form:?}: {repacked:?}");
            assert_eq!(list(blobs, None, 1).await.len(), 1);
            let blob = blobs.open(id(index)).await.expect("the blob is there");
            assert_eq!(blob.len(), len as u64);
            for (start, end) in [(0, len), (len / 3, len / 2), (len / 2, len), (len, len)] {
                let bytes = blob
                    .read(start as u64..end as u64)
                    .await
                    .expect("the range is readable");
                assert!(bytes == data.slice(start..end), "{start}..{end} of {len} in {form:?}");
            }
            let damage = blob.verify(0..len as u64).await.expect("the range can be verified");
            assert_eq!(damage, []);
        }
    }
}

async fn open_blob_survives_its_repacking(blobs: &dyn Blobs) {
    let data = compressible(5 * BLOCK);
    store(blobs, id(0), &data, 1 << 20).await;
    let blob = blobs.open(id(0)).await.expect("the blob is there");
    repack(blobs, id(0), Compression::Zstd(3)).await;
    let bytes = blob.read(0..blob.len()).await.expect("the blob is still readable");
    assert!(bytes == data);
}

async fn repacking_has_bounds(blobs: &dyn Blobs) {
    let missing = blobs.repack(id(0), Compression::Zstd(3)).await;
    let error = missing.expect_err("there is no such blob");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.damage().map(|damage| damage.blob), Some(id(0)));
    store(blobs, id(0), &compressible(1000), 1000).await;
    for level in [i32::MIN, 0, ZSTD_LEVELS.end() + 1, i32::MAX] {
        let refused = blobs.repack(id(0), Compression::Zstd(level)).await;
        assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument), "level {level}");
    }
}

async fn deleted_blob_stays_deleted_while_it_is_repacked(blobs: Arc<dyn Blobs>) {
    let data = compressible(20 * BLOCK);
    for round in 0..20 {
        let id = id(round);
        store(&*blobs, id, &data, 1 << 20).await;
        let repacking = {
            let blobs = Arc::clone(&blobs);
            tokio::spawn(async move { blobs.repack(id, Compression::Zstd(1)).await })
        };
        // From a delete before the first step to one after the last.
        for _ in 0..round {
            tokio::task::yield_now().await;
            exists(&*blobs, id).await;
        }
        blobs.delete(id).await.expect("a blob can be deleted");
        let ended = repacking.await.expect("the task ends");
        let is_fine = matches!(
            kind(ended),
            None | Some(ErrorKind::Corrupt | ErrorKind::PreconditionFailed)
        );
        assert!(is_fine, "round {round}");
        assert!(!exists(&*blobs, id).await, "round {round}");
        assert_eq!(list(&*blobs, None, 10).await, []);
    }
}

async fn stored_len_is_of_sealed_blobs(blobs: &dyn Blobs) {
    assert_eq!(kind(blobs.stored_len(id(0)).await), Some(ErrorKind::Corrupt));
    store(blobs, id(0), &pattern(10 * BLOCK), 1 << 20).await;
    let len = blobs.stored_len(id(0)).await.expect("the blob is there");
    let at_most = 10 * BLOCK_LEN + BLOCK_LEN;
    assert!((10 * BLOCK_LEN..at_most).contains(&len), "{len} bytes are stored");
    blobs.delete(id(0)).await.expect("a blob can be deleted");
    let error = blobs.stored_len(id(0)).await.expect_err("it is gone");
    assert_eq!(error.damage().map(|damage| damage.blob), Some(id(0)));
}

async fn whole_blob_has_no_damage(blobs: &dyn Blobs) {
    store(blobs, id(0), &pattern(2 * BLOCK + 5), 1 << 20).await;
    let len = 2 * BLOCK_LEN + 5;
    for range in [0..len, 0..0, 5..6, BLOCK_LEN - 1..BLOCK_LEN + 1, len - 1..len, len..len] {
        let damage = verify(blobs, id(0), range).await.expect("the range can be verified");
        assert_eq!(damage, []);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "it is one of the cases")]
    for range in [0..len + 1, len + 1..len + 1, 5..4, 0..u64::MAX] {
        let outside = verify(blobs, id(0), range.clone()).await;
        assert_eq!(kind(outside), Some(ErrorKind::Corrupt), "{range:?}");
    }
}

async fn space_is_within_itself(blobs: &dyn Blobs) {
    if let Some(space) = blobs.space().await.expect("the space can be told") {
        assert!(space.free <= space.total && space.total > 0, "{space:?}");
    }
}
