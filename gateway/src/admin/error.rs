//! Errors of the admin API: a status and `{"error": {"code", "message", "request_id"}}`.
//!
//! Codes are those of S3 where S3 has one. A handler's error travels in the extensions of its response until
//! [`render_errors`], which knows the request's id, writes the body.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use lithos_storage::ErrorKind;
use s3s::{
    S3Error, S3ErrorCode,
    xml::{DeError, Deserializer},
};

use crate::server::{HttpResponse, RequestId};

/// What is said of a wrong signature.
const SIGNATURE_MESSAGE: &str = "the signature does not match: the secret key is not the one of this access key, or the \
    request was changed on its way";

/// Why a request got no answer.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: String,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    /// The request is wrong, and `message` says where.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", message)
    }

    /// The error as S3 told it, in XML.
    pub(crate) fn from_xml(status: StatusCode, xml: &[u8]) -> Self {
        // The text comes from s3s, in this process: what is not understood is still an error of this status.
        let (code, message) = parse_xml(xml).unwrap_or_default();
        if code.is_empty() {
            return Self::new(status, "InternalError", "the server could not carry this out");
        }
        // What S3 says of this is about S3.
        let message = match code.as_str() {
            "SignatureDoesNotMatch" if message == default_message(&code) => SIGNATURE_MESSAGE.to_owned(),
            _ if message.is_empty() => default_message(&code),
            _ => message,
        };
        Self { status, code, message }
    }

    /// The whole response.
    pub(crate) fn render(&self, request_id: Option<&RequestId>) -> HttpResponse {
        let id = request_id.map(|id| id.0.as_str());
        let body = serde_json::json!({
            "error": { "code": self.code, "message": self.message, "request_id": id }
        });
        let mut response = http::Response::new(s3s::Body::from(body.to_string()));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<lithos_storage::Error> for ApiError {
    fn from(error: lithos_storage::Error) -> Self {
        match error.kind() {
            // S3 has no words for these.
            ErrorKind::NoSuchJob => Self::new(StatusCode::NOT_FOUND, "NoSuchJob", error.to_string()),
            ErrorKind::NoSuchRecord => Self::new(StatusCode::NOT_FOUND, "NotFound", error.to_string()),
            ErrorKind::PreconditionFailed => Self::new(StatusCode::CONFLICT, "Conflict", error.to_string()),
            _ => crate::error::s3_error(error).into(),
        }
    }
}

impl From<S3Error> for ApiError {
    fn from(error: S3Error) -> Self {
        let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = error.code().as_str();
        let message = error.message().map_or_else(|| default_message(code), str::to_owned);
        Self::new(status, code, message)
    }
}

fn default_message(code: &str) -> String {
    let known = S3ErrorCode::from_bytes(code.as_bytes()).and_then(|code| code.default_message());
    known.unwrap_or("the request was refused").to_owned()
}

/// The code and the message of an S3 error document: S3 API Reference, "Error responses".
fn parse_xml(xml: &[u8]) -> Result<(String, String), DeError> {
    let mut deserializer = Deserializer::new(xml);
    let (mut code, mut message) = (String::new(), String::new());
    deserializer.named_element("Error", |content| {
        content.for_each_element(|content, name| {
            let text = content.content::<String>()?;
            match name {
                b"Code" => code = text,
                b"Message" => message = text,
                _ => {}
            }
            Ok(())
        })
    })?;
    Ok((code, message))
}

/// Gives errors their body.
pub(crate) async fn render_errors(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error.render(id.as_ref()).map(axum::body::Body::new),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use s3s::s3_error;

    use super::*;

    #[tokio::test]
    async fn s3_errors_keep_code_and_message() {
        let error = s3_error!(AccessDenied, "a < b & \"c\"");
        let response = error.to_http_response().unwrap();
        let xml = response.body().bytes().unwrap();
        let error = ApiError::from_xml(response.status(), &xml);
        assert_eq!(error.status, StatusCode::FORBIDDEN);
        assert_eq!(error.code, "AccessDenied");
        assert_eq!(error.message, "a < b & \"c\"");
    }

    #[test]
    fn other_documents_are_errors_too() {
        for xml in ["", "<", "<Error>", "<Other><Code>x</Code></Other>", "<Error></Error>"] {
            assert_eq!(
                ApiError::from_xml(StatusCode::BAD_GATEWAY, xml.as_bytes()).code,
                "InternalError",
                "{xml}"
            );
        }
    }
}
