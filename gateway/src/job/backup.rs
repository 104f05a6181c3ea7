//! Copies the whole store, as of a moment, to a new folder of this machine.
//!
//! A backup that was cut off by the end of the server does not go on: what is in the folder is of a moment that has
//! passed. So it fails, and with it the backup job that every backup has in it when a restored server finds it.

use std::path::Path;

use lithos_storage::local::Progress;

use super::{JobContext, JobError, chain};

/// Makes the backup `to`.
pub(super) async fn run(context: &JobContext, to: &Path) -> Result<String, JobError> {
    if context.attempt > 1 {
        let why = "the server ended meanwhile, and a backup does not go on: ask for a new one";
        return Err(JobError::Failed(why.to_owned()));
    }
    let mut stage = "";
    let mut tell = |progress: Progress| {
        if stage != progress.stage {
            stage = progress.stage;
            context.stage(stage, progress.total);
        }
        context.done(progress.done);
    };
    let app = &context.app;
    let made = app.local.backup(to, app.store.now(), &mut tell).await;
    // Whatever failed, the moment has passed.
    let manifest = made.map_err(|error| JobError::Failed(chain(&error)))?;
    Ok(manifest.to_string())
}
