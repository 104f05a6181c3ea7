use std::sync::atomic::{AtomicUsize, Ordering};

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
    let path = blobs.folders.path(ID);
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
        assert!(error.to_string().contains(&ID.to_string()), "{error}");
    }
    fs::write(&path, &whole).unwrap();
    assert!(read_all(folder.path()).await.is_ok());
}

#[tokio::test]
async fn damaged_block_leaves_the_others_readable() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[vec![3; 3 * BLOCK].into()]).await;
    let path = blobs.folders.path(ID);
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
    let path = blobs.folders.path(ID);
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
    let source = blobs.folders.path(ID);
    blobs.open(ID).await.unwrap();
    blobs.delete(ID).await.unwrap();
    assert_eq!(blobs.open.len(), 0, "a deleted blob is let go");
    assert!(!source.exists());
    for index in 0..300 {
        let id = BlobId { index, ..ID };
        write(&blobs, id, &[]).await;
        blobs.open(id).await.unwrap();
    }
    assert_eq!(blobs.open.len(), 256);
    let (first, _) = blobs.open.get(BlobId { index: 0, ..ID });
    let (last, _) = blobs.open.get(BlobId { index: 299, ..ID });
    assert!(first.is_none() && last.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ranges_of_any_blob_are_what_was_appended(
        pieces in vec(vec(any::<u8>(), 0..3).prop_flat_map(|seed| (Just(seed), 0_usize..150_000)), 0..8),
        ranges in vec((0..=100_usize, 0..=100_usize), 1..8),
    ) {
        let pieces: Vec<Bytes> =
            pieces.into_iter().map(|(seed, len)| seed.iter().copied().chain([9]).cycle().take(len).collect()).collect();
        let data = pieces.concat();
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let blobs = FsBlobs::open(folder.path()).unwrap();
            write(&blobs, ID, &pieces).await;
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
