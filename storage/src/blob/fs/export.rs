//! Gives blobs to another root, such as a backup.
//!
//! What a sealed blob's name leads to is never changed in place: a repacked or repaired blob is a new file under the same
//! name. That is an invariant of the store, and it makes a hard link a copy: what happens to the name in one root does
//! nothing to the other. But it is the same place of the disk, so that damage of it is damage of both.
//!
//! The other root is no server's at the time. A crash leaves whole blobs in it, perhaps with fewer names than were given,
//! and files in its `tmp/`, which the first start on it removes.

use std::{fs, fs::File, io, path::Path};

use rustix::{fs::ioctl_ficlone, io::Errno};

use super::{Shared, draft::Draft, folders::Folders};
use crate::{
    blob::{BlobId, unreadable},
    error::{Error, Result},
};

/// How a blob came to another root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exported {
    /// It was there already.
    Present,
    /// As another name of the same file.
    Linked,
    /// As a file that shares its bytes with the first until one of them changes.
    Cloned,
    /// As a copy of its own.
    Copied,
}

/// Gives the blob `id` to the root that `target` are the folders of.
pub(super) fn export(shared: &Shared, id: BlobId, target: &Folders) -> Result<Exported> {
    let (from, to) = (shared.folders.path(id), target.path(id));
    match fs::hard_link(&from, &to) {
        Ok(()) => Ok(Exported::Linked),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Exported::Present),
        Err(error) if cannot_link(&error) => copy(shared, id, &from, target),
        // It may be the blob that is missing, or the folder of the other root.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !shared.exists(id)? => {
            Err(unreadable(id, "it is missing").caused_by(error))
        }
        Err(error) => Err(failed(id, error)),
    }
}

/// As one file of its own, whole before it has its name.
pub(super) fn copy(shared: &Shared, id: BlobId, from: &Path, target: &Folders) -> Result<Exported> {
    let mut source = shared
        .open
        .with_room(|| File::open(from))
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unreadable(id, "it is missing").caused_by(error),
            _ => failed(id, error),
        })?;
    let mut draft = Draft::create(target, &shared.open, id)?;
    // Where files cannot be cloned, the reasons to say no are many; a copy finds out whether it is worse than that.
    let exported = if ioctl_ficlone(draft.file(), &source).is_ok() {
        Exported::Cloned
    } else {
        io::copy(&mut source, draft.file()).map_err(|error| failed(id, error))?;
        Exported::Copied
    };
    draft.sync()?;
    draft.rename()?;
    Ok(exported)
}

/// Whether the reason is that the roots are on different file systems, that theirs has no links, or no more of them.
fn cannot_link(error: &io::Error) -> bool {
    [Errno::XDEV, Errno::PERM, Errno::MLINK, Errno::OPNOTSUPP, Errno::NOSYS]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}

fn failed(id: BlobId, error: io::Error) -> Error {
    Error::io(format!("export blob {id}"), error)
}
