//! What requests carry, parsed strictly: an unknown or misspelt field is an error, not a default.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
};
use http::{StatusCode, request::Parts};
use lithos_storage::JobId;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::job::chain;

/// Longest body of a request, in bytes: all of them are small documents.
pub(crate) const BODY_LEN_MAX: usize = 64 << 10;

/// A JSON body, whatever its `Content-Type`.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|error| match error.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "EntityTooLarge",
                    format!("the body is over {BODY_LEN_MAX} bytes"),
                ),
                _ => ApiError::invalid(format!("the body cannot be read: {}", chain(&error))),
            })?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| ApiError::invalid(format!("the body is wrong: {error}")))
    }
}

/// The parameters of the query.
#[derive(Debug)]
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        query
            .map(|Query(parameters)| Self(parameters))
            .map_err(|error| ApiError::invalid(chain(&error)))
    }
}

/// The job that the path names.
#[derive(Debug)]
pub(crate) struct Id(pub(crate) JobId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| ApiError::invalid(chain(&error)))?;
        parse_id(&text).map(Self)
    }
}

/// The id of a job.
pub(crate) fn parse_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        ApiError::invalid(format!("{shown:?} is not the id of a job: 32 hexadecimal digits"))
    })
}
