//! The way through envelopes: what comes out of one is walked as an image, and opened as an envelope again.
//!
//! An input is the file as it is: envelopes have no zeros to leave out.

use std::io::{self, Read};
use std::sync::Arc;

use lithos_convert::{Content, Error, ErrorKind, Limits, Part, ReadAt, Slice, probe, unwrap};

use crate::{READ_LEN_MAX, walk};

/// How many bytes may come out of one envelope, so that inputs stay quick.
const LIMITS: Limits = Limits {
    expanded_bytes_max: 4 << 20,
    ..Limits::DEFAULT
};
/// How much of a stream is asked for at once: no divisor of the bound, so that it is met in the middle of a read.
const CHUNK_LEN: usize = 99_991;
/// How often a manifest may have a file read: once for each algorithm that it may name.
const DIGEST_COUNT_MAX: u64 = 3;
/// A header of tar, which is one of its blocks.
const TAR_BLOCK_LEN: usize = 512;

/// A file that is all there, and whose readers ask for little at once.
struct Plain(Vec<u8>);

impl ReadAt for Plain {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buf.len() <= READ_LEN_MAX, "a read of {} bytes", buf.len());
        self.0.read_exact_at(buf, offset)
    }
}

/// Opens envelopes, as deep as they may lie in each other, and walks over all that is in them.
///
/// What does not have its checksum is looked at all the same: a mutation seldom makes one hold.
///
/// # Panics
///
/// If an envelope gives what it may not: a part outside of its file, a stream behind its bound, an error that blames the
/// source.
pub fn open_envelopes(mut bytes: Vec<u8>) {
    mend_tar(&mut bytes);
    open_envelope(Arc::new(Plain(bytes)), LIMITS);
}

fn open_envelope(source: Arc<dyn ReadAt>, limits: Limits) {
    let format = probe(&source).expect("every content has a format").format;
    walk(Arc::clone(&source));
    match unwrap(&source, &limits) {
        Ok(None) => assert!(!format.is_envelope(), "{format}"),
        Ok(Some(Content::Part(part))) => {
            check(&*source, &part);
            open_envelope(Arc::new(Slice::new(source, part.offset, part.len)), limits.inside());
        }
        Ok(Some(Content::Stream(stream))) => {
            let mut bytes = drain(stream);
            mend_tar(&mut bytes);
            open_envelope(Arc::new(Plain(bytes)), limits.inside());
        }
        Err(error) => assert_ne!(error.kind(), ErrorKind::Io, "{error}"),
    }
}

/// Holds a part to the file it is in, and to its own manifest.
fn check(source: &dyn ReadAt, part: &Part) {
    let end = part.offset.checked_add(part.len);
    assert!(part.len > 0 && end.is_some_and(|end| end <= source.size()), "{part:?}");
    assert!(part.manifest.len() <= DIGEST_COUNT_MAX * source.size(), "{part:?}");
    let mut read = 0;
    let checked = part.manifest.check(source, |len| {
        read += len;
        true
    });
    match checked {
        Ok(()) => assert_eq!(read, part.manifest.len()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}"),
    }
}

/// What a stream gives, up to its end or its error.
fn drain(mut stream: Box<dyn Read + Send>) -> Vec<u8> {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK_LEN]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
                let inner = inner.unwrap_or_else(|| panic!("an error without its kind: {error}"));
                assert_ne!(inner.kind(), ErrorKind::Io, "{inner}");
                return bytes;
            }
        }
        assert!(bytes.len() as u64 <= LIMITS.expanded_bytes_max, "{} bytes", bytes.len());
    }
}

/// Makes the checksums of tar headers hold, so that what is behind them is reached.
fn mend_tar(bytes: &mut [u8]) {
    const MAGIC: std::ops::Range<usize> = 257..262;
    const SUM: std::ops::Range<usize> = 148..156;
    for block in bytes.chunks_exact_mut(TAR_BLOCK_LEN) {
        if block[MAGIC] == *b"ustar" {
            block[SUM].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
