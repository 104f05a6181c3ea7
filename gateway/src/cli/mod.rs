//! Commands: one file each.

pub(crate) mod convert;
pub(crate) mod inspect;
pub(crate) mod server;

use std::process::ExitCode;

use crate::config::RootKeys;

/// Commands that ask a running server.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClientCommand {}

/// Runs a command against a server.
pub(crate) async fn run(command: ClientCommand, _keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    match command {}
}
