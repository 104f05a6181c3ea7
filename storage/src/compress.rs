//! Compression at rest: blobs of buckets that ask for it are packed in the background.
//!
//! A write goes in as fast as ever, uncompressed. The transaction that commits an object to a bucket with
//! [`BucketRecord::compression`](crate::BucketRecord) also leaves a row of table `K` for its layout;
//! [`Store::compress_step`] takes up these rows, one blob at a time, so that its caller sets the pace.
//!
//! A blob keeps its name, content and length ([`Blobs::repack`](crate::blob::Blobs::repack)); nothing that refers to it
//! changes, and readers go on meanwhile. Pages of a layout stay as they are: they are searched by small reads.
//!
//! | step | what a crash after it leaves |
//! | --- | --- |
//! | 1. the blob is packed and takes the place of the old file | the row of table `K`: the blob is looked at again, and stays as it is |
//! | 2. its record notes the length it has on the disk | the same |
//! | 3. when all blobs of the layout are done, the row of table `K` goes | |

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::{
    blob::{BlobId, Compression},
    error::{ErrorKind, Result},
    kv::{Durability, Order, Scan, Txn, transact},
    layout::{Extent, Layout},
    rows::Rows,
    schema::{BlobRecord, BucketRecord, Keys, LayoutId, ObjectRecord, VersionRow, decode, encode},
    staging::get,
    store::Store,
};

/// Blobs below this length are left alone: a file takes whole blocks of the disk.
const BLOB_LEN_MIN: u64 = 16 << 10;

/// A layout whose blobs are to be compressed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct CompressRecord {
    /// The level of zstd.
    #[n(0)]
    pub(crate) level: i32,
    /// Blobs that hold pages of the layout.
    #[n(1)]
    pub(crate) pages: Vec<BlobId>,
}

/// How far the objects of a bucket have been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressPlace(Bytes);

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompressStep {
    /// Bytes of content that were read.
    pub bytes: u64,
    /// Bytes that this freed on the disk.
    pub saved: u64,
}

/// Has the blobs of `record`'s layout compressed, if its bucket asks for it.
pub(crate) fn queue_compression(txn: &mut Txn, bucket: &BucketRecord, record: &ObjectRecord) -> Result<()> {
    let Some(level) = bucket.compression else {
        return Ok(());
    };
    let pages = match &record.layout {
        Layout::Paged(paged) => paged.blobs.clone(),
        Layout::Listed(list) => {
            let own = |extent: &Extent| matches!(extent, Extent::Blob { id, .. } if id.owner == record.layout_id);
            if !list.pieces().any(|piece| own(&piece.extent)) {
                return Ok(());
            }
            Vec::new()
        }
    };
    txn.put(
        Keys::compression(record.layout_id),
        encode(&CompressRecord { level, pages }),
    )?;
    Ok(())
}

impl Store {
    /// Waits until an object was committed whose blobs are to be compressed.
    pub async fn compress_due(&self) {
        self.core.compressible.notified().await;
    }

    /// Has the blobs of the objects that `bucket` holds already compressed, and those of their other versions: the rows
    /// behind `after`, at most `limit`. The last row that was looked at, `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchBucket`]; [`ErrorKind::Io`] if the index fails.
    pub async fn queue_bucket_compression(
        &self,
        bucket: &crate::BucketName,
        after: Option<&CompressPlace>,
        limit: usize,
    ) -> Result<Option<CompressPlace>> {
        let last = transact!(&self.core.kv, |txn| {
            let bucket = crate::bucket::require_bucket(&mut txn, bucket).await?;
            // Objects first: a version that is replaced meanwhile is then met among the others.
            for mut range in [Keys::objects(bucket.id, b""), Keys::versions(bucket.id, "")] {
                if let Some(CompressPlace(after)) = after {
                    range.start = range.start.max([&after[..], &[0]].concat().into());
                }
                let order = Order::Ascending;
                let page = txn.scan(&Scan { range, limit, order }).await?;
                for (key, row) in &page.rows {
                    let record: Option<ObjectRecord> = match key.first() {
                        Some(b'O') => Some(decode(row)?),
                        _ => decode::<VersionRow>(row)?.object(),
                    };
                    if let Some(record) = record {
                        queue_compression(&mut txn, &bucket, &record)?;
                    }
                }
                if let Some((last, _)) = page.rows.last() {
                    return Ok(Some(CompressPlace(last.clone())));
                }
            }
            Ok(None)
        });
        self.core.compressible.notify_one();
        Ok(last)
    }

    /// Compresses the next blob that waits for it. `None` if none does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] or [`ErrorKind::StorageFull`] if index or disk fail; the blob waits on. One that is damaged is passed over.
    pub async fn compress_step(&self) -> Result<Option<CompressStep>> {
        let mut rows = Rows::of(Keys::compressions());
        while let Some(page) = rows.next(self).await? {
            for (key, record) in page {
                let layout = LayoutId(Keys::parse_last_id(&key)?);
                let record: CompressRecord = decode(&record)?;
                if let Some(step) = self.compress_layout(layout, &record).await? {
                    return Ok(Some(step));
                }
                transact!(&self.core.kv, |txn| {
                    txn.set_durability(Durability::Buffered);
                    txn.delete(key.clone())
                });
            }
        }
        Ok(None)
    }

    /// Compresses one of the layout's blobs. `None` if there is none left to do.
    async fn compress_layout(&self, layout: LayoutId, order: &CompressRecord) -> Result<Option<CompressStep>> {
        let mut rows = Rows::of(Keys::blobs_of(layout));
        while let Some(page) = rows.next(self).await? {
            for (key, blob) in page {
                let id = Keys::parse_blob(&key)?;
                let blob: BlobRecord = decode(&blob)?;
                if blob.stored.is_some() || blob.len < BLOB_LEN_MIN || order.pages.contains(&id) {
                    continue;
                }
                return self.compress_blob(&key, id, blob.len, order.level).await.map(Some);
            }
        }
        Ok(None)
    }

    async fn compress_blob(&self, row: &Bytes, id: BlobId, len: u64, level: i32) -> Result<CompressStep> {
        let (stored, saved) = match self.core.blobs.repack(id, Compression::Zstd(level)).await {
            Ok(packed) => (packed.after, packed.before.saturating_sub(packed.after)),
            // It was deleted meanwhile, or is damaged, which has been noted: not to be tried again and again.
            Err(error) if error.damage().is_some() || error.kind() == ErrorKind::PreconditionFailed => (len, 0),
            Err(error) => return Err(error),
        };
        transact!(&self.core.kv, |txn| {
            txn.set_durability(Durability::Buffered);
            let Some(mut record) = get::<BlobRecord>(&mut txn, row).await? else {
                return Ok(());
            };
            record.stored = Some(stored);
            txn.put(row.clone(), encode(&record))
        });
        Ok(CompressStep { bytes: len, saved })
    }
}
