//! The management address: the admin API, and whether the server lives.
//!
//! | path | what | signed |
//! | --- | --- | --- |
//! | `/healthz`, `/readyz` | whether the process lives, and whether it can serve | no |
//! | `/metrics` | what the server counts ([`metrics`]) | no |
//! | `/api/v1/…` | [`ROUTES`], described by `openapi.json` | yes, as S3 requests are |
//! | all else | where S3 and the API are | |
//!
//! Requests and answers are JSON ([`request`], [`error`]). Changes of jobs are streamed ([`event`]).

pub(crate) mod backup;
mod error;
mod event;
pub(crate) mod image;
pub(crate) mod import;
pub(crate) mod integrity;
pub(crate) mod job;
pub(crate) mod quota;
mod request;
pub(crate) mod server;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod user;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, get, on},
};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use s3s::{
    S3, S3Error, S3ErrorCode,
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
};
use tower::ServiceExt;

use self::error::{ApiError, render_errors};
use crate::{
    app::SharedApp,
    auth::route::{UserAuth, signed_routes},
    metrics,
    server::{HttpRequest, HttpResponse, RequestId, Service},
};

/// What the paths of the API begin with; a later version has another number after it.
pub(crate) const API: &str = "/api/";

/// A route of the API.
struct Route {
    method: Method,
    path: &'static str,
    handle: fn(MethodFilter) -> MethodRouter<SharedApp>,
}

/// All routes of the API: what is not here is neither served nor described.
static ROUTES: [Route; 30] = [
    Route {
        method: Method::GET,
        path: "/api/v1/jobs",
        handle: |method| on(method, job::list),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/jobs/events",
        handle: |method| on(method, event::all),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/jobs/{id}",
        handle: |method| on(method, job::show),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/jobs/{id}/events",
        handle: |method| on(method, event::one),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/jobs/{id}/cancel",
        handle: |method| on(method, job::cancel),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/jobs/{id}/retry",
        handle: |method| on(method, job::retry),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/inspections",
        handle: |method| on(method, image::show),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/conversions",
        handle: |method| on(method, image::convert),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/imports",
        handle: |method| on(method, import::start),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/backups",
        handle: |method| on(method, backup::start),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/scrubs",
        handle: |method| on(method, integrity::start_scrub),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/scrubs/latest",
        handle: |method| on(method, integrity::latest_scrub),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/damage",
        handle: |method| on(method, integrity::damage),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/server",
        handle: |method| on(method, server::show),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/servers",
        handle: |method| on(method, server::list),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/servers",
        handle: |method| on(method, server::add),
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/servers/{name}",
        handle: |method| on(method, server::remove),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/buckets/{name}/quota",
        handle: |method| on(method, quota::show_bucket),
    },
    Route {
        method: Method::PUT,
        path: "/api/v1/buckets/{name}/quota",
        handle: |method| on(method, quota::set_bucket),
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/buckets/{name}/quota",
        handle: |method| on(method, quota::clear_bucket),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/users",
        handle: |method| on(method, user::list),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/users",
        handle: |method| on(method, user::create),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/users/{name}",
        handle: |method| on(method, user::show),
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/users/{name}",
        handle: |method| on(method, user::delete),
    },
    Route {
        method: Method::POST,
        path: "/api/v1/users/{name}/keys",
        handle: |method| on(method, user::create_key),
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/users/{name}/keys/{access_key}",
        handle: |method| on(method, user::delete_key),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/users/{name}/quota",
        handle: |method| on(method, quota::show_user),
    },
    Route {
        method: Method::PUT,
        path: "/api/v1/users/{name}/quota",
        handle: |method| on(method, quota::set_user),
    },
    Route {
        method: Method::DELETE,
        path: "/api/v1/users/{name}/quota",
        handle: |method| on(method, quota::clear_user),
    },
    Route {
        method: Method::GET,
        path: "/api/v1/openapi.json",
        handle: |method| on(method, describe),
    },
];

/// What `/api/v1/openapi.json` says.
const OPENAPI: &str = include_str!("openapi.json");

/// What answers on the management address.
pub(crate) fn service(app: &SharedApp) -> Service {
    let (open, signed) = (open_routes(app), signed_service(app));
    Arc::new(move |request| {
        let id = request.extensions().get::<RequestId>().cloned();
        if request.uri().path().starts_with(API) {
            Box::pin(answer_signed(signed.clone(), request, id))
        } else {
            Box::pin(answer_open(open.clone(), request))
        }
    })
}

async fn answer_open(open: Router, request: HttpRequest) -> HttpResponse {
    let Ok(response) = open.oneshot(request.map(Body::new)).await;
    response.map(s3s::Body::http_body_unsync)
}

/// Has the signature verified, and the API's route answer. What s3s refuses by itself, in XML, becomes JSON.
async fn answer_signed(signed: S3Service, request: HttpRequest, id: Option<RequestId>) -> HttpResponse {
    let response = match signed.call(request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a request to the API failed");
            return ApiError::from_xml(StatusCode::INTERNAL_SERVER_ERROR, b"").render(id.as_ref());
        }
    };
    let xml = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == "application/xml");
    match response.body().bytes() {
        Some(bytes) if xml => ApiError::from_xml(response.status(), &bytes).render(id.as_ref()),
        _ => response,
    }
}

/// The S3 of the management address: it has no operation.
struct NoS3;

impl S3 for NoS3 {}

fn signed_service(app: &SharedApp) -> S3Service {
    let mut config = S3Config::default();
    // The router has a bound of its own, and refuses with the right status.
    config.custom_route_max_body_size = None;
    // Nobody passes on URLs of this API, and no form posts to it.
    config.allow_presigned_url = false;
    config.allow_post_signature = false;
    config.form_max_field_size = request::BODY_LEN_MAX;
    config.form_max_fields_size = request::BODY_LEN_MAX;
    let mut builder = S3ServiceBuilder::new(NoS3);
    builder.set_auth(UserAuth(SharedApp::clone(app)));
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_route(signed_routes(app, API, api_routes(app)));
    builder.build()
}

fn api_routes(app: &SharedApp) -> Router {
    let mut router = Router::new();
    for Route { method, path, handle } in &ROUTES {
        let filter = MethodFilter::try_from(method.clone()).expect("the table has methods of HTTP");
        router = router.route(path, handle(filter));
    }
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(request::BODY_LEN_MAX))
        .layer(from_fn(render_errors))
        .with_state(SharedApp::clone(app))
}

async fn describe() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn no_such_path(uri: Uri) -> ApiError {
    let message = format!("the API has no {}; /api/v1/openapi.json says what it has", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

fn open_routes(app: &SharedApp) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .fallback(elsewhere)
        .layer(from_fn(render_errors))
        .with_state(SharedApp::clone(app))
}

async fn ready(State(app): State<SharedApp>) -> Result<&'static str, ApiError> {
    let not_ready = |message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
    if app.stopping.is_cancelled() {
        return Err(not_ready("the server is stopping"));
    }
    app.store.check().await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "not ready");
        not_ready("the index cannot be read; the log has the reason")
    })?;
    Ok("ready\n")
}

async fn show_metrics(State(app): State<SharedApp>) -> Result<Response, ApiError> {
    match app.store.space().await {
        Ok(space) => app.metrics.space(space),
        // What else is counted is wanted most when the disk is in trouble.
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the free space is not known"),
    }
    let rendered = tokio::task::spawn_blocking(move || app.metrics.render(&app)).await;
    match rendered {
        Ok(Ok(text)) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()),
        _ => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "the metrics could not be written",
        )),
    }
}

/// The answer to a request that does not get its turn.
pub(crate) fn slow_down(id: &RequestId, message: String) -> HttpResponse {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", message).render(Some(id))
}

/// Says where things are to who came to the wrong address, in the language they speak.
async fn elsewhere(State(app): State<SharedApp>, uri: Uri, headers: HeaderMap) -> Response {
    let transfer = server::endpoints(&app).transfer;
    let message = format!("this is the management address, with its API under {API}; S3 is served at {transfer}");
    if speaks_s3(&uri, &headers) {
        let error = S3Error::with_message(S3ErrorCode::InvalidRequest, message);
        return match error.to_http_response() {
            Ok(response) => response.map(Body::new),
            Err(error) => ApiError::from(error).into_response(),
        };
    }
    ApiError::new(StatusCode::NOT_FOUND, "NotFound", message).into_response()
}

/// Whether a request is signed as S3 clients do.
fn speaks_s3(uri: &Uri, headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().starts_with(b"AWS"))
        || headers.contains_key("x-amz-content-sha256")
        || uri.query().is_some_and(|query| query.contains("X-Amz-Signature="))
}
