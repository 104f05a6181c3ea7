//! Versions: random histories against lists of versions, pages of every size, and each rule by itself.

use lithos_storage::{
    BucketId, CompletedPart, DeleteCondition, Deleted, DigestSet, ErrorKind, Limits, ListObjects, ListVersions,
    Listing, ListingEntry, ObjectRecord, QuotaRecord, Result, Version, VersionEntry, VersionId, VersionState,
    Versioning, WriteCondition,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::world::{GRAIN, SMALL, World, body, key, new_object, noise};

/// Keys that sort in another order than their bytes would, were they not kept apart from what follows them.
const KEYS: [&str; 5] = ["a", "a\0", "a/1", "a/é", "b"];

#[derive(Debug, Clone)]
enum Op {
    Versioning { enabled: bool },
    Put { key: usize, len: usize },
    Copy { from: usize, version: Index, to: usize },
    Complete { key: usize, len: usize },
    Delete { key: usize },
    DeleteVersion { key: usize, version: Index },
    DeleteNull { key: usize },
    Tag { key: usize, version: Index },
    Clock { millis: u64 },
    Sweep,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    let len = prop_oneof![3 => 0..300_usize, 1 => Just(GRAIN), 1 => Just(3 * GRAIN + 5)];
    let version = any::<Index>;
    prop_oneof![
        2 => any::<bool>().prop_map(|enabled| Op::Versioning { enabled }),
        6 => (key.clone(), len.clone()).prop_map(|(key, len)| Op::Put { key, len }),
        2 => (key.clone(), version(), key.clone()).prop_map(|(from, version, to)| Op::Copy { from, version, to }),
        1 => (key.clone(), len).prop_map(|(key, len)| Op::Complete { key, len }),
        4 => key.clone().prop_map(|key| Op::Delete { key }),
        4 => (key.clone(), version()).prop_map(|(key, version)| Op::DeleteVersion { key, version }),
        1 => key.clone().prop_map(|key| Op::DeleteNull { key }),
        1 => (key, version()).prop_map(|(key, version)| Op::Tag { key, version }),
        1 => (0..5_u64).prop_map(|millis| Op::Clock { millis }),
        1 => Just(Op::Sweep),
        1 => Just(Op::Reopen),
    ]
}

/// A version as it should be.
#[derive(Debug, Clone, PartialEq)]
struct Expected {
    id: VersionId,
    /// `None` for a delete marker.
    content: Option<Vec<u8>>,
    tag: Option<String>,
}

/// The versions of each key, the newest last.
#[derive(Debug, Default)]
struct Model {
    versioning: Versioning,
    keys: [Vec<Expected>; KEYS.len()],
    seeds: u64,
}

impl Model {
    /// What a write of `content`, or a delete, makes of the versions.
    fn write(&mut self, key: usize, id: VersionId, content: Option<Vec<u8>>) {
        assert_eq!(id == VersionId::Null, self.versioning != Versioning::Enabled);
        let versions = &mut self.keys[key];
        assert!(id == VersionId::Null || versions.iter().all(|version| version.id != id));
        if self.versioning != Versioning::Enabled {
            versions.retain(|version| version.id != VersionId::Null);
        }
        if content.is_some() || self.versioning != Versioning::Never {
            let tag = None;
            versions.push(Expected { id, content, tag });
        }
    }

    fn content(&mut self, len: usize) -> Vec<u8> {
        self.seeds += 1;
        noise(self.seeds, len)
    }

    fn chosen(&self, key: usize, version: Index) -> Option<usize> {
        let count = self.keys[key].len();
        (count > 0).then(|| version.index(count))
    }

    /// What a listing of everything gives: names, versions, whether each is the latest.
    fn listing(&self) -> Vec<(String, VersionId, bool, bool)> {
        let mut listing = Vec::new();
        let mut names: Vec<usize> = (0..KEYS.len()).collect();
        names.sort_by_key(|key| KEYS[*key]);
        for key in names {
            for (n, version) in self.keys[key].iter().rev().enumerate() {
                listing.push((KEYS[key].to_owned(), version.id, version.content.is_none(), n == 0));
            }
        }
        listing
    }

    fn current(&self, key: usize) -> Option<&Vec<u8>> {
        self.keys[key].last()?.content.as_ref()
    }
}

async fn put(world: &World, name: &str, data: &[u8]) -> Result<ObjectRecord> {
    put_if(world, name, data, WriteCondition::Always).await
}

async fn put_if(world: &World, name: &str, data: &[u8], condition: WriteCondition) -> Result<ObjectRecord> {
    let options = lithos_storage::IngestOptions::default();
    let ingested = world.store.ingest(body(data, 100_000), options).await?;
    let new = lithos_storage::NewObject {
        condition,
        ..new_object(ingested.content, hex::encode(ingested.digests.md5))
    };
    let name = key(name);
    let put = world.store.put_object(&world.bucket, &name, new, |bucket, record| {
        assert_eq!(record.version.is_null(), bucket.versioning != Versioning::Enabled);
        Ok(Vec::new())
    });
    Ok(put.await?.record)
}

async fn read(world: &World, name: &str, version: Option<VersionId>) -> Result<Vec<u8>> {
    let object = world.store.open_version(&world.bucket, &key(name), version).await?;
    if let Some(version) = version {
        assert_eq!(object.record.version.id(), version);
    }
    let size = object.record.size();
    Ok(object.reader().read(0..size).await?.to_vec())
}

async fn copy(world: &World, from: &str, version: VersionId, to: &str) -> Result<ObjectRecord> {
    let source = world
        .store
        .open_version(&world.bucket, &key(from), Some(version))
        .await?;
    let content = world.store.content_builder(Some(&source)).await?.share(&source);
    let new = new_object(content, source.record.etag.clone());
    let to = key(to);
    let put = world.store.put_object(&world.bucket, &to, new, |_, _| Ok(Vec::new()));
    Ok(put.await?.record)
}

async fn delete(world: &World, name: &str) -> Deleted {
    let always = DeleteCondition::default();
    let name = key(name);
    let deleted = world.store.delete_object_if(&world.bucket, &name, &always);
    deleted.await.unwrap()
}

async fn delete_version(world: &World, name: &str, version: VersionId) -> Deleted {
    let always = DeleteCondition::default();
    let name = key(name);
    let deleted = world.store.delete_version(&world.bucket, &name, version, &always);
    deleted.await.unwrap()
}

async fn run(world: &mut World, model: &mut Model, op: &Op) {
    match op {
        Op::Versioning { enabled } => {
            model.versioning = if *enabled {
                Versioning::Enabled
            } else {
                Versioning::Suspended
            };
            world.set_versioning(model.versioning).await;
        }
        Op::Put { key, len } => {
            let data = model.content(*len);
            let record = put(world, KEYS[*key], &data).await.unwrap();
            model.write(*key, record.version.id(), Some(data));
        }
        Op::Copy { from, version, to } => {
            let Some(source) = model.chosen(*from, *version) else {
                return;
            };
            let source = model.keys[*from][source].clone();
            let copied = copy(world, KEYS[*from], source.id, KEYS[*to]).await;
            match source.content {
                Some(content) => model.write(*to, copied.unwrap().version.id(), Some(content)),
                None => assert_eq!(copied.unwrap_err().kind(), ErrorKind::IsDeleteMarker),
            }
        }
        Op::Complete { key, len } => {
            let name = KEYS[*key];
            let data = model.content(*len);
            let upload = world.create_upload(name).await;
            let parts: Vec<CompletedPart> = vec![world.put_part(name, upload, 1, &data).await.unwrap()];
            let record = world.complete(name, upload, &parts).await.unwrap();
            model.write(*key, record.version.id(), Some(data));
            let again = world.complete(name, upload, &parts).await.unwrap();
            assert_eq!(again, record);
        }
        Op::Delete { key } => {
            let existed = model.current(*key).is_some();
            let deleted = delete(world, KEYS[*key]).await;
            assert_eq!(deleted.existed, existed);
            let kept = model.versioning != Versioning::Never;
            assert_eq!((deleted.is_marker, deleted.version.is_some()), (kept, kept));
            model.write(*key, deleted.version.unwrap_or(VersionId::Null), None);
        }
        Op::DeleteVersion { key, version } => {
            let Some(at) = model.chosen(*key, *version) else { return };
            let gone = model.keys[*key].remove(at);
            check_deleted(world, model, KEYS[*key], &gone).await;
        }
        Op::DeleteNull { key } => {
            let at = model.keys[*key]
                .iter()
                .position(|version| version.id == VersionId::Null);
            match at {
                Some(at) => {
                    let gone = model.keys[*key].remove(at);
                    check_deleted(world, model, KEYS[*key], &gone).await;
                }
                None => assert!(!delete_version(world, KEYS[*key], VersionId::Null).await.existed),
            }
        }
        Op::Tag { key, version } => tag(world, model, *key, *version).await,
        Op::Clock { millis } => world.clock.advance_millis(*millis),
        Op::Sweep => drop(world.store.sweep().await.unwrap()),
        Op::Reopen => world.reopen().await,
    }
}

async fn check_deleted(world: &World, model: &Model, name: &str, gone: &Expected) {
    let deleted = delete_version(world, name, gone.id).await;
    let expected = Deleted {
        existed: true,
        version: (model.versioning != Versioning::Never).then_some(gone.id),
        is_marker: gone.content.is_none(),
    };
    assert_eq!(deleted, expected);
    let again = delete_version(world, name, gone.id).await;
    assert!(!again.existed && !again.is_marker, "{again:?}");
    let read = read(world, name, Some(gone.id)).await.unwrap_err();
    assert_eq!(read.kind(), ErrorKind::NoSuchVersion);
}

async fn tag(world: &World, model: &mut Model, at: usize, version: Index) {
    let Some(chosen) = model.chosen(at, version) else {
        return;
    };
    let latest = chosen + 1 == model.keys[at].len();
    let version = &mut model.keys[at][chosen];
    let tag = format!("tag {}", model.seeds);
    let (bucket, name) = (&world.bucket, key(KEYS[at]));
    let tagged = world
        .store
        .update_version(bucket, &name, Some(version.id), |_, record, state| {
            assert_eq!(state == VersionState::Current, latest);
            record.tags.insert("tag".to_owned(), tag.clone());
            record.version = lithos_storage::VersionStamp::default();
            Ok(Vec::new())
        });
    match tagged.await {
        Ok(_) => version.tag = Some(tag),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::IsDeleteMarker);
            assert!(version.content.is_none());
        }
    }
}

/// All pages of a listing, each of `limit` entries.
async fn pages(world: &World, list: &ListVersions, limit: usize) -> Vec<ListingEntry<VersionEntry>> {
    let mut list = list.clone();
    list.keys.limit = limit;
    let mut entries = Vec::new();
    loop {
        let page: Listing<VersionEntry> = world.store.list_versions(&world.bucket, &list).await.unwrap();
        assert!(page.entries.len() <= limit);
        entries.extend(page.entries);
        if !page.more {
            return entries;
        }
        list.after_version = match entries.last().unwrap() {
            ListingEntry::Key(name, entry) => {
                list.keys.after.clone_from(name);
                Some(entry.version.stamp().id())
            }
            ListingEntry::CommonPrefix(prefix) => {
                list.keys.after.clone_from(prefix);
                None
            }
        };
    }
}

fn shown(entries: &[ListingEntry<VersionEntry>]) -> Vec<(String, VersionId, bool, bool)> {
    entries
        .iter()
        .map(|entry| match entry {
            ListingEntry::Key(name, entry) => {
                let is_marker = matches!(entry.version, Version::DeleteMarker(_));
                let since = entry.noncurrent_since.is_some();
                assert_eq!(since, !is_marker && !entry.is_latest);
                (name.clone(), entry.version.stamp().id(), is_marker, entry.is_latest)
            }
            ListingEntry::CommonPrefix(prefix) => (prefix.clone(), VersionId::Null, true, true),
        })
        .collect()
}

/// What a listing with prefix and delimiter should be.
fn folded(
    listing: &[(String, VersionId, bool, bool)],
    prefix: &str,
    delimiter: &str,
) -> Vec<(String, VersionId, bool, bool)> {
    let mut entries: Vec<(String, VersionId, bool, bool)> = Vec::new();
    for entry in listing {
        let Some(rest) = entry.0.strip_prefix(prefix) else {
            continue;
        };
        match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
            None => entries.push(entry.clone()),
            Some(at) => {
                let common = format!("{prefix}{}", &rest[..at + delimiter.len()]);
                if entries.last().is_none_or(|last| last.0 != common) {
                    entries.push((common, VersionId::Null, true, true));
                }
            }
        }
    }
    entries
}

async fn check(world: &World, model: &Model) {
    let expected = model.listing();
    for (prefix, delimiter) in [("", ""), ("a", ""), ("", "/"), ("a", "/"), ("a/", ""), ("c", "")] {
        let list = ListVersions {
            keys: ListObjects {
                prefix: prefix.to_owned(),
                delimiter: delimiter.to_owned(),
                ..ListObjects::default()
            },
            after_version: None,
        };
        for limit in [1, 2, 3, 1000] {
            let listed = pages(world, &list, limit).await;
            let what = format!("prefix {prefix:?}, delimiter {delimiter:?}, pages of {limit}");
            assert_eq!(shown(&listed), folded(&expected, prefix, delimiter), "{what}");
        }
    }
    let mut current: Vec<&str> = Vec::new();
    for (at, name) in KEYS.iter().enumerate() {
        match read(world, name, None).await {
            Ok(data) => {
                assert_eq!(Some(&data), model.current(at));
                current.push(name);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSuchKey);
                let marker = error.marker().map(|marker| marker.version.id());
                assert_eq!(marker, model.keys[at].last().map(|version| version.id));
                assert!(model.current(at).is_none());
            }
        }
        for version in &model.keys[at] {
            let open = world
                .store
                .open_version(&world.bucket, &key(name), Some(version.id))
                .await;
            if let Some(content) = &version.content {
                assert_eq!(&read(world, name, Some(version.id)).await.unwrap(), content);
                assert_eq!(open.unwrap().record.tags.get("tag"), version.tag.as_ref());
            } else {
                let error = open.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::IsDeleteMarker);
                assert_eq!(error.marker().unwrap().version.id(), version.id);
            }
        }
    }
    current.sort_unstable();
    assert_eq!(world.names().await, current);
}

async fn history(mut world: World, ops: &[Op]) {
    let mut model = Model::default();
    for op in ops {
        run(&mut world, &mut model, op).await;
    }
    check(&world, &model).await;
    let contents = model
        .keys
        .iter()
        .flatten()
        .filter_map(|version| version.content.as_ref());
    let usage = world.store.usage(&world.bucket).await.unwrap();
    assert_eq!(usage.objects, contents.clone().count() as u64);
    assert_eq!(usage.bytes, contents.map(|content| content.len() as u64).sum::<u64>());
    if model.keys.iter().any(|versions| !versions.is_empty()) {
        let refused = world.store.delete_bucket(&world.bucket).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BucketNotEmpty);
    }
    world.check_nothing_left().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn memory_agrees_with_lists_of_versions(ops in vec(op(), 1..40)) {
        runtime().block_on(async { history(World::memory(SMALL).await, &ops).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn disk_agrees_with_lists_of_versions(ops in vec(op(), 1..40)) {
        runtime().block_on(async { history(World::disk(SMALL).await, &ops).await });
    }
}

async fn versioned(versioning: Versioning) -> World {
    let world = World::memory(SMALL).await;
    world.set_versioning(versioning).await;
    world
}

#[tokio::test]
async fn conditions_look_at_the_current_version_and_a_delete_marker_is_none() {
    let world = versioned(Versioning::Enabled).await;
    let first = put(&world, "k", b"one").await.unwrap();
    let refused = put_if(&world, "k", b"two", WriteCondition::Absent).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    delete(&world, "k").await;
    let gone = put_if(&world, "k", b"two", WriteCondition::ETagIn(vec![first.etag.clone()]));
    assert_eq!(gone.await.unwrap_err().kind(), ErrorKind::NoSuchKey);
    let second = put_if(&world, "k", b"two", WriteCondition::Absent).await.unwrap();
    let named = DeleteCondition {
        etags: Some(vec![second.etag.clone()]),
        ..DeleteCondition::default()
    };
    // Of a version that is named, it is that version that is looked at.
    let store = &world.store;
    let name = key("k");
    let refused = store.delete_version(&world.bucket, &name, first.version.id(), &named);
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    let deleted = store.delete_object_if(&world.bucket, &key("k"), &named).await.unwrap();
    let marker = deleted.version.unwrap();
    let refused = store.delete_version(&world.bucket, &key("k"), marker, &named).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    let present = DeleteCondition {
        present: true,
        ..DeleteCondition::default()
    };
    let refused = store.delete_object_if(&world.bucket, &key("k"), &present).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    store
        .delete_version(&world.bucket, &key("k"), marker, &present)
        .await
        .unwrap();
    assert_eq!(read(&world, "k", None).await.unwrap(), b"two");
    world.check_nothing_left().await;
}

#[tokio::test]
async fn a_bucket_that_kept_versions_never_forgets_that() {
    let world = versioned(Versioning::Enabled).await;
    world.set_versioning(Versioning::Never).await;
    let bucket = world.store.bucket(&world.bucket).await.unwrap();
    assert_eq!(bucket.versioning, Versioning::Enabled);
}

#[tokio::test]
async fn version_ids_of_others_are_of_no_use() {
    let world = versioned(Versioning::Enabled).await;
    let first = put(&world, "k", b"one").await.unwrap();
    put(&world, "k", b"two").await.unwrap();
    let VersionId::Named { sequence, token } = first.version.id() else {
        panic!("it has a name")
    };
    for version in [
        VersionId::Null,
        VersionId::Named {
            sequence,
            token: token ^ 1,
        },
        VersionId::Named {
            sequence: sequence - 1,
            token,
        },
    ] {
        let error = read(&world, "k", Some(version)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSuchVersion, "{version}");
        assert!(!delete_version(&world, "k", version).await.existed);
    }
    let other = read(&world, "l", Some(first.version.id())).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::NoSuchVersion);
    assert_eq!(read(&world, "k", Some(first.version.id())).await.unwrap(), b"one");
}

/// Each page goes on where the one before ended, also where what it ended with is gone by then.
#[tokio::test]
async fn pages_go_on_behind_versions_that_were_deleted_meanwhile() {
    let world = versioned(Versioning::Enabled).await;
    let mut ids = Vec::new();
    for n in 0..4_u8 {
        ids.push(put(&world, "k", &[n]).await.unwrap().version.id());
    }
    let mut list = ListVersions {
        keys: ListObjects {
            after: "k".to_owned(),
            limit: 10,
            ..ListObjects::default()
        },
        after_version: Some(ids[3]),
    };
    let behind = |list: ListVersions| {
        let world = &world;
        async move {
            let page = world.store.list_versions(&world.bucket, &list).await.unwrap();
            let shown = shown(&page.entries);
            shown
                .into_iter()
                .map(|(_, id, _, latest)| (id, latest))
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(
        behind(list.clone()).await,
        [(ids[2], false), (ids[1], false), (ids[0], false)]
    );
    delete_version(&world, "k", ids[3]).await;
    assert_eq!(
        behind(list.clone()).await,
        [(ids[2], true), (ids[1], false), (ids[0], false)]
    );
    delete_version(&world, "k", ids[1]).await;
    list.after_version = Some(ids[1]);
    assert_eq!(behind(list.clone()).await, [(ids[0], false)]);
    list.after_version = Some(VersionId::Null);
    let refused = world.store.list_versions(&world.bucket, &list).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    list.after_version = None;
    assert_eq!(behind(list).await, []);
}

#[tokio::test]
async fn every_version_counts_against_the_quota_and_deletes_need_none() {
    let world = versioned(Versioning::Enabled).await;
    let quota = QuotaRecord {
        bytes: Some(25),
        objects: Some(3),
    };
    world.store.set_bucket_quota(&world.bucket, Some(quota)).await.unwrap();
    let first = put(&world, "k", &[1; 10]).await.unwrap();
    put(&world, "k", &[2; 10]).await.unwrap();
    let refused = put(&world, "k", &[3; 10]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    put(&world, "k", &[3; 5]).await.unwrap();
    let refused = put(&world, "k", &[]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    delete(&world, "k").await;
    delete(&world, "l").await;
    delete_version(&world, "k", first.version.id()).await;
    put(&world, "k", &[4; 10]).await.unwrap();
    world.check_nothing_left().await;
}

/// Writers that add versions at the same time never pass the quota, and lose none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_are_written_and_deleted_by_many_at_once() {
    const ROOM: u64 = 40;
    for world in [World::memory(SMALL).await, World::disk(SMALL).await] {
        world.set_versioning(Versioning::Enabled).await;
        let quota = QuotaRecord {
            bytes: None,
            objects: Some(ROOM),
        };
        world.store.set_bucket_quota(&world.bucket, Some(quota)).await.unwrap();
        let tasks: Vec<_> = (0..8_u64)
            .map(|task| {
                let (store, bucket) = (world.store.clone(), world.bucket.clone());
                tokio::spawn(async move {
                    let mut written = 0;
                    for n in 0..10 {
                        let name = ["x", "y"][(task as usize + n) % 2];
                        let data = noise(task * 100 + n as u64, 100);
                        match crate::world::put(&store, &bucket, name, &data, WriteCondition::Always).await {
                            Ok(()) => written += 1,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::QuotaExceeded),
                        }
                        if n % 3 == 0 {
                            store.delete_object(&bucket, &key(name)).await.unwrap();
                        }
                    }
                    written
                })
            })
            .collect();
        let mut written = 0;
        for task in tasks {
            written += task.await.unwrap();
        }
        assert_eq!(written, ROOM, "all the room there is");
        let listed = pages(&world, &ListVersions::default(), 7).await;
        let objects = listed.iter().filter(
            |entry| matches!(entry, ListingEntry::Key(_, entry) if matches!(entry.version, Version::Object(_))),
        );
        assert_eq!(objects.count() as u64, ROOM);
        world.check_nothing_left().await;
    }
}

/// Of many deletes of the latest version each removes one, and what is left is the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_behind_one_that_is_deleted_come_forward_one_at_a_time() {
    let world = versioned(Versioning::Enabled).await;
    let mut ids = Vec::new();
    for n in 0..20_u8 {
        ids.push(put(&world, "k", &[n]).await.unwrap().version.id());
    }
    let tasks: Vec<_> = ids
        .iter()
        .skip(1)
        .rev()
        .map(|id| {
            let (store, bucket, id) = (world.store.clone(), world.bucket.clone(), *id);
            tokio::spawn(async move {
                let always = DeleteCondition::default();
                store.delete_version(&bucket, &key("k"), id, &always).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap().existed);
    }
    assert_eq!(read(&world, "k", None).await.unwrap(), [0]);
    world.check_nothing_left().await;
}

#[tokio::test]
async fn readers_keep_a_version_that_is_deleted_under_them() {
    let world = versioned(Versioning::Enabled).await;
    let data = noise(1, 3 * GRAIN);
    let first = put(&world, "k", &data).await.unwrap();
    put(&world, "k", &noise(2, GRAIN)).await.unwrap();
    let id = first.version.id();
    let open = world
        .store
        .open_version(&world.bucket, &key("k"), Some(id))
        .await
        .unwrap();
    delete_version(&world, "k", id).await;
    world.store.sweep().await.unwrap();
    let digests = open.digests(0..u64::MAX, &DigestSet::default()).await.unwrap();
    assert_eq!(hex::encode(digests.md5), first.etag);
    assert_eq!(open.reader().read(0..data.len() as u64).await.unwrap(), data);
    drop(open);
    world.check_nothing_left().await;
}

/// What is current is listed at the same cost however many versions and delete markers lie between.
#[tokio::test]
async fn listings_of_objects_never_meet_other_versions() {
    let world = World::memory(Limits::default()).await;
    world.set_versioning(Versioning::Enabled).await;
    for name in ["a", "b", "c"] {
        for n in 0..20_u8 {
            put(&world, name, &[n]).await.unwrap();
        }
        if name == "b" {
            for _ in 0..20 {
                delete(&world, name).await;
            }
        }
    }
    assert_eq!(world.names().await, ["a", "c"]);
    assert_eq!(world.rows(b"O").await.len(), 2, "nothing else is in the way");
    let bucket: BucketId = world.store.bucket(&world.bucket).await.unwrap().id;
    let row = [b"V", &bucket.0[..]].concat();
    assert_eq!(world.rows(&row).await.len(), 3 * 20 + 20 - 2);
}
