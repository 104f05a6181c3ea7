//! The sweep: deletes what nothing names any more.
//!
//! Everything here is done in small steps that a crash may end anywhere; what is left is found again, because the row
//! that asks for the work is removed last. The crate's doc says why nothing that is alive is freed.
//!
//! | what | found by | done |
//! | --- | --- | --- |
//! | blobs given up by their writer, or replaced | a list in memory; after a crash as strays | intent marked as dropped, the blob deleted, the intent removed |
//! | layouts released by a delete or a replacement | rows of table `D` | blobs, then rows |
//! | parts of an upload that ended | rows of table `E` | left-out parts' blobs, then part records |
//! | intents that expired | rows of table `I` | as a blob given up |
//! | blobs that no row names (a crash before the intent was synced) | listing the blobs | deleted |

use bytes::Bytes;

use crate::{
    blob::BlobId,
    clock::Timestamp,
    error::Result,
    kv::{Durability, Order, Scan, transact},
    layout::Layout,
    multipart::parse_number,
    schema::{
        DeadLayout, EndedUpload, IntentRecord, IntentStage, Keys, LayoutId, LayoutRecord, LayoutState, PartRecord,
        decode, encode,
    },
    staging::get,
    store::Store,
};

/// Rows that one step of the sweep takes.
const STEP_ROWS: usize = 128;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Blobs deleted.
    pub blobs: u64,
    /// Layouts freed.
    pub layouts: u64,
    /// Part records cleared.
    pub parts: u64,
    /// Finished jobs forgotten.
    pub jobs: u64,
}

/// What [`Store::recover`] found of an earlier run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Blobs whose writer was cut off.
    pub blobs: u64,
    /// Jobs whose worker was cut off.
    pub jobs: usize,
}

impl Store {
    /// Clears what an earlier process left: nobody writes to its intents any more, and nobody works on its jobs. Blobs that
    /// have arrived from another server stay, for that server to go on where it was cut off. Only for engines that one
    /// process has at a time, and before anything else is done; `worker` names this process.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or the disk fails.
    pub async fn recover(&self, worker: u64) -> Result<Recovered> {
        let now = self.now();
        let left = |intent: &IntentRecord| match intent.stage {
            IntentStage::Arrived(_) => intent.expires <= now,
            IntentStage::Writing | IntentStage::Dropped => true,
        };
        let intents = self.sweep_intents_where(left).await?;
        let strays = self.sweep_strays().await?;
        let jobs = self.take_over_jobs(worker).await?;
        Ok(Recovered {
            blobs: intents.blobs + strays.blobs,
            jobs,
        })
    }

    /// Sweeps until there is nothing that can be swept now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or the disk fails; the rest is left for the next time.
    pub async fn sweep(&self) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        self.sweep_discarded(&mut report).await?;
        self.sweep_ended_uploads(&mut report).await?;
        // Freeing a layout may make the one it borrowed from free.
        while self.sweep_dead_layouts(&mut report).await? {}
        self.sweep_discarded(&mut report).await?;
        report.jobs += self.forget_jobs().await? as u64;
        Ok(report)
    }

    /// Waits until there is something new to sweep.
    pub async fn sweep_due(&self) {
        self.core.swept.notified().await;
    }

    /// Gives up all content whose intent expired before `now`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or the disk fails.
    pub async fn sweep_intents(&self, now: Timestamp) -> Result<SweepReport> {
        self.sweep_intents_where(|intent| intent.expires <= now).await
    }

    async fn sweep_intents_where(&self, given_up: impl Fn(&IntentRecord) -> bool) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let mut range = Keys::intents();
        loop {
            let scan = Scan {
                range: range.clone(),
                limit: STEP_ROWS,
                order: Order::Ascending,
            };
            let page = self.begin().await?.scan(&scan).await?;
            for (key, intent) in &page.rows {
                range.start = behind(key);
                let intent: IntentRecord = decode(intent)?;
                if given_up(&intent) {
                    self.discard_blob(Keys::parse_blob(key)?, &mut report).await?;
                }
            }
            if !page.more {
                return Ok(report);
            }
        }
    }

    /// Deletes blobs that no row names: what a crash of the machine can leave.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or the disk fails.
    pub async fn sweep_strays(&self) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let mut after = None;
        loop {
            let blobs = self.core.blobs.list(after, STEP_ROWS).await?;
            let Some(last) = blobs.last() else { return Ok(report) };
            after = Some(*last);
            // The rows are read after the listing: an intent is there before its blob is, and becomes a blob in use in
            // one step, so a blob that was listed and has neither row now has lost its intent for good.
            let mut txn = self.begin().await?;
            for id in blobs {
                let named = txn.get(&Keys::blob(id)).await?.is_some() || txn.get(&Keys::intent(id)).await?.is_some();
                if !named {
                    self.discard_blob(id, &mut report).await?;
                }
            }
        }
    }

    async fn sweep_discarded(&self, report: &mut SweepReport) -> Result<()> {
        loop {
            let next = self
                .core
                .discarded
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .pop();
            let Some(blob) = next else { return Ok(()) };
            self.discard_blob(blob, report).await?;
        }
    }

    /// Drops the blob `id`, unless it is in use. The name of a blob that another server sends may come again at any time,
    /// so its intent stays, as one that is being dropped, until the blob is gone. No step needs a sync: a crash leaves the
    /// intent in one form or the other, or none, and the next start drops the blob for each.
    async fn discard_blob(&self, id: BlobId, report: &mut SweepReport) -> Result<()> {
        let _alone = self.core.dropping.lock().await;
        let dropped = encode(&IntentRecord {
            expires: Timestamp(0),
            stage: IntentStage::Dropped,
        });
        let unused = transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            if txn.get(&Keys::blob(id)).await?.is_some() {
                return Ok(false);
            }
            txn.put(Keys::intent(id), dropped.clone())?;
            Ok(true)
        });
        if !unused {
            return Ok(());
        }
        self.core.blobs.delete(id).await?;
        transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            txn.delete(Keys::intent(id))
        });
        report.blobs += 1;
        Ok(())
    }

    /// Goes once through the layouts to look at. Whether another round may find more.
    async fn sweep_dead_layouts(&self, report: &mut SweepReport) -> Result<bool> {
        let now = self.now();
        let mut range = Keys::dead_layouts();
        let before = report.layouts;
        loop {
            let scan = Scan {
                range: range.clone(),
                limit: STEP_ROWS,
                order: Order::Ascending,
            };
            let page = self.begin().await?.scan(&scan).await?;
            for (key, dead) in &page.rows {
                range.start = behind(key);
                let dead: DeadLayout = decode(dead)?;
                if dead.not_before <= now {
                    self.sweep_layout(LayoutId(Keys::parse_last_id(key)?), report).await?;
                }
            }
            if !page.more {
                return Ok(report.layouts > before);
            }
        }
    }

    async fn sweep_layout(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        if !self.core.pins.begin_sweep(layout) {
            return Ok(()); // It is being read; its row brings it up again.
        }
        let swept = self.sweep_claimed(layout, report).await;
        // Until its row is gone, whoever pins it can only have found it before; a dying layout is never found again.
        self.core.pins.end_sweep(layout);
        swept
    }

    async fn sweep_claimed(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        if !self.mark_dying(layout).await? {
            return Ok(());
        }
        self.delete_blobs_of(layout, report).await?;
        self.return_borrowed(layout).await?;
        transact!(&self.core.kv, |txn| {
            txn.delete(Keys::layout(layout))?;
            txn.delete(Keys::dead_layout(layout))
        });
        report.layouts += 1;
        Ok(())
    }

    /// Marks the layout, if nothing has it and nothing borrows from it.
    async fn mark_dying(&self, layout: LayoutId) -> Result<bool> {
        let dying = transact!(&self.core.kv, |txn| {
            let record: Option<LayoutRecord> = get(&mut txn, &Keys::layout(layout)).await?;
            let needed = match &record {
                None => true,
                Some(record) if record.state == LayoutState::Dying => return Ok(true),
                Some(record) => record.state == LayoutState::Held || txn.any(Keys::borrowers_of(layout)).await?,
            };
            if needed {
                // When its last borrower goes, it is put here again.
                txn.delete(Keys::dead_layout(layout))?;
                return Ok(false);
            }
            let owns_blobs = record.is_some_and(|record| record.owns_blobs);
            txn.put(
                Keys::layout(layout),
                encode(&LayoutRecord {
                    state: LayoutState::Dying,
                    owns_blobs,
                }),
            )?;
            Ok(true)
        });
        Ok(dying)
    }

    async fn delete_blobs_of(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        loop {
            let scan = Scan {
                range: Keys::blobs_of(layout),
                limit: STEP_ROWS,
                order: Order::Ascending,
            };
            let page = self.begin().await?.scan(&scan).await?;
            for (key, _) in &page.rows {
                self.core.blobs.delete(Keys::parse_blob(key)?).await?;
                report.blobs += 1;
            }
            self.delete_rows(page.rows.iter().map(|(key, _)| key.clone()).collect())
                .await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Ends the layout's borrowings; an owner that only this one kept is looked at next.
    async fn return_borrowed(&self, layout: LayoutId) -> Result<()> {
        loop {
            let more = transact!(&self.core.kv, |txn| {
                let scan = Scan {
                    range: Keys::borrows_of(layout),
                    limit: STEP_ROWS,
                    order: Order::Ascending,
                };
                let page = txn.scan(&scan).await?;
                for (key, _) in &page.rows {
                    let owner = LayoutId(Keys::parse_last_id(key)?);
                    txn.delete(key.clone())?;
                    txn.delete(Keys::borrower(owner, layout))?;
                    let record: Option<LayoutRecord> = get(&mut txn, &Keys::layout(owner)).await?;
                    if record.is_some_and(|record| record.state == LayoutState::Released) {
                        txn.put(
                            Keys::dead_layout(owner),
                            encode(&DeadLayout {
                                not_before: Timestamp(0),
                            }),
                        )?;
                    }
                }
                Ok(page.more)
            });
            if !more {
                return Ok(());
            }
        }
    }

    async fn sweep_ended_uploads(&self, report: &mut SweepReport) -> Result<()> {
        loop {
            let scan = Scan {
                range: Keys::ended_uploads(),
                limit: STEP_ROWS,
                order: Order::Ascending,
            };
            let page = self.begin().await?.scan(&scan).await?;
            for (key, ended) in &page.rows {
                let upload = LayoutId(Keys::parse_last_id(key)?);
                self.clear_parts(upload, &decode(ended)?, report).await?;
                self.delete_rows(vec![key.clone()]).await?;
            }
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Clears part records, and the blobs that the completed object does not use.
    async fn clear_parts(&self, upload: LayoutId, ended: &EndedUpload, report: &mut SweepReport) -> Result<()> {
        loop {
            let scan = Scan {
                range: Keys::parts(upload),
                limit: STEP_ROWS,
                order: Order::Ascending,
            };
            let page = self.begin().await?.scan(&scan).await?;
            let mut rows = Vec::new();
            let mut unused = Vec::new();
            for (key, part) in &page.rows {
                rows.push(key.clone());
                unused.extend(unused_blobs(upload, ended, parse_number(key)?.get(), &decode(part)?));
            }
            report.parts += rows.len() as u64;
            for blob in &unused {
                self.core.blobs.delete(*blob).await?;
                report.blobs += 1;
            }
            rows.extend(unused.into_iter().map(Keys::blob));
            self.delete_rows(rows).await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn delete_rows(&self, rows: Vec<Bytes>) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            for row in &rows {
                txn.delete(row.clone())?;
            }
            Ok(())
        });
        Ok(())
    }
}

/// Blobs of a part that the completed object has no use for. An aborted upload keeps nothing, but its blobs go with its
/// layout; the pages of a part of a completed one have been joined into other pages, unless it is the only one.
fn unused_blobs(upload: LayoutId, ended: &EndedUpload, number: u16, part: &PartRecord) -> Vec<BlobId> {
    let all = || {
        part.blobs
            .iter()
            .map(|index| BlobId {
                owner: upload,
                index: *index,
            })
            .collect()
    };
    if ended.kept.is_empty() {
        return Vec::new();
    }
    if !ended.keeps(number) {
        return all();
    }
    let alone = ended.kept.iter().map(|(_, count)| u32::from(*count)).sum::<u32>() == 1;
    match &part.layout {
        Layout::Paged(paged) if !alone => paged.blobs.iter().filter(|id| id.owner == upload).copied().collect(),
        _ => Vec::new(),
    }
}

fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
