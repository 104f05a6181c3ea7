//! Compressed streams, decoded as they are read, and cut off where they get too long.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use flate2::bufread::GzDecoder;

use super::{DECODER_MEMORY_MAX, Sequential};
use crate::{Error, ErrorKind, Format, ReadAt};

/// How much of a source is read at once.
const BUFFER_LEN: usize = 256 << 10;
/// The largest window of a Zstandard frame: 2 to this power, which is [`DECODER_MEMORY_MAX`].
const ZSTD_WINDOW_LOG_MAX: u32 = DECODER_MEMORY_MAX.ilog2();

/// What `source` decodes to, of which more than `most` bytes are an error.
pub(super) fn of(format: Format, source: Arc<dyn ReadAt>, most: u64) -> Result<Box<dyn Read + Send>, Error> {
    let failed = |error| Error::io("start a decoder", error).with_format(format);
    let compressed = BufReader::with_capacity(BUFFER_LEN, Sequential { source, at: 0 });
    let decoded: Box<dyn Read + Send> = match format {
        Format::Gzip => Box::new(Members {
            member: Some(GzDecoder::new(compressed)),
        }),
        Format::Xz => {
            let concatenated = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY_MAX, concatenated);
            let stream = stream.map_err(|error| failed(error.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(compressed, stream))
        }
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
            Box::new(decoder)
        }
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(compressed)),
        other => return Err(Error::unsupported("this is no compressed stream").with_format(other)),
    };
    Ok(bounded(decoded, format, most))
}

/// The members of a gzip file (RFC 1952) one after another.
///
/// Zeros behind the last one are passed over, as the tool `gzip` does it: what was written by blocks ends with some.
struct Members<R> {
    /// Absent behind the last one, and behind an error there.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buf)?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            let compressed = self.member.take().map(GzDecoder::into_inner);
            self.member = compressed.map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member that follows, unless all that does is zeros.
fn next_member<R: BufRead>(mut compressed: R) -> io::Result<Option<GzDecoder<R>>> {
    let mut is_padded = false;
    loop {
        let rest = compressed.fill_buf()?;
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        is_padded |= zeros > 0;
        match rest.len() {
            0 => return Ok(None),
            len if len == zeros => compressed.consume(zeros),
            _ if is_padded => {
                let reason = "behind the last gzip member there are zeros, and then something else";
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            _ => return Ok(Some(GzDecoder::new(compressed))),
        }
    }
}

/// The bytes of a deflate stream of a ZIP archive, which have to be `len` and to have a checksum.
pub(super) fn deflated(source: Arc<dyn ReadAt>, len: u64, crc: u32, most: u64) -> Box<dyn Read + Send> {
    let compressed = BufReader::with_capacity(BUFFER_LEN, Sequential { source, at: 0 });
    let decoded = Checked {
        inner: flate2::bufread::DeflateDecoder::new(compressed),
        len,
        crc,
        seen: 0,
        digest: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
    };
    bounded(Box::new(decoded), Format::Zip, most)
}

fn bounded(inner: Box<dyn Read + Send>, format: Format, most: u64) -> Box<dyn Read + Send> {
    Box::new(Bounded {
        inner,
        format,
        most,
        left: most,
    })
}

/// Ends in an error behind so many bytes.
struct Bounded {
    inner: Box<dyn Read + Send>,
    format: Format,
    most: u64,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            // The source failed, and says so itself.
            _ if error
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) =>
            {
                error
            }
            _ => {
                let reason = format!("the compressed bytes cannot be decoded: {error}");
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    Error::corrupt(reason).with_format(self.format),
                )
            }
        })?;
        let Some(left) = self.left.checked_sub(read as u64) else {
            let reason = format!(
                "it expands to more than {} bytes, the most that are accepted here (image-expanded-max)",
                self.most
            );
            let error = Error::new(ErrorKind::TooLarge, reason).with_format(self.format);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
        };
        self.left = left;
        Ok(read)
    }
}

/// Ends in an error unless length and checksum are those of the directory.
struct Checked<R> {
    inner: R,
    len: u64,
    crc: u32,
    seen: u64,
    digest: crc_fast::Digest,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.digest.update(buf.get(..read).unwrap_or_default());
        self.seen = self.seen.saturating_add(read as u64);
        let ends = read == 0 && !buf.is_empty();
        if self.seen > self.len || ends && self.seen < self.len {
            let reason = format!("the file does not have the {} bytes that the directory says", self.len);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if ends && self.digest.finalize() != u64::from(self.crc) {
            let reason = format!(
                "the file does not have the CRC-32 {:08x} that the directory says",
                self.crc
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(read)
    }
}
