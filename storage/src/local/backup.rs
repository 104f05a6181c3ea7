//! A copy of a moment, while writes go on.
//!
//! | step | what happens | a crash after it leaves |
//! | --- | --- | --- |
//! | 1 | deletions of blobs in this process wait; commits go on, so the rows of what is deleted go, and its blobs stay | nothing |
//! | 2 | `TO.partial/` is made, with a mark in it | the folder; the next backup to that name removes it |
//! | 3 | `index/`: a checkpoint of RocksDB, the moment of the backup | the same |
//! | 4 | `blobs/`: what the rows of the checkpoint name, by hard link where that can be, else cloned or copied | the same |
//! | 5 | the files beside them, with their modes | the same |
//! | 6 | all is synced, then `backup.json` is written and synced | the same |
//! | 7 | `TO.partial/` is renamed to `TO/`, and its parent synced | the backup |
//! | 8 | deletions go on | |
//!
//! Hard links are safe because neither a blob's file nor a table of RocksDB is ever changed in place. They cost no space
//! until the store deletes its name; a damage of the disk under them hurts both. Who wants a second copy of the bytes
//! names a folder of another file system.
//!
//! A backup that fails removes what it made. One that is cut off leaves the folder with the mark.

use std::{fs::File, path::Path, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;

use super::{
    BLOBS, INDEX, Index, Local, Manifest, Progress,
    copy::{Partial, Target, check_absent, copy_file, files_in, sync_file, sync_folder},
    lock::LOCK,
    manifest::MISSING_MAX,
};
use crate::{
    blob::{BlobId, Blobs, Exported, FsBlobs},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    format::{Format, RELEASE},
    kv::{Kv, RocksKv, RocksReader, Snapshot},
    rows::Pages,
    schema::{BlobRecord, FORMAT_VERSION, IntentRecord, IntentStage, Keys, LayoutRecord, LayoutState, decode},
};

/// Blobs that are exported at a time: enough to hide the latency of links and opens; copies are bound by the disk.
const EXPORTS: usize = 8;
/// Files of the folder that say something of the running process only.
const SKIPPED: [&str; 1] = ["endpoints.json"];

impl Local {
    /// Copies the store, as of a moment during the call, to the new folder `to`, while it is in use. The module's doc says
    /// how. `now` is noted in it.
    ///
    /// # Errors
    ///
    /// As [`check_target`]; [`ErrorKind::ReadOnly`] if the folder was opened for reading; [`ErrorKind::Corrupt`] if so many
    /// blobs are missing that the store is not worth a copy; [`ErrorKind::StorageFull`] or [`ErrorKind::Io`] if a disk is
    /// full or fails. There is no backup then.
    pub async fn backup(
        &self,
        to: &Path,
        now: Timestamp,
        progress: &mut (dyn FnMut(Progress) + Send + Sync),
    ) -> Result<Manifest> {
        let Index::Writer(kv) = &self.index else {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "a backup is made by who has the data folder open for writing",
            ));
        };
        progress(Progress {
            stage: "waiting for deletions",
            done: 0,
            total: None,
        });
        let _alone = self.deletions.write().await;
        let (data, name) = (self.path.clone(), to.to_owned());
        let partial = spawn_blocking(move || {
            check_target(&data, &name)?;
            Partial::begin(&name, Target::Absent)
        })
        .await??;
        let filled = self.fill(kv, partial.path(), now, progress).await;
        match filled {
            Ok(manifest) => {
                spawn_blocking(|| partial.finish(Target::Absent)).await??;
                Ok(manifest)
            }
            Err(error) => {
                spawn_blocking(|| partial.discard()).await?;
                Err(error)
            }
        }
    }

    async fn fill(
        &self,
        kv: &Arc<RocksKv>,
        folder: &Path,
        now: Timestamp,
        progress: &mut (dyn FnMut(Progress) + Send + Sync),
    ) -> Result<Manifest> {
        progress(Progress {
            stage: "copying the index",
            done: 0,
            total: None,
        });
        let reader = spawn_blocking({
            let (kv, index) = (Arc::clone(kv), folder.join(INDEX));
            move || copy_index(&kv, &index)
        })
        .await??;
        let snapshot = reader.snapshot().await?;
        let format = Format::read(&*snapshot).await?;
        let mut manifest = Manifest {
            format: format.map_or(FORMAT_VERSION, |format| format.version),
            release: RELEASE.to_owned(),
            created_millis: now.0,
            blobs: 0,
            blob_bytes: 0,
            linked: 0,
            copied: 0,
            files: Vec::new(),
            missing: Vec::new(),
        };
        self.export_blobs(&*snapshot, &folder.join(BLOBS), &mut manifest, progress)
            .await?;
        let (data, folder) = (self.path.clone(), folder.to_owned());
        let manifest = spawn_blocking(move || {
            manifest.files = copy_files(&data, &folder)?;
            manifest.write(&folder)?;
            Ok::<_, Error>(manifest)
        })
        .await??;
        Ok(manifest)
    }

    /// Gives the backup all blobs that the rows of `snapshot` name.
    async fn export_blobs(
        &self,
        snapshot: &dyn Snapshot,
        to: &Path,
        manifest: &mut Manifest,
        progress: &mut (dyn FnMut(Progress) + Send + Sync),
    ) -> Result<()> {
        FsBlobs::prepare_export(to).await?;
        let mut total = 0_u64;
        for table in [BlobTable::InUse, BlobTable::Arrived] {
            let mut pages = Pages::of(table.range());
            while let Some(page) = pages.next(snapshot).await? {
                for (key, value) in page {
                    let blob = table.parse(&key, &value)?;
                    total = total.saturating_add(blob.map_or(0, |(_, len)| len));
                }
            }
        }
        for table in [BlobTable::InUse, BlobTable::Arrived] {
            let mut pages = Pages::of(table.range());
            while let Some(page) = pages.next(snapshot).await? {
                let mut blobs = Vec::new();
                for (key, value) in page {
                    blobs.extend(table.parse(&key, &value)?);
                }
                let mut exports = stream::iter(blobs)
                    .map(|(id, len)| async move { self.export(id, to).await.map(|exported| (id, len, exported)) })
                    .buffer_unordered(EXPORTS);
                while let Some((id, len, exported)) = exports.try_next().await? {
                    match exported {
                        Some(Exported::Linked) => manifest.linked += 1,
                        Some(_) => manifest.copied += 1,
                        None => note_missing(snapshot, id, manifest).await?,
                    }
                    if exported.is_some() {
                        manifest.blobs += 1;
                        manifest.blob_bytes = manifest.blob_bytes.saturating_add(len);
                    }
                    progress(Progress {
                        stage: "copying blobs",
                        done: manifest.blob_bytes,
                        total: Some(total),
                    });
                }
            }
        }
        FsBlobs::sync_export(to).await
    }

    /// Gives the backup one blob; `None` if it is missing here.
    async fn export(&self, id: BlobId, to: &Path) -> Result<Option<Exported>> {
        match self.blobs.export(id, to).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && !self.blobs.exists(id).await? => Ok(None),
            exported => exported.map(Some),
        }
    }
}

/// The tables that name blobs.
#[derive(Debug, Clone, Copy)]
enum BlobTable {
    /// Those of layouts.
    InUse,
    /// Those that came from another server, and wait for their object.
    Arrived,
}

impl BlobTable {
    fn range(self) -> std::ops::Range<bytes::Bytes> {
        match self {
            Self::InUse => Keys::table(b'X'),
            Self::Arrived => Keys::intents(),
        }
    }

    /// The blob of a row, with its length; `None` for one that is being written.
    fn parse(self, key: &[u8], value: &[u8]) -> Result<Option<(BlobId, u64)>> {
        let id = Keys::parse_blob(key)?;
        Ok(match self {
            Self::InUse => Some((id, decode::<BlobRecord>(value)?.len)),
            Self::Arrived => match decode::<IntentRecord>(value)?.stage {
                IntentStage::Arrived(len) => Some((id, len)),
                IntentStage::Writing | IntentStage::Dropped => None,
            },
        })
    }
}

/// Refuses a folder for a backup of the data folder `data`: it must be absolute, new, in a folder that exists, and not
/// within the data.
///
/// # Errors
///
/// [`ErrorKind::InvalidArgument`], saying which.
pub fn check_target(data: &Path, to: &Path) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{} {why}", to.display()),
        ))
    };
    if !to.is_absolute() {
        return refuse("is not an absolute path of the server");
    }
    check_absent(to, Target::Absent)?;
    let real = |path: &Path| path.canonicalize().ok();
    let Some(parent) = to.parent().and_then(real) else {
        return refuse("is in a folder that does not exist");
    };
    if real(data).is_some_and(|data| parent.starts_with(data)) {
        return refuse("is within the data folder");
    }
    Ok(())
}

/// Makes a checkpoint in `to`, durable, and opens it.
fn copy_index(kv: &RocksKv, to: &Path) -> Result<RocksReader> {
    kv.checkpoint(to)?;
    File::create(to.join(LOCK)).map_err(|error| Error::io(format!("make {}", to.join(LOCK).display()), error))?;
    for name in files_in(to)? {
        sync_file(&to.join(name))?;
    }
    sync_folder(to)?;
    RocksReader::open(to)
}

/// Copies the files beside index and blobs.
fn copy_files(data: &Path, to: &Path) -> Result<Vec<String>> {
    let mut files = files_in(data)?;
    // What is about to be renamed is on its way to another name.
    let temporary = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "new");
    files.retain(|name| !SKIPPED.contains(&name.as_str()) && !temporary(name));
    for name in &files {
        copy_file(&data.join(name), &to.join(name))?;
    }
    Ok(files)
}

/// Notes a blob that is missing, unless the sweep was cut off while it deleted it.
async fn note_missing(snapshot: &dyn Snapshot, id: BlobId, manifest: &mut Manifest) -> Result<()> {
    let owner = snapshot.get(&Keys::layout(id.owner)).await?;
    let owner: Option<LayoutRecord> = owner.map(|owner| decode(&owner)).transpose()?;
    if owner.is_some_and(|owner| owner.state == LayoutState::Dying) {
        return Ok(());
    }
    if manifest.missing.len() >= MISSING_MAX {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("over {MISSING_MAX} blobs are missing, such as {id}: this is not the whole store"),
        ));
    }
    manifest.missing.push(id.to_string());
    Ok(())
}
