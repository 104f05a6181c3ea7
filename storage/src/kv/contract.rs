//! What every engine must do: the cases behind the contract in [`kv`](super).
//!
//! A new engine passes [`run`] in its own tests. Each case gets an empty store.

mod concurrent;
mod conflict;
mod counter;
#[cfg(test)]
mod model;

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    Durability, Fold, KEY_LEN_MAX, Kv, Order, Outcome, SCAN_BYTES_MAX, SCAN_ROWS_MAX, Scan, TXN_BYTES_MAX, TXN_OPS_MAX,
    Txn, VALUE_LEN_MAX, Version, prefix_range,
};
use crate::error::{ErrorKind, Result};

/// Runs all cases on the empty stores that `make` gives.
///
/// # Panics
///
/// If the engine breaks the contract; the message or the place tells where.
pub async fn run(make: impl AsyncFn() -> Arc<dyn Kv>) {
    empty_store_holds_nothing(&make().await).await;
    transaction_reads_its_own_writes(&make().await).await;
    committed_writes_are_read_back(&make().await).await;
    dropped_transaction_leaves_nothing(&make().await).await;
    scans_go_both_ways_and_stop_at_the_limit(&make().await).await;
    folded_scans_give_the_first_of_each_group(&make().await).await;
    scans_see_buffered_writes(&make().await).await;
    scan_stops_once_it_holds_enough_bytes(&make().await).await;
    snapshot_stays_as_it_was(&make().await).await;
    versions_grow(&make().await).await;
    empty_commit_is_checked_as_others(&make().await).await;
    bounds_are_errors(&make().await).await;
    scan_bounds_are_errors(&make().await).await;
    binary_keys_sort_by_bytes(&make().await).await;
    conflict::run(&make).await;
    counter::run(&make).await;
    concurrent::run(&make).await;
}

async fn begin(kv: &Arc<dyn Kv>) -> Txn {
    Txn::begin(kv).await.expect("a snapshot is given")
}

async fn committed(txn: Txn) -> Version {
    match txn.commit().await {
        Outcome::Committed(version) => version,
        other => panic!("expected a commit, not {other:?}"),
    }
}

async fn conflicts(txn: Txn) {
    let outcome = txn.commit().await;
    assert!(
        matches!(outcome, Outcome::Conflict),
        "expected a conflict, not {outcome:?}"
    );
}

/// Commits `rows` with no regard to what is there.
async fn store(kv: &Arc<dyn Kv>, rows: &[(&str, &str)]) -> Version {
    let mut txn = begin(kv).await;
    for (key, value) in rows {
        put(&mut txn, key, value);
    }
    committed(txn).await
}

fn put(txn: &mut Txn, key: &str, value: &str) {
    txn.put(key.to_owned(), value.to_owned())
        .expect("the row is within the bounds");
}

fn delete(txn: &mut Txn, key: &str) {
    txn.delete(key.to_owned()).expect("the key is within the bounds");
}

async fn get(txn: &mut Txn, key: &str) -> Option<String> {
    txn.get(key.as_bytes())
        .await
        .expect("the key is readable")
        .map(|value| text(&value))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn range(start: &str, end: &str) -> Range<Bytes> {
    Bytes::copy_from_slice(start.as_bytes())..Bytes::copy_from_slice(end.as_bytes())
}

/// The rows as `key=value`, with a trailing `…` if there are more.
async fn scan(txn: &mut Txn, range: Range<Bytes>, limit: usize, order: Order) -> String {
    let page = txn
        .scan(&Scan { range, limit, order })
        .await
        .expect("the range is readable");
    let mut rows: Vec<_> = page
        .rows
        .iter()
        .map(|(key, value)| format!("{}={}", text(key), text(value)))
        .collect();
    if page.more {
        rows.push("…".into());
    }
    rows.join(" ")
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn empty_store_holds_nothing(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    assert_eq!(get(&mut txn, "a").await, None);
    assert_eq!(scan(&mut txn, range("a", "z"), 10, Order::Ascending).await, "");
    assert_eq!(
        scan(&mut txn, range("z", "a"), 10, Order::Descending).await,
        "",
        "a reversed range is empty"
    );
    assert!(!txn.any(prefix_range(b"a")).await.expect("the range is readable"));
}

async fn transaction_reads_its_own_writes(kv: &Arc<dyn Kv>) {
    store(kv, &[("a", "1"), ("b", "2")]).await;
    let mut txn = begin(kv).await;
    put(&mut txn, "a", "3");
    delete(&mut txn, "b");
    put(&mut txn, "c", "4");
    put(&mut txn, "c", "5");
    assert_eq!(get(&mut txn, "a").await.as_deref(), Some("3"));
    assert_eq!(get(&mut txn, "b").await, None);
    assert_eq!(get(&mut txn, "c").await.as_deref(), Some("5"));
    let keys = [Bytes::from_static(b"c"), Bytes::from_static(b"b")];
    let values = txn.get_many(&keys).await.expect("the keys are readable");
    assert_eq!(values, [Some(Bytes::from_static(b"5")), None]);
}

async fn committed_writes_are_read_back(kv: &Arc<dyn Kv>) {
    for durability in [Durability::Synced, Durability::Buffered] {
        let mut txn = begin(kv).await;
        txn.set_durability(durability);
        put(&mut txn, "a", "1");
        put(&mut txn, "empty", "");
        committed(txn).await;
        let mut txn = begin(kv).await;
        assert_eq!(get(&mut txn, "a").await.as_deref(), Some("1"), "{durability:?}");
        assert_eq!(
            get(&mut txn, "empty").await.as_deref(),
            Some(""),
            "an empty value is a value"
        );
        delete(&mut txn, "a");
        delete(&mut txn, "never there");
        committed(txn).await;
        assert_eq!(get(&mut begin(kv).await, "a").await, None, "{durability:?}");
    }
}

async fn dropped_transaction_leaves_nothing(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    put(&mut txn, "a", "1");
    drop(txn);
    assert_eq!(get(&mut begin(kv).await, "a").await, None);
}

async fn scans_go_both_ways_and_stop_at_the_limit(kv: &Arc<dyn Kv>) {
    store(kv, &[("a", "1"), ("b", "2"), ("ba", "3"), ("c", "4")]).await;
    let cases = [
        (range("a", "z"), 10, Order::Ascending, "a=1 b=2 ba=3 c=4"),
        (range("a", "z"), 10, Order::Descending, "c=4 ba=3 b=2 a=1"),
        (range("b", "c"), 10, Order::Ascending, "b=2 ba=3"),
        (range("b", "c"), 10, Order::Descending, "ba=3 b=2"),
        (range("a", "z"), 2, Order::Ascending, "a=1 b=2 …"),
        (range("a", "z"), 2, Order::Descending, "c=4 ba=3 …"),
        (range("a", "z"), 4, Order::Ascending, "a=1 b=2 ba=3 c=4"),
        (range("a", "z"), 4, Order::Descending, "c=4 ba=3 b=2 a=1"),
        (prefix_range(b"b"), 10, Order::Ascending, "b=2 ba=3"),
        (range("d", "z"), 10, Order::Ascending, ""),
        (range("", "b"), 10, Order::Descending, "a=1"),
    ];
    let mut txn = begin(kv).await;
    for (range, limit, order, expected) in cases {
        assert_eq!(
            scan(&mut txn, range.clone(), limit, order).await,
            expected,
            "{range:?} {limit} {order:?}"
        );
    }
}

async fn folded_scans_give_the_first_of_each_group(kv: &Arc<dyn Kv>) {
    let rows = ["x/a", "xa", "xa/", "xa/b", "xa/c/d", "xb//", "xb//c", "xc", "xc/", "xd"];
    store(kv, &rows.map(|key| (key, "1"))).await;
    let snapshot = kv.snapshot().await.expect("a snapshot is given");
    let cases = [
        ("x", "y", 1, "/", 10, "x/a xa xa/ xb// xc xc/ xd"),
        ("x", "y", 1, "//", 10, "x/a xa xa/ xa/b xa/c/d xb// xc xc/ xd"),
        ("x", "y", 3, "/", 10, "x/a xa xa/ xa/b xa/c/d xb// xc xc/ xd"),
        ("x", "y", 0, "x", 10, "x/a"),
        ("x", "y", 1, "/", 3, "x/a xa xa/ …"),
        ("x", "y", 1, "/", 7, "x/a xa xa/ xb// xc xc/ xd"),
        ("xa/b", "xb/", 1, "/", 10, "xa/b"),
        ("xa0", "xc", 1, "/", 1, "xb//"),
        ("y", "z", 1, "/", 10, ""),
        ("y", "x", 1, "/", 10, ""),
        ("x", "y", 99, "/", 2, "x/a xa …"),
    ];
    for (start, end, from, delimiter, limit, expected) in cases {
        let scan = Scan {
            range: range(start, end),
            limit,
            order: Order::Ascending,
        };
        let fold = Fold {
            from,
            delimiter: Bytes::from_static(delimiter.as_bytes()),
        };
        let page = snapshot.scan_folded(&scan, &fold).await.expect("the rows are read");
        let mut found: Vec<_> = page.rows.iter().map(|(key, _)| text(key)).collect();
        found.extend(page.more.then(|| "…".to_owned()));
        assert_eq!(found.join(" "), expected, "{scan:?} {fold:?}");
    }
}

async fn scans_see_buffered_writes(kv: &Arc<dyn Kv>) {
    store(kv, &[("b", "1"), ("d", "2"), ("f", "3"), ("h", "4")]).await;
    let mut txn = begin(kv).await;
    put(&mut txn, "a", "new");
    put(&mut txn, "d", "changed");
    delete(&mut txn, "f");
    put(&mut txn, "g", "new");
    let cases = [
        (10, Order::Ascending, "a=new b=1 d=changed g=new h=4"),
        (10, Order::Descending, "h=4 g=new d=changed b=1 a=new"),
        (3, Order::Ascending, "a=new b=1 d=changed …"),
        (3, Order::Descending, "h=4 g=new d=changed …"),
        (4, Order::Ascending, "a=new b=1 d=changed g=new …"),
        (1, Order::Ascending, "a=new …"),
        (5, Order::Ascending, "a=new b=1 d=changed g=new h=4"),
    ];
    for (limit, order, expected) in cases {
        assert_eq!(
            scan(&mut txn, range("a", "z"), limit, order).await,
            expected,
            "{limit} {order:?}"
        );
    }
}

async fn scan_stops_once_it_holds_enough_bytes(kv: &Arc<dyn Kv>) {
    let rows = SCAN_BYTES_MAX / VALUE_LEN_MAX + 8;
    for half in [0..rows / 2, rows / 2..rows] {
        let mut txn = begin(kv).await;
        for index in half {
            txn.put(format!("{index:04}"), vec![0; VALUE_LEN_MAX])
                .expect("the row is within the bounds");
        }
        committed(txn).await;
    }
    let mut txn = begin(kv).await;
    for order in [Order::Ascending, Order::Descending] {
        let scan = Scan {
            range: range("0", "9"),
            limit: SCAN_ROWS_MAX,
            order,
        };
        let page = txn.scan(&scan).await.expect("the range is readable");
        assert!(page.more);
        assert_eq!(page.rows.len(), SCAN_BYTES_MAX.div_ceil(VALUE_LEN_MAX + 4), "{order:?}");
    }
}

async fn snapshot_stays_as_it_was(kv: &Arc<dyn Kv>) {
    store(kv, &[("a", "1"), ("b", "1")]).await;
    let snapshot = kv.snapshot().await.expect("a snapshot is given");
    let mut txn = begin(kv).await;
    put(&mut txn, "a", "2");
    delete(&mut txn, "b");
    put(&mut txn, "c", "2");
    committed(txn).await;
    let value = |key: &'static str| snapshot.get(key.as_bytes());
    assert_eq!(value("a").await.expect("it is readable").as_deref(), Some(&b"1"[..]));
    assert_eq!(value("c").await.expect("it is readable"), None);
    let scan = Scan {
        range: range("a", "z"),
        limit: 10,
        order: Order::Ascending,
    };
    let keys: Vec<_> = snapshot
        .scan(&scan)
        .await
        .expect("it is readable")
        .rows
        .into_iter()
        .map(|row| row.0)
        .collect();
    assert_eq!(keys, ["a", "b"]);
}

async fn versions_grow(kv: &Arc<dyn Kv>) {
    let first = store(kv, &[("a", "1")]).await;
    let between = kv.snapshot().await.expect("a snapshot is given").version();
    let second = store(kv, &[("a", "2")]).await;
    let after = kv.snapshot().await.expect("a snapshot is given").version();
    assert!(
        first <= between && between < second && second <= after,
        "{first:?} {between:?} {second:?} {after:?}"
    );
}

async fn empty_commit_is_checked_as_others(kv: &Arc<dyn Kv>) {
    let mut late = begin(kv).await;
    get(&mut late, "a").await;
    store(kv, &[("a", "1")]).await;
    conflicts(late).await;
    let mut txn = begin(kv).await;
    get(&mut txn, "a").await;
    let before = committed(txn).await;
    let nothing = committed(begin(kv).await).await;
    assert_eq!(before, nothing, "what writes nothing takes no version");
    assert_eq!(get(&mut begin(kv).await, "a").await.as_deref(), Some("1"));
}

async fn bounds_are_errors(kv: &Arc<dyn Kv>) {
    let too_large = Some(ErrorKind::TooLarge);
    let (longest, longer) = (vec![b'k'; KEY_LEN_MAX], vec![b'k'; KEY_LEN_MAX + 1]);
    let mut txn = begin(kv).await;
    assert_eq!(kind(txn.put(Vec::new(), "")), too_large, "an empty key");
    assert_eq!(kind(txn.put(longer.clone(), "")), too_large);
    assert_eq!(kind(txn.delete(longer.clone())), too_large);
    assert_eq!(kind(txn.get(&longer).await), too_large);
    assert_eq!(kind(txn.put("a", vec![0; VALUE_LEN_MAX + 1])), too_large);
    txn.put(longest.clone(), vec![7; VALUE_LEN_MAX])
        .expect("the largest row is within the bounds");
    committed(txn).await;
    let value = begin(kv).await.get(&longest).await.expect("it is readable");
    assert_eq!(value.map(|value| value.len()), Some(VALUE_LEN_MAX));

    let mut txn = begin(kv).await;
    for index in 0..TXN_OPS_MAX {
        txn.put(format!("{index}"), "")
            .expect("as many operations are within the bounds");
    }
    assert_eq!(kind(txn.put("one more", "")), too_large);

    let mut txn = begin(kv).await;
    let rows = TXN_BYTES_MAX / (VALUE_LEN_MAX + 4);
    for index in 0..rows {
        txn.put(format!("{index:04}"), vec![0; VALUE_LEN_MAX])
            .expect("as many bytes are within the bounds");
    }
    assert_eq!(kind(txn.put("last", vec![0; VALUE_LEN_MAX])), too_large);
}

async fn scan_bounds_are_errors(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    for limit in [0, SCAN_ROWS_MAX + 1] {
        let scan = Scan {
            range: range("a", "z"),
            limit,
            order: Order::Ascending,
        };
        assert_eq!(kind(txn.scan(&scan).await), Some(ErrorKind::TooLarge), "{limit}");
    }
    let mut txn = begin(kv).await;
    for index in 0..=SCAN_ROWS_MAX {
        txn.put(format!("{index:06}"), "")
            .expect("the row is within the bounds");
    }
    committed(txn).await;
    let mut txn = begin(kv).await;
    assert_eq!(kind(txn.scan_all(range("0", "9")).await), Some(ErrorKind::TooLarge));
    let rows = txn
        .scan_all(range("000001", "9"))
        .await
        .expect("as many rows are within the bounds");
    assert_eq!(rows.len(), SCAN_ROWS_MAX);
}

async fn binary_keys_sort_by_bytes(kv: &Arc<dyn Kv>) {
    let keys = [
        &[0][..],
        &[0, 0],
        &[0, 255],
        &[1],
        &[127],
        &[128],
        &[255],
        &[255, 0],
        &[255, 255],
    ];
    let mut txn = begin(kv).await;
    for key in keys.iter().rev() {
        txn.put(key.to_vec(), "").expect("the key is within the bounds");
    }
    committed(txn).await;
    let mut txn = begin(kv).await;
    let all = txn.scan_all(prefix_range(b"")).await.expect("the range is readable");
    assert_eq!(all.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), keys);
    let last = txn.scan_all(prefix_range(&[255])).await.expect("the range is readable");
    assert_eq!(last.len(), 3);
}
