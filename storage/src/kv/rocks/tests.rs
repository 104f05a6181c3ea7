use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::kv::{Durability, Txn, contract};

pub(super) async fn put(kv: &Arc<dyn Kv>, key: &str, durability: Durability) {
    let mut txn = Txn::begin(kv).await.unwrap();
    txn.set_durability(durability);
    txn.put(key.to_owned(), vec![b'v'; 100]).unwrap();
    assert!(matches!(txn.commit().await, Outcome::Committed(_)));
}

pub(super) async fn keys(kv: &Arc<dyn Kv>) -> Vec<Bytes> {
    let rows = Txn::begin(kv)
        .await
        .unwrap()
        .scan_all(super::super::prefix_range(b""))
        .await
        .unwrap();
    rows.into_iter().map(|(key, _)| key).collect()
}

pub(super) fn open(path: &Path) -> Arc<dyn Kv> {
    Arc::new(RocksKv::open(path).unwrap())
}

/// What a kill would leave: the files as the operating system has them, without a close.
pub(super) fn killed_copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

pub(super) fn log_file(folder: &Path) -> PathBuf {
    let logs = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = logs
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs.pop().expect("the store has a log")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let opened = AtomicUsize::new(0);
    contract::run(async || open(&folder.path().join(opened.fetch_add(1, Ordering::Relaxed).to_string()))).await;
}

#[tokio::test]
async fn reopened_store_has_the_rows_and_later_versions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on/the/way");
    let kv = open(&path);
    put(&kv, "a", Durability::Synced).await;
    put(&kv, "b", Durability::Buffered).await;
    let before = kv.snapshot().await.unwrap().version();
    drop(kv);
    let kv = open(&path);
    // The first read comes from the disk, the second from memory.
    for _ in 0..2 {
        let value = Txn::begin(&kv).await.unwrap().get(b"a").await.unwrap();
        assert_eq!(value.map(|value| value.len()), Some(100));
    }
    assert_eq!(keys(&kv).await, ["a", "b"]);
    assert!(kv.snapshot().await.unwrap().version() >= before);
}

#[tokio::test]
async fn kill_loses_no_answered_commit() {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    put(&kv, "a", Durability::Synced).await;
    put(&kv, "b", Durability::Buffered).await;
    let copy = killed_copy(folder.path());
    put(&kv, "c", Durability::Synced).await;
    assert_eq!(keys(&open(copy.path())).await, ["a", "b"]);
}

#[tokio::test]
async fn record_cut_off_by_the_end_of_the_log_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    put(&kv, "a", Durability::Synced).await;
    put(&kv, "b", Durability::Synced).await;
    for cut in [1, 60, 120] {
        let copy = killed_copy(folder.path());
        let log = fs::OpenOptions::new().write(true).open(log_file(copy.path())).unwrap();
        log.set_len(log.metadata().unwrap().len() - cut).unwrap();
        assert_eq!(keys(&open(copy.path())).await, ["a"], "{cut} bytes cut off");
    }
}

#[tokio::test]
async fn damaged_record_in_the_log_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    for key in ["a", "b", "c"] {
        put(&kv, key, Durability::Synced).await;
    }
    let copy = killed_copy(folder.path());
    let path = log_file(copy.path());
    let mut log = fs::read(&path).unwrap();
    let middle = log.len() / 2;
    log[middle] ^= 1;
    fs::write(&path, log).unwrap();
    assert_eq!(RocksKv::open(copy.path()).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn folder_that_is_open_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = RocksKv::open(folder.path()).unwrap_err();
    let expected = format!("another process has this data folder open: {}", folder.path().display());
    assert_eq!(error.to_string(), expected);
    drop(first);
    open(folder.path());
}

#[tokio::test]
async fn open_snapshot_outlives_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    put(&kv, "a", Durability::Synced).await;
    let snapshot = kv.snapshot().await.unwrap();
    drop(kv);
    assert!(snapshot.get(b"a").await.unwrap().is_some());
    drop(snapshot);
    open(folder.path());
}

#[tokio::test]
async fn kill_loses_no_counted_addition() {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    for (delta, durability) in [
        (5, Durability::Synced),
        (-2, Durability::Buffered),
        (4, Durability::Synced),
    ] {
        let mut txn = Txn::begin(&kv).await.unwrap();
        txn.set_durability(durability);
        txn.add("count", delta).unwrap();
        assert!(matches!(txn.commit().await, Outcome::Committed(_)));
    }
    let copy = killed_copy(folder.path());
    for _ in 0..2 {
        let kv = open(copy.path());
        let mut txn = Txn::begin(&kv).await.unwrap();
        assert_eq!(txn.counter(b"count").await.unwrap(), 7);
        txn.add("count", 0).unwrap();
        txn.require_at_most("count", 7).unwrap();
        assert!(matches!(txn.commit().await, Outcome::Committed(_)));
    }
}

#[test]
fn full_disk_is_told_from_other_errors() {
    let full = "IO error: No space left on device: While appending to file: /index/000004.log: No space left on device";
    let cases = [
        (rocksdb::ErrorKind::IOError, full, ErrorKind::StorageFull),
        (
            rocksdb::ErrorKind::IOError,
            "IO error: While fsync: /index/000004.log: Disk quota exceeded",
            ErrorKind::StorageFull,
        ),
        (
            rocksdb::ErrorKind::IOError,
            "IO error: While fsync: /index/000004.log: Input/output error",
            ErrorKind::Io,
        ),
        (
            rocksdb::ErrorKind::Corruption,
            "Corruption: checksum mismatch",
            ErrorKind::Corrupt,
        ),
    ];
    for (status, text, kind) in cases {
        assert_eq!(kind_of(&status, text), kind, "{text}");
    }
}
