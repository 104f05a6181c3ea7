//! The image in an envelope.
//!
//! What lies in an archive as it is stays where it is in the object. What is compressed is unpacked to blobs of the
//! derivative: a conversion that is laid out refers to them, one that is encoded leaves them to the sweep. A crash leaves
//! staged blobs, as that of any writer does.

use std::{
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use lithos_convert::{Content as Inside, Limits, ReadAt, Slice, unwrap};
use lithos_storage::{Content, ContentBuilder, ObjectReader, OpenObject, Store};
use tokio::runtime::Handle;

use super::{JobContext, JobError, go_on, image_error};
use crate::image::read_at::ObjectImage;

/// What is read at once, and not stored if it is zeros.
const CHUNK_LEN: usize = 64 << 10;

/// Where the bytes of an image are.
#[derive(Debug)]
pub(super) struct Image {
    /// Content that was unpacked; else it is in the object.
    pub(super) unpacked: Option<Content>,
    /// Where it starts there.
    pub(super) start: u64,
    len: u64,
    /// How many envelopes it was taken out of.
    pub(super) envelopes: usize,
}

impl Image {
    /// Takes the image out of its envelopes, if it is in any.
    pub(super) async fn of(context: &Arc<JobContext>, source: &OpenObject) -> Result<Self, JobError> {
        let mut image = Self {
            unpacked: None,
            start: 0,
            len: source.reader().size(),
            envelopes: 0,
        };
        let mut limits = context.app.config.image;
        loop {
            let bytes: Arc<dyn ReadAt> = Arc::new(image.bytes(&context.app.store, source));
            let builder = context.app.store.content_builder(None).await?;
            let (context, runtime) = (Arc::clone(context), Handle::current());
            let opened = tokio::task::spawn_blocking(move || open(&context, &runtime, &bytes, &limits, builder));
            image = match opened
                .await
                .map_err(|e| JobError::Failed(format!("unpacking ended in a bug: {e}")))??
            {
                None => return Ok(image),
                Some(Opened::Part { offset, len }) => Self {
                    start: image.start + offset,
                    len,
                    envelopes: image.envelopes + 1,
                    unpacked: image.unpacked,
                },
                Some(Opened::Unpacked(content)) => Self {
                    start: 0,
                    len: content.size(),
                    envelopes: image.envelopes + 1,
                    unpacked: Some(content),
                },
            };
            limits = limits.inside();
        }
    }

    /// A reader of what it is in.
    pub(super) fn reader(&self, store: &Store, source: &OpenObject) -> ObjectReader {
        match &self.unpacked {
            Some(content) => store.staged_reader(content.layout()),
            None => source.reader(),
        }
    }

    /// Its bytes.
    pub(super) fn bytes(&self, store: &Store, source: &OpenObject) -> Slice {
        let whole = ObjectImage::new(self.reader(store, source));
        Slice::new(Arc::new(whole), self.start, self.len)
    }
}

enum Opened {
    Part { offset: u64, len: u64 },
    Unpacked(Content),
}

/// Opens one envelope, on a thread that may block; `None` if nothing is left to be taken out.
fn open(
    context: &JobContext,
    runtime: &Handle,
    bytes: &Arc<dyn ReadAt>,
    limits: &Limits,
    builder: ContentBuilder,
) -> Result<Option<Opened>, JobError> {
    match unwrap(bytes, limits).map_err(image_error)? {
        None => Ok(None),
        Some(Inside::Part(part)) => {
            context.stage("checking digests", Some(part.manifest.len()));
            let mut done = 0;
            let checked = part.manifest.check(&**bytes, |len| {
                done += len;
                context.done(done);
                go_on(context).is_ok()
            });
            go_on(context)?;
            checked.map_err(image_error)?;
            if part.is_whole(bytes.size()) {
                return Ok(None);
            }
            Ok(Some(Opened::Part {
                offset: part.offset,
                len: part.len,
            }))
        }
        Some(Inside::Stream(stream)) => {
            context.stage("unpacking", None);
            unpack(context, runtime, stream, builder).map(|content| Some(Opened::Unpacked(content)))
        }
    }
}

fn unpack(
    context: &JobContext,
    runtime: &Handle,
    mut stream: Box<dyn Read + Send>,
    mut builder: ContentBuilder,
) -> Result<Content, JobError> {
    let mut done = 0;
    loop {
        go_on(context)?;
        let mut chunk = Vec::with_capacity(CHUNK_LEN);
        let limit = u64::try_from(CHUNK_LEN).unwrap_or(u64::MAX);
        let read = (&mut *stream).take(limit).read_to_end(&mut chunk);
        let len = read.map_err(stream_error)?;
        if len == 0 {
            break;
        }
        done += len as u64;
        let pushed = if chunk.iter().all(|byte| *byte == 0) {
            runtime.block_on(builder.push_zeros(len as u64))
        } else {
            runtime.block_on(builder.push_bytes(Bytes::from(chunk)))
        };
        pushed?;
        context.done(done);
    }
    if done == 0 {
        return Err(JobError::Failed("there is nothing in the envelope".to_owned()));
    }
    Ok(runtime.block_on(builder.finish())?)
}

/// What is broken stays so; what could not be read may be read another time.
fn stream_error(error: io::Error) -> JobError {
    match error.downcast::<lithos_convert::Error>() {
        Ok(error) => image_error(error),
        Err(error) => JobError::Retry(super::super::chain(&error)),
    }
}
