//! Conditional requests: RFC 9110 section 13, and what S3 makes of it for writes and copies.

use lithos_storage::{ObjectRecord, WriteCondition};
use s3s::{
    S3ErrorCode, S3Result,
    dto::{ETagCondition, Timestamp},
};

use super::wire::{refuse, timestamp};

/// The conditions of a read, in the order in which they are looked at.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "they are the names of the headers")]
pub(super) struct ReadConditions {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_unmodified_since: Option<Timestamp>,
    pub(super) if_none_match: Option<ETagCondition>,
    pub(super) if_modified_since: Option<Timestamp>,
}

/// What to answer where the content need not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmet {
    /// For reads: 304.
    NotModified,
    /// For copies: 412.
    PreconditionFailed,
}

impl ReadConditions {
    /// Checks them against an object (RFC 9110 section 13.2.2).
    pub(super) fn check(&self, record: &ObjectRecord, unmet: Unmet) -> S3Result<()> {
        let failed = |message: &str| Err(refuse(S3ErrorCode::PreconditionFailed, message));
        // Dates of HTTP have no fractions of a second.
        let modified = record.last_modified.0 / 1000 * 1000;
        let modified = timestamp(lithos_storage::clock::Timestamp(modified));
        if let Some(condition) = &self.if_match {
            if !matches(condition, &record.etag) {
                return failed("the object does not have this ETag");
            }
        } else if self.if_unmodified_since.as_ref().is_some_and(|since| modified > *since) {
            return failed("the object was modified since");
        }
        let unchanged = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => matches(condition, &record.etag),
            (None, Some(since)) => modified <= *since,
            (None, None) => false,
        };
        match unmet {
            _ if !unchanged => Ok(()),
            Unmet::NotModified => Err(refuse(S3ErrorCode::NotModified, "the object has not changed")),
            Unmet::PreconditionFailed => failed("the source has not changed"),
        }
    }
}

/// The condition of a write.
pub(super) fn write_condition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> S3Result<WriteCondition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(WriteCondition::Always),
        (None, Some(ETagCondition::Any)) => Ok(WriteCondition::Absent),
        (Some(ETagCondition::ETag(etag)), None) => Ok(WriteCondition::ETagIs(etag.value().to_owned())),
        _ => Err(refuse(
            S3ErrorCode::NotImplemented,
            "a write can be conditional on If-Match with an ETag or If-None-Match: *",
        )),
    }
}

fn matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(wanted) => wanted.value() == etag,
    }
}
