//! Which transactions conflict, and which do not.

use std::sync::Arc;

use super::{begin, committed, conflicts, delete, get, put, range, scan, store};
use crate::kv::{Durability, Kv, Order, Txn};

pub(super) async fn run(make: &impl AsyncFn() -> Arc<dyn Kv>) {
    blind_writes_do_not_conflict(&make().await).await;
    changed_key_conflicts(&make().await).await;
    key_written_with_the_same_value_conflicts(&make().await).await;
    absent_key_that_appears_conflicts(&make().await).await;
    other_keys_do_not_conflict(&make().await).await;
    phantom_in_a_scanned_range_conflicts(&make().await).await;
    phantom_beyond_what_was_seen_does_not_conflict(&make().await).await;
    row_deleted_from_a_scanned_range_conflicts(&make().await).await;
    write_skew_is_prevented(&make().await).await;
    conflict_has_no_effect(&make().await).await;
    loser_wins_when_it_runs_again(&make().await).await;
    buffered_commit_conflicts_as_well(&make().await).await;
}

async fn blind_writes_do_not_conflict(kv: &Arc<dyn Kv>) {
    let (mut first, mut second) = (begin(kv).await, begin(kv).await);
    put(&mut first, "a", "first");
    put(&mut second, "a", "second");
    committed(second).await;
    committed(first).await;
    assert_eq!(
        get(&mut begin(kv).await, "a").await.as_deref(),
        Some("first"),
        "the last commit wins"
    );
}

async fn changed_key_conflicts(kv: &Arc<dyn Kv>) {
    store(kv, &[("a", "1")]).await;
    let mut txn = begin(kv).await;
    get(&mut txn, "a").await;
    put(&mut txn, "b", "1");
    store(kv, &[("a", "2")]).await;
    conflicts(txn).await;
}

async fn key_written_with_the_same_value_conflicts(kv: &Arc<dyn Kv>) {
    store(kv, &[("a", "1")]).await;
    let mut txn = begin(kv).await;
    get(&mut txn, "a").await;
    put(&mut txn, "b", "1");
    store(kv, &[("a", "2")]).await;
    store(kv, &[("a", "1")]).await;
    conflicts(txn).await;
}

async fn absent_key_that_appears_conflicts(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    assert_eq!(get(&mut txn, "a").await, None);
    put(&mut txn, "a", "mine");
    store(kv, &[("a", "yours")]).await;
    conflicts(txn).await;
}

async fn other_keys_do_not_conflict(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    get(&mut txn, "b").await;
    scan(&mut txn, range("d", "f"), 10, Order::Ascending).await;
    put(&mut txn, "h", "1");
    // Its own writes are no reads: another may change them.
    get(&mut txn, "h").await;
    store(kv, &[("a", "1"), ("c", "1"), ("f", "1"), ("g", "1"), ("h", "2")]).await;
    committed(txn).await;
}

async fn phantom_in_a_scanned_range_conflicts(kv: &Arc<dyn Kv>) {
    for (key, order) in [("b", Order::Ascending), ("c", Order::Descending)] {
        let mut txn = begin(kv).await;
        scan(&mut txn, range("b", "d"), 10, order).await;
        put(&mut txn, "x", "1");
        store(kv, &[(key, "1")]).await;
        conflicts(txn).await;
    }
}

async fn phantom_beyond_what_was_seen_does_not_conflict(kv: &Arc<dyn Kv>) {
    store(kv, &[("b", "1"), ("d", "1"), ("f", "1")]).await;
    for (order, seen, unseen) in [(Order::Ascending, "c", "e"), (Order::Descending, "e", "c")] {
        let mut beyond = begin(kv).await;
        scan(&mut beyond, range("a", "z"), 2, order).await;
        put(&mut beyond, "zz", "1");
        let mut within = begin(kv).await;
        scan(&mut within, range("a", "z"), 2, order).await;
        put(&mut within, "zz", "1");
        store(kv, &[(unseen, "1")]).await;
        committed(beyond).await;
        store(kv, &[(seen, "1")]).await;
        conflicts(within).await;
        let mut txn = begin(kv).await;
        delete(&mut txn, seen);
        delete(&mut txn, unseen);
        committed(txn).await;
    }
}

async fn row_deleted_from_a_scanned_range_conflicts(kv: &Arc<dyn Kv>) {
    store(kv, &[("b", "1")]).await;
    let mut txn = begin(kv).await;
    assert!(txn.any(range("a", "z")).await.expect("the range is readable"));
    put(&mut txn, "x", "1");
    let mut other = begin(kv).await;
    delete(&mut other, "b");
    committed(other).await;
    conflicts(txn).await;
}

/// Two of two are on call, and each may leave while the other stays. Snapshot isolation would let both leave.
async fn write_skew_is_prevented(kv: &Arc<dyn Kv>) {
    store(kv, &[("call/alice", "on"), ("call/bob", "on")]).await;
    let leave = async |name: &str| -> Txn {
        let mut txn = begin(kv).await;
        assert_eq!(
            scan(&mut txn, range("call/", "call0"), 10, Order::Ascending)
                .await
                .matches("=on")
                .count(),
            2
        );
        put(&mut txn, name, "off");
        txn
    };
    let (alice, bob) = (leave("call/alice").await, leave("call/bob").await);
    committed(alice).await;
    conflicts(bob).await;
}

async fn conflict_has_no_effect(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    get(&mut txn, "a").await;
    put(&mut txn, "a", "lost");
    put(&mut txn, "b", "lost");
    store(kv, &[("a", "kept")]).await;
    conflicts(txn).await;
    let mut txn = begin(kv).await;
    assert_eq!(get(&mut txn, "a").await.as_deref(), Some("kept"));
    assert_eq!(get(&mut txn, "b").await, None);
}

async fn loser_wins_when_it_runs_again(kv: &Arc<dyn Kv>) {
    for attempt in 0..2 {
        let mut txn = begin(kv).await;
        get(&mut txn, "a").await;
        put(&mut txn, "a", "mine");
        if attempt == 0 {
            store(kv, &[("a", "yours")]).await;
            conflicts(txn).await;
        } else {
            committed(txn).await;
        }
    }
}

async fn buffered_commit_conflicts_as_well(kv: &Arc<dyn Kv>) {
    let mut txn = begin(kv).await;
    txn.set_durability(Durability::Buffered);
    get(&mut txn, "a").await;
    put(&mut txn, "a", "1");
    let mut other = begin(kv).await;
    other.set_durability(Durability::Buffered);
    put(&mut other, "a", "2");
    committed(other).await;
    conflicts(txn).await;
}
