//! Layouts that are being read, which the sweep must leave alone.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::schema::LayoutId;

/// Which layouts are pinned, and which are being swept.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<Sets>);

#[derive(Debug, Default)]
struct Sets {
    pinned: HashMap<LayoutId, usize>,
    sweeping: HashSet<LayoutId>,
}

/// Keeps a layout from being swept until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    layout: LayoutId,
}

impl Pins {
    /// Pins `layout`, unless its sweep has begun: then whoever named it has lost it, and must look again.
    pub(crate) fn pin(self: &Arc<Self>, layout: LayoutId) -> Option<Pin> {
        let mut sets = self.lock();
        if sets.sweeping.contains(&layout) {
            return None;
        }
        *sets.pinned.entry(layout).or_default() += 1;
        Some(Pin {
            pins: Arc::clone(self),
            layout,
        })
    }

    /// Claims `layout` for the sweep, unless it is pinned. It stays claimed: a swept layout never comes back.
    pub(crate) fn begin_sweep(&self, layout: LayoutId) -> bool {
        let mut sets = self.lock();
        if sets.pinned.contains_key(&layout) {
            return false;
        }
        sets.sweeping.insert(layout);
        true
    }

    /// Forgets a claim, when the layout is gone for good or turned out to be needed.
    pub(crate) fn end_sweep(&self, layout: LayoutId) {
        self.lock().sweeping.remove(&layout);
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut sets = self.pins.lock();
        if let Some(count) = sets.pinned.get_mut(&self.layout) {
            *count -= 1;
            if *count == 0 {
                sets.pinned.remove(&self.layout);
            }
        }
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
        assert!(!pins.begin_sweep(layout));
        drop(second);
        assert!(pins.begin_sweep(layout));
        assert!(pins.pin(layout).is_none());
        pins.end_sweep(layout);
        assert!(pins.pin(layout).is_some());
    }
}
