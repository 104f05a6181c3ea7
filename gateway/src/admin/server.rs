//! This server, and the peers it knows.

use std::path::Path;

use axum::{
    Json,
    extract::{Path as UrlPath, State},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{error::ApiError, request::JsonBody};
use crate::{
    app::{App, SharedApp},
    zone::{
        ZoneName,
        registry::{self, NewPeer, PeerView},
    },
};

/// This server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerView {
    pub(crate) version: String,
    pub(crate) zones: Vec<ZoneName>,
    #[serde(flatten)]
    pub(crate) endpoints: Endpoints,
}

/// Where a server listens, as `endpoints.json` in its data folder says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    pub(crate) transfer: String,
    pub(crate) management: String,
}

impl Endpoints {
    /// Reads `endpoints.json` in `data`, which is there while a server runs; or, if it was killed, longer.
    pub(crate) fn read(data: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(data.join("endpoints.json"))?)?)
    }
}

/// Where this server listens: the ports that were really bound, once they are.
pub(super) fn endpoints(app: &App) -> Endpoints {
    app.endpoints.get().cloned().unwrap_or_else(|| Endpoints {
        transfer: format!("http://{}", app.config.listen),
        management: format!("http://{}", app.config.admin_listen),
    })
}

pub(super) async fn show(State(app): State<SharedApp>) -> Json<ServerView> {
    let endpoints = endpoints(&app);
    Json(ServerView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        zones: app.config.zones.clone(),
        endpoints,
    })
}

pub(super) async fn list(State(app): State<SharedApp>) -> Result<Json<Vec<PeerView>>, ApiError> {
    Ok(Json(registry::list(&app).await?))
}

pub(super) async fn add(
    State(app): State<SharedApp>,
    JsonBody(new): JsonBody<NewPeer>,
) -> Result<(StatusCode, Json<PeerView>), ApiError> {
    Ok((StatusCode::CREATED, Json(registry::add(&app, new).await?)))
}

pub(super) async fn remove(
    State(app): State<SharedApp>,
    UrlPath(name): UrlPath<String>,
) -> Result<StatusCode, ApiError> {
    registry::remove(&app, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
