//! Scrubs, and what is known to be damaged.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{error::ApiError, import::Accepted, job::rfc3339, request::JsonBody};
use crate::{app::SharedApp, maintain};

/// A scrub that is asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewScrub {
    /// Whether to read as fast as it goes, rather than at the pace of background work.
    #[serde(default)]
    pub(crate) hurry: bool,
}

/// Where the latest scrub stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ScrubView {
    pub(crate) begun: String,
    /// Missing while it is under way, or was cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<String>,
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) damaged: u64,
}

/// A damaged blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DamageView {
    pub(crate) blob: String,
    /// Where in the blob, in bytes; empty if it is missing or unreadable as a whole.
    pub(crate) offsets: Vec<u64>,
    pub(crate) reason: String,
    pub(crate) found: String,
    /// Objects over it, as `bucket/key`.
    pub(crate) objects: Vec<String>,
}

pub(super) async fn start_scrub(
    State(app): State<SharedApp>,
    JsonBody(new): JsonBody<NewScrub>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let job = maintain::start_scrub(&app, new.hurry).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { job: job.to_string() })))
}

pub(super) async fn latest_scrub(State(app): State<SharedApp>) -> Result<Json<ScrubView>, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "NotFound", "there was no scrub yet".to_owned());
    let state = app.store.scrub_state().await?.ok_or_else(none)?;
    Ok(Json(ScrubView {
        begun: rfc3339(state.begun),
        ended: state.ended.map(rfc3339),
        blobs: state.blobs,
        bytes: state.bytes,
        damaged: state.damaged,
    }))
}

pub(super) async fn damage(State(app): State<SharedApp>) -> Result<Json<Vec<DamageView>>, ApiError> {
    let mut damaged = Vec::new();
    for (blob, record) in app.store.damage().await? {
        damaged.push(DamageView {
            blob: blob.to_string(),
            offsets: record.offsets.into_iter().collect(),
            reason: record.reason,
            found: rfc3339(record.found),
            objects: app.store.objects_over(blob).await?.into_iter().collect(),
        });
    }
    Ok(Json(damaged))
}
