//! Settings of the server: flags and environment over a TOML file over defaults, checked once into a [`Config`].

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, bail};
use ipnet::IpNet;
use lithos_storage::local::Mode;
use serde::Deserialize;

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

    /// Serve reads only, and write nothing to the data folder: no jobs, no sweep
    #[arg(long = "read-only", env = "LITHOS_READ_ONLY")]
    pub(crate) read_only: bool,
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
    pub(crate) workers: usize,
    /// Whether the data folder is only read.
    pub(crate) read_only: bool,
    /// Root keys from the environment; without them the data folder holds a pair.
    pub(crate) root_keys: Option<RootKeys>,
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
}

/// What imports may do.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImportConfig {
    /// Addresses that would be refused otherwise.
    pub(crate) allow: Vec<IpNet>,
    /// Certificate authorities beside those of the system, as PEM.
    pub(crate) ca_pem: Option<Vec<u8>>,
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
            read_only: self.read_only || file.read_only,
        }
    }

    /// Checks everything.
    pub(crate) fn check(self, root_keys: Option<RootKeys>) -> anyhow::Result<Config> {
        let zones = if self.zone.is_empty() {
            vec!["default".to_owned()]
        } else {
            self.zone
        };
        let workers = self.workers.unwrap_or(2);
        if !(1..=WORKERS_MAX).contains(&workers) {
            bail!("workers must be between 1 and {WORKERS_MAX}, not {workers}");
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
            workers,
            read_only: self.read_only,
            root_keys,
        })
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
