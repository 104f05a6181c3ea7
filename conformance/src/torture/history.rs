//! Whether what concurrent clients saw of one key could have happened one after the other.
//!
//! Operations on a few shared keys are written down as they begin and as they end. After each round the history of each
//! key is given to a linearizability tester, with what the key is found to be afterwards as its last operation, and
//! what it was found to be before the round as its beginning. An operation that was not answered stays in flight: it may have
//! happened at any time from its beginning, or not at all.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// Most operations on a key in a round: the tester tries orders, of which there are exponentially many.
pub(super) const OPS_MAX: usize = 24;

/// A key as a history has it: the number that is its content, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Register(pub(super) Option<u64>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Write(u64),
    WriteIfAbsent(u64),
    Delete,
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ret {
    Done,
    Refused,
    Value(Option<u64>),
}

impl SequentialSpec for Register {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match *op {
            Op::WriteIfAbsent(_) if self.0.is_some() => return Ret::Refused,
            Op::Write(value) | Op::WriteIfAbsent(value) => self.0 = Some(value),
            Op::Delete => self.0 = None,
            Op::Read => return Ret::Value(self.0),
        }
        Ret::Done
    }
}

/// One thing at a time is done by each of these; one whose operation was not answered does nothing more.
pub(super) type Actor = u64;

#[derive(Debug, Clone, Copy)]
enum Event {
    Begins(Actor, Op),
    Ends(Actor, Ret),
}

/// What was done to the shared keys in one round.
#[derive(Debug, Default)]
pub(super) struct Histories(Mutex<BTreeMap<String, Vec<Event>>>);

impl Histories {
    fn add(&self, key: &str, event: Event) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.entry(key.to_owned()).or_default().push(event);
    }

    /// Whether there is room for another operation on a key.
    pub(super) fn begins(&self, key: &str, actor: Actor, op: Op) -> bool {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let events = events.entry(key.to_owned()).or_default();
        let begun = events.iter().filter(|event| matches!(event, Event::Begins(..))).count();
        if begun < OPS_MAX {
            events.push(Event::Begins(actor, op));
        }
        begun < OPS_MAX
    }

    pub(super) fn ends(&self, key: &str, actor: Actor, ret: Ret) {
        self.add(key, Event::Ends(actor, ret));
    }

    /// Checks the history of a key between what was found before and after; gives how many operations it has.
    ///
    /// # Errors
    ///
    /// If no order of the operations explains it.
    pub(super) fn check(&self, key: &str, before: Option<u64>, after: Option<u64>) -> Result<usize> {
        let events = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key)
            .unwrap_or_default();
        let mut tester = LinearizabilityTester::new(Register(before));
        let mut feed = |event| match event {
            Event::Begins(actor, op) => tester.on_invoke(actor, op).map(drop),
            Event::Ends(actor, ret) => tester.on_return(actor, ret).map(drop),
        };
        let last = [
            Event::Begins(Actor::MAX, Op::Read),
            Event::Ends(Actor::MAX, Ret::Value(after)),
        ];
        for event in events.iter().copied().chain(last) {
            feed(event).map_err(anyhow::Error::msg)?;
        }
        ensure!(
            tester.is_consistent(),
            "the history of {key}, from {before:?} to {after:?}, is not linearizable: {events:?}"
        );
        Ok(tester.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(events: &[Event], before: Option<u64>, after: Option<u64>) -> bool {
        let histories = Histories::default();
        for event in events {
            histories.add("key", *event);
        }
        histories.check("key", before, after).is_ok()
    }

    #[test]
    fn orders_that_explain_a_history_are_found() {
        use Event::{Begins, Ends};
        let overlapping = [
            Begins(1, Op::Write(1)),
            Begins(2, Op::Write(2)),
            Ends(2, Ret::Done),
            Begins(3, Op::Read),
            Ends(3, Ret::Value(Some(1))),
            Ends(1, Ret::Done),
        ];
        assert!(check(&overlapping, None, Some(1)));
        assert!(!check(&overlapping, None, Some(2)), "2 was overwritten");
        assert!(!check(&overlapping, None, None));
    }

    #[test]
    fn what_was_not_answered_happens_or_not() {
        use Event::{Begins, Ends};
        let cut = [Begins(1, Op::Write(1)), Ends(1, Ret::Done), Begins(2, Op::Delete)];
        assert!(check(&cut, None, Some(1)) && check(&cut, None, None));
        assert!(!check(&cut[..2], None, None), "an acknowledged write is lost");
        let twice = [
            Begins(1, Op::WriteIfAbsent(1)),
            Ends(1, Ret::Done),
            Begins(2, Op::WriteIfAbsent(2)),
            Ends(2, Ret::Done),
        ];
        assert!(!check(&twice, None, Some(2)));
    }
}
