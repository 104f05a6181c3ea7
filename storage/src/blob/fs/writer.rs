//! A blob that is being written.
//!
//! The caller fills one buffer while the one before it is checksummed and written on a blocking thread. So a writer
//! holds at most two of [`WRITE_LEN`], and what the last append brought.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Folders, format::Summer, sync_folder};
use crate::{
    blob::{BLOB_LEN_MAX, BlobId, BlobWriter},
    error::{Error, ErrorKind, Result},
};

/// How much is gathered before it is written.
const WRITE_LEN: usize = 256 << 10;
/// Pieces below this length are copied together: a small piece may hold on to the large buffer it was cut from.
const COPY_LEN_MAX: usize = 32 << 10;

/// The file of a blob in `tmp/`, with what goes into its trailer.
#[derive(Debug)]
pub(super) struct Draft {
    id: BlobId,
    /// Closed before `name` removes it, so that the removal frees the space.
    file: File,
    name: DraftName,
    target: PathBuf,
    summer: Summer,
}

impl Draft {
    pub(super) fn create(folders: &Folders, id: BlobId) -> Result<Self> {
        let number = folders.drafts.fetch_add(1, Ordering::Relaxed);
        let path = folders.tmp.join(format!("{id}.{number}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Error::io(format!("create blob {id}"), error))?;
        Ok(Self {
            id,
            file,
            name: DraftName(Some(path)),
            target: folders.path(id),
            summer: Summer::new(),
        })
    }

    fn write(mut self, pieces: &[Bytes]) -> Result<Self> {
        for piece in pieces {
            self.summer.update(piece);
            self.file
                .write_all(piece)
                .map_err(|error| Error::io(format!("write blob {}", self.id), error))?;
        }
        Ok(self)
    }

    /// The steps 2 to 5 of the module [`fs`](super).
    fn seal(self) -> Result<u64> {
        let Self {
            id,
            mut file,
            name,
            target,
            summer,
        } = self;
        let (len, trailer) = summer.finish(id);
        let steps = || {
            file.write_all(&trailer)?;
            file.sync_data()?;
            name.rename(&target)?;
            target.parent().map_or(Ok(()), sync_folder)
        };
        steps().map_err(|error| Error::io(format!("seal blob {id}"), error))?;
        Ok(len)
    }
}

/// The name of a draft, which goes with it unless it becomes the name of a blob.
#[derive(Debug)]
struct DraftName(Option<PathBuf>);

impl DraftName {
    fn rename(mut self, target: &Path) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        fs::rename(path, target)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for DraftName {
    /// Freeing a large file takes milliseconds, so it is left to a blocking thread, where there is one.
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        // The next start removes it.
        tracing::warn!(path = %path.display(), %error, "an unfinished blob could not be removed");
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
    Ready(Box<Draft>),
    Writing(JoinHandle<Result<Draft>>),
    /// An earlier call failed, or was dropped while it held the draft.
    Failed,
}

impl FsWriter {
    pub(super) fn new(draft: Draft) -> Self {
        Self {
            id: draft.id,
            len: 0,
            pending: Pending::default(),
            state: State::Ready(Box::new(draft)),
        }
    }

    /// Waits for the write that is under way. If the future is dropped, the next call waits again.
    async fn draft(&mut self) -> Result<Draft> {
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
