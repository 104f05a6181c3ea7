//! Checksums as publishers of images write them: `sha256:…`.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use lithos_storage::{ChecksumAlgorithm, ChecksumType, DigestSet, Digests};

/// What the bytes of a URL must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// `md5:`
    Md5([u8; 16]),
    /// `sha256:`
    Sha256([u8; 32]),
    /// `sha512:`
    Sha512([u8; 64]),
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((algorithm, digits)) = text.trim().split_once(':') else {
            return Err("a checksum is written sha256:HEX, sha512:HEX or md5:HEX".to_owned());
        };
        match algorithm.to_ascii_lowercase().as_str() {
            "md5" => bytes(algorithm, digits).map(Self::Md5),
            "sha256" => bytes(algorithm, digits).map(Self::Sha256),
            "sha512" => bytes(algorithm, digits).map(Self::Sha512),
            _ => {
                let shown: String = algorithm.chars().take(16).collect();
                Err(format!(
                    "{shown:?} is not a checksum known here: sha256, sha512 and md5 are"
                ))
            }
        }
    }
}

fn bytes<const LEN: usize>(algorithm: &str, digits: &str) -> Result<[u8; LEN], String> {
    let mut bytes = [0; LEN];
    hex::decode_to_slice(digits, &mut bytes)
        .map_err(|e| format!("{algorithm} takes {} hexadecimal digits: {e}", LEN.saturating_mul(2)))?;
    Ok(bytes)
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Md5(value) => write!(f, "md5:{}", hex::encode(value)),
            Self::Sha256(value) => write!(f, "sha256:{}", hex::encode(value)),
            Self::Sha512(value) => write!(f, "sha512:{}", hex::encode(value)),
        }
    }
}

impl Checksum {
    /// What has to be computed of a body that this is to be compared with, beside MD5.
    pub(crate) fn digests(&self) -> DigestSet {
        let mut set = DigestSet::default();
        match self {
            Self::Md5(_) => {}
            Self::Sha256(_) => set.checksums.push(ChecksumAlgorithm::Sha256),
            Self::Sha512(_) => set.sha512 = true,
        }
        set
    }

    /// Compares this with what a body has.
    ///
    /// # Errors
    ///
    /// What was expected and what was found.
    pub(crate) fn verify(&self, digests: &Digests) -> Result<(), String> {
        let actual = match self {
            Self::Md5(_) => Some(Self::Md5(digests.md5)),
            Self::Sha256(_) => sha256(digests).map(Self::Sha256),
            Self::Sha512(_) => digests.sha512.map(Self::Sha512),
        };
        match actual {
            Some(actual) if actual == *self => Ok(()),
            Some(actual) => Err(format!("the checksum does not match: expected {self}, got {actual}")),
            None => Err(format!("the checksum was not computed: expected {self}")),
        }
    }

    /// The same as S3 keeps it with an object, if S3 knows the algorithm.
    pub(crate) fn of_object(&self) -> Option<lithos_storage::Checksum> {
        match self {
            Self::Md5(_) | Self::Sha512(_) => None,
            Self::Sha256(value) => Some(lithos_storage::Checksum {
                algorithm: ChecksumAlgorithm::Sha256,
                value: BASE64.encode(value),
                kind: ChecksumType::FullObject,
            }),
        }
    }
}

fn sha256(digests: &Digests) -> Option<[u8; 32]> {
    let value = BASE64.decode(digests.checksum(ChecksumAlgorithm::Sha256)?).ok()?;
    value.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1321 and FIPS 180-4, of "abc".
    const MD5: &str = "md5:900150983cd24fb0d6963f7d28e17f72";
    const SHA256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn checksums_come_back_as_they_were_written() {
        for text in [MD5, SHA256, &format!("sha512:{}", "0f".repeat(64))] {
            assert_eq!(text.parse::<Checksum>().unwrap().to_string(), text);
            assert_eq!(text.to_uppercase().parse::<Checksum>().unwrap().to_string(), text);
            assert_eq!(format!(" {text}\n").parse::<Checksum>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_checksum_says_why() {
        let bad = [
            ("", "written sha256:HEX"),
            ("900150983cd24fb0d6963f7d28e17f72", "written sha256:HEX"),
            ("crc32:cbf43926", "not a checksum known here"),
            ("sha256:ba7816", "takes 64"),
            ("sha256:", "takes 64"),
            ("md5:900150983cd24fb0d6963f7d28e17f7g", "takes 32"),
            (
                "sha512:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "takes 128",
            ),
        ];
        for (text, why) in bad {
            let error = text.parse::<Checksum>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_mismatch_names_both() {
        let expected: Checksum = MD5.parse().unwrap();
        let mut digests = Digests {
            md5: [0; 16],
            checksums: Vec::new(),
            sha512: None,
        };
        let error = expected.verify(&digests).unwrap_err();
        assert!(
            error.contains(MD5) && error.contains(&format!("got md5:{}", "0".repeat(32))),
            "{error}"
        );
        let Checksum::Md5(value) = expected else {
            panic!("it was MD5")
        };
        digests.md5 = value;
        assert_eq!(expected.verify(&digests), Ok(()));
        assert!(
            SHA256.parse::<Checksum>().unwrap().verify(&digests).is_err(),
            "it was not computed"
        );
    }
}
