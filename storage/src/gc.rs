//! The sweep: deletes what nothing names any more.
//!
//! Everything here is done in small steps that a crash may end anywhere; what is left is found again, because the row
//! that asks for the work is removed last. The crate's doc says why nothing that is alive is freed.
//!
//! | what | found by | done |
//! | --- | --- | --- |
//! | blobs given up by their writer, or replaced | a list in memory; after a crash by their intents | intent marked as dropped, blob, intent |
//! | layouts released by a delete or a replacement | rows of table `D` | blobs, then rows; one that others borrow from is left to `compact` |
//! | parts of an upload that ended | rows of table `E` | left-out parts' blobs, then part records |
//! | intents that expired | rows of table `I` | as a blob given up |
//! | blobs that no row names (a crash of the machine before the intent was synced) | listing the blobs | deleted |
//!
//! # Against what is going on
//!
//! - A layout that is being read, or whose upload is being completed, is pinned; neither it nor a blob of it that was
//!   given up is touched meanwhile.
//! - Names are never used again, except by a replica: its writers and the sweep keep off each other by the intent, which
//!   stays, as one that is being dropped, until the blob has gone.
//! - A backup takes its time over the blobs of a moment: until it ends, each step that deletes blobs waits
//!   (`Core::deletions`).
//! - What fails is left for the next time, and all else goes on: one damaged folder must not fill the disk.

use bytes::Bytes;

use crate::{
    blob::BlobId,
    clock::Timestamp,
    error::Result,
    kv::{Durability, Order, Scan, Txn, transact},
    layout::Layout,
    multipart::parse_number,
    part_checksum::clear_part_checksums,
    rows::Rows,
    schema::{
        DeadLayout, EndedUpload, IntentRecord, IntentStage, Keys, LayoutId, LayoutRecord, LayoutState, PartRecord,
        decode, encode,
    },
    staging::get,
    store::Store,
};

/// Blobs that are listed at a time.
const STEP_ROWS: usize = 128;
/// Rows that one transaction of the sweep deletes: each part of a step may bring the rows of its blobs with it.
const DELETE_ROWS: usize = 1024;

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
    /// What a crash of the machine may have left beside is found by [`Store::sweep_strays`], which takes longer, and
    /// which may run while the store is in use.
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
        let jobs = self.take_over_jobs(worker).await?;
        Ok(Recovered {
            blobs: intents.blobs,
            jobs,
        })
    }

    /// Sweeps until there is nothing that can be swept now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index or the disk fails: the first error, after all that could be
    /// swept was; the rest is left for the next time.
    pub async fn sweep(&self) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let discarded = self.sweep_discarded(&mut report).await;
        let uploads = self.sweep_ended_uploads(&mut report).await;
        let layouts = self.sweep_dead_layouts(&mut report).await;
        let jobs = self.forget_jobs().await;
        discarded.and(uploads).and(layouts)?;
        report.jobs += jobs?;
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
    /// As for [`Store::sweep`].
    pub async fn sweep_intents(&self, now: Timestamp) -> Result<SweepReport> {
        self.sweep_intents_where(|intent| intent.expires <= now).await
    }

    async fn sweep_intents_where(&self, given_up: impl Fn(&IntentRecord) -> bool) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let mut failed = Ok(());
        let mut rows = Rows::of(Keys::intents());
        while let Some(page) = rows.next(self).await? {
            for (key, intent) in page {
                let intent: IntentRecord = decode(&intent)?;
                if given_up(&intent) {
                    let discarded = self.discard_blob(Keys::parse_blob(&key)?, &mut report).await;
                    failed = failed.and(discarded.map(|_| ()));
                }
            }
        }
        failed.map(|()| report)
    }

    /// Deletes blobs that no row names: what a crash of the machine can leave.
    ///
    /// # Errors
    ///
    /// As for [`Store::sweep`].
    pub async fn sweep_strays(&self) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let mut failed = Ok(());
        let mut after = None;
        loop {
            let blobs = self.core.blobs.list(after, STEP_ROWS).await?;
            let Some(last) = blobs.last() else {
                return failed.map(|()| report);
            };
            after = Some(*last);
            // The rows are read after the listing: an intent is there before its blob is, and becomes a blob in use in
            // one step, so a blob that was listed and has neither row now has lost its intent for good.
            let mut txn = self.begin().await?;
            for id in blobs {
                if !is_named(&mut txn, id).await? {
                    let discarded = self.discard_blob(id, &mut report).await;
                    failed = failed.and(discarded.map(|_| ()));
                }
            }
        }
    }

    /// Goes once through the blobs that were given up.
    async fn sweep_discarded(&self, report: &mut SweepReport) -> Result<()> {
        let mut failed = Ok(());
        let count = self.core.discarded().len();
        for _ in 0..count {
            let next = self.core.discarded().pop_front();
            let Some(blob) = next else { break };
            let discarded = self.discard_blob(blob, report).await;
            if !matches!(discarded, Ok(true)) {
                self.core.discarded().push_back(blob);
            }
            failed = failed.and(discarded.map(|_| ()));
        }
        failed
    }

    /// Drops the blob `id`, unless it is in use: marks its intent, deletes the blob, and then the intent. A crash in between
    /// leaves the mark, so no step needs a sync. Whether that was all: while its layout is pinned, the blob has to wait.
    async fn discard_blob(&self, id: BlobId, report: &mut SweepReport) -> Result<bool> {
        let _going_on = self.core.deletions.read().await;
        let Some(_claim) = self.core.dropping.claim(id) else {
            return Ok(true); // Somebody else is about it.
        };
        if self.core.pins.is_pinned(id.owner) {
            return Ok(false);
        }
        if self.mark_dropped(id).await? {
            self.core.blobs.delete(id).await?;
            report.blobs += 1;
            transact!(&self.core.kv, |txn| {
                txn.set_durability(Durability::Buffered);
                txn.delete(Keys::intent(id))
            });
        }
        Ok(true)
    }

    /// Makes sure that no layout can take up blob `id`, and that nobody begins to write it. Not if a layout has it.
    async fn mark_dropped(&self, id: BlobId) -> Result<bool> {
        let dropped = encode(&IntentRecord {
            expires: Timestamp(0),
            stage: IntentStage::Dropped,
        });
        let marked = transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            if txn.get(&Keys::blob(id)).await?.is_some() {
                return Ok(false);
            }
            txn.put(Keys::intent(id), dropped.clone())?;
            Ok(true)
        });
        Ok(marked)
    }

    /// Frees what can be freed now; freeing a layout may make one it borrowed from free.
    async fn sweep_dead_layouts(&self, report: &mut SweepReport) -> Result<()> {
        loop {
            let before = report.layouts;
            let mut failed = Ok(());
            let mut rows = Rows::of(Keys::dead_layouts());
            while let Some(page) = rows.next(self).await? {
                for (key, dead) in page {
                    let dead: DeadLayout = decode(&dead)?;
                    if dead.not_before <= self.now() {
                        let layout = LayoutId(Keys::parse_last_id(&key)?);
                        failed = failed.and(self.sweep_layout(layout, report).await);
                    }
                }
            }
            if report.layouts == before {
                return failed;
            }
        }
    }

    async fn sweep_layout(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        // Before the claim: who wants to read the layout would otherwise wait for the backup as well.
        let _going_on = self.core.deletions.read().await;
        let Some(_claim) = self.core.pins.claim(layout) else {
            return Ok(()); // It is being read; its row brings it up again.
        };
        self.sweep_claimed(layout, report).await
    }

    async fn sweep_claimed(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        if !self.mark_dying(layout).await? {
            return Ok(());
        }
        self.delete_blobs_of(layout, report).await?;
        self.return_borrowed(layout).await?;
        transact!(&self.core.kv, |txn| {
            clear_part_checksums(&mut txn, layout).await?;
            txn.delete(Keys::layout(layout))?;
            txn.delete(Keys::compression(layout))?;
            txn.delete(Keys::compaction(layout))?;
            txn.delete(Keys::dead_layout(layout))
        });
        report.layouts += 1;
        Ok(())
    }

    /// Marks the layout, if nothing has it and nothing borrows from it.
    async fn mark_dying(&self, layout: LayoutId) -> Result<bool> {
        let dying = transact!(&self.core.kv, |txn| {
            let record: Option<LayoutRecord> = get(&mut txn, &Keys::layout(layout)).await?;
            let unneeded = match record {
                Some(record) if record.state == LayoutState::Dying => return Ok(true),
                Some(record) if record.state == LayoutState::Released => {
                    let borrowed = txn.any(Keys::borrowers_of(layout)).await?;
                    if borrowed {
                        let not_before = self.now().plus_millis(self.core.limits.compact_after_millis);
                        txn.put(Keys::compaction(layout), encode(&DeadLayout { not_before }))?;
                    }
                    (!borrowed).then_some(record)
                }
                _ => None,
            };
            let Some(mut record) = unneeded else {
                // When its last borrower goes, it is put here again.
                txn.delete(Keys::dead_layout(layout))?;
                return Ok(false);
            };
            record.state = LayoutState::Dying;
            txn.put(Keys::layout(layout), encode(&record))?;
            Ok(true)
        });
        Ok(dying)
    }

    async fn delete_blobs_of(&self, layout: LayoutId, report: &mut SweepReport) -> Result<()> {
        let mut rows = Rows::of(Keys::blobs_of(layout));
        while let Some(page) = rows.next(self).await? {
            let mut cleared = Vec::with_capacity(2 * page.len());
            for (key, _) in page {
                let blob = Keys::parse_blob(&key)?;
                self.core.blobs.delete(blob).await?;
                report.blobs += 1;
                cleared.extend([key, Keys::damage(blob)]);
            }
            self.delete_rows(&cleared).await?;
        }
        Ok(())
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
        let mut failed = Ok(());
        let mut rows = Rows::of(Keys::ended_uploads());
        while let Some(page) = rows.next(self).await? {
            for (key, ended) in page {
                let upload = LayoutId(Keys::parse_last_id(&key)?);
                // Somebody may complete it once more, and not yet know that it is done.
                if !self.core.pins.is_pinned(upload) {
                    let cleared = self.clear_parts(upload, &decode(&ended)?, report).await;
                    failed = failed.and(match cleared {
                        Ok(()) => self.delete_rows(&[key]).await,
                        error => error,
                    });
                }
            }
        }
        failed
    }

    /// Clears part records, and the blobs that the completed object does not use.
    async fn clear_parts(&self, upload: LayoutId, ended: &EndedUpload, report: &mut SweepReport) -> Result<()> {
        let mut rows = Rows::of(Keys::parts(upload));
        while let Some(page) = rows.next(self).await? {
            let _going_on = self.core.deletions.read().await;
            let mut cleared = Vec::new();
            for (key, part) in page {
                for blob in unused_blobs(upload, ended, parse_number(&key)?.get(), &decode(&part)?) {
                    self.core.blobs.delete(blob).await?;
                    report.blobs += 1;
                    cleared.extend([Keys::blob(blob), Keys::damage(blob)]);
                }
                cleared.push(key);
                report.parts += 1;
            }
            self.delete_rows(&cleared).await?;
        }
        Ok(())
    }

    async fn delete_rows(&self, rows: &[Bytes]) -> Result<()> {
        for batch in rows.chunks(DELETE_ROWS) {
            transact!(&self.core.kv, |txn| {
                for row in batch {
                    txn.delete(row.clone())?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}

/// Whether a row of the index names the blob.
async fn is_named(txn: &mut Txn, id: BlobId) -> Result<bool> {
    Ok(txn.get(&Keys::blob(id)).await?.is_some() || txn.get(&Keys::intent(id)).await?.is_some())
}

/// Blobs of a part that the completed object has no use for. An aborted upload keeps nothing, but its blobs go with its
/// layout; the pages of a part of a completed one have been joined into other pages, unless it is the only one.
pub(crate) fn unused_blobs(upload: LayoutId, ended: &EndedUpload, number: u16, part: &PartRecord) -> Vec<BlobId> {
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
