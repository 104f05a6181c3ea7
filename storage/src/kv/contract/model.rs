//! Random transactions against a `BTreeMap`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::{begin, committed, conflicts};
use crate::kv::{Kv, MemoryKv, Order, RocksKv, Scan};

#[derive(Debug, Clone)]
enum Op {
    Put(Bytes, Bytes),
    Delete(Bytes),
    Get(Bytes),
    Scan(Scan),
    Add(Bytes, i64),
    Counter(Bytes),
    AtMost(Bytes, u64),
}

#[derive(Debug, Clone)]
struct Transaction {
    ops: Vec<Op>,
    commit: bool,
}

type Rows = BTreeMap<Bytes, Bytes>;

/// Short keys of few letters, so that operations meet.
fn key() -> impl Strategy<Value = Bytes> {
    vec(prop::sample::select(vec![0, b'a', b'b', 255]), 1..4).prop_map(Bytes::from)
}

/// Keys of counters: none that holds anything else, and in the midst of those.
fn counter_key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["an", "bn", "n"]).prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    let order = prop_oneof![Just(Order::Ascending), Just(Order::Descending)];
    prop_oneof![
        (key(), vec(any::<u8>(), 0..4)).prop_map(|(key, value)| Op::Put(key, value.into())),
        key().prop_map(Op::Delete),
        key().prop_map(Op::Get),
        (key(), key(), 1_usize..8, order).prop_map(|(start, end, limit, order)| Op::Scan(Scan {
            range: start..end,
            limit,
            order
        })),
        (counter_key(), -4_i64..8).prop_map(|(key, delta)| Op::Add(key, delta)),
        counter_key().prop_map(Op::Counter),
        (counter_key(), 0_u64..32).prop_map(|(key, max)| Op::AtMost(key, max)),
    ]
}

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let transaction =
        (vec(op(), 1..16), prop::bool::weighted(0.8)).prop_map(|(ops, commit)| Transaction { ops, commit });
    vec(transaction, 1..12)
}

async fn check(kv: Arc<dyn Kv>, transactions: Vec<Transaction>) {
    let mut rows = Rows::new();
    for transaction in transactions {
        let mut txn = begin(&kv).await;
        let mut mine = rows.clone();
        let mut sums = BTreeMap::new();
        let mut limits = Vec::new();
        for op in transaction.ops {
            match op {
                Op::Put(key, value) => {
                    txn.put(key.clone(), value.clone()).unwrap();
                    mine.insert(key, value);
                }
                Op::Delete(key) => {
                    txn.delete(key.clone()).unwrap();
                    mine.remove(&key);
                }
                Op::Get(key) => assert_eq!(txn.get(&key).await.unwrap().as_ref(), mine.get(&key)),
                Op::Scan(scan) => {
                    let page = txn.scan(&scan).await.unwrap();
                    let expected = expected_rows(&mine, &scan);
                    assert_eq!(page.rows, expected[..expected.len().min(scan.limit)], "{scan:?}");
                    // A stop at a bound may be reported although only deleted rows are left.
                    assert!(page.more || expected.len() <= scan.limit, "{scan:?}");
                }
                Op::Add(key, delta) => {
                    txn.add(key.clone(), delta).unwrap();
                    // What a transaction adds is summed up first, and then stops at zero.
                    let sum = sums.entry(key.clone()).or_insert(0_i64);
                    *sum += delta;
                    let total = number(&rows, &key).saturating_add_signed(*sum);
                    match total {
                        0 => mine.remove(&key),
                        total => mine.insert(key, Bytes::copy_from_slice(&total.to_be_bytes())),
                    };
                }
                Op::Counter(key) => assert_eq!(txn.counter(&key).await.unwrap(), number(&mine, &key)),
                Op::AtMost(key, max) => {
                    txn.require_at_most(key.clone(), max).unwrap();
                    limits.push((key, max));
                }
            }
        }
        if !transaction.commit {
            continue;
        }
        if limits.iter().all(|(key, max)| number(&mine, key) <= *max) {
            committed(txn).await;
            rows = mine;
        } else {
            conflicts(txn).await;
        }
    }
}

fn number(rows: &Rows, key: &Bytes) -> u64 {
    rows.get(key)
        .map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
}

fn expected_rows(rows: &Rows, scan: &Scan) -> Vec<(Bytes, Bytes)> {
    if scan.range.is_empty() {
        return Vec::new();
    }
    let rows = rows
        .range(scan.range.clone())
        .map(|(key, value)| (key.clone(), value.clone()));
    match scan.order {
        Order::Ascending => rows.collect(),
        Order::Descending => rows.rev().collect(),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future);
}

proptest! {
    #[test]
    fn memory_agrees_with_a_map(transactions in transactions()) {
        block_on(check(Arc::new(MemoryKv::new()), transactions));
    }
}

proptest! {
    // Each case opens and syncs a store of its own.
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn rocks_agrees_with_a_map(transactions in transactions()) {
        let folder = tempfile::tempdir().unwrap();
        block_on(check(Arc::new(RocksKv::open(folder.path()).unwrap()), transactions));
    }
}
