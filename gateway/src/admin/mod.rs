//! The management address.

use std::sync::Arc;

use crate::{app::SharedApp, server::Service};

/// What answers on the management address.
pub(crate) fn service(_app: &SharedApp) -> Service {
    Arc::new(|_request| Box::pin(async { http::Response::new(s3s::Body::empty()) }))
}
