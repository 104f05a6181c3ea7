//! Reads an object: a layout and a range, to a stream.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use crate::{
    blob::{Blob, BlobId, Blobs},
    error::{Error, ErrorKind, Result},
    layout::{Extent, Layout, LayoutCursor, Piece},
    pin::LayoutPin,
    schema::LayoutId,
};

/// Bytes that a stream reads at a time.
const CHUNK_LEN: usize = 512 << 10;
/// Chunks that a stream reads ahead of its consumer.
const READ_AHEAD: usize = 2;

/// As many as a chunk, so that holes are streamed without being made.
static ZEROS: [u8; CHUNK_LEN] = [0; CHUNK_LEN];

/// The bytes of an object, in order.
pub type ReadStream = BoxStream<'static, Result<Bytes>>;

/// Reads the bytes of one object version, which stay while this exists.
#[derive(Debug)]
pub struct ObjectReader {
    blobs: Arc<dyn Blobs>,
    layout: Arc<Layout>,
    cursor: LayoutCursor,
    /// The blob that was read last.
    open: Option<(BlobId, Arc<dyn Blob>)>,
    /// Keeps the object's blobs; staged content is kept by its owner.
    pin: Option<Arc<LayoutPin>>,
}

impl ObjectReader {
    pub(crate) fn new(blobs: Arc<dyn Blobs>, layout: Arc<Layout>, pin: Option<Arc<LayoutPin>>) -> Self {
        let cursor = LayoutCursor::new(Arc::clone(&blobs), Arc::clone(&layout));
        Self {
            blobs,
            layout,
            cursor,
            open: None,
            pin,
        }
    }

    /// The object's length in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// Whether it reads the version with `layout`.
    pub(crate) fn reads(&self, layout: LayoutId) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.key() == layout)
    }

    /// What lies at `offset`, up to the end of its extent and at most `len_max` bytes; `None` from the end on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the layout cannot be read.
    pub async fn piece_at(&mut self, offset: u64, len_max: u64) -> Result<Option<Piece>> {
        self.cursor.seek(offset);
        self.cursor.next(len_max).await
    }

    /// The bytes of `range`, all in memory: the caller bounds it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the range is not within the object; [`ErrorKind::Corrupt`] or
    /// [`ErrorKind::Io`] if its bytes cannot be read.
    pub async fn read(&mut self, range: Range<u64>) -> Result<Bytes> {
        let mut chunks: Vec<Bytes> = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let piece = self
                .piece_at(offset, range.end.saturating_sub(offset))
                .await?
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidArgument,
                        format!(
                            "bytes {}..{} are not within the {} of the object",
                            range.start,
                            range.end,
                            self.size()
                        ),
                    )
                })?;
            offset = offset.saturating_add(piece.len);
            chunks.push(self.read_piece(&piece).await?);
        }
        if chunks.len() == 1
            && let Some(chunk) = chunks.pop()
        {
            return Ok(chunk);
        }
        Ok(chunks.concat().into())
    }

    /// The bytes of `range`, cut off at the object's end, as a stream that reads a little ahead.
    pub fn stream(self, range: Range<u64>) -> ReadStream {
        let range = range.start..range.end.min(self.size());
        // The reader, and with it the pin, lives until the last piece is found; from then on its open blob is enough.
        let chunks = stream::try_unfold((self, range), |(mut reader, mut range)| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let len_max = range.end.saturating_sub(range.start).min(CHUNK_LEN as u64);
            let piece = reader.piece_at(range.start, len_max).await?;
            let piece = piece.ok_or_else(|| Error::corrupt("the layout ends before the object"))?;
            range.start = range.start.saturating_add(piece.len);
            let bytes = reader.pending(piece).await?;
            Ok(Some((bytes, (reader, range))))
        });
        chunks
            .map(|pending: Result<Pending>| async move { pending?.read().await })
            .buffered(READ_AHEAD)
            .boxed()
    }

    async fn read_piece(&mut self, piece: &Piece) -> Result<Bytes> {
        self.pending(piece.clone()).await?.read().await
    }

    /// Finds the blob that `piece` lies in.
    async fn pending(&mut self, piece: Piece) -> Result<Pending> {
        let Extent::Blob { id, .. } = piece.extent else {
            return Ok(Pending { piece, blob: None });
        };
        let blob = match &self.open {
            Some((open, blob)) if *open == id => Arc::clone(blob),
            _ => {
                let blob = self.blobs.open(id).await?;
                self.open = Some((id, Arc::clone(&blob)));
                blob
            }
        };
        Ok(Pending {
            piece,
            blob: Some(blob),
        })
    }
}

/// A piece whose blob is open.
struct Pending {
    piece: Piece,
    blob: Option<Arc<dyn Blob>>,
}

impl Pending {
    async fn read(self) -> Result<Bytes> {
        match (self.piece.extent, self.blob) {
            (Extent::Inline(bytes), _) => Ok(bytes),
            (Extent::Blob { offset, .. }, Some(blob)) => blob.read(offset..offset.saturating_add(self.piece.len)).await,
            _ => Ok(zeros(self.piece.len)),
        }
    }
}

/// `len` zeros; without a copy while they are few.
fn zeros(len: u64) -> Bytes {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match ZEROS.get(..len) {
        Some(zeros) => Bytes::from_static(zeros),
        None => vec![0; len].into(),
    }
}

impl crate::Store {
    /// Reads content that is staged and whose [`Content`](crate::Content) the caller keeps meanwhile.
    pub fn staged_reader(&self, layout: &Layout) -> ObjectReader {
        ObjectReader::new(Arc::clone(&self.core.blobs), Arc::new(layout.clone()), None)
    }
}
