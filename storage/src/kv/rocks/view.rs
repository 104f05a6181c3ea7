//! A RocksDB snapshot that keeps its database open.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, IteratorMode, ReadOptions, ReadTier};
use self_cell::self_cell;

use crate::kv::{Fold, Order, Page, Scan, page};

type DbSnapshot<'a> = rocksdb::Snapshot<'a>;

self_cell!(
    /// A RocksDB snapshot together with the database that it borrows from.
    pub(super) struct View {
        owner: Arc<DB>,
        #[covariant]
        dependent: DbSnapshot,
    }
);

impl View {
    /// The rows of `db` as they are now.
    pub(super) fn of(db: &Arc<DB>) -> Self {
        Self::new(Arc::clone(db), |db| db.snapshot())
    }

    pub(super) fn get(&self, key: &[u8], tier: ReadTier) -> Result<Option<Bytes>, rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.set_read_tier(tier);
        let value = self.borrow_dependent().get_pinned_opt(key, options)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(super) fn scan(&self, scan: &Scan) -> Result<Page, rocksdb::Error> {
        let mode = match scan.order {
            Order::Ascending => IteratorMode::Start,
            Order::Descending => IteratorMode::End,
        };
        let rows = self.borrow_dependent().iterator_opt(mode, within(scan));
        page::collect(scan, rows.map(|row| row.map(|(key, value)| (key.into(), value.into()))))
    }

    pub(super) fn scan_folded(&self, scan: &Scan, fold: &Fold) -> Result<Page, rocksdb::Error> {
        let mut rows = self.borrow_dependent().raw_iterator_opt(within(scan));
        page::collect_folded(scan, fold, |start| {
            rows.seek(start);
            rows.status()?;
            let copy = |(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            Ok(rows.item().map(copy))
        })
    }
}

/// Keeps an iterator from reading what lies outside of the range.
fn within(scan: &Scan) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(&scan.range.start[..]);
    options.set_iterate_upper_bound(&scan.range.end[..]);
    options
}
