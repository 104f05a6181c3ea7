//! S3.
use std::sync::Arc;
use crate::{app::SharedApp, server::Service};
/// What answers on the transfer address.
pub(crate) fn service(_app: &SharedApp) -> anyhow::Result<Service> {
    Ok(Arc::new(|_request| Box::pin(async { http::Response::new(s3s::Body::empty()) })))
}
