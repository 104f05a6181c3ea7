//! Being written.
use super::{JobContext, JobError};
pub(super) async fn run(context: &JobContext, task: super::ImportTask) -> Result<String, JobError> {
    todo!()
}
