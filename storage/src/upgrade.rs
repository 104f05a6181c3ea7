//! From an older format to that of this release, offline.
//!
//! `STEPS` lists what has to be done, in order, with the format that each step belongs to. A step goes through tables in
//! bounded transactions and may be done again from its beginning: what it finds done it leaves alone. When all have been
//! done, one synced transaction writes the new format's number, and makes durable all that came before. A crash at any
//! moment leaves the old number, and the next upgrade does all steps again.
//!
//! Nobody else has the store open meanwhile, so that the steps need no protection but against themselves.

mod holders;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::{
    error::{Error, ErrorKind, Result},
    format::{Format, stamp},
    kv::Kv,
    quota::recount,
    schema::FORMAT_VERSION,
};

/// A step on the way to the format `to`.
struct Step {
    to: u64,
    name: &'static str,
    run: for<'a> fn(&'a mut Work<'_>) -> BoxFuture<'a, Result<()>>,
}

/// All steps, in the order in which they are done. Format 3 needs none: what came with it is read as absent where it is. One that is added for a format goes behind those it builds on.
static STEPS: &[Step] = &[
    Step {
        to: 2,
        name: "layouts name their holders",
        run: |work| Box::pin(holders::run(work)),
    },
    Step {
        to: 2,
        name: "buckets and users know what they hold",
        run: |work| Box::pin(usage(work)),
    },
];

/// Since format 2, what buckets and users hold is counted.
async fn usage(work: &mut Work<'_>) -> Result<()> {
    let users = recount(work.kv, !work.options.dry_run).await?;
    work.step(users, users);
    Ok(())
}

/// How an upgrade is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpgradeOptions {
    /// Only find out what would be done; nothing is written.
    pub dry_run: bool,
}

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: &'static str,
    /// Rows looked at in this step.
    pub rows: u64,
    /// Rows changed in this step.
    pub changed: u64,
}

/// What an upgrade did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeReport {
    /// The format before.
    pub from: u64,
    /// The format after.
    pub to: u64,
    /// The steps, each as at its end.
    pub steps: Vec<Progress>,
}

/// What a step works on.
struct Work<'a> {
    kv: &'a Arc<dyn Kv>,
    options: UpgradeOptions,
    at: Progress,
    progress: &'a mut (dyn FnMut(Progress) + Send + Sync),
}

impl Work<'_> {
    /// Says that so many rows have been looked at, and so many changed.
    fn step(&mut self, rows: u64, changed: u64) {
        self.at.rows = self.at.rows.saturating_add(rows);
        self.at.changed = self.at.changed.saturating_add(changed);
        (self.progress)(self.at);
    }
}

/// Brings the store over `kv` to the format of this release. A store that has it, or is new, stays as it is.
///
/// # Errors
///
/// [`ErrorKind::Format`] if a newer release wrote it; [`ErrorKind::Corrupt`] if a row cannot be read; [`ErrorKind::ReadOnly`]
/// if the index was opened for reading, but for a dry run; [`ErrorKind::Io`]. The store is then still in its old format,
/// and the upgrade can be done again.
pub async fn upgrade(
    kv: &Arc<dyn Kv>,
    options: UpgradeOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<UpgradeReport> {
    let found = Format::read(&*kv.snapshot().await?).await?;
    let from = match found {
        Some(format) => {
            format.check_not_newer()?;
            format.version
        }
        None => FORMAT_VERSION,
    };
    if from == 0 {
        return Err(Error::new(
            ErrorKind::Format,
            "the store says that it is in format 0, which never was",
        ));
    }
    let mut report = UpgradeReport {
        from,
        to: FORMAT_VERSION,
        steps: Vec::new(),
    };
    for step in STEPS.iter().filter(|step| step.to > from) {
        let mut work = Work {
            kv,
            options,
            at: Progress {
                step: step.name,
                rows: 0,
                changed: 0,
            },
            progress,
        };
        work.step(0, 0);
        (step.run)(&mut work).await?;
        report.steps.push(work.at);
    }
    if from < FORMAT_VERSION && !options.dry_run {
        stamp(kv).await?;
    }
    Ok(report)
}
