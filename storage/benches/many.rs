//! A store of very many objects: what the index takes, how long opening it takes, and a page of a listing.
//!
//! `make bench-many`, or `cargo bench --bench many`. `LITHOS_BENCH_OBJECTS` says how many (ten million without it),
//! `LITHOS_BENCH_FOLDER` where to leave the store, for a server to be started on; without it, it is removed. A store that is
//! there already is not filled again.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at the first surprise"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use lithos_storage::{
    BucketName, ContentHeaders, IngestOptions, ListObjects, NewObject, ObjectKey, Store, Tags, WriteCondition,
    blob::FsBlobs,
    clock::{ManualClock, Timestamp},
    kv::RocksKv,
};

/// Objects of a folder, so that a listing has something to fold.
const PER_FOLDER: u64 = 1000;
/// Writers at a time, as many clients would be.
const WRITERS: usize = 256;
/// Pages that are listed, at places all over the bucket.
const PAGES: u64 = 200;

#[tokio::main]
async fn main() {
    let count = std::env::var("LITHOS_BENCH_OBJECTS").map_or(10_000_000, |count| count.parse().unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("LITHOS_BENCH_FOLDER").map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let bucket: BucketName = "many".parse().unwrap();

    let store = open(&folder).await;
    if store.bucket(&bucket).await.is_err() {
        let begun = Instant::now();
        fill(&store, &bucket, count).await;
        let took = begun.elapsed();
        println!(
            "{count} objects of 100 bytes put in {:.0} s: {:.0} a second, each durable",
            took.as_secs_f64(),
            per_second(count, took)
        );
    }
    drop(store);
    let index = folder_len(&folder.join("index"));
    println!("index: {} MiB, {} bytes an object", index >> 20, index / count);

    let begun = Instant::now();
    let store = open(&folder).await;
    store.recover(1).await.unwrap();
    println!("opened and recovered in {:.2?}", begun.elapsed());
    list(&store, &bucket, count, "").await;
    list(&store, &bucket, count, "/").await;
}

async fn open(folder: &Path) -> Store {
    std::fs::create_dir_all(folder).unwrap();
    let kv = RocksKv::open(&folder.join("index")).unwrap();
    let blobs = FsBlobs::open(&folder.join("blobs")).unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp(1_700_000_000_000)));
    Store::open(Arc::new(kv), Arc::new(blobs), clock).await.unwrap()
}

/// Keys are written in no order, as clients write them.
fn key_of(number: u64, count: u64) -> String {
    let number = number.wrapping_mul(7_919_000_003) % count;
    format!("folder-{:06}/image-{number:010}.qcow2", number / PER_FOLDER)
}

async fn fill(store: &Store, bucket: &BucketName, count: u64) {
    store
        .create_bucket(bucket, None, Tags::new(), "owner".to_owned())
        .await
        .unwrap();
    stream::iter(0..count)
        .for_each_concurrent(WRITERS, |number| async move {
            let (store, bucket) = (store.clone(), bucket.clone());
            tokio::spawn(async move { put(&store, &bucket, &key_of(number, count)).await })
                .await
                .unwrap();
        })
        .await;
}

async fn put(store: &Store, bucket: &BucketName, name: &str) {
    let key: ObjectKey = name.parse().unwrap();
    let body = Bytes::from(format!("{name:100}"));
    let ingested = store
        .ingest(stream::once(async { Ok(body) }), IngestOptions::default())
        .await
        .unwrap();
    let new = NewObject {
        content: ingested.content,
        etag: hex::encode(ingested.digests.md5),
        headers: ContentHeaders {
            content_type: Some("application/octet-stream".to_owned()),
            ..ContentHeaders::default()
        },
        metadata: BTreeMap::new(),
        tags: Tags::new(),
        checksum: None,
        part_sizes: Vec::new(),
        annotations: BTreeMap::new(),
        owner: "owner".to_owned(),
        last_modified: None,
        condition: WriteCondition::Always,
        fence: None,
        source: None,
    };
    store
        .put_object(bucket, &key, new, |_, _| Ok(Vec::new()))
        .await
        .unwrap();
}

async fn list(store: &Store, bucket: &BucketName, count: u64, delimiter: &str) {
    let mut times = Vec::new();
    for page in 0..PAGES {
        let list = ListObjects {
            delimiter: delimiter.to_owned(),
            after: key_of(page * 104_729, count),
            limit: 1000,
            ..ListObjects::default()
        };
        let begun = Instant::now();
        let found = store.list_objects(bucket, &list).await.unwrap();
        times.push(begun.elapsed());
        std::hint::black_box(found.entries.len());
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    let what = if delimiter.is_empty() {
        "keys"
    } else {
        "common prefixes"
    };
    println!(
        "a page of 1,000 {what}, anywhere: {:.1?} in the median, {:.1?} for 99 of 100",
        at(50),
        at(99)
    );
}

fn per_second(count: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64()
}

fn folder_len(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}
