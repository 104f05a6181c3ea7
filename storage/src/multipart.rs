//! Multipart uploads: create, add parts, list, complete, abort.
//!
//! The upload's id is the id of the layout it completes to, so the parts' blobs are the object's from the start.
//! Completing joins the parts' layouts and commits them in one transaction that has read the whole range of parts: a part
//! that is uploaded at the same time makes one of the two run again. Part records, and the blobs of parts that were left
//! out, are cleared in the background.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    blob::BlobId,
    bucket::require_bucket,
    digest::{combine_checksums, multipart_etag},
    error::{Error, ErrorKind, Result},
    job::NewJob,
    kv::{Order, SCAN_ROWS_MAX, Scan, Txn, transact},
    layout::{Layout, LayoutBuilder, LayoutCursor},
    object::{PutOutcome, WriteCondition, release, write_object},
    schema::{
        BucketId, BucketName, BucketRecord, Checksum, ChecksumAlgorithm, ChecksumType, ContentHeaders, EndedUpload,
        Keys, LayoutId, LayoutRecord, LayoutState, ObjectKey, ObjectRecord, PartNumber, PartRecord, PartSize, Tags,
        UploadRecord, decode, encode,
    },
    staging::{Content, Staging, get},
    store::Store,
};

/// Smallest part but the last, in bytes (S3 User Guide, "Multipart upload limits").
pub const PART_LEN_MIN: u64 = 5 << 20;
/// Most runs of equal part sizes that a record keeps; an object of more has none.
const PART_SIZES_MAX: usize = 512;

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
        });
        transact!(&self.core.kv, |txn| {
            let bucket = require_bucket(&mut txn, bucket).await?;
            txn.put(Keys::upload(bucket.id, key.as_str(), id), record.clone())?;
            txn.put(
                Keys::layout(id),
                encode(&LayoutRecord {
                    state: LayoutState::Held,
                    owns_blobs: true,
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
    /// too long or its source is gone; [`ErrorKind::OutcomeUnknown`].
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
            let replaced = replaced.map(|part| part.blobs).unwrap_or_default();
            for index in &replaced {
                txn.delete(Keys::blob(BlobId {
                    owner: id,
                    index: *index,
                }))?;
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
    /// not hold; [`ErrorKind::OutcomeUnknown`].
    pub async fn complete_upload(
        &self,
        bucket: &BucketName,
        key: &ObjectKey,
        id: LayoutId,
        named: &[CompletedPart],
        condition: &WriteCondition,
        complete: impl Fn(&BucketRecord, &mut ObjectRecord) -> Result<Vec<NewJob>> + Send + Sync,
    ) -> Result<PutOutcome> {
        // Made anew by each attempt; the one before is discarded.
        let mut staging = Staging::new(Arc::clone(&self.core), id);
        let outcome = transact!(&self.core.kv, |txn| {
            staging = Staging::new(Arc::clone(&self.core), id);
            let bucket = require_bucket(&mut txn, bucket).await?;
            let upload = match require_upload(&mut txn, bucket.id, key, id).await {
                Err(e) if e.kind() == ErrorKind::NoSuchUpload => {
                    let done: Option<ObjectRecord> =
                        get(&mut txn, &Keys::object(bucket.id, key.as_str().as_bytes())).await?;
                    let record = done.filter(|record| record.layout_id == id).ok_or(e)?;
                    return Ok(PutOutcome { record, bucket });
                }
                upload => upload?,
            };
            let parts = choose_parts(read_parts(&mut txn, id).await?, named)?;
            let layout = join_parts(self, &mut staging, &parts).await?;
            let mut record = completed_record(self, id, upload, &parts, layout)?;
            let jobs = complete(&bucket, &mut record)?;
            staging.commit(&mut txn, LayoutState::Held).await?;
            txn.delete(Keys::upload(bucket.id, key.as_str(), id))?;
            let mut ended = EndedUpload::default();
            parts.iter().for_each(|(number, _)| ended.keep(*number));
            txn.put(Keys::ended_upload(id), encode(&ended))?;
            let record = write_object(&mut txn, self.now(), &bucket, key, record, condition, &jobs).await?;
            Ok(PutOutcome { record, bucket })
        });
        staging.committed();
        self.core.swept.notify_one();
        self.core.queued.notify_waiters();
        Ok(outcome)
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

/// All parts of an upload; the whole range is protected.
async fn read_parts(txn: &mut Txn, id: LayoutId) -> Result<BTreeMap<PartNumber, PartRecord>> {
    let mut parts = BTreeMap::new();
    let mut range = Keys::parts(id);
    loop {
        let page = txn
            .scan(&Scan {
                range: range.clone(),
                limit: SCAN_ROWS_MAX,
                order: Order::Ascending,
            })
            .await?;
        for (key, part) in &page.rows {
            parts.insert(parse_number(key)?, decode(part)?);
            range.start = [&key[..], &[0]].concat().into();
        }
        if !page.more {
            return Ok(parts);
        }
    }
}

/// The parts that a completion names, checked.
fn choose_parts(
    mut parts: BTreeMap<PartNumber, PartRecord>,
    named: &[CompletedPart],
) -> Result<Vec<(PartNumber, PartRecord)>> {
    if named.is_empty() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a completion names no part"));
    }
    let mut chosen: Vec<(PartNumber, PartRecord)> = Vec::with_capacity(named.len());
    for (position, name) in named.iter().enumerate() {
        let number = name.number;
        if chosen.last().is_some_and(|(before, _)| *before >= number) {
            return Err(Error::new(
                ErrorKind::InvalidPartOrder,
                format!("part {} is out of order", number.get()),
            ));
        }
        let part = parts
            .remove(&number)
            .filter(|part| part.etag == name.etag)
            .ok_or_else(|| {
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
        let last = position + 1 == named.len();
        if !last && part.layout.size() < PART_LEN_MIN {
            return Err(Error::new(
                ErrorKind::PartTooSmall,
                format!(
                    "part {} has {} bytes; all but the last need {PART_LEN_MIN}",
                    number.get(),
                    part.layout.size()
                ),
            ));
        }
        chosen.push((number, part));
    }
    Ok(chosen)
}

async fn join_parts(store: &Store, staging: &mut Staging, parts: &[(PartNumber, PartRecord)]) -> Result<Layout> {
    if let [(_, only)] = parts {
        return Ok(only.layout.clone());
    }
    let mut builder = LayoutBuilder::new();
    for (_, part) in parts {
        let mut cursor = LayoutCursor::new(Arc::clone(&store.core.blobs), Arc::new(part.layout.clone()));
        while let Some(piece) = cursor.next(u64::MAX).await? {
            builder.push(staging, piece).await?;
        }
    }
    builder.finish(staging).await
}

fn completed_record(
    store: &Store,
    id: LayoutId,
    upload: UploadRecord,
    parts: &[(PartNumber, PartRecord)],
    layout: Layout,
) -> Result<ObjectRecord> {
    let records = || parts.iter().map(|(_, part)| part);
    Ok(ObjectRecord {
        layout_id: id,
        layout,
        last_modified: store.now(),
        etag: multipart_etag(records().map(|part| part.etag.as_str()))?,
        headers: upload.headers,
        metadata: upload.metadata,
        tags: upload.tags,
        checksum: combine_checksums(
            upload.checksum_algorithm,
            upload.checksum_type,
            &records()
                .map(|part| (part.checksum.as_ref(), part.layout.size()))
                .collect::<Vec<_>>(),
        )?,
        part_sizes: part_sizes(records().map(|part| part.layout.size())),
        annotations: BTreeMap::new(),
        jobs: Vec::new(),
        owner: upload.owner,
        replication: BTreeMap::new(),
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
