//! Runs the cases against any S3 endpoint, from the variables that the AWS command line knows:
//!
//! ```text
//! AWS_ENDPOINT_URL=http://127.0.0.1:9000 AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... lithos-conformance [WORD]
//! ```
//!
//! With a word, only cases whose operation or name holds it. Makes buckets of its own, and removes them.

#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

use std::process::ExitCode;

use anyhow::{Context, Result};
use lithos_conformance::{case, cases, target::Target};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("set {name}"));
    let target = Target {
        endpoint: variable("AWS_ENDPOINT_URL")?.trim_end_matches('/').to_owned(),
        region: variable("AWS_DEFAULT_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
        access_key: variable("AWS_ACCESS_KEY_ID")?,
        secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
        domain: variable("S3_DOMAIN").ok(),
    };
    let word = std::env::args().nth(1).unwrap_or_default();
    let mut wanted = cases::all();
    wanted.retain(|case| case.name.contains(&word) || case.operation.contains(&word));
    let report = case::run(&target, &wanted).await;
    println!("{report}");
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
