mod access;
mod packed;
mod repack;

use std::{
    os::unix::fs::FileExt,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    blob::{BLOCK_LEN, contract},
    error::ErrorKind,
    schema::LayoutId,
};

/// [`BLOCK_LEN`] as a length in memory.
const BLOCK: usize = 64 << 10;
const ID: BlobId = BlobId {
    owner: LayoutId([0xab; 16]),
    index: 1,
};

async fn write(blobs: &FsBlobs, id: BlobId, pieces: &[Bytes]) {
    let mut writer = blobs.create(id).await.unwrap();
    for piece in pieces {
        writer.append(piece.clone()).await.unwrap();
    }
    writer.seal().await.unwrap();
}

async fn read_all(root: &Path) -> Result<Bytes> {
    // A new store each time: an open blob has read its trailer already.
    let blob = FsBlobs::open(root)?.open(ID).await?;
    blob.read(0..blob.len()).await
}

/// Turns one bit of a file over, in place.
fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn drafts(root: &Path) -> usize {
    fs::read_dir(root.join("tmp")).unwrap().count()
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let opened = AtomicUsize::new(0);
    contract::run(async || {
        let root = folder.path().join(opened.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(FsBlobs::open(&root).unwrap()) as Arc<dyn Blobs>
    })
    .await;
}

#[tokio::test]
async fn reopened_store_has_sealed_blobs_and_no_drafts() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("made/on/the/way");
    let blobs = FsBlobs::open(&root).unwrap();
    write(&blobs, ID, &[Bytes::from_static(b"kept")]).await;
    fs::write(root.join("tmp/left by a crash"), b"torn").unwrap();
    let blobs = FsBlobs::open(&root).unwrap();
    assert_eq!(drafts(&root), 0);
    assert_eq!(blobs.list(None, 10).await.unwrap(), [ID]);
    assert_eq!(read_all(&root).await.unwrap(), "kept");
    assert!(root.join("blobs/ab").join(ID.to_string()).exists());
}

#[test]
fn dropped_writer_removes_its_file() {
    let folder = tempfile::tempdir().unwrap();
    // One blocking thread, so that what is asked of it last is done last.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let blobs = FsBlobs::open(folder.path()).unwrap();
        for pieces in [0, 1, 5] {
            let mut writer = blobs.create(ID).await.unwrap();
            assert_eq!(drafts(folder.path()), 1);
            for _ in 0..pieces {
                writer.append(vec![1; 100_000].into()).await.unwrap();
            }
            drop(writer);
            // The write that was under way ends, its file is dropped, and the removal is queued behind this.
            for _ in 0..2 {
                spawn_blocking(|| ()).await.unwrap();
            }
            assert_eq!(drafts(folder.path()), 0, "after {pieces} pieces");
        }
    });
}

#[tokio::test]
async fn flipped_bit_anywhere_is_an_error_that_names_the_blob() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    let data = vec![3; BLOCK + 100];
    write(&blobs, ID, &[data.into()]).await;
    let path = blobs.shared.folders.path(ID);
    let whole = fs::read(&path).unwrap();
    let len = BLOCK + 100;
    assert_eq!(whole.len(), len + 2 * 4 + 28);
    let data_offsets = [0, 1, BLOCK - 1, BLOCK, len - 1];
    for offset in data_offsets.into_iter().chain(len..whole.len()) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        let error = read_all(folder.path()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {offset}");
        let damage = error.damage().unwrap();
        let block = (offset < len).then(|| (offset / BLOCK * BLOCK) as u64);
        assert_eq!((damage.blob, damage.offset), (ID, block), "byte {offset}");
    }
    fs::write(&path, &whole).unwrap();
    assert!(read_all(folder.path()).await.is_ok());
}

#[tokio::test]
async fn damaged_block_leaves_the_others_readable() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[vec![3; 3 * BLOCK].into()]).await;
    let path = blobs.shared.folders.path(ID);
    let mut file = fs::read(&path).unwrap();
    file[BLOCK + 9] ^= 1;
    fs::write(&path, file).unwrap();
    let blob = blobs.open(ID).await.unwrap();
    assert!(blob.read(0..BLOCK_LEN).await.is_ok());
    assert!(blob.read(2 * BLOCK_LEN..3 * BLOCK_LEN).await.is_ok());
    let error = blob.read(BLOCK_LEN - 1..BLOCK_LEN + 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("blob {ID} is damaged at byte 65536: a block does not match its checksum")
    );
}

#[tokio::test]
async fn file_of_another_length_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[vec![3; 1000].into()]).await;
    let path = blobs.shared.folders.path(ID);
    let whole = fs::read(&path).unwrap();
    for len in [0, 1, 27, 28, 500, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(
            read_all(folder.path()).await.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "cut to {len}"
        );
    }
    let longer = [&[0], &whole[..]].concat();
    fs::write(&path, longer).unwrap();
    assert_eq!(read_all(folder.path()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    fs::write(&path, &whole).unwrap();
    let blob = blobs.open(ID).await.unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert_eq!(
        blob.read(0..1000).await.unwrap_err().kind(),
        ErrorKind::Corrupt,
        "cut while it is open"
    );
}

#[tokio::test]
async fn foreign_files_are_not_listed() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[]).await;
    let name = ID.to_string();
    for foreign in [
        "ab/note.txt",
        &format!("ab/{}", name.to_uppercase()),
        &format!("00/{name}"),
        "ab/\u{e9}",
    ] {
        fs::write(folder.path().join("blobs").join(foreign), b"").unwrap();
    }
    assert_eq!(blobs.list(None, 10).await.unwrap(), [ID]);
}

#[tokio::test]
async fn few_blobs_are_kept_open() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[]).await;
    let source = blobs.shared.folders.path(ID);
    blobs.open(ID).await.unwrap();
    blobs.delete(ID).await.unwrap();
    assert_eq!(blobs.shared.open.len(), 0, "a deleted blob is let go");
    assert!(!source.exists());
    for index in 0..300 {
        let id = BlobId { index, ..ID };
        write(&blobs, id, &[]).await;
        blobs.open(id).await.unwrap();
    }
    assert_eq!(blobs.shared.open.len(), 256);
    let (first, _) = blobs.shared.open.get(BlobId { index: 0, ..ID });
    let (last, _) = blobs.shared.open.get(BlobId { index: 299, ..ID });
    assert!(first.is_none() && last.is_some());
}

#[tokio::test]
async fn as_many_blobs_are_kept_open_as_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = FsOptions {
        open_blobs_max: NonZeroUsize::new(2).unwrap(),
        ..FsOptions::default()
    };
    let blobs = FsBlobs::open_with(folder.path(), &options).unwrap();
    let id = |index| BlobId { index, ..ID };
    for index in [0, 1, 0, 2] {
        if index != 0 || !blobs.exists(id(0)).await.unwrap() {
            write(&blobs, id(index), &[]).await;
        }
        blobs.open(id(index)).await.unwrap();
    }
    let kept = [0, 1, 2].map(|index| blobs.shared.open.get(id(index)).0.is_some());
    assert_eq!(kept, [true, false, true], "the one that was not used again goes");
}

#[tokio::test]
async fn open_that_finds_too_many_files_is_tried_once_more_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    for index in 0..9 {
        let id = BlobId { index, ..ID };
        write(&blobs, id, &[]).await;
        blobs.open(id).await.unwrap();
    }
    let open = &blobs.shared.open;
    let fails = |times: usize, errno: rustix::io::Errno| {
        let mut calls = 0;
        let result = open.with_room(|| {
            calls += 1;
            if calls <= times {
                Err(io::Error::from(errno))
            } else {
                Ok(())
            }
        });
        (calls, result.is_ok())
    };
    assert_eq!(
        fails(1, rustix::io::Errno::NOENT),
        (1, false),
        "another error is not tried again"
    );
    assert_eq!(open.len(), 9);
    assert_eq!(fails(1, rustix::io::Errno::MFILE), (2, true));
    assert_eq!(open.len(), 4);
    assert!(open.get(BlobId { index: 8, ..ID }).0.is_some(), "the last one stays");
    assert_eq!(
        fails(2, rustix::io::Errno::NFILE),
        (2, false),
        "it is tried once more, not again and again"
    );
    assert_eq!(open.len(), 2);
}

#[tokio::test]
async fn sealed_blob_replaces_the_one_that_was_open() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[vec![1; 1000].into()]).await;
    blobs.open(ID).await.unwrap();
    flip(&blobs.shared.folders.path(ID), 500);
    assert!(blobs.open(ID).await.unwrap().read(0..1000).await.is_err());
    write(&blobs, ID, &[vec![1; 1000].into()]).await;
    assert_eq!(
        blobs.open(ID).await.unwrap().read(0..1000).await.unwrap(),
        vec![1; 1000]
    );
}

#[tokio::test]
async fn verify_gives_every_damaged_block() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    let len = 5 * BLOCK_LEN + 9;
    write(&blobs, ID, &[noise(5 * BLOCK + 9).into()]).await;
    let path = blobs.shared.folders.path(ID);
    let blob = blobs.open(ID).await.unwrap();
    // It was found whole, and is trusted; verify does not trust.
    blob.read(0..len).await.unwrap();
    for offset in [BLOCK_LEN + 1, 3 * BLOCK_LEN, len - 1] {
        flip(&path, offset);
    }
    let offsets = async |range| {
        let damage = blob.verify(range).await.unwrap();
        assert!(damage.iter().all(|damage| damage.blob == ID));
        damage
            .into_iter()
            .map(|damage| damage.offset.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(offsets(0..len).await, [BLOCK_LEN, 3 * BLOCK_LEN, 5 * BLOCK_LEN]);
    assert_eq!(offsets(BLOCK_LEN - 1..2 * BLOCK_LEN).await, [BLOCK_LEN]);
    assert_eq!(offsets(0..BLOCK_LEN).await, Vec::<u64>::new());
    assert!(
        blob.read(BLOCK_LEN..BLOCK_LEN + 1).await.is_err(),
        "a block that was found damaged is not trusted any more"
    );
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4 * BLOCK_LEN)
        .unwrap();
    assert_eq!(offsets(4 * BLOCK_LEN..len).await, [4 * BLOCK_LEN, 5 * BLOCK_LEN]);
}

#[tokio::test]
async fn block_is_trusted_for_as_long_as_told() {
    let folder = tempfile::tempdir().unwrap();
    for (verified_for, is_trusted) in [(Duration::ZERO, false), (Duration::from_hours(1), true)] {
        let options = FsOptions {
            verified_for,
            ..FsOptions::default()
        };
        let blobs = FsBlobs::open_with(folder.path(), &options).unwrap();
        write(&blobs, ID, &[vec![1; 2 * BLOCK].into()]).await;
        let blob = blobs.open(ID).await.unwrap();
        blob.read(0..BLOCK_LEN).await.unwrap();
        let path = blobs.shared.folders.path(ID);
        flip(&path, 10);
        flip(&path, BLOCK_LEN + 10);
        assert_eq!(blob.read(0..BLOCK_LEN).await.is_ok(), is_trusted);
        let part = blob.read(9..12).await;
        assert_eq!(part.ok(), is_trusted.then(|| Bytes::from_static(&[1, 0, 1])));
        assert!(
            blob.read(0..2 * BLOCK_LEN).await.is_err(),
            "the second block was never found whole"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ranges_of_any_blob_are_what_was_appended(
        pieces in vec(vec(any::<u8>(), 0..3).prop_flat_map(|seed| (Just(seed), 0_usize..150_000)), 0..8),
        ranges in vec((0..=100_usize, 0..=100_usize), 1..8),
        level in prop::option::of(1..=5),
    ) {
        let pieces: Vec<Bytes> =
            pieces.into_iter().map(|(seed, len)| seed.iter().copied().chain([9]).cycle().take(len).collect()).collect();
        let data = pieces.concat();
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let blobs = FsBlobs::open(folder.path()).unwrap();
            write(&blobs, ID, &pieces).await;
            if let Some(level) = level {
                blobs.repack(ID, Compression::Zstd(level)).await.unwrap();
            }
            let blob = blobs.open(ID).await.unwrap();
            assert_eq!(blob.len(), data.len() as u64);
            for (one, other) in ranges {
                let at = |percent: usize| data.len() * percent / 100;
                let (start, end) = (at(one.min(other)), at(one.max(other)));
                let bytes = blob.read(start as u64..end as u64).await.unwrap();
                assert!(bytes == data[start..end], "{start}..{end}");
            }
        });
    }
}
