//! Goes through a range of the index that may change meanwhile, a page at a time.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{
    error::Result,
    kv::{Kv, Order, SCAN_ROWS_MAX, Scan, Snapshot, Txn},
    store::Store,
};

/// Rows of a page.
const PAGE_ROWS: usize = 128;

/// What is left to see of a range.
#[derive(Debug)]
pub(crate) struct Rows {
    range: Range<Bytes>,
    more: bool,
}

impl Rows {
    /// All of `range`.
    pub(crate) fn of(range: Range<Bytes>) -> Self {
        Self { range, more: true }
    }

    /// The next rows as they are now; `None` at the end of the range.
    pub(crate) async fn next(&mut self, store: &Store) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        self.next_of(&store.core.kv).await
    }

    /// As [`Rows::next`], for who has no store.
    pub(crate) async fn next_of(&mut self, kv: &Arc<dyn Kv>) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        if !self.more {
            return Ok(None);
        }
        self.next_in(&mut Txn::begin(kv).await?).await
    }

    /// The next rows as `txn` sees them; they are protected in it.
    pub(crate) async fn next_in(&mut self, txn: &mut Txn) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        if !self.more {
            return Ok(None);
        }
        let scan = Scan {
            range: self.range.clone(),
            limit: PAGE_ROWS,
            order: Order::Ascending,
        };
        let page = txn.scan(&scan).await?;
        self.more = page.more;
        match page.rows.last() {
            Some((last, _)) => self.range.start = [&last[..], &[0]].concat().into(),
            None => self.more = false,
        }
        Ok(Some(page.rows))
    }
}

/// What is left to see of a range of one snapshot: for work over whole tables, which protects nothing.
#[derive(Debug)]
pub(crate) struct Pages {
    range: Range<Bytes>,
    more: bool,
}

impl Pages {
    /// All of `range`.
    pub(crate) fn of(range: Range<Bytes>) -> Self {
        Self { range, more: true }
    }

    /// The next rows, in order; `None` at the end of the range.
    pub(crate) async fn next(&mut self, snapshot: &dyn Snapshot) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        if !self.more {
            return Ok(None);
        }
        let scan = Scan {
            range: self.range.clone(),
            limit: SCAN_ROWS_MAX,
            order: Order::Ascending,
        };
        let page = snapshot.scan(&scan).await?;
        self.more = page.more;
        if let Some((last, _)) = page.rows.last() {
            self.range.start = [&last[..], &[0]].concat().into();
        }
        Ok((!page.rows.is_empty()).then_some(page.rows))
    }
}
