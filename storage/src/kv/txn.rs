//! A transaction: what every engine shares.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    Commit, Durability, KEY_LEN_MAX, Kv, Order, Outcome, Page, SCAN_ROWS_MAX, Scan, Snapshot, TXN_BYTES_MAX,
    TXN_OPS_MAX, VALUE_LEN_MAX, counter, page::successor,
};
use crate::error::{Error, ErrorKind, Result};

/// A transaction over one snapshot, with its writes buffered until [`Txn::commit`].
///
/// Dropping it without a commit has no effect on the store.
#[derive(Debug)]
pub struct Txn {
    kv: Arc<dyn Kv>,
    snapshot: Box<dyn Snapshot>,
    read_keys: BTreeSet<Bytes>,
    read_ranges: Vec<Range<Bytes>>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
    adds: BTreeMap<Bytes, i64>,
    at_most: BTreeMap<Bytes, u64>,
    written_bytes: usize,
    durability: Durability,
}

impl Txn {
    /// Starts a transaction at the latest version.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the engine cannot be read.
    pub async fn begin(kv: &Arc<dyn Kv>) -> Result<Self> {
        Ok(Self {
            snapshot: kv.snapshot().await?,
            kv: Arc::clone(kv),
            read_keys: BTreeSet::new(),
            read_ranges: Vec::new(),
            writes: BTreeMap::new(),
            adds: BTreeMap::new(),
            at_most: BTreeMap::new(),
            written_bytes: 0,
            durability: Durability::default(),
        })
    }

    /// Says when the commit counts as done; [`Durability::Synced`] unless told.
    pub fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }

    /// The value of `key`, as this transaction has left it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] over a bound of this module; [`ErrorKind::Io`] if the engine cannot be read.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        check_key(key)?;
        if let Some(written) = self.writes.get(key) {
            return Ok(written.clone());
        }
        if !self.read_keys.contains(key) {
            self.read_keys.insert(Bytes::copy_from_slice(key));
            self.check_ops()?;
        }
        let stored = self.snapshot.get(key).await?;
        match self.adds.get(key) {
            Some(delta) => counter::add(key, stored.as_deref(), *delta),
            None => Ok(stored),
        }
    }

    /// The values of `keys`, in their order.
    ///
    /// # Errors
    ///
    /// As for [`Txn::get`].
    pub async fn get_many(&mut self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.get(key).await?);
        }
        Ok(values)
    }

    /// The rows that `scan` asks for, as this transaction has left them.
    ///
    /// What is protected is the part of the range that was really seen: up to the last row where a limit stopped it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] over a bound of this module; [`ErrorKind::Io`] if the engine cannot be read.
    pub async fn scan(&mut self, scan: &Scan) -> Result<Page> {
        check_scan(scan)?;
        if scan.range.start >= scan.range.end {
            return Ok(Page::default());
        }
        // Every buffered delete in the range, and every counter that reaches zero, may hide a stored row, so the engine is
        // asked for as many more.
        let deletes = self.writes.range(scan.range.clone());
        let drains = self.adds.range(scan.range.clone());
        let hidden =
            deletes.filter(|(_, value)| value.is_none()).count() + drains.filter(|(_, delta)| **delta < 0).count();
        let wanted = scan.limit.saturating_add(hidden).min(SCAN_ROWS_MAX);
        let stored = self
            .snapshot
            .scan(&Scan {
                limit: wanted,
                ..scan.clone()
            })
            .await?;
        let seen = seen_range(scan, &stored);
        self.read_ranges.push(seen.clone());
        self.check_ops()?;
        self.overlay(scan, seen, stored)
    }

    /// All rows of `range`, for ranges known to be short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] if there are more than [`SCAN_ROWS_MAX`]; otherwise as for [`Txn::scan`].
    pub async fn scan_all(&mut self, range: Range<Bytes>) -> Result<Vec<(Bytes, Bytes)>> {
        let page = self
            .scan(&Scan {
                range,
                limit: SCAN_ROWS_MAX,
                order: Order::Ascending,
            })
            .await?;
        if page.more {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a scan found more than {SCAN_ROWS_MAX} rows"),
            ));
        }
        Ok(page.rows)
    }

    /// Whether `range` holds any row.
    ///
    /// # Errors
    ///
    /// As for [`Txn::scan`].
    pub async fn any(&mut self, range: Range<Bytes>) -> Result<bool> {
        Ok(!self
            .scan(&Scan {
                range,
                limit: 1,
                order: Order::Ascending,
            })
            .await?
            .rows
            .is_empty())
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] over a bound of this module.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        let value = value.into();
        if value.len() > VALUE_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a value of {} bytes is over the bound of {VALUE_LEN_MAX}", value.len()),
            ));
        }
        self.write(key.into(), Some(value))
    }

    /// Removes `key`, which need not be there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] over a bound of this module.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> Result<()> {
        self.write(key.into(), None)
    }

    /// Adds `delta` to the counter under `key`, without reading it: transactions that add to one counter do not conflict
    /// with each other. A counter is eight big-endian bytes; an absent one is 0, and one that becomes 0 is removed. The
    /// result stays within `u64`: whoever takes more than there is leaves 0, and the engine logs it as an error.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if this transaction puts or deletes `key`; [`ErrorKind::TooLarge`] over a bound of
    /// this module, or if the sum of what it adds to `key` is.
    pub fn add(&mut self, key: impl Into<Bytes>, delta: i64) -> Result<()> {
        let key = key.into();
        self.check_counter(&key)?;
        let before = self.adds.get(&key).copied();
        let sum = before.unwrap_or(0).checked_add(delta).ok_or_else(|| {
            Error::new(
                ErrorKind::TooLarge,
                "a transaction adds more to a counter than 64 bits hold",
            )
        })?;
        if before.is_none() {
            self.count_bytes(key.len() + counter::COUNTER_LEN)?;
        }
        self.adds.insert(key, sum);
        self.check_ops()
    }

    /// Lets the commit meet a conflict unless the counter under `key` is at most `max` at its place in the serial order,
    /// its own additions included. Of several limits the smallest counts.
    ///
    /// Where the limit is reached a retry would meet it again for ever, so the body looks before it requires:
    ///
    /// ```text
    /// txn.add(usage, len)?;
    /// if txn.counter(usage).await? > max {
    ///     return Err(over_the_limit());
    /// }
    /// txn.require_at_most(usage, max)?;
    /// ```
    ///
    /// A conflict then means that others were faster; the next snapshot contains what they added.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if this transaction puts or deletes `key`; [`ErrorKind::TooLarge`] over a bound of
    /// this module.
    pub fn require_at_most(&mut self, key: impl Into<Bytes>, max: u64) -> Result<()> {
        let key = key.into();
        self.check_counter(&key)?;
        let limit = self.at_most.entry(key).or_insert(max);
        *limit = max.min(*limit);
        self.check_ops()
    }

    /// What this transaction adds to the counter under `key`, all in all.
    pub fn added(&self, key: &[u8]) -> i64 {
        self.adds.get(key).copied().unwrap_or(0)
    }

    /// The counter under `key` as this transaction has left it. Unlike [`Txn::get`] it protects nothing: others may add to
    /// it before this transaction commits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the row is no counter; [`ErrorKind::TooLarge`] over a bound of this module;
    /// [`ErrorKind::Io`] if the engine cannot be read.
    pub async fn counter(&self, key: &[u8]) -> Result<u64> {
        check_key(key)?;
        if let Some(written) = self.writes.get(key) {
            return counter::parse(key, written.as_deref());
        }
        let stored = counter::parse(key, self.snapshot.get(key).await?.as_deref())?;
        Ok(stored.saturating_add_signed(self.added(key)))
    }

    /// How many operations it has so far, of at most [`TXN_OPS_MAX`].
    pub fn ops(&self) -> usize {
        self.read_keys.len() + self.read_ranges.len() + self.writes.len() + self.adds.len() + self.at_most.len()
    }

    /// Commits the writes, if nothing that was read has changed. Without writes too the engine decides: see
    /// [`Kv::commit`]. Who only reads does not commit.
    pub async fn commit(self) -> Outcome {
        let commit = Commit {
            read_version: self.snapshot.version(),
            read_keys: self.read_keys.into_iter().collect(),
            read_ranges: self.read_ranges,
            writes: self.writes,
            adds: self.adds,
            at_most: self.at_most,
            durability: self.durability,
        };
        self.kv.commit(commit).await
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) -> Result<()> {
        check_key(&key)?;
        if self.adds.contains_key(&key) || self.at_most.contains_key(&key) {
            return Err(mixed_use());
        }
        self.count_bytes(key.len() + value.as_ref().map_or(0, Bytes::len))?;
        self.writes.insert(key, value);
        self.check_ops()
    }

    fn check_counter(&self, key: &[u8]) -> Result<()> {
        check_key(key)?;
        if self.writes.contains_key(key) {
            return Err(mixed_use());
        }
        Ok(())
    }

    fn count_bytes(&mut self, len: usize) -> Result<()> {
        self.written_bytes = self.written_bytes.saturating_add(len);
        if self.written_bytes > TXN_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a transaction writes over {TXN_BYTES_MAX} bytes"),
            ));
        }
        Ok(())
    }

    fn check_ops(&self) -> Result<()> {
        if self.ops() > TXN_OPS_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a transaction has over {TXN_OPS_MAX} operations"),
            ));
        }
        Ok(())
    }

    /// Lays the buffered writes and additions within `seen` over the stored rows.
    fn overlay(&self, scan: &Scan, seen: Range<Bytes>, stored: Page) -> Result<Page> {
        let mut merged: BTreeMap<Bytes, Bytes> = stored.rows.into_iter().collect();
        for (key, value) in self.writes.range(seen.clone()) {
            lay(&mut merged, key, value.clone());
        }
        for (key, delta) in self.adds.range(seen) {
            let sum = counter::add(key, merged.get(key).map(|value| &value[..]), *delta)?;
            lay(&mut merged, key, sum);
        }
        let more = stored.more || merged.len() > scan.limit;
        let rows = match scan.order {
            Order::Ascending => merged.into_iter().take(scan.limit).collect(),
            Order::Descending => merged.into_iter().rev().take(scan.limit).collect(),
        };
        Ok(Page { rows, more })
    }
}

fn lay(rows: &mut BTreeMap<Bytes, Bytes>, key: &Bytes, value: Option<Bytes>) {
    match value {
        Some(value) => rows.insert(key.clone(), value),
        None => rows.remove(key),
    };
}

fn mixed_use() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "a transaction both writes a key and uses it as a counter",
    )
}

/// The part of the range that the stored page covers.
fn seen_range(scan: &Scan, stored: &Page) -> Range<Bytes> {
    let Some((last, _)) = stored.rows.last().filter(|_| stored.more) else {
        return scan.range.clone();
    };
    match scan.order {
        Order::Ascending => scan.range.start.clone()..successor(last),
        Order::Descending => last.clone()..scan.range.end.clone(),
    }
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a key of {} bytes is not within 1 and {KEY_LEN_MAX}", key.len()),
        ));
    }
    Ok(())
}

fn check_scan(scan: &Scan) -> Result<()> {
    if scan.limit == 0 || scan.limit > SCAN_ROWS_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a scan of {} rows is not within 1 and {SCAN_ROWS_MAX}", scan.limit),
        ));
    }
    Ok(())
}

/// How often a body is run before the caller is told that its keys are contended.
const ATTEMPTS_MAX: u32 = 64;
/// After so many conflicts a transaction runs alone. Few get there; when one does, all others wait for a few commits.
const FREE_ATTEMPTS: u32 = 8;

/// Lets transactions run together, or one alone. Fair: who wants to be alone waits for those that run, not for those
/// that come later. One for the process, because its threads are what may starve a transaction.
static GATE: RwLock<()> = RwLock::const_new(());

/// Leave to run one attempt.
#[derive(Debug)]
enum Pass {
    Together { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// Runs a transaction again when it meets a conflict; used through `transact!`.
///
/// The first times at once: the winner has committed already, so someone made progress. But it may always be the same
/// ones: who is slower between snapshot and commit than another who changes the same key can lose for ever, however
/// long it sleeps. So it gets to run alone in the end.
#[derive(Debug, Default)]
pub struct Retry {
    attempts: u32,
    pass: Option<Pass>,
}

impl Retry {
    /// Starts the next attempt.
    ///
    /// # Errors
    ///
    /// As for [`Txn::begin`].
    pub async fn begin(&mut self, kv: &Arc<dyn Kv>) -> Result<Txn> {
        if self.attempts >= FREE_ATTEMPTS {
            if !matches!(self.pass, Some(Pass::Alone { .. })) {
                self.pass = None;
                self.pass = Some(Pass::Alone {
                    _guard: GATE.write().await,
                });
            }
        } else if self.pass.is_none() {
            self.pass = Some(Pass::Together {
                _guard: GATE.read().await,
            });
        }
        Txn::begin(kv).await
    }

    /// Commits `txn` if its body succeeded. `None` means: run the body again.
    ///
    /// # Errors
    ///
    /// The body's own error; [`ErrorKind::OutcomeUnknown`] if the engine failed while committing;
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if it takes no commits;
    /// [`ErrorKind::Contended`] after many conflicts.
    pub async fn finish<T>(&mut self, txn: Txn, body: Result<T>) -> Result<Option<T>> {
        let value = body?;
        match txn.commit().await {
            Outcome::Committed(_) => Ok(Some(value)),
            Outcome::Refused(source) => Err(source),
            Outcome::Unknown(source) => Err(Error::new(
                ErrorKind::OutcomeUnknown,
                "the index could not say whether it committed",
            )
            .caused_by(source)),
            Outcome::Conflict => {
                self.attempts += 1;
                if self.attempts >= ATTEMPTS_MAX {
                    return Err(Error::new(
                        ErrorKind::Contended,
                        "too many concurrent changes of the same keys",
                    ));
                }
                Ok(None)
            }
        }
    }
}

/// Runs a body of reads and writes as a transaction, again after each conflict: `transact!(kv, |txn| { … Ok(value) })`.
///
/// The body is an async block that ends in a `Result`. It may run several times, so it must have no effect but on
/// `txn`; in particular it must not run another transaction by this macro, whose turn might never come while this one
/// waits for it. A macro rather than a function over an async closure, because a closure's future cannot yet be named as
/// `Send` for every lifetime of its argument.
macro_rules! transact {
    ($kv:expr, |$txn:ident| $body:block) => {{
        let mut retry = $crate::kv::Retry::default();
        loop {
            let mut $txn = retry.begin($kv).await?;
            let body: $crate::error::Result<_> = async { $body }.await;
            if let Some(value) = retry.finish($txn, body).await? {
                break value;
            }
        }
    }};
}
pub(crate) use transact;
