//! Compaction: frees blobs of which only small parts are still needed.
//!
//! A blob stays as long as any layout refers to any part of it. So a copied slice, or one converted header, may keep a
//! whole disk image on the disk after its object was deleted. When the sweep finds a released layout that others borrow
//! from, it leaves a row of table `Y`. [`Store::compact_step`] takes these rows up: if all borrowers together need at most
//! half of the blobs, what they need is copied to blobs of their own, and their borrowing ends. The blobs then go the way
//! of all that nobody borrows.
//!
//! Blobs are never changed in place. A borrower keeps its layout id, so it stays the same version of its object; the
//! layout that its record holds is another, with the same bytes.
//!
//! | step | what a crash after it leaves |
//! | --- | --- |
//! | 1. what a borrower needs is copied to new blobs, under intents | intents, as any writer's |
//! | 2. one transaction, which makes sure that the object still has the layout that was copied, adopts the new blobs and puts the new layout into the record | a borrowing of which no extent makes use, and the row of table `Y` |
//! | 3. once nobody reads the object by its old layout, one transaction ends the borrowing and has the sweep look at the owner | a row for the sweep |
//!
//! # Why nothing that is needed is freed
//!
//! The borrowing ends only when no extent of the object's layout lies in the owner's blobs, which the transaction of step
//! 3 makes sure of by reading the record again, and only while the object is claimed as for the sweep: then nobody reads
//! it, and nobody is about to borrow through it, because both pin it from before they look until they are done. Who opens
//! the object later finds the new layout: a reader that looked before the claim ended looks again. A layout that borrows
//! from this object *instead of* from the owner (see `LINEAGE_MAX` of `staging`) is looked for in the same transaction,
//! and if there is one, the borrowing stays.

use std::sync::Arc;

use crate::{
    blob::BlobId,
    clock::Timestamp,
    error::Result,
    kv::{Order, Scan, Txn, transact},
    layout::{Extent, Layout, LayoutBuilder, LayoutCursor},
    pin::LayoutPin,
    read::ObjectReader,
    rows::Rows,
    schema::{BlobRecord, DeadLayout, Keys, LayoutId, LayoutRecord, LayoutState, ObjectRecord, decode, encode},
    staging::{Staging, abandon_blob, get},
    store::Store,
    version::{Placed, version_of},
};

/// More borrowers than this are a sign of content that is well shared.
const BORROWERS_MAX: usize = 64;
/// Most bytes that are copied for one object: its new blobs have to fit one transaction.
const COPY_LEN_MAX: u64 = 64 << 30;
/// Bytes that are copied at a time.
const CHUNK_LEN: u64 = 512 << 10;
/// How long a borrower that is being read is left alone.
const BUSY_MILLIS: u64 = 60 * 1000;

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactStep {
    /// Bytes that were copied.
    pub bytes: u64,
    /// Borrowings that were ended.
    pub ended: u64,
}

/// An object version that borrows.
struct Borrower {
    record: Box<ObjectRecord>,
    /// Bytes of the owner's blobs that it refers to.
    needs: u64,
    pin: Arc<LayoutPin>,
}

/// What became of a borrowing.
enum End {
    /// It is over.
    Ended,
    /// The borrower is being read: later.
    Busy,
    /// It has changed, or others depend on it.
    Needed,
}

/// What is to be done about a layout.
enum Verdict {
    /// Nothing: it is gone, or well used, or cannot be helped.
    Leave,
    /// Nothing yet.
    Wait,
    /// These borrowers are to be rid of it.
    Compact(Vec<Borrower>),
}

impl Store {
    /// Looks at the next released layout that may be worth it, and frees it if it is. `None` if none is due.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) or [`ErrorKind::StorageFull`](crate::ErrorKind::StorageFull) if index or disk
    /// fail; what was begun is taken up again by the next call.
    pub async fn compact_step(&self) -> Result<Option<CompactStep>> {
        let now = self.now();
        let mut rows = Rows::of(Keys::compactions());
        while let Some(page) = rows.next(self).await? {
            for (key, row) in page {
                let row: DeadLayout = decode(&row)?;
                if row.not_before <= now {
                    let owner = LayoutId(Keys::parse_last_id(&key)?);
                    return self.compact_layout(owner).await.map(Some);
                }
            }
        }
        Ok(None)
    }

    async fn compact_layout(&self, owner: LayoutId) -> Result<CompactStep> {
        let mut step = CompactStep::default();
        // Put off first: one that fails each time must not keep the others from their turn.
        self.put_off(owner).await?;
        let borrowers = match self.judge(owner).await? {
            Verdict::Compact(borrowers) => borrowers,
            Verdict::Wait => return Ok(step),
            Verdict::Leave => {
                transact!(&self.core.kv, |txn| { txn.delete(Keys::compaction(owner)) });
                return Ok(step);
            }
        };
        let mut busy = false;
        for borrower in borrowers {
            let needs = borrower.needs;
            let layout = if needs > 0 {
                match self.copy_out(owner, &borrower).await? {
                    Some(layout) => layout,
                    None => continue, // The object was replaced meanwhile.
                }
            } else {
                borrower.record.layout.clone()
            };
            step.bytes = step.bytes.saturating_add(needs);
            let id = borrower.record.layout_id;
            drop(borrower);
            match self.end_borrowing(owner, id, &layout).await? {
                End::Ended => step.ended += 1,
                End::Busy => busy = true,
                End::Needed => {}
            }
        }
        if !busy {
            transact!(&self.core.kv, |txn| { txn.delete(Keys::compaction(owner)) });
        }
        self.core.swept.notify_one();
        Ok(step)
    }

    async fn put_off(&self, owner: LayoutId) -> Result<()> {
        let not_before = self.now().plus_millis(BUSY_MILLIS);
        transact!(&self.core.kv, |txn| {
            let row = Keys::compaction(owner);
            if txn.get(&row).await?.is_none() {
                return Ok(());
            }
            txn.put(row, encode(&DeadLayout { not_before }))
        });
        Ok(())
    }

    async fn judge(&self, owner: LayoutId) -> Result<Verdict> {
        let mut txn = self.begin().await?;
        let record: Option<LayoutRecord> = get(&mut txn, &Keys::layout(owner)).await?;
        if record.is_none_or(|record| record.state != LayoutState::Released) {
            return Ok(Verdict::Leave);
        }
        let scan = Scan {
            range: Keys::borrowers_of(owner),
            limit: BORROWERS_MAX,
            order: Order::Ascending,
        };
        let page = txn.scan(&scan).await?;
        if page.more {
            return Ok(Verdict::Leave);
        }
        let half = self.content_len(owner).await? / 2;
        let mut needed = 0_u64;
        let mut borrowers = Vec::with_capacity(page.rows.len());
        for (key, _) in page.rows {
            let layout = LayoutId(Keys::parse_last_id(&key)?);
            let Some(pin) = self.core.pins.pin(layout) else {
                return Ok(Verdict::Wait);
            };
            // An upload's, or nothing's.
            let Some(Placed { record, .. }) = version_of(&mut self.begin().await?, layout).await? else {
                return Ok(Verdict::Leave);
            };
            let needs = self.needs(&record.layout, owner).await?;
            needed = needed.saturating_add(needs);
            if needed > half || needs > COPY_LEN_MAX {
                return Ok(Verdict::Leave);
            }
            borrowers.push(Borrower {
                record,
                needs,
                pin: Arc::new(pin),
            });
        }
        Ok(Verdict::Compact(borrowers))
    }

    /// Bytes of all blobs of `owner`.
    async fn content_len(&self, owner: LayoutId) -> Result<u64> {
        let mut len = 0_u64;
        let mut rows = Rows::of(Keys::blobs_of(owner));
        while let Some(page) = rows.next(self).await? {
            for (_, record) in page {
                len = len.saturating_add(decode::<BlobRecord>(&record)?.len);
            }
        }
        Ok(len)
    }

    /// How many bytes of `layout` lie in blobs of `owner`.
    async fn needs(&self, layout: &Layout, owner: LayoutId) -> Result<u64> {
        let mut needs = 0_u64;
        let mut cursor = LayoutCursor::new(Arc::clone(&self.core.blobs), Arc::new(layout.clone()));
        while let Some(piece) = cursor.next(u64::MAX).await? {
            if lies_in(&piece.extent, owner) {
                needs = needs.saturating_add(piece.len);
            }
        }
        Ok(needs)
    }

    /// Steps 1 and 2: gives the borrower blobs of its own. Its layout as it is then, unless it has been replaced.
    async fn copy_out(&self, owner: LayoutId, borrower: &Borrower) -> Result<Option<Layout>> {
        let old = &borrower.record;
        let mut staging = Staging::new(Arc::clone(&self.core), old.layout_id);
        let mut builder = LayoutBuilder::new();
        let mut reader = ObjectReader::new(
            Arc::clone(&self.core.blobs),
            Arc::new(old.layout.clone()),
            Some(Arc::clone(&borrower.pin)),
        );
        let mut offset = 0_u64;
        while let Some(piece) = reader.piece_at(offset, CHUNK_LEN).await? {
            let end = offset.saturating_add(piece.len);
            if lies_in(&piece.extent, owner) {
                let bytes = reader.read(offset..end).await?;
                builder.push_bytes(&mut staging, bytes).await?;
            } else {
                builder.push(&mut staging, piece).await?;
            }
            offset = end;
        }
        let layout = builder.finish(&mut staging).await?;
        let pages = own_pages(old);
        let swapped = transact!(&self.core.kv, |txn| {
            let Some(mut placed) = unchanged(&mut txn, old.layout_id, &old.layout).await? else {
                return Ok(false);
            };
            staging.commit_part(&mut txn).await?;
            let key = Keys::layout(old.layout_id);
            let Some(mut known) = get::<LayoutRecord>(&mut txn, &key).await? else {
                return Ok(false);
            };
            known.owns_blobs = true;
            txn.put(key, encode(&known))?;
            for page in &pages {
                abandon_blob(&mut txn, Timestamp(0), *page)?;
            }
            placed.record.layout = layout.clone();
            placed.write(&mut txn)?;
            Ok(true)
        });
        if !swapped {
            return Ok(None);
        }
        staging.committed();
        self.core.discard(pages);
        Ok(Some(layout))
    }

    /// Step 3. Not while somebody reads the object.
    async fn end_borrowing(&self, owner: LayoutId, layout: LayoutId, expected: &Layout) -> Result<End> {
        let Some(_claim) = self.core.pins.claim(layout) else {
            return Ok(End::Busy);
        };
        let ended = transact!(&self.core.kv, |txn| {
            if unchanged(&mut txn, layout, expected).await?.is_none()
                || !borrow_directly(&mut txn, layout, owner).await?
            {
                return Ok(false);
            }
            txn.delete(Keys::borrows(layout, owner))?;
            txn.delete(Keys::borrower(owner, layout))?;
            let not_before = Timestamp(0);
            txn.put(Keys::dead_layout(owner), encode(&DeadLayout { not_before }))?;
            Ok(true)
        });
        Ok(if ended { End::Ended } else { End::Needed })
    }
}

fn lies_in(extent: &Extent, owner: LayoutId) -> bool {
    matches!(extent, Extent::Blob { id, .. } if id.owner == owner)
}

/// The version with the layout `id`, where it is now, if it still is this layout.
async fn unchanged(txn: &mut Txn, id: LayoutId, layout: &Layout) -> Result<Option<Placed>> {
    let placed = version_of(txn, id).await?;
    Ok(placed.filter(|placed| placed.record.layout == *layout))
}

/// Whether all that borrow from `layout` and need blobs of `owner` borrow from it as well, as far as can be told.
async fn borrow_directly(txn: &mut Txn, layout: LayoutId, owner: LayoutId) -> Result<bool> {
    let scan = Scan {
        range: Keys::borrowers_of(layout),
        limit: BORROWERS_MAX,
        order: Order::Ascending,
    };
    let page = txn.scan(&scan).await?;
    if page.more {
        return Ok(false);
    }
    for (key, _) in page.rows {
        let borrower = LayoutId(Keys::parse_last_id(&key)?);
        if txn.get(&Keys::borrows(borrower, owner)).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The pages of the version's layout that are its own, and go with that layout.
fn own_pages(record: &ObjectRecord) -> Vec<BlobId> {
    match &record.layout {
        Layout::Paged(paged) => {
            let own = paged.blobs.iter().filter(|page| page.owner == record.layout_id);
            own.copied().collect()
        }
        Layout::Listed(_) => Vec::new(),
    }
}
