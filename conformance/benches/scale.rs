//! What listing and long uploads cost at scale, through the server: `make bench-scale`.
//!
//! Times are a client's, on a connection of loopback that is kept: from the first byte of a request out to the last byte of
//! its answer in, nothing taken off. The server's own processor time stands beside those of listings: that is the figure to
//! look at where the machine does other things meanwhile. `LITHOS_SCALE_KEYS`, `LITHOS_SCALE_PARTS` and
//! `LITHOS_SCALE_VERSIONS` make it smaller, `LITHOS_SCALE_ONLY` chooses `ranges`, `uploads`, `listings` or `versions`. Filling
//! takes minutes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at the first surprise"
)]

use std::{
    fmt::Write,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lithos_conformance::{
    case::Bench,
    pattern::{Dice, Pattern},
    target::{POLL, Server},
    wire::{AmzTime, Connection, Payload, Request, Response, elements},
};
use tokio::task::JoinSet;

/// Keys of the bucket: a tenth of them below one prefix in the middle.
const KEYS: usize = 1_000_000;
const PARTS: usize = 10_000;
const PART: usize = 5 << 20;
/// What of a part is not zero: more than fits into the index, so that each part is a blob.
const NOISE: u64 = 8 << 10;
/// The longest slice that one UploadPartCopy takes.
const SLICE: u64 = 5 << 30;
/// Longest time until all blobs of deleted objects are gone.
const SWEEP_MAX: Duration = Duration::from_mins(5);
/// Clients that fill the bucket, so that many puts share a sync; and those that send parts, each 5 MiB at a time.
const FILLERS: usize = 64;
const SENDERS: usize = 4;
const LISTINGS: usize = 100;
/// Bytes of files that are read by ranges, and how many ranges of each length.
const CORPUS: usize = 256 << 20;
const RANGES: usize = 300;
/// How long nothing gets smaller before the compression is taken to be over.
const REST: Duration = Duration::from_secs(5);
/// Versions of each key, and keys, of a bucket that keeps versions.
const VERSIONS: usize = 1000;
const VERSIONED_KEYS: usize = 1000;
/// Most processor time of the server that a page of a listing may take in the mean.
const PAGE_MAX: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() {
    let server = Server::start().unwrap();
    let bench = Bench::new(server.target()).await.unwrap();
    let scale = Scale {
        connection: Connection::open(server.target()).await.unwrap(),
        bench,
        server,
    };
    let only = std::env::var("LITHOS_SCALE_ONLY").ok();
    let wanted = |section: &str| only.as_deref().is_none_or(|only| only == section);
    let mut scale = scale;
    if wanted("ranges") {
        scale.ranges().await;
    }
    if wanted("uploads") {
        scale.reconnect().await;
        scale.long_uploads(number("LITHOS_SCALE_PARTS", PARTS)).await;
    }
    if wanted("listings") {
        scale.reconnect().await;
        scale.listings(number("LITHOS_SCALE_KEYS", KEYS)).await;
    }
    if wanted("versions") {
        scale.versions(number("LITHOS_SCALE_VERSIONS", VERSIONS)).await;
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// The name of a listing, and the parameter that asks for it.
type Operation = (&'static str, &'static str, &'static str);
const OBJECTS: Operation = ("ListObjectsV2", "list-type", "2");
const VERSIONS_OF: Operation = ("ListObjectVersions", "versions", "");

struct Scale {
    server: Server,
    bench: Bench,
    connection: Connection,
}

fn signed(bench: &Bench, request: Request) -> Request {
    request
        .signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())
        .unwrap()
}

/// Runs `act` for each number below `count`, on some connections at a time.
async fn each<F>(bench: &Bench, clients: usize, count: usize, act: F) -> Vec<Response>
where
    F: Fn(&Bench, usize) -> Request + Send + Sync + 'static,
{
    let (act, next) = (Arc::new(act), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (bench, act, next) = (bench.clone(), Arc::clone(&act), Arc::clone(&next));
        tasks.spawn(async move {
            let mut connection = Connection::open(&bench.target).await.unwrap();
            let mut answers = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return answers;
                }
                let answer = connection.send(&signed(&bench, act(&bench, number))).await.unwrap();
                answer.expect_status(200).unwrap();
                answers.push((number, answer));
            }
        });
    }
    let mut answers: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

impl Scale {
    /// A connection that waited while others filled the bucket was closed by the server.
    async fn reconnect(&mut self) {
        self.connection = Connection::open(&self.bench.target).await.unwrap();
    }

    async fn send(&mut self, request: Request) -> (Response, Duration) {
        let request = signed(&self.bench, request);
        self.connection.send_timed(&request).await.unwrap()
    }

    /// Sends what must be answered with a status, and prints how long that took.
    async fn timed(&mut self, what: &str, status: u16, request: Request) {
        let (answer, took) = self.send(request).await;
        answer.expect_status(status).unwrap();
        assert!(!answer.text().contains("<Error>"), "{}", answer.text());
        println!("{what}: {:.0} ms", millis(took));
    }

    /// Ranges of what is compressed at rest, beside the same of what is not, turn by turn.
    async fn ranges(&mut self) {
        let mut corpus = Vec::new();
        gather(Path::new("/usr/lib"), &mut corpus);
        self.bench.put("plain", &corpus).await.unwrap();
        let plain = self.server.stored_bytes().unwrap();
        let tagging = "<Tagging><TagSet><Tag><Key>compression</Key><Value>zstd</Value></Tag></TagSet></Tagging>";
        let packed = Bench::new(self.server.target()).await.unwrap();
        let tag = packed.bucket("PUT").query("tagging", "").body(tagging);
        self.send(tag).await.0.expect_status(200).unwrap();
        packed.put("packed", &corpus).await.unwrap();
        let (mut stored, mut since) = (0, Instant::now());
        while since.elapsed() < REST || stored == 2 * plain {
            let now = self.server.stored_bytes().unwrap();
            if now != stored {
                (stored, since) = (now, Instant::now());
            }
            tokio::time::sleep(POLL).await;
        }
        println!(
            "{} MiB of /usr/lib: {} MiB stored, compressed {} MiB",
            corpus.len() >> 20,
            plain >> 20,
            (stored - plain) >> 20
        );
        self.reconnect().await;
        for len in [1 << 20, 64 << 10] {
            let (mut dice, mut times) = (Dice(len as u64), [Vec::new(), Vec::new()]);
            for _ in 0..RANGES {
                let start = usize::try_from(dice.below((corpus.len() - len) as u64)).unwrap();
                let range = format!("bytes={start}-{}", start + len - 1);
                let objects = [(&self.bench, "plain"), (&packed, "packed")];
                let gets = objects.map(|(bench, key)| bench.object("GET", key).header("range", range.as_str()));
                for (get, times) in gets.into_iter().zip(&mut times) {
                    let (answer, took) = self.send(get).await;
                    answer.expect_status(206).unwrap();
                    assert!(answer.body == corpus[start..start + len], "other bytes");
                    times.push(took);
                }
            }
            let [plain, packed] = times.map(|mut times| {
                times.sort();
                millis(times[times.len() / 2])
            });
            println!(
                "GET of {} KiB anywhere: plain {plain:.2} ms, compressed {packed:.2} ms in the middle: {:.1} times",
                len >> 10,
                packed / plain
            );
        }
    }

    async fn long_uploads(&mut self, parts: usize) {
        let id = self.begin("long.img").await;
        let begun = Instant::now();
        let upload = id.clone();
        let answers = each(&self.bench, SENDERS, parts, move |bench, number| {
            let mut body = Pattern(number as u64).bytes(0..NOISE);
            body.resize(PART, 0);
            let part = bench.object("PUT", "long.img").query("uploadId", &upload);
            part.query("partNumber", &(number + 1).to_string()).body(body)
        });
        let answers = answers.await;
        self.reconnect().await;
        let stored = self.server.stored_bytes().unwrap();
        println!(
            "{parts} parts of {} MiB, {} KiB of each not zero: {:.0} s, {} MiB stored",
            PART >> 20,
            NOISE >> 10,
            begun.elapsed().as_secs_f64(),
            stored >> 20
        );
        let etags: Vec<_> = answers
            .iter()
            .map(|answer| answer.header("etag").unwrap().to_owned())
            .collect();
        let complete = self.complete("long.img", &id, &etags);
        self.timed("CompleteMultipartUpload", 200, complete).await;
        self.copy((parts * PART) as u64).await;
        self.convert().await;
        for key in ["long.img", "copy.img", "long.qcow2"] {
            let delete = self.bench.object("DELETE", key);
            self.timed(&format!("DeleteObject of {key}"), 204, delete).await;
        }
        let begun = Instant::now();
        while !self.server.blob_files().unwrap().is_empty() {
            assert!(
                begun.elapsed() < SWEEP_MAX,
                "the blobs of deleted objects are still there"
            );
            tokio::time::sleep(POLL).await;
        }
        println!("all blobs swept: {:.1} s later", begun.elapsed().as_secs_f64());
    }

    /// Begins an upload.
    async fn begin(&mut self, key: &str) -> String {
        let create = self.bench.object("POST", key).query("uploads", "");
        let text = self.send(create).await.0.text();
        elements(&text, "UploadId").next().unwrap().to_owned()
    }

    fn complete(&self, key: &str, id: &str, etags: &[String]) -> Request {
        let mut named = String::new();
        for (number, etag) in (1..).zip(etags) {
            write!(
                named,
                "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            )
            .unwrap();
        }
        let body = format!("<CompleteMultipartUpload>{named}</CompleteMultipartUpload>");
        self.bench.object("POST", key).query("uploadId", id).body(body)
    }

    /// Copies `long.img` as clients copy what is over 5 GiB: slice by slice, all in all.
    async fn copy(&mut self, size: u64) {
        let begun = Instant::now();
        let id = self.begin("copy.img").await;
        let source = format!("/{}/long.img", self.bench.bucket);
        let mut etags = Vec::new();
        for start in (0..size).step_by(usize::try_from(SLICE).unwrap()) {
            let end = (start + SLICE).min(size) - 1;
            let copy = self.bench.object("PUT", "copy.img").query("uploadId", &id);
            let copy = copy.query("partNumber", &(etags.len() + 1).to_string());
            let copy = copy.header("x-amz-copy-source", source.as_str());
            let copy = copy.header("x-amz-copy-source-range", format!("bytes={start}-{end}"));
            let (answer, _) = self.send(copy).await;
            answer.expect_status(200).unwrap();
            etags.push(elements(&answer.text(), "ETag").next().unwrap().to_owned());
        }
        let complete = self.complete("copy.img", &id, &etags);
        self.send(complete).await.0.expect_status(200).unwrap();
        println!(
            "copy by UploadPartCopy of {} slices, begun and completed: {:.0} ms",
            etags.len(),
            millis(begun.elapsed())
        );
    }

    /// From the tag to the object.
    async fn convert(&mut self) {
        let tagging = "<Tagging><TagSet><Tag><Key>convert-to</Key><Value>qcow2</Value></Tag></TagSet></Tagging>";
        let tag = self.bench.object("PUT", "long.img").query("tagging", "").body(tagging);
        let begun = Instant::now();
        self.send(tag).await.0.expect_status(200).unwrap();
        while self.send(self.bench.object("HEAD", "long.qcow2")).await.0.status != 200 {
            assert!(begun.elapsed() < Duration::from_mins(1), "{}", self.server.log_end());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!(
            "conversion to qcow2, from the tag to the object: {:.0} ms",
            millis(begun.elapsed())
        );
    }

    async fn listings(&mut self, keys: usize) {
        let (folded, flat) = (keys / 10, keys / 20 * 9);
        let key = move |number: usize| match number {
            n if n < flat => format!("a-{n:07}"),
            n if n < flat + folded => format!("m/{n:07}"),
            n => format!("z-{n:07}"),
        };
        let begun = Instant::now();
        let put = move |bench: &Bench, number| bench.object("PUT", &key(number));
        each(&self.bench, FILLERS, keys, put).await;
        self.reconnect().await;
        println!(
            "{keys} keys put by {FILLERS} clients: {:.0} s",
            begun.elapsed().as_secs_f64()
        );

        let mut dice = Dice(1);
        let mut anywhere = || key(usize::try_from(dice.below(flat as u64)).unwrap());
        let plain: Vec<_> = (0..LISTINGS).map(|_| vec![("start-after", anywhere())]).collect();
        self.list(OBJECTS, "1,000 keys from anywhere", plain, 1000).await;
        let slash = || ("delimiter", "/".to_owned());
        let over = vec![vec![slash(), ("start-after", key(flat - 500))]; LISTINGS];
        self.list(
            OBJECTS,
            &format!("1,000 entries, one of them a prefix of {folded} keys"),
            over,
            1000,
        )
        .await;
        let only = vec![vec![slash(), ("start-after", key(flat - 1)), ("max-keys", "1".to_owned())]; LISTINGS];
        self.list(OBJECTS, &format!("that prefix of {folded} keys alone"), only, 1)
            .await;
    }

    /// Keys of many versions each, a tenth of them with a delete marker in front.
    async fn versions(&mut self, versions: usize) {
        self.bench = Bench::new(&self.bench.target).await.unwrap();
        self.reconnect().await;
        let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        let enable = self.bench.bucket("PUT").query("versioning", "").body(enabled);
        self.send(enable).await.0.expect_status(200).unwrap();
        let key = |number: usize| format!("k-{:04}", number % VERSIONED_KEYS);
        let begun = Instant::now();
        let put = move |bench: &Bench, number| bench.object("PUT", &key(number));
        each(&self.bench, FILLERS, VERSIONED_KEYS * versions, put).await;
        self.reconnect().await;
        for number in (0..VERSIONED_KEYS).step_by(10) {
            let delete = self.bench.object("DELETE", &key(number));
            self.send(delete).await.0.expect_status(204).unwrap();
        }
        println!(
            "{VERSIONED_KEYS} keys of {versions} versions put by {FILLERS} clients: {:.0} s",
            begun.elapsed().as_secs_f64()
        );
        let current = VERSIONED_KEYS - VERSIONED_KEYS.div_ceil(10);
        let all = vec![Vec::new(); LISTINGS];
        self.list(OBJECTS, &format!("{current} keys of {versions} versions"), all, current)
            .await;
        let mut dice = Dice(1);
        let mut anywhere = || key(usize::try_from(dice.below(VERSIONED_KEYS as u64 / 2)).unwrap());
        let plain: Vec<_> = (0..LISTINGS).map(|_| vec![("key-marker", anywhere())]).collect();
        self.list(VERSIONS_OF, "1,000 versions from anywhere", plain, 1000)
            .await;
        let folded = vec![vec![("delimiter", "-".to_owned())]; LISTINGS];
        self.list(VERSIONS_OF, "all of them in one prefix", folded, 1).await;
    }

    async fn list(
        &mut self,
        (operation, parameter, value): Operation,
        what: &str,
        queries: Vec<Vec<(&str, String)>>,
        expected: usize,
    ) {
        let mut times = Vec::new();
        let before = self.server.processor_time().unwrap();
        for query in queries {
            let mut list = self.bench.bucket("GET").query(parameter, value);
            for (name, value) in &query {
                list = list.query(name, value);
            }
            let (answer, took) = self.send(list).await;
            answer.expect_status(200).unwrap();
            let text = answer.text();
            let entries = elements(&text, "Key").count() + elements(&text, "CommonPrefixes").count();
            assert_eq!(entries, expected, "{query:?}");
            times.push(took);
        }
        let used = self.server.processor_time().unwrap().saturating_sub(before);
        times.sort();
        println!(
            "{operation}, {what}: {:.1} ms in the middle, {:.1} ms at worst, {:.1} ms of processor each, of {}",
            millis(times[times.len() / 2]),
            millis(times[times.len() - 1]),
            millis(used) / f64::from(u32::try_from(times.len()).unwrap()),
            times.len()
        );
        let mean = used / u32::try_from(times.len()).unwrap();
        assert!(mean < PAGE_MAX, "{operation}, {what}: {mean:?} of processor each");
    }
}

/// The files below a folder, one behind the other, until there are enough.
fn gather(folder: &Path, corpus: &mut Vec<u8>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            gather(&entry.path(), corpus);
        } else if kind.is_file() {
            corpus.extend(fs::read(entry.path()).unwrap());
        }
        if corpus.len() >= CORPUS {
            return corpus.truncate(CORPUS);
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
