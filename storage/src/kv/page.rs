//! How a scan ends, the same for every engine.

use bytes::Bytes;

use super::{Page, SCAN_BYTES_MAX, Scan};

/// Takes rows, which come in the order asked for, up to the limit and [`SCAN_BYTES_MAX`].
///
/// # Errors
///
/// The first error among `rows`.
pub(super) fn collect<E>(scan: &Scan, rows: impl Iterator<Item = Result<(Bytes, Bytes), E>>) -> Result<Page, E> {
    let mut page = Page::default();
    let mut bytes = 0;
    for row in rows {
        let (key, value) = row?;
        if page.rows.len() >= scan.limit || bytes >= SCAN_BYTES_MAX {
            page.more = true;
            break;
        }
        bytes += key.len() + value.len();
        page.rows.push((key, value));
    }
    Ok(page)
}
