//! `lithos restore`: from a backup to a data folder.

#![expect(clippy::print_stdout, reason = "what was made is what the command is asked for")]

use std::{path::PathBuf, process::ExitCode};

use lithos_storage::local::{RestoreOptions, restore};

use super::{DataFolder, progress::Bar};

/// Make a data folder of a backup
///
/// The folder appears when everything in it is there: every blob is looked at before. It must not exist, or be empty.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backup
    #[arg(value_name = "FROM")]
    from: PathBuf,

    #[command(flatten)]
    folder: DataFolder,

    /// Read every block and compare its checksum
    #[arg(long)]
    verify: bool,

    /// Share the bytes with the backup by hard links, instead of copying them
    #[arg(long)]
    link: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let data = std::path::absolute(&args.folder.data)?;
    let options = RestoreOptions {
        link: args.link,
        verify: args.verify,
    };
    let mut bar = Bar::new();
    let restored = restore(&args.from, &data, options, &mut |progress| bar.bytes(progress)).await;
    bar.end();
    let restored = restored?;
    println!("{}: {}", data.display(), restored.manifest);
    Ok(ExitCode::SUCCESS)
}
