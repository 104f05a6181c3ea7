//! Decoding of single compressed clusters.
//!
//! Deflate goes through libdeflate where the stream ends with its cluster. It cannot stop in the midst of one, which QEMU and a
//! disk that ends within its last grain ask for: there flate2 takes over, and it alone decides what is broken.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};
use serde::{Serialize, Serializer};
use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use crate::{Error, ErrorKind};

/// How a cluster is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A raw deflate stream (RFC 1951), which qcow2 calls zlib.
    Deflate,
    /// A zlib stream (RFC 1950): deflate with a checksum, as VMDK has it.
    Zlib,
    /// One Zstandard frame (RFC 8878).
    Zstd,
}

impl Codec {
    /// The most that one compressed byte can become; what claims more refers to the same bytes many times.
    ///
    /// Deflate needs at least one bit for the length and one for the distance of a match of 258 bytes, hence 1032; Zstandard
    /// at least four bytes for a block of 128 KiB.
    pub(crate) const fn expansion_max(self) -> u64 {
        match self {
            Self::Deflate | Self::Zlib => 1032,
            Self::Zstd => 32 << 10,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Deflate => "zlib",
            Self::Zlib => "zlib stream",
            Self::Zstd => "zstd",
        })
    }
}

impl Serialize for Codec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Decodes clusters, with what that takes kept from one to the next.
///
/// Memory is that of one decoder of each kind, which no stream can make grow: output goes straight to the cluster, without
/// a window.
#[derive(Default)]
pub struct Decoder {
    deflate: Option<libdeflater::Decompressor>,
    zstd: Option<Decompressor<'static>>,
}

impl Decoder {
    /// Decodes one cluster: the start of `compressed` must give `out.len()` bytes. A zlib stream, as VMDK has it, may give
    /// more: its last grain is whole where the disk ends inside of it.
    ///
    /// What follows the stream is ignored, because formats count compressed bytes in whole sectors.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] if the stream is broken, too short, or does not fill `out`.
    pub fn decode(&mut self, codec: Codec, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let expected = out.len();
        let filled = match codec {
            Codec::Deflate | Codec::Zlib if self.inflate_whole(codec, compressed, out) => return Ok(()),
            Codec::Deflate => inflate(compressed, out, false),
            Codec::Zlib => inflate(compressed, out, true),
            Codec::Zstd => self.unzstd(compressed, out),
        };
        match filled {
            Ok(len) if len == expected => Ok(()),
            Ok(len) => Err(Error::corrupt(format!(
                "{codec} cluster decodes to {len} bytes instead of {expected}"
            ))),
            Err(reason) => Err(Error::new(ErrorKind::Corrupt, format!("{codec} cluster: {reason}"))),
        }
    }

    /// Inflates a stream that ends just where `out` does, which nearly all do: several times as fast as [`inflate`], which
    /// judges the others.
    fn inflate_whole(&mut self, codec: Codec, compressed: &[u8], out: &mut [u8]) -> bool {
        let decoder = self.deflate.get_or_insert_with(libdeflater::Decompressor::new);
        let filled = match codec {
            Codec::Zlib => decoder.zlib_decompress(compressed, out),
            _ => decoder.deflate_decompress(compressed, out),
        };
        filled.is_ok_and(|len| len == out.len())
    }

    fn unzstd(&mut self, compressed: &[u8], out: &mut [u8]) -> Result<usize, String> {
        let frame_len = zstd_safe::find_frame_compressed_size(compressed)
            .map_err(|code| zstd_safe::get_error_name(code).to_owned())?;
        let frame = compressed.get(..frame_len).unwrap_or(compressed);
        let decoder = match &mut self.zstd {
            Some(decoder) => decoder,
            absent => absent.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        decoder
            .decompress_to_buffer(frame, out)
            .map_err(|error| error.to_string())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// [`Decoder::decode`] for a single cluster.
///
/// # Errors
///
/// Those of [`Decoder::decode`].
pub fn decode(codec: Codec, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
    Decoder::default().decode(codec, compressed, out)
}

/// Inflates raw deflate, or a zlib stream with its `header` and checksum, as far as `out` goes.
fn inflate(compressed: &[u8], out: &mut [u8], header: bool) -> Result<usize, String> {
    let mut stream = Decompress::new(header);
    let status = stream
        .decompress(compressed, out, FlushDecompress::Finish)
        .map_err(|error| error.to_string())?;
    if !header && status != Status::StreamEnd {
        // The cluster is full, or the stream is cut off. QEMU takes a stream whose end is missing, but none that goes on.
        let rest = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        let rest = compressed.get(rest..).unwrap_or_default();
        let before = stream.total_out();
        let ended = stream.decompress(rest, &mut [0; 1], FlushDecompress::Finish);
        if ended.is_ok() && stream.total_out() > before && usize::try_from(before) == Ok(out.len()) {
            return Err(format!("it decodes to more than {} bytes", out.len()));
        }
        return Ok(usize::try_from(before).unwrap_or(usize::MAX));
    }
    Ok(usize::try_from(stream.total_out()).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::DeflateEncoder;
    use std::io::Write;

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn cluster() -> Vec<u8> {
        (0..65536_u32).map(|i| u8::try_from(i * i / 7 % 251).unwrap()).collect()
    }

    fn encoded(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Deflate => deflate(bytes),
            Codec::Zlib => zlib(bytes),
            Codec::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
        }
    }

    #[test]
    fn clusters_decode_with_and_without_rest_of_sector() {
        for codec in [Codec::Deflate, Codec::Zlib, Codec::Zstd] {
            let mut compressed = encoded(codec, &cluster());
            let mut out = vec![0; 65536];
            decode(codec, &compressed, &mut out).unwrap();
            assert!(out == cluster(), "{codec}");
            compressed.extend([0xa5; 511]);
            out.fill(0);
            decode(codec, &compressed, &mut out).unwrap();
            assert!(out == cluster(), "{codec} with rest");
        }
    }

    #[test]
    fn a_zlib_stream_that_goes_on_fills_a_shorter_cluster() {
        let mut out = vec![0; 60_000];
        decode(Codec::Zlib, &encoded(Codec::Zlib, &cluster()), &mut out).unwrap();
        assert!(out == cluster()[..60_000]);
    }

    #[test]
    fn broken_short_and_empty_streams_are_corrupt() {
        for codec in [Codec::Deflate, Codec::Zlib, Codec::Zstd] {
            let compressed = encoded(codec, &cluster());
            let short = encoded(codec, &cluster()[..65535]);
            let half = compressed.len() / 2;
            for (what, bytes) in [
                ("short", &short[..]),
                ("cut", &compressed[..half]),
                ("empty", &[]),
                ("noise", &[0xff; 600]),
            ] {
                let mut out = vec![0; 65536];
                let error = decode(codec, bytes, &mut out).expect_err(what);
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{codec} {what}");
                assert!(error.reason().starts_with(&codec.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn a_zlib_stream_is_held_to_its_checksum() {
        let mut compressed = zlib(&cluster());
        let last = compressed.len() - 1;
        compressed[last] ^= 1;
        assert!(decode(Codec::Zlib, &compressed, &mut vec![0; 65536]).is_err());
    }

    #[test]
    fn deflate_longer_than_the_cluster_is_corrupt() {
        let compressed = deflate(&cluster());
        for len in [65535, 512, 1] {
            let error = decode(Codec::Deflate, &compressed, &mut vec![0; len]).unwrap_err();
            assert_eq!(
                error.reason(),
                format!("zlib cluster: it decodes to more than {len} bytes")
            );
        }
        // The end of the stream may be missing, as long as all of the cluster is there.
        let mut stream = flate2::Compress::new(flate2::Compression::default(), false);
        let mut unended = Vec::with_capacity(70_000);
        stream
            .compress_vec(&cluster(), &mut unended, flate2::FlushCompress::Sync)
            .unwrap();
        let mut out = vec![0; 65536];
        decode(Codec::Deflate, &unended, &mut out).unwrap();
        assert!(out == cluster());
    }

    #[test]
    fn zstd_frame_longer_than_the_cluster_is_corrupt() {
        let mut out = vec![0; 65535];
        assert!(decode(Codec::Zstd, &encoded(Codec::Zstd, &cluster()), &mut out).is_err());
    }

    #[test]
    fn zstd_window_beyond_any_cluster_takes_no_memory() {
        // Frame header: no content size, a window of 2 GiB; then one last RLE block of 16 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x83, 0x00, 0x00, 0x41];
        let mut out = [0; 16];
        decode(Codec::Zstd, &frame, &mut out).unwrap();
        assert_eq!(out, [0x41; 16]);
    }
}
