//! The image in an envelope.
//!
//! What lies in an archive as it is stays there. What is compressed is unpacked to a file without a name, which goes away with
//! the process however that ends; zeros in it are holes.

use std::env;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lithos_convert::{Content, Format, Limits, ReadAt, probe, unwrap};

use super::source::FileSource;

/// What is read at once, and becomes a hole if it is zeros.
const CHUNK_LEN: usize = 64 << 10;

/// An image that was taken out of its envelopes.
pub(crate) struct Unwrapped {
    pub(crate) image: FileSource,
    /// The envelopes, the outermost first.
    pub(crate) envelopes: Vec<Format>,
}

impl Unwrapped {
    /// Takes an image out of its envelopes, if it is in any. What has to be unpacked goes to a file in `folder`, or where
    /// temporary files are.
    pub(crate) fn of(source: FileSource, folder: Option<&Path>, limits: &Limits) -> anyhow::Result<Self> {
        let (mut image, mut envelopes) = (source, Vec::new());
        let mut limits = *limits;
        loop {
            let shared: Arc<dyn ReadAt> = Arc::new(image.part(0, image.size())?);
            let Some(content) = unwrap(&shared, &limits)? else {
                break;
            };
            let inner = match content {
                Content::Part(part) => {
                    part.manifest.check(&image, |_| true)?;
                    if part.is_whole(image.size()) {
                        break;
                    }
                    image.part(part.offset, part.len)?
                }
                Content::Stream(stream) => unpack(stream, folder)?,
            };
            envelopes.push(probe(&*shared)?.format);
            image = inner;
            limits = limits.inside();
        }
        Ok(Self { image, envelopes })
    }

    /// What the name of the file says of the image: the name without what is said of the envelopes.
    pub(crate) fn name_inside<'a>(&self, name: &'a str) -> &'a str {
        self.envelopes
            .iter()
            .fold(name, |name, _| name.rsplit_once('.').map_or(name, |(stem, _)| stem))
    }
}

fn unpack(mut stream: Box<dyn Read + Send>, folder: Option<&Path>) -> anyhow::Result<FileSource> {
    let temporary = env::temp_dir();
    let folder = match folder {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => &temporary,
    };
    let file = tempfile::tempfile_in(folder).with_context(|| format!("cannot unpack to {}", folder.display()))?;
    let style = ProgressStyle::with_template("unpacking {spinner} {binary_bytes}, {binary_bytes_per_sec}");
    let progress = ProgressBar::no_length().with_style(style.expect("the template is a constant"));
    let (mut chunk, mut offset) = (vec![0; CHUNK_LEN], 0);
    loop {
        let len = fill(&mut *stream, &mut chunk).map_err(reason)?;
        let Some(bytes) = chunk.get(..len).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(bytes, offset).context("cannot unpack")?;
        }
        offset += len as u64;
        progress.set_position(offset);
    }
    if offset == 0 {
        bail!("there is nothing in the envelope");
    }
    file.set_len(offset).context("cannot unpack")?;
    progress.finish_and_clear();
    Ok(FileSource::of(file)?)
}

/// The error of the image, if it is one.
fn reason(error: io::Error) -> anyhow::Error {
    match error.downcast::<lithos_convert::Error>() {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

/// Reads until `chunk` is full or the stream ends.
fn fill(stream: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(room) = chunk.get_mut(len..).filter(|room| !room.is_empty()) {
        match stream.read(room) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
