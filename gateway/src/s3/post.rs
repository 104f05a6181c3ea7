//! `PostObject`: uploads by forms of browsers (S3 API Reference, "POST Object").
//!
//! The library reads the form, verifies its signature and holds it against its policy. What is left is a PutObject whose
//! headers came as fields, and an answer for a browser.
//!
//! Differs: the field `tagging` is not looked at, because the library does not hand it on.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{ETAG, HOST, LOCATION},
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto, stream::ByteStream};

use super::{
    checksum::Expected,
    put::{Upload, user_upload},
    wire::{bucket_name, object_key, refuse, signer},
};
use crate::app::App;

pub(super) async fn post_object(
    app: &App,
    request: S3Request<dto::PostObjectInput>,
) -> S3Result<S3Response<dto::PostObjectOutput>> {
    let owner = signer(&request);
    let mut input = request.input;
    if input.key.is_empty() {
        return Err(refuse(S3ErrorCode::InvalidArgument, "the form names an empty key"));
    }
    let (bucket, key) = (bucket_name(&input.bucket)?, object_key(&input.key)?);
    let redirect = input.success_action_redirect.take().as_deref().and_then(redirect);
    let expected = Expected::of(&fields(&input)?)?;
    let len = input.body.as_ref().and_then(|body| body.remaining_length().exact());
    let upload = Upload {
        owner,
        declared_len: len.map(|len| len as u64),
        expected,
        trailers: None,
        conditions: HeaderMap::new(),
    };
    let put = user_upload(app, &bucket, &key, upload, &mut as_put(input)).await?;
    let etag = put
        .output
        .e_tag
        .as_ref()
        .map(|etag| etag.value().to_owned())
        .unwrap_or_default();
    let location = match redirect {
        Some(mut url) => {
            url.query_pairs_mut()
                .append_pair("bucket", bucket.as_str())
                .append_pair("key", key.as_str())
                .append_pair("etag", &format!("\"{etag}\""));
            url.to_string()
        }
        None => object_url(&request.headers, bucket.as_str(), key.as_str()),
    };
    let mut response = S3Response::new(dto::PostObjectOutput {
        e_tag: put.output.e_tag,
        version_id: put.output.version_id,
        ..Default::default()
    });
    let headers = [(LOCATION, location), (ETAG, format!("\"{etag}\""))];
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers.insert(name, value);
        }
    }
    Ok(response)
}

/// What of a form is the object's.
fn as_put(input: dto::PostObjectInput) -> dto::PutObjectInput {
    dto::PutObjectInput {
        body: input.body,
        bucket: input.bucket,
        key: input.key,
        cache_control: input.cache_control,
        content_disposition: input.content_disposition,
        content_encoding: input.content_encoding,
        content_language: input.content_language,
        content_type: input.content_type,
        expires: input.expires,
        metadata: input.metadata,
        storage_class: input.storage_class,
        tagging: input.tagging,
        website_redirect_location: input.website_redirect_location,
        ..Default::default()
    }
}

/// Where to send the browser; what is no URL counts as nothing.
fn redirect(text: &str) -> Option<url::Url> {
    text.parse().ok()
}

/// The fields that declare something about the file, as headers.
fn fields(input: &dto::PostObjectInput) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-md5", &input.content_md5),
        ("x-amz-checksum-crc32", &input.checksum_crc32),
        ("x-amz-checksum-crc32c", &input.checksum_crc32c),
        ("x-amz-checksum-crc64nvme", &input.checksum_crc64nvme),
        ("x-amz-checksum-sha1", &input.checksum_sha1),
        ("x-amz-checksum-sha256", &input.checksum_sha256),
    ] {
        let Some(value) = value else { continue };
        let value = HeaderValue::try_from(value).map_err(|_| {
            refuse(
                S3ErrorCode::InvalidArgument,
                format!("the field {name} is not a checksum"),
            )
        })?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

/// The URL of an object, by the host that the client knows the server by.
pub(super) fn object_url(headers: &HeaderMap, bucket: &str, key: &str) -> String {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let path = super::wire::encoded_path(bucket, key);
    let url = format!("http://{host}{path}");
    if url.parse::<Uri>().is_ok() { url } else { path }
}
