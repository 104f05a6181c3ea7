//! Since format 2 a layout names the object or upload that has it.
//!
//! Goes through objects and uploads, each of which knows its layout. A layout that is released has lost its object
//! already and stays without.

use bytes::Bytes;

use super::Work;
use crate::{
    error::Result,
    kv::{Durability, transact},
    rows::Pages,
    schema::{BucketId, Holder, Keys, LayoutId, LayoutRecord, ObjectRecord, decode, encode, upload_key_parts},
    staging::get,
};

/// Layouts that one transaction reads and writes: a quarter of a megabyte of the longest keys.
const BATCH: usize = 256;

/// Takes layout and holder from a row.
type Read = fn(&[u8], &[u8]) -> Result<(LayoutId, Holder)>;

pub(super) async fn run(work: &mut Work<'_>) -> Result<()> {
    let snapshot = work.kv.snapshot().await?;
    for (table, read) in [(b'O', object as Read), (b'U', upload)] {
        let mut pages = Pages::of(Keys::table(table));
        while let Some(page) = pages.next(&*snapshot).await? {
            for batch in page.chunks(BATCH) {
                let changed = name_holders(work, batch, read).await?;
                work.step(batch.len() as u64, changed);
            }
        }
    }
    Ok(())
}

/// The rows are synced with the format's number, which is written last.
async fn name_holders(work: &Work<'_>, rows: &[(Bytes, Bytes)], read: Read) -> Result<u64> {
    let mut held = Vec::with_capacity(rows.len());
    for (key, value) in rows {
        held.push(read(key, value)?);
    }
    let changed = transact!(work.kv, |txn| {
        txn.set_durability(Durability::Buffered);
        let mut changed = 0;
        for (layout, holder) in &held {
            let key = Keys::layout(*layout);
            let record: Option<LayoutRecord> = get(&mut txn, &key).await?;
            let Some(mut record) = record.filter(|record| record.holder.as_ref() != Some(holder)) else {
                continue;
            };
            changed += 1;
            if !work.options.dry_run {
                record.holder = Some(holder.clone());
                txn.put(key, encode(&record))?;
            }
        }
        Ok(changed)
    });
    Ok(changed)
}

fn object(key: &[u8], value: &[u8]) -> Result<(LayoutId, Holder)> {
    let (bucket, _) = Keys::parse_first_id(key)?;
    let record: ObjectRecord = decode(value)?;
    let holder = Holder {
        bucket: BucketId(bucket),
        key: Keys::parse_object(key)?.to_owned(),
        sequence: record.version.sequence,
    };
    Ok((record.layout_id, holder))
}

fn upload(key: &[u8], _: &[u8]) -> Result<(LayoutId, Holder)> {
    let (bucket, _) = Keys::parse_first_id(key)?;
    let (name, upload) = upload_key_parts(key)?;
    let holder = Holder {
        bucket: BucketId(bucket),
        key: name.to_owned(),
        sequence: 0,
    };
    Ok((upload, holder))
}
