//! Versions that are not current, delete markers, and which one is the null version.

use super::{Check, FindingKind as Kind, object};
use crate::{
    error::Result,
    schema::{BucketId, Holder, Keys, ObjectKey, ObjectRecord, VersionRow},
    version::parse_sequence,
};

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    versions(check).await?;
    null_versions(check).await
}

async fn versions(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("versions", b'V');
    let mut latest: Option<(BucketId, ObjectKey)> = None;
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let named = Keys::parse_first_id(&key).and_then(|(bucket, _)| {
                let (name, sequence) = Keys::parse_version(&key)?;
                Ok((BucketId(bucket), name.parse::<ObjectKey>()?, sequence))
            });
            let (Some((bucket, name, sequence)), Some(row)) =
                (check.take(&key, named), check.read::<VersionRow>(&key, &value))
            else {
                continue;
            };
            let stamp = row.stamp();
            let subject = format!("{} (version {})", check.object_name(bucket, name.as_str()), stamp.id());
            object::require_bucket(check, bucket, &subject);
            if stamp.sequence != sequence {
                let detail = format!("its row has the sequence {sequence}, and it has {}", stamp.sequence);
                check.add(Kind::BrokenVersions, &subject, detail);
            }
            let seen = latest.as_ref().is_some_and(|seen| *seen == (bucket, name.clone()));
            against_current(check, &subject, bucket, &name, &row, !seen).await?;
            if let VersionRow::Object { record, .. } = &row {
                object::object(check, &subject, Holder::version(bucket, &name, stamp), record).await?;
            }
            latest = Some((bucket, name));
        }
    }
    Ok(())
}

/// Holds a version against the current one, and against what is known of the null version.
async fn against_current(
    check: &mut Check<'_>,
    subject: &str,
    bucket: BucketId,
    name: &ObjectKey,
    row: &VersionRow,
    is_newest: bool,
) -> Result<()> {
    let stamp = row.stamp();
    let current: Option<ObjectRecord> = check.get(&Keys::object(bucket, name.as_str().as_bytes())).await?;
    match &current {
        Some(current) if current.version.sequence <= stamp.sequence => {
            let detail = format!("it is newer than the current version {}", current.version.id());
            check.add(Kind::BrokenVersions, subject, detail);
        }
        None if is_newest && matches!(row, VersionRow::Object { .. }) => {
            check.add(
                Kind::BrokenVersions,
                subject,
                "it is the latest, and not the current one",
            );
        }
        _ => {}
    }
    if !stamp.is_null() {
        return Ok(());
    }
    if current.is_some_and(|current| current.version.is_null()) {
        check.add(Kind::BrokenVersions, subject, "the current version is null as well");
    }
    let noted = check.snapshot.get(&Keys::null_version(bucket, name.as_str())).await?;
    let noted = noted.and_then(|sequence| parse_sequence(&sequence).ok());
    if noted != Some(stamp.sequence) {
        check.add(Kind::BrokenVersions, subject, "it cannot be found by its name");
    }
    Ok(())
}

async fn null_versions(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("null versions", b'v');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let named = Keys::parse_first_id(&key).and_then(|(bucket, _)| {
                Ok((
                    BucketId(bucket),
                    Keys::parse_object(&key)?.to_owned(),
                    parse_sequence(&value)?,
                ))
            });
            let Some((bucket, name, sequence)) = check.take(&key, named) else {
                continue;
            };
            let row: Option<VersionRow> = check.get(&Keys::version(bucket, &name, sequence)).await?;
            if row.is_none_or(|row| !row.stamp().is_null()) {
                let subject = check.object_name(bucket, &name);
                check.add(
                    Kind::BrokenVersions,
                    subject,
                    "its null version is not where it should be",
                );
            }
        }
    }
    Ok(())
}
