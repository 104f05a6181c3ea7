//! Which blocks of an open blob were found whole a short while ago.
//!
//! A block that matched its checksum is not checked again for up to [`VERIFIED_FOR`], as long as it is read through the
//! same open file, and a short range of it is then read without the rest. This is safe because the file behind an open
//! blob never changes: what is read again comes from the same pages of memory, or from the same place of the disk. What
//! it gives up is bounded: if the disk loses a place within that time *and* the pages were dropped, a read may give
//! damaged bytes until the time is over. A restart, and every new opening of the blob, checks at once.
//!
//! Time is cut into periods, and a block is trusted in the period in which it was checked, so at most for one period.
//! Each word of a bitmap carries the period that its bits are of; bits of another period count as none. So nothing has to
//! be cleared, and no lock is taken. The bits order no other memory: what they speak of is on the disk.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long a block is trusted after it was found whole, unless the options of the store say otherwise: long enough that
/// a guest that boots from an image does not pay again for each read, short enough that damage shows on the same day.
pub(super) const VERIFIED_FOR: Duration = Duration::from_mins(5);

/// Blocks in a word of the bitmap; its upper half is the period.
const BLOCKS_PER_WORD: u64 = 32;

/// Counts the periods.
#[derive(Debug)]
pub(super) struct Periods {
    begun: Instant,
    length: Duration,
}

/// One period, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period(u32);

impl Periods {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            begun: Instant::now(),
            length,
        }
    }

    /// The period that it is now; `None` if no block is to be trusted.
    pub(super) fn now(&self) -> Option<Period> {
        let count = self.begun.elapsed().as_nanos().checked_div(self.length.as_nanos())?;
        let number = u32::try_from(count % u128::from(u32::MAX)).expect("the remainder is below 2^32");
        Some(Period(number + 1))
    }
}

/// The blocks of one open blob that were found whole.
#[derive(Debug)]
pub(super) struct Verified(Box<[AtomicU64]>);

impl Verified {
    /// None of `count` blocks.
    pub(super) fn none_of(count: u64) -> Self {
        Self(
            (0..count.div_ceil(BLOCKS_PER_WORD))
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    pub(super) fn contains(&self, period: Period, block: u64) -> bool {
        self.word(block).is_some_and(|word| {
            let word = word.load(Ordering::Relaxed);
            is_of(word, period) && word & bit(block) != 0
        })
    }

    pub(super) fn contains_all(&self, period: Period, mut blocks: Range<u64>) -> bool {
        blocks.all(|block| self.contains(period, block))
    }

    pub(super) fn insert(&self, period: Period, block: u64) {
        let Some(word) = self.word(block) else { return };
        word.update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let others = if is_of(word, period) {
                word
            } else {
                u64::from(period.0) << BLOCKS_PER_WORD
            };
            others | bit(block)
        });
    }

    /// Forgets a block that was found damaged after all.
    pub(super) fn remove(&self, block: u64) {
        if let Some(word) = self.word(block) {
            word.fetch_and(!bit(block), Ordering::Relaxed);
        }
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(block / BLOCKS_PER_WORD).ok()?)
    }
}

fn is_of(word: u64, period: Period) -> bool {
    word >> BLOCKS_PER_WORD == u64::from(period.0)
}

fn bit(block: u64) -> u64 {
    1 << (block % BLOCKS_PER_WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_is_trusted_in_its_period_only() {
        let verified = Verified::none_of(70);
        let (first, second) = (Period(1), Period(2));
        for block in [0, 31, 32, 69] {
            assert!(!verified.contains(first, block));
            verified.insert(first, block);
            assert!(verified.contains(first, block));
            assert!(
                !verified.contains(second, block),
                "block {block} is not trusted for ever"
            );
        }
        assert!(!verified.contains(first, 1));
        verified.insert(second, 1);
        assert!(verified.contains(second, 1));
        assert!(!verified.contains(second, 0), "the bits of the period before are gone");
        assert!(!verified.contains(first, 0));
    }

    #[test]
    fn run_is_trusted_if_each_block_is() {
        let verified = Verified::none_of(100);
        (30..40).for_each(|block| verified.insert(Period(7), block));
        assert!(verified.contains_all(Period(7), 30..40));
        assert!(!verified.contains_all(Period(7), 29..40));
        assert!(!verified.contains_all(Period(7), 30..41));
        verified.remove(35);
        assert!(!verified.contains_all(Period(7), 30..40));
        assert!(verified.contains(Period(7), 36));
    }

    #[test]
    fn block_outside_is_never_trusted() {
        let verified = Verified::none_of(1);
        verified.insert(Period(1), 1000);
        assert!(!verified.contains(Period(1), 1000));
    }

    #[test]
    fn period_lasts_as_long_as_told() {
        assert_eq!(Periods::new(Duration::ZERO).now(), None);
        assert_eq!(Periods::new(Duration::from_hours(1)).now(), Some(Period(1)));
        let short = Periods::new(Duration::from_nanos(1));
        let first = short.now();
        while short.now() == first {}
    }
}
