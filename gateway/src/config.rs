//! Settings of the server: flags and environment over a TOML file over defaults, checked once into a [`Config`].

mod limits;
mod unit;

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use ipnet::IpNet;
use lithos_convert::Limits;
use lithos_storage::{lifecycle::Day, local::Mode};
use serde::Deserialize;

pub(crate) use self::limits::ImageLimits;
use self::unit::{ByteSize, Span};
use crate::zone::ZoneName;

/// Settings as people give them; what is missing is looked for in the next place.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Folder that holds everything: index, blobs, credentials [default: ./lithos-data]
    #[arg(long, env = "LITHOS_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Transfer address: S3 [default: 127.0.0.1:9000]; port 0 takes a free one
    #[arg(long, env = "LITHOS_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,

    /// Management address: admin API, health [default: 127.0.0.1:9001]
    #[arg(long, env = "LITHOS_ADMIN_LISTEN", value_name = "ADDR")]
    pub(crate) admin_listen: Option<SocketAddr>,

    /// Zones this server serves; give the flag again for each [default: default]
    #[arg(long = "zone", env = "LITHOS_ZONE", value_name = "NAME", value_delimiter = ',')]
    pub(crate) zone: Vec<String>,

    /// Domain for virtual-host style requests: bucket.DOMAIN; give the flag again for each
    #[arg(long = "domain", env = "LITHOS_DOMAIN", value_name = "NAME", value_delimiter = ',')]
    pub(crate) domain: Vec<String>,

    /// Addresses that imports may fetch from although they are loopback, link-local or private, as CIDR blocks
    #[arg(
        long = "import-allow",
        env = "LITHOS_IMPORT_ALLOW",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) import_allow: Vec<IpNet>,

    /// PEM file of further certificate authorities that imports trust
    #[arg(long, env = "LITHOS_IMPORT_CA", value_name = "FILE")]
    pub(crate) import_ca: Option<PathBuf>,

    /// Jobs that run at a time [default: 2]
    #[arg(long, env = "LITHOS_WORKERS", value_name = "N")]
    pub(crate) workers: Option<usize>,

    /// Space that new data leaves free on the disk, as bytes (2GiB) or a part of it (5%); 0B for none [default: 2%]
    #[arg(long, env = "LITHOS_RESERVE", value_name = "SIZE")]
    pub(crate) reserve: Option<Reserve>,

    /// Days after which all stored bytes are held against their checksums again; 0 for never [default: 30]
    #[arg(long, env = "LITHOS_SCRUB_DAYS", value_name = "N")]
    pub(crate) scrub_days: Option<u32>,

    /// How long after its deletion an image is looked at for parts that others still need, to free the rest [default: 10m]
    #[arg(long, env = "LITHOS_COMPACT_AFTER", value_name = "DURATION")]
    pub(crate) compact_after: Option<Span>,

    /// How long a day of lifecycle rules is, for tests: rules then count in such days [default: 24h]
    #[arg(long, env = "LITHOS_LIFECYCLE_DAY", value_name = "DURATION")]
    pub(crate) lifecycle_day: Option<Span>,

    /// Connections at a time of the transfer address [default: 4096, or what the limit of open files has room for]
    #[arg(long, env = "LITHOS_CONNECTIONS_MAX", value_name = "N")]
    pub(crate) connections_max: Option<usize>,

    /// Connections at a time of the management address [default: 256, or what the limit of open files has room for]
    #[arg(long, env = "LITHOS_ADMIN_CONNECTIONS_MAX", value_name = "N")]
    pub(crate) admin_connections_max: Option<usize>,

    /// S3 requests under way at a time; four times as many wait their turn [default: 512]
    #[arg(long, env = "LITHOS_REQUESTS_MAX", value_name = "N")]
    pub(crate) requests_max: Option<usize>,

    /// Memory for the bodies of requests under way [default: 256MiB]
    #[arg(long, env = "LITHOS_BUFFER_MAX", value_name = "SIZE")]
    pub(crate) buffer_max: Option<ByteSize>,

    /// How long a client may be silent, or slower than 4 KiB a second, before it is cut off [default: 60s]
    #[arg(long, env = "LITHOS_CLIENT_TIMEOUT", value_name = "DURATION")]
    pub(crate) client_timeout: Option<Span>,

    /// Bytes a second that background work may move; it yields to clients beside that [default: 64MiB]
    #[arg(long, env = "LITHOS_BACKGROUND_RATE", value_name = "SIZE")]
    pub(crate) background_rate: Option<ByteSize>,

    /// Serve reads only, and write nothing to the data folder: no jobs, no sweep
    #[arg(long = "read-only", env = "LITHOS_READ_ONLY")]
    pub(crate) read_only: bool,

    #[command(flatten)]
    pub(crate) image: ImageLimits,
}

/// Settings that have been checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) zones: Vec<ZoneName>,
    pub(crate) domains: Vec<String>,
    pub(crate) import: ImportConfig,
    /// What is accepted of images.
    pub(crate) image: Limits,
    pub(crate) workers: usize,
    pub(crate) reserve: Reserve,
    pub(crate) scrub_days: u32,
    pub(crate) compact_after: Duration,
    /// A day of lifecycle rules.
    pub(crate) lifecycle_day: Duration,
    pub(crate) bounds: Bounds,
    /// Whether the data folder is only read.
    pub(crate) read_only: bool,
    /// Root keys from the environment; without them the data folder holds a pair.
    pub(crate) root_keys: Option<RootKeys>,
}

/// How much of the machine clients and background work may take.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Connections of the transfer address; what the limit of open files has room for, if it is not said.
    pub(crate) connections_max: Option<usize>,
    /// Connections of the management address, likewise.
    pub(crate) admin_connections_max: Option<usize>,
    /// S3 requests under way at a time.
    pub(crate) requests_max: usize,
    /// Bytes that these hold in memory together.
    pub(crate) buffer_max: u64,
    /// How long a client may be silent, or slower than the least rate.
    pub(crate) client_timeout: Duration,
    /// Bytes a second of background work.
    pub(crate) background_rate: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: None,
            admin_connections_max: None,
            // More do not make two or sixty-four cores faster, and each may hold two files open.
            requests_max: 512,
            buffer_max: 256 << 20,
            client_timeout: Duration::from_mins(1),
            // Less than half of what one disk of a small machine does.
            background_rate: 64 << 20,
        }
    }
}

impl Config {
    /// What is done to the data folder.
    pub(crate) fn mode(&self) -> Mode {
        if self.read_only {
            Mode::ReadOnly
        } else {
            Mode::ReadWrite
        }
    }

    /// The days that lifecycle rules count in.
    pub(crate) fn day(&self) -> Day {
        Day::of_millis(u64::try_from(self.lifecycle_day.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What imports may do.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImportConfig {
    /// Addresses that would be refused otherwise.
    pub(crate) allow: Vec<IpNet>,
    /// Certificate authorities beside those of the system, as PEM.
    pub(crate) ca_pem: Option<Vec<u8>>,
}

/// What a day is.
pub(crate) const LIFECYCLE_DAY: Duration = Duration::from_hours(24);
/// Shorter ones are for tests; in the shortest, a pass through a bucket takes as long.
const LIFECYCLE_DAYS: RangeInclusive<Duration> = Duration::from_millis(100)..=LIFECYCLE_DAY;

/// Most images are gone for good by then.
pub(crate) const COMPACT_AFTER: Duration = Duration::from_mins(10);

/// How much of the disk new data leaves free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Reserve {
    /// So many bytes.
    Bytes(u64),
    /// A part of the disk, in hundredths.
    Percent(u8),
}

impl Reserve {
    /// In bytes, on a disk of `total`.
    pub(crate) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

impl std::str::FromStr for Reserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size: say 2GiB, 500MiB or 5%; 0B for none");
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse().ok().filter(|percent| *percent < 100);
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        text.parse()
            .map(|ByteSize(bytes)| Self::Bytes(bytes))
            .map_err(|_| wrong())
    }
}

impl TryFrom<String> for Reserve {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The pair of keys that may do everything.
#[derive(Clone)]
pub(crate) struct RootKeys {
    pub(crate) access_key: String,
    pub(crate) secret_key: s3s::auth::SecretKey,
}

impl std::fmt::Debug for RootKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootKeys")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// Most jobs at a time: each may hold a few MiB and a thread.
const WORKERS_MAX: usize = 64;
/// Most connections of an address: each costs some 10 KiB while it is idle.
const CONNECTIONS_MAX: usize = 1 << 20;
/// Most requests at a time: beyond it the memory of those that wait counts.
const REQUESTS_MAX: usize = 1 << 16;
/// The least memory for bodies: two of the largest signed chunks, so that one client cannot have it all.
const BUFFER_LEN_MIN: u64 = 32 << 20;
/// The least and the longest that a client may be silent: a packet that is lost twice takes a second.
const CLIENT_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
/// The least rate of background work: with less, a sweep would not keep up with anything.
const BACKGROUND_RATE_MIN: u64 = 64 << 10;

impl Settings {
    /// Reads a TOML file.
    pub(crate) fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))
    }

    /// These settings, and where they are silent, those of `file`.
    pub(crate) fn or(self, file: Self) -> Self {
        let lists = |ours: Vec<String>, theirs| if ours.is_empty() { theirs } else { ours };
        Self {
            data: self.data.or(file.data),
            listen: self.listen.or(file.listen),
            admin_listen: self.admin_listen.or(file.admin_listen),
            zone: lists(self.zone, file.zone),
            domain: lists(self.domain, file.domain),
            import_allow: if self.import_allow.is_empty() {
                file.import_allow
            } else {
                self.import_allow
            },
            import_ca: self.import_ca.or(file.import_ca),
            workers: self.workers.or(file.workers),
            reserve: self.reserve.or(file.reserve),
            scrub_days: self.scrub_days.or(file.scrub_days),
            compact_after: self.compact_after.or(file.compact_after),
            lifecycle_day: self.lifecycle_day.or(file.lifecycle_day),
            connections_max: self.connections_max.or(file.connections_max),
            admin_connections_max: self.admin_connections_max.or(file.admin_connections_max),
            requests_max: self.requests_max.or(file.requests_max),
            buffer_max: self.buffer_max.or(file.buffer_max),
            client_timeout: self.client_timeout.or(file.client_timeout),
            background_rate: self.background_rate.or(file.background_rate),
            read_only: self.read_only || file.read_only,
            image: self.image.or(file.image),
        }
    }

    /// Checks everything.
    pub(crate) fn check(self, root_keys: Option<RootKeys>) -> anyhow::Result<Config> {
        let bounds = self.bounds()?;
        let zones = if self.zone.is_empty() {
            vec!["default".to_owned()]
        } else {
            self.zone
        };
        let workers = self.workers.unwrap_or(2);
        if !(1..=WORKERS_MAX).contains(&workers) {
            bail!("workers must be between 1 and {WORKERS_MAX}, not {workers}");
        }
        let lifecycle_day = self.lifecycle_day.map_or(LIFECYCLE_DAY, |span| span.0);
        if !LIFECYCLE_DAYS.contains(&lifecycle_day) {
            bail!("lifecycle-day must be between 100 milliseconds and 24 hours");
        }
        let ca_pem = self
            .import_ca
            .map(|path| {
                std::fs::read(&path).with_context(|| format!("cannot read the certificates {}", path.display()))
            })
            .transpose()?;
        Ok(Config {
            data: self.data.unwrap_or_else(|| "lithos-data".into()),
            listen: self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9000))),
            admin_listen: self
                .admin_listen
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9001))),
            zones: zones
                .iter()
                .map(|zone| zone.parse())
                .collect::<Result<_, _>>()
                .map_err(anyhow::Error::msg)?,
            domains: self.domain,
            import: ImportConfig {
                allow: self.import_allow,
                ca_pem,
            },
            image: self.image.check()?,
            workers,
            reserve: self.reserve.unwrap_or(Reserve::Percent(2)),
            scrub_days: self.scrub_days.unwrap_or(30),
            compact_after: self.compact_after.map_or(COMPACT_AFTER, |span| span.0),
            lifecycle_day,
            bounds,
            read_only: self.read_only,
            root_keys,
        })
    }

    fn bounds(&self) -> anyhow::Result<Bounds> {
        let defaults = Bounds::default();
        let bounds = Bounds {
            connections_max: self.connections_max,
            admin_connections_max: self.admin_connections_max,
            requests_max: self.requests_max.unwrap_or(defaults.requests_max),
            buffer_max: self.buffer_max.map_or(defaults.buffer_max, |size| size.0),
            client_timeout: self.client_timeout.map_or(defaults.client_timeout, |span| span.0),
            background_rate: self.background_rate.map_or(defaults.background_rate, |size| size.0),
        };
        for (name, count, most) in [
            ("connections-max", bounds.connections_max, CONNECTIONS_MAX),
            ("admin-connections-max", bounds.admin_connections_max, CONNECTIONS_MAX),
            ("requests-max", Some(bounds.requests_max), REQUESTS_MAX),
        ] {
            if let Some(count) = count.filter(|count| !(1..=most).contains(count)) {
                bail!("{name} must be between 1 and {most}, not {count}");
            }
        }
        if bounds.buffer_max < BUFFER_LEN_MIN {
            bail!("buffer-max must be at least {} MiB", BUFFER_LEN_MIN >> 20);
        }
        if !CLIENT_TIMEOUTS.contains(&bounds.client_timeout) {
            bail!("client-timeout must be between 1 second and 1 hour");
        }
        if bounds.background_rate < BACKGROUND_RATE_MIN {
            bail!("background-rate must be at least {} KiB", BACKGROUND_RATE_MIN >> 10);
        }
        Ok(bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: Settings = toml::from_str("listen = \"127.0.0.1:1\"\nworkers = 3\nzone = [\"az1\"]").unwrap();
        let flags = Settings {
            workers: Some(5),
            ..Settings::default()
        };
        let config = flags.or(file).check(None).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.workers, 5);
        assert_eq!(config.zones[0].as_str(), "az1");
        assert_eq!(config.admin_listen.port(), 9001);
    }

    #[test]
    fn the_example_configuration_says_the_defaults() {
        let example: Settings = toml::from_str(include_str!("../../deploy/lithos.toml")).unwrap();
        let example = example.check(None).unwrap();
        let defaults = Settings::default().check(None).unwrap();
        assert_eq!(format!("{example:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn reserves_are_sizes_or_parts() {
        assert_eq!("5%".parse::<Reserve>().unwrap().bytes(1000), 50);
        assert_eq!("2GiB".parse::<Reserve>().unwrap().bytes(1000), 2 << 30);
        for bad in ["100%", "-1%", "5", "x", "1.5GiB"] {
            assert!(bad.parse::<Reserve>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bounds_are_said_with_units_and_held_against_what_makes_sense() {
        let settings: Settings = toml::from_str(
            "requests-max = 8\nbuffer-max = \"64MiB\"\nclient-timeout = \"5s\"\nbackground-rate = \"1MiB\"",
        )
        .unwrap();
        let bounds = settings.check(None).unwrap().bounds;
        assert_eq!((bounds.requests_max, bounds.buffer_max), (8, 64 << 20));
        assert_eq!(
            (bounds.client_timeout, bounds.background_rate),
            (Duration::from_secs(5), 1 << 20)
        );
        for absurd in [
            "requests-max = 0",
            "connections-max = 0",
            "admin-connections-max = 9999999",
            "buffer-max = \"1MiB\"",
            "client-timeout = \"10ms\"",
            "lifecycle-day = \"1ms\"",
            "lifecycle-day = \"25h\"",
            "background-rate = \"1B\"",
        ] {
            let settings: Settings = toml::from_str(absurd).unwrap();
            assert!(settings.check(None).is_err(), "{absurd}");
        }
        assert!(toml::from_str::<Settings>("buffer-max = 1000000").is_err());
    }

    #[test]
    fn unknown_and_absurd_settings_are_refused() {
        assert!(toml::from_str::<Settings>("liste = \"127.0.0.1:1\"").is_err());
        assert!(
            Settings {
                workers: Some(0),
                ..Settings::default()
            }
            .check(None)
            .is_err()
        );
        assert!(
            Settings {
                zone: vec!["a b".into()],
                ..Settings::default()
            }
            .check(None)
            .is_err()
        );
    }
}
