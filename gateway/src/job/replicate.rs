//! Being written.
use super::{JobContext, JobError};
pub(super) async fn run(
    context: &JobContext,
    bucket: &lithos_storage::BucketName,
    key: &lithos_storage::ObjectKey,
    zone: &crate::zone::ZoneName,
) -> Result<String, JobError> {
    todo!()
}
