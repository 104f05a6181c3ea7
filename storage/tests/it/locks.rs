//! Object lock and lifecycle in the store: what may be deleted, and by whom.

use lithos_storage::{
    DefaultRetention, DeleteCondition, ErrorKind, Governance, LockMode, ObjectLock, ObjectRecord, Result, Retention,
    RetentionPeriod, VersionId, VersionLock, VersionStamp, Versioning,
    clock::Timestamp,
    lifecycle::{Expired, Expiring, LifecycleRule, LifecycleStage, LifecycleState},
};

use crate::world::{SMALL, World, body, key, new_object};

const DAY: u64 = 24 * 60 * 60 * 1000;

/// A bucket with object lock.
async fn locked_world() -> World {
    let world = World::memory(SMALL).await;
    world.set_versioning(Versioning::Enabled).await;
    world
        .store
        .set_object_lock(&world.bucket, ObjectLock::default())
        .await
        .unwrap();
    world
}

async fn put_locked(world: &World, name: &str, lock: VersionLock) -> Result<ObjectRecord> {
    let options = lithos_storage::IngestOptions::default();
    let ingested = world.store.ingest(body(&[7; 5000], 1000), options).await?;
    let new = new_object(ingested.content, hex::encode(ingested.digests.md5));
    let name = key(name);
    let put = world.store.put_object(&world.bucket, &name, new, |_, record| {
        record.lock = lock;
        Ok(Vec::new())
    });
    Ok(put.await?.record)
}

fn retained(world: &World, mode: LockMode, millis: u64) -> VersionLock {
    VersionLock {
        retention: Some(Retention {
            mode,
            until: world.store.now().plus_millis(millis),
        }),
        legal_hold: None,
    }
}

async fn delete(world: &World, name: &str, version: VersionId, governance: Governance) -> Result<bool> {
    let always = DeleteCondition::default();
    let name = key(name);
    let deleted = world
        .store
        .delete_retained(&world.bucket, &name, version, &always, governance);
    Ok(deleted.await?.existed)
}

async fn expect_locked(world: &World, name: &str, version: VersionId, governance: Governance) {
    let refused = delete(world, name, version, governance).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
}

#[tokio::test]
async fn retention_holds_until_it_ends() {
    let world = locked_world().await;
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let record = put_locked(&world, "k", retained(&world, mode, 1000)).await.unwrap();
        let id = record.version.id();
        expect_locked(&world, "k", id, Governance::Holds).await;
        if mode == LockMode::Compliance {
            expect_locked(&world, "k", id, Governance::Bypassed).await;
        }
        // What is not about the lock leaves it alone, and a delete without a version works.
        world
            .store
            .update_version(&world.bucket, &key("k"), None, |_, record, _| {
                record.tags.insert("a".to_owned(), "b".to_owned());
                record.lock = VersionLock::default();
                Ok(Vec::new())
            })
            .await
            .unwrap();
        world.store.delete_object(&world.bucket, &key("k")).await.unwrap();
        expect_locked(&world, "k", id, Governance::Holds).await;
        world.clock.advance_millis(1000);
        assert!(delete(&world, "k", id, Governance::Holds).await.unwrap());
    }
    let record = put_locked(&world, "k", retained(&world, LockMode::Governance, 1000))
        .await
        .unwrap();
    assert!(
        delete(&world, "k", record.version.id(), Governance::Bypassed)
            .await
            .unwrap()
    );
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_legal_hold_holds_until_it_is_lifted() {
    let world = locked_world().await;
    world.put("k", b"x").await.unwrap();
    let store = &world.store;
    let id = store
        .open_object(&world.bucket, &key("k"))
        .await
        .unwrap()
        .record
        .version
        .id();
    store
        .set_legal_hold(&world.bucket, &key("k"), None, true)
        .await
        .unwrap();
    world.clock.advance_millis(1000 * DAY);
    expect_locked(&world, "k", id, Governance::Bypassed).await;
    store
        .set_legal_hold(&world.bucket, &key("k"), Some(id), false)
        .await
        .unwrap();
    assert!(delete(&world, "k", id, Governance::Holds).await.unwrap());
    world.check_nothing_left().await;
}

#[tokio::test]
async fn retentions_are_replaced_as_their_modes_allow() {
    let world = locked_world().await;
    let record = put_locked(&world, "k", retained(&world, LockMode::Governance, 1000))
        .await
        .unwrap();
    let id = Some(record.version.id());
    let set = async |lock: VersionLock, governance| {
        let name = key("k");
        let set = world
            .store
            .set_retention(&world.bucket, &name, id, lock.retention, governance);
        set.await.map_err(|error| error.kind())
    };
    let locked = Err(ErrorKind::Locked);
    let governance = |millis| retained(&world, LockMode::Governance, millis);
    let compliance = |millis| retained(&world, LockMode::Compliance, millis);
    assert_eq!(set(governance(2000), Governance::Holds).await, Ok(()));
    assert_eq!(set(governance(1000), Governance::Holds).await, locked);
    assert_eq!(set(VersionLock::default(), Governance::Holds).await, locked);
    assert_eq!(set(compliance(1000), Governance::Bypassed).await, Ok(()));
    assert_eq!(set(VersionLock::default(), Governance::Bypassed).await, locked);
    assert_eq!(set(compliance(3000), Governance::Holds).await, Ok(()));
    world.clock.advance_millis(3000);
    assert_eq!(set(VersionLock::default(), Governance::Holds).await, Ok(()));
}

#[tokio::test]
async fn defaults_and_buckets_decide() {
    let world = World::memory(SMALL).await;
    let hold = VersionLock {
        retention: None,
        legal_hold: Some(false),
    };
    let refused = put_locked(&world, "k", hold).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoObjectLock);
    let refused = world.store.set_object_lock(&world.bucket, ObjectLock::default()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidBucketState);
    world.set_versioning(Versioning::Enabled).await;
    let default = DefaultRetention {
        mode: LockMode::Governance,
        period: RetentionPeriod::Days(1),
    };
    let object_lock = ObjectLock { default: Some(default) };
    world.store.set_object_lock(&world.bucket, object_lock).await.unwrap();
    let suspended = world.store.update_bucket(&world.bucket, |record| {
        record.versioning = Versioning::Suspended;
        record.object_lock = None;
    });
    assert_eq!(suspended.await.unwrap_err().kind(), ErrorKind::InvalidBucketState);
    let record = put_locked(&world, "k", hold).await.unwrap();
    let expected = Retention {
        mode: LockMode::Governance,
        until: world.store.now().plus_millis(DAY),
    };
    assert_eq!(
        (record.lock.retention, record.lock.legal_hold),
        (Some(expected), Some(false))
    );
    let own = retained(&world, LockMode::Governance, 5);
    assert_eq!(put_locked(&world, "k", own).await.unwrap().lock, own);
    world.clock.advance_millis(DAY);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn expiry_takes_what_was_seen_and_nothing_else() {
    let world = World::memory(SMALL).await;
    let bucket = world.store.bucket(&world.bucket).await.unwrap();
    let expire = async |stamp: VersionStamp, what: Expiring| {
        let name = key("k");
        world
            .store
            .expire(&world.bucket, &bucket, &name, stamp, what)
            .await
            .unwrap()
    };
    let stamp = async || {
        let object = world.store.open_object(&world.bucket, &key("k")).await.unwrap();
        object.record.version
    };
    world.put("k", b"1").await.unwrap();
    let first = stamp().await;
    world.put("k", b"2").await.unwrap();
    assert_eq!(expire(first, Expiring::Current).await, Expired::Changed);
    assert_eq!(world.get("k").await.unwrap(), b"2");
    assert_eq!(expire(stamp().await, Expiring::Current).await, Expired::Gone);
    assert_eq!(world.get("k").await, None);

    world.set_versioning(Versioning::Enabled).await;
    world.put("k", b"3").await.unwrap();
    let third = stamp().await;
    assert_eq!(expire(third, Expiring::Noncurrent).await, Expired::Changed);
    assert_eq!(expire(third, Expiring::Current).await, Expired::Gone);
    let marker = world.versions().await[0].1.stamp();
    assert_ne!(marker, third);
    assert_eq!(
        expire(marker, Expiring::Marker).await,
        Expired::Changed,
        "it is not alone"
    );
    assert_eq!(expire(third, Expiring::Noncurrent).await, Expired::Gone);
    assert_eq!(expire(third, Expiring::Noncurrent).await, Expired::Changed);
    assert_eq!(expire(marker, Expiring::Marker).await, Expired::Gone);
    assert!(world.versions().await.is_empty());
    // A bucket of the same name may be another.
    world.store.delete_bucket(&world.bucket).await.unwrap();
    assert_eq!(expire(third, Expiring::Current).await, Expired::Changed);
}

#[tokio::test]
async fn expiry_leaves_what_is_locked() {
    let world = locked_world().await;
    let bucket = world.store.bucket(&world.bucket).await.unwrap();
    let record = put_locked(&world, "k", retained(&world, LockMode::Governance, 1000))
        .await
        .unwrap();
    let name = key("k");
    let expire = |what| world.store.expire(&world.bucket, &bucket, &name, record.version, what);
    assert_eq!(expire(Expiring::Current).await.unwrap(), Expired::Gone);
    assert_eq!(expire(Expiring::Noncurrent).await.unwrap(), Expired::Locked);
    world.clock.advance_millis(1000);
    assert_eq!(expire(Expiring::Noncurrent).await.unwrap(), Expired::Gone);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn rules_are_kept_with_how_far_they_are() {
    let world = World::memory(SMALL).await;
    let (store, bucket) = (&world.store, &world.bucket);
    assert_eq!(store.lifecycle(bucket).await.unwrap(), None);
    let rule = LifecycleRule {
        id: "r".to_owned(),
        enabled: true,
        ..LifecycleRule::default()
    };
    store.set_lifecycle(bucket, Some(vec![rule.clone()])).await.unwrap();
    let rules = store.lifecycle(bucket).await.unwrap().unwrap();
    assert_eq!(rules.rules, std::slice::from_ref(&rule));
    let record = store.bucket(bucket).await.unwrap();
    assert_eq!(store.lifecycle_of(&record).await.unwrap().as_ref(), Some(&rules));
    let state = LifecycleState {
        begun: Timestamp(5),
        stage: LifecycleStage::Versions,
        after: "k".to_owned(),
    };
    assert!(store.set_lifecycle_state(&record, &rules, &state).await.unwrap());
    assert_eq!(store.lifecycle_state(&record).await.unwrap(), Some(state.clone()));
    // New rules begin anew, and whoever goes by the old ones hears of it.
    world.clock.advance_millis(1);
    store.set_lifecycle(bucket, Some(vec![rule])).await.unwrap();
    assert_eq!(store.lifecycle_state(&record).await.unwrap(), None);
    assert!(!store.set_lifecycle_state(&record, &rules, &state).await.unwrap());
    let many = LifecycleRule {
        id: "r".repeat(70_000),
        ..LifecycleRule::default()
    };
    let refused = store.set_lifecycle(bucket, Some(vec![many])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    world.check_nothing_left().await;
}
