//! Reads a layout of either form from any offset on.

use std::{ops::Range, sync::Arc};

use super::{
    Layout, Piece,
    paged::{ENTRIES_PER_BLOB, ENTRY_LEN, Entry, PagedLayout},
};
use crate::{
    blob::Blobs,
    error::{Error, Result},
};

/// Entries that are read at a time: 40 KiB, so one or two blocks of a blob.
const PAGE_ENTRIES: u64 = 1024;

/// A position in a layout.
#[derive(Debug)]
pub struct LayoutCursor {
    blobs: Arc<dyn Blobs>,
    layout: Arc<Layout>,
    offset: u64,
    page: Page,
}

/// Some entries of a paged layout, and where they end.
#[derive(Debug, Default)]
struct Page {
    first: u64,
    entries: Vec<Entry>,
    /// Object offsets that the entries cover.
    covers: Range<u64>,
}

impl LayoutCursor {
    /// A cursor at the first byte.
    pub fn new(blobs: Arc<dyn Blobs>, layout: Arc<Layout>) -> Self {
        Self {
            blobs,
            layout,
            offset: 0,
            page: Page::default(),
        }
    }

    /// Where it stands.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves to `offset`. Costs nothing until the next read.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// What lies here, up to the end of its extent and at most `len_max` bytes, and moves behind it. `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the entries are damaged;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if they cannot be read.
    pub async fn next(&mut self, len_max: u64) -> Result<Option<Piece>> {
        let layout = Arc::clone(&self.layout);
        if self.offset >= layout.size() {
            return Ok(None);
        }
        let piece = match &*layout {
            Layout::Listed(list) => list.at(self.offset, len_max),
            Layout::Paged(paged) => {
                if !self.page.covers.contains(&self.offset) {
                    self.page = self.load_page(paged).await?;
                }
                Some(self.page.at(self.offset, len_max)?)
            }
        };
        if let Some(piece) = &piece {
            self.offset = self.offset.saturating_add(piece.len);
        }
        Ok(piece)
    }

    /// The page that covers the current offset: the next one when reading on, else by binary search.
    async fn load_page(&self, paged: &PagedLayout) -> Result<Page> {
        let next = self.page.first.saturating_add(self.page.entries.len() as u64);
        let reading_on = !self.page.entries.is_empty() && self.offset == self.page.covers.end;
        let first = if reading_on { next } else { self.search(paged).await? };
        let mut entries = self.read_entries(paged, first, PAGE_ENTRIES.saturating_add(1)).await?;
        let end = if entries.len() as u64 > PAGE_ENTRIES {
            entries.pop().map_or(paged.size, |entry| entry.start)
        } else {
            paged.size
        };
        let start = entries.first().map_or(end, |entry| entry.start);
        let page = Page {
            first,
            entries,
            covers: start..end,
        };
        if !page.covers.contains(&self.offset) {
            return Err(Error::corrupt(format!(
                "no entry of the layout covers offset {}",
                self.offset
            )));
        }
        Ok(page)
    }

    /// The number of the first entry of the page in which the current offset lies.
    async fn search(&self, paged: &PagedLayout) -> Result<u64> {
        let mut pages = 0..paged.count.div_ceil(PAGE_ENTRIES);
        while pages.end.saturating_sub(pages.start) > 1 {
            let middle = pages.start.midpoint(pages.end);
            let first = self.read_entries(paged, middle.saturating_mul(PAGE_ENTRIES), 1).await?;
            match first.first() {
                Some(entry) if entry.start <= self.offset => pages.start = middle,
                _ => pages.end = middle,
            }
        }
        Ok(pages.start.saturating_mul(PAGE_ENTRIES))
    }

    /// At most `count` entries from number `first` on.
    async fn read_entries(&self, paged: &PagedLayout, first: u64, count: u64) -> Result<Vec<Entry>> {
        let last = first.saturating_add(count).min(paged.count);
        let mut entries = Vec::with_capacity(usize::try_from(last.saturating_sub(first)).unwrap_or(0));
        let mut number = first;
        while number < last {
            let index = usize::try_from(number / ENTRIES_PER_BLOB).unwrap_or(usize::MAX);
            let id = *paged
                .blobs
                .get(index)
                .ok_or_else(|| Error::corrupt("a layout has more entries than pages"))?;
            let within = number % ENTRIES_PER_BLOB;
            let take = last.saturating_sub(number).min(ENTRIES_PER_BLOB.saturating_sub(within));
            let start = within.saturating_mul(ENTRY_LEN);
            let range = start..start.saturating_add(take.saturating_mul(ENTRY_LEN));
            let mut bytes = self.blobs.open(id).await?.read(range).await?;
            for _ in 0..take {
                entries.push(Entry::get(&mut bytes)?);
            }
            number = number.saturating_add(take);
        }
        Ok(entries)
    }
}

impl Page {
    fn at(&self, offset: u64, len_max: u64) -> Result<Piece> {
        let index = self
            .entries
            .partition_point(|entry| entry.start <= offset)
            .saturating_sub(1);
        let damaged = || Error::corrupt(format!("no entry of the layout covers offset {offset}"));
        let entry = self.entries.get(index).ok_or_else(damaged)?;
        let end = self
            .entries
            .get(index.saturating_add(1))
            .map_or(self.covers.end, |next| next.start);
        let skip = offset.checked_sub(entry.start).ok_or_else(damaged)?;
        Ok(entry.piece(end)?.part(skip, len_max))
    }
}
