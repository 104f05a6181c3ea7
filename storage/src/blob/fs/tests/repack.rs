use super::*;

fn content() -> Bytes {
    // Longer than two steps.
    b"once more unto the breach ".repeat(9 << 20 >> 4).into()
}

fn next_of(shared: &Arc<Shared>) -> Repack {
    match Repack::begin(Arc::clone(shared), ID, Compression::Zstd(1)).unwrap() {
        Next::Step(repack) => repack,
        _ => panic!("there is something to do"),
    }
}

/// Repacks up to the last step.
fn run(mut repack: Repack) -> Repack {
    loop {
        repack = match repack.step().unwrap() {
            Next::Step(repack) => repack,
            Next::Finish(repack) => return repack,
            Next::Stay(_) => panic!("it is worth it"),
        };
    }
}

#[tokio::test]
async fn blob_that_is_deleted_meanwhile_is_not_brought_back() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[content()]).await;
    let repack = run(next_of(&blobs.shared));
    blobs.delete(ID).await.unwrap();
    let error = spawn_blocking(move || repack.finish()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert!(error.damage().is_none(), "nothing is damaged");
    assert!(!blobs.exists(ID).await.unwrap());
    assert_eq!(blobs.list(None, 10).await.unwrap(), []);
}

#[test]
fn repacking_that_is_given_up_leaves_the_blob_and_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    runtime.block_on(write(&blobs, ID, &[content()]));
    let before = fs::read(blobs.shared.folders.path(ID)).unwrap();
    let repack = next_of(&blobs.shared);
    assert_eq!(drafts(folder.path()), 1);
    drop(repack);
    assert_eq!(drafts(folder.path()), 0);
    drop(run(next_of(&blobs.shared)));
    assert_eq!(drafts(folder.path()), 0);
    assert!(fs::read(blobs.shared.folders.path(ID)).unwrap() == before);
}

#[tokio::test]
async fn crash_after_any_step_leaves_one_of_the_forms() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, std::slice::from_ref(&content)).await;
    let path = blobs.shared.folders.path(ID);
    let old = fs::read(&path).unwrap();
    blobs.repack(ID, Compression::Zstd(1)).await.unwrap();
    let new = fs::read(&path).unwrap();
    assert!(new.len() < old.len() / 10);
    for (name, draft, why) in [
        (&old, Some(&new[..0]), "an empty draft"),
        (&old, Some(&new[..new.len() / 2]), "half a draft"),
        (&old, Some(&new[..]), "a whole draft"),
        (&new, None, "renamed"),
    ] {
        fs::write(&path, name).unwrap();
        if let Some(draft) = draft {
            fs::write(folder.path().join("tmp").join(format!("{ID}.0")), draft).unwrap();
        }
        assert!(read_all(folder.path()).await.unwrap() == content, "{why}");
        assert_eq!(drafts(folder.path()), 0, "{why}");
        let blobs = FsBlobs::open(folder.path()).unwrap();
        assert_eq!(blobs.list(None, 10).await.unwrap(), [ID], "{why}");
        let after = blobs.repack(ID, Compression::Zstd(1)).await.unwrap().after;
        assert_eq!(after, new.len() as u64, "it is done again after: {why}");
    }
}

#[tokio::test]
async fn damaged_blob_is_not_repacked() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[content()]).await;
    let path = blobs.shared.folders.path(ID);
    // A block that an open blob trusts.
    blobs.open(ID).await.unwrap().read(0..BLOCK_LEN).await.unwrap();
    flip(&path, 9);
    let damaged = fs::read(&path).unwrap();
    let error = blobs.repack(ID, Compression::Zstd(1)).await.unwrap_err();
    assert_eq!(error.damage().unwrap().offset, Some(0));
    assert!(fs::read(&path).unwrap() == damaged);
}

#[tokio::test]
async fn blob_that_does_not_compress_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[noise(20 * BLOCK).into(), vec![1; BLOCK].into()]).await;
    let path = blobs.shared.folders.path(ID);
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&path);
    // One block of 21 is less than a sixteenth.
    let repacked = blobs.repack(ID, Compression::Zstd(19)).await.unwrap();
    assert_eq!(repacked.before, repacked.after);
    assert_eq!(inode(&path), before);
    write(&blobs, ID, &[noise(20 * BLOCK).into(), vec![1; 2 * BLOCK].into()]).await;
    let repacked = blobs.repack(ID, Compression::Zstd(1)).await.unwrap();
    assert!(repacked.after < repacked.before);
    let packed = inode(&path);
    let again = blobs.repack(ID, Compression::Zstd(1)).await.unwrap();
    assert_eq!((again.before, again.after), (repacked.after, repacked.after));
    assert_eq!(inode(&path), packed, "a packed blob is not packed again at its level");
}

#[tokio::test]
async fn repacked_blob_is_let_go_of() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    write(&blobs, ID, &[content()]).await;
    blobs.open(ID).await.unwrap();
    blobs.repack(ID, Compression::Zstd(1)).await.unwrap();
    assert!(blobs.shared.open.get(ID).0.is_none());
    blobs.open(ID).await.unwrap();
    let (open, _) = blobs.shared.open.get(ID);
    assert_eq!(open.unwrap().level(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_the_same_bytes_while_a_blob_changes_its_form() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    let blobs = Arc::new(FsBlobs::open(folder.path()).unwrap());
    write(&blobs, ID, std::slice::from_ref(&content)).await;
    let (stop, stopped) = tokio::sync::watch::channel(());
    let readers: Vec<_> = (0..2_u64)
        .map(|reader| {
            let (blobs, content, stopped) = (Arc::clone(&blobs), content.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut offset = 12_345 * reader;
                while stopped.has_changed().is_ok() {
                    let blob = blobs.open(ID).await.unwrap();
                    let end = (offset + 300_000).min(blob.len());
                    let bytes = blob.read(offset..end).await.unwrap();
                    let range = usize::try_from(offset).unwrap()..usize::try_from(end).unwrap();
                    assert!(bytes == content[range.clone()], "{range:?}");
                    offset = (offset + 1_234_567) % blob.len();
                }
            })
        })
        .collect();
    for level in [1, 2] {
        blobs.repack(ID, Compression::Zstd(level)).await.unwrap();
        blobs.repack(ID, Compression::None).await.unwrap();
    }
    drop(stop);
    for reader in readers {
        reader.await.unwrap();
    }
}
