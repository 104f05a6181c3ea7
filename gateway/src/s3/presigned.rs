//! Presigned URLs whose signature cannot be one.
//!
//! A signature is 64 hexadecimal digits. The library counts anything else as malformed and answers 400, where S3 says that
//! it does not match. So such a signature is replaced by one that is well-formed and matches nothing: a signature does not
//! sign itself, everything else is judged as ever.

use http::{Request, uri::PathAndQuery};
use percent_encoding::percent_decode_str;
use s3s::Body;

const PARAMETER: &str = "X-Amz-Signature";
/// To find a request that has this signature takes as long as to find the key.
const WRONG: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Replaces a signature that is none.
pub(super) fn prepare(request: &mut Request<Body>) {
    let Some(query) = request.uri().query().filter(|query| query.contains(PARAMETER)) else {
        return;
    };
    let Some(mended) = mended(query) else { return };
    let mut parts = request.uri().clone().into_parts();
    let text = format!("{}?{mended}", request.uri().path());
    parts.path_and_query = PathAndQuery::try_from(text).ok();
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// The query with another signature; `None` if the one in it is well-formed.
fn mended(query: &str) -> Option<String> {
    let is_wrong = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let value = decoded(value);
        decoded(name) == PARAMETER && !(value.len() == WRONG.len() && value.bytes().all(digit))
    };
    if !query.split('&').any(is_wrong) {
        return None;
    }
    let pairs = query.split('&').map(|pair| {
        if is_wrong(pair) {
            format!("{PARAMETER}={WRONG}")
        } else {
            pair.to_owned()
        }
    });
    Some(pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_a_signature_is_replaced() {
        let good = "ab".repeat(32);
        for kept in [
            format!("X-Amz-Signature={good}&a=b"),
            format!("a=b&X%2DAmz-Signature={good}"),
            "Signature=none&prefix=X-Amz-Signature".to_owned(),
        ] {
            assert_eq!(mended(&kept), None, "{kept}");
        }
        for wrong in ["", "zz", &"g".repeat(64), &"AB".repeat(32), &"a".repeat(65), "%61"] {
            assert_eq!(
                mended(&format!("a=%2F&X-Amz-Signature={wrong}&c")).unwrap(),
                format!("a=%2F&X-Amz-Signature={WRONG}&c"),
                "{wrong}"
            );
        }
    }
}
