//! Groups that were read in part, so that the reads beside them need not decompress them again.
//!
//! A stream reads a blob in chunks whose edges lie within groups, several chunks at a time; a guest reads a few
//! kilobytes here and there. Whoever needs a part of a group finds it here, or decompresses it while others that need
//! the same group wait for it. Groups that are wanted whole go past this.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::error::Result;

/// Groups that are kept: 8 MiB in all, which is several for each of the streams that a machine serves at a time.
const SLOTS: u64 = 64;

/// The groups that were read in part last.
#[derive(Debug)]
pub(super) struct PartialGroups {
    /// A group has one slot that it may be in, so that a look costs nothing. Two that share a slot wait for each other.
    slots: Box<[Mutex<Option<Slot>>]>,
    opened: AtomicU64,
}

/// An opening of a blob, as no other is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening(u64);

#[derive(Debug)]
struct Slot {
    opening: Opening,
    index: usize,
    data: Bytes,
}

impl PartialGroups {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
            opened: AtomicU64::new(0),
        }
    }

    /// A name for a blob that was opened.
    pub(super) fn opening(&self) -> Opening {
        Opening(self.opened.fetch_add(1, Ordering::Relaxed))
    }

    /// The group `index` of a blob, from `unpack` if it is not here.
    pub(super) fn get(&self, opening: Opening, index: usize, unpack: impl FnOnce() -> Result<Bytes>) -> Result<Bytes> {
        let number = opening.0.wrapping_mul(SLOTS / 4 + 1).wrapping_add(index as u64) % SLOTS;
        let slot = usize::try_from(number).ok().and_then(|number| self.slots.get(number));
        // What a thread that panicked has left is whole: a slot is filled in one step.
        let mut slot = slot
            .expect("the remainder is below the count")
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slot
            .as_ref()
            .filter(|slot| slot.opening == opening && slot.index == index)
        {
            return Ok(slot.data.clone());
        }
        let data = unpack()?;
        *slot = Some(Slot {
            opening,
            index,
            data: data.clone(),
        });
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn group_is_unpacked_once() {
        let partial = PartialGroups::new();
        let (one, other) = (partial.opening(), partial.opening());
        let group = |text: &'static str| move || Ok(Bytes::from_static(text.as_bytes()));
        let never = || panic!("it is known");
        assert_eq!(partial.get(one, 0, group("one 0")).unwrap(), "one 0");
        assert_eq!(partial.get(one, 1, group("one 1")).unwrap(), "one 1");
        assert_eq!(partial.get(other, 0, group("other 0")).unwrap(), "other 0");
        assert_eq!(partial.get(one, 0, never).unwrap(), "one 0");
        assert_eq!(partial.get(other, 0, never).unwrap(), "other 0");
        // The same slot.
        assert_eq!(partial.get(one, 64, group("one 64")).unwrap(), "one 64");
        assert_eq!(partial.get(one, 0, group("again")).unwrap(), "again");
    }

    #[test]
    fn error_is_not_kept() {
        let partial = PartialGroups::new();
        let one = partial.opening();
        let failed = partial.get(one, 0, || Err(Error::new(ErrorKind::Io, "the disk fails")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(partial.get(one, 0, || Ok(Bytes::from_static(b"x"))).unwrap(), "x");
    }
}
