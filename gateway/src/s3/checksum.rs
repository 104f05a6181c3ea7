//! Checksums that a client sends with a body: before it in a header, or behind it in a trailer.
//!
//! S3 User Guide, "Checking object integrity in Amazon S3"; RFC 1864 (`Content-MD5`).

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::HeaderMap;
use lithos_storage::{Checksum, ChecksumAlgorithm as Algorithm, ChecksumType, DigestSet, Digests};
use s3s::{S3ErrorCode, S3Result, TrailingHeaders, dto};

use super::wire::refuse;

/// The algorithms, and the headers that carry them.
const ALGORITHMS: [(Algorithm, &str, &str); 5] = [
    (Algorithm::Crc32, "CRC32", "x-amz-checksum-crc32"),
    (Algorithm::Crc32c, "CRC32C", "x-amz-checksum-crc32c"),
    (Algorithm::Crc64Nvme, "CRC64NVME", "x-amz-checksum-crc64nvme"),
    (Algorithm::Sha1, "SHA1", "x-amz-checksum-sha1"),
    (Algorithm::Sha256, "SHA256", "x-amz-checksum-sha256"),
];

/// What a body must hash to, and what else to compute.
#[derive(Debug, Default)]
pub(super) struct Expected {
    md5: Option<[u8; 16]>,
    algorithm: Option<Algorithm>,
    /// The value, if it came in a header.
    value: Option<String>,
    /// Whether the value comes in a trailer.
    trailing: bool,
}

impl Expected {
    /// What the headers of an upload declare.
    pub(super) fn of(headers: &HeaderMap) -> S3Result<Self> {
        let mut expected = Self::declared(headers)?;
        if let Some(trailer) = text(headers, "x-amz-trailer") {
            expected.add_trailer(trailer)?;
        }
        if let Some(name) = text(headers, "x-amz-sdk-checksum-algorithm") {
            let announced = parse_algorithm(name)?;
            if expected.algorithm != Some(announced) {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    format!("x-amz-sdk-checksum-algorithm says {name}, but no header or trailer has this checksum"),
                ));
            }
        }
        Ok(expected)
    }

    /// What the headers of a request declare of its document. Those of one that `completes` an upload speak of the object.
    pub(super) fn of_document(headers: &HeaderMap, completes: bool) -> S3Result<Self> {
        if completes {
            return Ok(Self {
                md5: content_md5(headers)?,
                ..Self::default()
            });
        }
        Self::declared(headers)
    }

    /// What is declared before the body.
    fn declared(headers: &HeaderMap) -> S3Result<Self> {
        let mut expected = Self {
            md5: content_md5(headers)?,
            ..Self::default()
        };
        let mut declared = ALGORITHMS
            .iter()
            .filter_map(|(algorithm, _, header)| Some((*algorithm, text(headers, header)?)));
        if let Some((algorithm, value)) = declared.next() {
            if declared.next().is_some() {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    "a request may carry one checksum only",
                ));
            }
            if BASE64.decode(value).map_or(0, |bytes| bytes.len()) != digest_len(algorithm) {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    format!("the value of {} is not a checksum in base64", header(algorithm)),
                ));
            }
            expected.algorithm = Some(algorithm);
            expected.value = Some(value.to_owned());
        }
        drop(declared);
        refuse_unknown(headers)?;
        Ok(expected)
    }

    /// Refuses a part's checksum if the upload has `announced` another algorithm (S3 API Reference, "UploadPart").
    pub(super) fn check_part(&self, announced: Option<Algorithm>) -> S3Result<()> {
        match (announced, self.algorithm) {
            (Some(announced), Some(sent)) if announced != sent => Err(refuse(
                S3ErrorCode::InvalidRequest,
                format!(
                    "the upload was begun for checksums of {}, and the part has one of {}",
                    name(announced),
                    name(sent)
                ),
            )),
            _ => Ok(()),
        }
    }

    fn add_trailer(&mut self, trailer: &str) -> S3Result<()> {
        for name in trailer.split(',').map(str::trim) {
            let Some((algorithm, ..)) = ALGORITHMS
                .iter()
                .find(|(_, _, header)| header.eq_ignore_ascii_case(name))
            else {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    format!("the trailer {name:?} is not a checksum known here"),
                ));
            };
            if self.algorithm.is_some() {
                return Err(refuse(
                    S3ErrorCode::InvalidRequest,
                    "a request may carry one checksum only",
                ));
            }
            self.algorithm = Some(*algorithm);
            self.trailing = true;
        }
        Ok(())
    }

    /// What to compute while the body passes. `also` is what the upload announced.
    pub(super) fn digests(&self, also: Option<Algorithm>) -> DigestSet {
        let mut checksums: Vec<Algorithm> = self.algorithm.into_iter().chain(also).collect();
        checksums.dedup();
        DigestSet {
            checksums,
            sha512: false,
        }
    }

    /// Compares, when the body has passed. Gives the checksum to keep: the one declared, else that of `also`.
    pub(super) fn verify(
        &self,
        digests: &Digests,
        trailers: Option<&TrailingHeaders>,
        also: Option<Algorithm>,
    ) -> S3Result<Option<Checksum>> {
        if self.md5.is_some_and(|md5| md5 != digests.md5) {
            return Err(refuse(
                S3ErrorCode::BadDigest,
                "the body does not have the Content-MD5 that was declared",
            ));
        }
        let Some(algorithm) = self.algorithm.or(also) else {
            return Ok(None);
        };
        let computed = digests.checksum(algorithm).unwrap_or_default();
        let declared = if self.trailing {
            trailer(algorithm, trailers)?
        } else {
            self.value.clone()
        };
        if let Some(declared) = declared
            && declared != computed
        {
            return Err(refuse(
                S3ErrorCode::BadDigest,
                format!(
                    "the body's {} is {computed}, not {declared} as declared",
                    name(algorithm)
                ),
            ));
        }
        Ok(Some(Checksum {
            algorithm,
            value: computed.to_owned(),
            kind: ChecksumType::FullObject,
        }))
    }
}

/// The checksum that came behind the body.
fn trailer(algorithm: Algorithm, trailers: Option<&TrailingHeaders>) -> S3Result<Option<String>> {
    let value = trailers
        .and_then(|trailers| trailers.read(|headers| text(headers, header(algorithm)).map(str::to_owned)))
        .flatten();
    value.map(Some).ok_or_else(|| {
        refuse(
            S3ErrorCode::InvalidRequest,
            format!("the trailer {} that was announced is missing", header(algorithm)),
        )
    })
}

fn content_md5(headers: &HeaderMap) -> S3Result<Option<[u8; 16]>> {
    let Some(value) = text(headers, "content-md5") else {
        return Ok(None);
    };
    let md5 = BASE64
        .decode(value)
        .ok()
        .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    md5.map(Some)
        .ok_or_else(|| refuse(S3ErrorCode::InvalidDigest, "Content-MD5 is not 16 bytes in base64"))
}

/// Refuses checksums that would go unverified.
fn refuse_unknown(headers: &HeaderMap) -> S3Result<()> {
    for name in headers.keys() {
        let unknown = name.as_str().strip_prefix("x-amz-checksum-").is_some_and(|rest| {
            !matches!(rest, "algorithm" | "type" | "mode") && !ALGORITHMS.iter().any(|(_, _, header)| header == name)
        });
        if unknown {
            return Err(refuse(
                S3ErrorCode::NotImplemented,
                format!("{name} is not a checksum known here"),
            ));
        }
    }
    Ok(())
}

pub(super) fn parse_algorithm(text: &str) -> S3Result<Algorithm> {
    let known = ALGORITHMS.iter().find(|(_, name, _)| name.eq_ignore_ascii_case(text));
    known.map(|(algorithm, ..)| *algorithm).ok_or_else(|| {
        refuse(
            S3ErrorCode::InvalidRequest,
            "the checksum algorithm is none of CRC32, CRC32C, CRC64NVME, SHA1 and SHA256",
        )
    })
}

/// Bytes of a checksum.
fn digest_len(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Crc32 | Algorithm::Crc32c => 4,
        Algorithm::Crc64Nvme => 8,
        Algorithm::Sha1 => 20,
        Algorithm::Sha256 => 32,
    }
}

pub(super) fn name(algorithm: Algorithm) -> &'static str {
    ALGORITHMS
        .iter()
        .find(|(known, ..)| *known == algorithm)
        .map_or("", |(_, name, _)| name)
}

fn header(algorithm: Algorithm) -> &'static str {
    ALGORITHMS
        .iter()
        .find(|(known, ..)| *known == algorithm)
        .map_or("", |(_, _, header)| header)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Of what a checksum is one, as S3 says it.
pub(super) fn checksum_type(kind: ChecksumType) -> dto::ChecksumType {
    dto::ChecksumType::from_static(match kind {
        ChecksumType::FullObject => dto::ChecksumType::FULL_OBJECT,
        ChecksumType::Composite => dto::ChecksumType::COMPOSITE,
    })
}

/// Sets the one field of `output` that belongs to the algorithm of an optional checksum.
macro_rules! set_checksum {
    ($output:expr, $checksum:expr) => {
        if let Some(checksum) = $checksum {
            let value = Some(checksum.value.clone());
            match checksum.algorithm {
                lithos_storage::ChecksumAlgorithm::Crc32 => $output.checksum_crc32 = value,
                lithos_storage::ChecksumAlgorithm::Crc32c => $output.checksum_crc32c = value,
                lithos_storage::ChecksumAlgorithm::Crc64Nvme => $output.checksum_crc64nvme = value,
                lithos_storage::ChecksumAlgorithm::Sha1 => $output.checksum_sha1 = value,
                lithos_storage::ChecksumAlgorithm::Sha256 => $output.checksum_sha256 = value,
            }
        }
    };
}
pub(super) use set_checksum;

/// The checksums in the fields of an input, by algorithm.
macro_rules! named_checksums {
    ($input:expr) => {
        [
            (lithos_storage::ChecksumAlgorithm::Crc32, &$input.checksum_crc32),
            (lithos_storage::ChecksumAlgorithm::Crc32c, &$input.checksum_crc32c),
            (lithos_storage::ChecksumAlgorithm::Crc64Nvme, &$input.checksum_crc64nvme),
            (lithos_storage::ChecksumAlgorithm::Sha1, &$input.checksum_sha1),
            (lithos_storage::ChecksumAlgorithm::Sha256, &$input.checksum_sha256),
        ]
    };
}
pub(super) use named_checksums;

/// The type of the checksum of an upload that is begun: as asked, or what S3 takes for the algorithm (S3 User Guide,
/// "Checking object integrity for data uploads").
pub(super) fn upload_type(algorithm: Option<Algorithm>, asked: Option<&str>) -> S3Result<Option<ChecksumType>> {
    let invalid = |message: String| Err(refuse(S3ErrorCode::InvalidRequest, message));
    let Some(algorithm) = algorithm else {
        return match asked {
            None => Ok(None),
            Some(_) => invalid("x-amz-checksum-type is nothing without x-amz-checksum-algorithm".to_owned()),
        };
    };
    let kind = match asked {
        None if algorithm == Algorithm::Crc64Nvme => ChecksumType::FullObject,
        None | Some(dto::ChecksumType::COMPOSITE) => ChecksumType::Composite,
        Some(dto::ChecksumType::FULL_OBJECT) => ChecksumType::FullObject,
        Some(_) => return invalid("the checksum type is neither FULL_OBJECT nor COMPOSITE".to_owned()),
    };
    match (algorithm, kind) {
        (Algorithm::Sha1 | Algorithm::Sha256, ChecksumType::FullObject) => {
            invalid(format!("{} of an upload in parts is COMPOSITE", name(algorithm)))
        }
        (Algorithm::Crc64Nvme, ChecksumType::Composite) => {
            invalid("CRC64NVME of an upload in parts is FULL_OBJECT".to_owned())
        }
        _ => Ok(Some(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn declarations_that_cannot_be_verified_are_refused() {
        for (pairs, code) in [
            (&[("content-md5", "xyz")][..], S3ErrorCode::InvalidDigest),
            (&[("content-md5", "AAAA")], S3ErrorCode::InvalidDigest),
            (
                &[
                    ("x-amz-checksum-crc32", "AAAAAA=="),
                    ("x-amz-checksum-sha1", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
                ],
                S3ErrorCode::InvalidRequest,
            ),
            (
                &[
                    ("x-amz-checksum-crc32", "AAAAAA=="),
                    ("x-amz-trailer", "x-amz-checksum-crc32c"),
                ],
                S3ErrorCode::InvalidRequest,
            ),
            (&[("x-amz-trailer", "x-amz-meta-color")], S3ErrorCode::InvalidRequest),
            (&[("x-amz-checksum-xxhash64", "AA==")], S3ErrorCode::NotImplemented),
            (&[("x-amz-sdk-checksum-algorithm", "MD4")], S3ErrorCode::InvalidRequest),
            (
                &[("x-amz-sdk-checksum-algorithm", "CRC32")],
                S3ErrorCode::InvalidRequest,
            ),
            (
                &[
                    ("x-amz-sdk-checksum-algorithm", "SHA256"),
                    ("x-amz-checksum-crc32", "AAAAAA=="),
                ],
                S3ErrorCode::InvalidRequest,
            ),
        ] {
            assert_eq!(*Expected::of(&headers(pairs)).unwrap_err().code(), code, "{pairs:?}");
        }
    }

    #[test]
    fn bodies_are_held_against_what_was_declared() {
        let digests = Digests {
            md5: [7; 16],
            checksums: vec![(Algorithm::Crc32, "AAAAAQ==".to_owned())],
            sha512: None,
        };
        let verify = |pairs| Expected::of(&headers(pairs)).unwrap().verify(&digests, None, None);
        assert!(verify(&[]).unwrap().is_none());
        assert_eq!(
            verify(&[("x-amz-checksum-crc32", "AAAAAQ==")]).unwrap().unwrap().value,
            "AAAAAQ=="
        );
        assert_eq!(
            *verify(&[("x-amz-checksum-crc32", "AAAAAg==")]).unwrap_err().code(),
            S3ErrorCode::BadDigest
        );
        assert_eq!(
            *verify(&[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")])
                .unwrap_err()
                .code(),
            S3ErrorCode::BadDigest
        );
        assert_eq!(
            *verify(&[("x-amz-trailer", "x-amz-checksum-crc32")]).unwrap_err().code(),
            S3ErrorCode::InvalidRequest
        );
    }
}
