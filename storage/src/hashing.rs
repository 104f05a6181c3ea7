//! Computes the digests of a body beside its reception.
//!
//! Pieces are gathered and handed over in batches to a blocking thread, which gives the hasher back at the end of each:
//! one batch is hashed while the next is being received. No thread is held between batches; a thread for each body would
//! let many slow uploads take all that there are, and leave none to write their blobs.

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    digest::{DigestSet, Digests, Hasher},
    error::{Error, ErrorKind, Result},
};

/// A batch is handed over at this length.
const BATCH_LEN: usize = 256 << 10;
/// And at this count: each small piece may hold on to the large buffer it was cut from.
const BATCH_COUNT: usize = 256;

/// Digests in the making.
#[derive(Debug)]
pub(crate) struct Hashing {
    state: State,
    batch: Vec<Bytes>,
    batch_len: usize,
}

#[derive(Debug)]
enum State {
    Here(Box<Hasher>),
    Away(JoinHandle<Box<Hasher>>),
    /// A call was dropped while it waited, or the thread panicked.
    Lost,
}

impl Hashing {
    pub(crate) fn new(set: &DigestSet) -> Self {
        Self {
            state: State::Here(Box::new(Hasher::new(set))),
            batch: Vec::new(),
            batch_len: 0,
        }
    }

    /// Takes the next bytes; waits for the batch before the last.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if hashing has stopped.
    pub(crate) async fn update(&mut self, piece: Bytes) -> Result<()> {
        self.batch_len = self.batch_len.saturating_add(piece.len());
        self.batch.push(piece);
        if self.batch_len >= BATCH_LEN || self.batch.len() >= BATCH_COUNT {
            let mut hasher = self.hasher().await?;
            let batch = std::mem::take(&mut self.batch);
            self.batch_len = 0;
            self.state = State::Away(spawn_blocking(move || {
                for piece in batch {
                    hasher.update(&piece);
                }
                hasher
            }));
        }
        Ok(())
    }

    /// The digests of all bytes. What is left is less than a batch and hashed here: a thread costs more than it saves.
    ///
    /// # Errors
    ///
    /// As for [`Hashing::update`].
    pub(crate) async fn finish(mut self) -> Result<Digests> {
        let mut hasher = self.hasher().await?;
        for piece in &self.batch {
            hasher.update(piece);
        }
        Ok(hasher.finish())
    }

    async fn hasher(&mut self) -> Result<Box<Hasher>> {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Here(hasher) => Ok(hasher),
            State::Away(hashing) => Ok(hashing.await?),
            State::Lost => Err(Error::new(ErrorKind::Io, "hashing has stopped")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn digests_do_not_depend_on_the_pieces() {
        let set = DigestSet {
            checksums: vec![crate::ChecksumAlgorithm::Crc64Nvme],
            sha512: true,
        };
        let data: Bytes = (0_u32..1_500_000)
            .map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0])
            .collect();
        let mut whole = Hasher::new(&set);
        whole.update(&data);
        let whole = whole.finish();
        for len in [997, 4096, BATCH_LEN, BATCH_LEN + 1, data.len()] {
            let mut hashing = Hashing::new(&set);
            let mut rest = data.clone();
            while !rest.is_empty() {
                hashing.update(rest.split_to(rest.len().min(len))).await.unwrap();
            }
            assert_eq!(hashing.finish().await.unwrap(), whole, "pieces of {len}");
        }
    }
}
