//! Many transactions at a time, and what must hold at every moment and at the end.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::FutureExt;

use super::{begin, get, put, range, store, text};
use crate::{
    error::Result,
    kv::{Durability, Kv, Txn, transact},
};

/// Tasks of each case.
const TASKS: usize = 16;

pub(super) async fn run(make: &impl AsyncFn() -> Arc<dyn Kv>) {
    increments_are_all_counted(&make().await).await;
    transfers_keep_the_sum(&make().await).await;
    one_of_many_creators_wins(&make().await).await;
    limit_is_reached_and_never_passed(&make().await).await;
    dropped_commits_do_not_block_others(&make().await).await;
}

/// Runs `task` as often as [`TASKS`] says, at the same time, and gives what they returned.
async fn all<T, F>(kv: &Arc<dyn Kv>, task: impl Fn(Arc<dyn Kv>, usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let tasks: Vec<_> = (0..TASKS)
        .map(|index| tokio::spawn(task(Arc::clone(kv), index)))
        .collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await.expect("no task panics").expect("no transaction fails"));
    }
    results
}

async fn increments_are_all_counted(kv: &Arc<dyn Kv>) {
    const EACH: u64 = 100;
    all(kv, async |kv, index| {
        for _ in 0..EACH {
            transact!(&kv, |txn| {
                // Every other task is buffered, so that groups are mixed.
                txn.set_durability(if index % 2 == 0 {
                    Durability::Synced
                } else {
                    Durability::Buffered
                });
                let count = number(txn.get(b"count").await?);
                txn.put("count", (count + 1).to_string())
            });
        }
        Ok(())
    })
    .await;
    let expected = (TASKS as u64 * EACH).to_string();
    assert_eq!(get(&mut begin(kv).await, "count").await, Some(expected));
}

const ACCOUNTS: u64 = 8;

/// Money moves between accounts, and auditors add them all up, with a scan, in between.
async fn transfers_keep_the_sum(kv: &Arc<dyn Kv>) {
    for account in 0..ACCOUNTS {
        store(kv, &[(&account_key(account), "100")]).await;
    }
    all(kv, async |kv, index| {
        let mut random = index as u64;
        for _ in 0..50 {
            random = next_random(random);
            let (from, to, amount) = (random % ACCOUNTS, (random >> 8) % ACCOUNTS, (random >> 16) % 50);
            transact!(&kv, |txn| { transfer(&mut txn, from, to, amount).await });
            assert_eq!(sum(&mut Txn::begin(&kv).await?).await?, ACCOUNTS * 100);
        }
        Ok(())
    })
    .await;
    assert_eq!(sum(&mut begin(kv).await).await.expect("it is readable"), ACCOUNTS * 100);
}

async fn transfer(txn: &mut Txn, from: u64, to: u64, amount: u64) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let (from, to) = (account_key(from), account_key(to));
    let (source, target) = (
        number(txn.get(from.as_bytes()).await?),
        number(txn.get(to.as_bytes()).await?),
    );
    let amount = amount.min(source);
    txn.put(from, (source - amount).to_string())?;
    txn.put(to, (target + amount).to_string())
}

async fn sum(txn: &mut Txn) -> Result<u64> {
    let rows = txn.scan_all(range("account/", "account0")).await?;
    Ok(rows.into_iter().map(|(_, value)| number(Some(value))).sum())
}

async fn one_of_many_creators_wins(kv: &Arc<dyn Kv>) {
    let created = all(kv, async |kv, index| {
        Ok(transact!(&kv, |txn| {
            let free = !txn.any(range("bucket/", "bucket0")).await?;
            if free {
                txn.put(format!("bucket/{index}"), "")?;
            }
            Ok(free)
        }))
    })
    .await;
    assert_eq!(created.into_iter().filter(|created| *created).count(), 1);
}

/// All add until the limit stops them.
async fn limit_is_reached_and_never_passed(kv: &Arc<dyn Kv>) {
    const DELTA: i64 = 7;
    const MAX: u64 = 1000;
    let committed = all(kv, async |kv, index| {
        let mut committed = 0_u64;
        loop {
            let full = transact!(&kv, |txn| {
                // Every task writes a row of its own as well, so that rows and counter can be compared.
                if txn.counter(b"used").await? + DELTA.unsigned_abs() > MAX {
                    return Ok(true);
                }
                txn.add("used", DELTA)?;
                txn.require_at_most("used", MAX)?;
                txn.put(format!("row/{index}/{committed}"), "")?;
                Ok(false)
            });
            if full {
                return Ok(committed);
            }
            committed += 1;
        }
    })
    .await;
    let fit = MAX / DELTA.unsigned_abs();
    assert_eq!(committed.iter().sum::<u64>(), fit);
    let txn = &mut begin(kv).await;
    let used = txn.counter(b"used").await.expect("the counter is readable");
    assert_eq!(used, fit * DELTA.unsigned_abs());
    let rows = txn
        .scan_all(range("row/", "row0"))
        .await
        .expect("the range is readable");
    assert_eq!(rows.len() as u64, fit);
}

async fn dropped_commits_do_not_block_others(kv: &Arc<dyn Kv>) {
    for round in 0..50 {
        let mut txn = begin(kv).await;
        put(&mut txn, "dropped", &round.to_string());
        // Polled once and dropped: the engine may have it, and nobody waits for the answer.
        let _ = txn.commit().now_or_never();
    }
    store(kv, &[("a", "1")]).await;
    assert_eq!(get(&mut begin(kv).await, "a").await.as_deref(), Some("1"));
}

fn account_key(account: u64) -> String {
    format!("account/{account}")
}

fn number(value: Option<Bytes>) -> u64 {
    value.map_or(0, |value| text(&value).parse().expect("the cases store numbers"))
}

/// A linear congruential step (Knuth, MMIX), with the better upper bits returned.
fn next_random(random: u64) -> u64 {
    random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
        >> 16
}
