//! Object lock, as buckets and versions have it.

use minicbor::{Decode, Encode};

use crate::clock::Timestamp;

/// A day, in milliseconds.
const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;
/// Days of a year, as S3 counts them.
const YEAR_DAYS: u64 = 365;

/// How strictly a retention holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum LockMode {
    /// Who is allowed to may bypass it.
    #[n(0)]
    Governance,
    /// Nobody may.
    #[n(1)]
    Compliance,
}

/// Until when a version is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Retention {
    /// How strictly.
    #[n(0)]
    pub mode: LockMode,
    /// It ends at this moment.
    #[n(1)]
    pub until: Timestamp,
}

/// What protects a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct VersionLock {
    /// Its retention, which may have ended.
    #[n(0)]
    pub retention: Option<Retention>,
    /// Whether it is under a legal hold; `None` if nobody ever said.
    #[n(1)]
    pub legal_hold: Option<bool>,
}

/// How long versions are kept that come without a retention of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct DefaultRetention {
    /// How strictly.
    #[n(0)]
    pub mode: LockMode,
    /// How long.
    #[n(1)]
    pub period: RetentionPeriod,
}

/// How long something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RetentionPeriod {
    /// In days.
    #[n(0)]
    Days(#[n(0)] u32),
    /// In years of 365 days.
    #[n(1)]
    Years(#[n(0)] u32),
}

/// The object lock of a bucket that has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct ObjectLock {
    /// For versions that come without a retention of their own.
    #[n(0)]
    pub default: Option<DefaultRetention>,
}

impl DefaultRetention {
    /// The retention of a version that is written at `now`.
    pub(crate) fn from(self, now: Timestamp) -> Retention {
        let days = match self.period {
            RetentionPeriod::Days(days) => u64::from(days),
            RetentionPeriod::Years(years) => u64::from(years).saturating_mul(YEAR_DAYS),
        };
        Retention {
            mode: self.mode,
            until: now.plus_millis(days.saturating_mul(DAY_MILLIS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_count_from_now() {
        let until = |period| {
            let default = DefaultRetention {
                mode: LockMode::Governance,
                period,
            };
            default.from(Timestamp(7)).until.0
        };
        assert_eq!(until(RetentionPeriod::Days(2)), 7 + 2 * DAY_MILLIS);
        assert_eq!(until(RetentionPeriod::Years(1)), 7 + 365 * DAY_MILLIS);
        assert!(until(RetentionPeriod::Years(u32::MAX)) > 7);
    }
}
