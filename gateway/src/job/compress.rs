//! Has what a bucket held before it was told to compress compressed as well.

use lithos_storage::BucketName;

use super::{JobContext, JobError};

/// Objects that one transaction looks at.
const PAGE: usize = 500;

/// Queues the blobs of every object of `bucket`; they are compressed in the background.
pub(super) async fn run(context: &JobContext, bucket: &BucketName) -> Result<String, JobError> {
    let mut after = None;
    context.stage("looking at objects", None);
    loop {
        let last = context
            .app
            .store
            .queue_bucket_compression(bucket, after.as_ref(), PAGE)
            .await?;
        match last {
            Some(last) => after = Some(last),
            None => return Ok(format!("the objects of {bucket} are being compressed")),
        }
    }
}
