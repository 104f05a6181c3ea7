//! Lifecycle rules: that they are of buckets, which know of them.

use super::{Check, FindingKind as Kind};
use crate::{
    error::Result,
    lifecycle::{LifecycleRecord, LifecycleState},
    schema::{BucketId, Keys},
};

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("lifecycle rules", b'T');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let Some((bucket, _)) = check.take(&key, Keys::parse_first_id(&key)) else {
                continue;
            };
            let bucket = BucketId(bucket);
            if key == Keys::lifecycle(bucket) {
                check.read::<LifecycleRecord>(&key, &value);
            } else if key == Keys::lifecycle_state(bucket) {
                check.read::<LifecycleState>(&key, &value);
            } else {
                check.add(
                    Kind::DamagedRow,
                    super::row_name(&key),
                    "it is neither rules nor their state",
                );
            }
            if !check.buckets.contains_key(&bucket) {
                check.add(Kind::NoBucket, super::row_name(&key), "its bucket does not exist");
            }
        }
    }
    Ok(())
}
