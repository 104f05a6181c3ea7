//! Failed writes, and how the store comes back from them.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

use rocksdb::{DB, Options};

use super::{
    tests::{keys, killed_copy, log_file, open, put},
    *,
};
use crate::kv::{Durability, Txn};

/// Longer than any recovery takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// What an opening or a rehearsal does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// What it should.
    Works,
    /// It opens a database that reads, and fails every write.
    ReadsOnly,
    Fails(ErrorKind),
}

/// A folder that opens as told, and properly from then on.
#[derive(Debug)]
struct Told {
    folder: Folder,
    path: std::path::PathBuf,
    openings: Mutex<VecDeque<Step>>,
    rehearsals: Mutex<VecDeque<Step>>,
}

impl Told {
    fn store(path: &Path, openings: &[Step], rehearsals: &[Step]) -> Arc<dyn Kv> {
        let told = Self {
            folder: Folder::take(path).unwrap(),
            path: path.to_owned(),
            openings: Mutex::new(openings.iter().copied().collect()),
            rehearsals: Mutex::new(rehearsals.iter().copied().collect()),
        };
        Arc::new(RocksKv::open_by(Box::new(told)).unwrap())
    }
}

fn next(steps: &Mutex<VecDeque<Step>>) -> Step {
    steps.lock().unwrap().pop_front().unwrap_or(Step::Works)
}

impl Opener for Told {
    fn rehearse(&self) -> Result<()> {
        match next(&self.rehearsals) {
            Step::Fails(kind) => Err(Error::new(kind, "told to fail the rehearsal")),
            _ => self.folder.rehearse(),
        }
    }

    fn open(&self) -> Result<DB> {
        // At this moment RocksDB's own lock is free.
        assert!(RocksKv::open(&self.path).is_err(), "nobody comes in between");
        match next(&self.openings) {
            Step::Works => self.folder.open(),
            Step::ReadsOnly => Ok(DB::open_for_read_only(&Options::default(), &self.path, false).unwrap()),
            Step::Fails(kind) => Err(Error::new(kind, "told to fail the opening")),
        }
    }
}

/// A folder in which the keys `a` and `b` were committed.
async fn folder_with_rows() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let kv = open(folder.path());
    put(&kv, "a", Durability::Synced).await;
    put(&kv, "b", Durability::Buffered).await;
    drop(kv);
    folder
}

async fn try_put(kv: &Arc<dyn Kv>, key: &str) -> Outcome {
    let mut txn = Txn::begin(kv).await.unwrap();
    txn.put(key.to_owned(), "value").unwrap();
    txn.commit().await
}

/// The error behind a commit that is unknown or refused.
async fn refused(kv: &Arc<dyn Kv>) -> Error {
    match try_put(kv, "refused").await {
        Outcome::Unknown(error) | Outcome::Refused(error) => error,
        other => panic!("expected a refusal, not {other:?}"),
    }
}

/// Tries until a commit gets through.
async fn recovered(kv: &Arc<dyn Kv>, key: &str) {
    eventually(async || matches!(try_put(kv, key).await, Outcome::Committed(_))).await;
}

async fn eventually(condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "it did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_recovers_by_itself_and_reads_meanwhile() {
    let folder = folder_with_rows().await;
    let kv = Told::store(folder.path(), &[Step::ReadsOnly], &[]);
    let old = kv.snapshot().await.unwrap().version();
    refused(&kv).await;
    assert_eq!(keys(&kv).await, ["a", "b"], "reads go on");
    recovered(&kv, "c").await;
    assert_eq!(keys(&kv).await, ["a", "b", "c"], "what was refused was never written");
    assert!(kv.snapshot().await.unwrap().version() > old);
    // One that has read the old rows and comes only now.
    let late = Commit {
        read_version: old,
        read_keys: vec![Bytes::from("untouched")],
        read_ranges: Vec::new(),
        writes: [(Bytes::from("late"), None)].into(),
        adds: BTreeMap::new(),
        at_most: BTreeMap::new(),
        durability: Durability::Synced,
    };
    assert!(matches!(kv.commit(late).await, Outcome::Conflict));
    drop(kv);
    assert_eq!(keys(&open(folder.path())).await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn store_recovers_from_one_failure_after_another() {
    let folder = folder_with_rows().await;
    let kv = Told::store(folder.path(), &[Step::ReadsOnly, Step::ReadsOnly, Step::ReadsOnly], &[]);
    recovered(&kv, "c").await;
    assert_eq!(keys(&kv).await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_that_stays_open_delays_the_recovery_but_no_reads() {
    let folder = folder_with_rows().await;
    let kv = Told::store(folder.path(), &[Step::ReadsOnly], &[]);
    let stays = kv.snapshot().await.unwrap();
    let error = refused(&kv).await;
    assert_eq!(error.kind(), ErrorKind::Io);
    eventually(async || {
        refused(&kv)
            .await
            .to_string()
            .contains("a snapshot of the index stays open")
    })
    .await;
    assert_eq!(keys(&kv).await, ["a", "b"], "other snapshots are given");
    assert!(stays.get(b"a").await.unwrap().is_some(), "and this one reads");
    drop(stays);
    recovered(&kv, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_rehearsal_leaves_the_reads_and_is_the_reason_given() {
    let folder = folder_with_rows().await;
    let full = Step::Fails(ErrorKind::StorageFull);
    let kv = Told::store(folder.path(), &[Step::ReadsOnly], &[full, full, full]);
    refused(&kv).await;
    eventually(async || refused(&kv).await.kind() == ErrorKind::StorageFull).await;
    assert_eq!(
        refused(&kv).await.to_string(),
        "the index takes no commit until it has recovered: told to fail the rehearsal"
    );
    assert_eq!(keys(&kv).await, ["a", "b"]);
    recovered(&kv, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_opening_is_tried_again() {
    let folder = folder_with_rows().await;
    let fails = Step::Fails(ErrorKind::StorageFull);
    let kv = Told::store(folder.path(), &[Step::ReadsOnly, fails, fails], &[]);
    refused(&kv).await;
    eventually(async || {
        kv.snapshot()
            .await
            .is_err_and(|error| error.kind() == ErrorKind::StorageFull)
    })
    .await;
    eventually(async || kv.snapshot().await.is_ok()).await;
    recovered(&kv, "c").await;
    assert_eq!(keys(&kv).await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_log_keeps_the_store_failed_and_readable() {
    let folder = tempfile::tempdir().unwrap();
    let writer = open(folder.path());
    for key in ["a", "b", "c"] {
        put(&writer, key, Durability::Synced).await;
    }
    let copy = killed_copy(folder.path());
    let kv = Told::store(copy.path(), &[Step::ReadsOnly], &[]);
    let path = log_file(copy.path());
    let mut log = fs::read(&path).unwrap();
    let middle = log.len() / 2;
    log[middle] ^= 1;
    fs::write(&path, log).unwrap();
    refused(&kv).await;
    eventually(async || refused(&kv).await.kind() == ErrorKind::Corrupt).await;
    for _ in 0..50 {
        let error = refused(&kv).await;
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("Corruption: "), "{error}");
        assert_eq!(keys(&kv).await, ["a", "b", "c"]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_has_failed_ends_at_once() {
    let folder = folder_with_rows().await;
    let full = Step::Fails(ErrorKind::StorageFull);
    let kv = Told::store(folder.path(), &[Step::ReadsOnly], &[full; 64]);
    refused(&kv).await;
    let start = Instant::now();
    drop(kv);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(keys(&open(folder.path())).await, ["a", "b"]);
}

/// Names the folder for a process whose files may not grow beyond [`LIMIT_BLOCKS`].
const LIMITED: &str = "LITHOS_TEST_LIMITED_FOLDER";
/// In blocks of 512 bytes, as POSIX counts for `ulimit -f`: a mebibyte, so that each log fails after some 250 rows.
const LIMIT_BLOCKS: &str = "2048";
/// The failures to come back from.
const FAILURES: usize = 3;

/// Logs of the real engine that really cannot grow, in a process of its own: the limit holds for a whole process.
#[test]
fn real_failed_writes_lose_nothing_that_was_acknowledged() {
    if let Some(folder) = std::env::var_os(LIMITED) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(write_against_the_limit(Path::new(&folder)));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"trap '' XFSZ; ulimit -S -f "$1"; shift; exec "$@""#;
    let output = Command::new("sh")
        .args(["-c", script, "sh", LIMIT_BLOCKS])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("kv::rocks::recovery_tests::real_failed_writes_lose_nothing_that_was_acknowledged")
        .env(LIMITED, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
    assert!(text.contains(&format!("came back from {FAILURES} failures")), "{text}");
}

async fn write_against_the_limit(folder: &Path) {
    let mut kv = open(folder);
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    let mut failures = 0;
    let mut failed = false;
    let start = Instant::now();
    for number in 0_u32.. {
        assert!(start.elapsed() < PATIENCE, "{failures} failures");
        let key = format!("{number:08}");
        let mut txn = Txn::begin(&kv).await.unwrap();
        txn.put(key.clone(), vec![b'v'; 4 << 10]).unwrap();
        txn.add("count", 1).unwrap();
        match txn.commit().await {
            Outcome::Committed(_) => {
                acknowledged.push(key);
                if failed && failures == FAILURES {
                    break;
                }
                failed = false;
            }
            // What was refused is not there, which the count at the end would show too.
            Outcome::Refused(_) => {
                failed = true;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Outcome::Unknown(error) => {
                let text = format!("{error:?}");
                assert!(text.contains("File too large"), "{text}");
                unknown.push(key);
                failures += usize::from(!failed);
                failed = true;
                // Reads go on, and nothing that was acknowledged is ever missing.
                let mut txn = Txn::begin(&kv).await.unwrap();
                let last = acknowledged.last().unwrap();
                assert!(txn.get(last.as_bytes()).await.unwrap().is_some(), "{last}");
                drop(txn);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Outcome::Conflict => panic!("nothing was read"),
        }
    }
    let decided = check_rows(&kv, &acknowledged, &unknown).await;
    drop(kv);
    kv = open(folder);
    assert_eq!(
        check_rows(&kv, &acknowledged, &unknown).await,
        decided,
        "decided exactly once"
    );
    println!("came back from {failures} failures");
}

/// Checks that everything acknowledged is there and counted, and gives the unknown ones that are there too.
async fn check_rows(kv: &Arc<dyn Kv>, acknowledged: &[String], unknown: &[String]) -> Vec<String> {
    let mut txn = Txn::begin(kv).await.unwrap();
    for key in acknowledged {
        assert!(
            txn.get(key.as_bytes()).await.unwrap().is_some(),
            "{key} was acknowledged"
        );
    }
    let mut there = Vec::new();
    for key in unknown {
        if txn.get(key.as_bytes()).await.unwrap().is_some() {
            there.push(key.clone());
        }
    }
    let count = txn.counter(b"count").await.unwrap();
    assert_eq!(count, (acknowledged.len() + there.len()) as u64);
    there
}
