//! Quotas of buckets and users, and what they hold.

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use lithos_storage::{BucketName, QuotaRecord, Usage};
use serde::{Deserialize, Serialize};

use super::{error::ApiError, request::JsonBody};
use crate::{
    app::{App, SharedApp},
    auth::user,
};

/// The most that a bucket or a user may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuotaView {
    /// Bytes; none for no bound.
    #[serde(default)]
    pub(crate) bytes: Option<u64>,
    /// Objects; none for no bound.
    #[serde(default)]
    pub(crate) objects: Option<u64>,
}

/// What a bucket or a user holds, and the most that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuotaStateView {
    pub(crate) quota: QuotaView,
    pub(crate) usage: UsageView,
}

/// What a bucket or a user holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsageView {
    pub(crate) bytes: u64,
    pub(crate) objects: u64,
}

impl QuotaStateView {
    fn of(quota: Option<QuotaRecord>, usage: Usage) -> Json<Self> {
        let QuotaRecord { bytes, objects } = quota.unwrap_or_default();
        Json(Self {
            quota: QuotaView { bytes, objects },
            usage: UsageView {
                bytes: usage.bytes,
                objects: usage.objects,
            },
        })
    }
}

impl From<QuotaView> for QuotaRecord {
    fn from(QuotaView { bytes, objects }: QuotaView) -> Self {
        Self { bytes, objects }
    }
}

pub(super) async fn show_bucket(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
) -> Result<Json<QuotaStateView>, ApiError> {
    let name: BucketName = name.parse()?;
    let quota = app.store.bucket_quota(&name).await?;
    Ok(QuotaStateView::of(quota, app.store.usage(&name).await?))
}

pub(super) async fn set_bucket(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
    JsonBody(quota): JsonBody<QuotaView>,
) -> Result<Json<QuotaStateView>, ApiError> {
    let name: BucketName = name.parse()?;
    let quota = Some(quota.into());
    app.store.set_bucket_quota(&name, quota).await?;
    Ok(QuotaStateView::of(quota, app.store.usage(&name).await?))
}

pub(super) async fn clear_bucket(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.store.set_bucket_quota(&name.parse()?, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn show_user(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
) -> Result<Json<QuotaStateView>, ApiError> {
    let id = owner(&app, &name).await?;
    let quota = app.store.user_quota(&id).await?;
    Ok(QuotaStateView::of(quota, app.store.user_usage(&id).await?))
}

pub(super) async fn set_user(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
    JsonBody(quota): JsonBody<QuotaView>,
) -> Result<Json<QuotaStateView>, ApiError> {
    let id = owner(&app, &name).await?;
    let quota = Some(quota.into());
    app.store.set_user_quota(&id, quota).await?;
    Ok(QuotaStateView::of(quota, app.store.user_usage(&id).await?))
}

pub(super) async fn clear_user(State(app): State<SharedApp>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let id = owner(&app, &name).await?;
    app.store.set_user_quota(&id, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whom buckets name as their owner when they belong to the user `name`.
async fn owner(app: &App, name: &str) -> Result<String, ApiError> {
    match user::id(app, name).await? {
        Some(id) => Ok(id),
        // Root keys of earlier own what they made.
        None if app.store.user_quota(name).await?.is_some() => Ok(name.to_owned()),
        None if app.store.user_usage(name).await? != Usage::default() => Ok(name.to_owned()),
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("there is no user {name:?}"),
        )),
    }
}
