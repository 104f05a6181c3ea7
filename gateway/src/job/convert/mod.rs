//! Makes another format of an object: a new layout over the same blobs.
//!
//! Headers and tables are made anew; guest data is referred to where it lies; compressed clusters are decoded into new
//! bytes, and so is all of a target that is compressed itself. An image in an envelope is taken out of it first. The planner
//! reads tables through the object, on a thread that may block; half of the cores decode and encode.
//!
//! The source may be replaced or deleted meanwhile: what was made of it is written only while it is the current version, so
//! that the derivative of an older version never takes the place of that of a newer one.

mod unwrapped;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use lithos_convert::{Declared, Decoder, Encoding, Job, Plan, Segment, Slice, Target};
use lithos_storage::{
    BucketName, Content, ContentBuilder, ContentHeaders, ErrorKind, LayoutId, NewObject, ObjectKey, ObjectReader,
    ObjectRecord, OpenObject, SourceVersion, Tags, WriteCondition,
};
use md5::{Digest, Md5};
use tokio::runtime::Handle;

use self::unwrapped::Image;
use super::{JobContext, JobError};
use crate::{
    image::{
        annotate::{self, Said},
        read_at::ObjectImage,
        wishes::{self, ImagePolicy},
    },
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
            return Ok("nothing to do: the source was replaced".to_owned());
        }
        Err(error) if error.kind() == ErrorKind::NoSuchKey => return Ok("nothing to do: the source is gone".to_owned()),
        Err(error) => return Err(error.into()),
    };
    let derived_key = derived_key(key, target)?;
    let looked = Looked::new(context, bucket, key, &source).await?;
    let image = Image::of(context, &source).await?;
    let known = looked.at_inside(&image).await?;
    let (content, etag) = convert(context, &source, image, target).await?;
    context.stage("committing", None);
    let size = content.size();
    let new = NewObject {
        annotations: derived_annotations(&known, key, &source.record.etag, target),
        fence: Some(context.fence),
        ..derived(content, etag, &source.record, key)
    };
    let put = context.app.store.put_object(bucket, &derived_key, new, |b, record| {
        Ok(wishes::replicate(
            &context.app,
            bucket.as_str(),
            derived_key.as_str(),
            b,
            record,
        ))
    });
    match put.await {
        Ok(_) => Ok(format!("{derived_key}, {size} bytes")),
        // A new version has jobs of its own, if it is tagged; those may be done already.
        Err(error) if error.kind() == ErrorKind::SourceChanged => Ok(format!("nothing to do: {error}")),
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => Err(JobError::Failed(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What is known of a source, from outside and from inside of its envelopes.
struct Looked<'a> {
    context: &'a JobContext,
    bucket: &'a BucketName,
    key: &'a ObjectKey,
    source: &'a OpenObject,
    policy: ImagePolicy,
    known: BTreeMap<String, String>,
}

impl<'a> Looked<'a> {
    /// Looks at the source as it is.
    async fn new(
        context: &'a JobContext,
        bucket: &'a BucketName,
        key: &'a ObjectKey,
        source: &'a OpenObject,
    ) -> Result<Self, JobError> {
        let tags = context.app.store.bucket(bucket).await?.tags;
        let said = Said::new(key.as_str(), source.record.headers.content_type.as_deref());
        let found = annotate::look_at_image(&context.app, ObjectImage::new(source.reader()), said).await;
        annotate::note(&context.app, bucket, key, source.record.layout_id, &found.annotations).await;
        let looked = Self {
            context,
            bucket,
            key,
            source,
            // What an older release let through is as if it were not there.
            policy: wishes::image_policy(&tags).unwrap_or(ImagePolicy::Lenient),
            known: found.annotations,
        };
        looked.allow(found.disagreement)?;
        Ok(looked)
    }

    /// Looks at the image that was in the source. What is found is noted of the source too, but for its format.
    async fn at_inside(self, image: &Image) -> Result<BTreeMap<String, String>, JobError> {
        if image.envelopes == 0 {
            return Ok(self.known);
        }
        let mut name = self.key.as_str();
        for _ in 0..image.envelopes {
            name = without_extension(name, name_start(name)).0;
        }
        let bytes = image.bytes(&self.context.app.store, self.source);
        let found = annotate::look_at_image(&self.context.app, bytes, Said::new(name, None)).await;
        let mut known = found.annotations;
        let format = known.remove(annotate::FORMAT);
        annotate::note(
            &self.context.app,
            self.bucket,
            self.key,
            self.source.record.layout_id,
            &known,
        )
        .await;
        known.extend(format.map(|format| (annotate::FORMAT.to_owned(), format)));
        self.allow(found.disagreement)?;
        Ok(known)
    }

    /// Refuses an image that is not what somebody said, if the bucket is strict about it.
    fn allow(&self, disagreement: Option<String>) -> Result<(), JobError> {
        match (disagreement, self.policy) {
            (Some(how), ImagePolicy::Strict) => Err(JobError::Failed(format!(
                "{how}, and the bucket is tagged {}=strict: give the object another key or content type",
                wishes::IMAGE_POLICY
            ))),
            _ => Ok(()),
        }
    }
}

/// The key beside the source with the extension of the target.
fn derived_key(key: &ObjectKey, target: Target) -> Result<ObjectKey, JobError> {
    let extension = target.extension();
    let name_start = name_start(key.as_str());
    let stem = match without_extension(key.as_str(), name_start) {
        (stem, Some(envelope)) if ENVELOPES.contains(&envelope) => match without_extension(stem, name_start) {
            (inner, Some(image)) if is_of_image(image) => inner,
            _ => stem,
        },
        (stem, Some(image)) if is_of_image(image) => stem,
        // What follows the last dot of `debian-12.5` is part of a name.
        _ => key.as_str(),
    };
    let derived = format!("{stem}.{extension}");
    if derived == key.as_str() {
        return Err(JobError::Failed(format!(
            "the source is called .{extension} already: its {extension} has no name beside it"
        )));
    }
    Ok(derived.parse()?)
}

/// Extensions of envelopes, behind which the one of the image may stand: `debian.raw.xz` becomes `debian.qcow2`.
const ENVELOPES: [&str; 5] = ["gz", "xz", "zst", "bz2", "zip"];
/// Extensions that images of all formats have.
const ANY_IMAGE: [&str; 4] = ["img", "image", "disk", "bin"];

fn is_of_image(extension: &str) -> bool {
    ANY_IMAGE.contains(&extension) || Declared::Name(extension).says_something()
}

/// Where the last part of a key starts.
fn name_start(key: &str) -> usize {
    key.rfind('/').map_or(0, |slash| slash + 1)
}

/// The name without its extension, and the extension, if there is one behind `name_start`.
fn without_extension(name: &str, name_start: usize) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if stem.len() > name_start => (stem, Some(extension)),
        _ => (name, None),
    }
}

fn derived_annotations(
    known: &BTreeMap<String, String>,
    key: &ObjectKey,
    etag: &str,
    target: Target,
) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        (annotate::FORMAT.to_owned(), target.file_format().to_string()),
        (annotate::DERIVED_FROM.to_owned(), annotate::header_text(key.as_str())),
        (annotate::SOURCE_ETAG.to_owned(), etag.to_owned()),
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
        source: Some(SourceVersion {
            key: key.clone(),
            layout_id: source.layout_id,
        }),
    }
}

/// Plans or encodes the target and builds its content, on a thread that may block.
async fn convert(
    context: &Arc<JobContext>,
    source: &OpenObject,
    image: Image,
    target: Target,
) -> Result<(Content, String), JobError> {
    context.stage("planning", None);
    let store = &context.app.store;
    let (bytes, start) = (image.bytes(store, source), image.start);
    let reader = || image.reader(store, source);
    let per_worker = || (reader(), image.bytes(store, source));
    let workers = (0..half_of_the_cores().get()).map(|_| per_worker()).collect();
    let (reader, is_unpacked) = (reader(), image.unpacked.is_some());
    let (builder, unpacked) = match image.unpacked {
        // What is encoded refers to nothing of the source, but reads it.
        unpacked if target.is_encoded() => (store.content_builder(None).await?, unpacked),
        Some(unpacked) => {
            let mut builder = store.content_builder_for(unpacked.layout_id(), None).await?;
            builder.adopt(unpacked)?;
            (builder, None)
        }
        None => (store.content_builder(Some(source)).await?, None),
    };
    let work = Work {
        context: Arc::clone(context),
        runtime: Handle::current(),
        reader,
        start,
        is_unpacked,
        workers: Mutex::new(workers),
        builder,
        etag: Md5::new(),
    };
    let (source_etag, version) = (source.record.etag.clone(), source.record.layout_id);
    let converted = tokio::task::spawn_blocking(move || {
        // Until the end: it is read meanwhile.
        let _unpacked = unpacked;
        let image: Arc<dyn lithos_convert::Image> = lithos_convert::open(Arc::new(bytes)).map_err(image_error)?.into();
        let limits = &work.context.app.config.image;
        limits.check(&*image).map_err(image_error)?;
        target.check(image.virtual_size(), limits).map_err(image_error)?;
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
    /// Of what the image is in.
    reader: ObjectReader,
    /// Where the image starts there.
    start: u64,
    /// Whether it is in content that was taken over.
    is_unpacked: bool,
    /// What each worker reads with: what the image is in, and the image.
    workers: Mutex<Vec<(ObjectReader, Slice)>>,
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
        let (runtime, readers, start) = (self.runtime.clone(), std::mem::take(&mut self.workers), self.start);
        let worker = || {
            let (mut reader, _) = take_one(&readers);
            let (runtime, mut decoder) = (&runtime, Decoder::default());
            move |segment: Segment| {
                let decoded = decode(&segment, runtime, &mut reader, start, &mut decoder)?;
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
                let offset = self.start + source_offset;
                self.runtime.block_on(async {
                    if self.is_unpacked {
                        self.builder.push_adopted(&mut self.reader, offset, len).await
                    } else {
                        self.builder.push_range(&mut self.reader, offset, len).await
                    }
                })?;
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
    start: u64,
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
    let offset = start + source_offset;
    let compressed = runtime.block_on(reader.read(offset..offset + compressed_len))?;
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
        assert_eq!(derived("a/debian.img.xz").unwrap(), "a/debian.qcow2");
        assert_eq!(derived("a/debian.tar.gz").unwrap(), "a/debian.qcow2");
        assert_eq!(derived("debian-12.5.xz").unwrap(), "debian-12.5.qcow2");
        assert_eq!(derived("debian-12.5").unwrap(), "debian-12.5.qcow2");
        assert_eq!(derived("debian-12.5.vmdk").unwrap(), "debian-12.5.qcow2");
        assert_eq!(derived("vm.2024-01").unwrap(), "vm.2024-01.qcow2");
        assert_eq!(derived("disk.image").unwrap(), "disk.qcow2");
        assert_eq!(derived("a/.img.xz").unwrap(), "a/.img.qcow2");
        assert_eq!(derived("a.img/b.gz").unwrap(), "a.img/b.qcow2");
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
