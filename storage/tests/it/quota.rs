//! Quotas and usage: random histories against a model, and many writers at once.

use std::{collections::BTreeMap, sync::Arc};

use lithos_storage::{
    BucketName, CompletedPart, ErrorKind, LayoutId, Limits, NewUpload, QuotaRecord, Result, Tags, Usage, WriteCondition,
};
use proptest::{collection::vec, option, prelude::*};

use crate::world::{SMALL, World, complete, copy, key, put, put_part};

/// Parts of any size may be completed.
const LIMITS: Limits = Limits {
    part_len_min: 1,
    ..SMALL
};
const KEYS: [&str; 3] = ["a", "b", "c"];
/// Names and owners of buckets: two share one.
const BUCKETS: [(&str, &str); 3] = [("first", "one"), ("second", "one"), ("third", "two")];
const USERS: [&str; 2] = ["one", "two"];

#[derive(Debug, Clone)]
enum Op {
    Put { bucket: usize, key: usize, len: u64 },
    Copy { bucket: usize, from: usize, to: usize },
    Delete { bucket: usize, key: usize },
    Begin { bucket: usize, key: usize },
    Part { upload: usize, number: u16, len: u64 },
    Complete { upload: usize, without_first: bool },
    Abort { upload: usize },
    BucketQuota { bucket: usize, quota: Option<QuotaRecord> },
    UserQuota { user: usize, quota: Option<QuotaRecord> },
}

fn op() -> impl Strategy<Value = Op> {
    let (bucket, key, upload) = (0..BUCKETS.len(), 0..KEYS.len(), 0..4_usize);
    let quota = || {
        let record = (option::of(0..80_u64), option::of(0..5_u64));
        option::of(record.prop_map(|(bytes, objects)| QuotaRecord { bytes, objects }))
    };
    prop_oneof![
        4 => (bucket.clone(), key.clone(), 0..30_u64).prop_map(|(bucket, key, len)| Op::Put { bucket, key, len }),
        2 => (bucket.clone(), key.clone(), key.clone()).prop_map(|(bucket, from, to)| Op::Copy { bucket, from, to }),
        2 => (bucket.clone(), key.clone()).prop_map(|(bucket, key)| Op::Delete { bucket, key }),
        2 => (bucket.clone(), key).prop_map(|(bucket, key)| Op::Begin { bucket, key }),
        4 => (upload.clone(), 1..4_u16, 1..30_u64).prop_map(|(upload, number, len)| Op::Part { upload, number, len }),
        2 => (upload.clone(), any::<bool>()).prop_map(|(upload, without_first)| Op::Complete { upload, without_first }),
        1 => upload.prop_map(|upload| Op::Abort { upload }),
        1 => (bucket, quota()).prop_map(|(bucket, quota)| Op::BucketQuota { bucket, quota }),
        1 => (0..USERS.len(), quota()).prop_map(|(user, quota)| Op::UserQuota { user, quota }),
    ]
}

#[derive(Debug)]
struct Upload {
    bucket: usize,
    key: usize,
    id: LayoutId,
    parts: BTreeMap<u16, (u64, CompletedPart)>,
}

/// What should be there.
#[derive(Debug, Default)]
struct Model {
    objects: BTreeMap<(usize, usize), u64>,
    uploads: Vec<Upload>,
    bucket_quotas: BTreeMap<usize, QuotaRecord>,
    user_quotas: BTreeMap<&'static str, QuotaRecord>,
}

impl Model {
    /// What the buckets that `counts` names hold.
    fn usage(&self, counts: impl Fn(usize) -> bool) -> Usage {
        let objects = self.objects.iter().filter(|((bucket, _), _)| counts(*bucket));
        let uploads = self.uploads.iter().filter(|upload| counts(upload.bucket));
        let parts = uploads.flat_map(|upload| upload.parts.values().map(|(len, _)| len));
        Usage {
            bytes: objects.clone().map(|(_, len)| len).chain(parts).sum(),
            objects: objects.count() as u64,
        }
    }

    fn bucket_usage(&self, bucket: usize) -> Usage {
        self.usage(|other| other == bucket)
    }

    fn user_usage(&self, user: &str) -> Usage {
        self.usage(|bucket| BUCKETS[bucket].1 == user)
    }

    /// Whether a change is within both quotas, as far as it adds.
    fn allows(&self, bucket: usize, bytes: i64, objects: i64) -> bool {
        let user = BUCKETS[bucket].1;
        let within = |used: u64, delta: i64, limit: Option<u64>| {
            delta <= 0 || limit.is_none_or(|limit| used + delta.unsigned_abs() <= limit)
        };
        [
            (self.bucket_usage(bucket), self.bucket_quotas.get(&bucket)),
            (self.user_usage(user), self.user_quotas.get(user)),
        ]
        .into_iter()
        .all(|(usage, quota)| {
            let quota = quota.copied().unwrap_or_default();
            within(usage.bytes, bytes, quota.bytes) && within(usage.objects, objects, quota.objects)
        })
    }

    /// Whether an object of `len` bytes may be written, which frees `freed` bytes beside what it replaces.
    fn allows_object(&self, bucket: usize, key: usize, len: u64, freed: u64) -> bool {
        let replaced = self.objects.get(&(bucket, key));
        let bytes = len.cast_signed() - freed.cast_signed() - replaced.copied().unwrap_or(0).cast_signed();
        self.allows(bucket, bytes, i64::from(replaced.is_none()))
    }
}

fn name(bucket: usize) -> BucketName {
    BUCKETS[bucket].0.parse().unwrap()
}

fn bytes(len: u64) -> Vec<u8> {
    vec![7; usize::try_from(len).unwrap()]
}

/// Whether it succeeded; or else it was refused for a quota.
fn judged<T>(result: Result<T>, allowed: bool, op: &Op) -> Option<T> {
    match result {
        Ok(value) => {
            assert!(allowed, "{op:?} is over a quota");
            Some(value)
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{op:?}: {error}");
            assert!(!allowed, "{op:?} is within the quotas: {error}");
            None
        }
    }
}

async fn run(world: &World, model: &mut Model, op: &Op) {
    let store = &world.store;
    match *op {
        Op::Put { bucket, key, len } => {
            let allowed = model.allows_object(bucket, key, len, 0);
            let written = put(store, &name(bucket), KEYS[key], &bytes(len), WriteCondition::Always).await;
            if judged(written, allowed, op).is_some() {
                model.objects.insert((bucket, key), len);
            }
        }
        Op::Copy { bucket, from, to } => {
            let Some(len) = model.objects.get(&(bucket, from)).copied() else {
                return;
            };
            let allowed = model.allows_object(bucket, to, len, 0);
            let copied = copy(store, &name(bucket), KEYS[from], KEYS[to]).await;
            if judged(copied, allowed, op).is_some() {
                model.objects.insert((bucket, to), len);
            }
        }
        Op::Delete { bucket, key: index } => {
            let existed = store.delete_object(&name(bucket), &key(KEYS[index])).await.unwrap();
            assert_eq!(existed, model.objects.remove(&(bucket, index)).is_some());
        }
        Op::Begin { bucket, key: index } => {
            let (bucket_name, object) = (name(bucket), key(KEYS[index]));
            let id = store.create_upload(&bucket_name, &object, NewUpload::default()).await;
            model.uploads.push(Upload {
                bucket,
                key: index,
                id: id.unwrap(),
                parts: BTreeMap::new(),
            });
        }
        Op::BucketQuota { bucket, quota } => {
            store.set_bucket_quota(&name(bucket), quota).await.unwrap();
            assert_eq!(store.bucket_quota(&name(bucket)).await.unwrap(), quota);
            model.bucket_quotas.remove(&bucket);
            model.bucket_quotas.extend(quota.map(|quota| (bucket, quota)));
        }
        Op::UserQuota { user, quota } => {
            store.set_user_quota(USERS[user], quota).await.unwrap();
            assert_eq!(store.user_quota(USERS[user]).await.unwrap(), quota);
            model.user_quotas.remove(USERS[user]);
            model.user_quotas.extend(quota.map(|quota| (USERS[user], quota)));
        }
        Op::Part { upload, .. } | Op::Complete { upload, .. } | Op::Abort { upload } => {
            if upload < model.uploads.len() {
                run_upload(world, model, upload, op).await;
            }
        }
    }
}

async fn run_upload(world: &World, model: &mut Model, index: usize, op: &Op) {
    let store = &world.store;
    let upload = &model.uploads[index];
    let (bucket, object, id) = (upload.bucket, upload.key, upload.id);
    let size = upload.parts.values().map(|(len, _)| len).sum();
    match *op {
        Op::Part { number, len, .. } => {
            let replaced = upload.parts.get(&number).map_or(0, |(len, _)| *len);
            let allowed = model.allows(bucket, len.cast_signed() - replaced.cast_signed(), 0);
            let part = put_part(store, &name(bucket), KEYS[object], id, number, &bytes(len)).await;
            if let Some(part) = judged(part, allowed, op) {
                model.uploads[index].parts.insert(number, (len, part));
            }
        }
        Op::Complete { without_first, .. } => {
            let skipped = usize::from(without_first && upload.parts.len() > 1);
            let named = upload.parts.values().skip(skipped);
            let len = named.clone().map(|(len, _)| len).sum();
            let named: Vec<_> = named.map(|(_, part)| part.clone()).collect();
            if named.is_empty() {
                return;
            }
            let allowed = model.allows_object(bucket, object, len, size);
            let completed = complete(store, &name(bucket), KEYS[object], id, &named).await;
            if judged(completed, allowed, op).is_some() {
                model.uploads.remove(index);
                model.objects.insert((bucket, object), len);
            }
        }
        _ => {
            let aborted = store.abort_upload(&name(bucket), &key(KEYS[object]), id).await;
            aborted.unwrap();
            model.uploads.remove(index);
        }
    }
}

async fn check_usage(world: &World, model: &Model) {
    for (bucket, (bucket_name, _)) in BUCKETS.iter().enumerate() {
        let usage = world.store.usage(&name(bucket)).await.unwrap();
        assert_eq!(usage, model.bucket_usage(bucket), "{bucket_name}");
    }
    for user in USERS {
        assert_eq!(
            world.store.user_usage(user).await.unwrap(),
            model.user_usage(user),
            "{user}"
        );
    }
}

async fn check(ops: &[Op]) {
    let world = World::memory(LIMITS).await;
    for (bucket, owner) in BUCKETS {
        let bucket: BucketName = bucket.parse().unwrap();
        let created = world.store.create_bucket(&bucket, None, Tags::new(), owner.to_owned());
        created.await.unwrap();
    }
    let mut model = Model::default();
    for op in ops {
        run(&world, &mut model, op).await;
        check_usage(&world, &model).await;
    }
    world.check_usage().await;
    check_usage(&world, &model).await;
    // Whatever the quotas are by now, everything can be removed.
    for (bucket, index) in model.objects.keys() {
        let deleted = world.store.delete_object(&name(*bucket), &key(KEYS[*index])).await;
        assert!(deleted.unwrap());
    }
    for upload in &model.uploads {
        let (bucket, object) = (name(upload.bucket), key(KEYS[upload.key]));
        world.store.abort_upload(&bucket, &object, upload.id).await.unwrap();
    }
    for bucket in 0..BUCKETS.len() {
        world.store.delete_bucket(&name(bucket)).await.unwrap();
    }
    assert!(world.rows(b"W").await.is_empty(), "nothing is counted for nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn usage_and_refusals_agree_with_a_model(ops in vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&ops));
    }
}

/// How many put at the same time.
const PUTTERS: usize = 32;
/// Objects that fit; more are tried.
const ROOM: u64 = 100;
const LEN: u64 = 1000;

/// Each puts until it is refused.
async fn fill(world: Arc<World>) -> u64 {
    let putters: Vec<_> = (0..PUTTERS)
        .map(|putter| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut written = 0_u64;
                loop {
                    match world.put(&format!("{putter}/{written}"), &bytes(LEN)).await {
                        Ok(()) => written += 1,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                            return written;
                        }
                    }
                    let usage = world.store.usage(&world.bucket).await.unwrap();
                    assert!(usage.bytes <= ROOM * LEN && usage.objects <= ROOM, "{usage:?}");
                }
            })
        })
        .collect();
    let mut written = 0;
    for putter in putters {
        written += putter.await.unwrap();
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_is_filled_and_never_passed_by_many_writers() {
    let by_bytes = QuotaRecord {
        bytes: Some(ROOM * LEN),
        objects: None,
    };
    let by_objects = QuotaRecord {
        bytes: None,
        objects: Some(ROOM),
    };
    for (quota, of_user) in [
        (by_bytes, false),
        (by_objects, false),
        (by_bytes, true),
        (by_objects, true),
    ] {
        for world in [World::memory(SMALL).await, World::disk(SMALL).await] {
            let store = world.store.clone();
            if of_user {
                store.set_user_quota("", Some(quota)).await.unwrap();
            } else {
                store.set_bucket_quota(&world.bucket, Some(quota)).await.unwrap();
            }
            let world = Arc::new(world);
            assert_eq!(fill(Arc::clone(&world)).await, ROOM, "{quota:?}");
            let usage = store.usage(&world.bucket).await.unwrap();
            assert_eq!((usage.bytes, usage.objects), (ROOM * LEN, ROOM));
            assert_eq!(store.user_usage("").await.unwrap(), usage);
            world.check_consistent().await;
        }
    }
}

#[tokio::test]
async fn refusal_names_quota_usage_and_what_was_asked() {
    let world = World::memory(SMALL).await;
    let quota = |bytes, objects| Some(QuotaRecord { bytes, objects });
    world.put("a", &bytes(70)).await.unwrap();
    world
        .store
        .set_bucket_quota(&world.bucket, quota(Some(100), None))
        .await
        .unwrap();
    assert_eq!(
        world.put("b", &bytes(31)).await.unwrap_err().to_string(),
        "the quota of the bucket is 100 bytes, of which 70 are used: there is no room for 31 more"
    );
    world.put("b", &bytes(30)).await.unwrap();
    world.put("a", &bytes(60)).await.unwrap();
    world.store.set_bucket_quota(&world.bucket, None).await.unwrap();
    world.store.set_user_quota("", quota(None, Some(1))).await.unwrap();
    let error = world.put("c", b"").await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is 1 objects, of which 2 are used: there is no room for 1 more")
    );
    world.put("b", &bytes(500)).await.unwrap();
}
