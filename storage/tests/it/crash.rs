//! Every operation, cut off at each of its calls to the engines: there is the old object or the new one, and after the
//! sweep no orphan and no dangling reference.

use std::sync::Arc;

use bytes::Bytes;
use lithos_storage::{
    DeleteCondition, ErrorKind, Result, Store, Versioning, WriteCondition,
    blob::{Blobs, MemoryBlobs},
    fault::{Fault, FaultPlan, FaultyBlobs, FaultyKv},
    kv::{Kv, MemoryKv},
};

use crate::world::{self, GRAIN, SMALL, World, key, new_object, noise};

/// What is done to the object `target`, beside which there is an object `source`.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Put,
    PutInline,
    Copy,
    /// As a conversion does: pieces of a source, and new bytes.
    Build,
    /// Parts, one of them replaced, one left out.
    Multipart,
    Delete,
    /// In a bucket that keeps versions: `target` has an older version, which is null, and one with a name.
    PutVersion,
    /// As [`Operation::PutVersion`].
    AddMarker,
    /// As [`Operation::PutVersion`]: the latest version goes, and the one before takes its place.
    DeleteLatest,
    /// As [`Operation::PutVersion`], but with versioning suspended: the older version is replaced, and the latest is kept.
    PutNull,
}

/// Several blobs, so many that they are adopted early, and pages.
fn large(seed: u64) -> Vec<u8> {
    let mut data = Vec::new();
    for n in 0..7 {
        data.extend(noise(seed + n, GRAIN));
        data.extend(vec![0; GRAIN]);
    }
    data
}

fn source() -> Vec<u8> {
    large(100)
}

impl Operation {
    /// What `target` is afterwards.
    fn result(self) -> Option<Vec<u8>> {
        match self {
            Self::Put | Self::PutVersion | Self::PutNull => Some(large(1)),
            Self::DeleteLatest => Some(large(300)),
            Self::PutInline => Some(noise(2, 100)),
            Self::Copy => Some(source()),
            Self::Build => {
                let source = source();
                let mut data = noise(3, 5000);
                for n in 0..6 {
                    data.extend_from_slice(&source[n * 70_000..n * 70_000 + 50_000]);
                    data.extend(noise(n as u64, 3000));
                }
                Some(data)
            }
            Self::Multipart => Some([large(11), large(12), noise(14, 10)].concat()),
            Self::Delete | Self::AddMarker => None,
        }
    }

    async fn run(self, world: &World, store: &Store) -> Result<()> {
        let (bucket, target) = (&world.bucket, "target");
        match self {
            Self::Put | Self::PutInline | Self::PutVersion | Self::PutNull => {
                let data = self.result().unwrap();
                world::put(store, bucket, target, &data, WriteCondition::Always).await
            }
            Self::Copy => world::copy(store, bucket, "source", target).await,
            Self::Build => build(world, store).await,
            Self::Multipart => {
                let new = lithos_storage::NewUpload::default();
                let upload = store.create_upload(bucket, &key(target), new).await?;
                world::put_part(store, bucket, target, upload, 1, &large(10)).await?;
                let first = world::put_part(store, bucket, target, upload, 1, &large(11)).await?;
                let second = world::put_part(store, bucket, target, upload, 2, &large(12)).await?;
                world::put_part(store, bucket, target, upload, 3, &large(13)).await?;
                let last = world::put_part(store, bucket, target, upload, 4, &noise(14, 10)).await?;
                let parts = [first, second, last];
                match world::complete(store, bucket, target, upload, &parts).await {
                    // What a client does who has not got an answer.
                    Err(e) if e.kind() == ErrorKind::OutcomeUnknown => {
                        world::complete(store, bucket, target, upload, &parts).await.map(|_| ())
                    }
                    done => done.map(|_| ()),
                }
            }
            Self::Delete | Self::AddMarker => store.delete_object(bucket, &key(target)).await.map(|_| ()),
            Self::DeleteLatest => {
                let latest = store.open_object(bucket, &key(target)).await?.record.version.id();
                let any = DeleteCondition::default();
                store
                    .delete_version(bucket, &key(target), latest, &any)
                    .await
                    .map(|_| ())
            }
        }
    }

    /// How many versions and delete markers `target` has before and after, if the bucket keeps any.
    fn versions(self) -> (usize, usize) {
        match self {
            Self::PutVersion | Self::AddMarker => (2, 3),
            Self::DeleteLatest => (2, 1),
            Self::PutNull => (2, 2),
            Self::Delete => (1, 0),
            Self::Put | Self::PutInline | Self::Copy | Self::Build | Self::Multipart => (1, 1),
        }
    }

    /// Whether the bucket keeps versions before the operation, and while it runs.
    fn versioning(self) -> Option<(Versioning, Versioning)> {
        match self {
            Self::PutVersion | Self::AddMarker | Self::DeleteLatest => Some((Versioning::Enabled, Versioning::Enabled)),
            Self::PutNull => Some((Versioning::Enabled, Versioning::Suspended)),
            _ => None,
        }
    }
}

async fn build(world: &World, store: &Store) -> Result<()> {
    let source = store.open_object(&world.bucket, &key("source")).await?;
    let mut builder = store.content_builder(Some(&source)).await?;
    let mut reader = source.reader();
    builder.push_bytes(Bytes::from(noise(3, 5000))).await?;
    for n in 0..6 {
        builder.push_range(&mut reader, n * 70_000, 50_000).await?;
        builder.push_bytes(Bytes::from(noise(n, 3000))).await?;
    }
    let new = new_object(builder.finish().await?, "0".repeat(32));
    store
        .put_object(&world.bucket, &key("target"), new, |_, _| Ok(Vec::new()))
        .await?;
    Ok(())
}

/// A world with the two objects, and a store over its engines that fails as planned.
async fn prepare(operation: Operation, plan: &Arc<FaultPlan>) -> (World, Store, Vec<u8>) {
    let (kv, blobs): (Arc<dyn Kv>, Arc<dyn Blobs>) = (Arc::new(MemoryKv::new()), Arc::new(MemoryBlobs::new()));
    let world = World::over(Arc::clone(&kv), Arc::clone(&blobs), SMALL, None).await;
    let old = large(200);
    world.put("source", &source()).await.unwrap();
    if let Some((before, then)) = operation.versioning() {
        world.put("target", &large(300)).await.unwrap();
        world.set_versioning(before).await;
        world.put("target", &old).await.unwrap();
        world.set_versioning(then).await;
    } else {
        world.put("target", &old).await.unwrap();
    }
    world.copy("target", "other").await.unwrap();
    let faulty = World::over_with(
        Arc::new(FaultyKv::new(kv, Arc::clone(plan))),
        Arc::new(FaultyBlobs::new(blobs, Arc::clone(plan))),
        &world,
    )
    .await;
    (world, faulty, old)
}

/// Runs the operation with a fault at call `at`. Whether the fault came before the end.
async fn strike(operation: Operation, fault: Fault, at: u64) -> bool {
    let what = || format!("{operation:?}, {fault:?} at call {at}");
    let plan = FaultPlan::new(fault, 0);
    let (mut world, store, old) = prepare(operation, &plan).await;
    plan.strike_at(at);
    let done = operation.run(&world, &store).await;
    let swept = store.sweep().await;
    let struck = plan.has_struck();
    plan.heal();
    if fault.is_crash() {
        drop(store);
        world.reopen().await;
    } else {
        // The same process goes on, and sweeps what it gave up.
        store.sweep().await.unwrap();
    }
    let found = world.get("target").await;
    let is_new = found == operation.result();
    assert!(is_new || found.as_ref() == Some(&old), "old or new: {}", what());
    assert!(is_new || done.is_err(), "what was acknowledged is there: {}", what());
    assert!(
        struck || (done.is_ok() && swept.is_ok()),
        "{}: {done:?} {swept:?}",
        what()
    );
    let (before, after) = operation.versions();
    let versions = world.versions().await;
    let versions = versions.iter().filter(|(name, _)| name == "target").count();
    assert_eq!(versions, if is_new { after } else { before }, "{}", what());
    assert!(world.get("source").await == Some(source()), "{}", what());
    assert!(world.get("other").await == Some(old), "{}", what());
    if fault.is_crash() {
        world.check_no_intents().await;
    }
    world.check_nothing_left().await;
    struck
}

/// Cuts the operation off at each of its calls, in each way.
async fn strike_everywhere(operation: Operation) {
    for fault in Fault::ALL {
        let mut at = 1;
        while strike(operation, fault, at).await {
            at += 1;
        }
        assert!(at > 5, "{operation:?} makes some calls");
    }
}

#[tokio::test]
async fn put_is_whole_or_not_at_all() {
    strike_everywhere(Operation::Put).await;
}

#[tokio::test]
async fn put_of_few_bytes_is_whole_or_not_at_all() {
    strike_everywhere(Operation::PutInline).await;
}

#[tokio::test]
async fn copy_is_whole_or_not_at_all() {
    strike_everywhere(Operation::Copy).await;
}

#[tokio::test]
async fn conversion_is_whole_or_not_at_all() {
    strike_everywhere(Operation::Build).await;
}

#[tokio::test]
async fn multipart_upload_is_whole_or_not_at_all() {
    strike_everywhere(Operation::Multipart).await;
}

#[tokio::test]
async fn delete_is_whole_or_not_at_all() {
    strike_everywhere(Operation::Delete).await;
}

#[tokio::test]
async fn a_version_is_added_or_not_at_all() {
    strike_everywhere(Operation::PutVersion).await;
}

#[tokio::test]
async fn a_delete_marker_is_added_or_not_at_all() {
    strike_everywhere(Operation::AddMarker).await;
}

#[tokio::test]
async fn the_latest_version_is_deleted_and_the_one_before_comes_forward_or_neither() {
    strike_everywhere(Operation::DeleteLatest).await;
}

#[tokio::test]
async fn the_null_version_is_replaced_and_the_latest_kept_or_neither() {
    strike_everywhere(Operation::PutNull).await;
}
