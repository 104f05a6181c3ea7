//! A store is broken in each way, and the check says how.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::{
    BucketName, CompletedPart, ContentHeaders, IngestOptions, LayoutId, Limits, NewObject, NewUpload, ObjectKey,
    PartNumber, Store, Versioning, WriteCondition,
    blob::{BlobId, MemoryBlobs},
    clock::{ManualClock, Timestamp},
    job::NewJob,
    kv::{MemoryKv, Txn},
    schema::{
        BlobRecord, DeadLayout, Holder, IntentRecord, IntentStage, LayoutRecord, LayoutState, ObjectRecord, VersionRow,
        encode,
    },
};

/// Bounds so small that a few hundred kilobytes have several blobs, and pages.
const SMALL: Limits = Limits {
    blob_len_max: 128 << 10,
    listed_count_max: 4,
    part_len_min: 1000,
    adopt_batch: 3,
    reserve: 0,
    compact_after_millis: 1000,
};
/// The grain of zeros.
const GRAIN: usize = 64 << 10;

struct World {
    kv: Arc<dyn Kv>,
    blobs: Arc<dyn Blobs>,
    store: Store,
    bucket: BucketName,
}

impl World {
    /// Objects of every form, an upload in progress, a completed and an aborted one, jobs, and something to sweep.
    async fn busy() -> Self {
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        let blobs: Arc<dyn Blobs> = Arc::new(MemoryBlobs::new());
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000_000_000)));
        let store = Store::open_with(Arc::clone(&kv), Arc::clone(&blobs), clock, SMALL)
            .await
            .unwrap();
        let bucket: BucketName = "bucket".parse().unwrap();
        store
            .create_bucket(&bucket, None, BTreeMap::new(), String::new())
            .await
            .unwrap();
        let world = Self {
            kv,
            blobs,
            store,
            bucket,
        };
        world.put("inline", &[1; 10]).await;
        world.put("blob", &vec![2; 100_000]).await;
        world.put("paged", &striped(9)).await;
        world.put("gone", &vec![3; 100_000]).await;
        world.copy("blob", "copy").await;
        world.copy("paged", "copy of pages").await;
        // Released, and kept by a copy.
        world.copy("gone", "heir").await;
        world.delete("gone").await;
        world.versions().await;
        let open = world.upload("open").await;
        world.part("open", open, 1, &vec![4; 70_000]).await;
        let done = world.upload("done").await;
        let mut parts = Vec::new();
        for number in 1..=3 {
            parts.push(world.part("done", done, number, &vec![5; 70_000]).await);
        }
        parts.pop();
        let (key, always) = ("done".parse().unwrap(), WriteCondition::Always);
        let completed = world
            .store
            .complete_upload(&world.bucket, &key, done, &parts, &always, |_, _| Ok(Vec::new()));
        completed.await.unwrap();
        let aborted = world.upload("aborted").await;
        world.part("aborted", aborted, 1, &vec![6; 70_000]).await;
        world
            .store
            .abort_upload(&world.bucket, &"aborted".parse().unwrap(), aborted)
            .await
            .unwrap();
        for _ in 0..2 {
            let job = NewJob {
                kind: "test".to_owned(),
                subject: String::new(),
                payload: Vec::new(),
            };
            world.store.queue_job(job).await.unwrap();
        }
        world.store.claim_job(1).await.unwrap().unwrap();
        world
    }

    /// Keys with a null version behind others, with a delete marker, and with both.
    async fn versions(&self) {
        self.put("versions", &vec![7; 100_000]).await;
        self.set_versioning(Versioning::Enabled).await;
        self.put("versions", &vec![8; 100_000]).await;
        self.put("versions", &vec![6; 100_000]).await;
        self.put("marked", &[9; 10]).await;
        self.delete("marked").await;
        self.set_versioning(Versioning::Suspended).await;
        self.delete("marked by null").await;
    }

    async fn set_versioning(&self, versioning: Versioning) {
        let update = self
            .store
            .update_bucket(&self.bucket, |bucket| bucket.versioning = versioning);
        update.await.unwrap();
    }

    async fn ingest(&self, data: &[u8], upload: Option<LayoutId>) -> crate::Ingested {
        let body = futures::stream::iter([Ok(Bytes::copy_from_slice(data))]);
        let options = IngestOptions {
            upload,
            ..IngestOptions::default()
        };
        self.store.ingest(body, options).await.unwrap()
    }

    async fn put(&self, key: &str, data: &[u8]) {
        let ingested = self.ingest(data, None).await;
        self.commit(key, ingested.content).await;
    }

    async fn copy(&self, from: &str, to: &str) {
        let source = self
            .store
            .open_object(&self.bucket, &from.parse().unwrap())
            .await
            .unwrap();
        let content = self.store.content_builder(Some(&source)).await.unwrap().share(&source);
        self.commit(to, content).await;
    }

    async fn commit(&self, key: &str, content: crate::Content) {
        let new = NewObject {
            content,
            etag: "etag".to_owned(),
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
        let key: ObjectKey = key.parse().unwrap();
        self.store
            .put_object(&self.bucket, &key, new, |_, _| Ok(Vec::new()))
            .await
            .unwrap();
    }

    async fn delete(&self, key: &str) {
        self.store
            .delete_object(&self.bucket, &key.parse().unwrap())
            .await
            .unwrap();
    }

    async fn upload(&self, key: &str) -> LayoutId {
        let new = NewUpload::default();
        self.store
            .create_upload(&self.bucket, &key.parse().unwrap(), new)
            .await
            .unwrap()
    }

    async fn part(&self, key: &str, upload: LayoutId, number: i64, data: &[u8]) -> CompletedPart {
        let number = PartNumber::new(number).unwrap();
        let ingested = self.ingest(data, Some(upload)).await;
        let etag = hex::encode(ingested.digests.md5);
        let key = key.parse().unwrap();
        let put = self
            .store
            .put_part(&self.bucket, &key, number, ingested.content, etag.clone(), None);
        put.await.unwrap();
        CompletedPart {
            number,
            etag,
            checksum: None,
        }
    }

    async fn check(&self, deep: bool) -> Report {
        fsck(&self.kv, &self.blobs, &FsckOptions { deep }, &mut |_| {})
            .await
            .unwrap()
    }

    /// What is found, each kind once.
    async fn kinds(&self) -> Vec<FindingKind> {
        let report = self.check(false).await;
        let mut kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
        kinds.dedup();
        kinds
    }

    async fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.kv.snapshot().await.unwrap().get(key).await.unwrap()
    }

    async fn rows(&self, table: u8) -> Vec<(Bytes, Bytes)> {
        let snapshot = self.kv.snapshot().await.unwrap();
        Pages::of(Keys::table(table))
            .next(&*snapshot)
            .await
            .unwrap()
            .unwrap_or_default()
    }

    async fn write(&self, key: impl Into<Bytes>, value: Option<Bytes>) {
        let mut txn = Txn::begin(&self.kv).await.unwrap();
        match value {
            Some(value) => txn.put(key, value).unwrap(),
            None => txn.delete(key).unwrap(),
        }
        txn.commit().await;
    }

    async fn object_key(&self, name: &str) -> Bytes {
        let bucket = self.store.bucket(&self.bucket).await.unwrap().id;
        Keys::object(bucket, name.as_bytes())
    }

    async fn object(&self, name: &str) -> ObjectRecord {
        decode(&self.row(&self.object_key(name).await).await.unwrap()).unwrap()
    }

    async fn layout(&self, id: LayoutId) -> LayoutRecord {
        decode(&self.row(&Keys::layout(id)).await.unwrap()).unwrap()
    }

    async fn set_layout(&self, id: LayoutId, change: impl FnOnce(&mut LayoutRecord)) {
        let mut record = self.layout(id).await;
        change(&mut record);
        self.write(Keys::layout(id), Some(encode(&record))).await;
    }

    /// A blob that an object owns.
    async fn blob_of(&self, name: &str) -> BlobId {
        let owner = self.object(name).await.layout_id;
        let rows = self.rows(b'X').await;
        let ids = rows.iter().map(|(key, _)| Keys::parse_blob(key).unwrap());
        ids.into_iter().find(|id| id.owner == owner).unwrap()
    }
}

/// Bytes and zeros in turn, so that each run of bytes is an extent.
fn striped(count: u8) -> Vec<u8> {
    (1..=count)
        .flat_map(|n| [vec![n; GRAIN], vec![0; GRAIN]])
        .flatten()
        .collect()
}

#[tokio::test]
async fn a_busy_store_is_clean() {
    let world = World::busy().await;
    for swept in [false, true] {
        let report = world.check(true).await;
        assert_eq!(report.findings, [], "swept: {swept}");
        assert!(report.is_clean());
        let counts = report.counts;
        assert_eq!(
            (counts.buckets, counts.objects, counts.uploads, counts.jobs),
            (1, 11, 1, 2)
        );
        assert!(
            counts.blob_bytes > 0 && counts.layouts > 7 && counts.parts > 0,
            "{counts:?}"
        );
        world.store.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn damaged_rows_are_found_in_every_table() {
    for table in *b"BOVvUPLXIACDEJQS" {
        let world = World::busy().await;
        let key = world.rows(table).await.into_iter().next();
        let has_value = !matches!(table, b'A' | b'C' | b'Q');
        let broken = match key {
            Some((key, _)) if has_value => key,
            // A key that is cut off.
            _ => Bytes::from(vec![table, 1, 2, 3]),
        };
        world.write(broken, Some(Bytes::from_static(&[0xff]))).await;
        let kinds = world.kinds().await;
        assert!(
            kinds.contains(&FindingKind::DamagedRow),
            "{}: {kinds:?}",
            table.escape_ascii()
        );
    }
}

#[tokio::test]
async fn references_to_blobs_are_followed() {
    let world = World::busy().await;
    let blob = world.blob_of("blob").await;
    let row = world.row(&Keys::blob(blob)).await;
    let shorter = encode(&BlobRecord::new(10));
    world.write(Keys::blob(blob), Some(shorter)).await;
    let kinds = world.kinds().await;
    assert!(
        kinds.contains(&FindingKind::BeyondBlob) && kinds.contains(&FindingKind::DamagedBlob),
        "{kinds:?}"
    );
    world.write(Keys::blob(blob), None).await;
    let report = world.check(false).await;
    let unknown = report
        .findings
        .iter()
        .filter(|finding| finding.kind == FindingKind::UnknownBlob);
    let subjects: Vec<_> = unknown.map(|finding| finding.subject.as_str()).collect();
    assert_eq!(subjects, ["bucket/blob", "bucket/copy"]);
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.kind == FindingKind::StrayBlob)
    );
    world.write(Keys::blob(blob), row).await;
    assert_eq!(world.kinds().await, []);
}

#[tokio::test]
async fn missing_files_are_found_and_pages_among_them() {
    let world = World::busy().await;
    world.blobs.delete(world.blob_of("blob").await).await.unwrap();
    assert_eq!(world.kinds().await, [FindingKind::MissingBlob]);
    let crate::layout::Layout::Paged(paged) = world.object("paged").await.layout else {
        panic!("so many extents are pages");
    };
    world.blobs.delete(paged.blobs[0]).await.unwrap();
    let kinds = world.kinds().await;
    assert!(
        kinds.contains(&FindingKind::DamagedLayout) && kinds.contains(&FindingKind::MissingBlob),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn what_the_sweep_has_half_done_is_only_a_note() {
    let world = World::busy().await;
    let blob = world.blob_of("blob").await;
    world.delete("copy").await;
    world.delete("blob").await;
    world.store.sweep_due().await;
    world
        .set_layout(blob.owner, |record| record.state = LayoutState::Dying)
        .await;
    for (key, _) in world.rows(b'A').await {
        let (layout, owner) = (
            Keys::parse_first_id(&key).unwrap().0,
            Keys::parse_last_id(&key).unwrap(),
        );
        if owner == blob.owner.0 {
            world
                .write(Keys::borrower(LayoutId(owner), LayoutId(layout)), None)
                .await;
            world.write(key, None).await;
        }
    }
    world.blobs.delete(blob).await.unwrap();
    assert_eq!(world.kinds().await, [FindingKind::HalfSwept]);
    assert!(world.check(false).await.is_clean());
}

#[tokio::test]
async fn borrowings_are_held_against_each_other() {
    let broken = |table: u8| async move {
        let world = World::busy().await;
        let (key, _) = world.rows(table).await.into_iter().next().unwrap();
        world.write(key, None).await;
        world.kinds().await
    };
    let kinds = broken(b'A').await;
    assert!(
        kinds.contains(&FindingKind::Unprotected) && kinds.contains(&FindingKind::StaleBorrow),
        "{kinds:?}"
    );
    assert_eq!(broken(b'C').await[0], FindingKind::BrokenBorrow);

    let world = World::busy().await;
    let owner = world.object("blob").await.layout_id;
    world
        .set_layout(owner, |record| record.state = LayoutState::Dying)
        .await;
    let kinds = world.kinds().await;
    assert!(
        kinds.contains(&FindingKind::NotHeld) && kinds.contains(&FindingKind::BrokenBorrow),
        "{kinds:?}"
    );
    assert!(kinds.contains(&FindingKind::ForgottenLayout), "{kinds:?}");
}

#[tokio::test]
async fn layouts_and_their_holders_are_held_against_each_other() {
    let world = World::busy().await;
    let object = world.object("blob").await;
    for state in [LayoutState::Released, LayoutState::Dying] {
        world.set_layout(object.layout_id, |record| record.state = state).await;
        assert!(world.kinds().await.contains(&FindingKind::NotHeld), "{state:?}");
    }
    world
        .set_layout(object.layout_id, |record| {
            record.state = LayoutState::Held;
            record.holder = Some(Holder {
                key: "other".to_owned(),
                ..record.holder.take().unwrap()
            });
        })
        .await;
    let kinds = world.kinds().await;
    assert_eq!(kinds, [FindingKind::WrongHolder, FindingKind::UnheldLayout]);

    let world = World::busy().await;
    world.write(world.object_key("blob").await, None).await;
    let kinds = world.kinds().await;
    assert_eq!(kinds, [FindingKind::UnheldLayout, FindingKind::WrongUsage]);

    let world = World::busy().await;
    world
        .write(Keys::layout(world.object("blob").await.layout_id), None)
        .await;
    let kinds = world.kinds().await;
    assert!(
        kinds.contains(&FindingKind::NotHeld) && kinds.contains(&FindingKind::ForgottenBlob),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn released_layouts_are_in_the_list_of_the_sweep() {
    let world = World::busy().await;
    world.put("blob", &[9; 10]).await;
    world.put("copy", &[9; 10]).await;
    for (key, _) in world.rows(b'D').await {
        let dead: DeadLayout = decode(&world.row(&key).await.unwrap()).unwrap();
        assert!(dead.not_before <= world.store.now());
        world.write(key, None).await;
    }
    assert_eq!(world.kinds().await, [FindingKind::ForgottenLayout]);
}

#[tokio::test]
async fn buckets_and_uploads_are_required() {
    let world = World::busy().await;
    world.write(Keys::bucket(&world.bucket), None).await;
    assert!(world.kinds().await.contains(&FindingKind::NoBucket));

    let world = World::busy().await;
    let (upload, _) = world.rows(b'U').await.into_iter().next().unwrap();
    world.write(upload, None).await;
    let kinds = world.kinds().await;
    assert_eq!(
        kinds,
        [
            FindingKind::ForgottenPart,
            FindingKind::UnheldLayout,
            FindingKind::WrongUsage
        ]
    );
}

#[tokio::test]
async fn intents_and_files_are_held_against_the_rows() {
    let world = World::busy().await;
    let intent = |stage| {
        let expires = Timestamp(0);
        Some(encode(&IntentRecord { expires, stage }))
    };
    let other = BlobId {
        owner: LayoutId([7; 16]),
        index: 1,
    };
    world.write(Keys::intent(other), intent(IntentStage::Writing)).await;
    assert_eq!(world.kinds().await, [FindingKind::UnfinishedWrites]);
    assert!(world.check(false).await.is_clean());
    world.write(Keys::intent(other), intent(IntentStage::Arrived(5))).await;
    assert_eq!(world.kinds().await, [FindingKind::MissingBlob]);
    let mut writer = world.blobs.create(other).await.unwrap();
    writer.append(Bytes::from_static(b"12345")).await.unwrap();
    writer.seal().await.unwrap();
    assert_eq!(world.kinds().await, []);
    world.write(Keys::intent(other), None).await;
    assert_eq!(world.kinds().await, [FindingKind::StrayBlob]);
    world.blobs.delete(other).await.unwrap();
    let blob = world.blob_of("blob").await;
    world.write(Keys::intent(blob), intent(IntentStage::Writing)).await;
    assert_eq!(
        world.kinds().await,
        [FindingKind::StaleIntent, FindingKind::UnfinishedWrites]
    );
}

#[tokio::test]
async fn jobs_and_the_queue_are_held_against_each_other() {
    for table in [b'J', b'Q'] {
        let world = World::busy().await;
        let (key, _) = world.rows(table).await.into_iter().next().unwrap();
        world.write(key, None).await;
        assert_eq!(world.kinds().await, [FindingKind::BrokenQueue]);
    }
}

#[tokio::test]
async fn users_ids_and_keys_are_held_against_each_other() {
    let world = World::busy().await;
    let key = crate::AccessKeyRecord {
        access_key: "KEY".to_owned(),
        created: Timestamp(0),
        sealed_secret: Vec::new(),
    };
    let user = crate::UserRecord {
        id: "ID".to_owned(),
        name: "alice".to_owned(),
        created: Timestamp(0),
        keys: vec![key],
    };
    world.store.create_user(&user).await.unwrap();
    assert_eq!(world.kinds().await, []);
    for table in [b'R', b'G', b'F'] {
        let (row, value) = world.rows(table).await.into_iter().next().unwrap();
        world.write(row.clone(), None).await;
        assert_eq!(world.kinds().await, [FindingKind::BrokenUser]);
        world.write(row, Some(value)).await;
    }
}

#[tokio::test]
async fn tables_of_a_later_release_are_noted() {
    let world = World::busy().await;
    world.write(Bytes::from_static(b"~new"), Some(Bytes::new())).await;
    assert_eq!(world.kinds().await, [FindingKind::UnknownTable]);
}

#[test]
fn kinds_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = FindingKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), FindingKind::ALL.len());
}

#[test]
fn findings_beyond_the_bound_are_counted() {
    let mut report = Report::default();
    for n in 0..=FINDINGS_MAX {
        report.add(FindingKind::StrayBlob, n.to_string(), "");
    }
    assert_eq!(report.findings.len(), FINDINGS_MAX);
    assert_eq!(report.warnings, FINDINGS_MAX as u64 + 1);
}

#[tokio::test]
async fn versions_are_held_against_each_other() {
    let rows = |world: World, table| async move {
        let rows = world.rows(table).await;
        (world, rows)
    };
    let broken = [FindingKind::BrokenVersions];

    // The newest version of a key has to be the current one, unless it is a delete marker.
    let (world, versions) = rows(World::busy().await, b'V').await;
    let markers = versions
        .iter()
        .filter(|(_, row)| matches!(decode(row).unwrap(), VersionRow::Marker(_)));
    let (marker, _) = markers
        .clone()
        .find(|(key, _)| Keys::parse_version(key).unwrap().0 == "marked")
        .unwrap();
    world.write(marker.clone(), None).await;
    assert_eq!(world.kinds().await, broken);

    // A row says itself where it is.
    let (world, versions) = rows(World::busy().await, b'V').await;
    let (marker, row) = versions
        .iter()
        .find(|(key, _)| Keys::parse_version(key).unwrap().0 == "marked")
        .unwrap();
    let bucket = BucketId(Keys::parse_first_id(marker).unwrap().0);
    world
        .write(Keys::version(bucket, "marked", u64::MAX), Some(row.clone()))
        .await;
    assert_eq!(world.kinds().await, broken);

    // Nothing is newer than the current version.
    let world = World::busy().await;
    let mut current = world.object("versions").await;
    current.version.sequence = 1;
    world
        .write(world.object_key("versions").await, Some(encode(&current)))
        .await;
    assert!(world.kinds().await.contains(&FindingKind::BrokenVersions));

    // The null version is found by its name, and there is one.
    let (world, nulls) = rows(World::busy().await, b'v').await;
    assert_eq!(nulls.len(), 2);
    for (key, sequence) in &nulls {
        world.write(key.clone(), None).await;
        assert_eq!(world.kinds().await, broken);
        world.write(key.clone(), Some(Bytes::from_static(&[7; 8]))).await;
        assert_eq!(world.kinds().await, broken);
        world.write(key.clone(), Some(sequence.clone())).await;
        assert_eq!(world.kinds().await, []);
    }
    let mut current = world.object("versions").await;
    current.version.token = None;
    world
        .write(world.object_key("versions").await, Some(encode(&current)))
        .await;
    assert_eq!(world.kinds().await, broken);
}
