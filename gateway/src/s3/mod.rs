//! S3 on the transfer address: one file a family of operations.
//!
//! The library `s3s` checks signatures, decodes requests and encodes responses; here is what the operations do. What is
//! not implemented answers `NotImplemented`.

mod access;
mod answer;
mod attributes;
mod bucket;
mod checksum;
mod copy;
mod delete;
mod get;
mod lenient;
mod lifecycle;
mod list;
mod multipart;
mod object_lock;
mod owner;
mod post;
mod precondition;
mod presigned;
mod put;
mod region;
mod tagging;
mod versioning;
mod wire;
mod xml_body;

use std::sync::Arc;

use http::{
    Extensions, HeaderMap, HeaderValue, Method, Uri,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT},
};
use s3s::{
    Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    config::{S3Config, StaticConfigProvider},
    dto,
    host::MultiDomain,
    route::S3Route,
    service::{S3Service, S3ServiceBuilder},
};

use crate::{
    app::{App, SharedApp},
    auth::route::{UserAuth, signed_routes},
    server::{HttpRequest, HttpResponse, OperationName, RequestId, Service},
};

/// Largest body of one PutObject or UploadPart (S3 User Guide, "Uploading objects").
const PUT_LEN_MAX: u64 = 5 << 30;
/// Largest XML body: a completion of 10,000 parts with checksums has about 2 MiB.
pub(crate) const XML_LEN_MAX: usize = 4 << 20;
/// Largest signed chunk of an aws-chunked body, which is held in memory until its signature is checked. Clients send 64
/// KiB to 1 MiB.
pub(crate) const CHUNK_LEN_MAX: usize = 8 << 20;
/// All fields of a form together, without its file (S3 API Reference, "POST Object": 20 KB).
const FORM_LEN_MAX: usize = 20 << 10;
/// Path under which image servers talk to each other. No bucket name begins with a dot.
pub(crate) const PEER_PREFIX: &str = "/.lithos/v1/";

/// What answers on the transfer address.
pub(crate) fn service(app: &SharedApp) -> anyhow::Result<Service> {
    let mut config = S3Config::default();
    config.put_object_max_size = Some(PUT_LEN_MAX);
    config.post_object_max_file_size = PUT_LEN_MAX;
    config.form_max_field_size = FORM_LEN_MAX;
    config.form_max_fields_size = FORM_LEN_MAX;
    // S3 does not look at it: a URL that was signed for another operation fails by its signature.
    config.operation_id_routing = false;
    config.xml_max_body_size = XML_LEN_MAX;
    config.aws_chunked_stream_max_chunk_size = CHUNK_LEN_MAX;
    // `aws s3 presign` of the first generation still signs this way unless it is told otherwise.
    config.enable_sig_v2 = true;
    config.custom_route_max_body_size = Some(lithos_storage::blob::BLOB_LEN_MAX + 1024);
    let mut builder = S3ServiceBuilder::new(Gateway { app: Arc::clone(app) });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(UserAuth(Arc::clone(app)));
    builder.set_access(access::Access(Arc::clone(app)));
    builder.set_route(Routes {
        app: Arc::clone(app),
        peers: signed_routes(app, PEER_PREFIX, crate::zone::routes(Arc::clone(app))),
    });
    if !app.config.domains.is_empty() {
        builder.set_host(MultiDomain::new(app.config.domains.iter().map(String::as_str))?);
    }
    let service = builder.build();
    let app = Arc::clone(app);
    Ok(Arc::new(move |request| {
        let (app, service) = (Arc::clone(&app), service.clone());
        Box::pin(async move { call(&app, &service, request).await })
    }))
}

async fn call(app: &App, service: &S3Service, request: HttpRequest) -> HttpResponse {
    let last = waits_for_nothing(request.headers());
    let id = request
        .extensions()
        .get::<RequestId>()
        .map(|RequestId(id)| id.clone())
        .unwrap_or_default();
    let path = request.uri().path().to_owned();
    let response = answer(app, service, request, &id).await;
    let mut response = answer::finish(response, &path, &id).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        // S3 has a second id; clients show both.
        response.headers_mut().insert("x-amz-id-2", id);
    }
    if last {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether a client waits to be told to go on with a body that has no bytes.
///
/// No 100 Continue is sent then (RFC 9110, "Expect"). The `aws` command and boto3 cope with that, but then take the status
/// of this answer for that of the next one on the connection, and wait for its head until the connection is closed.
fn waits_for_nothing(headers: &HeaderMap) -> bool {
    headers.contains_key(EXPECT) && headers.get(CONTENT_LENGTH).is_none_or(|len| len == "0")
}

async fn answer(app: &App, service: &S3Service, request: HttpRequest, id: &str) -> HttpResponse {
    if let Some(refusal) = region::refusal(request.headers(), id) {
        return refusal;
    }
    if xml_body::is_endless_form(&request) {
        let message = "the length of a form must be declared";
        return refused(S3Error::with_message(S3ErrorCode::MissingContentLength, message));
    }
    let domains = &app.config.domains;
    let request = match xml_body::refuse_long(request, domains) {
        Ok(request) => request,
        Err(error) => {
            // Some of the body may be on its way, and nobody will read it.
            let mut response = refused(*error);
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
            return response;
        }
    };
    let (mut request, watch) = xml_body::watch(request, domains);
    presigned::prepare(&mut request);
    let place = lenient::prepare(&mut request);
    let response = library(service, request).await;
    if let Some(again) = place.and_then(|place| place.take()) {
        return library(service, again).await;
    }
    match watch.and_then(|watch| watch.refusal(&response)) {
        Some(error) => refused(error),
        None => response,
    }
}

async fn library(service: &S3Service, request: http::Request<Body>) -> HttpResponse {
    match service.call(request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a request could not be answered");
            status_only(http::StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn refused(error: S3Error) -> HttpResponse {
    error
        .to_http_response()
        .unwrap_or_else(|_| status_only(http::StatusCode::BAD_REQUEST))
}

fn status_only(status: http::StatusCode) -> HttpResponse {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// What is not S3: the requests of other image servers, and the first turn of requests that need mending.
struct Routes<P> {
    app: SharedApp,
    peers: P,
}

#[async_trait::async_trait]
impl<P: S3Route> S3Route for Routes<P> {
    fn is_match(&self, method: &Method, uri: &Uri, headers: &HeaderMap, extensions: &mut Extensions) -> bool {
        extensions.get::<lenient::Mended>().is_some() || self.peers.is_match(method, uri, headers, extensions)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        // A mended request is asked for what it may in its second turn.
        if request.extensions.get::<lenient::Mended>().is_some() {
            return Ok(());
        }
        self.peers.check_access(request).await
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        match request.extensions.get::<lenient::Mended>().cloned() {
            Some(place) => {
                place.put(self.app.store.now(), request)?;
                Ok(S3Response::new(Body::empty()))
            }
            None => self.peers.call(request).await,
        }
    }
}

/// The answer to a request that is refused before or behind the operations.
pub(crate) fn refusal(id: &RequestId, code: S3ErrorCode, message: String) -> HttpResponse {
    let status = code.status_code().unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let error = finish(S3Error::with_message(code, message), Some(id.clone()));
    error.to_http_response().unwrap_or_else(|error| {
        tracing::error!(%error, "a refusal could not be written");
        let mut response = http::Response::new(s3s::Body::empty());
        *response.status_mut() = status;
        response
    })
}

/// The S3 operations of this server.
#[derive(Debug)]
struct Gateway {
    app: SharedApp,
}

/// Puts the request's id into an error, and takes out of its message what XML cannot hold: it may name a key.
fn finish(mut error: S3Error, id: Option<RequestId>) -> S3Error {
    if let Some(RequestId(id)) = id {
        error.set_request_id(id);
    }
    if let Some(message) = error.message().filter(|message| message.contains(char::is_control)) {
        let message = message.replace(char::is_control, "\u{fffd}");
        error.set_message(message);
    }
    error
}

/// Calls the function of an operation, and puts the request's id into its error.
macro_rules! operations {
    ($($name:ident($input:ident) -> $output:ident = $function:path;)*) => {
        /// The types that the operations take: their names and `Input`.
        #[cfg(test)]
        const INPUTS: &[&str] = &[$(stringify!($input)),*];

        #[async_trait::async_trait]
        impl S3 for Gateway {
            $(
                async fn $name(&self, request: S3Request<dto::$input>) -> S3Result<S3Response<dto::$output>> {
                    let id = request.extensions.get::<RequestId>().cloned();
                    if let Some(operation) = request.extensions.get::<OperationName>() {
                        operation.set(stringify!($input).trim_end_matches("Input"));
                    }
                    let answer = async {
                        xml_body::verify(&request.extensions, &request.headers)?;
                        $function(&self.app, request).await
                    };
                    answer.await.map_err(|error| finish(error, id))
                }
            )*
        }
    };
}

operations! {
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput = multipart::abort_multipart_upload;
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput = multipart::complete_multipart_upload;
    copy_object(CopyObjectInput) -> CopyObjectOutput = copy::copy_object;
    create_bucket(CreateBucketInput) -> CreateBucketOutput = bucket::create_bucket;
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput = multipart::create_multipart_upload;
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput = bucket::delete_bucket;
    delete_bucket_lifecycle(DeleteBucketLifecycleInput) -> DeleteBucketLifecycleOutput = lifecycle::delete_bucket_lifecycle;
    delete_bucket_tagging(DeleteBucketTaggingInput) -> DeleteBucketTaggingOutput = tagging::delete_bucket_tagging;
    delete_object(DeleteObjectInput) -> DeleteObjectOutput = delete::delete_object;
    delete_object_tagging(DeleteObjectTaggingInput) -> DeleteObjectTaggingOutput = tagging::delete_object_tagging;
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput = delete::delete_objects;
    get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput) -> GetBucketLifecycleConfigurationOutput = lifecycle::get_bucket_lifecycle_configuration;
    get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput = bucket::get_bucket_location;
    get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput = tagging::get_bucket_tagging;
    get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput = versioning::get_bucket_versioning;
    get_object_attributes(GetObjectAttributesInput) -> GetObjectAttributesOutput = attributes::get_object_attributes;
    get_object(GetObjectInput) -> GetObjectOutput = get::get_object;
    get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput = object_lock::get_object_legal_hold;
    get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput = object_lock::get_object_lock_configuration;
    get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput = object_lock::get_object_retention;
    get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput = tagging::get_object_tagging;
    head_bucket(HeadBucketInput) -> HeadBucketOutput = bucket::head_bucket;
    head_object(HeadObjectInput) -> HeadObjectOutput = get::head_object;
    list_buckets(ListBucketsInput) -> ListBucketsOutput = bucket::list_buckets;
    list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput = list::list_multipart_uploads;
    list_object_versions(ListObjectVersionsInput) -> ListObjectVersionsOutput = versioning::list_object_versions;
    list_objects(ListObjectsInput) -> ListObjectsOutput = list::list_objects;
    list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output = list::list_objects_v2;
    list_parts(ListPartsInput) -> ListPartsOutput = multipart::list_parts;
    post_object(PostObjectInput) -> PostObjectOutput = post::post_object;
    put_bucket_lifecycle_configuration(PutBucketLifecycleConfigurationInput) -> PutBucketLifecycleConfigurationOutput = lifecycle::put_bucket_lifecycle_configuration;
    put_bucket_tagging(PutBucketTaggingInput) -> PutBucketTaggingOutput = tagging::put_bucket_tagging;
    put_bucket_versioning(PutBucketVersioningInput) -> PutBucketVersioningOutput = versioning::put_bucket_versioning;
    put_object(PutObjectInput) -> PutObjectOutput = put::put_object;
    put_object_legal_hold(PutObjectLegalHoldInput) -> PutObjectLegalHoldOutput = object_lock::put_object_legal_hold;
    put_object_lock_configuration(PutObjectLockConfigurationInput) -> PutObjectLockConfigurationOutput = object_lock::put_object_lock_configuration;
    put_object_retention(PutObjectRetentionInput) -> PutObjectRetentionOutput = object_lock::put_object_retention;
    put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput = tagging::put_object_tagging;
    upload_part(UploadPartInput) -> UploadPartOutput = multipart::upload_part;
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput = copy::upload_part_copy;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_readme_lists_the_operations_there_are() {
        let readme = include_str!("../../../README.md");
        let (_, section) = readme.split_once("## Supported S3 operations").unwrap();
        let listed: BTreeSet<&str> = section
            .lines()
            .skip_while(|line| !line.starts_with("| ---"))
            .skip(1)
            .take_while(|line| line.starts_with('|'))
            .flat_map(|row| row.split('|').nth(2).unwrap().split(','))
            .map(str::trim)
            .collect();
        let there: BTreeSet<&str> = INPUTS
            .iter()
            .map(|input| input.strip_suffix("Input").unwrap())
            .collect();
        assert_eq!(listed, there);
    }
}
