//! Regions in credential scopes.
//!
//! Any region is accepted: a server has no say in what its clients call it. But `s3s` takes only names that a region may
//! have, and s3cmd signs for one called `US` until it is told of another. S3 tells it by an error that names the region
//! (`AuthorizationHeaderMalformed`), and so do we, before `s3s` refuses the name in a way that clients do not understand.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::bucket::DEFAULT_REGION;
use crate::server::HttpResponse;

/// The answer to a request that is signed for a region that cannot be one.
pub(super) fn refusal(headers: &HeaderMap, request_id: &str) -> Option<HttpResponse> {
    let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let region = scope_region(authorization)?;
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !region.is_empty() && region.bytes().all(legal) {
        return None;
    }
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>the request is \
         signed for a region that cannot be one; sign for {DEFAULT_REGION}</Message><Region>{DEFAULT_REGION}</Region>\
         <RequestId>{request_id}</RequestId></Error>"
    );
    let mut response = Response::new(s3s::Body::from(text));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    Some(response)
}

/// The region in `AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/SERVICE/aws4_request, …`. Access keys may hold slashes.
fn scope_region(authorization: &str) -> Option<&str> {
    let (_, rest) = authorization.strip_prefix("AWS4-")?.split_once("Credential=")?;
    rest.split([',', ' ']).next()?.rsplit('/').nth(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_that_cannot_be_are_answered_with_one_that_can() {
        let refused = |region: &str| {
            let value = format!(
                "AWS4-HMAC-SHA256 Credential=K/20260101/{region}/s3/aws4_request,SignedHeaders=host,Signature=0"
            );
            refusal(
                &HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]),
                "id",
            )
        };
        for good in ["us-east-1", "az1", "default"] {
            assert!(refused(good).is_none(), "{good}");
        }
        for bad in ["US", "EU", "a_b", ""] {
            assert_eq!(refused(bad).unwrap().status(), StatusCode::BAD_REQUEST, "{bad}");
        }
        let other = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("AWS key:signature"))]);
        assert!(refusal(&other, "id").is_none());
        assert!(refusal(&HeaderMap::new(), "id").is_none());
    }
}
