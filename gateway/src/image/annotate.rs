//! What the server knows of an image, kept beside the object and shown as `x-amz-meta-image-*`.

use std::collections::BTreeMap;

use lithos_convert::{Declared, Disk, Evidence, Format, Limits, PartitionTable, ReadAt};
use lithos_storage::{BucketName, LayoutId, ObjectKey, layout::Layout};

use super::read_at::ObjectImage;
use crate::app::App;

/// Annotation: the format of the image.
pub(crate) const FORMAT: &str = "image-format";
/// Annotation: the size of the disk that a guest sees, in bytes.
pub(crate) const VIRTUAL_SIZE: &str = "image-virtual-size";
/// Annotation: how the disk is divided: `mbr`, `gpt` or `hybrid-gpt`.
const PARTITION_TABLE: &str = "image-partition-table";
/// Annotation: the file systems on it, each sort once, in the order of their partitions.
const FILE_SYSTEMS: &str = "image-file-systems";
/// Annotation: the installed system, as `id` or `id version`.
const OS: &str = "image-os";
/// Annotation: how it boots: `bios`, `uefi`, or both.
const BOOT: &str = "image-boot";
/// Annotation: the key of the object that this one was derived from.
pub(crate) const DERIVED_FROM: &str = "image-derived-from";
/// Annotation: the `ETag` that the object had then. Where it has another one now, this is a derivative of an older version.
pub(crate) const SOURCE_ETAG: &str = "image-source-etag";
/// Annotation: why the image will not be converted; or how it is unlike what its key or content type says, and what a
/// conversion leaves behind.
pub(crate) const WARNING: &str = "image-warning";

/// Response metadata: jobs that were made for the object, as `id:state`.
pub(crate) const JOBS: &str = "image-jobs";

/// All that the server says about images by itself, which nobody else can say.
pub(crate) const SHOWN: [&str; 10] = [
    FORMAT,
    VIRTUAL_SIZE,
    PARTITION_TABLE,
    FILE_SYSTEMS,
    OS,
    BOOT,
    DERIVED_FROM,
    SOURCE_ETAG,
    WARNING,
    JOBS,
];

/// Longest warning, in bytes: it travels in a header.
const WARNING_LEN_MAX: usize = 512;
/// Longest of the others that an image has a say in. All metadata of an object shares the 8 KiB that clients take in headers.
const TEXT_LEN_MAX: usize = 64;

/// What somebody says an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// Of the key.
    extension: Option<String>,
    content_type: Option<String>,
}

impl Said {
    pub(crate) fn new(key: &str, content_type: Option<&str>) -> Self {
        let name = key.rsplit('/').next().unwrap_or_default();
        Self {
            extension: name.rsplit_once('.').map(|(_, extension)| extension.to_owned()),
            content_type: content_type.map(str::to_owned),
        }
    }

    fn declared(&self) -> impl Iterator<Item = Declared<'_>> {
        let extension = self.extension.as_deref().map(Declared::Name);
        let media_type = self.content_type.as_deref().map(Declared::MediaType);
        extension.into_iter().chain(media_type)
    }
}

/// What was found of an object.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) annotations: BTreeMap<String, String>,
    /// How the content is unlike what was said.
    pub(crate) disagreement: Option<String>,
}

/// Looks at the content of an object that is about to be committed.
///
/// Never fails: what cannot be read is no image.
pub(crate) async fn annotations(app: &App, layout: &Layout, said: Said) -> BTreeMap<String, String> {
    let image = ObjectImage::new(app.store.staged_reader(layout));
    look(image, said, app.config.image, false).await.annotations
}

/// Looks at what is known to be an image, because somebody asks for a conversion of it.
pub(crate) async fn look_at_image(app: &App, image: impl ReadAt + 'static, said: Said) -> Found {
    look(image, said, app.config.image, true).await
}

async fn look(image: impl ReadAt + 'static, said: Said, limits: Limits, known: bool) -> Found {
    let found = tokio::task::spawn_blocking(move || find(&image, &said, &limits, known));
    found.await.unwrap_or_default()
}

/// What there is to say of `image`. Without `known`, bytes that show no sign of an image, and are not said to be one, have
/// no annotations.
fn find(image: &dyn ReadAt, said: &Said, limits: &Limits, known: bool) -> Found {
    let mut found = Found::default();
    if image.size() == 0 {
        return found;
    }
    let shows_nothing = lithos_convert::probe(image)
        .is_ok_and(|probe| probe.format == Format::Raw && probe.evidence == Evidence::Default);
    if shows_nothing && !known && !said.declared().any(|declared| declared.says_something()) {
        return found;
    }
    let mut inspection = match lithos_convert::inspect(image) {
        Ok(inspection) => inspection,
        Err(error) => {
            found
                .annotations
                .insert(WARNING.to_owned(), header_text(&error.to_string()));
            return found;
        }
    };
    inspection.hold_to(limits);
    found.disagreement = said.declared().find_map(|declared| inspection.disagreement(declared));
    if !shows_nothing || known {
        let size = inspection.virtual_size.map(|size| size.to_string());
        let about = size.map(|size| (VIRTUAL_SIZE.to_owned(), size));
        found.annotations.extend(about);
        found
            .annotations
            .extend(inspection.disk.iter().flat_map(disk_annotations));
        found
            .annotations
            .insert(FORMAT.to_owned(), inspection.format.to_string());
    }
    let mut warnings: Vec<String> = found.disagreement.iter().cloned().collect();
    // What is in an envelope is looked at when it is taken out.
    if !inspection.format.is_envelope() {
        warnings.extend(inspection.warnings);
    }
    let refusal = inspection.refusal.map(|refusal| refusal.reason);
    let warning = refusal.unwrap_or_else(|| warnings.join("; "));
    if !warning.is_empty() {
        found.annotations.insert(WARNING.to_owned(), header_text(&warning));
    }
    found
}

/// What is on the disk, in few words.
fn disk_annotations(disk: &Disk) -> impl Iterator<Item = (String, String)> {
    let parts = disk
        .partitions
        .iter()
        .filter_map(|partition| partition.file_system.as_ref());
    let kinds = disk.file_systems.iter().chain(parts).map(|found| found.kind.name());
    let os = disk.os.as_ref();
    let os = os.map(|os| words(os.id.iter().chain(&os.version_id).map(String::as_str), " "));
    let table = disk.partition_table.map(PartitionTable::name);
    [
        (PARTITION_TABLE, table.unwrap_or_default().to_owned()),
        (FILE_SYSTEMS, words(kinds, ",")),
        (OS, os.unwrap_or_default()),
        (BOOT, words(disk.boot.iter().map(|boot| boot.mode.name()), ",")),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| {
        let value: String = header_text(&value).chars().take(TEXT_LEN_MAX).collect();
        (name.to_owned(), value)
    })
}

/// Words that are not yet there, one after another.
fn words<'a>(words: impl Iterator<Item = &'a str>, separator: &str) -> String {
    let mut listed: Vec<&str> = Vec::new();
    for word in words {
        if !listed.contains(&word) {
            listed.push(word);
        }
    }
    listed.join(separator)
}

/// `text` as it can stand in a header: printable ASCII, and not too long.
pub(crate) fn header_text(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .take(WARNING_LEN_MAX)
        .collect()
}

/// Looks at an object that was committed without having been looked at.
pub(crate) async fn annotate_object(app: &App, bucket: &BucketName, key: &ObjectKey, version: LayoutId) {
    let Ok(object) = app.store.open_object(bucket, key).await else {
        return;
    };
    if object.record.layout_id == version {
        let said = Said::new(key.as_str(), object.record.headers.content_type.as_deref());
        let found = look(ObjectImage::new(object.reader()), said, app.config.image, false).await;
        note(app, bucket, key, version, &found.annotations).await;
    }
}

/// Notes in the record of an object what was found. That it was replaced or deleted meanwhile is no error.
pub(crate) async fn note(
    app: &App,
    bucket: &BucketName,
    key: &ObjectKey,
    version: LayoutId,
    found: &BTreeMap<String, String>,
) {
    if found.is_empty() {
        return;
    }
    let update = app.store.update_object(bucket, key, Some(version), |_, record| {
        record.annotations.extend(found.clone());
        Ok(Vec::new())
    });
    if let Err(error) = update.await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "what was found of an image is not noted"
        );
    }
}
