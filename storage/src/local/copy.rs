//! Files copied, linked and synced.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::error::{Error, ErrorKind, Result};

/// Marks a folder that is being made, so that what a crash left of it can be told from a folder of somebody else.
const MARK: &str = "unfinished";

/// A folder that is being made beside its final name.
///
/// | step | what a crash after it leaves |
/// | --- | --- |
/// | 1. [`Partial::begin`] makes `NAME.partial` with a mark in it | that folder, which the next one of that name removes |
/// | 2. whoever has it fills it | the same, with more in it |
/// | 3. [`Partial::finish`] syncs it, removes the mark and syncs again | the whole folder under the name `NAME.partial` without a mark: it can be renamed by hand, or removed |
/// | 4. it is renamed, and its parent synced | the folder |
#[derive(Debug)]
pub(super) struct Partial {
    to: PathBuf,
    path: PathBuf,
}

impl Partial {
    /// Begins to make the folder `to`, which must not exist, or be empty if `empty_may_be` says so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if it exists, or something else has the name of the unfinished folder;
    /// [`ErrorKind::Io`] if the disk fails.
    pub(super) fn begin(to: &Path, target: Target) -> Result<Self> {
        check_absent(to, target)?;
        let name = to.file_name().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{} does not name a folder", to.display()),
            )
        })?;
        let mut name = name.to_owned();
        name.push(".partial");
        let path = to.with_file_name(name);
        let failed = |error| Error::io(format!("make the folder {}", path.display()), error);
        if path.try_exists().map_err(failed)? {
            if !path.join(MARK).is_file() {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "{} is in the way, and was not left here by a copy that broke off",
                        path.display()
                    ),
                ));
            }
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::create_dir(&path).map_err(failed)?;
        File::create(path.join(MARK))
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
        sync_folder(&path)?;
        sync_parent(&path)?;
        Ok(Self {
            to: to.to_owned(),
            path,
        })
    }

    /// Where it is meanwhile.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name. What is in it has been synced, but for the names at its top.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if the name has been taken meanwhile; [`ErrorKind::Io`] if the disk fails.
    pub(super) fn finish(self, target: Target) -> Result<()> {
        check_absent(&self.to, target)?;
        let failed = |error| Error::io(format!("make the folder {}", self.to.display()), error);
        sync_folder(&self.path)?;
        fs::remove_file(self.path.join(MARK)).map_err(failed)?;
        sync_folder(&self.path)?;
        // An empty folder is replaced by the rename.
        fs::rename(&self.path, &self.to).map_err(failed)?;
        sync_parent(&self.to)
    }

    /// Removes it: it will not be finished.
    pub(super) fn discard(self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished folder could not be removed");
        }
    }
}

/// What may be under the name of a folder that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing.
    Absent,
    /// Nothing, or an empty folder, which is replaced.
    AbsentOrEmpty,
}

/// Refuses a name that is taken.
pub(super) fn check_absent(path: &Path, target: Target) -> Result<()> {
    let taken = match fs::read_dir(path) {
        Ok(mut entries) => target == Target::Absent || entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => true,
        Err(error) => return Err(Error::io(format!("look at {}", path.display()), error)),
    };
    if taken {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{} exists already", path.display()),
        ));
    }
    Ok(())
}

/// The names of the files right in `folder`, sorted; none if it is missing.
pub(super) fn files_in(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(format!("list the folder {}", folder.display()), error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Copies a file with its mode, and syncs it. File systems that can share the blocks do (`copy_file_range`).
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<u64> {
    let copy = || -> io::Result<u64> {
        let mut source = File::open(from)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&source.metadata()?.permissions());
        let mut copy = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            // Secrets are secret from their first byte on.
            .mode(mode & 0o7777)
            .open(to)?;
        let len = io::copy(&mut source, &mut copy)?;
        copy.set_permissions(source.metadata()?.permissions())?;
        copy.sync_all()?;
        Ok(len)
    };
    copy().map_err(|error| Error::io(format!("copy {} to {}", from.display(), to.display()), error))
}

/// Gives a file that never changes a second name.
pub(super) fn link_file(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to).map_err(|error| Error::io(format!("link {} to {}", from.display(), to.display()), error))
}

/// Makes the bytes of a file durable.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io(format!("sync {}", path.display()), error))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    sync_file(path)
}

/// Makes the name of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_file(parent.unwrap_or(Path::new(".")))
}
