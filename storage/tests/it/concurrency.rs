//! Many tasks on few keys, with the sweep running all the time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lithos_storage::{BucketName, Error, ErrorKind, Limits, Store, WriteCondition};

use crate::world::{self, GRAIN, SMALL, World, key, noise};

/// Content that tells whether it is whole: a seed and a length, and what follows from them.
fn stamped(seed: u64) -> Vec<u8> {
    let len = GRAIN + (seed as usize % 7) * 40_000;
    let mut data = [seed.to_le_bytes(), (len as u64).to_le_bytes()].concat();
    data.extend(noise(seed, len));
    data
}

fn check_stamp(data: &[u8]) {
    let seed = u64::from_le_bytes(data[..8].try_into().unwrap());
    assert!(data == stamped(seed), "a version is read whole");
}

struct Shared {
    store: Store,
    bucket: BucketName,
    seeds: AtomicU64,
    stop: AtomicBool,
}

async fn step(shared: &Shared, choice: u64) -> Result<(), Error> {
    let names = ["x", "y", "z"];
    let (name, other) = (names[choice as usize % 3], names[choice as usize / 3 % 3]);
    let (store, bucket) = (&shared.store, &shared.bucket);
    match choice / 9 % 8 {
        0 | 1 => {
            let data = stamped(shared.seeds.fetch_add(1, Ordering::Relaxed));
            world::put(store, bucket, name, &data, WriteCondition::Always).await
        }
        2 => world::copy(store, bucket, name, other).await,
        3 => store.delete_object(bucket, &key(name)).await.map(|_| ()),
        _ => {
            if let Some(data) = world::get(store, bucket, name).await? {
                check_stamp(&data);
            }
            Ok(())
        }
    }
}

async fn run(world: &World, tasks: u64, steps: u64) {
    let shared = Arc::new(Shared {
        store: world.store.clone(),
        bucket: world.bucket.clone(),
        seeds: AtomicU64::new(1),
        stop: AtomicBool::new(false),
    });
    let sweeper = Arc::clone(&shared);
    let sweeper = tokio::spawn(async move {
        while !sweeper.stop.load(Ordering::Relaxed) {
            sweeper.store.sweep().await.unwrap();
            sweeper.store.sweep_strays().await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let choices = noise_numbers(task, steps);
                for choice in choices {
                    match step(&shared, choice).await {
                        Ok(()) => {}
                        Err(e) if e.kind() == ErrorKind::NoSuchKey => {}
                        Err(e) => panic!("{e:?}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    shared.stop.store(true, Ordering::Relaxed);
    sweeper.await.unwrap();
    world.check_nothing_left().await;
}

fn noise_numbers(seed: u64, count: u64) -> Vec<u64> {
    (0..count)
        .map(|n| {
            let mut x = (seed << 32 | n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x ^= x >> 29;
            x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_whole_versions_while_all_is_replaced_and_swept_in_memory() {
    run(&World::memory(SMALL).await, 8, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_whole_versions_while_all_is_replaced_and_swept_on_disk() {
    run(&World::disk(SMALL).await, 8, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_that_want_a_key_to_be_absent_one_wins() {
    for world in [
        World::memory(Limits::default()).await,
        World::disk(Limits::default()).await,
    ] {
        let tasks: Vec<_> = (0..32)
            .map(|n| {
                let (store, bucket) = (world.store.clone(), world.bucket.clone());
                tokio::spawn(async move {
                    let data = stamped(n);
                    world::put(&store, &bucket, "key", &data, WriteCondition::Absent).await
                })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(()) => won += 1,
                Err(e) => assert_eq!(e.kind(), ErrorKind::PreconditionFailed),
            }
        }
        assert_eq!(won, 1);
        check_stamp(&world.get("key").await.unwrap());
        world.check_consistent().await;
        assert!(world.listed_blobs().await.len() == 1, "the losers leave nothing");
    }
}

/// Two completions and a part that is replaced again and again, so that its pages are swept while they are being joined.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn completions_and_replaced_parts_race_to_a_whole_object() {
    let world = World::memory(SMALL).await;
    for round in 0..60_u64 {
        let upload = world.create_upload("key").await;
        let paged = |seed| -> Vec<u8> {
            (0..6)
                .flat_map(|n| [noise(seed * 10 + n, GRAIN), vec![0; GRAIN]].concat())
                .collect()
        };
        let first = world.put_part("key", upload, 1, &paged(round)).await.unwrap();
        let second = world.put_part("key", upload, 2, &paged(round + 1)).await.unwrap();
        let parts = [first, second];
        let spawn_complete = || {
            let (store, bucket, parts) = (world.store.clone(), world.bucket.clone(), parts.clone());
            tokio::spawn(async move { world::complete(&store, &bucket, "key", upload, &parts).await })
        };
        let (store, bucket) = (world.store.clone(), world.bucket.clone());
        let data = paged(round);
        let replacing = tokio::spawn(async move {
            // The same bytes, so that the ETag that the completion names stays right.
            for _ in 0..5 {
                if world::put_part(&store, &bucket, "key", upload, 1, &data).await.is_err() {
                    return;
                }
            }
        });
        let store = world.store.clone();
        let sweeping = tokio::spawn(async move {
            for _ in 0..20 {
                store.sweep().await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        for completing in [spawn_complete(), spawn_complete()] {
            let record = completing.await.unwrap().unwrap();
            assert_eq!(record.layout_id, upload);
        }
        replacing.await.unwrap();
        sweeping.await.unwrap();
        assert!(world.get("key").await == Some([paged(round), paged(round + 1)].concat()));
        world.check_consistent().await;
    }
    world.check_nothing_left().await;
}
