//! One pass over a body: digests, zero runs, blobs, layout.
//!
//! The body is cut into grains of 64 KiB. A grain of zeros becomes an extent of zeros and is not stored; other bytes
//! are appended to a blob, a new one whenever it is full, sealed while the next is being written. Digests are computed
//! beside, so that hashing, writing and receiving overlap. A body of at most 4 KiB is kept in the layout itself and needs
//! no blob.
//!
//! Memory is bounded per body, whatever the size of the chunks it comes in: the chunk in hand, one grain, and what
//! hashing and the blob's writer hold, each two buffers of 256 KiB; so about 1.1 MiB. Dropping the future, or an error,
//! discards everything that was written.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::task::JoinHandle;

use crate::{
    blob::{BlobId, BlobWriter},
    digest::{DigestSet, Digests},
    error::{Error, ErrorKind, Result},
    hashing::Hashing,
    layout::{Extent, LayoutBuilder, Piece},
    schema::LayoutId,
    staging::{Content, Staging},
    store::Store,
};

/// The unit in which zeros are looked for. Clusters and blocks of disk images are multiples of it, or divide it.
const GRAIN_LEN: usize = 64 << 10;
/// Larger chunks of a body are taken in pieces of this length.
const CHUNK_LEN_MAX: usize = 256 << 10;
/// Bodies up to this length are kept in the layout.
const INLINE_LEN_MAX: u64 = crate::layout::INLINE_LEN_MAX;

/// What is asked of an ingest.
#[derive(Debug, Clone, Default)]
pub struct IngestOptions {
    /// The length the client declared; another length is an error.
    pub declared_len: Option<u64>,
    /// The length beyond which the body is refused.
    pub len_max: Option<u64>,
    /// Digests to compute beside MD5.
    pub digests: DigestSet,
    /// The upload a part is for: its blobs belong to the upload.
    pub upload: Option<LayoutId>,
}

/// A body that is in the store, but not yet an object's.
#[derive(Debug)]
pub struct Ingested {
    /// Where it is.
    pub content: Content,
    /// Its digests.
    pub digests: Digests,
}

/// An error of a body's source.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Store {
    /// Takes in a body.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IncompleteBody`] if it has another length than declared; [`ErrorKind::TooLarge`] beyond `len_max`;
    /// [`ErrorKind::BodyFailed`], with the body's own error as the source; [`ErrorKind::Io`] if the disk fails. Nothing
    /// is left behind then.
    pub async fn ingest<S>(&self, body: S, options: IngestOptions) -> Result<Ingested>
    where
        S: Stream<Item = std::result::Result<Bytes, BodyError>> + Send,
    {
        let owner = options.upload.unwrap_or_else(|| LayoutId::generate(self.now()));
        let mut ingest = Ingest::new(Staging::new(Arc::clone(&self.core), owner), &options);
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|e| Error::new(ErrorKind::BodyFailed, "the body broke off").caused_by(e))?;
            while !chunk.is_empty() {
                ingest.push(chunk.split_to(chunk.len().min(CHUNK_LEN_MAX))).await?;
            }
        }
        ingest.finish().await
    }
}

/// A body on its way in.
struct Ingest {
    options: IngestOptions,
    len: u64,
    hashing: Hashing,
    /// The grain that is not full yet.
    grain: BytesMut,
    sink: Sink,
}

impl Ingest {
    fn new(staging: Staging, options: &IngestOptions) -> Self {
        Self {
            options: options.clone(),
            len: 0,
            hashing: Hashing::new(&options.digests),
            grain: BytesMut::new(),
            sink: Sink {
                staging,
                layout: LayoutBuilder::new(),
                blob: None,
                sealing: None,
            },
        }
    }

    async fn push(&mut self, chunk: Bytes) -> Result<()> {
        self.len = self.len.saturating_add(chunk.len() as u64);
        self.check_len()?;
        self.hashing.update(chunk.clone()).await?;
        self.cut(chunk).await
    }

    fn check_len(&self) -> Result<()> {
        if let Some(declared) = self.options.declared_len
            && self.len > declared
        {
            return Err(Error::new(
                ErrorKind::IncompleteBody,
                format!("the body goes on after the {declared} bytes declared"),
            ));
        }
        if let Some(len_max) = self.options.len_max
            && self.len > len_max
        {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the body is over {len_max} bytes"),
            ));
        }
        Ok(())
    }

    /// Cuts `chunk` at grains, taking up the grain that was begun.
    async fn cut(&mut self, mut chunk: Bytes) -> Result<()> {
        if !self.grain.is_empty() {
            let missing = GRAIN_LEN.saturating_sub(self.grain.len());
            let head = chunk.split_to(chunk.len().min(missing));
            self.grain.extend_from_slice(&head);
            if self.grain.len() < GRAIN_LEN {
                return Ok(());
            }
            let grain = self.grain.split().freeze();
            self.sink.put_grains(grain).await?;
        }
        let whole = chunk.len() - chunk.len() % GRAIN_LEN;
        let grains = chunk.split_to(whole);
        self.sink.put_grains(grains).await?;
        self.grain.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(mut self) -> Result<Ingested> {
        if let Some(declared) = self.options.declared_len
            && self.len < declared
        {
            return Err(Error::new(
                ErrorKind::IncompleteBody,
                format!("the body ended after {} of the {declared} bytes declared", self.len),
            ));
        }
        let rest = self.grain.split().freeze();
        if self.len <= INLINE_LEN_MAX && !is_zero(&rest) {
            self.sink.layout.push_bytes(&mut self.sink.staging, rest).await?;
        } else {
            self.sink.put_grains(rest).await?;
        }
        let (content, digests) = tokio::join!(self.sink.finish(), self.hashing.finish());
        Ok(Ingested {
            content: content?,
            digests: digests?,
        })
    }
}

/// Where the bytes go.
struct Sink {
    staging: Staging,
    layout: LayoutBuilder,
    /// The blob that is being written, and how much it holds.
    blob: Option<(BlobId, Box<dyn BlobWriter>, u64)>,
    /// The one before, being made durable.
    sealing: Option<(BlobId, JoinHandle<Result<u64>>)>,
}

impl Sink {
    /// Takes whole grains, or the last bytes of a body.
    async fn put_grains(&mut self, mut grains: Bytes) -> Result<()> {
        while !grains.is_empty() {
            let zero = is_zero(first_grain(&grains));
            let mut len = 0;
            while len < grains.len() && is_zero(first_grain(grains.get(len..).unwrap_or_default())) == zero {
                len = len.saturating_add(GRAIN_LEN).min(grains.len());
            }
            let run = grains.split_to(len);
            if zero {
                let piece = Piece {
                    len: run.len() as u64,
                    extent: Extent::Zero,
                };
                self.layout.push(&mut self.staging, piece).await?;
            } else {
                self.append(run).await?;
            }
        }
        Ok(())
    }

    async fn append(&mut self, mut data: Bytes) -> Result<()> {
        let blob_len_max = self.staging.limits().blob_len_max;
        while !data.is_empty() {
            if self.blob.as_ref().is_some_and(|(_, _, len)| *len >= blob_len_max) {
                self.roll_over().await?;
            }
            if self.blob.is_none() {
                let (id, writer) = self.staging.create_blob().await?;
                self.blob = Some((id, writer, 0));
            }
            let (id, writer, written) = self.blob.as_mut().expect("a blob was just made");
            let room = usize::try_from(blob_len_max.saturating_sub(*written)).unwrap_or(usize::MAX);
            self.staging.require_space(data.len().min(room) as u64).await?;
            let part = data.split_to(data.len().min(room));
            let piece = Piece {
                len: part.len() as u64,
                extent: Extent::Blob {
                    id: *id,
                    offset: *written,
                },
            };
            *written = written.saturating_add(piece.len);
            writer.append(part).await?;
            self.layout.push(&mut self.staging, piece).await?;
        }
        Ok(())
    }

    /// Has the current blob sealed in the background; waits for the one before, so that there is one at a time.
    async fn roll_over(&mut self) -> Result<()> {
        self.await_sealing().await?;
        if let Some((id, writer, _)) = self.blob.take() {
            self.sealing = Some((id, self.staging.start_seal(id, writer)));
        }
        Ok(())
    }

    async fn await_sealing(&mut self) -> Result<()> {
        if let Some((id, sealing)) = self.sealing.take() {
            let len = sealing.await??;
            self.staging.sealed(id, len);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Content> {
        self.roll_over().await?;
        self.await_sealing().await?;
        let layout = self.layout.finish(&mut self.staging).await?;
        Ok(Content {
            layout,
            staging: self.staging,
        })
    }
}

fn first_grain(bytes: &[u8]) -> &[u8] {
    bytes.get(..GRAIN_LEN).unwrap_or(bytes)
}

/// Whether all bytes are zero. Most data shows it is not within the first few bytes.
fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(256);
    chunks
        .by_ref()
        .all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}
