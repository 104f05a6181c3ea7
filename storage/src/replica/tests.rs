use std::collections::BTreeSet;

use super::*;
use crate::{
    IngestOptions, NewObject, OpenObject, WriteCondition,
    blob::MemoryBlobs,
    clock::ManualClock,
    job::NewJob,
    kv::MemoryKv,
    layout::{ExtentList, Piece},
    schema::{ContentHeaders, Tags},
};

/// A little more than a day.
const LONG: u64 = 25 * 60 * 60 * 1000;

/// A server's store, and what it stands on.
struct Site {
    store: Store,
    clock: Arc<ManualClock>,
    kv: Arc<MemoryKv>,
}

impl Site {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000)));
        let kv = Arc::new(MemoryKv::new());
        let store = Store::open(kv.clone(), Arc::new(MemoryBlobs::new()), clock.clone())
            .await
            .unwrap();
        let site = Self { store, clock, kv };
        site.store
            .create_bucket(&bucket(), None, Tags::new(), "root".into())
            .await
            .unwrap();
        site
    }

    /// The same site after its process was killed.
    async fn restart(self) -> Self {
        let blobs = Arc::clone(self.store.blobs());
        let store = Store::open(self.kv.clone(), blobs, self.clock.clone()).await.unwrap();
        store.recover(1).await.unwrap();
        Self { store, ..self }
    }

    async fn blobs(&self) -> BTreeSet<BlobId> {
        self.store
            .blobs()
            .list(None, 100_000)
            .await
            .unwrap()
            .into_iter()
            .collect()
    }

    async fn put(&self, name: &str, content: crate::Content) -> OpenObject {
        let new = NewObject {
            content,
            etag: format!("etag of {name}"),
            headers: ContentHeaders::default(),
            metadata: [("colour".to_owned(), "blue".to_owned())].into(),
            tags: [("replicate-to".to_owned(), "az2".to_owned())].into(),
            checksum: None,
            part_sizes: Vec::new(),
            annotations: [("image-format".to_owned(), "raw".to_owned())].into(),
            owner: "root".into(),
            last_modified: None,
            condition: WriteCondition::Always,
            fence: None,
            source: None,
        };
        self.store
            .put_object(&bucket(), &key(name), new, |_, _| Ok(Vec::new()))
            .await
            .unwrap();
        self.store.open_object(&bucket(), &key(name)).await.unwrap()
    }

    async fn put_bytes(&self, name: &str, bytes: Bytes) -> OpenObject {
        let body = stream::iter([Ok(bytes)]);
        let ingested = self.store.ingest(body, IngestOptions::default()).await.unwrap();
        self.put(name, ingested.content).await
    }

    /// A header of its own, then the bytes of `source`: what a conversion makes.
    async fn derive(&self, source: &OpenObject, name: &str) -> OpenObject {
        let mut builder = self.store.content_builder(Some(source)).await.unwrap();
        builder.push_bytes(noise(70_000, 99)).await.unwrap();
        builder
            .push_range(&mut source.reader(), 0, source.record.size())
            .await
            .unwrap();
        self.put(name, builder.finish().await.unwrap()).await
    }

    async fn read(&self, name: &str) -> Vec<u8> {
        let object = self.store.open_object(&bucket(), &key(name)).await.unwrap();
        let chunks: Vec<_> = object.reader().stream(0..u64::MAX).collect().await;
        chunks.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect()
    }

    async fn sweep_after_a_day(&self) {
        self.clock.advance_millis(LONG);
        self.store.sweep_intents(self.store.now()).await.unwrap();
        self.store.sweep().await.unwrap();
    }

    async fn delete(&self, name: &str) {
        assert!(self.store.delete_object(&bucket(), &key(name)).await.unwrap());
        self.store.sweep().await.unwrap();
    }
}

fn bucket() -> BucketName {
    "images".parse().unwrap()
}

fn key(name: &str) -> ObjectKey {
    name.parse().unwrap()
}

fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] | 1
    };
    (0..len).map(next).collect::<Vec<_>>().into()
}

fn framed(data: &[u8]) -> Vec<u8> {
    let mut crc = crc64();
    crc.update(data);
    [data, &crc.finalize().to_be_bytes()].concat()
}

fn chunks(bytes: &[u8], len: usize) -> impl Stream<Item = std::result::Result<Bytes, BodyError>> + Send + use<> {
    stream::iter(
        bytes
            .chunks(len)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect::<Vec<_>>(),
    )
}

fn a_blob() -> BlobId {
    BlobId {
        owner: LayoutId([7; 16]),
        index: 1,
    }
}

/// Sends what is missing of `object`, and says how many blobs that were.
async fn send(from: &Site, to: &Site, object: &OpenObject) -> usize {
    let ids = from.store.blobs_of(object).await.unwrap();
    let missing = to.store.missing_blobs(&ids).await.unwrap();
    assert_eq!(missing.pending, []);
    for id in &missing.absent {
        let (len, body) = from.store.send_blob(*id).await.unwrap();
        to.store
            .receive_blob(*id, len, body.map(|chunk| chunk.map_err(Into::into)))
            .await
            .unwrap();
    }
    missing.absent.len()
}

async fn commit(to: &Site, name: &str, record: &ObjectRecord) -> ReplicaOutcome {
    let replica = Replica::decode(&Replica::encode(record)).unwrap();
    to.store.commit_replica(&bucket(), &key(name), replica).await.unwrap()
}

async fn replicate(from: &Site, to: &Site, object: &OpenObject, name: &str) -> usize {
    let sent = send(from, to, object).await;
    assert!(matches!(
        commit(to, name, &object.record).await,
        ReplicaOutcome::Committed(_)
    ));
    sent
}

#[tokio::test]
async fn a_replica_is_the_object_and_what_is_derived_from_it_costs_only_its_own_blobs() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let bytes = noise(3 << 20, 1);
    let raw = az1.put_bytes("a.img", bytes.clone()).await;
    assert_eq!(replicate(&az1, &az2, &raw, "a.img").await, 1);
    assert_eq!(replicate(&az1, &az2, &raw, "a.img").await, 0);
    let there = az2.store.open_object(&bucket(), &key("a.img")).await.unwrap();
    assert_eq!(there.record, raw.record);
    assert_eq!(az2.read("a.img").await, bytes);

    let derived = az1.derive(&raw, "a.qcow2").await;
    assert_eq!(az1.store.blobs_of(&derived).await.unwrap().len(), 2);
    assert_eq!(replicate(&az1, &az2, &derived, "a.qcow2").await, 1);
    assert_eq!(az2.read("a.qcow2").await, az1.read("a.qcow2").await);

    // The source goes first: the derived one keeps its blobs, and gives them back.
    drop(there);
    az2.delete("a.img").await;
    az2.sweep_after_a_day().await;
    assert_eq!(az2.read("a.qcow2").await.len(), 70_000 + bytes.len());
    az2.delete("a.qcow2").await;
    assert_eq!(az2.blobs().await.len(), 0);
}

#[tokio::test]
async fn a_derived_object_may_come_before_its_source() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    let derived = az1.derive(&raw, "a.qcow2").await;
    assert_eq!(replicate(&az1, &az2, &derived, "a.qcow2").await, 2);
    az2.sweep_after_a_day().await;
    assert_eq!(replicate(&az1, &az2, &raw, "a.img").await, 0);
    az2.delete("a.qcow2").await;
    az2.sweep_after_a_day().await;
    assert_eq!(az2.read("a.img").await, az1.read("a.img").await);
    az2.delete("a.img").await;
    assert_eq!(az2.blobs().await.len(), 0);
}

#[tokio::test]
async fn small_and_empty_objects_need_no_blob() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    for (name, len) in [("empty", 0), ("small", 100)] {
        let object = az1.put_bytes(name, noise(len, 3)).await;
        assert_eq!(replicate(&az1, &az2, &object, name).await, 0);
        assert_eq!(az2.read(name).await, noise(len, 3));
    }
}

#[tokio::test]
async fn a_layout_that_fills_pages_is_sent_with_them() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(2 << 20, 1)).await;
    let mut builder = az1.store.content_builder(Some(&raw)).await.unwrap();
    for extent in 0..1500 {
        builder.push_range(&mut raw.reader(), extent * 1000, 500).await.unwrap();
    }
    let paged = az1.put("paged", builder.finish().await.unwrap()).await;
    assert!(matches!(paged.record.layout, Layout::Paged(_)));

    let outcome = commit(&az2, "paged", &paged.record).await;
    assert!(matches!(outcome, ReplicaOutcome::Incomplete(_)), "{outcome:?}");
    assert_eq!(replicate(&az1, &az2, &paged, "paged").await, 2);
    assert_eq!(az2.read("paged").await, az1.read("paged").await);
    az2.sweep_after_a_day().await;
    assert_eq!(az2.read("paged").await.len(), 750_000);
    az2.delete("paged").await;
    assert_eq!(az2.blobs().await.len(), 0);
}

#[tokio::test]
async fn an_object_may_have_more_blobs_and_owners_than_a_transaction_holds() {
    let az2 = Site::new().await;
    let mut list = ExtentList::default();
    let count: u16 = 700;
    for number in 0..count {
        let mut owner = [1; 16];
        owner[..2].copy_from_slice(&number.to_be_bytes());
        let id = BlobId {
            owner: LayoutId(owner),
            index: 5,
        };
        let body = framed(&[b'x'; 10]);
        az2.store
            .receive_blob(id, body.len() as u64, chunks(&body, 7))
            .await
            .unwrap();
        let extent = Extent::Blob { id, offset: 0 };
        list.push(Piece { len: 10, extent });
    }
    let az1 = Site::new().await;
    let mut record = az1.put_bytes("x", Bytes::new()).await.record.clone();
    record.layout = Layout::Listed(list);
    assert!(matches!(commit(&az2, "x", &record).await, ReplicaOutcome::Committed(_)));
    az2.sweep_after_a_day().await;
    assert_eq!(az2.read("x").await, [b'x'; 7000]);
    az2.delete("x").await;
    assert_eq!(az2.blobs().await.len(), 0);
}

#[tokio::test]
async fn what_is_not_a_whole_blob_is_refused_and_leaves_nothing() {
    let az2 = Site::new().await;
    let good = framed(b"some bytes");
    let mut wrong_checksum = good.clone();
    *wrong_checksum.last_mut().unwrap() ^= 1;
    let mut wrong_byte = good.clone();
    wrong_byte[0] ^= 1;
    let longer = [&good[..], b"!"].concat();
    let len = good.len() as u64;
    let cases: [(&str, &[u8], u64, ErrorKind); 7] = [
        ("wrong checksum", &wrong_checksum, len, ErrorKind::InvalidArgument),
        ("wrong byte", &wrong_byte, len, ErrorKind::InvalidArgument),
        (
            "ends within the checksum",
            &good[..good.len() - 1],
            len,
            ErrorKind::IncompleteBody,
        ),
        ("ends within the blob", &good[..4], len, ErrorKind::IncompleteBody),
        ("goes on", &longer, len, ErrorKind::IncompleteBody),
        ("too short to have a checksum", &good[..7], 7, ErrorKind::IncompleteBody),
        (
            "declared too long",
            &good,
            BLOB_LEN_MAX + BLOB_TRAILER_LEN + 1,
            ErrorKind::TooLarge,
        ),
    ];
    for (name, body, len, expected) in cases {
        for cut in [1, 3, 100] {
            let error = az2
                .store
                .receive_blob(a_blob(), len, chunks(body, cut))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), expected, "{name}: {error}");
            az2.store.sweep().await.unwrap();
            assert_eq!(az2.blobs().await.len(), 0, "{name}");
        }
    }
    let broken = chunks(&good[..4], 4).chain(stream::iter([Err("reset".into())]));
    let error = az2.store.receive_blob(a_blob(), len, broken).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BodyFailed);
    az2.store.sweep().await.unwrap();
    az2.store.receive_blob(a_blob(), len, chunks(&good, 100)).await.unwrap();
    assert_eq!(az2.blobs().await.len(), 1);
}

#[tokio::test]
async fn one_sender_at_a_time_has_the_name_of_a_blob() {
    let az2 = Site::new().await;
    let body = framed(b"some bytes");
    let len = body.len() as u64;
    let missing = async || az2.store.missing_blobs(&[a_blob()]).await.unwrap();
    let never = stream::once(async { Ok(Bytes::from_static(b"some")) }).chain(stream::pending());
    {
        let mut first = std::pin::pin!(az2.store.receive_blob(a_blob(), len, never));
        assert!(futures::poll!(&mut first).is_pending());
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(futures::poll!(&mut first).is_pending());
        }
        assert_eq!(missing().await.pending, [a_blob()]);
        let second = az2
            .store
            .receive_blob(a_blob(), len, chunks(&body, 5))
            .await
            .unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Contended);
    }
    // The first was cut off. Until the sweep has cleared up behind it the name is taken.
    assert_eq!(missing().await.pending, [a_blob()]);
    az2.store.sweep().await.unwrap();
    assert_eq!(missing().await.absent, [a_blob()]);
    az2.store.receive_blob(a_blob(), len, chunks(&body, 5)).await.unwrap();
    assert_eq!(missing().await, MissingBlobs::default());
    // Once more does no harm, whatever it says.
    az2.store
        .receive_blob(a_blob(), len, chunks(b"rubbish", 5))
        .await
        .unwrap();
    az2.store.sweep().await.unwrap();
    assert_eq!(az2.blobs().await.len(), 1);
}

#[tokio::test]
async fn blobs_that_arrived_survive_a_restart_and_expire_unless_they_are_offered_again() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    assert_eq!(send(&az1, &az2, &raw).await, 1);
    let az2 = az2.restart().await;
    az2.clock.advance_millis(LONG * 2 / 3);
    assert_eq!(send(&az1, &az2, &raw).await, 0);
    az2.clock.advance_millis(LONG * 2 / 3);
    az2.store.sweep_intents(az2.store.now()).await.unwrap();
    assert_eq!(send(&az1, &az2, &raw).await, 0);
    az2.sweep_after_a_day().await;
    assert_eq!(az2.blobs().await.len(), 0);
    let outcome = commit(&az2, "a.img", &raw.record).await;
    assert!(matches!(outcome, ReplicaOutcome::Incomplete(_)), "{outcome:?}");
    assert_eq!(replicate(&az1, &az2, &raw, "a.img").await, 1);
}

#[tokio::test]
async fn a_replication_that_stops_half_way_is_cleared_and_can_begin_again() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    let derived = az1.derive(&raw, "a.qcow2").await;
    let mut ids: Vec<(BlobId, u64)> = az1
        .store
        .blobs_of(&derived)
        .await
        .unwrap()
        .into_iter()
        .map(|id| (id, 0))
        .collect();
    send(&az1, &az2, &derived).await;
    // Adopted, and then the process is killed.
    az2.store
        .adopt_replicated(derived.record.layout_id, &ids)
        .await
        .unwrap();
    let az2 = az2.restart().await;
    az2.store.sweep().await.unwrap();
    assert_eq!(az2.blobs().await.len(), 2);
    az2.sweep_after_a_day().await;
    assert_eq!(az2.blobs().await.len(), 0);
    ids.reverse();
    let gone = az2
        .store
        .adopt_replicated(derived.record.layout_id, &ids)
        .await
        .unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(replicate(&az1, &az2, &derived, "a.qcow2").await, 2);
    assert_eq!(az2.read("a.qcow2").await, az1.read("a.qcow2").await);
}

#[tokio::test]
async fn what_the_receiver_deletes_between_offer_and_commit_is_offered_again() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    let derived = az1.derive(&raw, "a.qcow2").await;
    replicate(&az1, &az2, &raw, "a.img").await;
    assert_eq!(send(&az1, &az2, &derived).await, 1);
    az2.delete("a.img").await;
    let outcome = commit(&az2, "a.qcow2", &derived.record).await;
    assert!(matches!(outcome, ReplicaOutcome::Incomplete(_)), "{outcome:?}");
    assert_eq!(replicate(&az1, &az2, &derived, "a.qcow2").await, 1);
    assert_eq!(az2.read("a.qcow2").await, az1.read("a.qcow2").await);
}

#[tokio::test]
async fn a_newer_object_stays_and_the_same_version_is_brought_up_to_date() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    az2.clock.advance_millis(1);
    let newer = az2.put_bytes("a.img", noise(10, 2)).await;
    send(&az1, &az2, &raw).await;
    assert!(matches!(
        commit(&az2, "a.img", &raw.record).await,
        ReplicaOutcome::Superseded
    ));
    assert_eq!(
        az2.store.open_object(&bucket(), &key("a.img")).await.unwrap().record,
        newer.record
    );
    az2.sweep_after_a_day().await;
    assert_eq!(az2.blobs().await.len(), 0);

    replicate(&az1, &az2, &raw, "b.img").await;
    let job = |_: &BucketRecord, _: &mut ObjectRecord| {
        let (kind, subject) = ("convert".to_owned(), "b.img".to_owned());
        Ok(vec![NewJob {
            kind,
            subject,
            payload: Vec::new(),
        }])
    };
    let with_job = az2
        .store
        .update_object(&bucket(), &key("b.img"), None, job)
        .await
        .unwrap();
    let mut record = raw.record.clone();
    record.tags.insert("colour".into(), "red".into());
    assert!(matches!(
        commit(&az2, "b.img", &record).await,
        ReplicaOutcome::Committed(_)
    ));
    let there = az2.store.open_object(&bucket(), &key("b.img")).await.unwrap();
    assert_eq!(there.record.tags, record.tags);
    assert_eq!(there.record.jobs, with_job.jobs);
    az2.sweep_after_a_day().await;
    assert_eq!(az2.read("b.img").await, az1.read("a.img").await);
}

/// The versions of a.img here, the newest first: the layout, or none for a delete marker.
async fn versions(site: &Site) -> Vec<Option<LayoutId>> {
    let mut list = crate::ListVersions::default();
    list.keys.limit = 100;
    let listing = site.store.list_versions(&bucket(), &list).await.unwrap();
    let entries = listing.entries.into_iter().map(|entry| match entry {
        crate::ListingEntry::Key(_, entry) => match entry.version {
            crate::Version::Object(record) => Some(record.layout_id),
            crate::Version::DeleteMarker(_) => None,
        },
        crate::ListingEntry::CommonPrefix(prefix) => panic!("{prefix}"),
    });
    entries.collect()
}

#[tokio::test]
async fn replicas_are_versions_of_the_bucket_here() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let enabled = |bucket: &mut BucketRecord| bucket.versioning = crate::Versioning::Enabled;
    for site in [&az1, &az2] {
        site.store.update_bucket(&bucket(), enabled).await.unwrap();
    }
    let first = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    replicate(&az1, &az2, &first, "a.img").await;
    az1.clock.advance_millis(1);
    az2.clock.advance_millis(1);
    let second = az1.put_bytes("a.img", noise(1 << 20, 2)).await;
    replicate(&az1, &az2, &second, "a.img").await;
    replicate(&az1, &az2, &second, "a.img").await;
    let (one, two) = (first.record.layout_id, second.record.layout_id);
    assert_eq!(versions(&az2).await, [Some(two), Some(one)]);
    let there = az2.store.open_object(&bucket(), &key("a.img")).await.unwrap();
    assert_ne!(
        there.record.version, second.record.version,
        "the id is this server's own"
    );
    drop(there);

    // A delete here stands until the object comes again, and then it is not kept twice.
    az2.delete("a.img").await;
    assert_eq!(versions(&az2).await, [None, Some(two), Some(one)]);
    replicate(&az1, &az2, &second, "a.img").await;
    assert_eq!(versions(&az2).await, [Some(two), None, Some(one)]);
    assert_eq!(az2.store.usage(&bucket()).await.unwrap().objects, 2);
    assert_eq!(
        az2.store.usage(&bucket()).await.unwrap().bytes,
        first.record.size() + second.record.size()
    );
    assert_eq!(az2.read("a.img").await, az1.read("a.img").await);
    az2.sweep_after_a_day().await;
    assert_eq!(az2.blobs().await.len(), 2);
    let (kv, blobs) = (&az2.store.core.kv, &az2.store.core.blobs_unwatched);
    let report = crate::fsck::fsck(kv, blobs, &crate::fsck::FsckOptions::default(), &mut |_| {})
        .await
        .unwrap();
    assert_eq!(report.findings, []);
}

#[tokio::test]
async fn layouts_that_lie_about_their_blobs_are_refused() {
    let (az1, az2) = (Site::new().await, Site::new().await);
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    send(&az1, &az2, &raw).await;
    let id = az1.store.blobs_of(&raw).await.unwrap()[0];
    let mut list = ExtentList::default();
    let extent = Extent::Blob { id, offset: 1 };
    list.push(Piece { len: 1 << 20, extent });
    let mut record = raw.record.clone();
    record.layout = Layout::Listed(list);
    let error = az2
        .store
        .commit_replica(&bucket(), &key("a.img"), Replica { record })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(Replica::decode(b"\x80").unwrap_err().kind(), ErrorKind::InvalidArgument);

    let nowhere = "nowhere".parse().unwrap();
    let replica = Replica {
        record: raw.record.clone(),
    };
    let error = az2
        .store
        .commit_replica(&nowhere, &key("a.img"), replica)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchBucket);
}
