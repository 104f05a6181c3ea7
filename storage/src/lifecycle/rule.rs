//! Lifecycle rules, and when they are due (S3 User Guide, "Managing the lifecycle of objects").
//!
//! Whatever a rule counts from, it is due at the first midnight (UTC) that is at least so many days later. How long a day
//! is, is passed in: tests have short ones, which then begin at multiples of that length since 1970.

use minicbor::{Decode, Encode};

use crate::{clock::Timestamp, schema::Tags};

/// The rules of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LifecycleRecord {
    /// The rules, in the order in which they were given.
    #[n(0)]
    pub rules: Vec<LifecycleRule>,
    /// When they were set.
    #[n(1)]
    pub set: Timestamp,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct LifecycleRule {
    /// Its name, unique in its bucket.
    #[n(0)]
    pub id: String,
    /// Whether it is carried out.
    #[n(1)]
    pub enabled: bool,
    /// What it applies to.
    #[n(2)]
    pub filter: LifecycleFilter,
    /// When current versions expire.
    #[n(3)]
    pub expiration: Option<Expiration>,
    /// When other versions expire.
    #[n(4)]
    pub noncurrent: Option<NoncurrentExpiration>,
    /// After how many days an upload that was not completed is aborted.
    #[n(5)]
    pub abort_uploads_after_days: Option<u32>,
}

/// What a rule applies to: everything that has all of this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct LifecycleFilter {
    /// How it was written, to be written so again.
    #[n(0)]
    pub form: FilterForm,
    /// What the key begins with.
    #[n(1)]
    pub prefix: Option<String>,
    /// Tags of the object.
    #[n(2)]
    pub tags: Tags,
    /// The object is larger than this, in bytes.
    #[n(3)]
    pub larger_than: Option<u64>,
    /// The object is smaller than this, in bytes.
    #[n(4)]
    pub smaller_than: Option<u64>,
}

/// The forms of a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum FilterForm {
    /// `Filter` with one condition, or none.
    #[default]
    #[n(0)]
    Filter,
    /// `Filter` with several conditions in `And`.
    #[n(1)]
    And,
    /// `Prefix` in the rule itself, the form before there were filters.
    #[n(2)]
    Prefix,
}

/// When the current version of an object expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Expiration {
    /// So many days after it was written.
    #[n(0)]
    Days(#[n(0)] u32),
    /// From this midnight on.
    #[n(1)]
    Date(#[n(0)] Timestamp),
    /// Never; but a delete marker with nothing behind it goes.
    #[n(2)]
    Markers,
}

/// When a version expires that is not current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct NoncurrentExpiration {
    /// So many days after it ceased to be current.
    #[n(0)]
    pub days: u32,
    /// So many of the newest ones stay, whatever their age.
    #[n(1)]
    pub newer_kept: Option<u32>,
}

/// The length of a day, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day(u64);

impl Default for Day {
    fn default() -> Self {
        Self(24 * 60 * 60 * 1000)
    }
}

impl Day {
    /// A day of `millis`, at least 1.
    pub fn of_millis(millis: u64) -> Self {
        Self(millis.max(1))
    }

    /// The first midnight after `days` days from `since`.
    pub fn after(self, since: Timestamp, days: u32) -> Timestamp {
        let later = since.0.saturating_add(self.0.saturating_mul(days.into()));
        self.midnight_after(Timestamp(later))
    }

    /// The first midnight after `time`.
    pub fn midnight_after(self, time: Timestamp) -> Timestamp {
        Timestamp((time.0 / self.0).saturating_add(1).saturating_mul(self.0))
    }

    /// The last midnight at or before `time`.
    pub fn midnight_before(self, time: Timestamp) -> Timestamp {
        Timestamp(time.0 / self.0 * self.0)
    }
}

impl LifecycleFilter {
    /// Whether it lets an object through.
    pub fn matches(&self, key: &str, tags: &Tags, size: u64) -> bool {
        self.matches_key(key)
            && self.tags.iter().all(|(name, value)| tags.get(name) == Some(value))
            && self.larger_than.is_none_or(|bound| size > bound)
            && self.smaller_than.is_none_or(|bound| size < bound)
    }

    /// Whether it lets through what is not an object, and has nothing but a key: a delete marker, an upload.
    pub fn matches_bare(&self, key: &str) -> bool {
        self.matches_key(key) && self.tags.is_empty() && self.larger_than.is_none() && self.smaller_than.is_none()
    }

    fn matches_key(&self, key: &str) -> bool {
        self.prefix.as_deref().is_none_or(|prefix| key.starts_with(prefix))
    }
}

impl LifecycleRule {
    /// When the current version of an object expires by this rule; `None` if it does not. It was written at `written`.
    pub fn current_due(&self, day: Day, key: &str, tags: &Tags, size: u64, written: Timestamp) -> Option<Timestamp> {
        let due = match self.expiration? {
            Expiration::Days(days) => day.after(written, days),
            Expiration::Date(date) => date,
            Expiration::Markers => return None,
        };
        (self.enabled && self.filter.matches(key, tags, size)).then_some(due)
    }

    /// When a version expires by this rule that is noncurrent since `since`, and has `newer` noncurrent versions of its key
    /// before it.
    pub fn noncurrent_due(
        &self,
        day: Day,
        key: &str,
        tags: &Tags,
        size: u64,
        since: Timestamp,
        newer: u32,
    ) -> Option<Timestamp> {
        let noncurrent = self.noncurrent?;
        let is_kept = noncurrent.newer_kept.is_some_and(|kept| newer < kept);
        (self.enabled && !is_kept && self.filter.matches(key, tags, size)).then(|| day.after(since, noncurrent.days))
    }

    /// When a delete marker goes that was made at `made`, once nothing is behind it.
    pub fn marker_due(&self, day: Day, key: &str, made: Timestamp) -> Option<Timestamp> {
        let due = match self.expiration? {
            Expiration::Markers => made,
            Expiration::Days(days) => day.after(made, days),
            Expiration::Date(date) => date,
        };
        (self.enabled && self.filter.matches_bare(key)).then_some(due)
    }

    /// When an upload is aborted that was begun at `begun`.
    pub fn upload_due(&self, day: Day, key: &str, begun: Timestamp) -> Option<Timestamp> {
        let days = self.abort_uploads_after_days?;
        (self.enabled && self.filter.matches_bare(key)).then(|| day.after(begun, days))
    }
}

impl LifecycleRecord {
    /// When the current version of an object expires, and by which rule: the one that is due first.
    pub fn expires(
        &self,
        day: Day,
        key: &str,
        tags: &Tags,
        size: u64,
        written: Timestamp,
    ) -> Option<(Timestamp, &LifecycleRule)> {
        let due = self
            .rules
            .iter()
            .filter_map(|rule| Some((rule.current_due(day, key, tags, size, written)?, rule)));
        due.min_by_key(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * 60 * 1000;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn rule(expiration: Expiration) -> LifecycleRule {
        LifecycleRule {
            enabled: true,
            expiration: Some(expiration),
            ..LifecycleRule::default()
        }
    }

    /// The example of the S3 User Guide, "Lifecycle configuration elements": created at 10:30 of the 15th, 3 days, gone at
    /// the midnight that begins the 19th.
    #[test]
    fn rules_are_due_at_the_midnight_after() {
        let day = Day::default();
        let at = |days: u64, hours: u64| Timestamp((days * 24 + hours) * HOUR);
        assert_eq!(day.after(at(15, 10), 3), at(19, 0));
        assert_eq!(day.after(at(15, 0), 1), at(17, 0));
        assert_eq!(day.after(at(15, 23), 0), at(16, 0));
        assert_eq!(day.midnight_before(at(15, 23)), at(15, 0));
        assert_eq!(Day::of_millis(10).after(Timestamp(15), 2), Timestamp(40));
        assert_eq!(
            day.after(Timestamp(u64::MAX), u32::MAX).0 % (24 * HOUR),
            u64::MAX % (24 * HOUR)
        );
    }

    #[test]
    fn filters_want_everything_they_name() {
        let filter = LifecycleFilter {
            prefix: Some("a/".to_owned()),
            tags: tags(&[("x", "1"), ("y", "2")]),
            larger_than: Some(10),
            smaller_than: Some(20),
            ..LifecycleFilter::default()
        };
        let both = tags(&[("x", "1"), ("y", "2"), ("z", "3")]);
        for (key, tags, size, expected) in [
            ("a/b", &both, 15, true),
            ("a/", &both, 11, true),
            ("a", &both, 15, false),
            ("a/b", &tags(&[("x", "1")]), 15, false),
            ("a/b", &tags(&[("x", "1"), ("y", "3")]), 15, false),
            ("a/b", &both, 10, false),
            ("a/b", &both, 20, false),
        ] {
            assert_eq!(filter.matches(key, tags, size), expected, "{key} {tags:?} {size}");
        }
        assert!(!filter.matches_bare("a/b"));
        assert!(LifecycleFilter::default().matches("", &Tags::new(), 0));
    }

    #[test]
    fn the_rule_that_is_due_first_counts() {
        let mut record = LifecycleRecord {
            rules: vec![
                rule(Expiration::Days(3)),
                rule(Expiration::Days(2)),
                rule(Expiration::Markers),
            ],
            set: Timestamp(0),
        };
        let day = Day::of_millis(10);
        let due = |record: &LifecycleRecord| {
            record
                .expires(day, "k", &Tags::new(), 0, Timestamp(5))
                .map(|(due, _)| due)
        };
        assert_eq!(due(&record), Some(Timestamp(30)));
        record.rules[1].enabled = false;
        assert_eq!(due(&record), Some(Timestamp(40)));
        record.rules[0].filter.prefix = Some("other".to_owned());
        assert_eq!(due(&record), None);
    }

    #[test]
    fn the_newest_noncurrent_versions_stay() {
        let rule = LifecycleRule {
            enabled: true,
            noncurrent: Some(NoncurrentExpiration {
                days: 1,
                newer_kept: Some(2),
            }),
            ..LifecycleRule::default()
        };
        let day = Day::of_millis(10);
        let due = |newer| rule.noncurrent_due(day, "k", &Tags::new(), 0, Timestamp(5), newer);
        assert_eq!((due(0), due(1), due(2)), (None, None, Some(Timestamp(20))));
        assert_eq!(rule.current_due(day, "k", &Tags::new(), 0, Timestamp(0)), None);
    }

    #[test]
    fn markers_go_at_once_or_when_they_are_old() {
        let day = Day::of_millis(10);
        let due = |expiration| rule(expiration).marker_due(day, "k", Timestamp(5));
        assert_eq!(due(Expiration::Markers), Some(Timestamp(5)));
        assert_eq!(due(Expiration::Days(1)), Some(Timestamp(20)));
        let mut tagged = rule(Expiration::Days(1));
        tagged.filter.tags = tags(&[("x", "1")]);
        assert_eq!(tagged.marker_due(day, "k", Timestamp(5)), None);
    }
}
