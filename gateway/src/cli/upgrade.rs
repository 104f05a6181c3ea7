//! `lithos upgrade`: from an older format of the store to that of this release.

#![expect(clippy::print_stdout, reason = "what was done is what the command is asked for")]

use std::process::ExitCode;

use lithos_storage::{
    local::{Local, Mode},
    upgrade::{UpgradeOptions, upgrade},
};

use super::{DataFolder, progress::Bar};

/// Bring a data folder to the format of this release
///
/// No server may run on it. There is no way back but a backup: make one first (`lithos backup` takes older formats). It may be
/// cut off at any time, and be done again.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DataFolder,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mode = if args.dry_run { Mode::ReadOnly } else { Mode::ReadWrite };
    if !args.dry_run {
        // Opening for writing would make a store where there is none.
        lithos_storage::local::is_served(&args.folder.data)?;
    }
    let local = Local::open(&args.folder.data, mode)?;
    let options = UpgradeOptions { dry_run: args.dry_run };
    let mut bar = Bar::new();
    let kv = local.kv();
    let done = upgrade(&kv, options, &mut |progress| bar.count(progress.step, progress.rows)).await;
    bar.end();
    let report = done?;
    if report.steps.is_empty() {
        println!("format {}: there is nothing to do", report.to);
        return Ok(ExitCode::SUCCESS);
    }
    for step in &report.steps {
        println!("{}: {} of {} rows", step.step, step.changed, step.rows);
    }
    let what = if args.dry_run { "would go" } else { "went" };
    println!("{what} from format {} to {}", report.from, report.to);
    Ok(ExitCode::SUCCESS)
}
