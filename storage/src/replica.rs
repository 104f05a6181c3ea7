//! Replication: blobs by name, then the object that refers to them.
//!
//! Layouts and blobs have names that are unique across servers, so a replica keeps them. A blob that is here already,
//! because another format of the same image is, need not be sent.
//!
//! | step | on the receiving side | given up or cut off after it |
//! | --- | --- | --- |
//! | 1 | [`Store::missing_blobs`] says what is not here, and lets what waits here wait on | nothing changed |
//! | 2 | [`Store::receive_blob`]: an intent, the bytes, their checksum; then the intent says that the blob has arrived | a blob that waits until its intent expires; the next step 1 finds it, after a restart too |
//! | 3 | [`Store::commit_replica`] adopts the blobs in bounded transactions, for layouts that are released until step 4 | layouts that the sweep looks at when the intents would have expired |
//! | 4 | one transaction gives the layout to the object | |
//!
//! A blob's name comes again when it is sent again, so unlike a blob written here it may meet an earlier self. One writer
//! at a time has a name: an intent that is there keeps others off, until its writer gives up and the sweep has removed
//! first the blob and then the intent.
//!
//! Only current versions travel. The receiving side keeps those before, or not, by the versioning of its own bucket, and a
//! delete marker there does not keep an object from coming back. A version that comes again after another one is moved to
//! the front rather than kept twice: what has one layout is one version.
//!
//! A blob travels as its bytes, followed by the CRC-64/NVME of them in 8 bytes, big-endian.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};

use crate::{
    blob::{BLOB_LEN_MAX, BlobId, Blobs},
    bucket::require_bucket,
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    ingest::BodyError,
    kv::{Durability, Txn, transact},
    layout::{Extent, Layout, LayoutCursor},
    lock::{self, Governance},
    object::{PutOutcome, write_object},
    quota::{Change, charge},
    read::ReadStream,
    schema::{
        BlobRecord, BucketId, BucketName, BucketRecord, DeadLayout, Holder, IntentRecord, IntentStage, JobId, Keys,
        LayoutId, LayoutRecord, LayoutState, ObjectKey, ObjectRecord, VersionLock, encode,
    },
    staging::{INTENT_MILLIS, borrow, get},
    store::{Core, Store},
    version::{Place, take_row, version_of},
};

/// Bytes that follow those of a blob on its way: their checksum.
pub const BLOB_TRAILER_LEN: u64 = 8;
/// Most blobs of one replica: 256 TiB of full ones.
pub const REPLICA_BLOBS_MAX: usize = 1 << 20;
/// Blobs that one transaction looks at or adopts: each takes at most 9 of the 4,096 operations it may have.
const BATCH: usize = 256;
/// Bytes that are read at a time to be sent.
const SEND_LEN: u64 = 512 << 10;

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
    /// [`ErrorKind::InvalidArgument`] if it is no such thing.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let record = minicbor::decode(bytes)
            .map_err(|e| Error::new(ErrorKind::InvalidArgument, "this is not the record of an object").caused_by(e))?;
        Ok(Self { record })
    }
}

/// Which of the blobs that a server was offered it has not got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingBlobs {
    /// They are to be sent.
    pub absent: Vec<BlobId>,
    /// Somebody sends them now, or an earlier attempt is being cleared: ask again in a moment.
    pub pending: Vec<BlobId>,
}

/// What became of a replica.
#[derive(Debug, Clone)]
pub enum ReplicaOutcome {
    /// It is the current version.
    Committed(Box<PutOutcome>),
    /// There is a newer version of that name.
    Superseded,
    /// Blobs are missing, or have gone meanwhile: they are to be offered again. With the first that was found.
    Incomplete(String),
}

/// Where a blob stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing is known of it.
    Absent,
    /// It is being written, or deleted.
    Pending,
    /// It waits under an intent that expires then; with its length.
    Arrived(u64, Timestamp),
    /// A layout has it; with its length.
    InUse(u64),
}

impl Store {
    /// Which of `ids` are not here. Those that wait here for their object wait a full day more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the index cannot be read.
    pub async fn missing_blobs(&self, ids: &[BlobId]) -> Result<MissingBlobs> {
        let mut missing = MissingBlobs::default();
        for batch in ids.chunks(BATCH) {
            let now = self.now();
            let found = transact!(&self.core.kv, |txn| {
                txn.set_durability(Durability::Buffered);
                let mut found = MissingBlobs::default();
                for id in batch {
                    match standing(&mut txn, *id).await? {
                        Standing::Absent => found.absent.push(*id),
                        Standing::Pending => found.pending.push(*id),
                        // Asking often must not mean writing often.
                        Standing::Arrived(len, expires) if expires < now.plus_millis(INTENT_MILLIS / 2) => {
                            put_intent(&mut txn, *id, IntentStage::Arrived(len), now)?;
                        }
                        Standing::Arrived(..) | Standing::InUse(_) => {}
                    }
                }
                Ok(found)
            });
            missing.absent.extend(found.absent);
            missing.pending.extend(found.pending);
        }
        if !missing.pending.is_empty() {
            self.core.swept.notify_one();
        }
        Ok(missing)
    }

    /// A blob as it travels, and the length of that, [`BLOB_TRAILER_LEN`] included. Whoever calls has the object open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if it cannot be read, here or while it is.
    pub async fn send_blob(&self, id: BlobId) -> Result<(u64, ReadStream)> {
        let blob = self.core.blobs.open(id).await?;
        let len = blob.len();
        let start = (blob, 0, Some(crc64()));
        let chunks = stream::try_unfold(start, move |(blob, offset, crc)| async move {
            let Some(mut crc) = crc else { return Ok(None) };
            if offset >= len {
                let trailer = Bytes::copy_from_slice(&crc.finalize().to_be_bytes());
                return Ok(Some((trailer, (blob, offset, None))));
            }
            let end = len.min(offset.saturating_add(SEND_LEN));
            let chunk = blob.read(offset..end).await?;
            crc.update(&chunk);
            Ok(Some((chunk, (blob, end, Some(crc)))))
        });
        Ok((len.saturating_add(BLOB_TRAILER_LEN), chunks.boxed()))
    }

    /// Takes in the blob `id` under its own name, from a body of `framed_len` bytes as [`Store::send_blob`] makes it. It
    /// waits here until a replica that refers to it commits. A blob that is here already is read and forgotten.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Contended`] if somebody else sends it now; [`ErrorKind::TooLarge`] beyond [`BLOB_LEN_MAX`];
    /// [`ErrorKind::IncompleteBody`] if the body has another length; [`ErrorKind::InvalidArgument`] if the checksum does
    /// not match; [`ErrorKind::BodyFailed`] if the body breaks off; [`ErrorKind::Io`] if the disk fails. The blob is not
    /// here then.
    pub async fn receive_blob<S>(&self, id: BlobId, framed_len: u64, body: S) -> Result<()>
    where
        S: Stream<Item = std::result::Result<Bytes, BodyError>> + Send,
    {
        let Some(len) = framed_len.checked_sub(BLOB_TRAILER_LEN) else {
            return Err(Error::new(
                ErrorKind::IncompleteBody,
                format!("{framed_len} bytes are too few for a blob and its checksum"),
            ));
        };
        if len > BLOB_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("blob {id} of {len} bytes is over {BLOB_LEN_MAX}"),
            ));
        }
        let body = std::pin::pin!(body);
        let Some(mut receiving) = Receiving::begin(&self.core, id).await? else {
            let mut body = body;
            while let Some(chunk) = body.next().await {
                chunk.map_err(broke_off)?;
            }
            return Ok(());
        };
        let mut writer = self.core.blobs.create(id).await?;
        let mut frame = Frame::new(len);
        let mut body = body;
        while let Some(chunk) = body.next().await {
            let data = frame.push(chunk.map_err(broke_off)?)?;
            if !data.is_empty() {
                writer.append(data).await?;
            }
        }
        frame.finish(id)?;
        writer.seal().await?;
        receiving.end(len).await
    }

    /// Commits an object whose blobs have all arrived, unless there is a newer one of that name. Versions are this server's
    /// own: the object gets a version id here, by the versioning of the bucket here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Corrupt`] if its layout is damaged or reaches beyond its blobs;
    /// [`ErrorKind::TooLarge`] if it has more than [`REPLICA_BLOBS_MAX`] blobs; [`ErrorKind::QuotaExceeded`].
    pub async fn commit_replica(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        replica: Replica,
    ) -> Result<ReplicaOutcome> {
        match self.try_commit_replica(bucket, key, &replica.record).await {
            Err(error) if error.kind() == ErrorKind::PreconditionFailed => {
                Ok(ReplicaOutcome::Incomplete(error.to_string()))
            }
            outcome => outcome,
        }
    }

    async fn try_commit_replica(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        record: &ObjectRecord,
    ) -> Result<ReplicaOutcome> {
        if self.superseded(bucket, key, record).await? {
            return Ok(ReplicaOutcome::Superseded);
        }
        let reach = self.replica_reach(&record.layout).await?;
        for batch in reach.chunks(BATCH) {
            self.adopt_replicated(record.layout_id, batch).await?;
        }
        let outcome = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            let now = self.now();
            let mut place = Place::find(&mut txn, now, &bucket, key).await?;
            let mut record = record.clone();
            // What protects the object there means nothing here, where this bucket's object lock counts.
            record.lock = VersionLock::default();
            // What this server has made of the same version stays known.
            record.jobs = match &place.current {
                Some(current) if is_newer(current, &record) => return Ok(ReplicaOutcome::Superseded),
                Some(current) if current.layout_id == record.layout_id => {
                    place.stamp = current.version;
                    current.jobs.clone()
                }
                _ => take_back(&mut txn, now, &bucket, key, record.layout_id).await?,
            };
            if !reach.is_empty() {
                let holder = Holder::version(bucket.id, key, place.stamp);
                hold(&mut txn, record.layout_id, holder).await?;
            }
            let record = write_object(&mut txn, now, &bucket, key, place, record, &[]).await?;
            Ok(ReplicaOutcome::Committed(Box::new(PutOutcome { record, bucket })))
        });
        self.core.swept.notify_one();
        self.core.compressible.notify_one();
        Ok(outcome)
    }

    /// Whether there is a newer object of that name already: then nothing need be adopted.
    async fn superseded(&self, bucket: &BucketName, key: &ObjectKey, record: &ObjectRecord) -> Result<bool> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        let current = current(&mut txn, bucket.id, key).await?;
        Ok(current.is_some_and(|current| is_newer(&current, record)))
    }

    /// The blobs of a layout from elsewhere, each with how much of it the layout needs, in order.
    async fn replica_reach(&self, layout: &Layout) -> Result<Vec<(BlobId, u64)>> {
        if let Layout::Paged(paged) = layout {
            let mut txn = self.begin().await?;
            for id in &paged.blobs {
                match standing(&mut txn, *id).await? {
                    Standing::Arrived(..) | Standing::InUse(_) => {}
                    Standing::Absent | Standing::Pending => return Err(not_arrived(*id)),
                }
            }
        }
        let mut reach = BTreeMap::new();
        visit_blobs(&self.core.blobs, layout, |id, end| {
            let furthest: &mut u64 = reach.entry(id).or_default();
            *furthest = end.max(*furthest);
            if reach.len() > REPLICA_BLOBS_MAX {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("the object has over {REPLICA_BLOBS_MAX} blobs"),
                ));
            }
            Ok(())
        })
        .await?;
        Ok(reach.into_iter().collect())
    }

    /// Makes blobs that have arrived ones in use, and has `layout` borrow those of other layouts. The layouts that nothing
    /// has yet are released ones, for the sweep to find should nothing come to have them.
    async fn adopt_replicated(&self, layout: LayoutId, reach: &[(BlobId, u64)]) -> Result<()> {
        let not_before = self.now().plus_millis(INTENT_MILLIS);
        transact!(&self.core.kv, |txn| {
            let mut owners = BTreeSet::new();
            for (id, end) in reach {
                let len = match standing(&mut txn, *id).await? {
                    Standing::InUse(len) => len,
                    Standing::Arrived(len, _) => {
                        txn.delete(Keys::intent(*id))?;
                        txn.put(Keys::blob(*id), encode(&BlobRecord::new(len)))?;
                        wait(&mut txn, id.owner, true, not_before).await?;
                        len
                    }
                    Standing::Absent | Standing::Pending => return Err(not_arrived(*id)),
                };
                if *end > len {
                    return Err(Error::corrupt(format!(
                        "the layout reaches byte {end} of blob {id}, which has {len}"
                    )));
                }
                owners.insert(id.owner);
            }
            let owns_blobs = owners.remove(&layout);
            wait(&mut txn, layout, owns_blobs, not_before).await?;
            for owner in owners {
                borrow(&mut txn, layout, owner).await?;
            }
            Ok(())
        });
        Ok(())
    }
}

/// A blob that is on its way in. Dropping it gives up.
struct Receiving {
    core: Arc<Core>,
    id: BlobId,
    armed: bool,
}

impl Receiving {
    /// Takes the name, unless the blob is here.
    async fn begin(core: &Arc<Core>, id: BlobId) -> Result<Option<Self>> {
        // Armed before the transaction: whoever is cut off in it does not know whether the intent is there.
        let mut receiving = Self {
            core: Arc::clone(core),
            id,
            armed: true,
        };
        let now = core.clock.now();
        let found = transact!(&core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            let found = standing(&mut txn, id).await?;
            if found == Standing::Absent {
                put_intent(&mut txn, id, IntentStage::Writing, now)?;
            }
            Ok(found)
        });
        receiving.armed = found == Standing::Absent;
        match found {
            Standing::Absent => Ok(Some(receiving)),
            Standing::InUse(_) | Standing::Arrived(..) => Ok(None),
            Standing::Pending => Err(Error::new(
                ErrorKind::Contended,
                format!("blob {id} is on its way already"),
            )),
        }
    }

    /// The blob is sealed: others may count on it. Unsynced, as the commit of its object is what counts.
    async fn end(&mut self, len: u64) -> Result<()> {
        let (core, id) = (&self.core, self.id);
        let now = core.clock.now();
        transact!(&core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            let intent: Option<IntentRecord> = get(&mut txn, &Keys::intent(id)).await?;
            if intent.is_none_or(|intent| intent.stage != IntentStage::Writing) {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("the intent of blob {id} has expired: it took longer than a day"),
                ));
            }
            put_intent(&mut txn, id, IntentStage::Arrived(len), now)
        });
        self.armed = false;
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.armed {
            self.core.discard([self.id]);
        }
    }
}

/// A blob as it travels, being read.
struct Frame {
    /// Bytes of the blob that are to come.
    left: u64,
    crc: crc_fast::Digest,
    trailer: BytesMut,
}

impl Frame {
    fn new(len: u64) -> Self {
        Self {
            left: len,
            crc: crc64(),
            trailer: BytesMut::new(),
        }
    }

    /// The bytes of the blob in `chunk`.
    fn push(&mut self, mut chunk: Bytes) -> Result<Bytes> {
        let within = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len());
        let data = chunk.split_to(within);
        self.left = self.left.saturating_sub(data.len() as u64);
        self.crc.update(&data);
        if (self.trailer.len() as u64).saturating_add(chunk.len() as u64) > BLOB_TRAILER_LEN {
            return Err(Error::new(
                ErrorKind::IncompleteBody,
                "the blob goes on after its declared length",
            ));
        }
        self.trailer.extend_from_slice(&chunk);
        Ok(data)
    }

    fn finish(self, id: BlobId) -> Result<()> {
        let Ok(sent) = <[u8; size_of::<u64>()]>::try_from(&self.trailer[..]) else {
            return Err(Error::new(
                ErrorKind::IncompleteBody,
                format!("blob {id} ended before its declared length"),
            ));
        };
        if u64::from_be_bytes(sent) != self.crc.finalize() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("blob {id} does not match its checksum"),
            ));
        }
        Ok(())
    }
}

fn crc64() -> crc_fast::Digest {
    crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme)
}

fn broke_off(error: BodyError) -> Error {
    Error::new(ErrorKind::BodyFailed, "the blob broke off").caused_by(error)
}

fn not_arrived(id: BlobId) -> Error {
    Error::new(ErrorKind::PreconditionFailed, format!("blob {id} has not arrived"))
}

fn put_intent(txn: &mut Txn, id: BlobId, stage: IntentStage, now: Timestamp) -> Result<()> {
    let expires = now.plus_millis(INTENT_MILLIS);
    txn.put(Keys::intent(id), encode(&IntentRecord { expires, stage }))
}

async fn standing(txn: &mut Txn, id: BlobId) -> Result<Standing> {
    if let Some(BlobRecord { len, .. }) = get(txn, &Keys::blob(id)).await? {
        // The sweep of a dying layout deletes its blobs before their rows.
        let owner: Option<LayoutRecord> = get(txn, &Keys::layout(id.owner)).await?;
        let going = owner.is_none_or(|owner| owner.state == LayoutState::Dying);
        return Ok(if going { Standing::Pending } else { Standing::InUse(len) });
    }
    let intent: Option<IntentRecord> = get(txn, &Keys::intent(id)).await?;
    Ok(match intent {
        None => Standing::Absent,
        Some(intent) => match intent.stage {
            IntentStage::Arrived(len) => Standing::Arrived(len, intent.expires),
            IntentStage::Writing | IntentStage::Dropped => Standing::Pending,
        },
    })
}

/// Takes a version with this layout out of those that are not current, where it is one: it comes again, and no layout has
/// two versions. Gives its jobs.
async fn take_back(
    txn: &mut Txn,
    now: Timestamp,
    bucket: &BucketRecord,
    key: &ObjectKey,
    layout: LayoutId,
) -> Result<Vec<JobId>> {
    let placed = version_of(txn, layout).await?;
    let Some(placed) = placed.filter(|placed| placed.is_of(bucket.id, key)) else {
        return Ok(Vec::new());
    };
    let record = *placed.record;
    lock::check_delete(&record, now, Governance::Holds)?;
    take_row(txn, bucket.id, key, record.version)?;
    charge(txn, bucket, Change::of_object(Some(record.size()), None)).await?;
    Ok(record.jobs)
}

async fn current(txn: &mut Txn, bucket: BucketId, key: &ObjectKey) -> Result<Option<ObjectRecord>> {
    get(txn, &Keys::object(bucket, key.as_str().as_bytes())).await
}

fn is_newer(current: &ObjectRecord, record: &ObjectRecord) -> bool {
    current.layout_id != record.layout_id && current.last_modified > record.last_modified
}

/// Makes sure that `layout` has a record, so that the sweep finds it if nothing comes to have it.
async fn wait(txn: &mut Txn, layout: LayoutId, owns_blobs: bool, not_before: Timestamp) -> Result<()> {
    let key = Keys::layout(layout);
    let known: Option<LayoutRecord> = get(txn, &key).await?;
    let state = known.as_ref().map_or(LayoutState::Released, |known| known.state);
    if state == LayoutState::Dying {
        return Err(being_swept(layout));
    }
    let record = LayoutRecord {
        state,
        owns_blobs: owns_blobs || known.as_ref().is_some_and(|known| known.owns_blobs),
        holder: known.and_then(|known| known.holder),
    };
    txn.put(key, encode(&record))?;
    if state == LayoutState::Released {
        txn.put(Keys::dead_layout(layout), encode(&DeadLayout { not_before }))?;
    }
    Ok(())
}

/// Gives a layout that waits to an object version.
async fn hold(txn: &mut Txn, layout: LayoutId, holder: Holder) -> Result<()> {
    let key = Keys::layout(layout);
    let known: Option<LayoutRecord> = get(txn, &key).await?;
    let Some(mut record) = known.filter(|known| known.state != LayoutState::Dying) else {
        return Err(being_swept(layout));
    };
    record.state = LayoutState::Held;
    record.holder = Some(holder);
    txn.put(key, encode(&record))?;
    txn.delete(Keys::dead_layout(layout))
}

fn being_swept(layout: LayoutId) -> Error {
    Error::new(ErrorKind::PreconditionFailed, format!("layout {layout} is being swept"))
}

/// The blobs of a layout, each once: those that its extents lie in, and those of its pages.
pub(crate) async fn blobs_of(blobs: &Arc<dyn Blobs>, layout: &Layout) -> Result<Vec<BlobId>> {
    let mut ids = BTreeSet::new();
    visit_blobs(blobs, layout, |id, _| {
        ids.insert(id);
        Ok(())
    })
    .await?;
    Ok(ids.into_iter().collect())
}

/// Calls `visit` with each blob that `layout` refers to and where the reference ends in it, as often as there are such.
async fn visit_blobs(
    blobs: &Arc<dyn Blobs>,
    layout: &Layout,
    mut visit: impl FnMut(BlobId, u64) -> Result<()> + Send,
) -> Result<()> {
    if let Layout::Paged(paged) = layout {
        for id in &paged.blobs {
            visit(*id, 0)?;
        }
    }
    let mut cursor = LayoutCursor::new(Arc::clone(blobs), Arc::new(layout.clone()));
    while let Some(piece) = cursor.next(u64::MAX).await? {
        if let Extent::Blob { id, offset } = piece.extent {
            visit(id, offset.saturating_add(piece.len))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
