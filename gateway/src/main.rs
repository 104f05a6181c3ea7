//! Lithos: one image server for every cloud.
//!
//! A thin edge around the crates `storage` (what is kept) and `convert` (what an image is): it authenticates, calls and
//! renders, and runs the jobs that tags, imports and bindings ask for. This file is the only one that reads arguments and
//! environment.
//!
//! | module | holds |
//! | --- | --- |
//! | `config`, `app`, `server` | settings, what everything shares, listeners and shutdown |
//! | `admission`, `pace`, `metrics` | whose turn it is, background work that yields, what is counted |
//! | `workers` | work on all cores whose results are taken in order |
//! | `s3` | one file a family of S3 operations |
//! | `auth` | keys, secrets at rest |
//! | `image` | where an object meets an image: tags, probes |
//! | `job` | the runner, and one file a kind of job |
//! | `lifecycle` | carrying out the lifecycle rules of buckets |
//! | `import` | fetching a URL safely |
//! | `client`, `outgoing` | signed requests to servers, and what all outgoing connections share |
//! | `zone` | peers and replication |
//! | `admin` | the JSON API on the management address |
//! | `client` | signed requests to a server |
//! | `cli` | one file a command |

mod admin;
mod admission;
mod app;
mod auth;
mod cli;
mod client;
mod config;
mod error;
mod image;
mod import;
mod job;
mod lifecycle;
mod maintain;
mod metrics;
mod outgoing;
mod pace;
mod s3;
mod server;
mod workers;
mod zone;

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{RootKeys, Settings};

/// One image server for every cloud: an S3 gateway that understands disk images.
///
/// Start a server with `lithos serve`. Then use any S3 client against the transfer address: tag an object
/// `convert-to=qcow2` and that format exists beside it; tag it `replicate-to=ZONE` and the servers of that zone have it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an image server
    ///
    /// Root keys come from `LITHOS_ACCESS_KEY` and `LITHOS_SECRET_KEY`. Without them the first start makes a pair and writes it
    /// to `credentials` in the data folder, where the aws command finds it by `AWS_SHARED_CREDENTIALS_FILE`.
    Serve {
        /// TOML file with the settings below, spelled the same without dashes in front; those on images are its table `[image]`
        #[arg(long, env = "LITHOS_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    Convert(cli::convert::Args),
    Inspect(cli::inspect::Args),
    #[command(flatten)]
    Folder(cli::FolderCommand),
    #[command(flatten)]
    Client(cli::ClientCommand),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lithos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve { config, settings } => {
            log_to_stderr();
            let file = config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
            let config = settings.or(file).check(environment_keys()?)?;
            runtime()?.block_on(server::serve(config))?;
        }
        Command::Convert(args) => return cli::convert::run(&args),
        Command::Inspect(args) => cli::inspect::run(&args)?,
        Command::Folder(command) => return runtime()?.block_on(cli::run_on_folder(command, environment_keys()?)),
        Command::Client(command) => return runtime()?.block_on(cli::run(command, environment_keys()?)),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("LITHOS_LOG").unwrap_or_else(|_| EnvFilter::new("info,s3s=warn"));
    let colors = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colors)
        .with_target(false)
        .init();
}

/// Root keys from the environment. One without the other is a mistake that would go unnoticed.
fn environment_keys() -> anyhow::Result<Option<RootKeys>> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (variable("LITHOS_ACCESS_KEY"), variable("LITHOS_SECRET_KEY")) {
        (Some(access_key), Some(secret_key)) => Ok(Some(RootKeys {
            access_key,
            secret_key: secret_key.into(),
        })),
        (None, None) => Ok(None),
        _ => anyhow::bail!("set both LITHOS_ACCESS_KEY and LITHOS_SECRET_KEY, or neither"),
    }
}
