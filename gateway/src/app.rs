//! What every part of the gateway shares.

use std::sync::{Arc, OnceLock};

use lithos_storage::{
    Store,
    clock::{Clock, Timestamp},
    local::{Local, Mode},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::server::Endpoints,
    auth::{KeyFiles, Keyring},
    config::Config,
    zone::ZoneName,
};

/// The gateway: its store, its keys and its settings.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    /// The data folder.
    pub(crate) local: Local,
    pub(crate) store: Store,
    pub(crate) keyring: Keyring,
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
        let cannot_open = || format!("cannot open the data folder {}", config.data.display());
        let (data, mode) = (config.data.clone(), config.mode());
        let local = tokio::task::spawn_blocking(move || Local::open(&data, mode))
            .await?
            .with_context(cannot_open)?;
        let files = match mode {
            Mode::ReadWrite => KeyFiles::MakeMissing,
            Mode::ReadOnly => KeyFiles::Read,
        };
        let keyring = Keyring::open(&config.data, config.root_keys.clone(), files)?;
        let store = local.store(Arc::new(SystemClock)).await.with_context(cannot_open)?;
        let worker = u64::from(std::process::id()) << 32 | (store.now().0 & 0xffff_ffff);
        if mode == Mode::ReadWrite {
            recover(&store, worker).await?;
        }
        Ok(Arc::new(Self {
            config,
            local,
            store,
            keyring,
            worker,
            endpoints: OnceLock::new(),
            stopping: CancellationToken::new(),
        }))
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
