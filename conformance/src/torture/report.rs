//! What came of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{Ending, Mutation, Options};

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    seed: u64,
    mutation: Option<Mutation>,
    /// Rounds that were begun.
    pub rounds: u64,
    /// How they ended.
    pub endings: BTreeMap<Ending, u64>,
    /// Epochs that came to their end.
    pub epochs: u64,
    /// Rounds in which calls failed, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations that were answered.
    pub acknowledged: u64,
    /// Operations of which the outcome was not answered.
    pub unknown: u64,
    /// Objects, parts and derivatives that were looked at.
    pub checks: u64,
    /// Histories that were given to the tester.
    pub histories: u64,
    /// Operations in them.
    pub history_ops: u64,
    /// What should not be.
    pub violations: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            seed: options.seed,
            mutation: options.mutation,
            ..Self::default()
        }
    }

    /// Rounds that would be done in an hour at the pace so far.
    fn an_hour(&self) -> f64 {
        f64::from(u32::try_from(self.rounds).unwrap_or(u32::MAX)) / self.took.as_secs_f64().max(1.0) * 3600.0
    }

    /// How far it has come, in a line.
    pub fn progress(&self) -> String {
        format!(
            "{} min: {} rounds ({:.0} an hour), {} operations answered, {} violations",
            self.took.as_secs() / 60,
            self.rounds,
            self.an_hour(),
            self.acknowledged,
            self.violations.len()
        )
    }

    /// Whether it came out as it should: without a violation, or, with a mutation, with one.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() == self.mutation.is_none()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            epochs,
            took,
            seed,
            ..
        } = self;
        writeln!(
            f,
            "{rounds} rounds, {epochs} epochs in {:.0} s ({:.0} rounds an hour), seed {seed}",
            took.as_secs_f64(),
            self.an_hour()
        )?;
        if let Some(mutation) = self.mutation {
            writeln!(f, "mutation {mutation:?}: a violation has to be found")?;
        }
        writeln!(f, "rounds by their end: {:?}", self.endings)?;
        writeln!(f, "rounds with failing calls: {:?}", self.faults)?;
        writeln!(
            f,
            "operations: {} answered, {} of unknown outcome",
            self.acknowledged, self.unknown
        )?;
        writeln!(
            f,
            "checks: {}, {} histories of {} operations",
            self.checks, self.histories, self.history_ops
        )?;
        for violation in &self.violations {
            writeln!(f, "VIOLATION {violation}")?;
        }
        write!(f, "{} violations", self.violations.len())
    }
}
