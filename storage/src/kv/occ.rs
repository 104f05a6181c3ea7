//! Optimistic concurrency control, shared by the engines in this process.
//!
//! A transaction reads one snapshot and keeps a note of what it read. At its end it hands over reads and writes
//! together, and is admitted only if nothing it read has been written since its snapshot.
//!
//! # Why that is strictly serialisable
//!
//! - Commits are admitted one at a time, each gets the next [`Version`], and an engine applies and publishes them in
//!   that order. The order of versions is the serial order.
//! - A snapshot first takes the visible version, by [`History::enter`], and only then the rows. So the rows hold every
//!   commit up to the version it says, and perhaps later ones. A later one that touches what was read counts as a
//!   change since the snapshot: it can cause a conflict that was not needed, never hide one that was.
//! - An admitted transaction has therefore read exactly what it would have read at its place in the serial order: keys,
//!   keys that were not there, and scanned ranges with their gaps.
//! - A commit is answered after it was published, and a snapshot that is taken after the answer contains it. So the
//!   serial order agrees with real time.
//! - A transaction that only reads is serialised right after the last commit that its rows contain. Engines apply
//!   a group of commits in one step, so the rows never hold half of one.
//!
//! # Counters
//!
//! What a transaction adds to a counter is no read, so additions do not conflict. They are summed up, and limits checked,
//! when the commit is admitted, over the rows that the commits before it leave: at its place in the serial order. An
//! addition counts as a write of its key, so whoever has read the counter meets a conflict.
//!
//! # Why not RocksDB's own transactions
//!
//! Both its optimistic and its pessimistic ones track single keys. Neither protects a scanned range: a row that another
//! transaction inserts in it (a phantom) goes unseen, and with it "the bucket is empty" or "this is the latest version".
//!
//! # What is remembered
//!
//! For each key written lately, the version that wrote it last. Nobody asks about writes that the oldest live snapshot
//! contains already, so they are dropped; and beyond [`WINDOW_KEYS_MAX`] or [`WINDOW_BYTES_MAX`] the oldest are dropped
//! in any case. What a snapshot older than that floor has read can no longer be vouched for: its commit is a conflict.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use super::{
    Commit, Version,
    counter::{self, Rows},
};
use crate::error::Result;

/// Most written keys that are remembered: 16 of the largest transactions, or seconds of small ones, for one snapshot
/// that stays open. With their tree nodes they take about 8 MiB beside the bytes of the keys.
const WINDOW_KEYS_MAX: usize = 64 << 10;
/// Most bytes of keys that are remembered.
const WINDOW_BYTES_MAX: usize = 16 << 20;

/// What is visible, and which snapshots are open.
#[derive(Debug)]
pub(super) struct History {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    visible: Version,
    /// How many open snapshots there are of each version.
    live: BTreeMap<Version, usize>,
}

impl History {
    /// A history whose past is not asked about: `visible` is its first version.
    pub(super) fn new(visible: Version) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                visible,
                live: BTreeMap::new(),
            }),
        })
    }

    /// Registers a snapshot of the visible version. Rows must be read after this call.
    pub(super) fn enter(self: &Arc<Self>) -> LiveVersion {
        let mut state = self.lock();
        let version = state.visible;
        *state.live.entry(version).or_default() += 1;
        drop(state);
        LiveVersion {
            history: Arc::clone(self),
            version,
        }
    }

    /// Makes `version` the visible one, once its rows can be read.
    pub(super) fn publish(&self, version: Version) {
        self.lock().visible = version;
    }

    /// The oldest version that any open or future snapshot reads.
    pub(super) fn oldest(&self) -> Version {
        let state = self.lock();
        state
            .live
            .first_key_value()
            .map_or(state.visible, |(version, _)| *version)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// An open snapshot's place in the history; dropping it ends that.
#[derive(Debug)]
pub(super) struct LiveVersion {
    history: Arc<History>,
    version: Version,
}

impl LiveVersion {
    pub(super) fn version(&self) -> Version {
        self.version
    }
}

impl Drop for LiveVersion {
    fn drop(&mut self) {
        let mut state = self.history.lock();
        if let Some(count) = state.live.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                state.live.remove(&self.version);
            }
        }
    }
}

/// A commit that is to be written.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Its place in the history.
    pub(super) version: Version,
    /// The rows of the counters that it adds to, to be written with the others.
    pub(super) sums: Rows,
}

/// Admits commits, one at a time.
#[derive(Debug)]
pub(super) struct Validator {
    /// The last version that was given.
    last: Version,
    /// Snapshots before this one are too old to be checked.
    floor: Version,
    /// The last version that wrote each remembered key.
    latest: BTreeMap<Arc<[u8]>, Version>,
    /// Every remembered write in commit order, to forget the oldest first.
    order: VecDeque<(Version, Arc<[u8]>)>,
    /// Bytes of the keys in `order`.
    bytes: usize,
    keys_max: usize,
}

impl Validator {
    /// A validator whose next commit gets the version after `last`.
    pub(super) fn new(last: Version) -> Self {
        Self {
            last,
            floor: last,
            latest: BTreeMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            keys_max: WINDOW_KEYS_MAX,
        }
    }

    /// The last version that was given.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    /// Gives `commit` the next version (the last one, if it writes nothing) if nothing that it read has changed since, and
    /// no counter is over its limit. Its
    /// writes and additions then count as made, and the version must be published or be the last: who has read their keys
    /// meets a conflict until then.
    ///
    /// `stored` gives the rows as all admitted commits leave them.
    ///
    /// # Errors
    ///
    /// The error of `stored`; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if a row is no counter. The commit is not
    /// admitted then.
    pub(super) fn admit(
        &mut self,
        commit: &Commit,
        stored: impl Fn(&[u8]) -> Result<Option<Bytes>>,
    ) -> Result<Option<Admitted>> {
        if !self.is_valid(commit) {
            return Ok(None);
        }
        let Some(sums) = counter::settle(commit, stored)? else {
            return Ok(None);
        };
        if commit.is_empty() {
            return Ok(Some(Admitted {
                version: self.last,
                sums,
            }));
        }
        self.last = Version(self.last.0 + 1);
        for key in commit.writes.keys().chain(commit.adds.keys()) {
            self.record(key);
        }
        self.shrink();
        Ok(Some(Admitted {
            version: self.last,
            sums,
        }))
    }

    /// Forgets the writes that `oldest`, the oldest open snapshot, contains.
    pub(super) fn forget(&mut self, oldest: Version) {
        while self.order.front().is_some_and(|(version, _)| *version <= oldest) {
            self.drop_oldest();
        }
        self.floor = self.floor.max(oldest);
    }

    /// Without reads there is nothing to protect: of two blind writes the last one wins.
    fn is_valid(&self, commit: &Commit) -> bool {
        let read = commit.read_version;
        let reads_nothing = commit.read_keys.is_empty() && commit.read_ranges.is_empty();
        reads_nothing
            || (read >= self.floor
                && !commit
                    .read_keys
                    .iter()
                    .any(|key| self.latest.get(&key[..]).is_some_and(|version| *version > read))
                && !commit.read_ranges.iter().any(|range| self.range_changed(range, read)))
    }

    fn range_changed(&self, range: &Range<Bytes>, read: Version) -> bool {
        if range.is_empty() {
            return false;
        }
        let bounds = (Bound::Included(&range.start[..]), Bound::Excluded(&range.end[..]));
        self.latest.range::<[u8], _>(bounds).any(|(_, version)| *version > read)
    }

    /// The key is copied: it may be a slice of a larger buffer, which would otherwise stay in memory with it.
    fn record(&mut self, key: &[u8]) {
        let key: Arc<[u8]> = key.into();
        self.bytes += key.len();
        self.latest.insert(Arc::clone(&key), self.last);
        self.order.push_back((self.last, key));
    }

    fn shrink(&mut self) {
        while self.order.len() > self.keys_max || self.bytes > WINDOW_BYTES_MAX {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some((version, key)) = self.order.pop_front() else {
            return;
        };
        self.bytes -= key.len();
        self.floor = self.floor.max(version);
        if self.latest.get(&key) == Some(&version) {
            self.latest.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Durability;

    fn commit(read_version: u64, reads: &[&str], ranges: &[(&str, &str)], writes: &[&str]) -> Commit {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Commit {
            read_version: Version(read_version),
            read_keys: reads.iter().map(|key| bytes(key)).collect(),
            read_ranges: ranges.iter().map(|(start, end)| bytes(start)..bytes(end)).collect(),
            writes: writes.iter().map(|key| (bytes(key), None)).collect(),
            adds: BTreeMap::new(),
            at_most: BTreeMap::new(),
            durability: Durability::Synced,
        }
    }

    /// Admits a commit over no rows.
    fn admit(validator: &mut Validator, commit: &Commit) -> Option<Version> {
        let admitted = validator.admit(commit, |_| Ok(None)).unwrap();
        admitted.map(|admitted| admitted.version)
    }

    #[test]
    fn a_commit_is_admitted_unless_its_reads_have_changed() {
        let mut validator = Validator::new(Version(10));
        assert_eq!(admit(&mut validator, &commit(10, &[], &[], &["b"])), Some(Version(11)));
        let cases = [
            (commit(10, &["b"], &[], &["x"]), false, "a key written since"),
            (commit(11, &["b"], &[], &["x"]), true, "a key written before"),
            (commit(10, &["a"], &[], &["x"]), true, "a key not written"),
            (
                commit(10, &[], &[("a", "b")], &["x"]),
                true,
                "the end of a range is not in it",
            ),
            (
                commit(10, &[], &[("b", "c")], &["x"]),
                false,
                "the start of a range is in it",
            ),
            (
                commit(10, &[], &[("c", "a")], &["x"]),
                true,
                "a range with nothing in it",
            ),
            (commit(10, &[], &[], &["b"]), true, "a blind write over another"),
            (commit(9, &["a"], &[], &["x"]), false, "a snapshot before the floor"),
            (commit(9, &[], &[], &["x"]), true, "a blind write is never too old"),
        ];
        for (commit, admitted, what) in cases {
            assert_eq!(admit(&mut validator, &commit).is_some(), admitted, "{what}");
        }
    }

    #[test]
    fn what_the_oldest_snapshot_contains_is_forgotten() {
        let mut validator = Validator::new(Version(0));
        for key in ["a", "b", "a"] {
            admit(&mut validator, &commit(0, &[], &[], &[key]));
        }
        validator.forget(Version(2));
        assert_eq!(validator.order.len(), 1);
        assert_eq!(validator.latest.len(), 1);
        assert!(
            admit(&mut validator, &commit(1, &["z"], &[], &["x"])).is_none(),
            "older than the floor"
        );
        assert!(
            admit(&mut validator, &commit(2, &["a"], &[], &["x"])).is_none(),
            "written by version 3"
        );
        assert!(admit(&mut validator, &commit(2, &["b"], &[], &["x"])).is_some());
        validator.forget(Version(9));
        assert_eq!((validator.latest.len(), validator.bytes), (0, 0));
    }

    #[test]
    fn a_full_window_makes_old_snapshots_conflict() {
        let mut validator = Validator::new(Version(0));
        validator.keys_max = 2;
        for key in ["a", "b", "c"] {
            admit(&mut validator, &commit(0, &[], &[], &[key]));
        }
        assert!(admit(&mut validator, &commit(0, &["z"], &[], &["x"])).is_none());
        assert!(admit(&mut validator, &commit(1, &["z"], &[], &["x"])).is_some());
        assert_eq!(validator.order.len(), 2);
    }

    #[test]
    fn a_live_snapshot_holds_its_version() {
        let history = History::new(Version(5));
        assert_eq!(history.oldest(), Version(5));
        let (first, second) = (history.enter(), history.enter());
        history.publish(Version(8));
        let third = history.enter();
        assert_eq!((first.version(), third.version()), (Version(5), Version(8)));
        drop(first);
        assert_eq!(history.oldest(), Version(5));
        drop(second);
        assert_eq!(history.oldest(), Version(8));
        drop(third);
        history.publish(Version(9));
        assert_eq!(history.oldest(), Version(9));
    }

    #[test]
    fn additions_are_writes_but_no_reads() {
        let mut validator = Validator::new(Version(10));
        let add = |read_keys: &[&str], at_most: Option<u64>| {
            let counter = Bytes::from("counter");
            let mut commit = commit(10, read_keys, &[], &[]);
            commit.adds.insert(counter.clone(), 5);
            commit.at_most.extend(at_most.map(|max| (counter, max)));
            commit
        };
        assert_eq!(admit(&mut validator, &add(&[], None)), Some(Version(11)));
        assert_eq!(admit(&mut validator, &add(&[], Some(5))), Some(Version(12)));
        assert_eq!(admit(&mut validator, &add(&[], Some(4))), None, "over its limit");
        assert_eq!(admit(&mut validator, &add(&["counter"], None)), None, "it was read");
        assert!(
            validator
                .admit(&add(&[], None), |_| Ok(Some(Bytes::from("no counter"))))
                .is_err()
        );
        assert_eq!(validator.last(), Version(12), "what is not admitted takes no version");
    }
}
