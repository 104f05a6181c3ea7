//! Counters: what they hold, what conflicts, and what their limits keep.

use std::sync::Arc;

use bytes::Bytes;

use super::{begin, committed, conflicts, kind, range};
use crate::{
    error::ErrorKind,
    kv::{Kv, Order, Scan, TXN_OPS_MAX, Txn},
};

pub(super) async fn run(make: &impl AsyncFn() -> Arc<dyn Kv>) {
    additions_are_summed_up(&make().await).await;
    transaction_sees_its_own_additions(&make().await).await;
    additions_do_not_conflict_with_each_other(&make().await).await;
    protected_read_of_a_counter_conflicts_with_an_addition(&make().await).await;
    limit_counts_what_others_have_added(&make().await).await;
    limit_without_a_write_is_checked(&make().await).await;
    counters_stop_at_zero(&make().await).await;
    later_addition_sees_an_earlier_put(&make().await).await;
    mixed_use_and_bounds_are_errors(&make().await).await;
}

fn add(txn: &mut Txn, key: &'static str, delta: i64) {
    txn.add(key, delta).expect("the addition is within the bounds");
}

fn at_most(txn: &mut Txn, key: &'static str, max: u64) {
    txn.require_at_most(key, max).expect("the limit is within the bounds");
}

async fn counter(txn: &Txn, key: &str) -> u64 {
    txn.counter(key.as_bytes()).await.expect("the counter is readable")
}

/// Commits the addition alone.
async fn added(kv: &Arc<dyn Kv>, key: &'static str, delta: i64) {
    let mut txn = begin(kv).await;
    add(&mut txn, key, delta);
    committed(txn).await;
}

async fn additions_are_summed_up(kv: &Arc<dyn Kv>) {
    assert_eq!(counter(&begin(kv).await, "n").await, 0, "an absent counter");
    for (delta, sum) in [(5, 5), (300, 305), (-4, 301), (0, 301), (-301, 0)] {
        added(kv, "n", delta).await;
        let mut txn = begin(kv).await;
        assert_eq!(counter(&txn, "n").await, sum);
        let row = txn.get(b"n").await.expect("the key is readable");
        let expected = (sum > 0).then(|| Bytes::copy_from_slice(&sum.to_be_bytes()));
        assert_eq!(row, expected, "eight big-endian bytes, and nothing for zero");
    }
}

async fn transaction_sees_its_own_additions(kv: &Arc<dyn Kv>) {
    for (key, delta) in [("a", 1), ("b", 2), ("c", 3)] {
        added(kv, key, delta).await;
    }
    let mut txn = begin(kv).await;
    add(&mut txn, "a", 7);
    add(&mut txn, "a", 2);
    add(&mut txn, "b", -2);
    add(&mut txn, "d", 4);
    let mut seen = Vec::new();
    for key in ["a", "b", "c", "d"] {
        seen.push(counter(&txn, key).await);
    }
    assert_eq!(seen, [10, 0, 3, 4]);
    let row = txn.get(b"a").await.expect("the key is readable");
    assert_eq!(row.as_deref(), Some(&10_u64.to_be_bytes()[..]));
    assert_eq!(txn.get(b"b").await.expect("the key is readable"), None);
    for order in [Order::Ascending, Order::Descending] {
        let scan = Scan {
            range: range("a", "z"),
            limit: 3,
            order,
        };
        let page = txn.scan(&scan).await.expect("the range is readable");
        let mut rows: Vec<_> = page.rows.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        rows.sort_unstable();
        let (ten, three, four) = (10_u64.to_be_bytes(), 3_u64.to_be_bytes(), 4_u64.to_be_bytes());
        let expected: [(&[u8], &[u8]); 3] = [(b"a", &ten), (b"c", &three), (b"d", &four)];
        assert_eq!(rows, expected, "{order:?}");
    }
    committed(txn).await;
    assert_eq!(counter(&begin(kv).await, "a").await, 10);
    assert_eq!(counter(&begin(kv).await, "b").await, 0);
}

async fn additions_do_not_conflict_with_each_other(kv: &Arc<dyn Kv>) {
    let (mut first, mut second) = (begin(kv).await, begin(kv).await);
    for txn in [&mut first, &mut second] {
        // Looking protects nothing.
        assert_eq!(counter(txn, "n").await, 0);
        // What is read besides is protected as ever.
        assert!(txn.get(b"other").await.expect("the key is readable").is_none());
        add(txn, "n", 3);
    }
    committed(first).await;
    committed(second).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 6);
}

async fn protected_read_of_a_counter_conflicts_with_an_addition(kv: &Arc<dyn Kv>) {
    let (mut by_key, mut by_scan) = (begin(kv).await, begin(kv).await);
    by_key.get(b"n").await.expect("the key is readable");
    assert!(!by_scan.any(range("m", "o")).await.expect("the range is readable"));
    for txn in [&mut by_key, &mut by_scan] {
        add(txn, "n", 1);
    }
    added(kv, "n", 1).await;
    conflicts(by_key).await;
    conflicts(by_scan).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 1, "a conflict adds nothing");
}

async fn limit_counts_what_others_have_added(kv: &Arc<dyn Kv>) {
    let with_limit = async |delta: i64, max: u64| {
        let mut txn = begin(kv).await;
        add(&mut txn, "n", delta);
        at_most(&mut txn, "n", u64::MAX);
        at_most(&mut txn, "n", max);
        at_most(&mut txn, "n", max + 1);
        txn
    };
    let (first, second, third) = (
        with_limit(6, 10).await,
        with_limit(6, 10).await,
        with_limit(4, 10).await,
    );
    committed(first).await;
    conflicts(second).await;
    committed(third).await;
    let again = with_limit(6, 10).await;
    assert_eq!(counter(&again, "n").await, 16, "a retry sees what it lost against");
    drop(again);
    conflicts(with_limit(0, 9).await).await;
    committed(with_limit(-3, 7).await).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 7);
}

async fn limit_without_a_write_is_checked(kv: &Arc<dyn Kv>) {
    added(kv, "n", 5).await;
    for (max, holds) in [(5, true), (4, false)] {
        let mut txn = begin(kv).await;
        at_most(&mut txn, "n", max);
        if holds {
            committed(txn).await;
        } else {
            conflicts(txn).await;
        }
    }
}

async fn counters_stop_at_zero(kv: &Arc<dyn Kv>) {
    added(kv, "n", 5).await;
    let mut txn = begin(kv).await;
    add(&mut txn, "n", -8);
    assert_eq!(counter(&txn, "n").await, 0);
    committed(txn).await;
    added(kv, "n", 2).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 2);
}

/// Blind writes and additions may share a group: each sees those before it.
async fn later_addition_sees_an_earlier_put(kv: &Arc<dyn Kv>) {
    let mut put = begin(kv).await;
    put.put("n", 40_u64.to_be_bytes().to_vec())
        .expect("the row is within the bounds");
    let (mut added, mut deleted, mut last) = (begin(kv).await, begin(kv).await, begin(kv).await);
    add(&mut added, "n", 2);
    at_most(&mut added, "n", 42);
    deleted.delete("n").expect("the key is within the bounds");
    add(&mut last, "n", 1);
    committed(put).await;
    committed(added).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 42);
    committed(deleted).await;
    committed(last).await;
    assert_eq!(counter(&begin(kv).await, "n").await, 1);
}

async fn mixed_use_and_bounds_are_errors(kv: &Arc<dyn Kv>) {
    let mixed = Some(ErrorKind::InvalidArgument);
    let mut txn = begin(kv).await;
    txn.put("put", "").expect("the row is within the bounds");
    add(&mut txn, "added", 1);
    at_most(&mut txn, "limited", 1);
    assert_eq!(kind(txn.add("put", 1)), mixed);
    assert_eq!(kind(txn.require_at_most("put", 1)), mixed);
    assert_eq!(kind(txn.put("added", "")), mixed);
    assert_eq!(kind(txn.delete("added")), mixed);
    assert_eq!(kind(txn.delete("limited")), mixed);
    assert_eq!(kind(txn.counter(b"put").await), Some(ErrorKind::Corrupt));
    let too_large = Some(ErrorKind::TooLarge);
    assert_eq!(kind(txn.add("", 1)), too_large);
    assert_eq!(kind(txn.counter(b"").await), too_large);
    add(&mut txn, "huge", i64::MAX);
    assert_eq!(kind(txn.add("huge", 1)), too_large);

    let mut txn = begin(kv).await;
    for index in 0..TXN_OPS_MAX - 1 {
        txn.add(format!("{index}"), 1)
            .expect("as many operations are within the bounds");
    }
    txn.add("0", 1)
        .expect("one more addition to a key is no more operation");
    at_most(&mut txn, "limited", 1);
    assert_eq!(kind(txn.add("one more", 1)), too_large);
}
