//! The receiving side of replication: what another server may ask of this one.
//!
//! Requests come here with their signature verified; a body whose hash was signed is verified as it is read, and so is
//! read to its end before anything is made of it. Blobs stream to disk in bounded memory. A sender that falls silent is
//! cut off, because a blob has one sender at a time.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{post, put},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use lithos_storage::{BodyError, BucketName, Error, ErrorKind, ObjectKey, Replica, ReplicaOutcome, blob::BlobId};
use serde::de::DeserializeOwned;

use super::{
    REPLICA,
    wire::{
        BAD_REPLICA, BLOB_PENDING, BLOBS_MISSING, JSON_LEN_MAX, Missing, OFFER_BLOBS_MAX, ObjectOffer, Offer, Outcome,
        PREFIX, Taken, WRONG_ZONE,
    },
};
use crate::{
    app::{App, SharedApp},
    auth::user,
    error::s3_error,
};

/// How long a sender may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// The routes, by their whole paths. Whoever serves them has verified who asks.
pub(crate) fn routes(app: SharedApp) -> Router {
    Router::new()
        .route(&format!("{PREFIX}/blobs/missing"), post(missing))
        .route(&format!("{PREFIX}/blobs/{{id}}"), put(receive_blob))
        .route(&format!("{PREFIX}/objects"), post(receive_object))
        .with_state(app)
}

/// Which of the blobs that are offered are not here.
async fn missing(State(app): State<SharedApp>, body: Body) -> Result<Json<Missing>, Refusal> {
    let Offer { blobs } = json(body).await?;
    if blobs.len() > OFFER_BLOBS_MAX {
        return Err(Refusal::invalid(format!(
            "an offer has at most {OFFER_BLOBS_MAX} blobs, not {}",
            blobs.len()
        )));
    }
    let ids = blobs.iter().map(|id| id.parse()).collect::<Result<Vec<BlobId>, _>>()?;
    let found = app.store.missing_blobs(&ids).await?;
    let names = |ids: Vec<BlobId>| ids.iter().map(ToString::to_string).collect();
    Ok(Json(Missing {
        missing: names(found.absent),
        pending: names(found.pending),
    }))
}

/// Takes in one blob.
async fn receive_blob(
    State(app): State<SharedApp>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let id: BlobId = id.parse()?;
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let Some(length) = length else {
        return Err(Refusal::new(
            StatusCode::LENGTH_REQUIRED,
            "MissingContentLength",
            "a blob needs a Content-Length",
        ));
    };
    match app.store.receive_blob(id, length, watched(body)).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) if error.kind() == ErrorKind::Contended => {
            Err(Refusal::new(StatusCode::CONFLICT, BLOB_PENDING, error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Commits an object whose blobs are here.
async fn receive_object(State(app): State<SharedApp>, body: Body) -> Result<Json<Taken>, Refusal> {
    let offer: ObjectOffer = json(body).await?;
    if !app.serves(&offer.zone) {
        let message = format!(
            "this server does not serve zone {}: correct what `lithos server add` said",
            offer.zone
        );
        return Err(Refusal::new(StatusCode::CONFLICT, WRONG_ZONE, message));
    }
    let bucket: BucketName = offer.bucket.parse()?;
    let key: ObjectKey = offer.key.parse()?;
    let mut replica = Replica::decode(&offer.record)?;
    replica.record.replication = [(offer.zone.to_string(), REPLICA.to_owned())].into();
    make_bucket(&app, &bucket, &offer).await?;
    let outcome = match app.store.commit_replica(&bucket, &key, replica).await {
        Ok(ReplicaOutcome::Committed(_)) => Outcome::Committed,
        Ok(ReplicaOutcome::Superseded) => Outcome::Superseded,
        Ok(ReplicaOutcome::Incomplete(why)) => return Err(Refusal::new(StatusCode::CONFLICT, BLOBS_MISSING, why)),
        // Not this server's disk, but what the other one says of its blobs.
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(%bucket, %key, error = &error as &dyn std::error::Error, "a replica was refused");
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                BAD_REPLICA,
                error.to_string(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Json(Taken { outcome }))
}

/// Makes the bucket as it is where the object comes from, unless there is one. It is root's, or the same user's if that is
/// known here. Into a bucket of another user nothing is taken: elsewhere, its name may be anybody's.
async fn make_bucket(app: &App, bucket: &BucketName, offer: &ObjectOffer) -> Result<(), Error> {
    match app.store.bucket(bucket).await {
        Err(error) if error.kind() == ErrorKind::NoSuchBucket => {}
        found => {
            let owner = found?.owner;
            if owner != offer.bucket_owner && user::is_user(app, &owner).await? {
                let message = format!("bucket {bucket} belongs to a user of this server");
                return Err(Error::new(ErrorKind::AccessDenied, message));
            }
            return Ok(());
        }
    }
    let owner = if user::is_user(app, &offer.bucket_owner).await? {
        offer.bucket_owner.clone()
    } else {
        app.keyring.root().access_key.clone()
    };
    let made = app
        .store
        .create_bucket(bucket, offer.region.clone(), offer.bucket_tags.clone(), owner)
        .await;
    match made {
        Err(error) if error.kind() != ErrorKind::BucketAlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A body as the store takes it, which ends with an error when nothing comes for a while.
fn watched(body: Body) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    futures::stream::unfold(Some(body.into_data_stream()), |body| async {
        let mut body = body?;
        match tokio::time::timeout(IDLE_TIMEOUT, body.next()).await {
            Err(_) => Some((
                Err(format!("nothing came for {} s", IDLE_TIMEOUT.as_secs()).into()),
                None,
            )),
            Ok(None) => None,
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(body))),
            // The error of the one who verifies the body is inside.
            Ok(Some(Err(error))) => Some((Err(error.into_inner()), None)),
        }
    })
}

/// A body of JSON, in memory.
async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let mut body = std::pin::pin!(watched(body));
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| Error::new(ErrorKind::BodyFailed, "the body broke off").caused_by(e))?;
        if bytes.len().saturating_add(chunk.len()) > JSON_LEN_MAX {
            let message = format!("the body is over {JSON_LEN_MAX} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "EntityTooLarge", message));
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|e| Refusal::invalid(format!("the body is not what is expected here: {e}")))
}

/// Why a request is not carried out.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: String,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let error = s3_error(error);
        let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.code().as_str(), error.message().unwrap_or_default())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}
