//! Buckets.

use lithos_storage::{BucketName, ErrorKind};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    access::caller,
    wire::{BUCKET_TAGS_MAX, bucket_name, refuse, set_tags, store_error, timestamp},
};
use crate::{
    app::App,
    auth::user::{self, Identity},
};

/// The region that S3 does not name in a location.
pub(super) const DEFAULT_REGION: &str = "us-east-1";
/// Most buckets of one listing.
const BUCKETS_MAX: usize = 1000;

pub(super) async fn create_bucket(
    app: &App,
    request: S3Request<dto::CreateBucketInput>,
) -> S3Result<S3Response<dto::CreateBucketOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let name = bucket_name(&input.bucket)?;
    let configuration = input.create_bucket_configuration.unwrap_or_default();
    let region = configuration
        .location_constraint
        .map(|region| region.as_str().to_owned());
    if let Some(region) = region
        .as_deref()
        .filter(|region| region.parse::<crate::zone::ZoneName>().is_err())
    {
        return Err(refuse(
            S3ErrorCode::InvalidLocationConstraint,
            format!("{region:?} is not a location"),
        ));
    }
    let tags = set_tags(configuration.tags.unwrap_or_default(), BUCKET_TAGS_MAX)?;
    let owner = caller.id.clone();
    let created = if input.object_lock_enabled_for_bucket == Some(true) {
        app.store.create_locked_bucket(&name, region, tags, owner).await
    } else {
        app.store.create_bucket(&name, region, tags, owner).await
    };
    if let Err(error) = created {
        return match error.kind() {
            ErrorKind::BucketAlreadyExists => Err(taken(app, &caller, &name).await?),
            _ => Err(store_error(error)),
        };
    }
    Ok(S3Response::new(dto::CreateBucketOutput {
        location: Some(format!("/{name}")),
        ..Default::default()
    }))
}

/// The refusal of a name that is taken: S3 tells who has it already from who cannot have it (S3 API Reference,
/// "CreateBucket").
///
/// Differs: in us-east-1 S3 answers 200 to who has it already. Here that is an error in every region.
async fn taken(app: &App, caller: &Identity, name: &BucketName) -> S3Result<S3Error> {
    let owner = match app.store.bucket(name).await {
        Ok(bucket) => Some(bucket.owner),
        Err(error) if error.kind() == ErrorKind::NoSuchBucket => None,
        Err(error) => return Err(store_error(error)),
    };
    let own = match owner {
        Some(owner) if caller.is_root() => !user::is_user(app, &owner).await.map_err(store_error)?,
        Some(owner) => owner == caller.id,
        // It has gone meanwhile: whose it was is not known.
        None => false,
    };
    Ok(if own {
        refuse(
            S3ErrorCode::BucketAlreadyOwnedByYou,
            format!("bucket {name} exists already, and is yours"),
        )
    } else {
        refuse(
            S3ErrorCode::BucketAlreadyExists,
            format!("bucket {name} belongs to another user"),
        )
    })
}

pub(super) async fn head_bucket(
    app: &App,
    request: S3Request<dto::HeadBucketInput>,
) -> S3Result<S3Response<dto::HeadBucketOutput>> {
    let bucket = app
        .store
        .bucket(&bucket_name(&request.input.bucket)?)
        .await
        .map_err(store_error)?;
    let region = bucket.region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
    Ok(S3Response::new(dto::HeadBucketOutput {
        bucket_region: Some(region),
        ..Default::default()
    }))
}

pub(super) async fn get_bucket_location(
    app: &App,
    request: S3Request<dto::GetBucketLocationInput>,
) -> S3Result<S3Response<dto::GetBucketLocationOutput>> {
    let bucket = app
        .store
        .bucket(&bucket_name(&request.input.bucket)?)
        .await
        .map_err(store_error)?;
    let region = bucket.region.filter(|region| region != DEFAULT_REGION);
    let location_constraint = region.map(dto::BucketLocationConstraint::from);
    Ok(S3Response::new(dto::GetBucketLocationOutput { location_constraint }))
}

pub(super) async fn delete_bucket(
    app: &App,
    request: S3Request<dto::DeleteBucketInput>,
) -> S3Result<S3Response<dto::DeleteBucketOutput>> {
    app.store
        .delete_bucket(&bucket_name(&request.input.bucket)?)
        .await
        .map_err(store_error)?;
    Ok(S3Response::new(dto::DeleteBucketOutput {}))
}

pub(super) async fn list_buckets(
    app: &App,
    request: S3Request<dto::ListBucketsInput>,
) -> S3Result<S3Response<dto::ListBucketsOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let wanted = input.max_buckets.map_or(BUCKETS_MAX, |max| {
        usize::try_from(max).unwrap_or(0).clamp(1, BUCKETS_MAX)
    });
    let prefix = input.prefix.clone().unwrap_or_default();
    let mut after: Option<BucketName> = input.continuation_token.as_deref().map(bucket_name).transpose()?;
    let mut buckets = Vec::new();
    let mut more = false;
    'pages: loop {
        let page = app
            .store
            .list_buckets(after.as_ref(), BUCKETS_MAX)
            .await
            .map_err(store_error)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (name, record) in page {
            if !name.as_str().starts_with(&prefix) || !caller.may_use(&record.owner) {
                continue;
            }
            if buckets.len() == wanted {
                more = true;
                break 'pages;
            }
            buckets.push(dto::Bucket {
                name: Some(name.to_string()),
                creation_date: Some(timestamp(record.created)),
                bucket_region: record
                    .region
                    .or_else(|| input.max_buckets.map(|_| DEFAULT_REGION.to_owned())),
                bucket_arn: None,
            });
        }
    }
    let continuation_token = if more {
        buckets.last().and_then(|bucket| bucket.name.clone())
    } else {
        None
    };
    Ok(S3Response::new(dto::ListBucketsOutput {
        buckets: Some(buckets),
        owner: Some(dto::Owner {
            id: Some(caller.id.clone()),
            display_name: Some(caller.name.clone()),
        }),
        continuation_token,
        prefix: input.prefix,
    }))
}
