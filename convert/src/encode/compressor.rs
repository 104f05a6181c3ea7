//! Compression of single clusters, grains, members and frames.
//!
//! Levels are the fastest ones; a cluster is too small for the higher ones to find much more. Of a file system with what is in
//! `/usr`, a qcow2 is 1.5 % smaller than what `qemu-img convert -c` makes, which has a window of 4 KiB only, and a VMDK 6.5 % larger
//! than what it takes eight times the processor for. Level 5 makes as small a VMDK, in twice the time.
//!
//! Bytes that are all equally frequent are compressed already, or encrypted: deflate is not tried on them. That is a tenth of such
//! a file system.

use flate2::{Compress, FlushCompress, Status};
use libdeflater::CompressionLvl;
use zstd::zstd_safe::CParameter;

/// What a unit is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate (RFC 1951).
    Deflate,
    /// Raw deflate without matches that reach back further than 4 KiB.
    Deflate4k,
    /// A zlib stream (RFC 1950).
    Zlib,
    /// A gzip member (RFC 1952).
    Gzip,
    /// A Zstandard frame (RFC 8878).
    Zstd,
    /// A Zstandard frame with a checksum, as the tool `zstd` makes.
    ZstdChecked,
}

/// For qcow2, where QEMU compresses with zlib's level 6 and a window of 4 KiB.
const LEVEL_DEFLATE: i32 = 1;
/// For VMDK, where QEMU compresses with zlib's level 6 and a window of 32 KiB.
const LEVEL_ZLIB: i32 = 1;
/// For gzip, where the tool has level 6.
const LEVEL_GZIP: i32 = 5;
/// The one that matches what zlib finds by default; the levels below are those of zlib-ng, and trade size for speed.
const LEVEL_SMALL_WINDOW: u32 = 9;
/// Stored, but in the form of a compressed stream.
const LEVEL_STORED: i32 = 0;
/// A window of 4 KiB.
const SMALL_WINDOW_BITS: u8 = 12;
/// The level of QEMU and of the tool.
const LEVEL_ZSTD: i32 = 3;

/// Compresses units one after another, with the memory for it kept.
pub(super) enum Compressor {
    Deflate(libdeflater::Compressor),
    Zlib {
        small: libdeflater::Compressor,
        stored: libdeflater::Compressor,
    },
    Gzip(libdeflater::Compressor),
    SmallWindow(Box<Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    pub(super) fn new(compression: Compression) -> Self {
        let deflate = |level| libdeflater::Compressor::new(CompressionLvl::new(level).expect("a level that there is"));
        let zstd = |checked| {
            let mut compressor = zstd::bulk::Compressor::new(LEVEL_ZSTD).expect("a level that there is");
            compressor
                .set_parameter(CParameter::ChecksumFlag(checked))
                .expect("a parameter that every encoder has");
            compressor
        };
        match compression {
            Compression::Deflate => Self::Deflate(deflate(LEVEL_DEFLATE)),
            Compression::Zlib => Self::Zlib {
                small: deflate(LEVEL_ZLIB),
                stored: deflate(LEVEL_STORED),
            },
            Compression::Gzip => Self::Gzip(deflate(LEVEL_GZIP)),
            Compression::Deflate4k => {
                let level = flate2::Compression::new(LEVEL_SMALL_WINDOW);
                Self::SmallWindow(Box::new(Compress::new_with_window_bits(
                    level,
                    false,
                    SMALL_WINDOW_BITS,
                )))
            }
            Compression::Zstd => Self::Zstd(zstd(false)),
            Compression::ZstdChecked => Self::Zstd(zstd(true)),
        }
    }

    /// The most that `len` bytes can become.
    pub(super) fn bound(&mut self, len: usize) -> usize {
        match self {
            Self::Deflate(compressor) => compressor.deflate_compress_bound(len),
            Self::Zlib { small, stored } => small.zlib_compress_bound(len).max(stored.zlib_compress_bound(len)),
            Self::Gzip(compressor) => compressor.gzip_compress_bound(len),
            // zlib's own bound for other than its default windows: an eighth, a 64th and a few bytes more.
            Self::SmallWindow(_) => len.saturating_add(len / 8).saturating_add(len / 64).saturating_add(64),
            Self::Zstd(_) => zstd::zstd_safe::compress_bound(len),
        }
    }

    /// Compresses `bytes` and says into how many, if `out` is large enough.
    pub(super) fn compress(&mut self, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Deflate(_) if out.len() < bytes.len() && is_like_noise(bytes) => None,
            Self::Deflate(compressor) => compressor.deflate_compress(bytes, out).ok(),
            Self::Zlib { stored, .. } if is_like_noise(bytes) => stored.zlib_compress(bytes, out).ok(),
            Self::Zlib { small, .. } => small.zlib_compress(bytes, out).ok(),
            Self::Gzip(compressor) => compressor.gzip_compress(bytes, out).ok(),
            Self::SmallWindow(compressor) => {
                compressor.reset();
                match compressor.compress(bytes, out, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => usize::try_from(compressor.total_out()).ok(),
                    _ => None,
                }
            }
            Self::Zstd(compressor) => compressor.compress_to_buffer(bytes, out).ok(),
        }
    }

    /// Compresses `bytes`, whatever they become.
    pub(super) fn compress_to_vec(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.bound(bytes.len())];
        let len = self.compress(bytes, &mut out).expect("the bound holds");
        out.truncate(len);
        out
    }
}

/// Whether all bytes are about as frequent, going by some of them.
fn is_like_noise(bytes: &[u8]) -> bool {
    /// One of so many is looked at. No word has a prime number of bytes, so that those of all places in a word are met.
    const SAMPLE_STEP: usize = 17;
    /// So many are looked at, at least: of fewer, frequencies say little.
    const SAMPLE_LEN_MIN: u32 = 1024;
    /// How much more often than each of noise a byte may be met with its like, in hundredths: text is at 1,500, code of a
    /// processor at 400, what is compressed at 100.
    const LIKENESS_MAX: u64 = 110;
    let (mut counts, mut len) = ([0_u32; 256], 0_u32);
    for byte in bytes.iter().step_by(SAMPLE_STEP) {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count = count.saturating_add(1);
        }
        len = len.saturating_add(1);
    }
    // How many pairs are of one value, out of all pairs; a 256th of them in noise.
    let pairs = |count: u32| u64::from(count).saturating_mul(u64::from(count.saturating_sub(1)));
    let alike = counts.iter().map(|count| pairs(*count)).fold(0, u64::saturating_add);
    len >= SAMPLE_LEN_MIN && alike.saturating_mul(256).saturating_mul(100) <= pairs(len).saturating_mul(LIKENESS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codec, decode};

    const ALL: [Compression; 6] = [
        Compression::Deflate,
        Compression::Deflate4k,
        Compression::Zlib,
        Compression::Gzip,
        Compression::Zstd,
        Compression::ZstdChecked,
    ];

    /// Noise whose second half repeats the first, from `distance` before.
    fn far_match(len: usize, distance: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(len)
        .collect();
        for index in distance..len {
            bytes[index] = bytes[index - distance];
        }
        bytes
    }

    #[test]
    fn all_give_the_bytes_back_and_keep_their_bound() {
        for bytes in [
            vec![],
            vec![7],
            vec![7; 65536],
            far_match(65536, 65536),
            far_match(2 << 20, 30_000),
        ] {
            for compression in ALL {
                let compressed = Compressor::new(compression).compress_to_vec(&bytes);
                let mut out = vec![0; bytes.len()];
                match compression {
                    Compression::Deflate | Compression::Deflate4k => {
                        decode(Codec::Deflate, &compressed, &mut out).unwrap();
                    }
                    Compression::Zlib => decode(Codec::Zlib, &compressed, &mut out).unwrap(),
                    Compression::Zstd | Compression::ZstdChecked => decode(Codec::Zstd, &compressed, &mut out).unwrap(),
                    Compression::Gzip => {
                        let mut decoder = flate2::read::GzDecoder::new(&compressed[..]);
                        std::io::Read::read_exact(&mut decoder, &mut out).unwrap();
                    }
                }
                assert!(out == bytes, "{compression:?} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn noise_does_not_fit_into_less() {
        let noise = far_match(65536, 65536);
        for compression in ALL {
            let mut out = vec![0; 65535];
            assert_eq!(
                Compressor::new(compression).compress(&noise, &mut out),
                None,
                "{compression:?}"
            );
        }
    }

    #[test]
    fn noise_is_told_from_what_can_be_compressed() {
        assert!(is_like_noise(&far_match(65536, 65536)));
        assert!(is_like_noise(
            &Compressor::new(Compression::Zstd).compress_to_vec(&far_match(65536, 60_000))
        ));
        let text: Vec<u8> = (0..20_000_u32)
            .flat_map(|number| number.to_string().into_bytes())
            .collect();
        assert!(!is_like_noise(&text));
        // One byte of eight is zero.
        let mut words = far_match(65536, 65536);
        words.iter_mut().skip(5).step_by(8).for_each(|byte| *byte = 0);
        assert!(!is_like_noise(&words));
        // There is too little of it to tell.
        assert!(!is_like_noise(&far_match(4096, 4096)));
        let stored = Compressor::new(Compression::Zlib).compress_to_vec(&far_match(65536, 65536));
        assert!((65536..65600).contains(&stored.len()), "{}", stored.len());
    }

    #[test]
    fn small_windows_know_no_matches_from_further_back() {
        let len = |compression, distance| {
            Compressor::new(compression)
                .compress_to_vec(&far_match(65536, distance))
                .len()
        };
        for (compression, distance, found) in [
            (Compression::Deflate4k, 3000, true),
            (Compression::Deflate4k, 4200, false),
            (Compression::Deflate4k, 20_000, false),
            (Compression::Deflate, 3000, true),
            (Compression::Deflate, 20_000, true),
        ] {
            let len = len(compression, distance);
            assert_eq!(len < 40_000, found, "{compression:?} over {distance}: {len}");
        }
    }
}
