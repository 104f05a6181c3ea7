//! Writes a layout of any length, in bounded memory.

use bytes::{Bytes, BytesMut};

use super::{
    Extent, ExtentList, Layout, Piece,
    paged::{ENTRIES_PER_BLOB, Entry, PagedLayout},
};
use crate::{
    blob::{BlobId, BlobWriter},
    error::Result,
    staging::Staging,
};

/// Most inline bytes that are kept in a record. Small objects live there whole: one synced transaction, no file.
pub(crate) const LISTED_INLINE_MAX: u64 = 4 << 10;
/// Entries are written to their blob in chunks of this many bytes.
const PAGE_CHUNK_LEN: usize = 256 << 10;

/// Collects extents, in order, and writes what does not fit a record to blobs of `staging`.
#[derive(Debug)]
pub(crate) struct LayoutBuilder {
    /// What has not gone to pages: everything, as long as it is short.
    list: ExtentList,
    /// Where new bytes go.
    bytes: Option<(BlobId, Box<dyn BlobWriter>, u64)>,
    pages: Option<Pages>,
}

/// Entries on their way to blobs.
#[derive(Debug)]
struct Pages {
    size: u64,
    count: u64,
    blobs: Vec<BlobId>,
    writer: Option<Box<dyn BlobWriter>>,
    buffer: BytesMut,
}

impl LayoutBuilder {
    pub(crate) fn new() -> Self {
        Self {
            list: ExtentList::default(),
            bytes: None,
            pages: None,
        }
    }

    /// Adds an extent that exists already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if pages cannot be written.
    pub(crate) async fn push(&mut self, staging: &mut Staging, piece: Piece) -> Result<()> {
        if let Extent::Inline(bytes) = piece.extent {
            return self.push_bytes(staging, bytes).await;
        }
        self.list.push(piece);
        self.spill(staging).await
    }

    /// Adds new bytes: inline while there are few, else in a blob.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if they cannot be written.
    pub(crate) async fn push_bytes(&mut self, staging: &mut Staging, bytes: Bytes) -> Result<()> {
        let len = bytes.len() as u64;
        let inline = self.bytes.is_none() && self.pages.is_none() && self.list.inline_len() + len <= LISTED_INLINE_MAX;
        if inline {
            self.list.push(Piece {
                len,
                extent: Extent::Inline(bytes),
            });
        } else {
            let mut rest = bytes;
            while !rest.is_empty() {
                let piece = self.write_bytes(staging, &mut rest).await?;
                self.list.push(piece);
            }
        }
        self.spill(staging).await
    }

    /// Writes as much of `rest` as the current blob takes.
    async fn write_bytes(&mut self, staging: &mut Staging, rest: &mut Bytes) -> Result<Piece> {
        let blob_len_max = staging.limits().blob_len_max;
        if self.bytes.as_ref().is_some_and(|(_, _, len)| *len >= blob_len_max)
            && let Some((id, writer, _)) = self.bytes.take()
        {
            staging.seal(id, writer).await?;
        }
        if self.bytes.is_none() {
            let (id, writer) = staging.create_blob().await?;
            self.bytes = Some((id, writer, 0));
        }
        let (id, writer, written) = self.bytes.as_mut().expect("a blob was just made");
        let room = usize::try_from(blob_len_max.saturating_sub(*written)).unwrap_or(usize::MAX);
        let chunk = rest.split_to(rest.len().min(room));
        let piece = Piece {
            len: chunk.len() as u64,
            extent: Extent::Blob {
                id: *id,
                offset: *written,
            },
        };
        *written += piece.len;
        writer.append(chunk).await?;
        Ok(piece)
    }

    /// The layout, with everything it needs sealed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be written.
    pub(crate) async fn finish(mut self, staging: &mut Staging) -> Result<Layout> {
        if self.pages.is_some() {
            self.flush_list(staging, 0).await?;
        }
        if let Some((id, writer, _)) = self.bytes.take() {
            staging.seal(id, writer).await?;
        }
        match self.pages {
            None => Ok(Layout::Listed(self.list)),
            Some(mut pages) => {
                pages.close_blob(staging).await?;
                Ok(Layout::Paged(PagedLayout {
                    size: pages.size,
                    count: pages.count,
                    blobs: pages.blobs,
                }))
            }
        }
    }

    /// Goes over to pages when the list has become long, and then writes it out now and again.
    async fn spill(&mut self, staging: &mut Staging) -> Result<()> {
        if self.list.count() <= staging.limits().listed_count_max {
            return Ok(());
        }
        if self.pages.is_none() {
            self.pages = Some(Pages {
                size: 0,
                count: 0,
                blobs: Vec::new(),
                writer: None,
                buffer: BytesMut::new(),
            });
        }
        // The last extent stays, because the next may go on where it ends.
        self.flush_list(staging, 1).await
    }

    /// Moves all but the last `keep` extents to pages.
    async fn flush_list(&mut self, staging: &mut Staging, keep: usize) -> Result<()> {
        let list = std::mem::take(&mut self.list);
        let moved = list.count().saturating_sub(keep);
        for (number, piece) in list.pieces().enumerate() {
            if number >= moved {
                self.list.push(piece.clone());
            } else if let Extent::Inline(bytes) = &piece.extent {
                // Bytes that were inline go to a blob now.
                let mut rest = bytes.clone();
                while !rest.is_empty() {
                    let piece = self.write_bytes(staging, &mut rest).await?;
                    self.push_entry(staging, &piece).await?;
                }
            } else {
                self.push_entry(staging, piece).await?;
            }
        }
        Ok(())
    }

    async fn push_entry(&mut self, staging: &mut Staging, piece: &Piece) -> Result<()> {
        let pages = self.pages.as_mut().expect("the list is flushed to pages only");
        pages.push(staging, piece).await
    }
}

impl Pages {
    async fn push(&mut self, staging: &mut Staging, piece: &Piece) -> Result<()> {
        if self.count > 0 && self.count.is_multiple_of(ENTRIES_PER_BLOB) {
            self.close_blob(staging).await?;
        }
        let blob = match piece.extent {
            Extent::Blob { id, offset } => Some((id, offset)),
            Extent::Zero | Extent::Inline(_) => None,
        };
        Entry { start: self.size, blob }.put(&mut self.buffer);
        self.size = self.size.saturating_add(piece.len);
        self.count += 1;
        if self.buffer.len() >= PAGE_CHUNK_LEN {
            self.flush(staging).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, staging: &mut Staging) -> Result<()> {
        if self.writer.is_none() {
            let (id, writer) = staging.create_blob().await?;
            self.blobs.push(id);
            self.writer = Some(writer);
        }
        let chunk = self.buffer.split().freeze();
        self.writer.as_mut().expect("a blob was just made").append(chunk).await
    }

    async fn close_blob(&mut self, staging: &mut Staging) -> Result<()> {
        self.flush(staging).await?;
        if let (Some(writer), Some(id)) = (self.writer.take(), self.blobs.last()) {
            staging.seal(*id, writer).await?;
        }
        Ok(())
    }
}
