//! Secrets at rest: AES-256-GCM (NIST SP 800-38D) with a random nonce in front.

use std::{fmt, fs, path::Path};

use anyhow::{Context, anyhow, bail};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use super::KeyFiles;

/// The key that seals.
pub(crate) struct SealingKey(LessSafeKey);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

impl SealingKey {
    /// Reads the key at `path`. Where there is none, makes one there; or, for reading only, one that opens nothing.
    pub(crate) fn open(path: &Path, files: KeyFiles) -> anyhow::Result<Self> {
        if !path.exists() {
            let mut key = [0; 32];
            fill_random(&mut key)?;
            match files {
                KeyFiles::MakeMissing => super::write_secret(path, &key)?,
                KeyFiles::Read => return Self::of(&key, path),
            }
        }
        let key = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::of(&key, path)
    }

    fn of(key: &[u8], path: &Path) -> anyhow::Result<Self> {
        let key =
            UnboundKey::new(&AES_256_GCM, key).map_err(|_| anyhow!("{} is not a key of 32 bytes", path.display()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    pub(crate) fn seal(&self, context: &str, secret: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        fill_random(&mut nonce)?;
        let mut sealed = secret.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| anyhow!("cannot seal a secret"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    pub(crate) fn open_sealed(&self, context: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let Some((nonce, rest)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            bail!("a sealed secret is too short")
        };
        let mut rest = rest.to_vec();
        let secret = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context.as_bytes()),
                &mut rest,
            )
            .map_err(|_| anyhow!("a sealed secret does not open: secret.key is not the one it was sealed with"))?;
        Ok(secret.to_vec())
    }
}

/// Fills `bytes` from the operating system's random source.
pub(crate) fn fill_random(bytes: &mut [u8]) -> anyhow::Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| anyhow!("the operating system gives no random numbers"))
}
