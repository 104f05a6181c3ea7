//! Content on its way into the store: blobs with intents, borrowed blobs, and the commit that makes them an object's.
//!
//! The steps are those of the crate's doc. A blob belongs to its writer until the commit. When nobody holds the
//! [`Ownership`] any more and there was no commit, it is discarded; the task that seals it holds one too, because a seal
//! goes on when the future that waited for it is dropped. Discarding is safe even where nobody knows whether the commit
//! happened: it marks the intent as dropped in a transaction, and leaves a blob alone that has become one in use; a commit
//! that comes later meets that mark.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::{
    blob::{BlobId, BlobWriter},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Durability, Outcome, Txn, transact},
    layout::{Extent, Layout, LayoutBuilder, LayoutCursor, Piece},
    pin::LayoutPin,
    schema::{
        BlobRecord, DeadLayout, Holder, IntentRecord, IntentStage, Keys, LayoutId, LayoutRecord, LayoutState, decode,
        encode, random_u64,
    },
    store::{Core, Limits, Store},
};

/// How long content may be on its way. A writer slower than this cannot commit.
pub(crate) const INTENT_MILLIS: u64 = 24 * 60 * 60 * 1000;
/// A layout that borrows from more owners than this is itself borrowed from, rather than each of its owners.
const LINEAGE_MAX: usize = 64;

/// Blobs that are being written for one layout, and layouts whose blobs it borrows.
#[derive(Debug)]
pub struct Staging {
    core: Arc<Core>,
    owner: LayoutId,
    /// Sealed or not; in the order of their creation.
    blobs: Vec<Staged>,
    borrows: BTreeSet<LayoutId>,
    /// Kept from the sweep until the borrowing is committed.
    pins: Vec<Arc<LayoutPin>>,
}

#[derive(Debug)]
struct Staged {
    ownership: Arc<Ownership>,
    len: u64,
}

/// A blob that is its writer's. When the last one is dropped before the commit, the blob is discarded.
#[derive(Debug)]
struct Ownership {
    core: Arc<Core>,
    id: BlobId,
    committed: AtomicBool,
}

impl Drop for Ownership {
    fn drop(&mut self) {
        if !self.committed.load(Ordering::Acquire) {
            self.core.discard([self.id]);
        }
    }
}

/// A layout with everything it needs sealed, ready to be committed.
#[derive(Debug)]
pub struct Content {
    pub(crate) layout: Layout,
    pub(crate) staging: Staging,
}

impl Content {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The id its layout will have.
    pub fn layout_id(&self) -> LayoutId {
        self.staging.owner
    }
}

impl Staging {
    pub(crate) fn new(core: Arc<Core>, owner: LayoutId) -> Self {
        Self {
            core,
            owner,
            blobs: Vec::new(),
            borrows: BTreeSet::new(),
            pins: Vec::new(),
        }
    }

    /// The layout the blobs are for.
    pub(crate) fn owner(&self) -> LayoutId {
        self.owner
    }

    /// The bounds of the store.
    pub(crate) fn limits(&self) -> &Limits {
        &self.core.limits
    }

    /// Makes sure that `bytes` more can be written.
    pub(crate) async fn require_space(&self, bytes: u64) -> Result<()> {
        self.core.require_space(bytes).await
    }

    /// Starts a blob: writes its intent, then opens it.
    pub(crate) async fn create_blob(&mut self) -> Result<(BlobId, Box<dyn BlobWriter>)> {
        let id = BlobId {
            owner: self.owner,
            index: random_u64(),
        };
        self.core.require_space(0).await?;
        let ownership = Arc::new(Ownership {
            core: Arc::clone(&self.core),
            id,
            committed: AtomicBool::new(false),
        });
        self.blobs.push(Staged { ownership, len: 0 });
        put_intent(&self.core, id).await?;
        let writer = self.core.blobs.create(id).await?;
        Ok((id, writer))
    }

    /// Makes the blob durable and gives its length.
    pub(crate) async fn seal(&mut self, id: BlobId, writer: Box<dyn BlobWriter>) -> Result<u64> {
        let len = self.start_seal(id, writer).await??;
        self.sealed(id, len);
        Ok(len)
    }

    /// Has the blob made durable in the background; [`Staging::sealed`] is then to be told.
    pub(crate) fn start_seal(&self, id: BlobId, writer: Box<dyn BlobWriter>) -> JoinHandle<Result<u64>> {
        let staged = self.blobs.iter().find(|blob| blob.ownership.id == id);
        let ownership = staged.map(|blob| Arc::clone(&blob.ownership));
        tokio::spawn(async move {
            let sealed = writer.seal().await;
            drop(ownership);
            sealed
        })
    }

    /// Notes that the blob was sealed with `len` bytes.
    pub(crate) fn sealed(&mut self, id: BlobId, len: u64) {
        if let Some(blob) = self.blobs.iter_mut().find(|blob| blob.ownership.id == id) {
            blob.len = len;
        }
    }

    /// The indexes of its blobs.
    pub(crate) fn blob_indexes(&self) -> Vec<u64> {
        self.blobs.iter().map(|blob| blob.ownership.id.index).collect()
    }

    /// Lets the layout borrow blobs that `source` refers to. `pin` keeps the source until the commit.
    pub(crate) async fn borrow_from(&mut self, source: LayoutId, pin: Arc<LayoutPin>) -> Result<()> {
        self.borrows.extend(lineage(&self.core, source).await?);
        self.borrows.remove(&self.owner);
        self.pins.push(pin);
        Ok(())
    }

    /// Writes to `txn` what makes the blobs and borrowings those of a layout that `holder` has. Content with more blobs than a
    /// transaction should hold has been through [`Staging::adopt_early`] before.
    pub(crate) async fn commit(&self, txn: &mut Txn, holder: Holder) -> Result<()> {
        self.commit_part(txn).await?;
        let known: Option<LayoutRecord> = get(txn, &Keys::layout(self.owner)).await?;
        let owns_blobs = !self.blobs.is_empty() || known.as_ref().is_some_and(|known| known.owns_blobs);
        if owns_blobs || known.is_some() || !self.borrows.is_empty() {
            if known.is_some_and(|known| known.state == LayoutState::Dying) {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    "the content took too long and was swept",
                ));
            }
            let record = LayoutRecord {
                state: LayoutState::Held,
                owns_blobs,
                holder: Some(holder),
            };
            txn.put(Keys::layout(self.owner), encode(&record))?;
            txn.delete(Keys::dead_layout(self.owner))?;
        }
        Ok(())
    }

    /// Writes to `txn` what makes the blobs and borrowings those of an upload in progress, whose layout record exists.
    pub(crate) async fn commit_part(&self, txn: &mut Txn) -> Result<()> {
        self.adopt(txn, &self.blobs).await?;
        for owner in &self.borrows {
            borrow(txn, self.owner, *owner).await?;
        }
        Ok(())
    }

    /// Adopts blobs in batches, if there are more than one transaction should hold. Until the commit they belong to a
    /// released layout that the sweep will look at when the intents would have expired.
    pub(crate) async fn adopt_early(&mut self) -> Result<()> {
        let batch_max = self.core.limits.adopt_batch;
        while self.blobs.len() + self.borrows.len() > batch_max && !self.blobs.is_empty() {
            let rest = self.blobs.split_off(self.blobs.len().min(batch_max));
            let batch = std::mem::replace(&mut self.blobs, rest);
            let core = Arc::clone(&self.core);
            let not_before = core.clock.now().plus_millis(INTENT_MILLIS);
            transact!(&core.kv, |txn| {
                self.adopt(&mut txn, &batch).await?;
                let record = LayoutRecord {
                    state: LayoutState::Released,
                    owns_blobs: true,
                    holder: None,
                };
                txn.put(Keys::layout(self.owner), encode(&record))?;
                txn.put(Keys::dead_layout(self.owner), encode(&DeadLayout { not_before }))
            });
            commit_all(&batch);
        }
        Ok(())
    }

    async fn adopt(&self, txn: &mut Txn, blobs: &[Staged]) -> Result<()> {
        for blob in blobs {
            adopt_blob(txn, blob.ownership.id, blob.len).await?;
        }
        Ok(())
    }

    /// The commit has happened: there is nothing to discard. Without this call, discarding would find it out.
    pub(crate) fn committed(&mut self) {
        commit_all(&self.blobs);
    }
}

fn commit_all(blobs: &[Staged]) {
    for blob in blobs {
        blob.ownership.committed.store(true, Ordering::Release);
    }
}

/// Notes that the blob `id` is about to be written.
///
/// Reads nothing, so nothing can conflict with it, and it may be called within the body of a transaction.
async fn put_intent(core: &Core, id: BlobId) -> Result<()> {
    let intent = encode(&IntentRecord {
        expires: core.clock.now().plus_millis(INTENT_MILLIS),
        stage: IntentStage::Writing,
    });
    let mut txn = Txn::begin(&core.kv).await?;
    txn.set_durability(Durability::Buffered);
    txn.put(Keys::intent(id), intent)?;
    match txn.commit().await {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict => Err(Error::new(ErrorKind::Contended, "a blind write met a conflict")),
        // An intent that is there after all does no harm: it expires, or discarding the blob finds it. So the caller may
        // know why, and need not wonder.
        Outcome::Refused(source) | Outcome::Unknown(source) => Err(source),
    }
}

/// Turns the intent of a sealed blob, which must still be there, into a blob in use.
pub(crate) async fn adopt_blob(txn: &mut Txn, id: BlobId, len: u64) -> Result<()> {
    let intent = Keys::intent(id);
    let record: Option<IntentRecord> = get(txn, &intent).await?;
    if record.is_none_or(|record| record.stage == IntentStage::Dropped) {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("the intent of blob {id} has expired: the content took longer than a day"),
        ));
    }
    txn.delete(intent)?;
    txn.put(Keys::blob(id), encode(&BlobRecord::new(len)))
}

/// Turns a blob in use that its layout needs no longer into one that was given up.
pub(crate) fn abandon_blob(txn: &mut Txn, now: Timestamp, id: BlobId) -> Result<()> {
    txn.delete(Keys::blob(id))?;
    txn.delete(Keys::damage(id))?;
    txn.put(
        Keys::intent(id),
        encode(&IntentRecord {
            expires: now,
            stage: IntentStage::Dropped,
        }),
    )
}

/// Notes that `layout` borrows blobs of `owner`, which must not be dying.
pub(crate) async fn borrow(txn: &mut Txn, layout: LayoutId, owner: LayoutId) -> Result<()> {
    let record: Option<LayoutRecord> = get(txn, &Keys::layout(owner)).await?;
    if record.is_none_or(|record| record.state == LayoutState::Dying) {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("the source layout {owner} is gone"),
        ));
    }
    txn.put(Keys::borrows(layout, owner), Bytes::new())?;
    txn.put(Keys::borrower(owner, layout), Bytes::new())
}

/// Whose blobs the extents of `layout` lie in: its own, if it has any, and those it borrows.
pub(crate) async fn lineage(core: &Core, layout: LayoutId) -> Result<BTreeSet<LayoutId>> {
    let mut txn = Txn::begin(&core.kv).await?;
    let mut owners = BTreeSet::new();
    let Some(record) = get::<LayoutRecord>(&mut txn, &Keys::layout(layout)).await? else {
        return Ok(owners);
    };
    let rows = txn
        .scan(&crate::kv::Scan {
            range: Keys::borrows_of(layout),
            limit: LINEAGE_MAX,
            order: crate::kv::Order::Ascending,
        })
        .await?;
    if rows.more {
        owners.insert(layout);
        return Ok(owners);
    }
    for (key, _) in rows.rows {
        owners.insert(LayoutId(Keys::parse_last_id(&key)?));
    }
    if record.owns_blobs {
        owners.insert(layout);
    }
    Ok(owners)
}

/// Reads and decodes a record.
pub(crate) async fn get<T: for<'b> minicbor::Decode<'b, ()>>(txn: &mut Txn, key: &[u8]) -> Result<Option<T>> {
    txn.get(key).await?.map(|bytes| decode(&bytes)).transpose()
}

/// Builds content piece by piece: new bytes, zeros, and ranges of an object that is open.
#[derive(Debug)]
pub struct ContentBuilder {
    staging: Staging,
    layout: LayoutBuilder,
}

impl ContentBuilder {
    /// Adds `len` zeros.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn push_zeros(&mut self, len: u64) -> Result<()> {
        self.layout
            .push(
                &mut self.staging,
                Piece {
                    len,
                    extent: Extent::Zero,
                },
            )
            .await
    }

    /// Adds new bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn push_bytes(&mut self, bytes: Bytes) -> Result<()> {
        self.layout.push_bytes(&mut self.staging, bytes).await
    }

    /// Adds an extent of a source given to [`Store::content_builder`].
    pub(crate) async fn push_piece(&mut self, piece: Piece) -> Result<()> {
        self.layout.push(&mut self.staging, piece).await
    }

    /// Adds `len` bytes of `source` from `offset` on, by reference.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the source ends before, or is not the one given to [`Store::content_builder`];
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn push_range(&mut self, source: &mut crate::ObjectReader, offset: u64, len: u64) -> Result<()> {
        // Nothing would keep the blobs of another.
        if !self.staging.pins.iter().any(|pin| source.reads(pin.key())) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "content refers to an object that was not named as its source",
            ));
        }
        self.push_pieces(source, offset, len).await
    }

    async fn push_pieces(&mut self, source: &mut crate::ObjectReader, offset: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let Some(piece) = source.piece_at(offset.saturating_add(done), len - done).await? else {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the source ends at {} bytes, before {}",
                        source.size(),
                        offset.saturating_add(len)
                    ),
                ));
            };
            done += piece.len;
            self.push_piece(piece).await?;
        }
        Ok(())
    }

    /// Adds the whole of `content`, which was built for the same layout before: what stands before it may be known only after
    /// it is written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the content is for another layout; [`ErrorKind::Io`] if the disk fails.
    pub async fn push_content(&mut self, content: Content) -> Result<()> {
        let layout = self.adopt(content)?;
        let mut cursor = LayoutCursor::new(Arc::clone(&self.staging.core.blobs), Arc::new(layout));
        while let Some(piece) = cursor.next(u64::MAX).await? {
            self.push_piece(piece).await?;
        }
        Ok(())
    }

    /// Takes over all that `content` holds, which was built for the same layout before, and gives its layout: ranges of a
    /// reader of it may be added from then on. What is never added stays on the disk as long as this content.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the content is for another layout.
    pub fn adopt(&mut self, content: Content) -> Result<Layout> {
        let Content { layout, mut staging } = content;
        if staging.owner != self.staging.owner {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "content was built for another layout",
            ));
        }
        self.staging.blobs.append(&mut staging.blobs);
        self.staging.borrows.append(&mut staging.borrows);
        self.staging.pins.append(&mut staging.pins);
        Ok(layout)
    }

    /// Adds `len` bytes from `offset` on of content that was taken over, by reference.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the content ends before; [`ErrorKind::Io`] if the disk fails.
    pub async fn push_adopted(&mut self, source: &mut crate::ObjectReader, offset: u64, len: u64) -> Result<()> {
        self.push_pieces(source, offset, len).await
    }

    /// The content of the whole of `source`, by reference and whatever its length: with nothing added, the layout itself
    /// is shared.
    pub fn share(self, source: &crate::OpenObject) -> Content {
        Content {
            layout: source.record.layout.clone(),
            staging: self.staging,
        }
    }

    /// The content, with everything sealed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the disk fails.
    pub async fn finish(mut self) -> Result<Content> {
        let layout = self.layout.finish(&mut self.staging).await?;
        Ok(Content {
            layout,
            staging: self.staging,
        })
    }
}

impl Store {
    /// Starts new content that may refer to bytes of `source`, if one is given.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn content_builder(&self, source: Option<&crate::OpenObject>) -> Result<ContentBuilder> {
        self.content_builder_for(LayoutId::generate(self.now()), source).await
    }

    /// Starts new content whose blobs belong to `owner`, as [`Store::content_builder`] does: for a part of an upload.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn content_builder_for(
        &self,
        owner: LayoutId,
        source: Option<&crate::OpenObject>,
    ) -> Result<ContentBuilder> {
        let mut staging = Staging::new(Arc::clone(&self.core), owner);
        if let Some(source) = source {
            staging.borrow_from(source.record.layout_id, source.pin()).await?;
        }
        Ok(ContentBuilder {
            staging,
            layout: LayoutBuilder::new(),
        })
    }
}
