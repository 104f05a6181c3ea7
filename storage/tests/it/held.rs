//! Races with a window of a few instructions, held open.

use std::{
    future::Future,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use lithos_storage::{
    IngestOptions, Result,
    blob::MemoryBlobs,
    kv::{Commit, Fold, Kv, MemoryKv, Outcome, Page, Scan, Snapshot, Version},
};
use tokio::sync::Notify;

use crate::world::{self, GRAIN, SMALL, World, body, key, new_object, noise};

/// Where a reader of the index is held: behind the `countdown`th read of a table from now.
#[derive(Debug, Default)]
struct Hold {
    place: Mutex<Option<(u8, usize)>>,
    reached: Notify,
    resume: Notify,
}

impl Hold {
    fn at(&self, table: u8, countdown: usize) {
        *self.place.lock().unwrap() = Some((table, countdown));
    }

    async fn pass(&self, key: &[u8]) {
        if self.is_here(key) {
            self.reached.notify_one();
            self.resume.notified().await;
        }
    }

    fn is_here(&self, key: &[u8]) -> bool {
        let mut place = self.place.lock().unwrap();
        match &mut *place {
            Some((table, countdown)) if key.first() == Some(table) => {
                *countdown -= 1;
                let here = *countdown == 0;
                if here {
                    *place = None;
                }
                here
            }
            _ => false,
        }
    }

    /// Runs `operation` up to the place, then `meanwhile`, then the rest of it.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl Future<Output = T> + Send + 'static,
        meanwhile: impl Future<Output = ()>,
    ) -> T {
        let operation = tokio::spawn(operation);
        self.reached.notified().await;
        meanwhile.await;
        self.resume.notify_one();
        operation.await.unwrap()
    }
}

#[derive(Debug)]
struct HeldKv {
    inner: MemoryKv,
    hold: Arc<Hold>,
}

#[derive(Debug)]
struct HeldSnapshot {
    inner: Box<dyn Snapshot>,
    hold: Arc<Hold>,
}

#[async_trait]
impl Kv for HeldKv {
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(HeldSnapshot {
            inner: self.inner.snapshot().await?,
            hold: Arc::clone(&self.hold),
        }))
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        self.inner.commit(commit).await
    }
}

#[async_trait]
impl Snapshot for HeldSnapshot {
    fn version(&self) -> Version {
        self.inner.version()
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.inner.get(key).await;
        self.hold.pass(key).await;
        value
    }

    async fn scan(&self, scan: &Scan) -> Result<Page> {
        let page = self.inner.scan(scan).await;
        self.hold.pass(&scan.range.start).await;
        page
    }

    async fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page> {
        let page = self.inner.scan_folded(scan, fold).await;
        self.hold.pass(&scan.range.start).await;
        page
    }
}

async fn held_world() -> (World, Arc<Hold>) {
    let hold = Arc::new(Hold::default());
    let kv = HeldKv {
        inner: MemoryKv::new(),
        hold: Arc::clone(&hold),
    };
    let world = World::over(Arc::new(kv), Arc::new(MemoryBlobs::new()), SMALL, None).await;
    (world, hold)
}

#[tokio::test]
async fn an_object_that_is_replaced_and_swept_while_it_is_being_opened_is_opened_anew() {
    let (world, hold) = held_world().await;
    let (old, new) = (noise(1, 3 * GRAIN), noise(2, 3 * GRAIN));
    world.put("key", &old).await.unwrap();
    hold.at(b'O', 1);
    let (store, bucket) = (world.store.clone(), world.bucket.clone());
    let read = hold
        .run(async move { world::get(&store, &bucket, "key").await }, async {
            world.put("key", &new).await.unwrap();
            assert!(world.store.sweep().await.unwrap().layouts == 1);
        })
        .await;
    assert!(read.unwrap() == Some(new.clone()));
    world.check_nothing_left().await;
}

#[tokio::test]
async fn an_object_that_is_deleted_and_swept_while_it_is_being_opened_is_not_there() {
    let (world, hold) = held_world().await;
    world.put("key", &noise(1, 3 * GRAIN)).await.unwrap();
    hold.at(b'O', 1);
    let (store, bucket) = (world.store.clone(), world.bucket.clone());
    let read = hold
        .run(async move { world::get(&store, &bucket, "key").await }, async {
            world.store.delete_object(&world.bucket, &key("key")).await.unwrap();
            assert!(world.store.sweep().await.unwrap().layouts == 1);
        })
        .await;
    assert_eq!(read.unwrap(), None);
    world.check_nothing_left().await;
}

fn paged(seed: u64) -> Vec<u8> {
    (0..6)
        .flat_map(|n| [noise(seed * 10 + n, GRAIN), vec![0; GRAIN]].concat())
        .collect()
}

/// Two parts of many extents, and a completion that is held before it joins them.
async fn complete_while(
    world: &World,
    hold: &Hold,
    meanwhile: impl AsyncFnOnce(lithos_storage::LayoutId, &[lithos_storage::CompletedPart]),
) -> Result<Vec<u8>> {
    let upload = world.create_upload("key").await;
    let parts = [
        world.put_part("key", upload, 1, &paged(1)).await.unwrap(),
        world.put_part("key", upload, 2, &paged(2)).await.unwrap(),
    ];
    // The parts are scanned to be chosen, to be joined, and to be compared.
    hold.at(b'P', 2);
    let (store, bucket, named) = (world.store.clone(), world.bucket.clone(), parts.clone());
    hold.run(
        async move { world::complete(&store, &bucket, "key", upload, &named).await },
        meanwhile(upload, &parts),
    )
    .await?;
    Ok(world.get("key").await.unwrap())
}

#[tokio::test]
async fn a_part_may_be_replaced_and_swept_while_it_is_being_joined() {
    let (world, hold) = held_world().await;
    let completed = complete_while(&world, &hold, async |upload, _| {
        world.put_part("key", upload, 1, &paged(1)).await.unwrap();
        world.store.sweep().await.unwrap();
    });
    assert!(completed.await.unwrap() == [paged(1), paged(2)].concat());
    world.check_nothing_left().await;
}

#[tokio::test]
async fn an_upload_may_be_completed_and_swept_while_it_is_being_completed() {
    let (world, hold) = held_world().await;
    let completed = complete_while(&world, &hold, async |upload, parts| {
        world.complete("key", upload, parts).await.unwrap();
        world.store.sweep().await.unwrap();
    });
    assert!(completed.await.unwrap() == [paged(1), paged(2)].concat());
    world.check_nothing_left().await;
}

#[tokio::test]
async fn an_upload_may_be_aborted_and_swept_while_it_is_being_completed() {
    let (world, hold) = held_world().await;
    let completed = complete_while(&world, &hold, async |upload, _| {
        world
            .store
            .abort_upload(&world.bucket, &key("key"), upload)
            .await
            .unwrap();
        world.store.sweep().await.unwrap();
    });
    assert_eq!(
        completed.await.unwrap_err().kind(),
        lithos_storage::ErrorKind::NoSuchUpload
    );
    world.check_nothing_left().await;
}

/// The sweep has found that nothing borrows from a layout, and something is about to.
#[tokio::test]
async fn a_copy_that_is_committed_while_its_source_is_swept_fails_or_has_its_blobs() {
    let (world, hold) = held_world().await;
    let data = noise(1, 3 * GRAIN);
    world.put("source", &data).await.unwrap();
    let source = world.store.open_object(&world.bucket, &key("source")).await.unwrap();
    let content = world.store.content_builder(Some(&source)).await.unwrap().share(&source);
    world.store.delete_object(&world.bucket, &key("source")).await.unwrap();
    drop(source);
    world.store.sweep().await.unwrap();
    assert!(
        !world.listed_blobs().await.is_empty(),
        "staged content keeps what it borrows"
    );
    hold.at(b'L', 1);
    let (store, bucket, copy) = (world.store.clone(), world.bucket.clone(), key("copy"));
    let new = new_object(content, "0".repeat(32));
    let put = hold.run(
        async move {
            store
                .put_object(&bucket, &copy, new, |_, _| Ok(Vec::new()))
                .await
                .map(|_| ())
        },
        async {
            world.store.sweep().await.unwrap();
        },
    );
    put.await.unwrap();
    assert!(world.get("copy").await == Some(data));
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_blob_that_is_being_sealed_is_not_taken_for_a_stray() {
    let (world, hold) = held_world().await;
    let data = noise(1, 3 * GRAIN);
    let ingested = world
        .store
        .ingest(body(&data, GRAIN), IngestOptions::default())
        .await
        .unwrap();
    hold.at(b'X', 1);
    let store = world.store.clone();
    let new = new_object(ingested.content, "0".repeat(32));
    hold.run(async move { store.sweep_strays().await.unwrap() }, async {
        let name = key("key");
        let put = world.store.put_object(&world.bucket, &name, new, |_, _| Ok(Vec::new()));
        put.await.unwrap();
    })
    .await;
    assert!(world.get("key").await == Some(data));
    world.check_nothing_left().await;
}
