//! Being written.
use super::{JobContext, JobError};
pub(super) async fn run(context: &JobContext, bucket: &lithos_storage::BucketName, key: &lithos_storage::ObjectKey, version: lithos_storage::LayoutId, target: &str) -> Result<String, JobError> { todo!() }
