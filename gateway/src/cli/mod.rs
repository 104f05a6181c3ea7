//! Commands: one file each.

mod backup;
pub(crate) mod convert;
mod fsck;
mod import;
pub(crate) mod inspect;
mod job;
mod progress;
mod quota;
mod restore;
mod scrub;
mod server;
mod upgrade;
mod user;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;

use crate::{
    admin::server::Endpoints,
    auth::read_credentials,
    client::{Client, parse_server},
    config::RootKeys,
};

/// Commands that ask a running server.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClientCommand {
    Job(job::Args),
    Import(import::Args),
    Scrub(scrub::ScrubArgs),
    Damage(scrub::DamageArgs),
    /// Tell a server of other servers
    Server {
        #[command(flatten)]
        connection: Connection,

        #[command(subcommand)]
        command: server::Command,
    },
    /// Create and delete users, and their access keys
    User {
        #[command(flatten)]
        connection: Connection,

        #[command(subcommand)]
        command: user::Command,
    },
    /// Bound what a bucket or a user may hold
    Quota {
        #[command(flatten)]
        connection: Connection,

        #[command(subcommand)]
        command: quota::Command,
    },
}

/// Commands on a data folder that no server has open; `backup` asks the server if one does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum FolderCommand {
    Backup(backup::Args),
    Restore(restore::Args),
    Fsck(fsck::Args),
    Upgrade(upgrade::Args),
}

/// Runs a command on a data folder.
pub(crate) async fn run_on_folder(command: FolderCommand, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    match command {
        FolderCommand::Backup(args) => backup::run(args, keys).await,
        FolderCommand::Restore(args) => restore::run(args).await,
        FolderCommand::Fsck(args) => Ok(fsck::run(args).await),
        FolderCommand::Upgrade(args) => upgrade::run(args).await,
    }
}

/// The data folder of a command.
#[derive(Debug, clap::Args)]
pub(crate) struct DataFolder {
    /// Data folder
    #[arg(long, env = "LITHOS_DATA", value_name = "DIR", default_value = "lithos-data")]
    data: PathBuf,
}

/// Runs a command against a server.
pub(crate) async fn run(command: ClientCommand, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    match command {
        ClientCommand::Job(args) => job::run(args, keys).await,
        ClientCommand::Import(args) => import::run(args, keys).await,
        ClientCommand::Scrub(args) => scrub::scrub(args, keys).await,
        ClientCommand::Damage(args) => scrub::damage(args, keys).await,
        ClientCommand::Server { connection, command } => server::run(command, &connection.open(keys)?).await,
        ClientCommand::User { connection, command } => user::run(command, &connection.open(keys)?).await,
        ClientCommand::Quota { connection, command } => quota::run(command, &connection.open(keys)?).await,
    }
}

/// Where the server is, and with what keys it is asked.
///
/// The keys come from `LITHOS_ACCESS_KEY` and `LITHOS_SECRET_KEY`; without them, from the data folder of a server on this
/// machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Management address of the server [default: that of the server on --data, or port 9001 of this machine]
    #[arg(long, env = "LITHOS_ADMIN", value_name = "URL", global = true)]
    admin: Option<String>,

    /// Data folder of a server on this machine, to take its address and keys from
    #[arg(
        long,
        env = "LITHOS_DATA",
        value_name = "DIR",
        global = true,
        default_value = "lithos-data"
    )]
    data: PathBuf,
}

/// The management address, where nothing says otherwise.
const ADMIN_DEFAULT: &str = "http://127.0.0.1:9001";

impl Connection {
    /// The client of that server.
    pub(crate) fn open(&self, keys: Option<RootKeys>) -> anyhow::Result<Client> {
        let address = match &self.admin {
            Some(address) => address.clone(),
            None => Endpoints::read(&self.data).map_or_else(|_| ADMIN_DEFAULT.to_owned(), |found| found.management),
        };
        let address = parse_server(&address)
            .map_err(anyhow::Error::msg)
            .context("the management address is wrong")?;
        let keys = match keys {
            Some(keys) => keys,
            None => read_credentials(&self.data.join("credentials")).context(
                "no keys for the server: set LITHOS_ACCESS_KEY and LITHOS_SECRET_KEY, \
                 or name the data folder of a server on this machine with --data DIR",
            )?,
        };
        Ok(Client::new(address, keys)?)
    }
}

/// Text from elsewhere, fit for a terminal: a key may hold what a terminal takes for commands.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(admin: Option<&str>, data: &std::path::Path) -> Connection {
        Connection {
            admin: admin.map(Into::into),
            data: data.into(),
        }
    }

    #[test]
    fn server_and_keys_are_found_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let error = connection(None, folder.path()).open(None).unwrap_err();
        assert!(error.to_string().contains("LITHOS_ACCESS_KEY"), "{error}");

        let credentials = "[default]\naws_access_key_id = A\naws_secret_access_key = hush\n";
        std::fs::write(folder.path().join("credentials"), credentials).unwrap();
        let client = format!("{:?}", connection(None, folder.path()).open(None).unwrap());
        assert!(client.contains("9001") && !client.contains("hush"), "{client}");

        let endpoints = r#"{"transfer":"http://127.0.0.1:1","management":"http://127.0.0.1:7777"}"#;
        std::fs::write(folder.path().join("endpoints.json"), endpoints).unwrap();
        assert!(format!("{:?}", connection(None, folder.path()).open(None).unwrap()).contains("7777"));
        let given = connection(Some("http://127.0.0.1:8888"), folder.path());
        assert!(format!("{:?}", given.open(None).unwrap()).contains("8888"));
        let error = connection(Some("127.0.0.1:9001"), folder.path())
            .open(None)
            .unwrap_err();
        assert!(format!("{error:#}").contains("http://HOST:PORT"), "{error:#}");
    }

    #[test]
    fn terminals_get_no_commands() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
