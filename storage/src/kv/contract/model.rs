//! Random transactions against a `BTreeMap`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::{begin, committed};
use crate::kv::{Kv, MemoryKv, Order, RocksKv, Scan};

#[derive(Debug, Clone)]
enum Op {
    Put(Bytes, Bytes),
    Delete(Bytes),
    Get(Bytes),
    Scan(Scan),
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
            }
        }
        if transaction.commit {
            committed(txn).await;
            rows = mine;
        }
    }
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
