//! Power cuts, kills and failing disks under load, and what must hold afterwards.
//!
//! A run is a row of rounds. In each, a server is started, a few clients do random things to it for a moment, and it ends:
//! its power is cut (by the library `lithos-powercut`), it is killed, or calls of it fail and it is then killed or told to
//! stop. It is started again, on a sound disk, and held against what the clients know: `model` says what is allowed,
//! `check` looks, `history` judges keys that all clients share.
//!
//! Some rounds make an epoch. At its end all jobs have to end, all objects are deleted, and then no file of a blob may be
//! left; the next epoch may begin with a new data folder.
//!
//! A [`Mutation`] spoils one thing that the promise rests on, such as one kind of sync. A run with a mutation that finds
//! nothing shows that the torture is blind.

mod check;
mod client;
mod history;
mod load;
mod model;
mod report;
mod round;
mod versions;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;

pub use self::report::Report;
use self::{load::Qcow2, round::Epoch};
use crate::{pattern::Dice, target::built, tool::qemu_img_convert};

/// Rounds of an epoch.
const EPOCH_ROUNDS: u64 = 20;
/// Violations after which a run ends: what is broken so badly need not be shown more often.
const VIOLATIONS_MAX: usize = 5;

/// How a run is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds, at most.
    pub rounds: u64,
    /// Time, at most; the round and the epoch under way are finished.
    pub time: Duration,
    /// Repeats the choices of a run; its moments vary all the same.
    pub seed: u64,
    /// What is spoiled.
    pub mutation: Option<Mutation>,
    /// Has the server make its data folder itself. Otherwise it is there, empty, before the first start, as an installation
    /// leaves it, so that its own name cannot be lost.
    pub fresh: bool,
    /// Keeps the folder of a server in which a violation was found.
    pub keep: bool,
}

/// What is spoiled, so that a violation must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// Syncs of the index's log do nothing.
    Wal,
    /// Syncs of blobs do nothing.
    BlobData,
    /// Syncs of the folders of blobs do nothing.
    BlobFolder,
    /// Syncs of the folder of the index do nothing.
    IndexFolder,
    /// The oracle takes something for acknowledged that never was sent.
    Oracle,
}

impl Mutation {
    /// What the library is to ignore.
    fn ignored(self) -> Option<&'static str> {
        match self {
            Self::Wal => Some("data:.log"),
            Self::BlobData => Some("data:/blobs/"),
            Self::BlobFolder => Some("dir:/blobs/"),
            Self::IndexFolder => Some("dir:/index"),
            Self::Oracle => None,
        }
    }
}

/// How a round ends. The order is that in which they take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The power is cut at a moment.
    Cut,
    /// The power is cut at a call, which may be in the middle of the start.
    CutAtCall,
    /// SIGKILL.
    Kill,
    /// Calls fail, and then the power is cut.
    FailAndCut,
    /// Calls fail, and then SIGKILL.
    FailAndKill,
    /// Calls fail, and then SIGTERM.
    FailAndStop,
}

impl Ending {
    /// Half of them plain power cuts, the others in turn.
    fn of(round: u64) -> Self {
        let others = [
            Self::CutAtCall,
            Self::Kill,
            Self::FailAndCut,
            Self::FailAndKill,
            Self::FailAndStop,
        ];
        let turn = usize::try_from(round / 2 % others.len() as u64).unwrap_or(0);
        match round % 2 {
            0 => Self::Cut,
            _ => others.get(turn).copied().unwrap_or(Self::Cut),
        }
    }
}

/// Runs, and shows `watch` what there is after each round.
///
/// # Errors
///
/// If something is missing that a run needs; what the server does wrong is in the report.
pub async fn run(options: &Options, watch: &mut (dyn FnMut(&Report) + Send)) -> Result<Report> {
    let library = built("liblithos_powercut.so", "LITHOS_POWERCUT")?;
    let common = Common {
        options: options.clone(),
        library,
        qcow2: Some(qcow2_image()?),
        values: Arc::new(AtomicU64::new(1)),
    };
    let begun = Instant::now();
    let mut report = Report::new(options);
    let mut epoch: Option<Epoch> = None;
    for round in 0..options.rounds {
        if begun.elapsed() >= options.time || report.violations.len() >= VIOLATIONS_MAX {
            break;
        }
        let mut dice = Dice(options.seed.wrapping_add(round.wrapping_mul(0x9e37_79b9)));
        let mut current = match epoch.take() {
            Some(epoch) => epoch,
            None => Epoch::new(&common, &mut dice)?,
        };
        let ending = if options.mutation.is_some() {
            Ending::Cut
        } else {
            Ending::of(round)
        };
        report.rounds += 1;
        let is_last = round + 1 == options.rounds || begun.elapsed() >= options.time;
        let held = current.round(&common, ending, dice, &mut report).await;
        let held = match held {
            Ok(()) if is_last || current.rounds >= EPOCH_ROUNDS => current.end(&common, &mut report).await,
            held => held,
        };
        match held {
            Ok(()) => epoch = (!current.is_over()).then_some(current),
            Err(error) => report
                .violations
                .push(current.violation(&common, round, ending, &error)),
        }
        report.took = begun.elapsed();
        watch(&report);
        if options.mutation.is_some() && !report.violations.is_empty() {
            break;
        }
    }
    if let Some(mut epoch) = epoch
        && let Err(error) = epoch.end(&common, &mut report).await
    {
        let violation = epoch.violation(&common, report.rounds, Ending::Kill, &error);
        report.violations.push(violation);
    }
    report.took = begun.elapsed();
    Ok(report)
}

/// What all rounds share.
#[derive(Debug)]
struct Common {
    options: Options,
    library: PathBuf,
    qcow2: Option<Qcow2>,
    values: Arc<AtomicU64>,
}

/// A small image, as qcow2 and as a guest sees it.
fn qcow2_image() -> Result<Qcow2> {
    /// Bytes of the image, and those of them that are not zero.
    const SIZE: usize = 256 << 10;
    const CONTENT: u64 = 20_000;
    let folder = tempfile::tempdir()?;
    let (raw, qcow2) = (folder.path().join("image.raw"), folder.path().join("image.qcow2"));
    let mut bytes = crate::pattern::Pattern(7).bytes(0..CONTENT);
    bytes.resize(SIZE, 0);
    std::fs::write(&raw, &bytes)?;
    qemu_img_convert(&raw, &qcow2, &["-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k"])?;
    let file = std::fs::read(&qcow2).context("qemu-img made no image")?;
    Ok(Qcow2 {
        file: file.into(),
        raw: Bytes::from(bytes),
    })
}
