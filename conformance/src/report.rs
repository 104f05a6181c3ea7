//! What came of cases: passed, failed, skipped and why.

use std::{fmt, time::Duration};

use crate::case::Case;

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// It is not, and how.
    Failed(String),
    /// It could not be tried, and why.
    Skipped(String),
}

/// What came of many.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<(Case, Outcome, Duration)>,
}

impl Report {
    /// Adds one.
    pub fn add(&mut self, case: &Case, outcome: Outcome, took: Duration) {
        self.lines.push((*case, outcome, took));
    }

    /// Adds those of another report.
    pub fn extend(&mut self, other: Self) {
        self.lines.extend(other.lines);
    }

    /// Whether none failed.
    pub fn is_good(&self) -> bool {
        !self
            .lines
            .iter()
            .any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
    }

    /// Whether all were tried.
    pub fn is_complete(&self) -> bool {
        !self
            .lines
            .iter()
            .any(|(_, outcome, _)| matches!(outcome, Outcome::Skipped(_)))
    }

    fn count(&self, kind: impl Fn(&Outcome) -> bool) -> usize {
        self.lines.iter().filter(|(_, outcome, _)| kind(outcome)).count()
    }

    /// How many passed, failed and were skipped.
    pub fn tally(&self) -> Tally {
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let skipped = self.count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        Tally {
            passed: self.lines.len() - failed - skipped,
            failed,
            skipped,
        }
    }
}

/// Counts of outcomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// As they should be.
    pub passed: usize,
    /// Not so.
    pub failed: usize,
    /// Not tried.
    pub skipped: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// A line a case, and the counts.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (case, outcome, took) in &self.lines {
            let name = case.name.replace('_', " ");
            let millis = took.as_millis();
            match outcome {
                Outcome::Passed => writeln!(f, "passed   {}: {name} ({millis} ms)", case.operation)?,
                Outcome::Failed(why) => {
                    writeln!(f, "FAILED   {}: {name} ({millis} ms)\n         {why}", case.operation)?;
                }
                Outcome::Skipped(why) => writeln!(f, "skipped  {}: {name}: {why}", case.operation)?,
            }
        }
        write!(f, "{}", self.tally())
    }
}
