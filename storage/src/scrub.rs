//! The scrub: reads every blob in use and holds it against its checksums.
//!
//! It goes through table `X` in order, a step of at most [`STEP_LEN`] bytes at a time, so that its caller sets the pace.
//! Damage is written down as it is found (see `damage`), and what is found whole is no longer known as damaged. Where a
//! pass stands is in the index, unsynced: after a crash it goes on a little earlier.

use std::{ops::Range, sync::Arc};

use minicbor::{Decode, Encode};

use crate::{
    blob::{Blob, BlobId},
    clock::Timestamp,
    error::{Damage, Error, ErrorKind, Result},
    kv::{Durability, Order, Scan, Txn, transact},
    schema::{BlobRecord, Keys, LayoutRecord, LayoutState, decode, encode},
    staging::get,
    store::Store,
};

/// Bytes that one step reads.
const STEP_LEN: u64 = 1 << 20;

/// A pass over all blobs, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct ScrubState {
    /// When it began.
    #[n(0)]
    pub begun: Timestamp,
    /// When it came to its end; `None` while it is under way or was cut off.
    #[n(1)]
    pub ended: Option<Timestamp>,
    /// The last blob that was read to its end.
    #[n(2)]
    pub position: Option<BlobId>,
    /// Blobs read.
    #[n(3)]
    pub blobs: u64,
    /// Bytes read.
    #[n(4)]
    pub bytes: u64,
    /// Damaged blobs found.
    #[n(5)]
    pub damaged: u64,
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Bytes read.
    pub bytes: u64,
    /// Damage found.
    pub damage: Vec<Damage>,
    /// The blob that came to its end.
    pub ended: Option<BlobId>,
}

/// A scrub under way.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    /// What is left of table `X`.
    rows: Range<bytes::Bytes>,
    current: Option<Current>,
}

/// The blob that is being read.
#[derive(Debug)]
struct Current {
    id: BlobId,
    blob: Arc<dyn Blob>,
    offset: u64,
    damaged: bool,
}

impl Store {
    /// Begins to read every blob in use that comes after `after` in the order of their names.
    pub fn scrub(&self, after: Option<BlobId>) -> Scrub {
        let mut rows = Keys::blobs();
        if let Some(after) = after {
            rows.start = [&Keys::blob(after)[..], &[0]].concat().into();
        }
        Scrub {
            store: self.clone(),
            rows,
            current: None,
        }
    }

    /// Begins to read one blob.
    pub fn scrub_blob(&self, blob: BlobId) -> Scrub {
        let start = Keys::blob(blob);
        let end = [&start[..], &[0]].concat().into();
        Scrub {
            store: self.clone(),
            rows: start..end,
            current: None,
        }
    }

    /// How many blobs are in use, and how many bytes of content they hold.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn blob_totals(&self) -> Result<(u64, u64)> {
        let mut totals = (0_u64, 0_u64);
        let mut rows = crate::rows::Rows::of(Keys::blobs());
        while let Some(page) = rows.next(self).await? {
            for (_, record) in page {
                let record: BlobRecord = decode(&record)?;
                totals.0 += 1;
                totals.1 = totals.1.saturating_add(record.len);
            }
        }
        Ok(totals)
    }

    /// Where the latest pass stands.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn scrub_state(&self) -> Result<Option<ScrubState>> {
        get(&mut self.begin().await?, &Keys::meta("scrub")).await
    }

    /// Notes where a pass stands.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index fails.
    pub async fn set_scrub_state(&self, state: &ScrubState) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            txn.put(Keys::meta("scrub"), encode(state))
        });
        Ok(())
    }
}

impl Scrub {
    /// Reads on. `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index or the disk fails; another call goes on.
    pub async fn step(&mut self) -> Result<Option<ScrubStep>> {
        let Some(mut current) = self.current.take() else {
            return self.next_blob().await;
        };
        let end = current.blob.len().min(current.offset.saturating_add(STEP_LEN));
        let damage = match current.blob.verify(current.offset..end).await {
            Ok(damage) => damage,
            Err(error) => {
                self.current = Some(current);
                return Err(error);
            }
        };
        let mut step = ScrubStep {
            bytes: end.saturating_sub(current.offset),
            damage: self.confirm(current.id, damage).await?,
            ended: None,
        };
        current.damaged |= !step.damage.is_empty();
        current.offset = end;
        if end >= current.blob.len() {
            step.ended = Some(current.id);
            if !current.damaged {
                self.store.forget_damage(current.id).await?;
            }
        } else {
            self.current = Some(current);
        }
        Ok(Some(step))
    }

    /// Opens the next blob.
    async fn next_blob(&mut self) -> Result<Option<ScrubStep>> {
        let mut txn = self.store.begin().await?;
        let scan = Scan {
            range: self.rows.clone(),
            limit: 1,
            order: Order::Ascending,
        };
        let Some((key, _)) = txn.scan(&scan).await?.rows.into_iter().next() else {
            return Ok(None);
        };
        drop(txn);
        let id = Keys::parse_blob(&key)?;
        let opened = self.open(id).await;
        let mut step = ScrubStep::default();
        match opened {
            Ok(blob) => {
                self.current = Some(Current {
                    id,
                    blob,
                    offset: 0,
                    damaged: false,
                });
            }
            Err(error) => {
                let damage = damage_of(error)?;
                step.damage = self.confirm(id, vec![damage]).await?;
                step.ended = Some(id);
            }
        }
        self.rows.start = [&key[..], &[0]].concat().into();
        Ok(Some(step))
    }

    /// Opens a blob by its name: one that somebody has open can be read after its file is gone.
    async fn open(&self, id: BlobId) -> Result<Arc<dyn Blob>> {
        let blobs = &self.store.core.blobs_unwatched;
        if !blobs.exists(id).await? {
            return Err(Error::damaged(Damage {
                blob: id,
                offset: None,
                reason: "it is missing".to_owned(),
            }));
        }
        blobs.open(id).await
    }

    /// Writes damage down, unless the blob is gone, or going, by now: then it was none.
    async fn confirm(&self, id: BlobId, damage: Vec<Damage>) -> Result<Vec<Damage>> {
        if damage.is_empty() || !is_needed(&mut self.store.begin().await?, id).await? {
            return Ok(Vec::new());
        }
        self.store.add_damage(id, &damage).await?;
        Ok(damage)
    }
}

/// Whether the blob is one in use whose layout is not being swept.
async fn is_needed(txn: &mut Txn, id: BlobId) -> Result<bool> {
    let owner: Option<LayoutRecord> = get(txn, &Keys::layout(id.owner)).await?;
    let dying = owner.is_some_and(|owner| owner.state == LayoutState::Dying);
    Ok(!dying && txn.get(&Keys::blob(id)).await?.is_some())
}

/// The damage an error tells of, or the error.
fn damage_of(error: Error) -> Result<Damage> {
    match error.damage() {
        Some(damage) if error.kind() == ErrorKind::Corrupt => Ok(damage.clone()),
        _ => Err(error),
    }
}
