//! What the store does for itself: compresses, compacts, scrubs, notes damage, keeps a reserve.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use lithos_storage::{
    Damage, DeleteCondition, ErrorKind, Limits, Result, Store, VersionId, Versioning, WriteCondition,
    blob::{Blob, BlobId, BlobWriter, Blobs, Compression, FsBlobs, MemoryBlobs, Repacked, Space},
    fault::{Fault, FaultPlan, FaultyBlobs, FaultyKv},
    kv::{Kv, MemoryKv, RocksKv},
};

use crate::world::{self, GRAIN, SMALL, World, key, new_object, noise};

/// Text that compresses, and differs from block to block.
fn text(len: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(len + 64);
    let mut line = 0_u32;
    while text.len() < len {
        text.extend(format!("line {line} of a log that says much the same again and again\n").bytes());
        line += 1;
    }
    text.truncate(len);
    text
}

/// A world whose files can be reached from outside.
async fn disk() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(&folder.path().join("index")).unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    let world = World::over(Arc::new(kv), Arc::new(blobs), Limits::default(), None).await;
    (world, folder)
}

/// Files of sealed blobs.
fn blob_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for fan_out in fs::read_dir(folder.join("blobs")).unwrap() {
        for file in fs::read_dir(fan_out.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files
}

fn stored(folder: &Path) -> u64 {
    blob_files(folder)
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum()
}

async fn set_compression(world: &World, level: Option<i32>) {
    world
        .store
        .update_bucket(&world.bucket, |record| record.compression = level)
        .await
        .unwrap();
}

async fn compress_all(store: &Store) -> u64 {
    let mut saved = 0;
    while let Some(step) = store.compress_step().await.unwrap() {
        saved += step.saved;
    }
    saved
}

#[tokio::test]
async fn buckets_that_ask_for_it_are_compressed_in_the_background() {
    let (world, folder) = disk().await;
    let (old, new) = (text(3 << 20), text(1 << 20));
    world.put("old", &old).await.unwrap();
    world.put("noise", &noise(1, 1 << 20)).await.unwrap();
    assert_eq!(compress_all(&world.store).await, 0, "nobody has asked");

    set_compression(&world, Some(3)).await;
    world.put("new", &new).await.unwrap();
    let before = stored(folder.path());
    let saved = compress_all(&world.store).await;
    assert!(saved > 512 << 10, "the new object is compressed: {saved}");

    let last = world
        .store
        .queue_bucket_compression(&world.bucket, None, 2)
        .await
        .unwrap();
    assert!(last.is_some());
    let last = world
        .store
        .queue_bucket_compression(&world.bucket, last.as_ref(), 2)
        .await
        .unwrap();
    assert!(last.is_some());
    let end = world
        .store
        .queue_bucket_compression(&world.bucket, last.as_ref(), 2)
        .await
        .unwrap();
    assert_eq!(end, None);
    let saved = saved + compress_all(&world.store).await;
    assert_eq!(
        before - stored(folder.path()),
        saved,
        "what was saved is no longer there"
    );
    assert!(stored(folder.path()) < (3 << 20), "but the noise, little is left");

    assert_eq!(world.get("old").await.unwrap(), old);
    assert_eq!(world.get("new").await.unwrap(), new);
    assert_eq!(world.get("noise").await.unwrap(), noise(1, 1 << 20));
    world.check_nothing_left().await;
}

#[tokio::test]
async fn versions_that_are_not_current_are_compressed_too() {
    let (world, _folder) = disk().await;
    world.set_versioning(Versioning::Enabled).await;
    for len in [3 << 20, 2 << 20, 1 << 20] {
        world.put("log", &text(len)).await.unwrap();
    }
    world.store.delete_object(&world.bucket, &key("log")).await.unwrap();
    set_compression(&world, Some(3)).await;
    let mut place = None;
    loop {
        let queued = world.store.queue_bucket_compression(&world.bucket, place.as_ref(), 1);
        place = queued.await.unwrap();
        if place.is_none() {
            break;
        }
    }
    let saved = compress_all(&world.store).await;
    assert!(saved > 5 << 20, "all three: {saved}");
    world.check_nothing_left().await;
}

/// `target` borrows a slice of `big`, which is then deleted.
async fn borrow_slice(world: &World, len: u64) -> Vec<u8> {
    let data = [noise(5, 6 * GRAIN), vec![0; GRAIN], noise(6, 3 * GRAIN)].concat();
    world.put("big", &data).await.unwrap();
    let source = world.store.open_object(&world.bucket, &key("big")).await.unwrap();
    let mut builder = world.store.content_builder(Some(&source)).await.unwrap();
    builder.push_bytes(noise(7, 5000).into()).await.unwrap();
    builder.push_range(&mut source.reader(), 100, len).await.unwrap();
    builder.push_zeros(1000).await.unwrap();
    let new = new_object(builder.finish().await.unwrap(), "0".repeat(32));
    world
        .store
        .put_object(&world.bucket, &key("target"), new, |_, _| Ok(Vec::new()))
        .await
        .unwrap();
    drop(source);
    world.store.delete_object(&world.bucket, &key("big")).await.unwrap();
    world.store.sweep().await.unwrap();
    world.clock.advance_millis(60 * 60 * 1000);
    let slice = &data[100..100 + usize::try_from(len).unwrap()];
    [&noise(7, 5000)[..], slice, &[0; 1000]].concat()
}

async fn compact_all(store: &Store) -> u64 {
    let mut ended = 0;
    while let Some(step) = store.compact_step().await.unwrap() {
        ended += step.ended;
    }
    ended
}

#[tokio::test]
async fn blobs_of_which_little_is_needed_are_freed() {
    let world = World::memory(SMALL).await;
    let target = borrow_slice(&world, 70_000).await;
    world.copy("target", "copy").await.unwrap();
    let before = world.listed_blobs().await.len();
    assert_eq!(compact_all(&world.store).await, 2, "both let go");
    world.store.sweep().await.unwrap();
    let after = world.listed_blobs().await.len();
    assert!(after < before, "{before} blobs, then {after}");
    for name in ["target", "copy"] {
        assert_eq!(world.get(name).await.unwrap(), target, "{name}");
    }
    world.check_nothing_left().await;
}

#[tokio::test]
async fn versions_that_are_not_current_let_go_of_blobs_too() {
    let world = World::memory(SMALL).await;
    let target = borrow_slice(&world, 70_000).await;
    world.set_versioning(Versioning::Enabled).await;
    world.put("target", &noise(9, 10)).await.unwrap();
    let before = world.listed_blobs().await.len();
    assert_eq!(compact_all(&world.store).await, 1);
    world.store.sweep().await.unwrap();
    let after = world.listed_blobs().await.len();
    assert!(after < before, "{before} blobs, then {after}");
    let null = world
        .store
        .open_version(&world.bucket, &key("target"), Some(VersionId::Null))
        .await
        .unwrap();
    assert_eq!(null.reader().read(0..target.len() as u64).await.unwrap(), target);
    drop(null);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn blobs_of_which_much_is_needed_stay() {
    let world = World::memory(SMALL).await;
    let target = borrow_slice(&world, 6 * GRAIN as u64).await;
    let before = world.listed_blobs().await;
    assert_eq!(compact_all(&world.store).await, 0);
    assert_eq!(world.listed_blobs().await, before);
    assert_eq!(world.get("target").await.unwrap(), target);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn readers_of_the_old_layout_keep_its_blobs() {
    let world = World::memory(SMALL).await;
    let target = borrow_slice(&world, 70_000).await;
    let open = world.store.open_object(&world.bucket, &key("target")).await.unwrap();
    assert_eq!(compact_all(&world.store).await, 0, "it is copied, but not let go of");
    world.store.sweep().await.unwrap();
    let read = open.reader().read(0..target.len() as u64).await.unwrap();
    assert_eq!(read, target, "by the layout from before");
    drop(open);
    world.clock.advance_millis(60 * 60 * 1000);
    assert_eq!(compact_all(&world.store).await, 1);
    assert_eq!(world.get("target").await.unwrap(), target);
    world.check_nothing_left().await;
}

/// Compacts with a fault at call `at`. Whether the fault came before the end.
async fn strike_compaction(fault: Fault, at: u64) -> bool {
    let plan = FaultPlan::new(fault, 0);
    let (kv, blobs): (Arc<dyn Kv>, Arc<dyn Blobs>) = (Arc::new(MemoryKv::new()), Arc::new(MemoryBlobs::new()));
    let mut world = World::over(Arc::clone(&kv), Arc::clone(&blobs), SMALL, None).await;
    let target = borrow_slice(&world, 70_000).await;
    let store = World::over_with(
        Arc::new(FaultyKv::new(kv, Arc::clone(&plan))),
        Arc::new(FaultyBlobs::new(blobs, Arc::clone(&plan))),
        &world,
    )
    .await;
    plan.strike_at(at);
    let _ = store.compact_step().await;
    let _ = store.sweep().await;
    let struck = plan.has_struck();
    plan.heal();
    drop(store);
    world.reopen().await;
    assert_eq!(world.get("target").await.unwrap(), target, "{fault:?} at {at}");
    world.clock.advance_millis(60 * 60 * 1000);
    compact_all(&world.store).await;
    assert_eq!(world.get("target").await.unwrap(), target, "{fault:?} at {at}");
    world.check_consistent().await;
    assert_eq!(
        world.rows(b"A").await.len(),
        0,
        "the borrowing has ended: {fault:?} at {at}"
    );
    world.check_nothing_left().await;
    struck
}

#[tokio::test]
async fn compaction_that_is_cut_off_harms_nothing_and_goes_on() {
    for fault in Fault::ALL {
        let mut at = 1;
        while strike_compaction(fault, at).await {
            at += 1;
        }
        assert!(at > 20, "a compaction makes some calls: {at}");
    }
}

/// Damages a byte in the middle of a file, in place.
fn flip(file: &Path, offset: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// All damage that a scrub finds.
async fn scrub(store: &Store) -> (u64, Vec<Damage>) {
    let (mut bytes, mut damage) = (0, Vec::new());
    let mut scrub = store.scrub(None);
    while let Some(step) = scrub.step().await.unwrap() {
        bytes += step.bytes;
        damage.extend(step.damage);
    }
    (bytes, damage)
}

#[tokio::test]
async fn scrub_finds_damage_and_says_what_it_hurts() {
    let (world, folder) = disk().await;
    world.put("whole", &noise(1, 3 << 20)).await.unwrap();
    let (bytes, damage) = scrub(&world.store).await;
    assert_eq!((bytes, damage), (3 << 20, Vec::new()));

    let other = blob_files(folder.path());
    world.put("hurt", &noise(2, 3 << 20)).await.unwrap();
    world.copy("hurt", "copy").await.unwrap();
    let file = blob_files(folder.path())
        .into_iter()
        .find(|file| !other.contains(file))
        .unwrap();
    flip(&file, 2_000_000);
    let (_, damage) = scrub(&world.store).await;
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].offset, Some(2_000_000 / 65_536 * 65_536));
    let known = world.store.damage().await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].0, damage[0].blob);
    let over = world.store.objects_over(known[0].0).await.unwrap();
    assert_eq!(over.into_iter().collect::<Vec<_>>(), ["bucket/copy", "bucket/hurt"]);

    world.set_versioning(Versioning::Enabled).await;
    world.put("hurt", b"whole").await.unwrap();
    world.copy("copy", "copy").await.unwrap();
    let over = world.store.objects_over(known[0].0).await.unwrap();
    assert_eq!(
        over.into_iter().collect::<Vec<_>>(),
        [
            "bucket/copy",
            "bucket/copy (version null)",
            "bucket/hurt (version null)"
        ]
    );

    // Somebody puts the right file back.
    flip(&file, 2_000_000);
    assert_eq!(scrub(&world.store).await.1, Vec::new());
    assert_eq!(world.store.damage().await.unwrap(), Vec::new());

    fs::remove_file(&file).unwrap();
    let (_, damage) = scrub(&world.store).await;
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].offset, None, "it is missing as a whole");
    for (name, version) in world.versions().await {
        let (name, version) = (key(&name), version.stamp().id());
        let any = DeleteCondition::default();
        world
            .store
            .delete_version(&world.bucket, &name, version, &any)
            .await
            .unwrap();
    }
    world.put("other", &noise(3, 10)).await.unwrap();
    world.check_consistent().await;
    assert_eq!(world.store.damage().await.unwrap(), Vec::new(), "it goes with its blob");
    world.check_nothing_left().await;
}

#[tokio::test]
async fn damage_that_a_read_meets_is_noted_and_never_served() {
    let (world, folder) = disk().await;
    world.put("hurt", &noise(2, 1 << 20)).await.unwrap();
    flip(&blob_files(folder.path())[0], 700_000);
    let open = world.store.open_object(&world.bucket, &key("hurt")).await.unwrap();
    assert_eq!(open.reader().read(0..600_000).await.unwrap(), noise(2, 600_000));
    let error = open.reader().read(0..1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    world.store.damage_due().await;
    assert_eq!(world.store.record_damage().await.unwrap().len(), 1);
    assert_eq!(world.store.record_damage().await.unwrap(), Vec::<BlobId>::new());
    let _ = open.reader().read(0..1 << 20).await.unwrap_err();
    assert_eq!(world.store.record_damage().await.unwrap(), Vec::new(), "it is known");
    assert_eq!(world.store.damage().await.unwrap().len(), 1);
    assert!(world.store.damage_met() >= 2);
}

#[tokio::test]
async fn scrub_goes_on_where_it_stood() {
    let (world, _folder) = disk().await;
    for name in ["a", "b", "c"] {
        world.put(name, &noise(1, 100_000)).await.unwrap();
    }
    let mut first = world.store.scrub(None);
    let position = loop {
        if let Some(ended) = first.step().await.unwrap().unwrap().ended {
            break ended;
        }
    };
    let (mut rest, mut bytes) = (world.store.scrub(Some(position)), 0);
    while let Some(step) = rest.step().await.unwrap() {
        bytes += step.bytes;
    }
    assert_eq!(bytes, 200_000);
}

/// Blobs on a disk of which a test says what is free.
#[derive(Debug)]
struct Tight {
    inner: MemoryBlobs,
    free: AtomicU64,
}

#[async_trait]
impl Blobs for Tight {
    async fn create(&self, id: BlobId) -> Result<Box<dyn BlobWriter>> {
        self.inner.create(id).await
    }

    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        self.inner.open(id).await
    }

    async fn exists(&self, id: BlobId) -> Result<bool> {
        self.inner.exists(id).await
    }

    async fn delete(&self, id: BlobId) -> Result<()> {
        self.inner.delete(id).await
    }

    async fn list(&self, after: Option<BlobId>, limit: usize) -> Result<Vec<BlobId>> {
        self.inner.list(after, limit).await
    }

    async fn repack(&self, id: BlobId, compression: Compression) -> Result<Repacked> {
        self.inner.repack(id, compression).await
    }

    async fn stored_len(&self, id: BlobId) -> Result<u64> {
        self.inner.stored_len(id).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        let free = self.free.load(Ordering::SeqCst);
        Ok(Some(Space { free, total: 1 << 40 }))
    }
}

#[tokio::test]
async fn writes_leave_the_reserve_and_all_else_goes_on() {
    let limits = Limits {
        reserve: 1 << 20,
        ..SMALL
    };
    let blobs = Arc::new(Tight {
        inner: MemoryBlobs::new(),
        free: AtomicU64::new(1 << 30),
    });
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
    let world = World::over(kv, blobs.clone(), limits, None).await;
    let data = noise(1, 300_000);
    world.put("a", &data).await.unwrap();
    world.put("b", &data).await.unwrap();
    let upload = world.create_upload("parts").await;

    blobs.free.store((1 << 20) + 1000, Ordering::SeqCst);
    world.clock.advance_millis(1000);
    let full = |result: Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::StorageFull);
    full(world.put("c", &data).await);
    full(world.put("c", &noise(1, 2000)).await);
    full(world.put_part("parts", upload, 1, &data).await.map(|_| ()));
    full(world.copy("a", "c").await);
    assert_eq!(world.get("a").await.unwrap(), data, "reads go on");
    assert!(
        world.store.delete_object(&world.bucket, &key("b")).await.unwrap(),
        "deletes too"
    );
    world.store.sweep().await.unwrap();

    blobs.free.store(1 << 30, Ordering::SeqCst);
    world.clock.advance_millis(1000);
    world.put("c", &data).await.unwrap();
    world.check_nothing_left().await;
}

/// A body that runs into the reserve leaves nothing.
#[tokio::test]
async fn long_bodies_stop_at_the_reserve() {
    let limits = Limits {
        reserve: 1 << 20,
        ..Limits::default()
    };
    let blobs = Arc::new(Tight {
        inner: MemoryBlobs::new(),
        free: AtomicU64::new(10 << 20),
    });
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
    let world = World::over(kv, blobs, limits, None).await;
    let long = noise(1, 12 << 20);
    let error = world::put(&world.store, &world.bucket, "a", &long, WriteCondition::Always).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::StorageFull);
    world.check_nothing_left().await;
}
