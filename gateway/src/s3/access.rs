//! Who may do what, asked before an operation begins.
//!
//! A bucket, and everything in it, belongs to the user who created it; nobody else gets in but the holder of the root
//! keys. Anonymous requests are refused.

use std::sync::Arc;

use lithos_storage::ErrorKind;
use s3s::{
    S3ErrorCode, S3Request, S3Result,
    access::{S3Access, S3AccessContext},
    dto,
};

use super::wire::{bucket_name, refuse, store_error};
use crate::{
    app::{App, SharedApp},
    auth::user::{self, Identity},
};

/// The gate of the operations.
pub(super) struct Access(pub(super) SharedApp);

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else {
            return Err(refuse(S3ErrorCode::AccessDenied, "the request is not signed"));
        };
        let caller = user::identity(&self.0, &credentials.access_key).await?;
        // Who creates a bucket need not own it yet; the operation looks whose it is.
        if cx.s3_op().name() != "CreateBucket"
            && let Some(bucket) = cx.s3_path().get_bucket_name()
        {
            require_bucket(&self.0, &caller, bucket).await?;
        }
        cx.extensions_mut().insert(caller);
        Ok(())
    }

    async fn copy_object(&self, request: &mut S3Request<dto::CopyObjectInput>) -> S3Result<()> {
        let caller = caller(request)?;
        require_source(&self.0, &caller, &request.input.copy_source).await
    }

    async fn upload_part_copy(&self, request: &mut S3Request<dto::UploadPartCopyInput>) -> S3Result<()> {
        let caller = caller(request)?;
        require_source(&self.0, &caller, &request.input.copy_source).await
    }
}

async fn require_source(app: &App, caller: &Identity, source: &dto::CopySource) -> S3Result<()> {
    match source {
        dto::CopySource::Bucket { bucket, .. } => require_bucket(app, caller, bucket).await,
        // The operation does not know these.
        dto::CopySource::AccessPoint { .. } | dto::CopySource::Outpost { .. } => Ok(()),
    }
}

/// Refuses who may not use a bucket. One that does not exist is the operation's to tell.
async fn require_bucket(app: &App, caller: &Identity, bucket: &str) -> S3Result<()> {
    if caller.is_root() {
        return Ok(());
    }
    match app.store.bucket(&bucket_name(bucket)?).await {
        Ok(record) => user::require_owner(app, &record, &caller.id).map_err(store_error),
        Err(error) if error.kind() == ErrorKind::NoSuchBucket => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

/// Who made a request.
pub(super) fn caller<T>(request: &S3Request<T>) -> S3Result<Arc<Identity>> {
    let caller = request.extensions.get::<Arc<Identity>>();
    caller
        .cloned()
        .ok_or_else(|| refuse(S3ErrorCode::AccessDenied, "the request is not signed"))
}
