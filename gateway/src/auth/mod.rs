//! Keys: who may do what, and secrets at rest.
//!
//! The root keys open everything. They come from the environment, or the first start makes a pair and writes it to
//! `credentials` in the data folder, in the format of the AWS command line. All other users are in the index ([`user`]).
//! Secrets that the index has to hold are sealed with AES-256-GCM under a key in `secret.key`, beside the index but not in
//! it. Both files have mode 0600.

pub(crate) mod route;
mod seal;
pub(crate) mod user;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use s3s::auth::SecretKey;

use self::seal::SealingKey;
pub(crate) use self::seal::fill_random;
use crate::config::RootKeys;

/// What is done about files of keys that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyFiles {
    /// They are made.
    MakeMissing,
    /// Nothing: the data folder is only read.
    Read,
}

/// The keys that the data folder and the environment hold.
#[derive(Debug)]
pub(crate) struct Keyring {
    root: RootKeys,
    sealing: SealingKey,
    /// Where the root keys were written to, if they did not come from the environment.
    credentials: Option<PathBuf>,
}

impl Keyring {
    /// Opens the keys of the data folder.
    pub(crate) fn open(data: &Path, root: Option<RootKeys>, files: KeyFiles) -> anyhow::Result<Self> {
        let sealing = SealingKey::open(&data.join("secret.key"), files)?;
        let path = data.join("credentials");
        Ok(match root {
            Some(root) => Self {
                root,
                sealing,
                credentials: None,
            },
            None => Self {
                root: open_credentials(&path, files)?,
                sealing,
                credentials: Some(path),
            },
        })
    }

    /// The root keys.
    pub(crate) fn root(&self) -> &RootKeys {
        &self.root
    }

    /// The file that holds the root keys, if one does.
    pub(crate) fn credentials_path(&self) -> Option<&Path> {
        self.credentials.as_deref()
    }

    /// Seals a secret for the index. `context` names what it belongs to; opening needs the same.
    pub(crate) fn seal(&self, context: &str, secret: &str) -> anyhow::Result<Vec<u8>> {
        self.sealing.seal(context, secret.as_bytes())
    }

    /// Opens what [`Keyring::seal`] made.
    pub(crate) fn unseal(&self, context: &str, sealed: &[u8]) -> anyhow::Result<SecretKey> {
        let secret = String::from_utf8(self.sealing.open_sealed(context, sealed)?)?;
        Ok(SecretKey::from(secret))
    }
}

/// Reads root keys from a file in the format of the AWS command line (`~/.aws/credentials`).
pub(crate) fn read_credentials(path: &Path) -> anyhow::Result<RootKeys> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let find = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    match (find("aws_access_key_id"), find("aws_secret_access_key")) {
        (Some(access_key), Some(secret_key)) => Ok(RootKeys {
            access_key,
            secret_key: SecretKey::from(secret_key),
        }),
        _ => bail!("{} lacks aws_access_key_id or aws_secret_access_key", path.display()),
    }
}

fn open_credentials(path: &Path, files: KeyFiles) -> anyhow::Result<RootKeys> {
    if path.exists() {
        return read_credentials(path);
    }
    if files == KeyFiles::Read {
        bail!(
            "{} does not exist, and nothing is written: set LITHOS_ACCESS_KEY and LITHOS_SECRET_KEY",
            path.display()
        );
    }
    let keys = RootKeys {
        access_key: format!("LITHOS{}", random_name(14)?),
        secret_key: random_name(40)?.into(),
    };
    let text = format!(
        "# Root keys of this server, made at its first start.\n[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key,
        keys.secret_key.expose()
    );
    write_secret(path, text.as_bytes())?;
    Ok(keys)
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Random capital letters and digits.
pub(crate) fn random_name(len: usize) -> anyhow::Result<String> {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bytes = vec![0; len];
    seal::fill_random(&mut bytes)?;
    Ok(bytes
        .iter()
        .filter_map(|byte| LETTERS.get(usize::from(byte % 32)))
        .map(|letter| char::from(*letter))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn first_start_makes_keys_that_the_next_one_finds() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keyring::open(folder.path(), None, KeyFiles::MakeMissing).unwrap();
        let second = Keyring::open(folder.path(), None, KeyFiles::MakeMissing).unwrap();
        let third = Keyring::open(folder.path(), None, KeyFiles::Read).unwrap();
        assert_eq!(first.root().access_key, third.root().access_key);
        assert_eq!(first.root().access_key, second.root().access_key);
        assert_eq!(first.root().secret_key.expose(), second.root().secret_key.expose());
        assert_eq!(first.root().secret_key.expose().len(), 40);
        for name in ["credentials", "secret.key"] {
            let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let sealed = first.seal("peer az2", "hush").unwrap();
        assert_eq!(second.unseal("peer az2", &sealed).unwrap().expose(), "hush");
        assert!(second.unseal("peer az3", &sealed).is_err());
        assert!(!format!("{first:?}").contains(first.root().secret_key.expose()));
    }

    #[test]
    fn for_reading_only_no_key_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let error = Keyring::open(folder.path(), None, KeyFiles::Read).unwrap_err();
        assert!(error.to_string().contains("LITHOS_ACCESS_KEY"), "{error}");
        let root = RootKeys {
            access_key: "A".to_owned(),
            secret_key: "hush".into(),
        };
        Keyring::open(folder.path(), Some(root), KeyFiles::Read).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
