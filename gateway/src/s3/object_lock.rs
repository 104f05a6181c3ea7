//! Object lock of buckets, retention and legal holds of versions (S3 User Guide, "Using S3 Object Lock"). What they forbid
//! is forbidden by the store, in the transaction that would do it; here they are read and written.
//!
//! Whoever may write to a bucket may bypass governance mode there, by saying so in the header
//! `x-amz-bypass-governance-retention`.

use http::HeaderMap;
use lithos_storage::{
    DefaultRetention, Governance, LockMode, ObjectLock, ObjectRecord, Retention, RetentionPeriod, VersionLock,
    clock::Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::wire::{bucket_name, millis, object_key, refuse, store_error, timestamp, version_id};
use crate::app::App;

/// Longest default retention: 100 years, in days and in years.
const DAYS_MAX: u32 = 36_500;
const YEARS_MAX: u32 = 100;

pub(super) async fn put_object_lock_configuration(
    app: &App,
    request: S3Request<dto::PutObjectLockConfigurationInput>,
) -> S3Result<S3Response<dto::PutObjectLockConfigurationOutput>> {
    let input = request.input;
    let configuration = input.object_lock_configuration.unwrap_or_default();
    let enabled = configuration
        .object_lock_enabled
        .as_ref()
        .map(dto::ObjectLockEnabled::as_str);
    if enabled != Some(dto::ObjectLockEnabled::ENABLED) {
        return Err(malformed("ObjectLockEnabled is Enabled"));
    }
    let default = configuration.rule.map(|rule| parse_default(rule.default_retention));
    let object_lock = ObjectLock {
        default: default.transpose()?,
    };
    let set = app
        .store
        .set_object_lock(&bucket_name(&input.bucket)?, object_lock)
        .await;
    set.map_err(store_error)?;
    Ok(S3Response::new(dto::PutObjectLockConfigurationOutput::default()))
}

pub(super) async fn get_object_lock_configuration(
    app: &App,
    request: S3Request<dto::GetObjectLockConfigurationInput>,
) -> S3Result<S3Response<dto::GetObjectLockConfigurationOutput>> {
    let bucket = app.store.bucket(&bucket_name(&request.input.bucket)?).await;
    let Some(object_lock) = bucket.map_err(store_error)?.object_lock else {
        return Err(refuse(
            S3ErrorCode::ObjectLockConfigurationNotFoundError,
            "the bucket has no object lock",
        ));
    };
    let rule = object_lock.default.map(|default| {
        let (days, years) = match default.period {
            RetentionPeriod::Days(days) => (i32::try_from(days).ok(), None),
            RetentionPeriod::Years(years) => (None, i32::try_from(years).ok()),
        };
        dto::ObjectLockRule {
            default_retention: Some(dto::DefaultRetention {
                days,
                years,
                mode: Some(mode(default.mode)),
            }),
        }
    });
    Ok(S3Response::new(dto::GetObjectLockConfigurationOutput {
        object_lock_configuration: Some(dto::ObjectLockConfiguration {
            object_lock_enabled: Some(dto::ObjectLockEnabled::from_static(dto::ObjectLockEnabled::ENABLED)),
            rule,
        }),
    }))
}

pub(super) async fn put_object_retention(
    app: &App,
    request: S3Request<dto::PutObjectRetentionInput>,
) -> S3Result<S3Response<dto::PutObjectRetentionOutput>> {
    let input = request.input;
    let asked = input.retention.ok_or_else(|| malformed("there is no Retention"))?;
    let retention = match (asked.mode, asked.retain_until_date) {
        // An empty element takes it away.
        (None, None) => None,
        (Some(mode), Some(until)) => Some(Retention {
            mode: parse_mode(mode.as_str()).ok_or_else(|| malformed("the Mode is GOVERNANCE or COMPLIANCE"))?,
            until: future(app, &until)?,
        }),
        _ => return Err(malformed("a Retention has Mode and RetainUntilDate, or neither")),
    };
    let (bucket, key) = (bucket_name(&input.bucket)?, object_key(&input.key)?);
    let version = version_id(input.version_id.as_deref())?;
    let governance = governance(input.bypass_governance_retention);
    let set = app
        .store
        .set_retention(&bucket, &key, version, retention, governance)
        .await;
    set.map_err(store_error)?;
    Ok(S3Response::new(dto::PutObjectRetentionOutput::default()))
}

pub(super) async fn get_object_retention(
    app: &App,
    request: S3Request<dto::GetObjectRetentionInput>,
) -> S3Result<S3Response<dto::GetObjectRetentionOutput>> {
    let input = request.input;
    let lock = lock_of(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let retention = lock.retention.ok_or_else(no_lock)?;
    Ok(S3Response::new(dto::GetObjectRetentionOutput {
        retention: Some(dto::ObjectLockRetention {
            mode: Some(dto::ObjectLockRetentionMode::from_static(mode_name(retention.mode))),
            retain_until_date: Some(timestamp(retention.until)),
        }),
    }))
}

pub(super) async fn put_object_legal_hold(
    app: &App,
    request: S3Request<dto::PutObjectLegalHoldInput>,
) -> S3Result<S3Response<dto::PutObjectLegalHoldOutput>> {
    let input = request.input;
    let status = input.legal_hold.and_then(|hold| hold.status);
    let hold = status.and_then(|status| parse_hold(status.as_str()));
    let hold = hold.ok_or_else(|| malformed("the Status of a LegalHold is ON or OFF"))?;
    let (bucket, key) = (bucket_name(&input.bucket)?, object_key(&input.key)?);
    let version = version_id(input.version_id.as_deref())?;
    let set = app.store.set_legal_hold(&bucket, &key, version, hold).await;
    set.map_err(store_error)?;
    Ok(S3Response::new(dto::PutObjectLegalHoldOutput::default()))
}

pub(super) async fn get_object_legal_hold(
    app: &App,
    request: S3Request<dto::GetObjectLegalHoldInput>,
) -> S3Result<S3Response<dto::GetObjectLegalHoldOutput>> {
    let input = request.input;
    let lock = lock_of(app, &input.bucket, &input.key, input.version_id.as_deref()).await?;
    let hold = lock.legal_hold.ok_or_else(no_lock)?;
    Ok(S3Response::new(dto::GetObjectLegalHoldOutput {
        legal_hold: Some(dto::ObjectLockLegalHold {
            status: Some(dto::ObjectLockLegalHoldStatus::from_static(hold_name(hold))),
        }),
    }))
}

async fn lock_of(app: &App, bucket: &str, key: &str, version: Option<&str>) -> S3Result<VersionLock> {
    let (bucket, key) = (bucket_name(bucket)?, object_key(key)?);
    let version = version_id(version)?;
    let object = app
        .store
        .open_version(&bucket, &key, version)
        .await
        .map_err(store_error)?;
    if object.bucket.object_lock.is_none() {
        return Err(refuse(S3ErrorCode::InvalidRequest, "the bucket has no object lock"));
    }
    Ok(object.record.lock)
}

/// The lock that the headers of an upload ask for.
pub(super) fn asked(app: &App, headers: &HeaderMap) -> S3Result<VersionLock> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let invalid = |message: &str| refuse(S3ErrorCode::InvalidArgument, message);
    let retention = match (
        header("x-amz-object-lock-mode"),
        header("x-amz-object-lock-retain-until-date"),
    ) {
        (None, None) => None,
        (Some(mode), Some(until)) => {
            let until = dto::Timestamp::parse(dto::TimestampFormat::DateTime, until)
                .map_err(|_| invalid("x-amz-object-lock-retain-until-date is no time in the form of ISO 8601"))?;
            Some(Retention {
                mode: parse_mode(mode).ok_or_else(|| invalid("x-amz-object-lock-mode is GOVERNANCE or COMPLIANCE"))?,
                until: future(app, &until)?,
            })
        }
        _ => {
            return Err(invalid(
                "x-amz-object-lock-mode and x-amz-object-lock-retain-until-date come together",
            ));
        }
    };
    let legal_hold = header("x-amz-object-lock-legal-hold")
        .map(|status| parse_hold(status).ok_or_else(|| invalid("x-amz-object-lock-legal-hold is ON or OFF")));
    Ok(VersionLock {
        retention,
        legal_hold: legal_hold.transpose()?,
    })
}

/// Whether a request bypasses governance mode.
pub(super) fn governance(bypass: Option<bool>) -> Governance {
    match bypass {
        Some(true) => Governance::Bypassed,
        _ => Governance::Holds,
    }
}

/// What answers show of the lock of an object.
pub(super) struct Shown {
    pub(super) mode: Option<dto::ObjectLockMode>,
    pub(super) until: Option<dto::Timestamp>,
    pub(super) legal_hold: Option<dto::ObjectLockLegalHoldStatus>,
}

/// What of the lock of `record` answers show.
pub(super) fn shown(record: &ObjectRecord) -> Shown {
    let VersionLock { retention, legal_hold } = record.lock;
    Shown {
        mode: retention.map(|retention| dto::ObjectLockMode::from_static(mode_name(retention.mode))),
        until: retention.map(|retention| timestamp(retention.until)),
        legal_hold: legal_hold.map(|hold| dto::ObjectLockLegalHoldStatus::from_static(hold_name(hold))),
    }
}

fn parse_default(default: Option<dto::DefaultRetention>) -> S3Result<DefaultRetention> {
    let default = default.ok_or_else(|| malformed("a Rule has a DefaultRetention"))?;
    let mode = default.mode.and_then(|mode| parse_mode(mode.as_str()));
    let mode = mode.ok_or_else(|| malformed("the Mode is GOVERNANCE or COMPLIANCE"))?;
    let bounded = |count: i32, most: u32| {
        let count = u32::try_from(count).ok().filter(|count| (1..=most).contains(count));
        count.ok_or_else(|| {
            let mut error = refuse(
                S3ErrorCode::Custom("InvalidRetentionPeriod".into()),
                format!("a default retention is between 1 day and {YEARS_MAX} years"),
            );
            error.set_status_code(http::StatusCode::BAD_REQUEST);
            error
        })
    };
    let period = match (default.days, default.years) {
        (Some(days), None) => RetentionPeriod::Days(bounded(days, DAYS_MAX)?),
        (None, Some(years)) => RetentionPeriod::Years(bounded(years, YEARS_MAX)?),
        _ => return Err(malformed("a DefaultRetention has either Days or Years")),
    };
    Ok(DefaultRetention { mode, period })
}

fn future(app: &App, until: &dto::Timestamp) -> S3Result<Timestamp> {
    let until = millis(until).filter(|until| *until > app.store.now());
    until.ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "a retention must end in the future"))
}

fn parse_mode(mode: &str) -> Option<LockMode> {
    match mode {
        dto::ObjectLockRetentionMode::GOVERNANCE => Some(LockMode::Governance),
        dto::ObjectLockRetentionMode::COMPLIANCE => Some(LockMode::Compliance),
        _ => None,
    }
}

fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Governance => dto::ObjectLockRetentionMode::GOVERNANCE,
        LockMode::Compliance => dto::ObjectLockRetentionMode::COMPLIANCE,
    }
}

fn mode(mode: LockMode) -> dto::ObjectLockRetentionMode {
    dto::ObjectLockRetentionMode::from_static(mode_name(mode))
}

fn parse_hold(status: &str) -> Option<bool> {
    match status {
        dto::ObjectLockLegalHoldStatus::ON => Some(true),
        dto::ObjectLockLegalHoldStatus::OFF => Some(false),
        _ => None,
    }
}

fn hold_name(hold: bool) -> &'static str {
    if hold {
        dto::ObjectLockLegalHoldStatus::ON
    } else {
        dto::ObjectLockLegalHoldStatus::OFF
    }
}

fn no_lock() -> S3Error {
    refuse(
        S3ErrorCode::NoSuchObjectLockConfiguration,
        "the version has no such lock",
    )
}

fn malformed(message: &str) -> S3Error {
    refuse(S3ErrorCode::MalformedXML, message)
}
