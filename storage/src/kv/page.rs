//! How a scan ends, the same for every engine.

use bytes::Bytes;

use super::{Fold, Page, SCAN_BYTES_MAX, Scan, prefix_range};

/// Takes rows, which come in the order asked for, up to the limit and [`SCAN_BYTES_MAX`].
///
/// # Errors
///
/// The first error among `rows`.
pub(super) fn collect<E>(scan: &Scan, rows: impl Iterator<Item = Result<(Bytes, Bytes), E>>) -> Result<Page, E> {
    let mut page = Filling::of(scan);
    for row in rows {
        let (key, value) = row?;
        if !page.takes(key, value) {
            break;
        }
    }
    Ok(page.page)
}

/// Takes the first row of each group that `fold` makes, as [`collect`] does. `first` gives the first row from a key on.
///
/// # Errors
///
/// The first error of `first`.
pub(super) fn collect_folded<E>(
    scan: &Scan,
    fold: &Fold,
    mut first: impl FnMut(&[u8]) -> Result<Option<(Bytes, Bytes)>, E>,
) -> Result<Page, E> {
    let mut page = Filling::of(scan);
    let mut start = scan.range.start.clone();
    while let Some((key, value)) = first(&start)?.filter(|(key, _)| key < &scan.range.end) {
        start = match fold.shared(&key) {
            Some(shared) => prefix_range(shared).end,
            None => successor(&key),
        };
        if !page.takes(key, value) {
            break;
        }
    }
    Ok(page.page)
}

/// The smallest key after `key`.
pub(super) fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// A page that is being filled.
struct Filling {
    page: Page,
    bytes: usize,
    limit: usize,
}

impl Filling {
    fn of(scan: &Scan) -> Self {
        Self {
            page: Page::default(),
            bytes: 0,
            limit: scan.limit,
        }
    }

    /// Whether the row still has room; if not, the page ends before it.
    fn takes(&mut self, key: Bytes, value: Bytes) -> bool {
        if self.page.rows.len() >= self.limit || self.bytes >= SCAN_BYTES_MAX {
            self.page.more = true;
            return false;
        }
        self.bytes += key.len() + value.len();
        self.page.rows.push((key, value));
        true
    }
}
