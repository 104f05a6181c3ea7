//! Versioning of buckets, and ListObjectVersions (S3 User Guide, "Using versioning in S3 buckets").

use lithos_storage::{
    DeleteMarker, ListObjects, ListVersions, ListingEntry, ObjectRecord, Version, VersionEntry, VersionId,
    VersionStamp, Versioning,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::{
    checksum,
    list::{Encoding, common_prefix, page_size},
    owner::Owners,
    wire::{bucket_name, etag, length, refuse, store_error, timestamp, version_id},
};
use crate::app::App;

pub(super) async fn put_bucket_versioning(
    app: &App,
    request: S3Request<dto::PutBucketVersioningInput>,
) -> S3Result<S3Response<dto::PutBucketVersioningOutput>> {
    let input = request.input;
    let dto::VersioningConfiguration { mfa_delete, status } = input.versioning_configuration;
    match mfa_delete.as_ref().map(dto::MFADelete::as_str) {
        None | Some(dto::MFADelete::DISABLED) => {}
        Some(dto::MFADelete::ENABLED) => {
            return Err(refuse(
                S3ErrorCode::NotImplemented,
                "deletes that need a second factor (MfaDelete) are not available",
            ));
        }
        Some(_) => return Err(refuse(S3ErrorCode::MalformedXML, "MfaDelete is Enabled or Disabled")),
    }
    let versioning = match status.as_ref().map(dto::BucketVersioningStatus::as_str) {
        Some(dto::BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(dto::BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        Some(_) => return Err(refuse(S3ErrorCode::MalformedXML, "the status is Enabled or Suspended")),
        None => {
            return Err(refuse(
                S3ErrorCode::IllegalVersioningConfigurationException,
                "a versioning configuration names a status",
            ));
        }
    };
    let bucket = bucket_name(&input.bucket)?;
    let update = app
        .store
        .update_bucket(&bucket, |record| record.versioning = versioning);
    update.await.map_err(store_error)?;
    Ok(S3Response::new(dto::PutBucketVersioningOutput {}))
}

pub(super) async fn get_bucket_versioning(
    app: &App,
    request: S3Request<dto::GetBucketVersioningInput>,
) -> S3Result<S3Response<dto::GetBucketVersioningOutput>> {
    let bucket = app
        .store
        .bucket(&bucket_name(&request.input.bucket)?)
        .await
        .map_err(store_error)?;
    let status = match bucket.versioning {
        Versioning::Never => None,
        Versioning::Enabled => Some(dto::BucketVersioningStatus::ENABLED),
        Versioning::Suspended => Some(dto::BucketVersioningStatus::SUSPENDED),
    };
    Ok(S3Response::new(dto::GetBucketVersioningOutput {
        status: status.map(dto::BucketVersioningStatus::from_static),
        ..Default::default()
    }))
}

pub(super) async fn list_object_versions(
    app: &App,
    request: S3Request<dto::ListObjectVersionsInput>,
) -> S3Result<S3Response<dto::ListObjectVersionsOutput>> {
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let max_keys = page_size(input.max_keys)?;
    let named = input.version_id_marker.as_deref().filter(|id| !id.is_empty());
    let key_marker = input.key_marker.clone().unwrap_or_default();
    if named.is_some() && key_marker.is_empty() {
        return Err(refuse(
            S3ErrorCode::InvalidArgument,
            "a version-id marker cannot be specified without a key marker",
        ));
    }
    let list = ListVersions {
        keys: ListObjects {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after: key_marker,
            limit: usize::try_from(max_keys).unwrap_or(0),
        },
        after_version: version_id(named)?,
    };
    let listing = app
        .store
        .list_versions(&bucket_name(&input.bucket)?, &list)
        .await
        .map_err(store_error)?;
    let last = listing.entries.last().filter(|_| listing.more);
    let next_key_marker = last.map(|entry| encoding.apply(entry.name()));
    let next_version_id_marker = match last {
        Some(ListingEntry::Key(_, entry)) => Some(marker(entry.version.stamp())),
        _ => None,
    };
    let ids = listing.entries.iter().filter_map(|entry| match entry {
        ListingEntry::Key(_, entry) => Some(entry.version.owner()),
        ListingEntry::CommonPrefix(_) => None,
    });
    let owners = Owners::of(app, ids.collect()).await?;
    let mut output = dto::ListObjectVersionsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.apply(&list.keys.prefix)),
        delimiter: input.delimiter.map(|delimiter| encoding.apply(&delimiter)),
        key_marker: Some(encoding.apply(&list.keys.after)),
        version_id_marker: input.version_id_marker,
        max_keys: Some(max_keys),
        is_truncated: Some(listing.more),
        next_key_marker,
        next_version_id_marker,
        encoding_type: input.encoding_type,
        ..Default::default()
    };
    let (versions, markers, prefixes) = (
        output.versions.get_or_insert_default(),
        output.delete_markers.get_or_insert_default(),
        output.common_prefixes.get_or_insert_default(),
    );
    for entry in listing.entries {
        match entry {
            ListingEntry::CommonPrefix(prefix) => prefixes.push(common_prefix(&prefix, encoding)),
            ListingEntry::Key(key, entry) => {
                let key = encoding.apply(&key);
                let VersionEntry { version, is_latest, .. } = entry;
                match version {
                    Version::Object(record) => versions.push(listed_version(key, *record, is_latest, &owners)),
                    Version::DeleteMarker(marker) => markers.push(listed_marker(key, &marker, is_latest, &owners)),
                }
            }
        }
    }
    Ok(S3Response::new(output))
}

/// Where the next page goes on. The null version may be another one by then, so its place is named instead.
fn marker(stamp: VersionStamp) -> String {
    let place = VersionId::Named {
        sequence: stamp.sequence,
        token: stamp.token.unwrap_or_default(),
    };
    place.to_string()
}

fn listed_version(key: String, record: ObjectRecord, is_latest: bool, owners: &Owners) -> dto::ObjectVersion {
    let checksum = record.checksum.as_ref();
    dto::ObjectVersion {
        key: Some(key),
        version_id: Some(record.version.id().to_string()),
        is_latest: Some(is_latest),
        last_modified: Some(timestamp(record.last_modified)),
        e_tag: Some(etag(&record.etag)),
        size: Some(length(record.size())),
        owner: Some(owners.owner(&record.owner)),
        checksum_algorithm: checksum
            .map(|checksum| vec![dto::ChecksumAlgorithm::from_static(checksum::name(checksum.algorithm))]),
        checksum_type: checksum.map(|checksum| checksum::checksum_type(checksum.kind)),
        storage_class: Some(dto::ObjectVersionStorageClass::from(
            record
                .headers
                .storage_class
                .unwrap_or_else(|| dto::StorageClass::STANDARD.to_owned()),
        )),
        ..Default::default()
    }
}

fn listed_marker(key: String, marker: &DeleteMarker, is_latest: bool, owners: &Owners) -> dto::DeleteMarkerEntry {
    dto::DeleteMarkerEntry {
        key: Some(key),
        version_id: Some(marker.version.id().to_string()),
        is_latest: Some(is_latest),
        last_modified: Some(timestamp(marker.last_modified)),
        owner: Some(owners.owner(&marker.owner)),
    }
}
