//! Tortures a server: power cuts, kills and failing disks under load, for as long as asked.
//!
//! `make torture MINUTES=60` builds all it needs and runs it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is what this program is for"
)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use lithos_conformance::{
    pattern::fresh_seed,
    torture::{self, Mutation, Options, Report},
};

/// Cut the power of a server under load, again and again, and check what it has kept
#[derive(Debug, Parser)]
struct Arguments {
    /// Time, at most
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Rounds, at most
    #[arg(long, default_value_t = u64::MAX)]
    rounds: u64,
    /// Repeats the choices of a run
    #[arg(long)]
    seed: Option<u64>,
    /// Spoils one thing, so that a violation has to be found
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Has the server make its data folder itself, whose name may be lost then
    #[arg(long)]
    fresh: bool,
    /// Keeps the data of servers that failed
    #[arg(long)]
    keep: bool,
    /// Writes the report to this file too
    #[arg(long)]
    report: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = Options {
        rounds: arguments.rounds,
        time: Duration::from_secs(arguments.minutes.saturating_mul(60)),
        seed: arguments.seed.unwrap_or_else(fresh_seed),
        mutation: arguments.mutation,
        fresh: arguments.fresh,
        keep: arguments.keep,
    };
    let mut watch = Watch::default();
    let report = torture::run(&options, &mut |report| watch.show(report)).await?;
    println!("{report}");
    if let Some(path) = arguments.report {
        std::fs::write(&path, format!("{report}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What has been said of a run under way.
#[derive(Default)]
struct Watch {
    violations: usize,
    minutes: u64,
}

impl Watch {
    /// Says what is new: each violation, and once a minute how far it has come.
    fn show(&mut self, report: &Report) {
        for violation in report.violations.iter().skip(self.violations) {
            eprintln!("VIOLATION {violation}");
        }
        self.violations = report.violations.len();
        let minutes = report.took.as_secs() / 60;
        if minutes > self.minutes {
            eprintln!("{}", report.progress());
            self.minutes = minutes;
        }
    }
}
