//! Stores as release 1 wrote them, made by taking away what has come since.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use super::*;
use crate::{
    BucketName, ContentHeaders, DeleteCondition, IngestOptions, NewObject, NewUpload, ObjectKey, Store, VersionId,
    Versioning, WriteCondition,
    blob::{Blobs, MemoryBlobs},
    clock::{Clock, ManualClock, Timestamp},
    fault::{Fault, FaultPlan, FaultyKv},
    fsck::{FsckOptions, fsck},
    kv::{MemoryKv, Txn},
    rows::Pages,
    schema::{BucketId, Holder, Keys, LayoutRecord, LayoutState, decode, encode},
};

/// A layout's row in format 1.
#[derive(Encode, Decode)]
struct OldLayoutRecord {
    #[n(0)]
    state: LayoutState,
    #[n(1)]
    owns_blobs: bool,
}

/// A layout's row in format 2.
#[derive(Encode, Decode)]
struct HeldLayoutRecord {
    #[n(0)]
    state: LayoutState,
    #[n(1)]
    owns_blobs: bool,
    #[n(2)]
    holder: Option<OldHolder>,
}

/// A holder in format 2.
#[derive(Encode, Decode)]
struct OldHolder {
    #[n(0)]
    bucket: BucketId,
    #[n(1)]
    key: String,
}

type Rows = BTreeMap<bytes::Bytes, bytes::Bytes>;

async fn rows(kv: &Arc<dyn Kv>) -> Rows {
    let snapshot = kv.snapshot().await.unwrap();
    let mut pages = Pages::of(crate::kv::prefix_range(b""));
    let mut rows = Rows::new();
    while let Some(page) = pages.next(&*snapshot).await.unwrap() {
        rows.extend(page);
    }
    rows
}

async fn put(store: &Store, bucket: &BucketName, key: &ObjectKey, len: usize) {
    let body = futures::stream::iter([Ok(bytes::Bytes::from(vec![7; len]))]);
    let ingested = store.ingest(body, IngestOptions::default()).await.unwrap();
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
    store.put_object(bucket, key, new, |_, _| Ok(Vec::new())).await.unwrap();
}

/// A store with objects of each kind, an upload, and a released layout.
async fn filled(kv: &Arc<dyn Kv>, blobs: &Arc<dyn Blobs>, clock: &Arc<dyn Clock>) {
    let store = Store::open(Arc::clone(kv), Arc::clone(blobs), Arc::clone(clock))
        .await
        .unwrap();
    for bucket in ["first", "second"] {
        let bucket: BucketName = bucket.parse().unwrap();
        store
            .create_bucket(&bucket, None, BTreeMap::new(), String::new())
            .await
            .unwrap();
        for (key, len) in [("inline", 10), ("blob", 100_000), ("gone", 100_000)] {
            put(&store, &bucket, &key.parse().unwrap(), len).await;
        }
        store
            .create_upload(&bucket, &"blob".parse().unwrap(), NewUpload::default())
            .await
            .unwrap();
        store.delete_object(&bucket, &"gone".parse().unwrap()).await.unwrap();
    }
}

/// Takes away what format 1 did not have.
async fn downgrade(kv: &Arc<dyn Kv>) {
    let mut txn = Txn::begin(kv).await.unwrap();
    for (key, value) in rows(kv).await {
        if key.first() == Some(&b'L') {
            let LayoutRecord { state, owns_blobs, .. } = decode(&value).unwrap();
            txn.put(key, encode(&OldLayoutRecord { state, owns_blobs })).unwrap();
        }
    }
    txn.put(Keys::meta("format"), 1_u64.to_be_bytes().to_vec()).unwrap();
    txn.delete(Keys::meta("release")).unwrap();
    txn.commit().await;
}

/// The first fields of an array of CBOR.
fn first_fields(value: &[u8], most: u64) -> Vec<u8> {
    let mut decoder = minicbor::Decoder::new(value);
    let fields = decoder.array().unwrap().unwrap().min(most);
    let start = decoder.position();
    for _ in 0..fields {
        decoder.skip().unwrap();
    }
    let mut shorter = minicbor::Encoder::new(Vec::new());
    shorter.array(fields).unwrap();
    [shorter.writer(), &value[start..decoder.position()]].concat()
}

/// Fields that buckets and objects had in format 2.
const BUCKET_FIELDS: u64 = 7;
const OBJECT_FIELDS: u64 = 13;

/// Takes away what format 2 did not have.
async fn downgrade_to_2(kv: &Arc<dyn Kv>) {
    let mut txn = Txn::begin(kv).await.unwrap();
    for (key, value) in rows(kv).await {
        match key.first() {
            Some(b'B') => txn.put(key, first_fields(&value, BUCKET_FIELDS)).unwrap(),
            Some(b'O') => txn.put(key, first_fields(&value, OBJECT_FIELDS)).unwrap(),
            Some(b'L') => {
                let LayoutRecord {
                    state,
                    owns_blobs,
                    holder,
                } = decode(&value).unwrap();
                let holder = holder.map(|Holder { bucket, key, .. }| OldHolder { bucket, key });
                let old = HeldLayoutRecord {
                    state,
                    owns_blobs,
                    holder,
                };
                txn.put(key, encode(&old)).unwrap();
            }
            _ => {}
        }
    }
    txn.put(Keys::meta("format"), 2_u64.to_be_bytes().to_vec()).unwrap();
    txn.commit().await;
}

struct World {
    kv: Arc<dyn Kv>,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
    /// As this release wrote it.
    ours: Rows,
}

impl World {
    async fn of_format_1() -> Self {
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        let blobs: Arc<dyn Blobs> = Arc::new(MemoryBlobs::new());
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp(1_000_000_000_000)));
        filled(&kv, &blobs, &clock).await;
        let mut ours = rows(&kv).await;
        downgrade(&kv).await;
        // The objects of these were gone before the upgrade.
        for (key, value) in &mut ours {
            if key.first() == Some(&b'L') {
                let mut record: LayoutRecord = decode(value).unwrap();
                if record.state == LayoutState::Released {
                    record.holder = None;
                    *value = encode(&record);
                }
            }
        }
        Self { kv, blobs, clock, ours }
    }

    /// Nothing in the rows tells an upgraded store from a new one, and it opens. A released layout may have its old form,
    /// which reads the same.
    async fn check_upgraded(&self, what: &str) {
        let normal = |rows: Rows| -> Rows {
            let again = |value: bytes::Bytes| encode(&decode::<LayoutRecord>(&value).unwrap());
            let rows = rows.into_iter().map(|(key, value)| match key.first() {
                Some(b'L') => (key, again(value)),
                _ => (key, value),
            });
            rows.collect()
        };
        assert_eq!(normal(rows(&self.kv).await), normal(self.ours.clone()), "{what}");
        let store = Store::open(Arc::clone(&self.kv), Arc::clone(&self.blobs), Arc::clone(&self.clock));
        store.await.unwrap();
        let report = fsck(&self.kv, &self.blobs, &FsckOptions::default(), &mut |_| {})
            .await
            .unwrap();
        assert!(report.is_clean(), "{what}: {:?}", report.findings);
    }
}

#[tokio::test]
async fn format_1_is_refused_and_upgraded_once() {
    let world = World::of_format_1().await;
    let open = || {
        Store::open(
            Arc::clone(&world.kv),
            Arc::clone(&world.blobs),
            Arc::clone(&world.clock),
        )
    };
    let error = open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().contains("lithos upgrade"), "{error}");

    let before = rows(&world.kv).await;
    let dry = upgrade(&world.kv, UpgradeOptions { dry_run: true }, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(rows(&world.kv).await, before, "a dry run writes nothing");

    let mut told = 0;
    let report = upgrade(&world.kv, UpgradeOptions::default(), &mut |_| told += 1)
        .await
        .unwrap();
    assert!(told > 1);
    assert_eq!(report, dry, "a dry run says what will be done");
    assert_eq!((report.from, report.to), (1, FORMAT_VERSION));
    // An object in a blob and an upload in each of two buckets; the objects in their records need none.
    assert_eq!(report.steps[0].changed, 4);
    world.check_upgraded("the first time").await;

    let again = upgrade(&world.kv, UpgradeOptions::default(), &mut |_| {})
        .await
        .unwrap();
    assert_eq!(again.steps, []);
    world.check_upgraded("the second time").await;
}

#[tokio::test]
async fn an_upgrade_that_is_cut_off_anywhere_can_be_done_again() {
    for fault in Fault::ALL {
        let mut at = 1;
        loop {
            let world = World::of_format_1().await;
            let plan = FaultPlan::new(fault, at);
            let faulty: Arc<dyn Kv> = Arc::new(FaultyKv::new(Arc::clone(&world.kv), Arc::clone(&plan)));
            let done = upgrade(&faulty, UpgradeOptions::default(), &mut |_| {}).await;
            if !plan.has_struck() {
                done.unwrap();
                break;
            }
            upgrade(&world.kv, UpgradeOptions::default(), &mut |_| {})
                .await
                .unwrap();
            world.check_upgraded(&format!("{fault:?} at call {at}")).await;
            at += 1;
        }
        assert!(at > 5, "an upgrade makes some calls");
    }
}

#[tokio::test]
async fn a_newer_format_is_left_alone() {
    let world = World::of_format_1().await;
    let mut txn = Txn::begin(&world.kv).await.unwrap();
    txn.put(Keys::meta("format"), (FORMAT_VERSION + 1).to_be_bytes().to_vec())
        .unwrap();
    txn.commit().await;
    let error = upgrade(&world.kv, UpgradeOptions::default(), &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
}

/// What was written before there were versions is the null version of its key, and the oldest.
#[tokio::test]
async fn format_2_is_refused_and_upgraded_and_then_keeps_versions() {
    let world = World::of_format_1().await;
    upgrade(&world.kv, UpgradeOptions::default(), &mut |_| {})
        .await
        .unwrap();
    downgrade_to_2(&world.kv).await;
    let open = || {
        Store::open(
            Arc::clone(&world.kv),
            Arc::clone(&world.blobs),
            Arc::clone(&world.clock),
        )
    };
    assert_eq!(open().await.unwrap_err().kind(), ErrorKind::Format);
    let report = upgrade(&world.kv, UpgradeOptions::default(), &mut |_| {})
        .await
        .unwrap();
    assert_eq!((report.from, report.to, report.steps), (2, 3, Vec::new()));

    let store = open().await.unwrap();
    let (bucket, key): (BucketName, ObjectKey) = ("first".parse().unwrap(), "blob".parse().unwrap());
    let record = store.bucket(&bucket).await.unwrap();
    assert_eq!(record.versioning, Versioning::Never);
    store
        .update_bucket(&bucket, |bucket| bucket.versioning = Versioning::Enabled)
        .await
        .unwrap();
    put(&store, &bucket, &key, 50_000).await;
    assert!(store.delete_object(&bucket, &key).await.unwrap());
    let check = || async {
        let report = fsck(&world.kv, &world.blobs, &FsckOptions::default(), &mut |_| {}).await;
        assert_eq!(report.unwrap().findings, []);
    };
    check().await;
    let null = store.open_version(&bucket, &key, Some(VersionId::Null)).await.unwrap();
    assert_eq!(null.record.size(), 100_000);
    assert_eq!(null.reader().read(0..100_000).await.unwrap(), vec![7; 100_000]);
    drop(null);
    let any = DeleteCondition::default();
    let deleted = store
        .delete_version(&bucket, &key, VersionId::Null, &any)
        .await
        .unwrap();
    assert!(deleted.existed);
    store.sweep().await.unwrap();
    check().await;
}
