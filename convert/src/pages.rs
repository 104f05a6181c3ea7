//! Tables of an image file, read by pages as they are asked for.
//!
//! A table may be as large as a file makes it; a reader needs a few entries of it at a time. The pages that were read last
//! are kept, within a bound that does not depend on the image.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::safety::{self, Region};
use crate::{Error, ReadAt};

/// How much of a table is read at once. QEMU's largest L2 table is 2 MiB, of which a reader needs a few entries.
pub(crate) const PAGE_LEN: u64 = 64 << 10;
/// How many pages are kept: 1 MiB in all, enough for a few readers that go their own ways.
const PAGE_COUNT_MAX: usize = 16;

/// The length of an entry in bytes.
pub(crate) const fn entry_len<const N: usize>() -> NonZeroU64 {
    NonZeroU64::new(N as u64).expect("an entry is not empty")
}

/// Entries of a table, in the order of the file.
pub(crate) type Page<T> = Arc<[T]>;

/// The pages that were read last, the latest in front, of tables whose entries are `N` bytes and mean a `T`.
#[derive(Debug)]
pub(crate) struct Pages<const N: usize, T> {
    parse: fn([u8; N]) -> T,
    kept: Mutex<VecDeque<(u64, Page<T>)>>,
}

impl<const N: usize, T: Copy> Pages<N, T> {
    /// `parse` makes an entry of its bytes: it is where the byte order is said.
    pub(crate) fn new(parse: fn([u8; N]) -> T) -> Self {
        Self {
            parse,
            kept: Mutex::default(),
        }
    }

    /// Reads the page of a table that starts at `region`, which has been checked and is no longer than [`PAGE_LEN`].
    pub(crate) fn read(&self, source: &dyn ReadAt, region: Region) -> Result<Page<T>, Error> {
        if let Some(page) = self.find(region.offset) {
            return Ok(page);
        }
        let bytes = safety::read_region(source, region)?;
        let (entries, _) = bytes.as_chunks();
        let page: Page<T> = entries.iter().map(|entry| (self.parse)(*entry)).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(PAGE_COUNT_MAX.saturating_sub(1));
        kept.push_front((region.offset, Arc::clone(&page)));
        Ok(page)
    }

    /// Entry `index` of a table that has been checked, and those that follow it in its page.
    ///
    /// Beyond the end of the table there are none.
    pub(crate) fn entries(&self, source: &dyn ReadAt, table: Region, index: u64) -> Result<Entries<T>, Error> {
        let within = index.saturating_mul(N as u64);
        let start = within.saturating_sub(within % PAGE_LEN);
        let len = table.len.saturating_sub(start).min(PAGE_LEN);
        let region = Region {
            name: table.name,
            offset: table.offset.saturating_add(start),
            len,
        };
        let page = if len == 0 {
            Page::from([])
        } else {
            self.read(source, region)?
        };
        let first = usize::try_from(within.saturating_sub(start) / entry_len::<N>()).unwrap_or(usize::MAX);
        Ok(Entries { page, first })
    }

    fn find(&self, offset: u64) -> Option<Page<T>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let index = kept.iter().position(|(key, _)| *key == offset)?;
        let (key, page) = kept.remove(index)?;
        kept.push_front((key, Arc::clone(&page)));
        Some(page)
    }
}

/// Entries of a table, from the one that was asked for to the end of its page.
#[derive(Debug)]
pub(crate) struct Entries<T> {
    page: Page<T>,
    first: usize,
}

impl<T> Deref for Entries<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.page.get(self.first..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(offset: u64, len: u64) -> Region {
        Region {
            name: "table",
            offset,
            len,
        }
    }

    #[test]
    fn pages_are_kept_within_bounds() {
        let source: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
        let pages = Pages::new(u64::from_be_bytes);
        for round in 0..3 {
            for index in 0..40 {
                let page = pages.read(&source, region(index * 16, 16)).unwrap();
                assert_eq!(page.len(), 2, "round {round}");
            }
            assert_eq!(pages.kept.lock().unwrap().len(), PAGE_COUNT_MAX);
        }
        assert_eq!(*pages.read(&source, region(8, 8)).unwrap(), [0x0809_0a0b_0c0d_0e0f]);
    }

    #[test]
    fn entries_go_to_the_end_of_the_page_or_of_the_table() {
        let source: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        let pages = Pages::new(u32::from_le_bytes);
        let table = region(4, 4 * 40_000);
        for (index, first, len) in [
            (0, 1, 16384),
            (16383, 16384, 1),
            (16384, 16385, 16384),
            (39_999, 40_000, 1),
        ] {
            let entries = pages.entries(&source, table, index).unwrap();
            assert_eq!((entries[0], entries.len()), (first, len), "{index}");
        }
        for index in [40_000, 50_000, u64::MAX] {
            assert!(pages.entries(&source, table, index).unwrap().is_empty(), "{index}");
        }
    }
}
