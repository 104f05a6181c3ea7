//! The sweep, whenever there is something to sweep.

use std::time::Duration;

use lithos_storage::SweepReport;

use crate::app::{App, SharedApp};

/// How often the sweep looks around without having been asked.
const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// How often all blobs are compared with the index, and expired intents given up.
const STRAYS_EVERY: Duration = Duration::from_hours(1);
/// What deleting a blob, or clearing a row, counts for in the pace of background work: the file system frees the blocks
/// of a blob and journals that.
const BLOB_COST: u64 = 256 << 10;
const ROW_COST: u64 = 4 << 10;

/// Sweeps until the server stops.
pub(super) async fn run(app: SharedApp) {
    // The first tick comes at once: a crash of the machine may have left something.
    let mut strays = tokio::time::interval(STRAYS_EVERY);
    // What the last sweep did is paid for before the next one.
    let mut debt = 0;
    loop {
        let is_strays = tokio::select! {
            () = app.stopping.cancelled() => return,
            () = app.store.sweep_due() => false,
            () = tokio::time::sleep(SWEEP_EVERY) => false,
            _ = strays.tick() => true,
        };
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = app.pace.step(debt) => {}
        }
        debt = 0;
        let swept = if is_strays {
            sweep_all(&app).await
        } else {
            app.store.sweep().await
        };
        match swept {
            Ok(report) if report != SweepReport::default() => {
                debt = cost(&report);
                app.metrics.sweep(&report);
                tracing::debug!(?report, "swept");
            }
            Ok(_) => {}
            Err(error) => {
                app.metrics.sweep_failures.inc();
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the sweep failed; it will go on"
                );
            }
        }
    }
}

async fn sweep_all(app: &App) -> lithos_storage::Result<SweepReport> {
    app.store.sweep_intents(app.store.now()).await?;
    app.store.sweep_strays().await
}

fn cost(report: &SweepReport) -> u64 {
    let rows = report.layouts + report.parts + report.jobs;
    report.blobs * BLOB_COST + rows * ROW_COST
}
