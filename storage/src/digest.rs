//! Digests of a body, computed as it passes.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use crate::{
    error::{Error, Result},
    schema::{Checksum, ChecksumAlgorithm, ChecksumType},
};

/// Which digests to compute beside MD5.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DigestSet {
    /// Checksums of S3.
    pub checksums: Vec<ChecksumAlgorithm>,
    /// SHA512, which S3 does not know but publishers of images use.
    pub sha512: bool,
}

/// The digests of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// MD5.
    pub md5: [u8; 16],
    /// Checksums as S3 writes them: base64 of the big-endian value.
    pub checksums: Vec<(ChecksumAlgorithm, String)>,
    /// SHA512, if it was asked for.
    pub sha512: Option<[u8; 64]>,
}

impl Digests {
    /// The digests of bytes that are in memory, in pieces.
    pub fn of<'b>(pieces: impl IntoIterator<Item = &'b Bytes>, set: &DigestSet) -> Self {
        let mut hasher = Hasher::new(set);
        for piece in pieces {
            hasher.update(piece);
        }
        hasher.finish()
    }

    /// The checksum of `algorithm` in base64, if it was computed.
    pub fn checksum(&self, algorithm: ChecksumAlgorithm) -> Option<&str> {
        self.checksums
            .iter()
            .find(|(known, _)| *known == algorithm)
            .map(|(_, value)| value.as_str())
    }
}

/// Digests in the making.
#[derive(Debug)]
pub(crate) struct Hasher {
    md5: Md5,
    checksums: Vec<(ChecksumAlgorithm, State)>,
    sha512: Option<Box<Sha512>>,
}

#[derive(Debug)]
enum State {
    Crc {
        digest: Box<crc_fast::Digest>,
        width: usize,
    },
    Sha1(Box<Sha1>),
    Sha256(Box<Sha256>),
}

impl Hasher {
    pub(crate) fn new(set: &DigestSet) -> Self {
        let checksums = set
            .checksums
            .iter()
            .map(|algorithm| (*algorithm, State::new(*algorithm)))
            .collect();
        Self {
            md5: Md5::new(),
            checksums,
            sha512: set.sha512.then(Box::default),
        }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        for (_, state) in &mut self.checksums {
            state.update(data);
        }
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(data);
        }
    }

    pub(crate) fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize().into(),
            checksums: self
                .checksums
                .into_iter()
                .map(|(algorithm, state)| (algorithm, state.finish()))
                .collect(),
            sha512: self.sha512.map(|sha512| sha512.finalize().into()),
        }
    }
}

impl State {
    fn new(algorithm: ChecksumAlgorithm) -> Self {
        match (algorithm, crc_algorithm(algorithm)) {
            (_, Some((crc, width))) => Self::Crc {
                digest: Box::new(crc_fast::Digest::new(crc)),
                width,
            },
            (ChecksumAlgorithm::Sha1, _) => Self::Sha1(Box::default()),
            _ => Self::Sha256(Box::default()),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Crc { digest, .. } => digest.update(data),
            Self::Sha1(digest) => digest.update(data),
            Self::Sha256(digest) => digest.update(data),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Crc { digest, width } => crc_base64(digest.finalize(), width),
            Self::Sha1(digest) => BASE64.encode(digest.finalize()),
            Self::Sha256(digest) => BASE64.encode(digest.finalize()),
        }
    }
}

/// The `ETag` of a completed upload: the MD5 of its parts' MD5s, a hyphen, and how many parts there are.
pub(crate) fn multipart_etag<'a>(etags: impl Iterator<Item = &'a str>) -> Result<String> {
    let mut md5 = Md5::new();
    let mut count = 0_u32;
    for etag in etags {
        let part = hex::decode(etag).map_err(|e| Error::corrupt("a part's ETag is not hexadecimal").caused_by(e))?;
        md5.update(part);
        count += 1;
    }
    Ok(format!("{}-{count}", hex::encode(md5.finalize())))
}

/// The checksum of a completed upload, from the checksums and lengths of its parts; `None` if the upload announced no
/// algorithm or a part lacks its checksum. CRCs are of the full object where that was announced, and CRC64NVME always;
/// the rest are composite: the checksum of the parts' checksums (S3 User Guide, "Checking object integrity").
pub(crate) fn combine_checksums(
    algorithm: Option<ChecksumAlgorithm>,
    kind: Option<ChecksumType>,
    parts: &[(Option<&Checksum>, u64)],
) -> Result<Option<Checksum>> {
    let Some(algorithm) = algorithm else { return Ok(None) };
    let mut values = Vec::with_capacity(parts.len());
    for (checksum, len) in parts {
        let Some(checksum) = checksum.filter(|checksum| checksum.algorithm == algorithm) else {
            return Ok(None);
        };
        let value = BASE64
            .decode(&checksum.value)
            .map_err(|e| Error::corrupt("a part's checksum is not base64").caused_by(e))?;
        values.push((value, *len));
    }
    let full = kind == Some(ChecksumType::FullObject) || algorithm == ChecksumAlgorithm::Crc64Nvme;
    match crc_algorithm(algorithm) {
        Some((crc, width)) if full => {
            let mut combined = 0;
            for (value, len) in values {
                let value = value.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
                combined = crc_fast::checksum_combine(crc, combined, value, len);
            }
            Ok(Some(Checksum {
                algorithm,
                value: crc_base64(combined, width),
                kind: ChecksumType::FullObject,
            }))
        }
        _ => {
            let mut state = State::new(algorithm);
            for (value, _) in &values {
                state.update(value);
            }
            let value = format!("{}-{}", state.finish(), parts.len());
            Ok(Some(Checksum {
                algorithm,
                value,
                kind: ChecksumType::Composite,
            }))
        }
    }
}

/// The CRC and its width in bytes, if the algorithm is one.
fn crc_algorithm(algorithm: ChecksumAlgorithm) -> Option<(CrcAlgorithm, usize)> {
    match algorithm {
        ChecksumAlgorithm::Crc32 => Some((CrcAlgorithm::Crc32IsoHdlc, 4)),
        ChecksumAlgorithm::Crc32c => Some((CrcAlgorithm::Crc32Iscsi, 4)),
        ChecksumAlgorithm::Crc64Nvme => Some((CrcAlgorithm::Crc64Nvme, 8)),
        ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => None,
    }
}

fn crc_base64(value: u64, width: usize) -> String {
    let bytes = value.to_be_bytes();
    BASE64.encode(bytes.get(bytes.len().saturating_sub(width)..).unwrap_or(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the CRC catalogue and of RFC 1321, RFC 3174 and FIPS 180-4 for "123456789" and "abc".
    #[test]
    fn digests_match_published_values() {
        let all = DigestSet {
            checksums: vec![
                ChecksumAlgorithm::Crc32,
                ChecksumAlgorithm::Crc32c,
                ChecksumAlgorithm::Crc64Nvme,
                ChecksumAlgorithm::Sha1,
                ChecksumAlgorithm::Sha256,
            ],
            sha512: true,
        };
        let mut hasher = Hasher::new(&all);
        hasher.update(b"12345");
        hasher.update(b"6789");
        let digests = hasher.finish();
        let decoded = |algorithm| hex::encode(BASE64.decode(digests.checksum(algorithm).unwrap()).unwrap());
        assert_eq!(decoded(ChecksumAlgorithm::Crc32), "cbf43926");
        assert_eq!(decoded(ChecksumAlgorithm::Crc32c), "e3069283");
        assert_eq!(decoded(ChecksumAlgorithm::Crc64Nvme), "ae8b14860a799888");

        let mut hasher = Hasher::new(&all);
        hasher.update(b"abc");
        let digests = hasher.finish();
        let decoded = |algorithm| hex::encode(BASE64.decode(digests.checksum(algorithm).unwrap()).unwrap());
        assert_eq!(hex::encode(digests.md5), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            decoded(ChecksumAlgorithm::Sha1),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert!(decoded(ChecksumAlgorithm::Sha256).starts_with("ba7816bf8f01cfea414140de5dae2223"));
        assert!(hex::encode(digests.sha512.unwrap()).starts_with("ddaf35a193617abacc417349ae204131"));
    }
}
