//! From a backup to a data folder.
//!
//! `DIR.partial/` is made and filled, everything in it is synced, every blob that the index names is looked at, and only
//! then it gets the name `DIR/`. A crash before leaves `DIR.partial/`, which the next attempt removes.
//!
//! Bytes are copied, or cloned by a file system that can. Linked, a restored store takes no time and no space, and shares
//! the fate of the backup's disk blocks. Only what never changes is linked: blobs, and RocksDB's tables.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;

use super::{
    BLOBS, INDEX, Manifest, Progress,
    copy::{Partial, Target, copy_file, files_in, link_file, sync_file, sync_folder},
    lock::LOCK,
};
use crate::{
    blob::{Blobs, FsBlobs},
    error::{Error, ErrorKind, Result},
    format::Format,
    fsck::{self, FsckOptions, Report, Severity},
    kv::{Kv, RocksReader},
};

/// Files that are copied at a time: two keep a disk busy while a third is being synced.
const COPIES: usize = 4;

/// How a backup is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Share the bytes with the backup instead of copying them. Both must be in one file system.
    pub link: bool,
    /// Read every block and compare its checksum.
    pub verify: bool,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// What was found while its blobs were looked at: nothing but blobs that had been lost before, and notes.
    pub blobs: Report,
}

/// Makes the data folder `data`, which must not exist or be empty, of the backup in `from`.
///
/// # Errors
///
/// [`ErrorKind::InvalidArgument`] if `from` is no whole backup or `data` is taken; [`ErrorKind::Format`] if a newer release
/// made it; [`ErrorKind::Corrupt`] if a blob is missing, or damaged as far as that was looked at;
/// [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if a disk is full or fails. There is no data folder then.
pub async fn restore(
    from: &Path,
    data: &Path,
    options: RestoreOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<RestoreReport> {
    let (backup, to) = (from.to_owned(), data.to_owned());
    let (manifest, partial) = spawn_blocking(move || {
        let manifest = Manifest::read(&backup)?;
        let format = Format {
            version: manifest.format,
            release: Some(manifest.release.clone()),
        };
        format.check_not_newer()?;
        let partial = Partial::begin(&to, Target::AbsentOrEmpty)?;
        Ok::<_, Error>((manifest, partial))
    })
    .await??;
    let filled = fill(from, partial.path(), &manifest, options, progress).await;
    match filled {
        Ok(blobs) => {
            spawn_blocking(|| partial.finish(Target::AbsentOrEmpty)).await??;
            Ok(RestoreReport { manifest, blobs })
        }
        Err(error) => {
            spawn_blocking(|| partial.discard()).await?;
            Err(error)
        }
    }
}

async fn fill(
    from: &Path,
    to: &Path,
    manifest: &Manifest,
    options: RestoreOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<Report> {
    let (backup, folder, files) = (from.to_owned(), to.to_owned(), manifest.files.clone());
    spawn_blocking(move || {
        for name in &files {
            // Names come from the manifest: one with a slash in it would lead elsewhere.
            if Path::new(name).file_name() != Some(OsStr::new(name)) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("the backup names a file {name:?}, which is none of its own"),
                ));
            }
            copy_file(&backup.join(name), &folder.join(name))?;
        }
        take_index(&backup.join(INDEX), &folder.join(INDEX), options)
    })
    .await??;
    FsBlobs::prepare_export(&to.join(BLOBS)).await?;
    take_blobs(from, to, manifest, options, progress).await?;
    look_at_blobs(to, manifest, options, progress).await
}

/// Copies the index, whose tables never change and may be linked.
fn take_index(from: &Path, to: &Path, options: RestoreOptions) -> Result<()> {
    fs::create_dir(to).map_err(|error| Error::io(format!("make the folder {}", to.display()), error))?;
    for name in files_in(from)? {
        let (source, target) = (from.join(&name), to.join(&name));
        let table = Path::new(&name).extension().is_some_and(|extension| extension == "sst");
        if options.link && table {
            link_file(&source, &target)?;
        } else {
            copy_file(&source, &target)?;
        }
    }
    debug_assert!(to.join(LOCK).exists(), "a backup has the file of the lock");
    sync_folder(to)
}

async fn take_blobs(
    from: &Path,
    to: &Path,
    manifest: &Manifest,
    options: RestoreOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<()> {
    let mut done = 0_u64;
    for fan_out in 0..=u8::MAX {
        let folder = PathBuf::from(BLOBS).join("blobs").join(format!("{fan_out:02x}"));
        let (source, target) = (from.join(&folder), to.join(&folder));
        let names = spawn_blocking({
            let source = source.clone();
            move || files_in(&source)
        })
        .await??;
        let mut copies = stream::iter(names)
            .map(|name| {
                let (source, target) = (source.join(&name), target.join(&name));
                spawn_blocking(move || take_blob(&source, &target, options))
            })
            .buffer_unordered(COPIES);
        while let Some(len) = copies.try_next().await? {
            done = done.saturating_add(len?);
            progress(Progress {
                stage: "copying blobs",
                done: done.min(manifest.blob_bytes),
                total: Some(manifest.blob_bytes),
            });
        }
    }
    FsBlobs::sync_export(&to.join(BLOBS)).await?;
    let top = to.to_owned();
    spawn_blocking(move || sync_file(&top)).await?
}

fn take_blob(from: &Path, to: &Path, options: RestoreOptions) -> Result<u64> {
    if options.link {
        link_file(from, to)?;
        let metadata = fs::metadata(to).map_err(|error| Error::io(format!("look at {}", to.display()), error))?;
        return Ok(metadata.len());
    }
    copy_file(from, to)
}

/// Looks whether every blob that the index names is there and whole. Those that were missing already are let pass.
async fn look_at_blobs(
    folder: &Path,
    manifest: &Manifest,
    options: RestoreOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<Report> {
    let (index, root) = (folder.join(INDEX), folder.join(BLOBS));
    let (kv, blobs) =
        spawn_blocking(move || Ok::<_, Error>((RocksReader::open(&index)?, FsBlobs::open_read_only(&root)?))).await??;
    let (kv, blobs): (Arc<dyn Kv>, Arc<dyn Blobs>) = (Arc::new(kv), Arc::new(blobs));
    let options = FsckOptions { deep: options.verify };
    let mut told = |step: fsck::Progress| {
        progress(Progress {
            stage: step.stage,
            done: step.done,
            total: None,
        });
    };
    let report = fsck::check_blobs(&kv, &blobs, &options, &mut told).await?;
    let known = |finding: &&fsck::Finding| {
        finding.kind.severity() == Severity::Error && !manifest.missing.contains(&finding.subject)
    };
    if let Some(first) = report.findings.iter().find(known) {
        let count = report.findings.iter().filter(known).count();
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the backup is not whole: {count} of its blobs are missing or damaged, such as {}: {}",
                first.subject, first.detail
            ),
        ));
    }
    Ok(report)
}
