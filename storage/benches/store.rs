//! What the store can do on this machine: `cargo bench -p lithos-storage`.
//!
//! Figures depend on the disk, whose syncs bound small puts; so bodies are compared with MD5 alone, measured in the same
//! run; compressed blobs with plain ones (`cargo bench -p lithos-storage -- compressed` for these alone). Temporary files go to `TMPDIR`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and stops at the first surprise"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use lithos_storage::{
    BucketName, Content, ContentHeaders, IngestOptions, NewObject, ObjectKey, Store, Tags, WriteCondition,
    blob::{BLOB_LEN_MAX, Blob, BlobId, Blobs, Compression, FsBlobs},
    clock::{ManualClock, Timestamp},
    kv::RocksKv,
    layout::Layout,
};
use md5::{Digest, Md5};

const GIB: u64 = 1 << 30;
const CHUNK: usize = 64 << 10;
const ENTRIES: u64 = 16 << 20;

const MIB: u64 = 1 << 20;

#[derive(Clone)]
struct Bench {
    store: Store,
    bucket: BucketName,
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(&folder.path().join("index")).unwrap();
    let blobs = FsBlobs::open(folder.path()).unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp(1)));
    let store = Store::open(Arc::new(kv), Arc::new(blobs), clock).await.unwrap();
    let bucket: BucketName = "bench".parse().unwrap();
    store
        .create_bucket(&bucket, None, Tags::new(), String::new())
        .await
        .unwrap();
    let bench = Bench { store, bucket };
    // `cargo bench -- compressed` runs only that part.
    if !std::env::args().any(|argument| argument == "compressed") {
        bench.all().await;
    }
    compressed(folder.path()).await;
}

/// What repacking saves and costs, on files of this machine.
async fn compressed(folder: &Path) {
    let blobs = FsBlobs::open(&folder.join("compressed")).unwrap();
    let mut corpus = Vec::new();
    gather(Path::new("/usr/lib"), &mut corpus);
    let corpus = Bytes::from(corpus);
    let blob_of = |index: u64| -> BlobId { format!("{:032x}-{index:016x}", 1).parse().unwrap() };
    let forms = [(0, None), (1, Some(1)), (3, Some(3)), (9, Some(9))];
    for (index, level) in forms {
        let mut writer = blobs.create(blob_of(index)).await.unwrap();
        writer.append(corpus.clone()).await.unwrap();
        writer.seal().await.unwrap();
        let Some(level) = level else { continue };
        let begun = Instant::now();
        let repacked = blobs.repack(blob_of(index), Compression::Zstd(level)).await.unwrap();
        println!(
            "repack {} MiB of /usr/lib at level {level}: {:.0} MiB/s, to {:.1} % of it",
            corpus.len() >> 20,
            mib_per_second(corpus.len() as u64, begun.elapsed()),
            100.0 * repacked.after as f64 / repacked.before as f64
        );
    }
    for len in [MIB, 64 << 10, 4 << 10] {
        let mut plain = None;
        for (index, level) in forms {
            let blob = blobs.open(blob_of(index)).await.unwrap();
            random_reads(&*blob, len).await;
            let mean = random_reads(&*blob, len).await;
            let times = mean.as_secs_f64() / plain.get_or_insert(mean).as_secs_f64();
            let form = level.map_or("plain".to_owned(), |level| format!("level {level}"));
            println!(
                "read {} KiB anywhere, cached, {form}: {mean:.1?}, {times:.1} times plain",
                len >> 10
            );
        }
    }
}

/// The mean time of a read of `len` bytes that begins anywhere.
async fn random_reads(blob: &dyn Blob, len: u64) -> Duration {
    let mut state = 1_u64;
    let begun = Instant::now();
    for _ in 0..1000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (state >> 20) % (blob.len() - len);
        let bytes = blob.read(offset..offset + len).await.unwrap();
        assert_eq!(bytes.len() as u64, len);
    }
    begun.elapsed() / 1000
}

/// The files below a folder, one behind the other, until a blob is full.
fn gather(folder: &Path, corpus: &mut Vec<u8>) {
    let room = |corpus: &Vec<u8>| usize::try_from(BLOB_LEN_MAX).unwrap() - corpus.len();
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            gather(&entry.path(), corpus);
        } else if let Ok(bytes) = fs::read(entry.path())
            && kind.is_file()
        {
            corpus.extend(bytes.into_iter().take(room(corpus)));
        }
        if room(corpus) == 0 {
            return;
        }
    }
}

fn key(name: &str) -> ObjectKey {
    name.parse().unwrap()
}

/// Bytes that are not zero.
fn noise(len: usize) -> Bytes {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes().first().copied().unwrap_or(0) | 1
    };
    (0..len).map(|_| next()).collect()
}

fn mib_per_second(bytes: u64, took: Duration) -> f64 {
    let mib = u32::try_from(bytes >> 20).unwrap();
    f64::from(mib) / took.as_secs_f64()
}

impl Bench {
    async fn all(&self) {
        self.bodies().await;
        for size in [1 << 10, 16 << 10] {
            for concurrency in [1, 16, 64] {
                self.small_puts(size, concurrency).await;
            }
        }
        self.long_layout().await;
    }

    async fn put(&self, name: &str, content: Content, etag: String) {
        let new = NewObject {
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
        };
        let put = self
            .store
            .put_object(&self.bucket, &key(name), new, |_, _| Ok(Vec::new()))
            .await;
        put.unwrap();
    }

    async fn put_body(&self, name: &str, chunk: &Bytes, count: u64) {
        let body = stream::iter(std::iter::repeat_n(chunk.clone(), usize::try_from(count).unwrap())).map(Ok);
        let ingested = self.store.ingest(body, IngestOptions::default()).await.unwrap();
        let etag = hex::encode(ingested.digests.md5);
        self.put(name, ingested.content, etag).await;
    }

    async fn bodies(&self) {
        let chunk = noise(CHUNK);
        let count = GIB / CHUNK as u64;

        let begun = Instant::now();
        let mut md5 = Md5::new();
        for _ in 0..count {
            md5.update(&chunk);
        }
        std::hint::black_box(md5.finalize());
        let alone = begun.elapsed();
        println!("MD5 alone, 1 GiB: {:.0} MiB/s", mib_per_second(GIB, alone));

        let begun = Instant::now();
        self.put_body("large", &chunk, count).await;
        let took = begun.elapsed();
        let ratio = took.as_secs_f64() / alone.as_secs_f64();
        println!(
            "put, 1 GiB, durable: {:.0} MiB/s, {ratio:.2} times MD5 alone",
            mib_per_second(GIB, took)
        );

        let begun = Instant::now();
        self.put_body("zeros", &Bytes::from(vec![0; CHUNK]), count).await;
        println!("put, 1 GiB of zeros: {:.0} MiB/s", mib_per_second(GIB, begun.elapsed()));

        for name in ["large", "zeros"] {
            let begun = Instant::now();
            let open = self.store.open_object(&self.bucket, &key(name)).await.unwrap();
            let mut stream = open.reader().stream(0..u64::MAX);
            let mut read = 0;
            while let Some(chunk) = stream.next().await {
                read += chunk.unwrap().len() as u64;
            }
            assert_eq!(read, GIB);
            println!(
                "get {name}, 1 GiB, cached: {:.0} MiB/s",
                mib_per_second(GIB, begun.elapsed())
            );
        }
    }

    async fn small_puts(&self, size: usize, concurrency: usize) {
        let chunk = noise(size);
        let begun = Instant::now();
        let tasks: Vec<_> = (0..concurrency)
            .map(|task| {
                let (bench, chunk) = (self.clone(), chunk.clone());
                tokio::spawn(async move {
                    let mut puts = 0_u32;
                    while begun.elapsed() < Duration::from_secs(3) {
                        bench.put_body(&format!("small/{size}/{task}/{puts}"), &chunk, 1).await;
                        puts += 1;
                    }
                    puts
                })
            })
            .collect();
        let mut puts = 0;
        for task in tasks {
            puts += task.await.unwrap();
        }
        let rate = f64::from(puts) / begun.elapsed().as_secs_f64();
        println!(
            "puts of {} KiB, {concurrency} at a time: {rate:.0} a second",
            size >> 10
        );
    }

    /// 16 Mi extents, as a fragmented image of 1 TiB in clusters of 64 KiB has them at most.
    async fn long_layout(&self) {
        let cluster = 64 << 10;
        let source = self.store.open_object(&self.bucket, &key("large")).await.unwrap();
        let begun = Instant::now();
        let mut builder = self.store.content_builder(Some(&source)).await.unwrap();
        let mut reader = source.reader();
        for n in 0..ENTRIES {
            // Never the cluster behind the last one.
            builder
                .push_range(&mut reader, n * 7919 % (GIB / cluster) * cluster, cluster)
                .await
                .unwrap();
        }
        let content = builder.finish().await.unwrap();
        let Layout::Paged(paged) = content.layout() else {
            unreachable!("16 Mi extents are not kept in a record")
        };
        println!(
            "layout of {} extents: built in {:.1} s",
            paged.count,
            begun.elapsed().as_secs_f64()
        );
        let size = content.size();
        self.put("long", content, "0".repeat(32)).await;

        let mut worst = Duration::ZERO;
        let begun = Instant::now();
        for n in 0..100_u64 {
            let each = Instant::now();
            let open = self.store.open_object(&self.bucket, &key("long")).await.unwrap();
            let offset = (n * 104_729 % (size >> 20)) << 20;
            let first = open.reader().stream(offset..offset + 1).next().await;
            assert_eq!(first.unwrap().unwrap().len(), 1);
            worst = worst.max(each.elapsed());
        }
        let mean = begun.elapsed() / 100;
        println!("first byte of it, anywhere: {mean:.1?}, at worst {worst:.1?}");
        let begun = Instant::now();
        self.store.delete_object(&self.bucket, &key("long")).await.unwrap();
        drop((source, reader));
        self.store.sweep().await.unwrap();
        println!("deleted and swept in {:.1?}", begun.elapsed());
    }
}
