//! The receiving side of replication: blobs by name, then the object that refers to them.
//!
//! Layouts and blobs have names that are unique across servers, so a replica keeps them. A blob that is here already,
//! because another format of the same image is, need not be sent. Blobs that arrived wait under their intents; the commit
//! adopts them in batches and then, in one transaction, inserts the object. A replication that stops in between leaves
//! intents, which expire, and a released layout that the sweep looks at after as long; beginning again finds both.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::{
    blob::{BlobId, Blobs},
    bucket::require_bucket,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    ingest::BodyError,
    kv::{Txn, transact},
    layout::{Extent, Layout, LayoutCursor},
    object::{PutOutcome, WriteCondition, write_object},
    schema::{
        BucketName, DeadLayout, Keys, LayoutId, LayoutRecord, LayoutState, ObjectKey, ObjectRecord, decode, encode,
    },
    staging::{INTENT_MILLIS, Staging, adopt_blob, borrow, get, put_intent},
    store::Store,
};

/// Blobs that one transaction adopts.
const ADOPT_BATCH: usize = 256;
/// Most layouts that a replica may borrow from.
const OWNERS_MAX: usize = 1000;

/// An object as another server has it.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its record, as it is to be here.
    pub record: ObjectRecord,
}

impl Replica {
    /// Renders an object for another server.
    pub fn encode(record: &ObjectRecord) -> Bytes {
        encode(record)
    }

    /// Reads what [`Replica::encode`] rendered.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if it is no such thing.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Self { record: decode(bytes)? })
    }
}

impl Store {
    /// Which of `ids` are not here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if index or blobs cannot be read.
    pub async fn missing_blobs(&self, ids: &[BlobId]) -> Result<Vec<BlobId>> {
        let mut missing = Vec::new();
        let mut txn = self.begin().await?;
        for id in ids {
            let here = txn.get(&Keys::blob(*id)).await?.is_some()
                || (txn.get(&Keys::intent(*id)).await?.is_some() && self.core.blobs.exists(*id).await?);
            if !here {
                missing.push(*id);
            }
        }
        Ok(missing)
    }

    /// Takes in the blob `id` under its own name. It waits under an intent until a replica that refers to it commits.
    ///
    /// `verify` is called with the CRC-64/NVME of the bytes before they are sealed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BodyFailed`] if the body breaks off; the error of `verify`; [`ErrorKind::Io`] if the disk fails. The
    /// blob is not here then.
    pub async fn receive_blob<S>(
        &self,
        id: BlobId,
        body: S,
        verify: impl FnOnce(u64) -> Result<()> + Send,
    ) -> Result<u64>
    where
        S: Stream<Item = std::result::Result<Bytes, BodyError>> + Send,
    {
        let mut staging = Staging::new(Arc::clone(&self.core), id.owner);
        let mut writer = staging.create_named(id).await?;
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| Error::new(ErrorKind::BodyFailed, "the blob broke off").caused_by(e))?;
            crc.update(&chunk);
            writer.append(chunk).await?;
        }
        verify(crc.finalize())?;
        let len = writer.seal().await?;
        put_intent(&self.core, id).await?;
        staging.committed();
        Ok(len)
    }

    /// Commits an object whose blobs have all arrived, unless there is a newer one of that name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::PreconditionFailed`] if blobs are missing, in which case they are to be
    /// offered again, or there is a newer object; [`ErrorKind::InvalidArgument`] if it borrows from too many layouts.
    pub async fn commit_replica(&self, bucket: &BucketName, key: &ObjectKey, replica: Replica) -> Result<PutOutcome> {
        let record = replica.record;
        let blobs = blobs_of(&self.core.blobs, &record.layout).await?;
        let owners: BTreeSet<LayoutId> = blobs
            .iter()
            .map(|id| id.owner)
            .filter(|id| *id != record.layout_id)
            .collect();
        if owners.len() > OWNERS_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the object borrows from over {OWNERS_MAX} layouts"),
            ));
        }
        for batch in blobs.chunks(ADOPT_BATCH) {
            self.adopt_replicated(batch).await?;
        }
        let owns_blobs = blobs.iter().any(|id| id.owner == record.layout_id);
        let outcome = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            for owner in &owners {
                borrow(&mut txn, record.layout_id, *owner).await?;
            }
            if owns_blobs || !owners.is_empty() {
                hold(&mut txn, record.layout_id, owns_blobs).await?;
            }
            let row = Keys::object(bucket.id, key.as_str().as_bytes());
            if let Some(current) = get::<ObjectRecord>(&mut txn, &row).await?
                && current.last_modified > record.last_modified
            {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("{key} is newer here"),
                ));
            }
            let record = write_object(
                &mut txn,
                self.now(),
                &bucket,
                key,
                record.clone(),
                &WriteCondition::Always,
                &[],
            );
            Ok(PutOutcome {
                record: record.await?,
                bucket,
            })
        });
        self.core.swept.notify_one();
        Ok(outcome)
    }

    /// Turns intents of blobs that have arrived into blobs in use, of layouts that nothing has yet.
    async fn adopt_replicated(&self, blobs: &[BlobId]) -> Result<()> {
        let mut lens = Vec::with_capacity(blobs.len());
        for id in blobs {
            if !self.core.blobs.exists(*id).await? {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("blob {id} has not arrived"),
                ));
            }
            lens.push(self.core.blobs.open(*id).await?.len());
        }
        let not_before = self.now().plus_millis(INTENT_MILLIS);
        transact!(&self.core.kv, |txn| {
            for (id, len) in blobs.iter().zip(&lens) {
                if txn.get(&Keys::blob(*id)).await?.is_none() {
                    adopt_blob(&mut txn, *id, *len).await?;
                    wait(&mut txn, id.owner, not_before).await?;
                }
            }
            Ok(())
        });
        Ok(())
    }
}

/// Makes sure that `owner` has a record, so that its blobs are found by the sweep if nothing comes to need them.
async fn wait(txn: &mut Txn, owner: LayoutId, not_before: Timestamp) -> Result<()> {
    let key = Keys::layout(owner);
    let record: Option<LayoutRecord> = get(txn, &key).await?;
    let state = record.map_or(LayoutState::Released, |record| record.state);
    if state == LayoutState::Dying {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("layout {owner} is being swept"),
        ));
    }
    txn.put(
        key,
        encode(&LayoutRecord {
            state,
            owns_blobs: true,
        }),
    )?;
    if state == LayoutState::Released {
        txn.put(Keys::dead_layout(owner), encode(&DeadLayout { not_before }))?;
    }
    Ok(())
}

/// Gives the layout to an object version.
async fn hold(txn: &mut Txn, layout: LayoutId, owns_blobs: bool) -> Result<()> {
    let key = Keys::layout(layout);
    let record: Option<LayoutRecord> = get(txn, &key).await?;
    if record.as_ref().is_some_and(|record| record.state == LayoutState::Dying) {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("layout {layout} is being swept"),
        ));
    }
    let owns_blobs = owns_blobs || record.is_some_and(|record| record.owns_blobs);
    txn.put(
        key,
        encode(&LayoutRecord {
            state: LayoutState::Held,
            owns_blobs,
        }),
    )?;
    txn.delete(Keys::dead_layout(layout))
}

/// The blobs of a layout, each once: those that its extents lie in, and those of its pages.
pub(crate) async fn blobs_of(blobs: &Arc<dyn Blobs>, layout: &Layout) -> Result<Vec<BlobId>> {
    let mut ids = BTreeSet::new();
    if let Layout::Paged(paged) = layout {
        ids.extend(paged.blobs.iter().copied());
    }
    let mut cursor = LayoutCursor::new(Arc::clone(blobs), Arc::new(layout.clone()));
    while let Some(piece) = cursor.next(u64::MAX).await? {
        if let Extent::Blob { id, .. } = piece.extent {
            ids.insert(id);
        }
    }
    Ok(ids.into_iter().collect())
}
