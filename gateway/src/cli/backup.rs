//! `lithos backup`: a copy of the store, of a running server or of a folder.

#![expect(clippy::print_stdout, reason = "what was made is what the command is asked for")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use lithos_storage::{
    clock::Clock,
    local::{Local, Mode, is_served},
};

use super::{
    Connection,
    job::{Watched, watch},
    printable,
    progress::Bar,
};
use crate::{
    admin::{backup::NewBackup, import::Accepted},
    app::SystemClock,
    config::RootKeys,
};

/// Copy the whole store, as of a moment, to a new folder
///
/// A running server makes the backup itself, as a job, while it serves; the folder is one of its machine. Without a server on
/// --data, the folder is copied here. In the same file system blobs are hard links: no time, no space, and no second copy of
/// the bytes. Name a folder on another disk for that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    lithos backup /mnt/backup/lithos-1\n  \
    lithos restore /mnt/backup/lithos-1 --data lithos-data --verify")]
pub(crate) struct Args {
    /// The folder to make
    #[arg(value_name = "TO")]
    to: PathBuf,

    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    let to = std::path::absolute(&args.to).context("the folder has no absolute path")?;
    if let Some(data) = args.connection.folder_at_rest() {
        return copy(&data, &to).await;
    }
    let client = args.connection.open(keys)?;
    let accepted: Accepted = client.post_json("/api/v1/backups", &NewBackup { to }).await?;
    println!("{}", printable(&accepted.job));
    watch(&client, Watched::Some(vec![accepted.job])).await
}

async fn copy(data: &Path, to: &Path) -> anyhow::Result<ExitCode> {
    let local = Local::open(data, Mode::ReadWrite)?;
    let mut bar = Bar::new();
    let made = local
        .backup(to, SystemClock.now(), &mut |progress| bar.bytes(progress))
        .await;
    bar.end();
    println!("{}: {}", to.display(), made?);
    Ok(ExitCode::SUCCESS)
}

impl Connection {
    /// The data folder, if it holds a store that no server has open, and no server was named.
    fn folder_at_rest(&self) -> Option<PathBuf> {
        let at_rest = self.admin.is_none() && is_served(&self.data).is_ok_and(|served| !served);
        at_rest.then(|| self.data.clone())
    }
}
