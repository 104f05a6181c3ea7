//! Makes another format of an object: a new layout over the same blobs.
//!
//! Headers and tables are made anew; guest data is referred to where it lies; compressed clusters are decoded into new
//! bytes, and so is all of a target that is compressed itself. The planner reads tables through the object, on a thread that
//! may block; half of the cores decode and encode.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use lithos_convert::{Decoder, Encoding, Job, Plan, Segment, Target};
use lithos_storage::{
    BucketName, Content, ContentBuilder, ContentHeaders, ErrorKind, LayoutId, NewObject, ObjectKey, ObjectReader,
    ObjectRecord, OpenObject, Tags, WriteCondition,
};
use md5::{Digest, Md5};
use tokio::runtime::Handle;

use super::{JobContext, JobError};
use crate::{
    image::{annotate, read_at::ObjectImage, wishes},
    workers::{half_of_the_cores, in_order},
};

/// Makes `target` of the version `version` of an object, and puts it beside it.
pub(super) async fn run(
    context: &Arc<JobContext>,
    bucket: &BucketName,
    key: &ObjectKey,
    version: LayoutId,
    target: &str,
) -> Result<String, JobError> {
    let target: Target = target
        .parse()
        .map_err(|e: lithos_convert::Error| JobError::Failed(e.to_string()))?;
    let source = match context.app.store.open_object(bucket, key).await {
        Ok(source) if source.record.layout_id == version => source,
        Ok(_) => {
            return Ok("nothing to do: the source was replaced, and its new version has a job of its own".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NoSuchKey => return Ok("nothing to do: the source is gone".to_owned()),
        Err(error) => return Err(error.into()),
    };
    let known = annotate::image_annotations(source.reader()).await;
    annotate::note(&context.app, bucket, key, version, &known).await;
    let derived_key = derived_key(key, target)?;
    context.stage("planning", None);
    let (content, etag) = convert(context, &source, version, target).await?;
    context.stage("committing", None);
    let size = content.size();
    let new = NewObject {
        annotations: derived_annotations(&known, key, target),
        ..derived(content, etag, &source.record, key)
    };
    let put = context.app.store.put_object(
        bucket,
        &derived_key,
        NewObject {
            fence: Some(context.fence),
            ..new
        },
        |b, record| {
            Ok(wishes::replicate(
                &context.app,
                bucket.as_str(),
                derived_key.as_str(),
                b,
                record,
            ))
        },
    );
    put.await.map_err(|error| match error.kind() {
        ErrorKind::PreconditionFailed => JobError::Failed(error.to_string()),
        _ => error.into(),
    })?;
    Ok(format!("{derived_key}, {size} bytes"))
}

/// The key beside the source with the extension of the target.
fn derived_key(key: &ObjectKey, target: Target) -> Result<ObjectKey, JobError> {
    let extension = target.extension();
    let name_start = key.as_str().rfind('/').map_or(0, |slash| slash + 1);
    let stem_end = match key.as_str().rfind('.') {
        Some(dot) if dot > name_start => dot,
        _ => key.as_str().len(),
    };
    let stem = key.as_str().get(..stem_end).unwrap_or_default();
    let derived = format!("{stem}.{extension}");
    if derived == key.as_str() {
        return Err(JobError::Failed(format!(
            "the source is called .{extension} already: its {extension} has no name beside it"
        )));
    }
    Ok(derived.parse()?)
}

fn derived_annotations(known: &BTreeMap<String, String>, key: &ObjectKey, target: Target) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        (annotate::FORMAT.to_owned(), target.file_format().to_string()),
        (annotate::DERIVED_FROM.to_owned(), annotate::header_text(key.as_str())),
    ]);
    annotations.extend(
        known
            .get_key_value(annotate::VIRTUAL_SIZE)
            .map(|(name, size)| (name.clone(), size.clone())),
    );
    annotations
}

/// The derivative as an object: the source's metadata, and its wish to be replicated, but not to be converted.
fn derived(content: Content, etag: String, source: &ObjectRecord, key: &ObjectKey) -> NewObject {
    let zones = source
        .tags
        .get_key_value(wishes::REPLICATE_TO)
        .map(|(tag, zones)| (tag.clone(), zones.clone()));
    NewObject {
        content,
        etag,
        headers: ContentHeaders {
            content_type: Some("application/octet-stream".to_owned()),
            ..ContentHeaders::default()
        },
        metadata: source.metadata.clone(),
        tags: Tags::from_iter(zones),
        checksum: None,
        part_sizes: Vec::new(),
        annotations: BTreeMap::new(),
        owner: source.owner.clone(),
        last_modified: None,
        condition: WriteCondition::AbsentOrAnnotated {
            name: annotate::DERIVED_FROM.to_owned(),
            value: annotate::header_text(key.as_str()),
        },
        fence: None,
    }
}

/// Plans or encodes the target and builds its content, on a thread that may block.
async fn convert(
    context: &Arc<JobContext>,
    source: &OpenObject,
    version: LayoutId,
    target: Target,
) -> Result<(Content, String), JobError> {
    // What is encoded refers to nothing of the source.
    let refers_to = (!target.is_encoded()).then_some(source);
    let builder = context.app.store.content_builder(refers_to).await?;
    let image = ObjectImage::new(source.reader());
    let per_worker = || (source.reader(), ObjectImage::new(source.reader()));
    let work = Work {
        context: Arc::clone(context),
        runtime: Handle::current(),
        reader: source.reader(),
        workers: Mutex::new((0..half_of_the_cores().get()).map(|_| per_worker()).collect()),
        builder,
        etag: Md5::new(),
    };
    let source_etag = source.record.etag.clone();
    let converted = tokio::task::spawn_blocking(move || {
        let image = lithos_convert::open(Arc::new(image)).map_err(image_error)?.into();
        // Each version of each object has derivatives with identifiers of their own, and the same ones each time.
        let seed = version.to_string().into_bytes();
        if target.is_encoded() {
            let encoding = lithos_convert::encode(image, &target, &seed).map_err(image_error)?;
            return work.encode(&encoding, &source_etag, target);
        }
        let plan = lithos_convert::plan_with_seed(image, &target, &seed).map_err(image_error)?;
        work.lay_out(&plan, &source_etag, target)
    });
    converted
        .await
        .map_err(|e| JobError::Failed(format!("the conversion ended in a bug: {e}")))?
}

/// What is broken or unsafe stays so; only reading can go better another time.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is called by map_err, which gives the error away"
)]
fn image_error(error: lithos_convert::Error) -> JobError {
    match error.kind() {
        lithos_convert::ErrorKind::Io => JobError::Retry(super::chain(&error)),
        _ => JobError::Failed(super::chain(&error)),
    }
}

/// A target being turned into content.
struct Work {
    context: Arc<JobContext>,
    runtime: Handle,
    reader: ObjectReader,
    /// What each worker reads the source with: bytes, and as an image.
    workers: Mutex<Vec<(ObjectReader, ObjectImage)>>,
    builder: ContentBuilder,
    etag: Md5,
}

/// A segment, and what it decodes to if it is to be decoded.
type Made = (Segment, Option<Bytes>);

impl Work {
    fn lay_out(mut self, plan: &Plan, source_etag: &str, target: Target) -> Result<(Content, String), JobError> {
        self.context.stage("laying out", Some(plan.size()));
        self.etag.update(format!("{source_etag} {target} {}\n", plan.size()));
        let context = Arc::clone(&self.context);
        let segments = plan.segments().map(|segment| {
            go_on(&context)?;
            segment.map_err(image_error)
        });
        let (runtime, readers) = (self.runtime.clone(), std::mem::take(&mut self.workers));
        let worker = || {
            let (mut reader, _) = take_one(&readers);
            let (runtime, mut decoder) = (&runtime, Decoder::default());
            move |segment: Segment| {
                let decoded = decode(&segment, runtime, &mut reader, &mut decoder)?;
                Ok((segment, decoded))
            }
        };
        let mut done = 0;
        in_order(half_of_the_cores(), segments, worker, |(segment, decoded): Made| {
            done += segment.len();
            self.push(segment, decoded)?;
            self.context.done(done);
            Ok(())
        })?;
        let etag = self.etag();
        let content = self.runtime.block_on(self.builder.finish())?;
        Ok((content, etag))
    }

    // Differs: S3 gives a single upload the MD5 of its bytes. That would mean to read them all, when all there is to
    // do is tables; like the ETag of a completed upload, ours has a hyphen and is not taken for one.
    fn etag(&mut self) -> String {
        format!("{}-1", hex::encode(self.etag.finalize_reset()))
    }

    fn push(&mut self, segment: Segment, decoded: Option<Bytes>) -> Result<(), JobError> {
        match segment {
            Segment::Bytes(bytes) => {
                self.etag.update(&bytes);
                self.runtime.block_on(self.builder.push_bytes(bytes.into()))?;
            }
            Segment::Zeros { len } => self.runtime.block_on(self.builder.push_zeros(len))?,
            Segment::Copy { source_offset, len } => {
                self.etag.update(source_offset.to_le_bytes());
                self.runtime
                    .block_on(self.builder.push_range(&mut self.reader, source_offset, len))?;
            }
            Segment::Decode { source_offset, .. } => {
                self.etag.update(source_offset.to_le_bytes());
                let bytes = decoded.ok_or_else(|| JobError::Failed("a cluster was not decoded".to_owned()))?;
                self.runtime.block_on(self.builder.push_bytes(bytes))?;
            }
        }
        Ok(())
    }

    /// Writes the body to new blobs while it is encoded, then puts the head before it.
    fn encode(mut self, encoding: &Encoding, source_etag: &str, target: Target) -> Result<(Content, String), JobError> {
        self.context.stage("encoding", Some(encoding.virtual_size()));
        self.etag.update(format!("{source_etag} {target}\n"));
        let context = Arc::clone(&self.context);
        let jobs = encoding.jobs().map(|job| {
            go_on(&context)?;
            job.map_err(image_error)
        });
        let readers = std::mem::take(&mut self.workers);
        let worker = || {
            let (_, image) = take_one(&readers);
            let mut encoder = encoding.encoder();
            move |job: Job| encoder.encode(&job, &image).map_err(image_error)
        };
        let (mut assembler, mut body) = (encoding.assembler(), Vec::new());
        in_order(half_of_the_cores(), jobs, worker, |encoded| {
            assembler.push(&encoded, &mut body).map_err(image_error)?;
            self.push_body(&mut body)?;
            self.context.done(encoded.end());
            Ok(())
        })?;
        let head = assembler.finish(&mut body).map_err(image_error)?;
        self.push_body(&mut body)?;
        self.etag.update(&head);
        let etag = self.etag();
        let (runtime, store) = (self.runtime, &self.context.app.store);
        let content = runtime.block_on(async {
            let content = self.builder.finish().await?;
            if head.is_empty() {
                return Ok(content);
            }
            let mut whole = store.content_builder_for(content.layout_id(), None).await?;
            whole.push_bytes(head.into()).await?;
            whole.push_content(content).await?;
            whole.finish().await
        });
        Ok((content.map_err(|e: lithos_storage::Error| JobError::from(e))?, etag))
    }

    fn push_body(&mut self, body: &mut Vec<u8>) -> Result<(), JobError> {
        if !body.is_empty() {
            self.etag.update(&*body);
            self.runtime
                .block_on(self.builder.push_bytes(std::mem::take(body).into()))?;
        }
        Ok(())
    }
}

fn go_on(context: &JobContext) -> Result<(), JobError> {
    if context.stop.is_cancelled() {
        return Err(JobError::Retry("stopped".to_owned()));
    }
    Ok(())
}

fn take_one<T>(shared: &Mutex<Vec<T>>) -> T {
    let one = shared.lock().unwrap_or_else(PoisonError::into_inner).pop();
    one.expect("there is one for each worker")
}

/// What a segment decodes to, if it is to be decoded.
fn decode(
    segment: &Segment,
    runtime: &Handle,
    reader: &mut ObjectReader,
    decoder: &mut Decoder,
) -> Result<Option<Bytes>, JobError> {
    let Segment::Decode {
        source_offset,
        compressed_len,
        codec,
        len,
        skip,
        take,
    } = *segment
    else {
        return Ok(None);
    };
    let compressed = runtime.block_on(reader.read(source_offset..source_offset + compressed_len))?;
    let too_large = |_| JobError::Failed("a compressed cluster does not fit in memory".to_owned());
    let mut decoded = vec![0; usize::try_from(len).map_err(too_large)?];
    decoder.decode(codec, &compressed, &mut decoded).map_err(image_error)?;
    let skip = usize::try_from(skip).map_err(too_large)?;
    let take = usize::try_from(take).map_err(too_large)?;
    Ok(Some(Bytes::from(decoded).slice(skip..skip + take)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_stand_beside_their_source() {
        let target: Target = "qcow2".parse().unwrap();
        let derived = |key: &str| derived_key(&key.parse().unwrap(), target).map(|key| key.to_string());
        assert_eq!(derived("a/debian.img").unwrap(), "a/debian.qcow2");
        assert_eq!(derived("a.b/debian").unwrap(), "a.b/debian.qcow2");
        assert_eq!(derived(".img").unwrap(), ".img.qcow2");
        assert_eq!(derived("a/.img").unwrap(), "a/.img.qcow2");
        assert!(matches!(derived("disk.qcow2"), Err(JobError::Failed(_))));
        let derived = |target: Target| {
            derived_key(&"a/debian.img".parse().unwrap(), target)
                .unwrap()
                .to_string()
        };
        assert_eq!(derived(Target::QCOW2_ZLIB_4K), "a/debian.zlib-4k.qcow2");
        assert_eq!(derived(Target::VMDK_STREAM), "a/debian.stream.vmdk");
        assert_eq!(derived(Target::RAW_GZ), "a/debian.raw.gz");
    }
}
