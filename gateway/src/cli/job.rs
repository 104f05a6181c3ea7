//! `lithos job`: what a server works on.

#![expect(clippy::print_stdout, reason = "the jobs are what the command is asked for")]

mod display;
mod sse;
mod watch;

use std::{fmt::Write, process::ExitCode};

use indicatif::BinaryBytes;

use super::{Connection, printable};
use crate::{
    admin::job::{JobPage, JobStateView, JobView},
    client::{Client, encode_segment},
    config::RootKeys,
};
pub(super) use watch::{Watched, watch};

/// List, show, watch, cancel and retry the jobs of a server
///
/// Conversions, replications and imports are jobs: they go on in the background, survive a restart of the server, and are
/// retried where another attempt may help.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    lithos job list --state failed         what went wrong\n  \
    lithos job watch                       wait until the server has nothing left to do\n  \
    lithos job show ID                     one job, with its result or its error\n  \
    lithos job list --json | jq .          for programs")]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List jobs, the newest first
    List {
        /// Only jobs in this state; several are separated by commas
        #[arg(long, value_name = "STATE", value_delimiter = ',')]
        state: Vec<JobStateView>,

        /// Most jobs to list
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show one job
    Show {
        /// Its id, as `lithos job list` shows it
        id: String,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show the progress of jobs, and wait until they have finished
    ///
    /// Without an id: of all jobs, and of those that they bring about, until none is left. Ends with 0 if all were done, and
    /// with 1 if one failed or was cancelled. A job that waits for another attempt shows why the last one failed.
    Watch {
        /// Ids of jobs, as `lithos job list` shows them
        ids: Vec<String>,
    },
    /// Cancel a job that has not finished
    Cancel {
        /// Its id
        id: String,
    },
    /// Queue a job once more that failed or was cancelled
    Retry {
        /// Its id
        id: String,
    },
}

pub(super) async fn run(args: Args, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    let client = args.connection.open(keys)?;
    match args.command {
        Command::List { state, limit, json } => {
            let jobs = list(&client, &state, limit).await?;
            if json {
                println!("{}", serde_json::to_string_pretty(&jobs)?);
            } else {
                print!("{}", table(&jobs));
            }
        }
        Command::Show { id, json } => show(&client.get_json(&path(&id, "")).await?, json)?,
        Command::Watch { ids } => {
            let watched = if ids.is_empty() {
                Watched::All
            } else {
                Watched::Some(ids)
            };
            return watch(&client, watched).await;
        }
        Command::Cancel { id } => show_state(&act(&client, &id, "/cancel").await?),
        Command::Retry { id } => show_state(&act(&client, &id, "/retry").await?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a job is in the API.
fn path(id: &str, what: &str) -> String {
    format!("/api/v1/jobs/{}{what}", encode_segment(id))
}

async fn act(client: &Client, id: &str, what: &str) -> anyhow::Result<JobView> {
    Ok(client.post_json(&path(id, what), &serde_json::json!({})).await?)
}

/// At most `limit` jobs, over as many pages as that takes.
async fn list(client: &Client, states: &[JobStateView], limit: usize) -> anyhow::Result<Vec<JobView>> {
    let states: Vec<_> = states.iter().map(ToString::to_string).collect();
    let states = if states.is_empty() {
        String::new()
    } else {
        format!("&state={}", encode_segment(&states.join(",")))
    };
    let (mut jobs, mut after) = (Vec::new(), String::new());
    while jobs.len() < limit {
        let size = limit.saturating_sub(jobs.len()).min(1000);
        let page: JobPage = client
            .get_json(&format!("/api/v1/jobs?limit={size}{states}{after}"))
            .await?;
        jobs.extend(page.jobs);
        let Some(next) = page.next else { break };
        after = format!("&after={}", encode_segment(&next));
    }
    Ok(jobs)
}

/// A line a job.
fn table(jobs: &[JobView]) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut text = format!("{:<32}  {:<9}  {:<9}  {:>5}  SUBJECT\n", "ID", "KIND", "STATE", "DONE");
    for job in jobs {
        let percent = job.percent.map_or("-".to_owned(), |percent| format!("{percent} %"));
        let error = job.error.as_ref().map(|error| format!(": {}", printable(error)));
        let (kind, subject) = (printable(&job.kind), printable(&job.subject));
        let error = error.unwrap_or_default();
        writeln!(
            text,
            "{:<32}  {kind:<9}  {:<9}  {percent:>5}  {subject}{error}",
            printable(&job.id),
            job.state
        )
        .expect("a string takes everything");
    }
    text
}

fn show(job: &JobView, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(job)?);
    } else {
        print!("{}", details(job));
    }
    Ok(())
}

fn show_state(job: &JobView) {
    println!("{} {}: {}", printable(&job.kind), printable(&job.subject), job.state);
}

/// A line for everything that is known, names in a column.
fn details(job: &JobView) -> String {
    let progress = match job.total {
        Some(total) => Some(format!("{} of {}", BinaryBytes(job.done), BinaryBytes(total))),
        None => (job.done > 0).then(|| BinaryBytes(job.done).to_string()),
    };
    let rows = [
        ("id", Some(job.id.clone())),
        ("kind", Some(job.kind.clone())),
        ("subject", Some(job.subject.clone())),
        ("state", Some(job.state.to_string())),
        ("stage", Some(job.stage.clone()).filter(|stage| !stage.is_empty())),
        ("progress", progress),
        ("percent", job.percent.map(|percent| percent.to_string())),
        ("attempts", Some(job.attempts.to_string())),
        ("created", Some(job.created.clone())),
        ("updated", Some(job.updated.clone())),
        ("next attempt", job.next_attempt.clone()),
        ("result", job.result.clone()),
        ("error", job.error.clone()),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        if let Some(value) = value {
            writeln!(text, "{name:<14}{}", printable(&value)).expect("a string takes everything");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn job(id: &str, state: JobStateView) -> JobView {
        JobView {
            id: id.to_owned(),
            kind: "convert".to_owned(),
            subject: "b/k.img to qcow2".to_owned(),
            state,
            stage: String::new(),
            done: 0,
            total: None,
            percent: None,
            attempts: 1,
            created: "2026-01-02T03:04:05Z".to_owned(),
            updated: "2026-01-02T03:04:06Z".to_owned(),
            next_attempt: None,
            result: None,
            error: None,
        }
    }

    #[test]
    fn table_has_a_line_a_job_and_keeps_the_terminal_safe() {
        let mut failed = job("02", JobStateView::Failed);
        failed.error = Some("no\u{1b}[2J such\nkey".to_owned());
        let text = table(&[job("01", JobStateView::Queued), failed]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].ends_with("convert    queued         -  b/k.img to qcow2"),
            "{text}"
        );
        assert!(lines[2].ends_with(": no\u{fffd}[2J such\u{fffd}key"), "{text}");
        assert_eq!(table(&[]), "no jobs\n");
    }

    #[test]
    fn details_say_what_is_known() {
        let mut done = job("01", JobStateView::Done);
        (done.done, done.total, done.percent) = (1 << 20, Some(1 << 21), Some(50));
        done.result = Some("made it".to_owned());
        let text = details(&done);
        assert!(text.contains("progress      1.00 MiB of 2.00 MiB\n"), "{text}");
        assert!(
            text.contains("result        made it\n") && !text.contains("error"),
            "{text}"
        );
    }
}
