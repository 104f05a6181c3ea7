//! `lithos scrub` and `lithos damage`: whether what is stored is whole.

#![expect(clippy::print_stdout, reason = "the findings are what the commands are asked for")]

use std::process::ExitCode;

use super::{
    Connection,
    job::{Watched, watch},
    printable,
};
use crate::{
    admin::{
        import::Accepted,
        integrity::{DamageView, NewScrub},
    },
    config::RootKeys,
};

/// Have the server read every stored byte and hold it against its checksums
///
/// The server does so by itself now and then (--scrub-days). A scrub is a job: it goes on after a restart, yields to clients,
/// and fails if it finds damage, naming the objects that it hurts. Damaged bytes are never served, with or without it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  lithos scrub --wait\n  lithos scrub --hurry --wait\n  lithos damage")]
pub(crate) struct ScrubArgs {
    /// Read as fast as it goes, rather than at the pace of background work
    #[arg(long)]
    hurry: bool,

    /// Show the progress, and wait until all is read; fails if there is damage
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    connection: Connection,
}

/// List the blobs that are known to be damaged, and the objects over them
///
/// A blob leaves the list when a scrub finds it whole again, or when it is gone. Fails if there is damage.
#[derive(Debug, clap::Args)]
pub(crate) struct DamageArgs {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn scrub(args: ScrubArgs, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    let client = args.connection.open(keys)?;
    let accepted: Accepted = client
        .post_json("/api/v1/scrubs", &NewScrub { hurry: args.hurry })
        .await?;
    println!("{}", printable(&accepted.job));
    if args.wait {
        return watch(&client, Watched::Some(vec![accepted.job])).await;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn damage(args: DamageArgs, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    let client = args.connection.open(keys)?;
    let damaged: Vec<DamageView> = client.get_json("/api/v1/damage").await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&damaged)?);
    } else if damaged.is_empty() {
        println!("no damage is known; `lithos scrub --wait` reads everything");
    } else {
        for view in &damaged {
            print_damage(view);
        }
    }
    Ok(if damaged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_damage(view: &DamageView) {
    let places: Vec<String> = view.offsets.iter().map(u64::to_string).collect();
    let places = if places.is_empty() {
        "as a whole".to_owned()
    } else {
        format!("at byte {}", places.join(", "))
    };
    println!("blob {} {places}: {} (found {})", view.blob, view.reason, view.found);
    for object in &view.objects {
        println!("  {}", printable(object));
    }
}
