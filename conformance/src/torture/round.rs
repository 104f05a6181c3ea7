//! A round: a load, an end, a new start, and a look.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use super::{
    Common, Ending, Mutation, check,
    client::Client,
    history::Histories,
    load::{Round, Worker},
    model::{Known, Tags, Version},
    report::Report,
    versions,
};
use crate::{
    pattern::Dice,
    target::{Server, ServerOptions, built},
};

/// Clients of a round.
const CLIENTS: u64 = 4;
/// How long a load lasts, in milliseconds.
const LOAD_MILLIS: std::ops::Range<u64> = 80..500;
/// Calls until the power is cut at one: a start on an existing folder makes some 300.
const CALLS_MAX: u64 = 2500;
/// Calls of a kind after which those begin that fail, and how many of them do.
const FAULT_AFTER: u64 = 300;
const FAULT_LEN: u64 = 4;
/// How long a server that is to end may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// What a process ends with whose power was cut.
const STATUS_CUT: i32 = 137;
/// What the server does in the background it does at once, so that it is cut off as well.
const BACKGROUND: [&str; 4] = ["--compact-after", "300ms", "--background-rate", "1GiB"];

/// Rounds on one data folder.
#[derive(Debug)]
pub(super) struct Epoch {
    server: Server,
    workers: Vec<Worker>,
    /// What the shared keys were found to be.
    shared: BTreeMap<&'static str, Option<u64>>,
    /// Whether the bucket was acknowledged.
    has_bucket: bool,
    /// Whether the bucket that keeps versions was, and that it keeps them.
    keeps_versions: bool,
    pub(super) rounds: u64,
    over: bool,
}

impl Epoch {
    pub(super) fn new(common: &Common, dice: &mut Dice) -> Result<Self> {
        let workers = (0..CLIENTS)
            .map(|number| Worker::new(number, dice.below(u64::MAX)))
            .collect();
        let mut epoch = Self {
            server: Server::prepare(ServerOptions {
                arguments: BACKGROUND.map(str::to_owned).to_vec(),
                ..ServerOptions::default()
            })?,
            workers,
            shared: BTreeMap::new(),
            has_bucket: false,
            keeps_versions: false,
            rounds: 0,
            over: false,
        };
        if !common.options.fresh {
            std::fs::create_dir(epoch.server.data())?;
        }
        epoch.spoil(common);
        Ok(epoch)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    fn client(&self) -> Client {
        Client {
            target: self.server.target().clone(),
        }
    }

    /// Has the oracle believe what nobody did, if that is asked for.
    fn spoil(&mut self, common: &Common) {
        if common.options.mutation == Some(Mutation::Oracle)
            && let Some(worker) = self.workers.first_mut()
        {
            let version = Version::new(Bytes::from_static(b"never sent"), Tags::new());
            worker.model.objects.insert(
                "0/spoiled.img".to_owned(),
                Known {
                    may: vec![Some(version)],
                },
            );
        }
    }

    pub(super) async fn round(
        &mut self,
        common: &Common,
        ending: Ending,
        mut dice: Dice,
        report: &mut Report,
    ) -> Result<()> {
        self.rounds += 1;
        *report.endings.entry(ending).or_default() += 1;
        self.prepare(common, ending, &mut dice, report);
        let started = self.start_or_end(ending)?;
        let mut histories = Histories::default();
        if started {
            self.buckets(ending).await?;
        }
        if started && self.has_bucket {
            histories = self.load(common, ending, &mut dice, report).await?;
        }
        self.finish(ending)?;
        self.server.set_environment(Vec::new());
        self.server.run().context("the server does not start again")?;
        self.look(&histories, report).await?;
        self.server.kill()
    }

    /// What the library is to do in this round.
    fn prepare(&mut self, common: &Common, ending: Ending, dice: &mut Dice, report: &mut Report) {
        if ending == Ending::Kill {
            self.server.set_environment(Vec::new());
            return;
        }
        let mut environment = vec![
            ("LD_PRELOAD", common.library.display().to_string()),
            ("POWERCUT_DIR", self.server.disk().display().to_string()),
            ("POWERCUT_SEED", dice.below(u64::MAX).to_string()),
        ];
        if ending == Ending::CutAtCall {
            environment.push(("POWERCUT_AT", (dice.below(CALLS_MAX) + 1).to_string()));
        }
        if matches!(ending, Ending::FailAndCut | Ending::FailAndKill | Ending::FailAndStop) {
            let kinds = ["eio", "enospc", "short", "sync", "rename"];
            let chosen = usize::try_from(dice.below(kinds.len() as u64)).unwrap_or(0);
            let kind = kinds.get(chosen).copied().unwrap_or("eio");
            let first = dice.below(FAULT_AFTER) + 1;
            let last = first + dice.below(FAULT_LEN);
            environment.push(("POWERCUT_FAIL", format!("{kind}@{first}:{last}")));
            *report.faults.entry(kind).or_default() += 1;
        }
        if let Some(ignored) = common.options.mutation.and_then(Mutation::ignored) {
            environment.push(("POWERCUT_IGNORE", ignored.to_owned()));
        }
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.server.set_environment(environment.collect());
    }

    /// Starts the server; whether it is there. In some rounds it may end while it starts.
    fn start_or_end(&mut self, ending: Ending) -> Result<bool> {
        match self.server.run() {
            Ok(()) => Ok(true),
            Err(_) if !matches!(ending, Ending::Cut | Ending::Kill) => Ok(false),
            Err(error) => Err(error).context("the server does not start"),
        }
    }

    /// Makes the buckets. In some rounds calls fail, and so may this.
    async fn buckets(&mut self, ending: Ending) -> Result<()> {
        let client = self.client();
        let must_work = matches!(ending, Ending::Cut | Ending::Kill);
        match check::make_bucket(&client).await {
            Ok(was_there) => ensure!(was_there || !self.has_bucket, "the bucket is gone"),
            Err(error) if must_work => return Err(error),
            Err(_) => return Ok(()),
        }
        self.has_bucket = true;
        if !self.keeps_versions {
            let made = versions::make_bucket(&client).await;
            self.keeps_versions = made.is_ok();
            return if must_work { made } else { Ok(()) };
        }
        Ok(())
    }

    async fn load(
        &mut self,
        common: &Common,
        ending: Ending,
        dice: &mut Dice,
        report: &mut Report,
    ) -> Result<Histories> {
        let round = Arc::new(Round {
            client: self.client(),
            histories: Histories::default(),
            values: Arc::clone(&common.values),
            actors: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            keeps_versions: self.keeps_versions,
            qcow2: common.qcow2.clone(),
        });
        let work: Vec<_> = self
            .workers
            .drain(..)
            .map(|mut worker| {
                let round = Arc::clone(&round);
                tokio::spawn(async move {
                    let held = worker.work(&round).await;
                    (worker, held)
                })
            })
            .collect();
        let millis = LOAD_MILLIS.start + dice.below(LOAD_MILLIS.end - LOAD_MILLIS.start);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        match ending {
            // It may have come to its call by itself.
            Ending::Cut | Ending::CutAtCall | Ending::FailAndCut => drop(self.server.signal("USR2")),
            Ending::Kill | Ending::FailAndKill => self.server.kill()?,
            Ending::FailAndStop => {}
        }
        round.stop.store(true, Ordering::Relaxed);
        let mut held = Ok(());
        for work in work {
            let (mut worker, worked) = work.await?;
            report.acknowledged += std::mem::take(&mut worker.acknowledged);
            report.unknown += std::mem::take(&mut worker.unknown);
            self.workers.push(worker);
            held = held.and(worked);
        }
        held?;
        let round = Arc::into_inner(round).context("a client is still at work")?;
        Ok(round.histories)
    }

    /// Sees to it that the server has ended, and as it should.
    fn finish(&mut self, ending: Ending) -> Result<()> {
        match ending {
            Ending::Kill | Ending::FailAndKill => self.server.kill(),
            Ending::FailAndStop => match self.server.stop() {
                Ok(status) => {
                    ensure!(status.success(), "a server that was told to stop ended with {status}");
                    Ok(())
                }
                // It did not start.
                Err(_) => self.server.kill(),
            },
            Ending::Cut | Ending::CutAtCall | Ending::FailAndCut => {
                let _ = self.server.signal("USR2");
                let status = self.server.ended(PATIENCE)?;
                match status.map(|status| status.code()) {
                    // It had ended while it started, and was seen to.
                    None if !self.server.is_running() => Ok(()),
                    Some(Some(STATUS_CUT)) => Ok(()),
                    _ => bail!(
                        "a server whose power was cut ended with {status:?}: {}",
                        self.server.log_end()
                    ),
                }
            }
        }
    }

    /// Holds the server against what is known.
    async fn look(&mut self, histories: &Histories, report: &mut Report) -> Result<()> {
        let client = self.client();
        let was_there = check::make_bucket(&client).await?;
        ensure!(was_there || !self.has_bucket, "the bucket is gone");
        self.has_bucket = true;
        for worker in &mut self.workers {
            report.checks += check::worker(&client, worker).await?;
            if self.keeps_versions {
                report.checks += versions::check(&client, worker).await?;
            }
        }
        let shared = check::shared(&client).await?;
        for (key, value) in &shared {
            let before = self.shared.get(key).copied().flatten();
            report.history_ops += histories.check(key, before, *value)? as u64;
            report.histories += 1;
        }
        self.shared = shared;
        Ok(())
    }

    /// Ends the epoch: jobs end, and when all is deleted nothing is left.
    pub(super) async fn end(&mut self, common: &Common, report: &mut Report) -> Result<()> {
        self.over = true;
        self.server.set_environment(Vec::new());
        self.server.run()?;
        let client = self.client();
        check::jobs_end(&self.server.management_target()).await?;
        for worker in &mut self.workers {
            report.checks += check::worker(&client, worker).await?;
            if self.keeps_versions {
                report.checks += versions::check(&client, worker).await?;
            }
            report.checks += check::derivatives(&client, worker, self.server.scratch(), common.qcow2.as_ref()).await?;
        }
        check::clear(&client).await?;
        if self.keeps_versions {
            versions::clear(&client).await?;
        }
        self.server.await_no_blobs()?;
        ensure!(
            !self.server.log().contains("panicked"),
            "the server has a bug: {}",
            self.server.log_end()
        );
        let status = self.server.stop()?;
        ensure!(status.success(), "a server that was told to stop ended with {status}");
        self.fsck()?;
        report.epochs += 1;
        Ok(())
    }

    /// Has the server's own checker look, where it has one.
    fn fsck(&self) -> Result<()> {
        let lithos = built("lithos", "LITHOS_BIN")?;
        let has_one = Command::new(&lithos)
            .args(["fsck", "--help"])
            .output()?
            .status
            .success();
        if has_one {
            let output = Command::new(&lithos)
                .args(["fsck", "--json", "--data"])
                .arg(self.server.data())
                .output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "fsck finds damage: {said}");
        }
        Ok(())
    }

    /// Says what is wrong, and how to see it again.
    pub(super) fn violation(&mut self, common: &Common, round: u64, ending: Ending, error: &anyhow::Error) -> String {
        let mut text = format!(
            "in round {round} ({ending:?}): {error:#}\n  again: lithos-torture --seed {} --rounds {}",
            common.options.seed,
            round + 1
        );
        let environment = self.server.environment();
        if !environment.is_empty() {
            let _ = write!(text, "\n  with {environment:?}");
        }
        if common.options.keep {
            self.server.keep_folder();
            let _ = write!(text, "\n  kept: {}", self.server.scratch().display());
        }
        text
    }
}
