//! How file descriptors are shared out.
//!
//! A server that runs out of descriptors cannot accept, open a blob or write its index. So the limit is raised as far as
//! the system lets us, and then divided before anything is opened:
//!
//! | for | of a large limit | of a small one |
//! | --- | --- | --- |
//! | the index, blobs kept open, logs, peers, the rest | [`FIXED`] | five eighths |
//! | requests under way | two each: the blob that is written and the one being sealed, or the one that is read | half of what is left |
//! | connections of the management address | [`MANAGEMENT_MAX`] | a quarter of what is left then |
//! | connections of the transfer address | [`TRANSFER_MAX`] | the rest |
//!
//! What does not fit is cut, and the log says so.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Bounds;

/// Tables of the index that RocksDB keeps open, as `storage` sets it.
const INDEX_FILES: u64 = 256;
/// Blobs that are kept open.
const OPEN_BLOBS: u64 = 256;
/// The write-ahead log, locks, listeners, the runtime, connections to peers and import sources.
const SLACK: u64 = 128;
/// All that is not a client's.
const FIXED: u64 = INDEX_FILES + OPEN_BLOBS + SLACK;
/// Blobs that one request has open at a time.
const FILES_PER_REQUEST: u64 = 2;
/// Connections of the transfer address by default: more are idle ones of large pools.
const TRANSFER_MAX: u64 = 4096;
/// Connections of the management address by default: scrapers, operators, and consoles that follow jobs.
const MANAGEMENT_MAX: u64 = 256;

/// Who gets how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Connections of the transfer address.
    pub(crate) transfer: usize,
    /// Connections of the management address.
    pub(crate) management: usize,
    /// Requests under way.
    pub(crate) requests: usize,
    /// Blobs that are kept open.
    pub(crate) open_blobs: usize,
    /// Whether something is less than was asked for, or than is good.
    pub(crate) is_cut: bool,
}

impl Budget {
    /// Divides `limit`.
    pub(crate) fn of(limit: u64, bounds: &Bounds) -> Self {
        let fixed = FIXED.min(limit / 8 * 5);
        let rest = limit.saturating_sub(fixed);
        let asked = |setting: Option<usize>, default| setting.map_or(default, |count| count as u64);
        let (transfer_asked, management_asked) = (
            asked(bounds.connections_max, TRANSFER_MAX),
            asked(bounds.admin_connections_max, MANAGEMENT_MAX),
        );
        let requests_asked = bounds.requests_max as u64;
        let requests = requests_asked.min(rest / 2 / FILES_PER_REQUEST).max(1);
        let rest = rest.saturating_sub(requests * FILES_PER_REQUEST);
        let management = management_asked.min(rest / 4).max(1);
        let transfer = transfer_asked.min(rest.saturating_sub(management)).max(1);
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            transfer: count(transfer),
            management: count(management),
            requests: count(requests),
            open_blobs: count(OPEN_BLOBS.min(limit / 8)),
            is_cut: fixed < FIXED
                || transfer < transfer_asked
                || management < management_asked
                || requests < requests_asked,
        }
    }

    /// Raises the limit of this process as far as it goes, divides it, and tells the log if it is too small.
    pub(crate) fn claim(bounds: &Bounds) -> Self {
        let limit = raise();
        let budget = Self::of(limit, bounds);
        if budget.is_cut {
            tracing::warn!(
                limit,
                transfer = budget.transfer,
                management = budget.management,
                requests = budget.requests,
                "the limit of open files is small: fewer connections and requests than usual are taken at a time; raise \
                 it (ulimit -Hn, LimitNOFILE=)"
            );
        }
        budget
    }
}

/// Raises the soft limit to the hard one, and gives what holds then.
fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_limit_has_room_for_all() {
        let budget = Budget::of(20_000, &Bounds::default());
        let expected = Budget {
            transfer: 4096,
            management: 256,
            requests: 512,
            open_blobs: 256,
            is_cut: false,
        };
        assert_eq!(budget, expected);
        assert!(!Budget::of(u64::MAX, &Bounds::default()).is_cut);
    }

    #[test]
    fn any_limit_is_divided_without_being_exceeded() {
        let asking = Bounds {
            connections_max: Some(1_000_000),
            ..Bounds::default()
        };
        for limit in (32..4096).chain([65_536]) {
            for bounds in [&Bounds::default(), &asking] {
                let budget = Budget::of(limit, bounds);
                let clients = budget.transfer + budget.management + 2 * budget.requests;
                assert!(
                    clients as u64 + FIXED.min(limit / 8 * 5) <= limit,
                    "{limit}: {budget:?}"
                );
                assert!(budget.transfer >= budget.management, "{limit}: {budget:?}");
                assert!(budget.is_cut || limit >= 4096, "{limit}: {budget:?}");
            }
        }
    }
}
