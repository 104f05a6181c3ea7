//! Lifecycle configurations: checked as S3 does, kept, and given back. The server's upkeep carries them out
//! ([`crate::lifecycle`]).
//!
//! Differs: transitions to other storage classes are `NotImplemented`, because there is one kind of storage.

use std::collections::BTreeSet;

use lithos_storage::{
    BucketRecord, ObjectRecord,
    lifecycle::{Day, Expiration, FilterForm, LifecycleFilter, LifecycleRule, NoncurrentExpiration},
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto};

use super::wire::{bucket_name, http_date, millis, refuse, set_tags, store_error, tag_set, timestamp};
use crate::{app::App, auth::random_name};

/// Most rules of a bucket (S3 User Guide, "Setting a lifecycle configuration on a bucket").
const RULES_MAX: usize = 1000;
/// Longest id of a rule, in characters (S3 API Reference, "`LifecycleRule`").
const ID_CHARS_MAX: usize = 255;
/// Characters of the id of a rule that came without one.
const ID_CHARS: usize = 26;
/// Most newer versions that a rule may keep (S3 API Reference, "`NoncurrentVersionExpiration`").
const NEWER_KEPT_MAX: u32 = 100;
/// Most tags of a filter: more an object cannot have.
const FILTER_TAGS_MAX: usize = 10;

pub(super) async fn put_bucket_lifecycle_configuration(
    app: &App,
    request: S3Request<dto::PutBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<dto::PutBucketLifecycleConfigurationOutput>> {
    let input = request.input;
    let configuration = input
        .lifecycle_configuration
        .ok_or_else(|| malformed("there is no configuration"))?;
    let rules = parse(configuration.rules)?;
    let set = app.store.set_lifecycle(&bucket_name(&input.bucket)?, Some(rules)).await;
    set.map_err(store_error)?;
    Ok(S3Response::new(dto::PutBucketLifecycleConfigurationOutput::default()))
}

pub(super) async fn get_bucket_lifecycle_configuration(
    app: &App,
    request: S3Request<dto::GetBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<dto::GetBucketLifecycleConfigurationOutput>> {
    let bucket = bucket_name(&request.input.bucket)?;
    let record = app.store.lifecycle(&bucket).await.map_err(store_error)?;
    let Some(record) = record else {
        return Err(refuse(
            S3ErrorCode::NoSuchLifecycleConfiguration,
            "the bucket has no lifecycle configuration",
        ));
    };
    Ok(S3Response::new(dto::GetBucketLifecycleConfigurationOutput {
        rules: Some(record.rules.into_iter().map(rendered).collect()),
        ..Default::default()
    }))
}

pub(super) async fn delete_bucket_lifecycle(
    app: &App,
    request: S3Request<dto::DeleteBucketLifecycleInput>,
) -> S3Result<S3Response<dto::DeleteBucketLifecycleOutput>> {
    let bucket = bucket_name(&request.input.bucket)?;
    app.store.set_lifecycle(&bucket, None).await.map_err(store_error)?;
    Ok(S3Response::new(dto::DeleteBucketLifecycleOutput {}))
}

/// The header `x-amz-expiration` of an object that is current: when it expires, and by which rule.
pub(super) async fn expiration(
    app: &App,
    bucket: &BucketRecord,
    key: &str,
    record: &ObjectRecord,
) -> S3Result<Option<String>> {
    let Some(lifecycle) = app.store.lifecycle_of(bucket).await.map_err(store_error)? else {
        return Ok(None);
    };
    let day = app.config.day();
    let expires = lifecycle.expires(day, key, &record.tags, record.size(), record.last_modified);
    Ok(expires.map(|(due, rule)| {
        let id = percent_encoding::utf8_percent_encode(&rule.id, super::wire::UNENCODED);
        format!("expiry-date=\"{}\", rule-id=\"{id}\"", http_date(&timestamp(due)))
    }))
}

fn parse(rules: Vec<dto::LifecycleRule>) -> S3Result<Vec<LifecycleRule>> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(malformed(format!("a configuration has 1 to {RULES_MAX} rules")));
    }
    let parsed = rules.into_iter().map(parse_rule);
    let parsed = parsed.collect::<S3Result<Vec<_>>>()?;
    let ids: BTreeSet<&str> = parsed.iter().map(|rule| rule.id.as_str()).collect();
    if ids.len() < parsed.len() {
        return Err(invalid("two rules have the same id"));
    }
    Ok(parsed)
}

fn parse_rule(rule: dto::LifecycleRule) -> S3Result<LifecycleRule> {
    if rule.transitions.is_some_and(|list| !list.is_empty())
        || rule.noncurrent_version_transitions.is_some_and(|list| !list.is_empty())
    {
        return Err(refuse(
            S3ErrorCode::NotImplemented,
            "there is one kind of storage here: rules with transitions to other storage classes are not carried out",
        ));
    }
    let id = match rule.id {
        Some(id) if id.chars().count() > ID_CHARS_MAX => {
            return Err(invalid(format!(
                "the id of a rule has at most {ID_CHARS_MAX} characters"
            )));
        }
        Some(id) if !id.is_empty() => id,
        _ => random_name(ID_CHARS).map_err(|error| refuse(S3ErrorCode::InternalError, error.to_string()))?,
    };
    let enabled = match rule.status.as_str() {
        dto::ExpirationStatus::ENABLED => true,
        dto::ExpirationStatus::DISABLED => false,
        _ => return Err(malformed("the status of a rule is Enabled or Disabled")),
    };
    let filter = parse_filter(rule.prefix, rule.filter)?;
    let expiration = rule
        .expiration
        .map(|expiration| parse_expiration(&expiration))
        .transpose()?;
    let noncurrent = rule
        .noncurrent_version_expiration
        .map(|noncurrent| parse_noncurrent(&noncurrent));
    let abort = rule.abort_incomplete_multipart_upload;
    let abort = abort.map(|abort| match abort.days_after_initiation {
        None => Err(malformed("AbortIncompleteMultipartUpload has DaysAfterInitiation")),
        Some(count) => days("DaysAfterInitiation", count),
    });
    let rule = LifecycleRule {
        id,
        enabled,
        filter,
        expiration,
        noncurrent: noncurrent.transpose()?,
        abort_uploads_after_days: abort.transpose()?,
    };
    check_actions(&rule)?;
    Ok(rule)
}

/// What a rule may do depends on its filter (S3 User Guide, "Lifecycle configuration elements").
fn check_actions(rule: &LifecycleRule) -> S3Result<()> {
    let wrong = |message: &str| Err(refuse(S3ErrorCode::InvalidRequest, message));
    if rule.expiration.is_none() && rule.noncurrent.is_none() && rule.abort_uploads_after_days.is_none() {
        return wrong("a rule has at least one action");
    }
    let has_tags = !rule.filter.tags.is_empty();
    let has_size = rule.filter.larger_than.is_some() || rule.filter.smaller_than.is_some();
    if rule.abort_uploads_after_days.is_some() && (has_tags || has_size) {
        return wrong("AbortIncompleteMultipartUpload cannot be with tags or sizes: uploads in progress have none");
    }
    if rule.expiration == Some(Expiration::Markers) && (has_tags || has_size) {
        return wrong("ExpiredObjectDeleteMarker cannot be with tags or sizes: delete markers have none");
    }
    Ok(())
}

fn parse_filter(prefix: Option<String>, filter: Option<dto::LifecycleRuleFilter>) -> S3Result<LifecycleFilter> {
    let parsed = match (prefix, filter) {
        (Some(prefix), None) => LifecycleFilter {
            form: FilterForm::Prefix,
            prefix: Some(prefix),
            ..LifecycleFilter::default()
        },
        (None, Some(filter)) => parse_filter_element(filter)?,
        (None, None) => return Err(malformed("a rule has a Filter, or the older Prefix")),
        (Some(_), Some(_)) => return Err(malformed("a rule has a Filter or the older Prefix, not both")),
    };
    if let (Some(larger), Some(smaller)) = (parsed.larger_than, parsed.smaller_than)
        && larger >= smaller
    {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "ObjectSizeGreaterThan must be less than ObjectSizeLessThan",
        ));
    }
    Ok(parsed)
}

fn parse_filter_element(filter: dto::LifecycleRuleFilter) -> S3Result<LifecycleFilter> {
    let single = [
        filter.prefix.is_some(),
        filter.tag.is_some(),
        filter.object_size_greater_than.is_some(),
        filter.object_size_less_than.is_some(),
    ];
    let singles = single.iter().filter(|is_there| **is_there).count();
    if singles + usize::from(filter.and.is_some()) > 1 {
        return Err(malformed("a Filter has one condition, or several in And"));
    }
    let Some(and) = filter.and else {
        return Ok(LifecycleFilter {
            form: FilterForm::Filter,
            prefix: filter.prefix,
            tags: set_tags(filter.tag.into_iter().collect(), FILTER_TAGS_MAX)?,
            larger_than: filter.object_size_greater_than.map(size).transpose()?,
            smaller_than: filter.object_size_less_than.map(size).transpose()?,
        });
    };
    Ok(LifecycleFilter {
        form: FilterForm::And,
        prefix: and.prefix,
        tags: set_tags(and.tags.unwrap_or_default(), FILTER_TAGS_MAX)?,
        larger_than: and.object_size_greater_than.map(size).transpose()?,
        smaller_than: and.object_size_less_than.map(size).transpose()?,
    })
}

fn parse_expiration(expiration: &dto::LifecycleExpiration) -> S3Result<Expiration> {
    let markers = expiration.expired_object_delete_marker;
    match (expiration.days, &expiration.date, markers) {
        (Some(count), None, None) => Ok(Expiration::Days(days("Days", count)?)),
        (None, Some(date), None) => {
            let date = millis(date).ok_or_else(|| invalid("the Date of an expiration is before 1970"))?;
            if Day::default().midnight_before(date) != date {
                return Err(invalid("the Date of an expiration must be at midnight GMT"));
            }
            Ok(Expiration::Date(date))
        }
        (None, None, Some(true)) => Ok(Expiration::Markers),
        _ => Err(malformed(
            "an Expiration has one of Days, Date and ExpiredObjectDeleteMarker, which is then true",
        )),
    }
}

fn parse_noncurrent(noncurrent: &dto::NoncurrentVersionExpiration) -> S3Result<NoncurrentExpiration> {
    let Some(count) = noncurrent.noncurrent_days else {
        return Err(malformed("NoncurrentVersionExpiration has NoncurrentDays"));
    };
    let newer_kept = noncurrent.newer_noncurrent_versions.map(|kept| {
        let kept = u32::try_from(kept)
            .ok()
            .filter(|kept| (1..=NEWER_KEPT_MAX).contains(kept));
        kept.ok_or_else(|| invalid(format!("NewerNoncurrentVersions is between 1 and {NEWER_KEPT_MAX}")))
    });
    Ok(NoncurrentExpiration {
        days: days("NoncurrentDays", count)?,
        newer_kept: newer_kept.transpose()?,
    })
}

fn days(name: &str, count: i32) -> S3Result<u32> {
    let count = u32::try_from(count).ok().filter(|count| *count > 0);
    count.ok_or_else(|| invalid(format!("{name} must be a positive number")))
}

fn size(bytes: i64) -> S3Result<u64> {
    u64::try_from(bytes).map_err(|_| invalid("a size is not negative"))
}

/// The rule as it was given.
fn rendered(rule: LifecycleRule) -> dto::LifecycleRule {
    let mut filter = rule.filter;
    let prefix = (filter.form == FilterForm::Prefix).then(|| filter.prefix.take().unwrap_or_default());
    let status = if rule.enabled {
        dto::ExpirationStatus::ENABLED
    } else {
        dto::ExpirationStatus::DISABLED
    };
    dto::LifecycleRule {
        id: Some(rule.id),
        status: dto::ExpirationStatus::from_static(status),
        filter: prefix.is_none().then(|| rendered_filter(filter)),
        prefix,
        expiration: rule.expiration.map(rendered_expiration),
        noncurrent_version_expiration: rule.noncurrent.map(|noncurrent| dto::NoncurrentVersionExpiration {
            noncurrent_days: Some(count(noncurrent.days)),
            newer_noncurrent_versions: noncurrent.newer_kept.map(count),
        }),
        abort_incomplete_multipart_upload: rule.abort_uploads_after_days.map(|days| {
            dto::AbortIncompleteMultipartUpload {
                days_after_initiation: Some(count(days)),
            }
        }),
        noncurrent_version_transitions: None,
        transitions: None,
    }
}

fn rendered_filter(filter: LifecycleFilter) -> dto::LifecycleRuleFilter {
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    let (larger, smaller) = (filter.larger_than.map(bytes), filter.smaller_than.map(bytes));
    if filter.form == FilterForm::And {
        let and = dto::LifecycleRuleAndOperator {
            object_size_greater_than: larger,
            object_size_less_than: smaller,
            prefix: filter.prefix,
            tags: (!filter.tags.is_empty()).then(|| tag_set(&filter.tags)),
        };
        return dto::LifecycleRuleFilter {
            and: Some(and),
            ..Default::default()
        };
    }
    dto::LifecycleRuleFilter {
        object_size_greater_than: larger,
        object_size_less_than: smaller,
        prefix: filter.prefix,
        tag: tag_set(&filter.tags).pop(),
        ..Default::default()
    }
}

fn rendered_expiration(expiration: Expiration) -> dto::LifecycleExpiration {
    let mut rendered = dto::LifecycleExpiration::default();
    match expiration {
        Expiration::Days(days) => rendered.days = Some(count(days)),
        Expiration::Date(date) => {
            rendered.date = Some(timestamp(date));
        }
        Expiration::Markers => rendered.expired_object_delete_marker = Some(true),
    }
    rendered
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn malformed(message: impl Into<String>) -> S3Error {
    refuse(S3ErrorCode::MalformedXML, message)
}

fn invalid(message: impl Into<String>) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, message)
}
