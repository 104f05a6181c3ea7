//! Runs the cases and the clients against any S3 endpoint, and prints what passed:
//!
//! ```text
//! AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... lithos-conformance --endpoint http://127.0.0.1:9000 [WORD]
//! ```
//!
//! Without an endpoint it starts a Lithos server of its own, on which nothing may be skipped and nothing may be left over.
//! Makes buckets of its own, and removes them. The status is 0 if all is well, 1 if not.

#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lithos_conformance::{
    case, suite,
    table::{Style, Table},
    target::{Server, ServerOptions, Target},
};

/// Runs the conformance cases, and the everyday work of real clients, against an S3 endpoint.
#[derive(Debug, Parser)]
#[command(name = "lithos-conformance", version)]
struct Arguments {
    /// Only families, operations and names of cases that hold this word
    #[arg(default_value = "", hide_default_value = true)]
    word: String,
    /// The endpoint, plain HTTP; without one, a Lithos server is started for the purpose
    #[arg(long, env = "AWS_ENDPOINT_URL")]
    endpoint: Option<String>,
    /// The region to sign for
    #[arg(long, env = "AWS_DEFAULT_REGION", default_value = "us-east-1")]
    region: String,
    /// The access key of the endpoint
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key: Option<String>,
    /// The secret key of the endpoint; better in the environment than here
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_key: Option<String>,
    /// Below which domain the endpoint answers to virtual-host style
    #[arg(long, env = "S3_DOMAIN")]
    domain: Option<String>,
    /// Writes the table as Markdown
    #[arg(long)]
    markdown: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (target, server) = match &arguments.endpoint {
        Some(endpoint) => (foreign(&arguments, endpoint)?, None),
        None => own()?,
    };
    let table = run(&target, &arguments.word).await;
    let style = if arguments.markdown {
        Style::Markdown
    } else {
        Style::Text
    };
    let total = table.total();
    println!("\n{}\n\n{total}", table.styled(style));
    let mut is_good = total.failed == 0 && total.passed > 0;
    if let Some(server) = server {
        is_good &= total.skipped == 0;
        server
            .await_no_blobs()
            .context("what the cases stored is not all gone")?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An endpoint that runs already.
fn foreign(arguments: &Arguments, endpoint: &str) -> Result<Target> {
    Ok(Target {
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        region: arguments.region.clone(),
        access_key: arguments.access_key.clone().context("set AWS_ACCESS_KEY_ID")?,
        secret_key: arguments.secret_key.clone().context("set AWS_SECRET_ACCESS_KEY")?,
        domain: arguments.domain.clone(),
        management: None,
    })
}

/// A server that ends with this program.
fn own() -> Result<(Target, Option<Server>)> {
    let server = Server::start_with(ServerOptions {
        domain: Some("s3.test".to_owned()),
        ..ServerOptions::default()
    })?;
    Ok((server.target().clone(), Some(server)))
}

async fn run(target: &Target, word: &str) -> Table {
    let mut table = Table::default();
    for family in suite::families() {
        let mut cases = family.cases.clone();
        if !family.title.contains(word) && !family.module.contains(word) {
            cases.retain(|case| case.name.contains(word) || case.operation.contains(word));
        }
        if cases.is_empty() {
            continue;
        }
        let report = case::run(target, &cases).await;
        println!("\n{}\n{report}", family.title);
        table.add(&family, report.tally());
    }
    table
}
