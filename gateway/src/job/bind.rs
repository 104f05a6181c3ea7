//! Replicates what a bucket held before it was bound to a zone.

use lithos_storage::{BucketName, ListObjects, ListingEntry, ObjectKey};

use super::{JobContext, JobError};
use crate::{image::wishes, zone::ZoneName};

/// Objects that are looked at in one listing.
const PAGE: usize = 500;

/// Queues a replication for each object of `bucket` that the zone has not got.
pub(super) async fn run(context: &JobContext, bucket: &BucketName, zone: &ZoneName) -> Result<String, JobError> {
    let store = &context.app.store;
    let mut list = ListObjects {
        limit: PAGE,
        ..ListObjects::default()
    };
    let mut queued = 0_u64;
    context.stage("listing objects", None);
    loop {
        let page = store.list_objects(bucket, &list).await?;
        for entry in &page.entries {
            let ListingEntry::Key(key, record) = entry else {
                continue;
            };
            let key: ObjectKey = key.parse()?;
            let update = store.update_object(bucket, &key, Some(record.layout_id), |bucket_record, record| {
                Ok(wishes::replicate_to(
                    &context.app,
                    bucket.as_str(),
                    key.as_str(),
                    bucket_record,
                    record,
                    zone,
                ))
            });
            match update.await {
                Ok(_) => queued += 1,
                // It was replaced or deleted meanwhile; a newer version knows the binding itself.
                Err(e)
                    if matches!(
                        e.kind(),
                        lithos_storage::ErrorKind::NoSuchKey | lithos_storage::ErrorKind::PreconditionFailed
                    ) => {}
                Err(e) => return Err(e.into()),
            }
        }
        match page.entries.last() {
            Some(last) if page.more => last.name().clone_into(&mut list.after),
            _ => return Ok(format!("queued {queued} objects for replication to {zone}")),
        }
    }
}
