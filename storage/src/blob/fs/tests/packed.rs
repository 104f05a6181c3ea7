use super::*;
use crate::blob::fs::packed::{GROUP, GROUP_LEN};

/// Three groups: a frame, one that does not compress, and a short frame.
fn content() -> Bytes {
    let mut content = b"nothing will come of nothing ".repeat(GROUP / 29 + 1);
    content.truncate(GROUP);
    content.extend(noise(GROUP));
    content.extend([8; 5000]);
    content.into()
}

/// A packed blob in a folder of its own.
async fn packed(root: &Path, content: &Bytes) -> FsBlobs {
    let blobs = FsBlobs::open(root).unwrap();
    write(&blobs, ID, std::slice::from_ref(content)).await;
    let repacked = blobs.repack(ID, Compression::Zstd(3)).await.unwrap();
    assert!(repacked.after < repacked.before, "{repacked:?}");
    blobs
}

#[tokio::test]
async fn flipped_bit_anywhere_is_an_error_that_names_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let blobs = packed(folder.path(), &content).await;
    let path = blobs.shared.folders.path(ID);
    let file_len = fs::metadata(&path).unwrap().len();
    let stored = file_len - (3 * 8 + 4 + 28);
    assert!(
        (GROUP_LEN + 20..GROUP_LEN + 300).contains(&stored),
        "two short frames and a group: {stored}"
    );
    // As a new process reads it.
    let read_anew = async || {
        blobs.shared.open.remove(ID);
        let blob = blobs.open(ID).await?;
        blob.read(0..blob.len()).await
    };
    // All bytes of the frames and of the trailer, and some of the group between them.
    let offsets = (0..300)
        .chain((300..stored - 300).step_by(9973))
        .chain(stored - 300..file_len);
    for offset in offsets {
        flip(&path, offset);
        let error = read_anew().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {offset}");
        let damage = error.damage().unwrap();
        assert_eq!(damage.blob, ID);
        assert_eq!(damage.offset.is_some(), offset < stored, "byte {offset}: {damage}");
        flip(&path, offset);
    }
    assert!(read_anew().await.unwrap() == content);
}

#[tokio::test]
async fn damaged_group_leaves_the_others_readable() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let blobs = packed(folder.path(), &content).await;
    let path = blobs.shared.folders.path(ID);
    flip(&path, fs::metadata(&path).unwrap().len() / 2);
    let blob = blobs.open(ID).await.unwrap();
    let len = blob.len();
    assert!(blob.read(0..GROUP_LEN).await.unwrap() == content.slice(..GROUP));
    assert!(blob.read(2 * GROUP_LEN..len).await.unwrap() == content.slice(2 * GROUP..));
    for range in [GROUP_LEN - 1..GROUP_LEN + 1, 0..len, GROUP_LEN..2 * GROUP_LEN] {
        let error = blob.read(range).await.unwrap_err();
        assert_eq!(error.damage().unwrap().offset, Some(GROUP_LEN));
    }
    let damage = blob.verify(0..len).await.unwrap();
    assert_eq!(
        damage.iter().map(|damage| damage.offset).collect::<Vec<_>>(),
        [Some(GROUP_LEN)]
    );
    assert_eq!(blob.verify(0..GROUP_LEN).await.unwrap(), []);
}

#[tokio::test]
async fn file_of_another_length_or_name_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = packed(folder.path(), &content()).await;
    let path = blobs.shared.folders.path(ID);
    let whole = fs::read(&path).unwrap();
    for len in [0, 1, 27, 28, 55, 56, 500, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(
            read_all(folder.path()).await.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "cut to {len}"
        );
        // The end is there, and the beginning is not.
        fs::write(&path, &whole[whole.len() - len..]).unwrap();
        assert_eq!(
            read_all(folder.path()).await.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "the last {len}"
        );
    }
    fs::write(&path, [&[0], &whole[..]].concat()).unwrap();
    assert_eq!(read_all(folder.path()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    fs::write(&path, &whole).unwrap();
    let other = BlobId { index: 2, ..ID };
    fs::copy(&path, blobs.shared.folders.path(other)).unwrap();
    assert_eq!(
        blobs.open(other).await.unwrap_err().kind(),
        ErrorKind::Corrupt,
        "another name"
    );
    let blob = blobs.open(ID).await.unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    let error = blob.read(0..1000).await.unwrap_err();
    assert_eq!(error.damage().unwrap().offset, Some(0), "cut while it is open");
}

#[tokio::test]
async fn group_at_the_edge_of_two_chunks_is_unpacked_once() {
    let folder = tempfile::tempdir().unwrap();
    let content: Bytes = b"tomorrow and tomorrow ".repeat(4 * GROUP / 22).into();
    let blobs = packed(folder.path(), &content).await;
    let blob = blobs.open(ID).await.unwrap();
    let middle = GROUP_LEN + 1000;
    let first = blob.read(0..middle).await.unwrap();
    // From now on, no group can be read from the disk.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(blobs.shared.folders.path(ID))
        .unwrap();
    file.write_all_at(&[0; 1000], 0).unwrap();
    let second = blob.read(middle..2 * GROUP_LEN).await.unwrap();
    assert!([first, second].concat() == content[..2 * GROUP]);
    assert!(blob.read(2 * GROUP_LEN..3 * GROUP_LEN).await.is_err());
    assert_eq!(
        blob.verify(middle..middle + 1).await.unwrap().len(),
        1,
        "verify reads the file"
    );
}
