//! Users and their access keys.

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use lithos_storage::UserRecord;
use s3s::auth::SecretKey;
use serde::{Deserialize, Serialize};

use super::{
    error::ApiError,
    job::rfc3339,
    request::{JsonBody, Parameters},
};
use crate::{
    app::SharedApp,
    auth::user::{self, KeyPair},
};

/// Most users in an answer.
const LIMIT_MAX: usize = 1000;

/// A user as the API shows it: without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) created: String,
    pub(crate) keys: Vec<KeyView>,
}

/// An access key, without its secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) access_key: String,
    pub(crate) created: String,
}

/// A page of users.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct UserPage {
    pub(crate) users: Vec<UserView>,
    /// What to give as `after` for the next page, if there is one.
    pub(crate) next: Option<String>,
}

/// A user to be created.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    pub(crate) name: String,
    /// The first access key; made at random if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access_key: Option<String>,
    /// The secret key that belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret_key: Option<String>,
}

/// An access key to be created; made at random if none is given.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret_key: Option<String>,
}

/// An access key that has just been created: this once with its secret.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct CreatedKey {
    pub(crate) user: String,
    pub(crate) id: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// Which page of a list is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    after: Option<String>,
    limit: Option<usize>,
}

impl From<UserRecord> for UserView {
    fn from(user: UserRecord) -> Self {
        Self {
            name: user.name,
            id: user.id,
            created: rfc3339(user.created),
            keys: user
                .keys
                .into_iter()
                .map(|key| KeyView {
                    access_key: key.access_key,
                    created: rfc3339(key.created),
                })
                .collect(),
        }
    }
}

pub(super) async fn list(
    State(app): State<SharedApp>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<UserPage>, ApiError> {
    let limit = parameters.limit.unwrap_or(LIMIT_MAX);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit is between 1 and {LIMIT_MAX}")));
    }
    // One more tells whether there is a next page.
    let mut users = app.store.list_users(parameters.after.as_deref(), limit + 1).await?;
    let more = users.len() > limit;
    users.truncate(limit);
    let next = users.last().filter(|_| more).map(|user| user.name.clone());
    let users = users.into_iter().map(Into::into).collect();
    Ok(Json(UserPage { users, next }))
}

pub(super) async fn show(State(app): State<SharedApp>, Path(name): Path<String>) -> Result<Json<UserView>, ApiError> {
    Ok(Json(app.store.user(&name).await?.into()))
}

pub(super) async fn create(
    State(app): State<SharedApp>,
    JsonBody(new): JsonBody<NewUser>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let keys = KeyPair::new(new.access_key, new.secret_key.map(SecretKey::from))?;
    let user = user::create(&app, &new.name, &keys).await?;
    Ok((StatusCode::CREATED, created(user, &keys)))
}

pub(super) async fn delete(State(app): State<SharedApp>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    user::delete(&app, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn create_key(
    State(app): State<SharedApp>,
    Path(name): Path<String>,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let keys = KeyPair::new(new.access_key, new.secret_key.map(SecretKey::from))?;
    user::add_key(&app, &name, &keys).await?;
    let user = app.store.user(&name).await?;
    Ok((StatusCode::CREATED, created(user, &keys)))
}

pub(super) async fn delete_key(
    State(app): State<SharedApp>,
    Path((name, access_key)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    user::delete_key(&app, &name, &access_key).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn created(user: UserRecord, keys: &KeyPair) -> Json<CreatedKey> {
    Json(CreatedKey {
        user: user.name,
        id: user.id,
        access_key: keys.access_key.clone(),
        secret_key: keys.secret_key.expose().to_owned(),
    })
}
