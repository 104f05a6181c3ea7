use std::os::unix::fs::MetadataExt;

use super::*;
use crate::blob::fs::export::copy;

/// Every path below a folder, with what it holds.
fn snapshot(root: &Path) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
            found.push((path, None));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, Some(bytes)));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn store_for_reading_only_reads_and_never_writes() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[vec![1; 1000].into()]).await;
    fs::write(folder.path().join("tmp/of a writer"), b"at work").unwrap();
    let before = snapshot(folder.path());
    let blobs = FsBlobs::open_read_only(folder.path()).unwrap();
    assert_eq!(blobs.open(ID).await.unwrap().read(0..3).await.unwrap(), [1; 3][..]);
    assert_eq!(blobs.list(None, 10).await.unwrap(), [ID]);
    assert!(blobs.exists(ID).await.unwrap());
    assert!(blobs.space().await.unwrap().unwrap().total > 0);
    let other = BlobId { index: 2, ..ID };
    let refused = [
        blobs.create(other).await.map(drop),
        blobs.delete(ID).await,
        blobs.repack(ID, Compression::Zstd(1)).await.map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert!(snapshot(folder.path()) == before);
}

#[test]
fn missing_folder_cannot_be_opened_for_reading_only() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("none");
    assert_eq!(FsBlobs::open_read_only(&root).unwrap_err().kind(), ErrorKind::Io);
    assert!(!root.exists(), "nothing is made");
    FsBlobs::open(&root).unwrap();
    fs::remove_dir(root.join("blobs/7f")).unwrap();
    assert_eq!(FsBlobs::open_read_only(&root).unwrap_err().kind(), ErrorKind::Io);
}

#[tokio::test]
async fn exported_blob_is_a_blob_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (root, to_root) = (folder.path().join("root"), folder.path().join("backup"));
    let blobs = FsBlobs::open(&root).unwrap();
    let content = Bytes::from(b"remember me ".repeat(100_000));
    write(&blobs, ID, std::slice::from_ref(&content)).await;
    assert_eq!(
        blobs.export(ID, &to_root).await.unwrap_err().kind(),
        ErrorKind::Io,
        "it is not prepared"
    );
    FsBlobs::prepare_export(&to_root).await.unwrap();
    assert_eq!(blobs.export(ID, &to_root).await.unwrap(), Exported::Linked);
    assert_eq!(blobs.export(ID, &to_root).await.unwrap(), Exported::Present);
    FsBlobs::prepare_export(&to_root).await.unwrap();
    FsBlobs::sync_export(&to_root).await.unwrap();
    let path = to_root.join("blobs/ab").join(ID.to_string());
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    let exported = fs::read(&path).unwrap();
    blobs.repack(ID, Compression::Zstd(1)).await.unwrap();
    assert!(fs::read(&path).unwrap() == exported, "a repacked blob is a new file");
    blobs.delete(ID).await.unwrap();
    let backup = FsBlobs::open_read_only(&to_root).unwrap();
    let blob = backup.open(ID).await.unwrap();
    assert!(blob.read(0..blob.len()).await.unwrap() == content);
    let error = blobs.export(BlobId { index: 9, ..ID }, &to_root).await.unwrap_err();
    assert_eq!(error.damage().unwrap().offset, None, "a missing blob");
}

#[tokio::test]
async fn blob_that_cannot_be_linked_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let to_root = folder.path().join("backup");
    let blobs = FsBlobs::open(&folder.path().join("root")).unwrap();
    write(&blobs, ID, &[noise(300_000).into()]).await;
    FsBlobs::prepare_export(&to_root).await.unwrap();
    // As an export that was killed leaves it.
    fs::write(to_root.join("tmp").join(format!("{ID}.0")), b"torn").unwrap();
    let (from, target) = (blobs.shared.folders.path(ID), Folders::of(&to_root));
    let exported = copy(&blobs.shared, ID, &from, &target).unwrap();
    assert!(matches!(exported, Exported::Cloned | Exported::Copied), "{exported:?}");
    let to = target.path(ID);
    assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
    assert_ne!(fs::metadata(&to).unwrap().ino(), fs::metadata(&from).unwrap().ino());
    assert_eq!(drafts(&to_root), 1, "its own draft is gone");
}
