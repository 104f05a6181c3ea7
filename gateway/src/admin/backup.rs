//! Backups: what can be known to be wrong is refused at once, the rest is a job.

use std::path::PathBuf;

use axum::{Json, extract::State};
use http::StatusCode;
use lithos_storage::local::check_target;
use serde::{Deserialize, Serialize};

use super::{error::ApiError, import::Accepted, request::JsonBody};
use crate::{app::SharedApp, job::Task};

/// A backup that is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBackup {
    pub(crate) to: PathBuf,
}

pub(super) async fn start(
    State(app): State<SharedApp>,
    JsonBody(new): JsonBody<NewBackup>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let (data, to) = (app.config.data.clone(), new.to.clone());
    tokio::task::spawn_blocking(move || check_target(&data, &to))
        .await
        .map_err(lithos_storage::Error::from)??;
    let job = app.store.queue_job(Task::Backup { to: new.to }.job()).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job: job.to_string() })))
}
