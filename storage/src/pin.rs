//! What is in use in this process, so that the sweep leaves it alone: layouts that are read, blobs that are written.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, futures::Notified};

use crate::schema::LayoutId;

/// Which things are pinned, and which are being swept: none is both.
#[derive(Debug)]
pub(crate) struct Pins<K> {
    sets: Mutex<Sets<K>>,
    /// A sweep has ended.
    ended: Notify,
}

#[derive(Debug)]
struct Sets<K> {
    pinned: HashMap<K, usize>,
    sweeping: HashSet<K>,
    /// How many sweeps have ended.
    ended: u64,
}

/// Keeps a thing from being swept until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin<K: Debug + Copy + Eq + Hash> {
    pins: Arc<Pins<K>>,
    key: K,
}

/// A pin of a layout that is being read.
pub(crate) type LayoutPin = Pin<LayoutId>;

/// The right to sweep a thing, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim<K: Debug + Copy + Eq + Hash> {
    pins: Arc<Pins<K>>,
    key: K,
}

impl<K> Default for Pins<K> {
    fn default() -> Self {
        Self {
            sets: Mutex::new(Sets {
                pinned: HashMap::new(),
                sweeping: HashSet::new(),
                ended: 0,
            }),
            ended: Notify::new(),
        }
    }
}

impl<K: Debug + Copy + Eq + Hash> Pins<K> {
    /// Pins `key`, unless it is being swept.
    ///
    /// Whoever found `key` in the index before pinning it must make sure that no sweep has ended in between
    /// ([`Pins::sweeps_ended`]), or look again: it may have been swept since.
    pub(crate) fn pin(self: &Arc<Self>, key: K) -> Option<Pin<K>> {
        let mut sets = self.lock();
        if sets.sweeping.contains(&key) {
            return None;
        }
        *sets.pinned.entry(key).or_default() += 1;
        Some(Pin {
            pins: Arc::clone(self),
            key,
        })
    }

    /// Whether `key` is pinned now.
    pub(crate) fn is_pinned(&self, key: K) -> bool {
        self.lock().pinned.contains_key(&key)
    }

    /// Claims `key` for the sweep, unless it is pinned, or another sweep has it.
    pub(crate) fn claim(self: &Arc<Self>, key: K) -> Option<Claim<K>> {
        let mut sets = self.lock();
        if sets.pinned.contains_key(&key) || !sets.sweeping.insert(key) {
            return None;
        }
        Some(Claim {
            pins: Arc::clone(self),
            key,
        })
    }

    /// How many sweeps have ended so far.
    pub(crate) fn sweeps_ended(&self) -> u64 {
        self.lock().ended
    }

    /// Waits until a sweep ends, counted from this call on.
    pub(crate) fn sweep_end(&self) -> Notified<'_> {
        self.ended.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Sets<K>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Debug + Copy + Eq + Hash> Pin<K> {
    /// What it pins.
    pub(crate) fn key(&self) -> K {
        self.key
    }
}

impl<K: Debug + Copy + Eq + Hash> Drop for Pin<K> {
    fn drop(&mut self) {
        let mut sets = self.pins.lock();
        if let Some(count) = sets.pinned.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                sets.pinned.remove(&self.key);
            }
        }
    }
}

impl<K: Debug + Copy + Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        let mut sets = self.pins.lock();
        sets.sweeping.remove(&self.key);
        sets.ended += 1;
        drop(sets);
        self.pins.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_read_or_swept_but_never_both() {
        let pins = Arc::new(Pins::default());
        let layout = LayoutId([1; 16]);
        let first = pins.pin(layout).unwrap();
        let second = pins.pin(layout).unwrap();
        drop(first);
        assert!(pins.is_pinned(layout));
        assert!(pins.claim(layout).is_none());
        drop(second);
        let claim = pins.claim(layout).unwrap();
        assert!(pins.pin(layout).is_none());
        assert!(pins.claim(layout).is_none(), "one sweep at a time");
        assert_eq!(pins.sweeps_ended(), 0);
        drop(claim);
        assert_eq!(pins.sweeps_ended(), 1);
        assert!(pins.pin(layout).is_some());
    }

    #[tokio::test]
    async fn the_end_of_a_sweep_wakes_who_waits_for_it() {
        let pins = Arc::new(Pins::default());
        let claim = pins.claim(1);
        let ended = pins.sweep_end();
        drop(claim);
        ended.await;
    }
}
