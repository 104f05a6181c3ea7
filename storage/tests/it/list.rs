//! Listings against a plain fold of all keys.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use lithos_storage::{
    Limits, ListObjects, ListUploads, ListingEntry, NewUpload, Result,
    kv::{Commit, Fold, Kv, Outcome, Page, Scan, Snapshot, Version},
};
use proptest::{collection::btree_set, prelude::*};

use crate::world::{World, key};

/// All entries behind `after`, as the S3 API Reference describes them ("ListObjectsV2").
fn fold(keys: &BTreeSet<String>, prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for key in keys
        .iter()
        .filter(|key| key.starts_with(prefix) && key.as_str() > after)
    {
        let rest = &key[prefix.len()..];
        let entry = match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => &key[..prefix.len() + at + delimiter.len()],
            None => key,
        };
        // A common prefix that an earlier page ended with is not shown again.
        if entries.last().is_none_or(|last| last != entry) && entry != after {
            entries.push(entry.to_owned());
        }
    }
    entries
}

fn name() -> impl Strategy<Value = String> {
    "[ab/é]{1,5}"
}

fn delimiter() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 4 => Just("/".to_owned()), 1 => Just("ab".to_owned()), 1 => Just("é".to_owned())]
}

async fn objects(world: &World, prefix: &str, delimiter: &str, after: &str, limit: usize) -> Vec<String> {
    let mut list = ListObjects {
        prefix: prefix.to_owned(),
        delimiter: delimiter.to_owned(),
        after: after.to_owned(),
        limit,
    };
    let mut names = Vec::new();
    loop {
        let page = world.store.list_objects(&world.bucket, &list).await.unwrap();
        assert!(page.entries.len() <= limit);
        assert!(
            !page.more || page.entries.len() == limit,
            "a page that is not the last is full"
        );
        for entry in &page.entries {
            let folded = matches!(entry, ListingEntry::CommonPrefix(_));
            let folds = !delimiter.is_empty() && entry.name()[prefix.len()..].contains(delimiter);
            assert_eq!(folded, folds, "{:?}", entry.name());
        }
        names.extend(page.entries.iter().map(|entry| entry.name().to_owned()));
        if !page.more {
            return names;
        }
        list.after.clone_from(names.last().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn pages_of_objects_are_the_folded_keys(
        keys in btree_set(name(), 0..60),
        prefix in "[ab/é]{0,2}",
        delimiter in delimiter(),
        after in "[ab/é]{0,3}",
        limit in 1_usize..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::memory(Limits::default()).await;
            for name in &keys {
                world.put(name, b"").await.unwrap();
            }
            let expected = fold(&keys, &prefix, &delimiter, "");
            prop_assert_eq!(&objects(&world, &prefix, &delimiter, "", limit).await, &expected);
            prop_assert_eq!(&objects(&world, &prefix, &delimiter, "", 1000).await, &expected);
            // A place to go on from that is no common prefix of this listing; one that is, is what pages go on from.
            let rest = after.strip_prefix(&prefix[..]);
            let is_folded = !delimiter.is_empty()
                && rest.is_some_and(|rest| rest.find(&delimiter).is_some_and(|at| at + delimiter.len() == rest.len()));
            if !is_folded {
                let expected = fold(&keys, &prefix, &delimiter, &after);
                prop_assert_eq!(&objects(&world, &prefix, &delimiter, &after, limit).await, &expected);
            }
            Ok(())
        })?;
    }

    #[test]
    fn pages_of_uploads_are_the_folded_keys(
        keys in btree_set(name(), 0..20),
        prefix in "[ab/é]{0,2}",
        delimiter in delimiter(),
        limit in 1_usize..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::memory(Limits::default()).await;
            let mut expected = Vec::new();
            for name in &keys {
                world.create_upload(name).await;
                world.clock.advance_millis(1);
                world.create_upload(name).await;
            }
            for entry in fold(&keys, &prefix, &delimiter, "") {
                let folded = !delimiter.is_empty() && entry[prefix.len()..].contains(&delimiter);
                expected.extend(std::iter::repeat_n(entry, if folded { 1 } else { 2 }));
            }
            let mut list = ListUploads {
                keys: ListObjects { prefix, delimiter, after: String::new(), limit },
                after_upload: None,
            };
            let mut names = Vec::new();
            loop {
                let page = world.store.list_uploads(&world.bucket, &list).await.unwrap();
                names.extend(page.entries.iter().map(|entry| entry.name().to_owned()));
                if !page.more {
                    break;
                }
                let last = page.entries.last().unwrap();
                list.keys.after = last.name().to_owned();
                list.after_upload = match last {
                    ListingEntry::Key(_, upload) => Some(upload.id),
                    ListingEntry::CommonPrefix(_) => None,
                };
            }
            prop_assert_eq!(names, expected);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_page_of_nothing_is_the_last() {
    let world = World::memory(Limits::default()).await;
    world.put("a", b"").await.unwrap();
    let page = world
        .store
        .list_objects(&world.bucket, &ListObjects::default())
        .await
        .unwrap();
    assert!(page.entries.is_empty() && !page.more);
}

#[tokio::test]
async fn folded_keys_cost_a_jump_however_many_they_are() {
    let world = World::memory(Limits::default()).await;
    for n in 0..3000 {
        world.put(&format!("{}/{n}", n % 3), b"").await.unwrap();
    }
    assert_eq!(objects(&world, "", "/", "", 2).await, ["0/", "1/", "2/"]);
    assert_eq!(objects(&world, "1/", "", "", 400).await.len(), 1000);
    assert_eq!(objects(&world, "", "", "", 1000).await.len(), 3000);
}

/// An index that counts how often it is scanned.
#[derive(Debug)]
struct CountedKv {
    inner: Arc<dyn Kv>,
    scans: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct CountedSnapshot {
    inner: Box<dyn Snapshot>,
    scans: Arc<AtomicUsize>,
}

#[async_trait]
impl Kv for CountedKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(CountedSnapshot {
            inner: self.inner.snapshot().await?,
            scans: Arc::clone(&self.scans),
        }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        self.inner.commit(commit).await
    }
}

#[async_trait]
impl Snapshot for CountedSnapshot {
    fn version(&self) -> Version {
        self.inner.version()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(key).await
    }

    async fn scan(&self, scan: &Scan) -> Result<Page> {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.inner.scan(scan).await
    }

    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page> {
        self.scans.fetch_add(1, Ordering::Relaxed);
        self.inner.scan_folded(scan, fold).await
    }
}

/// However many keys are folded, and however long they make the bucket: a page is one scan.
#[tokio::test]
async fn a_page_costs_one_scan() {
    let world = World::memory(Limits::default()).await;
    for n in 0..2000 {
        world.put(&format!("many/{n}"), b"").await.unwrap();
        world.put(&format!("{:02}/{n}", n % 50), b"").await.unwrap();
    }
    let scans = Arc::new(AtomicUsize::new(0));
    let counted = CountedKv {
        inner: Arc::clone(&world.kv),
        scans: Arc::clone(&scans),
    };
    let store = World::over_with(Arc::new(counted), Arc::clone(&world.blobs), &world).await;
    let cost = async |prefix: &str, delimiter: &str, limit: usize| {
        let list = ListObjects {
            prefix: prefix.to_owned(),
            delimiter: delimiter.to_owned(),
            after: String::new(),
            limit,
        };
        scans.store(0, Ordering::Relaxed);
        let page = store.list_objects(&world.bucket, &list).await.unwrap();
        (page.entries.len(), scans.load(Ordering::Relaxed))
    };
    for (prefix, delimiter, limit, entries) in [
        ("", "/", 1000, 51),
        ("", "/", 10, 10),
        ("", "", 1000, 1000),
        ("many/", "/", 1000, 1000),
        ("many", "/", 1000, 1),
        ("nothing", "/", 1000, 0),
    ] {
        let (found, scans) = cost(prefix, delimiter, limit).await;
        assert_eq!(found, entries, "{prefix:?} {delimiter:?} {limit}");
        assert_eq!(scans, 1, "{prefix:?} {delimiter:?} {limit}");
    }
}

#[tokio::test]
async fn a_bucket_with_an_upload_is_not_empty() {
    let world = World::memory(Limits::default()).await;
    let new = NewUpload::default();
    let upload = world.store.create_upload(&world.bucket, &key("a"), new).await.unwrap();
    let refused = world.store.delete_bucket(&world.bucket).await.unwrap_err();
    assert_eq!(refused.kind(), lithos_storage::ErrorKind::BucketNotEmpty);
    world
        .store
        .abort_upload(&world.bucket, &key("a"), upload)
        .await
        .unwrap();
    world.store.delete_bucket(&world.bucket).await.unwrap();
}
