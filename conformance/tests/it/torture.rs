//! A short torture: some rounds of each kind, and mutations that must be noticed. `make torture` runs long.

use std::time::Duration;

use anyhow::{Result, ensure};
use lithos_conformance::{
    pattern::fresh_seed,
    torture::{Mutation, Options, run},
};

/// Two rounds of each way to end.
const ROUNDS: u64 = 12;
/// Rounds within which a mutation has to be noticed; most are in the first few.
const MUTATION_ROUNDS: u64 = 40;

fn options(rounds: u64, mutation: Option<Mutation>) -> Options {
    Options {
        rounds,
        time: Duration::from_mins(2),
        seed: fresh_seed(),
        mutation,
        fresh: false,
        keep: false,
    }
}

async fn must_hold(options: Options) -> Result<()> {
    let report = run(&options, &mut |_| ()).await?;
    println!("{report}");
    ensure!(report.is_good(), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_keep_what_they_acknowledged() -> Result<()> {
    must_hold(options(ROUNDS, None)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_synced_is_noticed() -> Result<()> {
    must_hold(options(MUTATION_ROUNDS, Some(Mutation::Wal))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oracle_that_is_wrong_is_noticed() -> Result<()> {
    must_hold(options(1, Some(Mutation::Oracle))).await
}
