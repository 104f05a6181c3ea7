//! Conditional requests: RFC 9110, "Conditional Requests", and what S3 makes of it for writes, deletes and copies.
//!
//! `ETag`s are read from the headers themselves: the library knows one `ETag` in a header, HTTP knows lists of them.

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, ETAG, LAST_MODIFIED},
};
use lithos_storage::{DeleteCondition, Error, ErrorKind, ObjectRecord, WriteCondition};
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    dto::{self, Timestamp},
};

use super::wire::{http_date, refuse, store_error, timestamp};

/// The `ETag`s of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ETags {
    /// `*`
    Any,
    /// These, without quotes and without a sign of weakness: S3 gives strong ones only.
    These(Vec<String>),
}

impl ETags {
    /// What the header `name` lists; `None` if it is missing or empty.
    pub(super) fn of(headers: &HeaderMap, name: &str) -> Option<Self> {
        let text = headers.get(name)?.to_str().ok()?.trim();
        (!text.is_empty()).then(|| Self::parse(text))
    }

    /// A list with quotes, as HTTP has it, or words without quotes, as clients send them.
    fn parse(text: &str) -> Self {
        if text == "*" {
            return Self::Any;
        }
        let mut etags = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            let bare = rest.strip_prefix("W/").unwrap_or(rest);
            let (etag, behind) = match bare.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => bare.find(',').map_or((bare, ""), |at| bare.split_at(at)),
            };
            if !etag.trim().is_empty() {
                etags.push(etag.trim().to_owned());
            }
            rest = behind;
        }
        Self::These(etags)
    }

    fn hold(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(etags) => etags.iter().any(|wanted| wanted == etag),
        }
    }
}

/// The conditions of a read, in the order in which they are looked at.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "they are the names of the headers")]
pub(super) struct ReadConditions {
    pub(super) if_match: Option<ETags>,
    pub(super) if_unmodified_since: Option<Timestamp>,
    pub(super) if_none_match: Option<ETags>,
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
    /// Checks them against an object (RFC 9110, "Precedence of Preconditions").
    pub(super) fn check(&self, record: &ObjectRecord, unmet: Unmet) -> S3Result<()> {
        let failed = |message: &str| Err(refuse(S3ErrorCode::PreconditionFailed, message));
        // Dates of HTTP have no fractions of a second.
        let modified = record.last_modified.0 / 1000 * 1000;
        let modified = timestamp(lithos_storage::clock::Timestamp(modified));
        if let Some(condition) = &self.if_match {
            if !condition.hold(&record.etag) {
                return failed("the object does not have this ETag");
            }
        } else if self.if_unmodified_since.as_ref().is_some_and(|since| modified > *since) {
            return failed("the object was modified since");
        }
        let unchanged = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => condition.hold(&record.etag),
            (None, Some(since)) => modified <= *since,
            (None, None) => false,
        };
        match unmet {
            _ if !unchanged => Ok(()),
            Unmet::NotModified => Err(not_modified(record)),
            Unmet::PreconditionFailed => failed("the source has not changed"),
        }
    }
}

/// 304, with the headers that RFC 9110 wants in it ("304 Not Modified").
fn not_modified(record: &ObjectRecord) -> S3Error {
    let mut error = refuse(S3ErrorCode::NotModified, "the object has not changed");
    let mut headers = HeaderMap::new();
    let values = [
        (ETAG, Some(format!("\"{}\"", record.etag))),
        (LAST_MODIFIED, Some(http_date(&timestamp(record.last_modified)))),
        (CACHE_CONTROL, record.headers.cache_control.clone()),
    ];
    for (name, value) in values {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    error.set_headers(headers);
    error
}

/// The condition of a write.
///
/// Differs: S3 takes nothing but `*` in `If-None-Match` of a write; here it means what HTTP says.
pub(super) fn write_condition(headers: &HeaderMap) -> S3Result<WriteCondition> {
    let conditions = (ETags::of(headers, "if-match"), ETags::of(headers, "if-none-match"));
    match conditions {
        (None, None) => Ok(WriteCondition::Always),
        (Some(ETags::Any), None) => Ok(WriteCondition::Present),
        (Some(ETags::These(etags)), None) => Ok(WriteCondition::ETagIn(etags)),
        (None, Some(ETags::Any)) => Ok(WriteCondition::Absent),
        (None, Some(ETags::These(etags))) => Ok(WriteCondition::ETagNotIn(etags)),
        (Some(_), Some(_)) => Err(refuse(
            S3ErrorCode::NotImplemented,
            "a write can be conditional on If-Match or on If-None-Match, not on both",
        )),
    }
}

/// An error of a write that had a condition, if `conditional`: one that lost against other writes all the time is told so
/// in S3's words for it, to be tried again.
pub(super) fn write_error(conditional: bool) -> impl FnOnce(Error) -> S3Error {
    move |error| {
        if !conditional || error.kind() != ErrorKind::Contended {
            return store_error(error);
        }
        let mut conflict = refuse(
            S3ErrorCode::Custom("ConditionalRequestConflict".into()),
            "other requests write this object at the same time; try again",
        );
        conflict.set_status_code(StatusCode::CONFLICT);
        conflict
    }
}

/// The condition of a delete.
pub(super) fn delete_condition(
    etags: Option<ETags>,
    last_modified: Option<Timestamp>,
    size: Option<i64>,
) -> S3Result<DeleteCondition> {
    let size = size
        .map(|size| u64::try_from(size).map_err(|_| refuse(S3ErrorCode::InvalidArgument, "a size is not negative")))
        .transpose()?;
    let (present, etags) = match etags {
        None => (false, None),
        Some(ETags::Any) => (true, None),
        Some(ETags::These(etags)) => (false, Some(etags)),
    };
    Ok(DeleteCondition {
        present,
        etags,
        last_modified_secs: last_modified.map(|time| seconds(&time)),
        size,
    })
}

/// The `ETag` in a document as a condition.
pub(super) fn named_etag(etag: &dto::ETag) -> ETags {
    if etag.value() == "*" {
        ETags::Any
    } else {
        ETags::These(vec![etag.value().to_owned()])
    }
}

/// Whole seconds since 1970; 0 before that, when there were no objects.
fn seconds(time: &Timestamp) -> u64 {
    let mut text = Vec::new();
    let _ = time.format(dto::TimestampFormat::EpochSeconds, &mut text);
    let text = String::from_utf8(text).unwrap_or_default();
    let whole = text.split('.').next().unwrap_or_default();
    whole.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_etags_are_read_as_clients_write_them() {
        let these = |etags: &[&str]| ETags::These(etags.iter().map(|etag| (*etag).to_owned()).collect());
        for (text, etags) in [
            ("*", ETags::Any),
            ("\"a\"", these(&["a"])),
            ("W/\"a\"", these(&["a"])),
            ("a-2", these(&["a-2"])),
            ("\"a\", W/\"b,c\" ,\"d\"", these(&["a", "b,c", "d"])),
            ("a, b", these(&["a", "b"])),
            ("\"open", these(&["open"])),
            ("\"\"", these(&[])),
            (", ,", these(&[])),
        ] {
            assert_eq!(ETags::parse(text), etags, "{text}");
        }
    }

    #[test]
    fn seconds_are_whole() {
        let time = Timestamp::parse(dto::TimestampFormat::DateTime, "2033-05-18T03:33:20.999Z").unwrap();
        assert_eq!(seconds(&time), 2_000_000_000);
    }
}
