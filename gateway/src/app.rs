//! What every part of the gateway shares.

use std::{
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
};

use lithos_storage::{
    Limits as StoreLimits, Store,
    blob::FsOptions,
    clock::{Clock, Timestamp},
    local::{Local, Mode},
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::server::Endpoints,
    admission::{Admission, Limits},
    auth::{KeyFiles, Keyring, user},
    config::Config,
    metrics::Metrics,
    pace::Pace,
    server::{QUEUE_FACTOR, QUEUE_WAIT, descriptors::Budget},
    zone::ZoneName,
};

/// Requests under way for each core beside which background work does not slow down: one that computes and one that
/// waits for the disk or the client.
const QUIET_REQUESTS_PER_CORE: usize = 2;

/// The gateway: its store, its keys and its settings.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    /// The data folder.
    pub(crate) local: Local,
    pub(crate) store: Store,
    pub(crate) keyring: Keyring,
    /// The users who came lately.
    pub(crate) users: user::Recent,
    /// How the file descriptors are divided.
    pub(crate) budget: Budget,
    /// Which S3 requests go ahead.
    pub(crate) admission: Arc<Admission>,
    /// What background work asks before each step.
    pub(crate) pace: Pace,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// One scrub reads at a time.
    pub(crate) scrubbing: Mutex<()>,
    /// Names this process among all that ever work on the jobs of the store.
    pub(crate) worker: u64,
    /// Where it listens, once it does.
    pub(crate) endpoints: OnceLock<Endpoints>,
    /// Cancelled when the server is to stop.
    pub(crate) stopping: CancellationToken,
}

/// The gateway, shared.
pub(crate) type SharedApp = Arc<App>;

impl App {
    /// Opens the data folder, making it where there is none, and clears what a crash left. For reading only, nothing is made
    /// or cleared.
    pub(crate) async fn open(config: Config) -> anyhow::Result<SharedApp> {
        use anyhow::Context;
        let budget = Budget::claim(&config.bounds);
        let cannot_open = || format!("cannot open the data folder {}", config.data.display());
        let (data, mode) = (config.data.clone(), config.mode());
        let options = FsOptions {
            open_blobs_max: NonZeroUsize::new(budget.open_blobs).unwrap_or(NonZeroUsize::MIN),
            ..FsOptions::default()
        };
        let local = tokio::task::spawn_blocking(move || Local::open_with(&data, mode, &options))
            .await?
            .with_context(cannot_open)?;
        let files = match mode {
            Mode::ReadWrite => KeyFiles::MakeMissing,
            Mode::ReadOnly => KeyFiles::Read,
        };
        let keyring = Keyring::open(&config.data, config.root_keys.clone(), files)?;
        let space = local.blobs().space().await?;
        let limits = StoreLimits {
            reserve: space.map_or(0, |space| config.reserve.bytes(space.total)),
            compact_after_millis: u64::try_from(config.compact_after.as_millis()).unwrap_or(u64::MAX),
            ..StoreLimits::default()
        };
        let store = local
            .store_with(Arc::new(SystemClock), limits)
            .await
            .with_context(cannot_open)?;
        let worker = u64::from(std::process::id()) << 32 | (store.now().0 & 0xffff_ffff);
        if mode == Mode::ReadWrite {
            recover(&store, worker).await?;
        }
        Ok(Arc::new(Self::new(config, budget, local, store, keyring, worker)))
    }

    /// A gateway over what is open already.
    fn new(config: Config, budget: Budget, local: Local, store: Store, keyring: Keyring, worker: u64) -> Self {
        let admission = Admission::new(Limits {
            requests: budget.requests,
            bytes: config.bounds.buffer_max,
            waiting: budget.requests.saturating_mul(QUEUE_FACTOR),
            patience: QUEUE_WAIT,
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let quiet_max = cores.saturating_mul(QUIET_REQUESTS_PER_CORE);
        let pace = Pace::new(Arc::clone(&admission), config.bounds.background_rate, quiet_max);
        Self {
            config,
            local,
            store,
            keyring,
            users: user::Recent::default(),
            budget,
            admission,
            pace,
            metrics: Metrics::default(),
            scrubbing: Mutex::default(),
            worker,
            endpoints: OnceLock::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Whether this server serves `zone`.
    pub(crate) fn serves(&self, zone: &ZoneName) -> bool {
        self.config.zones.contains(zone)
    }
}

async fn recover(store: &Store, worker: u64) -> anyhow::Result<()> {
    use anyhow::Context;
    let recovered = store
        .recover(worker)
        .await
        .context("cannot clear what an earlier run left")?;
    if recovered != lithos_storage::Recovered::default() {
        tracing::info!(?recovered, "cleared what an earlier run left");
    }
    Ok(())
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one clock that everything else is given"
    )]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }
}
