//! A store with its engines in hand, so that tests can look beneath it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lithos_storage::{
    BodyError, BucketName, CompletedPart, Content, ContentHeaders, DeleteCondition, ErrorKind, IngestOptions, LayoutId,
    Limits, ListObjects, ListUploads, ListVersions, ListingEntry, NewObject, NewUpload, ObjectKey, ObjectRecord,
    PartNumber, Result, Store, Tags, Version, Versioning, WriteCondition,
    blob::{BlobId, Blobs, FsBlobs, MemoryBlobs},
    clock::{Clock, ManualClock, Timestamp},
    fsck::{FsckOptions, fsck},
    kv::{Kv, MemoryKv, Order, RocksKv, Scan, prefix_range},
};

pub(crate) const GRAIN: usize = 64 << 10;

/// Bounds so small that a few hundred kilobytes take every way there is.
pub(crate) const SMALL: Limits = Limits {
    blob_len_max: 128 << 10,
    listed_count_max: 4,
    part_len_min: 1000,
    adopt_batch: 3,
    reserve: 0,
    compact_after_millis: 1000,
};

pub(crate) struct World {
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Store,
    pub(crate) bucket: BucketName,
    limits: Limits,
    _folder: Option<tempfile::TempDir>,
}

pub(crate) fn key(name: &str) -> ObjectKey {
    name.parse().unwrap()
}

/// A body in chunks of `chunk` bytes.
pub(crate) fn body(
    data: &[u8],
    chunk: usize,
) -> impl futures::Stream<Item = std::result::Result<Bytes, BodyError>> + Send + use<> {
    let chunks: Vec<_> = data
        .chunks(chunk.max(1))
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    stream::iter(chunks)
}

/// Bytes that are not zero, and differ from seed to seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn new_object(content: Content, etag: String) -> NewObject {
    NewObject {
        content,
        etag,
        headers: ContentHeaders::default(),
        metadata: BTreeMap::new(),
        tags: Tags::new(),
        checksum: None,
        part_sizes: Vec::new(),
        annotations: BTreeMap::new(),
        owner: String::new(),
        last_modified: None,
        condition: WriteCondition::Always,
        fence: None,
        source: None,
    }
}

impl World {
    pub(crate) async fn memory(limits: Limits) -> Self {
        Self::over(Arc::new(MemoryKv::new()), Arc::new(MemoryBlobs::new()), limits, None).await
    }

    pub(crate) async fn disk(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kv = RocksKv::open(&folder.path().join("index")).unwrap();
        let blobs = FsBlobs::open(folder.path()).unwrap();
        Self::over(Arc::new(kv), Arc::new(blobs), limits, Some(folder)).await
    }

    pub(crate) async fn over(
        kv: Arc<dyn Kv>,
        blobs: Arc<dyn Blobs>,
        limits: Limits,
        folder: Option<tempfile::TempDir>,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000_000_000)));
        let store = open(&kv, &blobs, &clock, limits).await;
        let bucket: BucketName = "bucket".parse().unwrap();
        let _ = store.create_bucket(&bucket, None, Tags::new(), String::new()).await;
        Self {
            kv,
            blobs,
            clock,
            store,
            bucket,
            limits,
            _folder: folder,
        }
    }

    /// Another store over other engines, with all else as in `world`.
    pub(crate) async fn over_with(kv: Arc<dyn Kv>, blobs: Arc<dyn Blobs>, world: &Self) -> Store {
        open(&kv, &blobs, &world.clock, world.limits).await
    }

    /// Another process takes over, over the same engines.
    pub(crate) async fn reopen(&mut self) {
        self.store = open(&self.kv, &self.blobs, &self.clock, self.limits).await;
        self.store.recover(2).await.unwrap();
    }

    pub(crate) async fn set_versioning(&self, versioning: Versioning) {
        let update = self
            .store
            .update_bucket(&self.bucket, |bucket| bucket.versioning = versioning);
        update.await.unwrap();
    }

    pub(crate) async fn put(&self, name: &str, data: &[u8]) -> Result<()> {
        put(&self.store, &self.bucket, name, data, WriteCondition::Always).await
    }

    pub(crate) async fn get(&self, name: &str) -> Option<Vec<u8>> {
        get(&self.store, &self.bucket, name).await.unwrap()
    }

    /// A copy that shares the whole layout.
    pub(crate) async fn copy(&self, from: &str, to: &str) -> Result<()> {
        copy(&self.store, &self.bucket, from, to).await
    }

    pub(crate) async fn create_upload(&self, name: &str) -> LayoutId {
        self.store
            .create_upload(&self.bucket, &key(name), NewUpload::default())
            .await
            .unwrap()
    }

    pub(crate) async fn put_part(
        &self,
        name: &str,
        upload: LayoutId,
        number: u16,
        data: &[u8],
    ) -> Result<CompletedPart> {
        put_part(&self.store, &self.bucket, name, upload, number, data).await
    }

    pub(crate) async fn complete(&self, name: &str, upload: LayoutId, parts: &[CompletedPart]) -> Result<ObjectRecord> {
        complete(&self.store, &self.bucket, name, upload, parts).await
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        let list = ListObjects {
            limit: 1000,
            ..ListObjects::default()
        };
        let listing = self.store.list_objects(&self.bucket, &list).await.unwrap();
        listing.entries.iter().map(|entry| entry.name().to_owned()).collect()
    }

    /// All versions and delete markers.
    pub(crate) async fn versions(&self) -> Vec<(String, Version)> {
        let mut list = ListVersions::default();
        list.keys.limit = 1000;
        let listing = self.store.list_versions(&self.bucket, &list).await.unwrap();
        assert!(!listing.more);
        let versions = listing.entries.into_iter().map(|entry| match entry {
            ListingEntry::Key(name, entry) => (name, entry.version),
            ListingEntry::CommonPrefix(prefix) => panic!("nothing is folded into {prefix}"),
        });
        versions.collect()
    }

    /// Keys of the index that begin with `prefix`.
    pub(crate) async fn rows(&self, prefix: &[u8]) -> Vec<Bytes> {
        let snapshot = self.kv.snapshot().await.unwrap();
        let mut range = prefix_range(prefix);
        let mut keys = Vec::new();
        loop {
            let scan = Scan {
                range: range.clone(),
                limit: 1024,
                order: Order::Ascending,
            };
            let page = snapshot.scan(&scan).await.unwrap();
            keys.extend(page.rows.into_iter().map(|(key, _)| key));
            if !page.more {
                return keys;
            }
            range.start = [&keys.last().unwrap()[..], &[0]].concat().into();
        }
    }

    pub(crate) async fn listed_blobs(&self) -> BTreeSet<BlobId> {
        self.blobs.list(None, usize::MAX).await.unwrap().into_iter().collect()
    }

    /// Sweeps what can be swept, as if a day had passed, and checks that blobs and index agree.
    pub(crate) async fn check_consistent(&self) {
        self.clock.advance_millis(25 * 60 * 60 * 1000);
        self.settle().await;
        let mut used = BTreeSet::new();
        for row in self.rows(b"X").await {
            let owner = LayoutId(row[1..17].try_into().unwrap());
            let index = u64::from_be_bytes(row[17..25].try_into().unwrap());
            used.insert(BlobId { owner, index });
        }
        assert_eq!(self.listed_blobs().await, used, "the blobs are those in use");
        for table in [b"I", b"D", b"E"] {
            assert_eq!(self.rows(table).await, Vec::<Bytes>::new(), "nothing is left to sweep");
        }
        for name in self.names().await {
            self.get(&name).await.expect("what is listed can be read");
        }
        self.check_usage().await;
    }

    /// Checks that what was counted all along is what a count from the start gives, and what the objects are.
    pub(crate) async fn check_usage(&self) {
        let counted = self.counters().await;
        self.store.recount().await.unwrap();
        assert_eq!(self.counters().await, counted, "the counters are what there is");
        let usage = self.store.usage(&self.bucket).await.unwrap();
        let objects = self.versions().await;
        let objects = objects
            .iter()
            .filter(|(_, version)| matches!(version, Version::Object(_)));
        assert_eq!(usage.objects, objects.count() as u64);
    }

    async fn counters(&self) -> Vec<(Bytes, Bytes)> {
        let snapshot = self.kv.snapshot().await.unwrap();
        let scan = Scan {
            range: prefix_range(b"W"),
            limit: 1024,
            order: Order::Ascending,
        };
        let page = snapshot.scan(&scan).await.unwrap();
        assert!(!page.more);
        page.rows
    }

    /// Another process comes, finds what this one has staged, and takes it for abandoned.
    pub(crate) async fn reopen_elsewhere(&self) {
        let other = open(&self.kv, &self.blobs, &self.clock, self.limits).await;
        other.recover(2).await.unwrap();
    }

    /// Checks that no blob has just an intent.
    pub(crate) async fn check_no_intents(&self) {
        assert_eq!(self.rows(b"I").await, Vec::<Bytes>::new(), "recovery leaves no intent");
    }

    /// Sweeps until no blob has just an intent: seals that had begun end by themselves, and then give their blobs up.
    async fn settle(&self) {
        for _ in 0..1000 {
            self.store.sweep_intents(self.store.now()).await.unwrap();
            self.store.sweep().await.unwrap();
            if self.rows(b"I").await.is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Checks that all can be read, deletes it, and checks that nothing is left.
    pub(crate) async fn check_nothing_left(&self) {
        self.check_consistent().await;
        let report = fsck(&self.kv, &self.blobs, &FsckOptions::default(), &mut |_| {})
            .await
            .unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        self.check_deletes_all().await;
    }

    /// Deletes everything, and checks that nothing is left.
    pub(crate) async fn check_deletes_all(&self) {
        let any = DeleteCondition::default();
        for (name, version) in self.versions().await {
            let (name, version) = (key(&name), version.stamp().id());
            let deleted = self.store.delete_version(&self.bucket, &name, version, &any);
            assert!(deleted.await.unwrap().existed);
        }
        let list = ListUploads {
            keys: ListObjects {
                limit: 1000,
                ..ListObjects::default()
            },
            after_upload: None,
        };
        for entry in self.store.list_uploads(&self.bucket, &list).await.unwrap().entries {
            if let ListingEntry::Key(name, upload) = entry {
                self.store
                    .abort_upload(&self.bucket, &key(&name), upload.id)
                    .await
                    .unwrap();
            }
        }
        self.check_consistent().await;
        assert_eq!(self.listed_blobs().await, BTreeSet::new());
        self.store.delete_bucket(&self.bucket).await.unwrap();
        let left: Vec<Bytes> = self.rows(b"").await.into_iter().filter(|row| row[0] != b'M').collect();
        assert_eq!(left, Vec::<Bytes>::new(), "no row is left");
    }
}

async fn open(kv: &Arc<dyn Kv>, blobs: &Arc<dyn Blobs>, clock: &Arc<ManualClock>, limits: Limits) -> Store {
    let clock: Arc<dyn Clock> = clock.clone();
    Store::open_with(Arc::clone(kv), Arc::clone(blobs), clock, limits)
        .await
        .unwrap()
}

pub(crate) async fn put(
    store: &Store,
    bucket: &BucketName,
    name: &str,
    data: &[u8],
    condition: WriteCondition,
) -> Result<()> {
    let ingested = store.ingest(body(data, 100_000), IngestOptions::default()).await?;
    let new = NewObject {
        condition,
        ..new_object(ingested.content, hex::encode(ingested.digests.md5))
    };
    store.put_object(bucket, &key(name), new, |_, _| Ok(Vec::new())).await?;
    Ok(())
}

pub(crate) async fn copy(store: &Store, bucket: &BucketName, from: &str, to: &str) -> Result<()> {
    let source = store.open_object(bucket, &key(from)).await?;
    let content = store.content_builder(Some(&source)).await?.share(&source);
    let new = new_object(content, source.record.etag.clone());
    store.put_object(bucket, &key(to), new, |_, _| Ok(Vec::new())).await?;
    Ok(())
}

pub(crate) async fn get(store: &Store, bucket: &BucketName, name: &str) -> Result<Option<Vec<u8>>> {
    let open = match store.open_object(bucket, &key(name)).await {
        Err(e) if e.kind() == ErrorKind::NoSuchKey => return Ok(None),
        open => open?,
    };
    let stream = open.reader().stream(0..u64::MAX);
    let chunks: Vec<Bytes> = stream.boxed().try_collect().await?;
    Ok(Some(chunks.concat()))
}

pub(crate) async fn put_part(
    store: &Store,
    bucket: &BucketName,
    name: &str,
    upload: LayoutId,
    number: u16,
    data: &[u8],
) -> Result<CompletedPart> {
    let number = PartNumber::new(i64::from(number)).unwrap();
    let options = IngestOptions {
        upload: Some(upload),
        ..IngestOptions::default()
    };
    let ingested = store.ingest(body(data, 100_000), options).await?;
    let etag = hex::encode(ingested.digests.md5);
    store
        .put_part(bucket, &key(name), number, ingested.content, etag.clone(), None)
        .await?;
    Ok(CompletedPart {
        number,
        etag,
        checksum: None,
    })
}

pub(crate) async fn complete(
    store: &Store,
    bucket: &BucketName,
    name: &str,
    upload: LayoutId,
    parts: &[CompletedPart],
) -> Result<ObjectRecord> {
    let (key, condition) = (key(name), WriteCondition::Always);
    let completed = store.complete_upload(bucket, &key, upload, parts, &condition, |_, _| Ok(Vec::new()));
    Ok(completed.await?.record)
}
