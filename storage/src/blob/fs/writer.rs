//! A blob that is being written.
//!
//! The caller fills one buffer while the one before it is checksummed and written on a blocking thread. So a writer
//! holds at most two of [`WRITE_LEN`], and what the last append brought.

use std::{mem, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Shared, draft::Draft, format::Summer};
use crate::{
    blob::{BLOB_LEN_MAX, BlobId, BlobWriter},
    error::{Error, ErrorKind, Result},
};

/// How much is gathered before it is written.
const WRITE_LEN: usize = 256 << 10;
/// Pieces below this length are copied together: a small piece may hold on to the large buffer it was cut from.
const COPY_LEN_MAX: usize = 32 << 10;

/// The file of a blob, with what goes into its trailer.
#[derive(Debug)]
pub(super) struct PlainDraft {
    shared: Arc<Shared>,
    draft: Draft,
    summer: Summer,
}

impl PlainDraft {
    pub(super) fn create(shared: Arc<Shared>, id: BlobId) -> Result<Self> {
        let draft = Draft::create(&shared.folders, &shared.open, id)?;
        Ok(Self {
            shared,
            draft,
            summer: Summer::new(),
        })
    }

    fn write(mut self, pieces: &[Bytes]) -> Result<Self> {
        for piece in pieces {
            self.summer.update(piece);
            self.draft.write(piece)?;
        }
        Ok(self)
    }

    /// The steps 2 to 5 of the module [`fs`](super).
    fn seal(self) -> Result<u64> {
        let Self {
            shared,
            mut draft,
            summer,
        } = self;
        let id = draft.id();
        let (len, trailer) = summer.finish(id);
        draft.write(&trailer)?;
        draft.sync()?;
        draft.rename()?;
        // It may have replaced a damaged one.
        shared.open.remove(id);
        shared.sync_folder_of(id)?;
        Ok(len)
    }
}

/// What callers hold.
#[derive(Debug)]
pub(super) struct FsWriter {
    id: BlobId,
    len: u64,
    pending: Pending,
    state: State,
}

#[derive(Debug)]
enum State {
    Ready(Box<PlainDraft>),
    Writing(JoinHandle<Result<PlainDraft>>),
    /// An earlier call failed, or was dropped while it held the draft.
    Failed,
}

impl FsWriter {
    pub(super) fn new(draft: PlainDraft) -> Self {
        Self {
            id: draft.draft.id(),
            len: 0,
            pending: Pending::default(),
            state: State::Ready(Box::new(draft)),
        }
    }

    /// Waits for the write that is under way. If the future is dropped, the next call waits again.
    async fn draft(&mut self) -> Result<PlainDraft> {
        if let State::Writing(write) = &mut self.state {
            let ended = write.await;
            self.state = State::Failed;
            return ended?;
        }
        match mem::replace(&mut self.state, State::Failed) {
            State::Ready(draft) => Ok(*draft),
            _ => Err(Error::new(
                ErrorKind::Io,
                format!("write blob {} after an error", self.id),
            )),
        }
    }
}

#[async_trait]
impl BlobWriter for FsWriter {
    async fn append(&mut self, data: Bytes) -> Result<()> {
        let len = self.len.saturating_add(data.len() as u64);
        if len > BLOB_LEN_MAX {
            self.state = State::Failed;
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("blob {} is over {BLOB_LEN_MAX} bytes", self.id),
            ));
        }
        if self.pending.len >= WRITE_LEN {
            // A call that was dropped while it waited has left this to do.
            self.start_write().await?;
        }
        self.len = len;
        self.pending.push(data);
        if self.pending.len >= WRITE_LEN {
            self.start_write().await?;
        }
        Ok(())
    }

    async fn seal(mut self: Box<Self>) -> Result<u64> {
        let draft = self.draft().await?;
        let pieces = self.pending.take();
        spawn_blocking(move || draft.write(&pieces)?.seal()).await?
    }
}

impl FsWriter {
    async fn start_write(&mut self) -> Result<()> {
        let draft = self.draft().await?;
        let pieces = self.pending.take();
        self.state = State::Writing(spawn_blocking(move || draft.write(&pieces)));
        Ok(())
    }
}

/// What was appended and not yet handed to a thread.
#[derive(Debug, Default)]
struct Pending {
    pieces: Vec<Bytes>,
    /// Small pieces, copied together; it comes after `pieces`.
    tail: Vec<u8>,
    len: usize,
}

impl Pending {
    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() < COPY_LEN_MAX {
            self.tail.extend_from_slice(&data);
        } else {
            self.end_tail();
            self.pieces.push(data);
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.end_tail();
        self.len = 0;
        mem::take(&mut self.pieces)
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(mem::take(&mut self.tail).into());
        }
    }
}
