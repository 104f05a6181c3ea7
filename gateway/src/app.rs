//! What every part of the gateway shares.

use std::{num::NonZeroUsize, sync::Arc};

use lithos_storage::{
    Limits as StoreLimits, Store,
    blob::{Blobs, FsBlobs, FsOptions},
    clock::{Clock, Timestamp},
    kv::RocksKv,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{Admission, Limits},
    auth::Keyring,
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
    pub(crate) store: Store,
    pub(crate) keyring: Keyring,
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
    /// Cancelled when the server is to stop.
    pub(crate) stopping: CancellationToken,
}

/// The gateway, shared.
pub(crate) type SharedApp = Arc<App>;

impl App {
    /// Opens the data folder, making it where there is none, and clears what a crash left.
    pub(crate) async fn open(config: Config) -> anyhow::Result<SharedApp> {
        use anyhow::Context;
        let budget = Budget::claim(&config.bounds);
        let data = config.data.clone();
        std::fs::create_dir_all(&data).with_context(|| format!("cannot make the data folder {}", data.display()))?;
        let (kv, blobs) = tokio::task::spawn_blocking(move || {
            // The index first: its lock says that nobody else has the folder.
            let kv = RocksKv::open(&data.join("index"))?;
            let options = FsOptions {
                open_blobs_max: NonZeroUsize::new(budget.open_blobs).unwrap_or(NonZeroUsize::MIN),
                ..FsOptions::default()
            };
            let blobs = FsBlobs::open_with(&data.join("blobs"), &options)?;
            Ok::<_, lithos_storage::Error>((kv, blobs))
        })
        .await?
        .with_context(|| format!("cannot open the data folder {}", config.data.display()))?;
        let keyring = Keyring::open(&config.data, config.root_keys.clone())?;
        let limits = StoreLimits {
            reserve: blobs.space().await?.map_or(0, |space| config.reserve.bytes(space.total)),
            ..StoreLimits::default()
        };
        let store = Store::open_with(Arc::new(kv), Arc::new(blobs), Arc::new(SystemClock), limits).await?;
        let worker = u64::from(std::process::id()) << 32 | (store.now().0 & 0xffff_ffff);
        let recovered = store
            .recover(worker)
            .await
            .context("cannot clear what an earlier run left")?;
        if recovered != lithos_storage::Recovered::default() {
            tracing::info!(?recovered, "cleared what an earlier run left");
        }
        Ok(Arc::new(Self::new(config, budget, store, keyring, worker)))
    }

    /// A gateway over what is open already.
    pub(crate) fn new(config: Config, budget: Budget, store: Store, keyring: Keyring, worker: u64) -> Self {
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
            store,
            keyring,
            budget,
            admission,
            pace,
            metrics: Metrics::default(),
            scrubbing: Mutex::default(),
            worker,
            stopping: CancellationToken::new(),
        }
    }

    /// Whether this server serves `zone`.
    pub(crate) fn serves(&self, zone: &ZoneName) -> bool {
        self.config.zones.contains(zone)
    }
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
