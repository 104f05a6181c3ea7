//! Buckets, objects, uploads and parts: that their layouts refer to blobs that are there, and that stay.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use super::{Check, FindingKind as Kind};
use crate::{
    blob::BlobId,
    error::Result,
    layout::{Extent, Layout, LayoutCursor},
    multipart::parse_number,
    rows::Pages,
    schema::{
        BlobRecord, BucketId, BucketName, BucketRecord, Holder, Keys, LayoutId, LayoutRecord, LayoutState, ObjectKey,
        ObjectRecord, PartRecord, UploadRecord, upload_key_parts,
    },
};

/// Blobs of one layout that are remembered before they are looked up: 4 MiB. A layout of more looks some up again.
const REACH_MAX: usize = 64 << 10;
/// Layouts that are followed from one that borrows to the owner of a blob: a chain of that many would be a circle.
const LINEAGE_STEPS_MAX: usize = 4096;

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    buckets(check).await?;
    objects(check).await?;
    uploads(check).await?;
    parts(check).await
}

async fn buckets(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("buckets", b'B');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let name = std::str::from_utf8(key.get(1..).unwrap_or_default());
            let name = name.map_err(|_| crate::Error::corrupt("the name of a bucket is not text"));
            let name = name.and_then(str::parse::<BucketName>);
            let (Some(name), Some(record)) = (check.take(&key, name), check.read::<BucketRecord>(&key, &value)) else {
                continue;
            };
            check.buckets.insert(record.id, name.to_string());
            check.report.counts.buckets += 1;
        }
    }
    Ok(())
}

async fn objects(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("objects", b'O');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let named = Keys::parse_first_id(&key).and_then(|(bucket, _)| {
                let name: ObjectKey = Keys::parse_object(&key)?.parse()?;
                Ok((BucketId(bucket), name))
            });
            let (Some((bucket, name)), Some(record)) =
                (check.take(&key, named), check.read::<ObjectRecord>(&key, &value))
            else {
                continue;
            };
            let subject = check.object_name(bucket, name.as_str());
            require_bucket(check, bucket, &subject);
            object(check, &subject, Holder::version(bucket, &name, record.version), &record).await?;
        }
    }
    Ok(())
}

/// A version of an object.
pub(super) async fn object(check: &mut Check<'_>, subject: &str, holder: Holder, record: &ObjectRecord) -> Result<()> {
    check.report.counts.objects += 1;
    let bytes = &mut check.report.counts.object_bytes;
    *bytes = bytes.saturating_add(record.size());
    let refers = references(check, subject, record.layout_id, &record.layout).await?;
    if refers {
        held(check, subject, record.layout_id, &holder).await?;
    }
    Ok(())
}

async fn uploads(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("uploads", b'U');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let named = Keys::parse_first_id(&key).and_then(|(bucket, _)| {
                let (name, upload) = upload_key_parts(&key)?;
                Ok((BucketId(bucket), name.parse::<ObjectKey>()?, upload))
            });
            let (Some((bucket, name, upload)), Some(_)) =
                (check.take(&key, named), check.read::<UploadRecord>(&key, &value))
            else {
                continue;
            };
            check.report.counts.uploads += 1;
            let subject = format!("{} (upload {upload})", check.object_name(bucket, name.as_str()));
            require_bucket(check, bucket, &subject);
            held(check, &subject, upload, &Holder::upload(bucket, &name)).await?;
        }
    }
    Ok(())
}

pub(super) fn require_bucket(check: &mut Check<'_>, bucket: BucketId, subject: &str) {
    if !check.buckets.contains_key(&bucket) {
        check.add(Kind::NoBucket, subject, format!("no bucket has the id {bucket}"));
    }
}

/// Checks that the layout is in use, by that holder.
async fn held(check: &mut Check<'_>, subject: &str, id: LayoutId, holder: &Holder) -> Result<()> {
    let record: Option<LayoutRecord> = check.get(&Keys::layout(id)).await?;
    match record {
        None => check.add(Kind::NotHeld, subject, format!("its layout {id} has no row")),
        Some(record) if record.state != LayoutState::Held => {
            check.add(Kind::NotHeld, subject, format!("its layout {id} is {:?}", record.state));
        }
        Some(record) if record.holder.as_ref() != Some(holder) => {
            let named = record.holder.map_or_else(
                || "nothing".to_owned(),
                |holder| check.object_name(holder.bucket, &holder.key),
            );
            check.add(Kind::WrongHolder, subject, format!("its layout {id} names {named}"));
        }
        Some(_) => {}
    }
    Ok(())
}

/// What the parts being looked at belong to.
enum Whole {
    /// An upload in progress: its parts are needed.
    Open(String),
    /// An upload that ended: the sweep clears them.
    Ended,
    /// None.
    Unknown,
}

async fn parts(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("parts", b'P');
    let mut whole: Option<(LayoutId, Whole)> = None;
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let named = Keys::parse_first_id(&key).and_then(|(id, _)| Ok((LayoutId(id), parse_number(&key)?)));
            let (Some((upload, number)), Some(part)) =
                (check.take(&key, named), check.read::<PartRecord>(&key, &value))
            else {
                continue;
            };
            check.report.counts.parts += 1;
            if whole.as_ref().is_none_or(|(id, _)| *id != upload) {
                whole = Some((upload, whole_of(check, upload).await?));
            }
            match &whole {
                Some((_, Whole::Open(subject))) => {
                    let subject = format!("{subject} part {}", number.get());
                    references(check, &subject, upload, &part.layout).await?;
                }
                Some((_, Whole::Unknown)) => {
                    let subject = format!("upload {upload} part {}", number.get());
                    check.add(Kind::ForgottenPart, subject, "the upload has no row");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

async fn whole_of(check: &Check<'_>, upload: LayoutId) -> Result<Whole> {
    if check.has(&Keys::ended_upload(upload)).await? {
        return Ok(Whole::Ended);
    }
    let record: Option<LayoutRecord> = check.get(&Keys::layout(upload)).await?;
    let Some(holder) = record.and_then(|record| record.holder) else {
        return Ok(Whole::Unknown);
    };
    let open = check.has(&Keys::upload(holder.bucket, &holder.key, upload)).await?;
    Ok(if open {
        let name = check.object_name(holder.bucket, &holder.key);
        Whole::Open(format!("{name} (upload {upload})"))
    } else {
        Whole::Unknown
    })
}

/// Checks every reference of the layout `id`. Whether there is any.
async fn references(check: &mut Check<'_>, subject: &str, id: LayoutId, layout: &Layout) -> Result<bool> {
    let mut reach = Reach {
        subject,
        layout: id,
        ends: BTreeMap::new(),
        kept: HashSet::from([id]),
    };
    let mut refers = false;
    if let Layout::Paged(paged) = layout {
        refers = true;
        reach.ends.extend(paged.blobs.iter().map(|blob| (*blob, 0)));
    }
    let mut cursor = LayoutCursor::new(Arc::clone(check.blobs), Arc::new(layout.clone()));
    loop {
        match cursor.next(u64::MAX).await {
            Ok(Some(piece)) => {
                if let Extent::Blob { id: blob, offset } = piece.extent {
                    refers = true;
                    let end = reach.ends.entry(blob).or_default();
                    *end = (*end).max(offset.saturating_add(piece.len));
                    if reach.ends.len() >= REACH_MAX {
                        reach.look_up(check).await?;
                    }
                }
            }
            Ok(None) => break,
            Err(error) => {
                check.add(Kind::DamagedLayout, subject, error.to_string());
                break;
            }
        }
    }
    reach.look_up(check).await?;
    Ok(refers)
}

/// The blobs that a layout refers to, and how far.
struct Reach<'a> {
    subject: &'a str,
    layout: LayoutId,
    ends: BTreeMap<BlobId, u64>,
    /// Owners that are known to be kept for it.
    kept: HashSet<LayoutId>,
}

impl Reach<'_> {
    async fn look_up(&mut self, check: &mut Check<'_>) -> Result<()> {
        for (blob, end) in std::mem::take(&mut self.ends) {
            match check.get::<BlobRecord>(&Keys::blob(blob)).await? {
                None => check.add(Kind::UnknownBlob, self.subject, format!("blob {blob} has no row")),
                Some(record) if end > record.len => check.add(
                    Kind::BeyondBlob,
                    self.subject,
                    format!("it reaches byte {end} of blob {blob}, which has {}", record.len),
                ),
                Some(_) => {}
            }
            if !self.kept.contains(&blob.owner) {
                if !keeps(check, self.layout, blob.owner).await? {
                    let detail = format!("layout {} does not borrow from {}", self.layout, blob.owner);
                    check.add(Kind::Unprotected, self.subject, detail);
                }
                self.kept.insert(blob.owner);
            }
        }
        Ok(())
    }
}

/// Whether `layout` borrows from `owner`, or from a layout that does: one with many owners is borrowed from itself.
async fn keeps(check: &Check<'_>, layout: LayoutId, owner: LayoutId) -> Result<bool> {
    let mut seen = BTreeSet::from([layout]);
    let mut next = vec![layout];
    while let Some(borrower) = next.pop() {
        if check.has(&Keys::borrows(borrower, owner)).await? {
            return Ok(true);
        }
        let mut pages = Pages::of(Keys::borrows_of(borrower));
        while let Some(page) = pages.next(&*check.snapshot).await? {
            for (key, _) in page {
                let lender = LayoutId(Keys::parse_last_id(&key)?);
                if seen.len() < LINEAGE_STEPS_MAX && seen.insert(lender) {
                    next.push(lender);
                }
            }
        }
    }
    Ok(false)
}
