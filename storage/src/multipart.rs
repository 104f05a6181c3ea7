//! Multipart uploads: create, add parts, list, complete, abort.
//!
//! The upload's id is the id of the layout it completes to, so the parts' blobs are the object's from the start.
//!
//! Completing has two steps. First the parts' layouts are joined, which may mean to read and write pages; then one
//! transaction makes sure that the parts are still those that were joined, which takes a digest of their rows, and
//! commits. If one was replaced in between, both steps are made again. The upload is pinned meanwhile, so that the sweep
//! leaves the pages of a replaced part alone. Part records, and the blobs of parts that were left out, are cleared in
//! the background.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{
    blob::{BlobId, Blobs},
    bucket::require_bucket,
    clock::Timestamp,
    digest::{combine_checksums, multipart_etag},
    error::{Error, ErrorKind, Result},
    job::NewJob,
    kv::{Order, SCAN_ROWS_MAX, Scan, Txn, transact},
    layout::{Layout, LayoutBuilder, LayoutCursor},
    lock,
    object::{PutOutcome, WriteCondition, check_condition, release, write_object},
    part_checksum::keep_part_checksums,
    quota::{charge_part, uncharge_parts},
    rows::Rows,
    schema::{
        BucketId, BucketName, BucketRecord, Checksum, ChecksumAlgorithm, ChecksumType, ContentHeaders, EndedUpload,
        Holder, Keys, LayoutId, LayoutRecord, LayoutState, ObjectKey, ObjectRecord, PartNumber, PartRecord, PartSize,
        Tags, UploadRecord, VersionLock, VersionStamp, decode, encode,
    },
    staging::{Content, Staging, abandon_blob, get},
    store::Store,
    version::{Place, version_of},
};

/// Most runs of equal part sizes that a record keeps; an object of more has none.
pub(crate) const PART_SIZES_MAX: usize = 512;
/// How often a completion begins again because parts are being replaced meanwhile.
const COMPLETE_ATTEMPTS_MAX: usize = 16;

/// What a new upload is to become.
#[derive(Debug, Clone, Default)]
pub struct NewUpload {
    /// As in [`UploadRecord::headers`].
    pub headers: ContentHeaders,
    /// As in [`UploadRecord::metadata`].
    pub metadata: BTreeMap<String, String>,
    /// As in [`UploadRecord::tags`].
    pub tags: Tags,
    /// As in [`UploadRecord::checksum_algorithm`].
    pub checksum_algorithm: Option<ChecksumAlgorithm>,
    /// As in [`UploadRecord::checksum_type`].
    pub checksum_type: Option<ChecksumType>,
    /// As in [`UploadRecord::owner`].
    pub owner: String,
    /// As in [`UploadRecord::lock`].
    pub lock: VersionLock,
}

/// An upload in progress.
#[derive(Debug, Clone)]
pub struct OpenUpload {
    /// Its id.
    pub id: LayoutId,
    /// What is known of it.
    pub record: UploadRecord,
}

/// A part as a completion names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedPart {
    /// Its number.
    pub number: PartNumber,
    /// Its `ETag`, without quotes.
    pub etag: String,
    /// Its checksum in base64, if the client names it.
    pub checksum: Option<String>,
}

/// A page of parts.
#[derive(Debug, Clone)]
pub struct PartListing {
    /// The upload.
    pub upload: UploadRecord,
    /// Parts in the order of their numbers.
    pub parts: Vec<(PartNumber, PartRecord)>,
    /// Whether there are more.
    pub more: bool,
}

impl Store {
    /// Begins an upload and gives its id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index fails.
    pub async fn create_upload(&self, bucket: &BucketName, key: &ObjectKey, new: NewUpload) -> Result<LayoutId> {
        let now = self.now();
        let id = LayoutId::generate(now);
        let record = encode(&UploadRecord {
            initiated: now,
            headers: new.headers,
            metadata: new.metadata,
            tags: new.tags,
            checksum_algorithm: new.checksum_algorithm,
            checksum_type: new.checksum_type,
            owner: new.owner,
            lock: new.lock,
        });
        transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            lock::settle(&bucket, new.lock, now)?;
            txn.put(Keys::upload(bucket.id, key.as_str(), id), record.clone())?;
            txn.put(
                Keys::layout(id),
                encode(&LayoutRecord {
                    state: LayoutState::Held,
                    owns_blobs: true,
                    holder: Some(Holder::upload(bucket.id, key)),
                }),
            )
        });
        Ok(id)
    }

    /// Looks an upload up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchUpload`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn open_upload(&self, bucket: &BucketName, key: &ObjectKey, id: LayoutId) -> Result<OpenUpload> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        Ok(OpenUpload {
            id,
            record: require_upload(&mut txn, bucket.id, key, id).await?,
        })
    }

    /// Commits `content`, which was made for this upload, as a part. An earlier part of that number is replaced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchUpload`]; [`ErrorKind::PreconditionFailed`] if the content took
    /// too long or its source is gone; [`ErrorKind::QuotaExceeded`]; [`ErrorKind::OutcomeUnknown`].
    pub async fn put_part(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        number: PartNumber,
        content: Content,
        etag: String,
        checksum: Option<Checksum>,
    ) -> Result<PartRecord> {
        let Content { layout, mut staging } = content;
        let id = staging.owner();
        let blobs = staging.blob_indexes();
        let record = PartRecord {
            layout,
            etag,
            last_modified: self.now(),
            checksum,
            blobs,
        };
        let replaced = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            require_upload(&mut txn, bucket.id, key, id).await?;
            staging.commit_part(&mut txn).await?;
            let row = Keys::part(id, number);
            let replaced: Option<PartRecord> = get(&mut txn, &row).await?;
            let size = replaced.as_ref().map(|part| part.layout.size());
            charge_part(&mut txn, &bucket, id, size, record.layout.size()).await?;
            let replaced = replaced.map(|part| part.blobs).unwrap_or_default();
            for index in &replaced {
                abandon_blob(
                    &mut txn,
                    self.now(),
                    BlobId {
                        owner: id,
                        index: *index,
                    },
                )?;
            }
            txn.put(row, encode(&record))?;
            Ok(replaced)
        });
        staging.committed();
        if !replaced.is_empty() {
            self.core
                .discard(replaced.into_iter().map(|index| BlobId { owner: id, index }));
        }
        Ok(record)
    }

    /// Parts behind number `after`, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchUpload`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_parts(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        after: Option<PartNumber>,
        limit: usize,
    ) -> Result<PartListing> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        let upload = require_upload(&mut txn, bucket.id, key, id).await?;
        let mut range = Keys::parts(id);
        if let Some(after) = after {
            range.start = [&Keys::part(id, after)[..], &[0]].concat().into();
        }
        let page = txn
            .scan(&Scan {
                range,
                limit: limit.clamp(1, SCAN_ROWS_MAX),
                order: Order::Ascending,
            })
            .await?;
        let parts = page
            .rows
            .iter()
            .map(|(key, part)| Ok((parse_number(key)?, decode(part)?)))
            .collect::<Result<_>>()?;
        Ok(PartListing {
            upload,
            parts,
            more: page.more,
        })
    }

    /// Completes an upload to an object of the parts named, in their order, which is that of their numbers.
    ///
    /// `complete` is as for [`Store::put_object`]. Completing again gives the object that the first time made, as long as
    /// it is there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchUpload`]; [`ErrorKind::InvalidPart`],
    /// [`ErrorKind::InvalidPartOrder`], [`ErrorKind::PartTooSmall`]; [`ErrorKind::PreconditionFailed`] if the condition does
    /// not hold; [`ErrorKind::QuotaExceeded`]; [`ErrorKind::OutcomeUnknown`].
    pub async fn complete_upload(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        named: &[CompletedPart],
        condition: &WriteCondition,
        complete: impl Fn(&BucketRecord, &mut ObjectRecord) -> Result<Vec<NewJob>> + Send + Sync,
    ) -> Result<PutOutcome> {
        // Taken before the first look at the upload: see `sweep`. Refused only once it has been aborted.
        let _pin = self.core.pins.pin(id);
        for _ in 0..COMPLETE_ATTEMPTS_MAX {
            let mut joined = match self.join_upload(bucket, key, id, named).await {
                Err(e) if e.kind() == ErrorKind::NoSuchUpload => {
                    return self.completed_before(bucket, key, id, e).await;
                }
                joined => joined?,
            };
            let outcome = self
                .commit_joined(bucket, key, id, &joined, condition, &complete)
                .await?;
            if let Some(outcome) = outcome {
                joined.staging.committed();
                self.core.swept.notify_one();
                self.core.compressible.notify_one();
                self.queued(&outcome.record.jobs);
                return Ok(outcome);
            }
        }
        Err(Error::new(
            ErrorKind::Contended,
            format!("the parts of upload {id} are being replaced all the time"),
        ))
    }

    /// Joins the parts as they are now.
    async fn join_upload(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        named: &[CompletedPart],
    ) -> Result<Joined> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        let upload = require_upload(&mut txn, bucket.id, key, id).await?;
        let parts = choose_parts(read_parts(&mut txn, id).await?, named, self.core.limits.part_len_min)?;
        let mut staging = Staging::new(Arc::clone(&self.core), id);
        let (layout, digest) = join_parts(&mut txn, &self.core.blobs, &mut staging, &parts).await?;
        let record = completed_record(self.now(), id, upload, &parts, layout)?;
        Ok(Joined {
            staging,
            record,
            parts,
            digest,
        })
    }

    /// Commits parts that were joined; `None` if they are no longer the same.
    async fn commit_joined(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        joined: &Joined,
        condition: &WriteCondition,
        complete: &(impl Fn(&BucketRecord, &mut ObjectRecord) -> Result<Vec<NewJob>> + Send + Sync),
    ) -> Result<Option<PutOutcome>> {
        let mut ended = EndedUpload::default();
        for part in &joined.parts {
            ended.keep(part.number);
        }
        let outcome = transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            if let Err(error) = require_upload(&mut txn, bucket.id, key, id).await {
                return if error.kind() == ErrorKind::NoSuchUpload {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
            if digest_parts(&mut txn, id, &joined.parts).await? != joined.digest {
                return Ok(None);
            }
            let now = self.now();
            let place = Place::find(&mut txn, now, &bucket, key).await?;
            check_condition(condition, key, place.current.as_deref())?;
            let mut record = joined.record.clone();
            record.version = place.stamp;
            let jobs = complete(&bucket, &mut record)?;
            let holder = Holder::version(bucket.id, key, place.stamp);
            joined.staging.commit(&mut txn, holder).await?;
            txn.delete(Keys::upload(bucket.id, key.as_str(), id))?;
            txn.put(Keys::ended_upload(id), encode(&ended))?;
            uncharge_parts(&mut txn, &bucket, id).await?;
            let checksums = joined.parts.iter().map(|part| part.checksum.as_ref());
            keep_part_checksums(&mut txn, id, record.checksum.as_ref(), checksums)?;
            let record = write_object(&mut txn, now, &bucket, key, place, record, &jobs).await?;
            Ok(Some(PutOutcome { record, bucket }))
        });
        Ok(outcome)
    }

    /// The object of an upload that was completed before, as long as it is there, current or not; else `error`.
    async fn completed_before(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        error: Error,
    ) -> Result<PutOutcome> {
        let mut txn = self.begin().await?;
        let bucket = require_bucket(&mut txn, bucket).await?;
        let placed = version_of(&mut txn, id)
            .await?
            .filter(|placed| placed.is_of(bucket.id, key));
        let record = *placed.ok_or(error)?.record;
        Ok(PutOutcome { record, bucket })
    }

    /// Gives an upload up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::NoSuchUpload`]; [`ErrorKind::Io`] if the index fails.
    pub async fn abort_upload(&self, bucket: &BucketName, key: &ObjectKey, id: LayoutId) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            require_upload(&mut txn, bucket.id, key, id).await?;
            txn.delete(Keys::upload(bucket.id, key.as_str(), id))?;
            txn.put(Keys::ended_upload(id), encode(&EndedUpload::default()))?;
            uncharge_parts(&mut txn, &bucket, id).await?;
            release(&mut txn, id, self.now()).await
        });
        self.core.swept.notify_one();
        Ok(())
    }
}

async fn require_upload(txn: &mut Txn, bucket: BucketId, key: &ObjectKey, id: LayoutId) -> Result<UploadRecord> {
    get(txn, &Keys::upload(bucket, key.as_str(), id)).await?.ok_or_else(|| {
        Error::new(
            ErrorKind::NoSuchUpload,
            format!("upload {id} does not exist: it was completed or aborted, or never begun"),
        )
    })
}

/// Parts that were joined, and what they were.
struct Joined {
    staging: Staging,
    record: ObjectRecord,
    parts: Vec<Part>,
    digest: [u8; 32],
}

/// What a completion needs to know of each part. Their layouts, which may be long, are read one page at a time.
#[derive(Debug)]
struct Part {
    number: PartNumber,
    size: u64,
    etag: String,
    checksum: Option<Checksum>,
}

/// All parts of an upload.
async fn read_parts(txn: &mut Txn, id: LayoutId) -> Result<BTreeMap<PartNumber, Part>> {
    let mut parts = BTreeMap::new();
    let mut rows = Rows::of(Keys::parts(id));
    while let Some(page) = rows.next_in(txn).await? {
        for (key, part) in page {
            let number = parse_number(&key)?;
            let part: PartRecord = decode(&part)?;
            let part = Part {
                number,
                size: part.layout.size(),
                etag: part.etag,
                checksum: part.checksum,
            };
            parts.insert(number, part);
        }
    }
    Ok(parts)
}

/// The parts that a completion names, checked.
fn choose_parts(
    mut parts: BTreeMap<PartNumber, Part>,
    named: &[CompletedPart],
    part_len_min: u64,
) -> Result<Vec<Part>> {
    if named.is_empty() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a completion names no part"));
    }
    // S3 looks at the order of all, then at what each names, and at sizes last.
    if let Some((_, after)) = named
        .iter()
        .zip(named.iter().skip(1))
        .find(|(a, b)| a.number >= b.number)
    {
        return Err(Error::new(
            ErrorKind::InvalidPartOrder,
            format!("part {} is out of order", after.number.get()),
        ));
    }
    let mut chosen: Vec<Part> = Vec::with_capacity(named.len().min(parts.len()));
    for name in named {
        let number = name.number;
        let part = parts.remove(&number).filter(|part| part.etag == name.etag);
        let part = part.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidPart,
                format!(
                    "part {} was not uploaded with ETag {:?}",
                    number.get(),
                    name.etag.chars().take(64).collect::<String>()
                ),
            )
        })?;
        if let (Some(named), Some(stored)) = (&name.checksum, &part.checksum)
            && *named != stored.value
        {
            return Err(Error::new(
                ErrorKind::InvalidPart,
                format!("part {} has another checksum", number.get()),
            ));
        }
        chosen.push(part);
    }
    let last = chosen.len().saturating_sub(1);
    match chosen.iter().take(last).find(|part| part.size < part_len_min) {
        Some(part) => Err(Error::new(
            ErrorKind::PartTooSmall,
            format!(
                "part {} has {} bytes; all but the last need {part_len_min}",
                part.number.get(),
                part.size
            ),
        )),
        None => Ok(chosen),
    }
}

/// The rows of an upload's parts, of those that were chosen, in order.
struct ChosenRows<'a> {
    rows: Rows,
    chosen: &'a [Part],
}

impl<'a> ChosenRows<'a> {
    fn of(id: LayoutId, chosen: &'a [Part]) -> Self {
        Self {
            rows: Rows::of(Keys::parts(id)),
            chosen,
        }
    }

    async fn next_in(&mut self, txn: &mut Txn) -> Result<Option<Vec<Bytes>>> {
        let Some(page) = self.rows.next_in(txn).await? else {
            return Ok(None);
        };
        let mut values = Vec::with_capacity(page.len());
        for (key, value) in page {
            let number = parse_number(&key)?;
            if self.chosen.binary_search_by_key(&number, |part| part.number).is_ok() {
                values.push(value);
            }
        }
        Ok(Some(values))
    }
}

/// Joins the parts, and digests their rows. A single part is the object as it is.
async fn join_parts(
    txn: &mut Txn,
    blobs: &Arc<dyn Blobs>,
    staging: &mut Staging,
    parts: &[Part],
) -> Result<(Layout, [u8; 32])> {
    let mut digest = Sha256::new();
    let mut builder = LayoutBuilder::new();
    let mut rows = ChosenRows::of(staging.owner(), parts);
    let mut only = None;
    while let Some(page) = rows.next_in(txn).await? {
        for row in page {
            digest.update(&row);
            let layout = decode::<PartRecord>(&row)?.layout;
            if parts.len() == 1 {
                only = Some(layout);
                continue;
            }
            let mut cursor = LayoutCursor::new(Arc::clone(blobs), Arc::new(layout));
            while let Some(piece) = cursor.next(u64::MAX).await? {
                builder.push(staging, piece).await?;
            }
        }
    }
    let layout = match only {
        Some(layout) => layout,
        None => builder.finish(staging).await?,
    };
    Ok((layout, digest.finalize().into()))
}

/// The digest that [`join_parts`] takes, of the parts as they are now.
async fn digest_parts(txn: &mut Txn, id: LayoutId, parts: &[Part]) -> Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut rows = ChosenRows::of(id, parts);
    while let Some(page) = rows.next_in(txn).await? {
        for row in &page {
            digest.update(row);
        }
    }
    Ok(digest.finalize().into())
}

fn completed_record(
    now: Timestamp,
    id: LayoutId,
    upload: UploadRecord,
    parts: &[Part],
    layout: Layout,
) -> Result<ObjectRecord> {
    let checksums: Vec<_> = parts.iter().map(|part| (part.checksum.as_ref(), part.size)).collect();
    Ok(ObjectRecord {
        layout_id: id,
        layout,
        last_modified: now,
        etag: multipart_etag(parts.iter().map(|part| part.etag.as_str()))?,
        headers: upload.headers,
        metadata: upload.metadata,
        tags: upload.tags,
        checksum: combine_checksums(upload.checksum_algorithm, upload.checksum_type, &checksums)?,
        part_sizes: part_sizes(parts.iter().map(|part| part.size)),
        annotations: BTreeMap::new(),
        jobs: Vec::new(),
        owner: upload.owner,
        replication: BTreeMap::new(),
        version: VersionStamp::default(),
        lock: upload.lock,
    })
}

fn part_sizes(sizes: impl Iterator<Item = u64>) -> Vec<PartSize> {
    let mut runs: Vec<PartSize> = Vec::new();
    for size in sizes {
        match runs.last_mut() {
            Some(run) if run.size == size => run.count = run.count.saturating_add(1),
            _ => runs.push(PartSize { size, count: 1 }),
        }
    }
    if runs.len() > PART_SIZES_MAX { Vec::new() } else { runs }
}

pub(crate) fn parse_number(key: &[u8]) -> Result<PartNumber> {
    let number = key.last_chunk::<2>().copied().map(u16::from_be_bytes);
    PartNumber::new(number.map_or(0, i64::from))
        .map_err(|e| Error::corrupt("the index holds a damaged part key").caused_by(e))
}
