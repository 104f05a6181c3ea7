//! Our own HTTP API behind the same signatures as S3.
//!
//! s3s verifies the signature of every request it sees, and lets an [`S3Route`] take requests away from S3. A route made by
//! [`signed_routes`] hands them to an axum [`Router`] once they are known to be signed by somebody who may. Bodies stream in
//! both directions. The body's hash or chunk signatures are verified as it is read, so a handler must read it to its end
//! before it acts on it.

use async_trait::async_trait;
use axum::Router;
use http::{Extensions, HeaderMap, Method, Request, Uri, header::HOST};
use s3s::{
    Body, S3Request, S3Response, S3Result,
    auth::{S3Auth, SecretKey},
    route::S3Route,
    s3_error,
};
use tower::ServiceExt;

use super::user;
use crate::app::SharedApp;

/// Who signed a request; handlers find it among the extensions.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The access key.
    pub(crate) access_key: String,
}

/// The secret keys that signatures are verified with: those of root and of the users.
pub(crate) struct UserAuth(pub(crate) SharedApp);

#[async_trait]
impl S3Auth for UserAuth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        user::secret_key(&self.0, access_key).await
    }
}

/// Serves the paths that begin with `prefix` from `router`, to who holds the root keys.
///
/// The router sees whole paths. Its bodies are bounded by
/// [`custom_route_max_body_size`](s3s::config::S3Config::custom_route_max_body_size), 1 MiB unless it is set, whose refusal
/// is an S3 error: set it to `None` where the router has bounds of its own.
pub(crate) fn signed_routes(app: &SharedApp, prefix: &'static str, router: Router) -> impl S3Route {
    SignedRoutes {
        app: SharedApp::clone(app),
        prefix,
        router,
    }
}

struct SignedRoutes {
    app: SharedApp,
    prefix: &'static str,
    router: Router,
}

#[async_trait]
impl S3Route for SignedRoutes {
    fn is_match(&self, _method: &Method, uri: &Uri, headers: &HeaderMap, _extensions: &mut Extensions) -> bool {
        uri.path().starts_with(self.prefix) && !names_bucket(headers, &self.app.config.domains)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        match &request.credentials {
            Some(credentials) if credentials.access_key == self.app.keyring.root().access_key => Ok(()),
            Some(_) => Err(s3_error!(AccessDenied, "only the root keys may do this")),
            None => Err(s3_error!(
                AccessDenied,
                "the request is not signed: sign it with the root keys (AWS Signature Version 4, service s3)"
            )),
        }
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut inner = Request::new(axum::body::Body::new(request.input));
        *inner.method_mut() = request.method;
        *inner.uri_mut() = request.uri;
        *inner.headers_mut() = request.headers;
        *inner.extensions_mut() = request.extensions;
        if let Some(credentials) = request.credentials {
            inner.extensions_mut().insert(Caller {
                access_key: credentials.access_key,
            });
        }
        let Ok(answer) = self.router.clone().oneshot(inner).await;
        let (parts, body) = answer.into_parts();
        let mut response = S3Response::with_status(Body::http_body_unsync(body), parts.status);
        response.headers = parts.headers;
        response.extensions = parts.extensions;
        Ok(response)
    }
}

/// Whether the `Host` header names a bucket (virtual-host style): then the whole path is a key, whatever it begins with.
pub(crate) fn names_bucket(headers: &HeaderMap, domains: &[String]) -> bool {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let host = host.rsplit_once(':').map_or(host.as_str(), |(name, _port)| name);
    domains.iter().any(|domain| {
        host.strip_suffix(&domain.to_ascii_lowercase())
            .is_some_and(|rest| rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn host_names_a_bucket_only_below_a_domain() {
        let domains = ["s3.example.com".to_owned()];
        for (host, expected) in [
            ("s3.example.com", false),
            ("s3.example.com:9000", false),
            ("b.s3.example.com", true),
            ("B.S3.Example.com:9000", true),
            ("bs3.example.com", false),
            ("127.0.0.1:9000", false),
            ("[::1]:9000", false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(names_bucket(&headers, &domains), expected, "{host}");
        }
        assert!(!names_bucket(&HeaderMap::new(), &domains));
    }
}
