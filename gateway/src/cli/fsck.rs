//! `lithos fsck`: checks a data folder.

#![expect(clippy::print_stdout, reason = "the findings are what the command is asked for")]

use std::{collections::BTreeSet, fmt::Write, process::ExitCode};

use indicatif::BinaryBytes;
use lithos_storage::{
    fsck::{FsckOptions, Report},
    local::{Local, Mode},
};
use serde_json::json;

use super::{DataFolder, printable, progress::Bar};

/// The exit code of a check that could not be made.
const COULD_NOT_RUN: u8 = 2;

/// Check a data folder, without changing it
///
/// No server may run on it. Ends with 0 if all is well, with 1 if there are warnings or errors, and with 2 if it could not be
/// checked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DataFolder,

    /// Read every block of every blob and compare its checksum
    #[arg(long)]
    deep: bool,

    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> ExitCode {
    let mut bar = Bar::new();
    let checked = check(&args, &mut bar).await;
    bar.end();
    match checked {
        Ok(report) => {
            if args.json {
                println!("{:#}", as_json(&report));
            } else {
                print!("{}", as_text(&report));
            }
            if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("lithos: cannot check {}: {error:#}", args.folder.data.display());
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn check(args: &Args, bar: &mut Bar) -> anyhow::Result<Report> {
    let local = Local::open(&args.folder.data, Mode::ReadOnly)?;
    let options = FsckOptions { deep: args.deep };
    Ok(local
        .fsck(&options, &mut |step| bar.count(step.stage, step.done))
        .await?)
}

fn as_json(report: &Report) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "kind": finding.kind.name(),
                "severity": finding.kind.severity().to_string(),
                "subject": finding.subject,
                "detail": finding.detail,
                "meaning": finding.kind.meaning(),
                "advice": finding.kind.advice(),
            })
        })
        .collect();
    let counts = &report.counts;
    json!({
        "clean": report.is_clean(),
        "errors": report.errors,
        "warnings": report.warnings,
        "notes": report.notes,
        "findings": findings,
        "counts": {
            "buckets": counts.buckets,
            "objects": counts.objects,
            "object_bytes": counts.object_bytes,
            "uploads": counts.uploads,
            "parts": counts.parts,
            "layouts": counts.layouts,
            "blobs": counts.blobs,
            "blob_bytes": counts.blob_bytes,
            "jobs": counts.jobs,
        },
    })
}

/// A line a finding, then what each kind means, then what was looked at.
fn as_text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a string takes everything");
    let mut told = BTreeSet::new();
    for finding in &report.findings {
        let (severity, kind) = (finding.kind.severity(), finding.kind);
        let (subject, detail) = (printable(&finding.subject), printable(&finding.detail));
        line(format_args!("{severity:<8}{}: {subject}: {detail}", kind.name()));
        if told.insert(kind.name()) {
            line(format_args!("        {} {}", kind.meaning(), kind.advice()));
        }
    }
    let all = report.errors + report.warnings + report.notes;
    let listed = report.findings.len() as u64;
    if all > listed {
        line(format_args!("… and {} more", all - listed));
    }
    let counts = &report.counts;
    line(format_args!(
        "{} buckets, {} objects ({}), {} uploads, {} blobs ({}), {} jobs",
        counts.buckets,
        counts.objects,
        BinaryBytes(counts.object_bytes),
        counts.uploads,
        counts.blobs,
        BinaryBytes(counts.blob_bytes),
        counts.jobs
    ));
    line(format_args!(
        "{} errors, {} warnings, {} notes",
        report.errors, report.warnings, report.notes
    ));
    text
}

#[cfg(test)]
mod tests {
    use lithos_storage::fsck::{Finding, FindingKind};

    use super::*;

    fn report() -> Report {
        let finding = |subject: &str| Finding {
            kind: FindingKind::MissingBlob,
            subject: subject.to_owned(),
            detail: "it is missing".to_owned(),
        };
        Report {
            findings: vec![finding("one"), finding("t\u{1b}wo")],
            errors: 5,
            ..Report::default()
        }
    }

    #[test]
    fn text_explains_each_kind_once_and_counts_all() {
        let text = as_text(&report());
        assert_eq!(text.matches(FindingKind::MissingBlob.meaning()).count(), 1, "{text}");
        assert!(text.contains("… and 3 more") && text.contains("5 errors"), "{text}");
        assert!(text.contains("missing-blob: t\u{fffd}wo"), "{text}");
        assert!(as_text(&Report::default()).contains("0 errors, 0 warnings, 0 notes"));
    }

    #[test]
    fn json_says_what_to_do() {
        let json = as_json(&report());
        assert_eq!(json["clean"], false);
        assert_eq!(json["findings"][0]["severity"], "error");
        assert_eq!(json["findings"][0]["advice"], FindingKind::MissingBlob.advice());
    }
}
