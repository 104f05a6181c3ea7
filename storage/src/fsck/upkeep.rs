//! What is counted, and what is to be compressed, compacted or mended.

use std::collections::BTreeMap;

use super::{Check, FindingKind as Kind};
use crate::{
    compress::CompressRecord,
    damage::DamageRecord,
    error::Result,
    kv::parse_counter,
    rows::Pages,
    schema::{
        BucketId, BucketRecord, DeadLayout, Keys, Measure, ObjectRecord, PartRecord, QuotaRecord, VersionRow,
        upload_key_parts,
    },
};

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("damage", b'H');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let (blob, record) = (Keys::parse_blob(&key), check.read::<DamageRecord>(&key, &value));
            if let (Some(blob), Some(record)) = (check.take(&key, blob), record) {
                check.add(Kind::KnownDamage, format!("blob {blob}"), record.reason);
            }
        }
    }
    let mut pages = check.table("compressions", b'K');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.read::<CompressRecord>(&key, &value);
        }
    }
    let mut pages = check.table("compactions", b'Y');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.read::<DeadLayout>(&key, &value);
        }
    }
    let mut pages = check.table("quotas", b'Z');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.read::<QuotaRecord>(&key, &value);
        }
    }
    usage(check).await
}

/// Counts what buckets and users hold, and compares it with the counters.
async fn usage(check: &mut Check<'_>) -> Result<()> {
    let mut counted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut buckets = check.table("usage", b'B');
    while let Some(page) = check.page(&mut buckets).await? {
        for (_, value) in page {
            // A damaged one was found before.
            let Ok(bucket) = crate::schema::decode::<BucketRecord>(&value) else {
                continue;
            };
            let (bytes, objects) = count(check, bucket.id, &mut counted).await?;
            for (measure, amount) in [(Measure::Bytes, bytes), (Measure::Objects, objects)] {
                add(&mut counted, &Keys::bucket_usage(bucket.id, measure), amount);
                add(&mut counted, &Keys::user_usage(&bucket.owner, measure), amount);
            }
        }
    }
    counted.retain(|_, amount| *amount > 0);
    let mut counters = check.table("usage", b'W');
    while let Some(page) = check.page(&mut counters).await? {
        for (key, value) in page {
            let Some(amount) = check.take(&key, parse_counter(&key, Some(&value))) else {
                continue;
            };
            let should = counted.remove(&key[..]).unwrap_or(0);
            compare(check, &key, amount, should);
        }
    }
    for (key, should) in counted {
        compare(check, &key, 0, should);
    }
    Ok(())
}

fn compare(check: &mut Check<'_>, key: &[u8], counter: u64, should: u64) {
    if counter != should {
        let subject = format!("counter {}", key.escape_ascii());
        check.add(
            Kind::WrongUsage,
            subject,
            format!("it says {counter}, and {should} are there"),
        );
    }
}

fn add(counted: &mut BTreeMap<Vec<u8>, u64>, key: &[u8], amount: u64) {
    let sum = counted.entry(key.to_vec()).or_default();
    *sum = sum.saturating_add(amount);
}

/// Bytes and objects of a bucket, as `quota` counts them.
async fn count(check: &mut Check<'_>, bucket: BucketId, counted: &mut BTreeMap<Vec<u8>, u64>) -> Result<(u64, u64)> {
    let (mut bytes, mut objects) = (0_u64, 0_u64);
    let mut rows = Pages::of(Keys::objects(bucket, b""));
    while let Some(page) = check.page(&mut rows).await? {
        for (_, value) in page {
            if let Ok(object) = crate::schema::decode::<ObjectRecord>(&value) {
                bytes = bytes.saturating_add(object.size());
                objects = objects.saturating_add(1);
            }
        }
    }
    let mut rows = Pages::of(Keys::versions(bucket, ""));
    while let Some(page) = check.page(&mut rows).await? {
        for (_, value) in page {
            let version = crate::schema::decode::<VersionRow>(&value);
            if let Some(object) = version.ok().and_then(VersionRow::object) {
                bytes = bytes.saturating_add(object.size());
                objects = objects.saturating_add(1);
            }
        }
    }
    let mut rows = Pages::of(Keys::uploads(bucket, b""));
    while let Some(page) = check.page(&mut rows).await? {
        for (key, _) in page {
            let Ok((_, upload)) = upload_key_parts(&key) else {
                continue;
            };
            let mut parts = Pages::of(Keys::parts(upload));
            while let Some(page) = check.page(&mut parts).await? {
                for (_, value) in page {
                    if let Ok(part) = crate::schema::decode::<PartRecord>(&value) {
                        bytes = bytes.saturating_add(part.layout.size());
                        add(counted, &Keys::upload_usage(upload), part.layout.size());
                    }
                }
            }
        }
    }
    Ok((bytes, objects))
}
