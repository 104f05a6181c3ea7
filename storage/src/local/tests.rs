//! Folders on a real disk.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, time::SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::*;
use crate::{
    BucketName, ContentHeaders, IngestOptions, NewObject, ObjectKey, WriteCondition,
    clock::{ManualClock, Timestamp},
    fsck::FindingKind,
    schema::FORMAT_VERSION,
};

const NOW: Timestamp = Timestamp(1_000_000_000_000);

fn bucket() -> BucketName {
    "bucket".parse().unwrap()
}

async fn store(local: &Local) -> Store {
    local.store(Arc::new(ManualClock::new(NOW))).await.unwrap()
}

async fn put(store: &Store, name: &str, data: &[u8]) -> Result<()> {
    let body = futures::stream::iter([Ok(Bytes::copy_from_slice(data))]);
    let ingested = store.ingest(body, IngestOptions::default()).await?;
    let new = NewObject {
        content: ingested.content,
        etag: hex::encode(ingested.digests.md5),
        headers: ContentHeaders::default(),
        metadata: BTreeMap::new(),
        tags: BTreeMap::new(),
        checksum: None,
        part_sizes: Vec::new(),
        annotations: BTreeMap::new(),
        owner: String::new(),
        last_modified: None,
        condition: WriteCondition::Always,
        fence: None,
        source: None,
    };
    let key: ObjectKey = name.parse()?;
    store.put_object(&bucket(), &key, new, |_, _| Ok(Vec::new())).await?;
    Ok(())
}

async fn get(store: &Store, name: &str) -> Vec<u8> {
    let object = store.open_object(&bucket(), &name.parse().unwrap()).await.unwrap();
    let chunks: Vec<Bytes> = object.reader().stream(0..u64::MAX).boxed().try_collect().await.unwrap();
    chunks.concat()
}

/// A data folder with objects in records and in blobs, and files of the server beside.
async fn filled(path: &Path) -> Local {
    let local = Local::open(path, Mode::ReadWrite).unwrap();
    let store = store(&local).await;
    store
        .create_bucket(&bucket(), None, BTreeMap::new(), String::new())
        .await
        .unwrap();
    put(&store, "small", &[1; 10]).await.unwrap();
    put(&store, "large", &vec![2; 300_000]).await.unwrap();
    put(&store, "other", &vec![3; 300_000]).await.unwrap();
    fs::write(path.join("credentials"), "hush").unwrap();
    fs::set_permissions(path.join("credentials"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path.join("endpoints.json"), "{}").unwrap();
    local
}

type Tree = BTreeMap<PathBuf, (u64, SystemTime, u32)>;

/// All there is below a folder: lengths, times of change, modes.
fn tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let metadata = fs::metadata(&folder).unwrap();
        tree.insert(
            folder.clone(),
            (0, metadata.modified().unwrap(), metadata.permissions().mode()),
        );
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                let seen = (
                    metadata.len(),
                    metadata.modified().unwrap(),
                    metadata.permissions().mode(),
                );
                tree.insert(entry.path(), seen);
            }
        }
    }
    tree
}

#[tokio::test]
async fn reading_only_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    drop(filled(&path).await);
    for (file, (_, _, mode)) in tree(&path) {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode & !0o222)).unwrap();
    }
    let before = tree(&path);
    {
        let local = Local::open(&path, Mode::ReadOnly).unwrap();
        let store = store(&local).await;
        assert_eq!(get(&store, "small").await, [1; 10]);
        assert_eq!(get(&store, "large").await, vec![2; 300_000]);
        for (name, data) in [("small", vec![4; 10]), ("large", vec![4; 300_000])] {
            assert_eq!(put(&store, name, &data).await.unwrap_err().kind(), ErrorKind::ReadOnly);
        }
        let deleted = store.delete_object(&bucket(), &"small".parse().unwrap()).await;
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::ReadOnly);
        let report = local.fsck(&FsckOptions { deep: true }, &mut |_| {}).await.unwrap();
        assert_eq!(report.findings, []);
        let backup = local.backup(&folder.path().join("backup"), NOW, &mut |_| {}).await;
        assert_eq!(backup.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert_eq!(tree(&path), before);
    for (file, (_, _, mode)) in before {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode | 0o200)).unwrap();
    }
}

#[tokio::test]
async fn reading_only_makes_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let error = Local::open(folder.path(), Mode::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchRecord);
    assert_eq!(is_served(folder.path()).unwrap_err().kind(), ErrorKind::NoSuchRecord);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn drafts_are_noted_and_damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    drop(filled(&path).await);
    fs::write(path.join("blobs/tmp/draft"), "x").unwrap();
    let damaged = blob_files(&path).remove(0);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[1000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let local = Local::open(&path, Mode::ReadOnly).unwrap();
    let shallow = local.fsck(&FsckOptions::default(), &mut |_| {}).await.unwrap();
    let kinds = |report: &fsck::Report| report.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&shallow), [FindingKind::Drafts]);
    assert!(shallow.is_clean());
    let deep = local.fsck(&FsckOptions { deep: true }, &mut |_| {}).await.unwrap();
    assert_eq!(kinds(&deep), [FindingKind::DamagedBlob, FindingKind::Drafts]);
}

fn blob_files(data: &Path) -> Vec<PathBuf> {
    let blobs = data.join("blobs/blobs");
    tree(&blobs).into_keys().filter(|path| path.is_file()).collect()
}

#[tokio::test]
async fn a_backup_is_of_its_moment_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let local = filled(&path("data")).await;
    let store = store(&local).await;
    let mut told = 0;
    let manifest = local.backup(&path("backup"), NOW, &mut |_| told += 1).await.unwrap();
    assert!(told > 2);
    assert_eq!((manifest.blobs, manifest.missing.len()), (2, 0));
    assert_eq!(manifest.blob_bytes, 600_000);
    assert_eq!(manifest.files, ["credentials"]);
    assert_eq!(Manifest::read(&path("backup")).unwrap(), manifest);
    assert!(!path("backup.partial").exists());
    // What comes later is not in it, and what goes later is.
    put(&store, "small", &[9; 10]).await.unwrap();
    store.delete_object(&bucket(), &"large".parse().unwrap()).await.unwrap();
    store.sweep().await.unwrap();
    for (link, name) in [(false, "copied"), (true, "linked")] {
        let options = RestoreOptions { link, verify: true };
        let report = restore(&path("backup"), &path(name), options, &mut |_| {})
            .await
            .unwrap();
        assert_eq!(report.manifest, manifest);
        let mode = fs::metadata(path(name).join("credentials"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let restored = Local::open(&path(name), Mode::ReadWrite).unwrap();
        let store = self::store(&restored).await;
        assert_eq!(get(&store, "small").await, [1; 10]);
        assert_eq!(get(&store, "large").await, vec![2; 300_000]);
        // It is a store of its own: nothing done to it reaches the backup.
        put(&store, "more", &vec![5; 300_000]).await.unwrap();
        store.delete_object(&bucket(), &"other".parse().unwrap()).await.unwrap();
        store.sweep().await.unwrap();
        drop((store, restored));
        let checked = Local::open(&path(name), Mode::ReadOnly).unwrap();
        let report = checked.fsck(&FsckOptions { deep: true }, &mut |_| {}).await.unwrap();
        assert_eq!(report.findings, []);
    }
}

#[tokio::test]
async fn deletions_wait_for_a_backup() {
    let folder = tempfile::tempdir().unwrap();
    let local = filled(&folder.path().join("data")).await;
    let store = store(&local).await;
    let alone = local.deletions.write().await;
    store.delete_object(&bucket(), &"large".parse().unwrap()).await.unwrap();
    let sweeper = tokio::spawn({
        let store = store.clone();
        async move { store.sweep().await }
    });
    put(&store, "meanwhile", &vec![7; 300_000]).await.unwrap();
    assert!(!sweeper.is_finished());
    assert_eq!(blob_files(&folder.path().join("data")).len(), 3);
    drop(alone);
    assert_eq!(sweeper.await.unwrap().unwrap().blobs, 1);
}

#[tokio::test]
async fn targets_are_refused_that_would_do_harm() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let local = filled(&data).await;
    fs::create_dir(folder.path().join("there")).unwrap();
    fs::create_dir(folder.path().join("foreign.partial")).unwrap();
    for (to, why) in [
        (PathBuf::from("relative"), "absolute"),
        (folder.path().join("there"), "exists already"),
        (data.join("backup"), "within the data folder"),
        (data.join("../data/blobs/backup"), "within the data folder"),
        (folder.path().join("no/such"), "does not exist"),
        (folder.path().join("foreign"), "in the way"),
    ] {
        let error = local.backup(&to, NOW, &mut |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(why), "{error}");
    }
    // What a backup that was cut off has left is no hindrance.
    let left = folder.path().join("again.partial");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("unfinished"), "").unwrap();
    fs::write(left.join("rest"), "x").unwrap();
    local
        .backup(&folder.path().join("again"), NOW, &mut |_| {})
        .await
        .unwrap();
    assert!(!left.exists() && !folder.path().join("again/rest").exists());
}

#[tokio::test]
async fn broken_backups_are_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let local = filled(&path("data")).await;
    local.backup(&path("backup"), NOW, &mut |_| {}).await.unwrap();
    let restore = async |verify| {
        let options = RestoreOptions { link: false, verify };
        super::restore(&path("backup"), &path("restored"), options, &mut |_| {}).await
    };
    let damaged = blob_files(&path("backup")).remove(0);
    let whole = fs::read(&damaged).unwrap();
    let mut bytes = whole.clone();
    bytes[1000] ^= 1;
    // Another file than the store's, which it is linked to.
    fs::remove_file(&damaged).unwrap();
    fs::write(&damaged, &bytes).unwrap();
    assert_eq!(restore(true).await.unwrap_err().kind(), ErrorKind::Corrupt);
    fs::remove_file(&damaged).unwrap();
    assert_eq!(restore(false).await.unwrap_err().kind(), ErrorKind::Corrupt);
    fs::write(&damaged, &whole).unwrap();
    let manifest = fs::read(path("backup/backup.json")).unwrap();
    fs::remove_file(path("backup/backup.json")).unwrap();
    assert_eq!(restore(false).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let outside = String::from_utf8(manifest.clone())
        .unwrap()
        .replace("credentials", "../evil");
    fs::write(path("backup/backup.json"), outside).unwrap();
    assert_eq!(restore(false).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    let format = |version: u64| format!("\"format\": {version}");
    let newer = String::from_utf8(manifest.clone())
        .unwrap()
        .replace(&format(FORMAT_VERSION), &format(FORMAT_VERSION + 1));
    fs::write(path("backup/backup.json"), newer).unwrap();
    assert_eq!(restore(false).await.unwrap_err().kind(), ErrorKind::Format);
    assert!(!path("restored").exists() && !path("restored.partial").exists());
    fs::write(path("backup/backup.json"), manifest).unwrap();
    restore(true).await.unwrap();
    assert_eq!(
        restore(false).await.unwrap_err().kind(),
        ErrorKind::InvalidArgument,
        "it is there"
    );
}

#[tokio::test]
async fn what_was_lost_before_the_backup_does_not_stop_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let local = filled(&path("data")).await;
    fs::remove_file(blob_files(&path("data")).remove(0)).unwrap();
    let manifest = local.backup(&path("backup"), NOW, &mut |_| {}).await.unwrap();
    assert_eq!((manifest.blobs, manifest.missing.len()), (1, 1));
    assert!(manifest.to_string().contains("missing"), "{manifest}");
    let options = RestoreOptions::default();
    let report = restore(&path("backup"), &path("restored"), options, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(report.blobs.errors, 1);
}
