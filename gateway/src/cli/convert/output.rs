//! The file that is written: beside its place, until it is whole.
//!
//! Where the file system can, it has no name until then, and the kernel takes it away with the process, however that ends. To
//! replace a file it gets a temporary name for the moment between two system calls. It has the mode of the file that it
//! replaces, and its owner where that may be given away; links to a file that is replaced elsewhere keep the old one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, open, renameat_with};
use rustix::io::Errno;

/// How a file gets its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publish {
    /// A file that has the name already is replaced.
    pub(super) replace: bool,
    /// It is on the disk before it has its name.
    pub(super) sync: bool,
}

/// A file in the making, which goes away unless it is published.
pub(super) struct Partial {
    pub(super) file: File,
    /// The temporary name, if it has one now.
    path: Option<PathBuf>,
    /// The temporary name that it has or may get.
    temporary: PathBuf,
    output: PathBuf,
}

/// Where a file is to be written: behind symbolic links, as who opens it would. Refuses before any work what would be refused
/// at the end.
pub(super) fn resolve(output: &Path, force: bool) -> anyhow::Result<PathBuf> {
    /// As many as the kernel follows (`path_resolution(7)`).
    const LINKS_MAX: usize = 40;
    let mut path = output.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => break,
        }
    }
    if output.as_os_str().as_bytes().ends_with(b"/") || path.file_name().is_none() {
        bail!("{} does not name a file", output.display());
    }
    match fs::metadata(&path) {
        Ok(there) if there.file_type().is_block_device() => bail!(
            "{0} is a device: write to it by the shell, as in: lithos convert INPUT - --to raw > {0}",
            output.display()
        ),
        Ok(there) if !there.is_file() => bail!("{} is not a regular file", output.display()),
        Ok(_) if !force => bail!("{} exists; replace it with --force", output.display()),
        _ => Ok(path),
    }
}

impl Partial {
    pub(super) fn create(output: &Path) -> anyhow::Result<Self> {
        let temporary = output.with_file_name(format!(".lithos-{}.partial", std::process::id()));
        let (file, path) = match unnamed(folder_of(output)) {
            Some(file) => (file, None),
            None => (named(&temporary)?, Some(temporary.clone())),
        };
        let partial = Self {
            file,
            path,
            temporary,
            output: output.to_owned(),
        };
        if let Ok(replaced) = fs::metadata(output) {
            partial.take_after(&replaced)?;
        }
        Ok(partial)
    }

    /// Lets the same people read and write it as another file.
    fn take_after(&self, replaced: &fs::Metadata) -> anyhow::Result<()> {
        // Only root gives files away; whoever else replaces a file of somebody's has one of their own then.
        let _ignored = fchown(&self.file, Some(replaced.uid()), Some(replaced.gid()));
        let mode = Permissions::from_mode(replaced.mode() & 0o777);
        let set = self.file.set_permissions(mode);
        set.with_context(|| format!("cannot give {} its mode", self.output.display()))
    }

    /// Syncs the bytes, gives the file its name, and syncs the folder; or only gives it its name.
    pub(super) fn publish(mut self, how: Publish) -> anyhow::Result<()> {
        if how.sync {
            let synced = self.file.sync_all();
            synced.with_context(|| format!("cannot sync {}", self.output.display()))?;
        }
        self.name(how.replace)
            .with_context(|| format!("cannot create {}", self.output.display()))?;
        if !how.sync {
            return Ok(());
        }
        let folder = folder_of(&self.output);
        File::open(folder)?
            .sync_all()
            .with_context(|| format!("cannot sync {}", folder.display()))
    }

    /// Gives the file its name.
    fn name(&mut self, replace: bool) -> io::Result<()> {
        if self.path.is_none() {
            if !replace {
                return link(&self.file, &self.output);
            }
            link(&self.file, &self.temporary)?;
            self.path = Some(self.temporary.clone());
        }
        rename(&self.temporary, &self.output, replace)?;
        self.path = None;
        Ok(())
    }
}

fn folder_of(output: &Path) -> &Path {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// A file without a name, if the file system has such and a name can be given to one.
fn unnamed(folder: &Path) -> Option<File> {
    let file = open(
        folder,
        OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o666),
    );
    let file = File::from(file.ok()?);
    descriptor_path(&file).exists().then_some(file)
}

fn named(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

/// What the kernel lets a file be linked by that has no name (open(2), `O_TMPFILE`).
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let linked = linkat(CWD, descriptor_path(file), CWD, path, AtFlags::SYMLINK_FOLLOW);
    Ok(linked?)
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // There is an error on its way already, and nothing to be done about a second one.
            let _ignored = fs::remove_file(path);
        }
    }
}

fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return fs::rename(from, to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do without replacing; that nothing was there has been checked, if a while ago.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// How files are made on all file systems, and on those that have no files without a name.
    const BOTH: [fn(&Path) -> Partial; 2] = [|output| Partial::create(output).unwrap(), create_named];

    fn create_named(output: &Path) -> Partial {
        let temporary = output.with_file_name(".other.partial");
        Partial {
            file: named(&temporary).unwrap(),
            path: Some(temporary.clone()),
            temporary,
            output: output.to_owned(),
        }
    }

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn an_output_that_appears_meanwhile_is_kept_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        for replace in [false, true] {
            for create in BOTH {
                let partial = create(&output);
                fs::write(&output, "precious").unwrap();
                (&partial.file).write_all(b"new").unwrap();
                let published = partial.publish(Publish { replace, sync: true });
                assert_eq!(published.is_ok(), replace);
                let expected: &[u8] = if replace { b"new" } else { b"precious" };
                assert_eq!(fs::read(&output).unwrap(), expected);
                assert_eq!(names(folder.path()), ["out"]);
            }
        }
    }

    #[test]
    fn it_may_be_used_by_whom_the_file_that_it_replaces_was() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        fs::write(&output, "old").unwrap();
        fs::set_permissions(&output, Permissions::from_mode(0o640)).unwrap();
        let (replace, sync) = (true, false);
        let partial = Partial::create(&output).unwrap();
        partial.publish(Publish { replace, sync }).unwrap();
        let now = fs::metadata(&output).unwrap();
        assert_eq!((now.mode() & 0o777, now.len()), (0o640, 0));
    }

    #[test]
    fn links_are_followed_and_places_that_cannot_be_written_refused() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("far")).unwrap();
        fs::write(at("far/file"), "").unwrap();
        symlink("far/file", at("link")).unwrap();
        symlink("link", at("link-to-link")).unwrap();
        symlink("far/new", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        assert_eq!(resolve(&at("link-to-link"), true).unwrap(), at("far/file"));
        assert_eq!(resolve(&at("dangling"), false).unwrap(), at("far/new"));
        assert_eq!(resolve(&at("new"), false).unwrap(), at("new"));
        for (output, force, reason) in [
            ("link-to-link", false, "exists; replace it with --force"),
            ("far", true, "is not a regular file"),
            ("new/", true, "does not name a file"),
            ("..", true, "does not name a file"),
        ] {
            let error = resolve(&at(output), force).unwrap_err().to_string();
            assert!(error.ends_with(reason), "{error}");
        }
        assert!(resolve(Path::new("/dev/null"), true).is_err());
    }

    #[test]
    fn it_has_its_name_only_when_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        for create in BOTH {
            drop(create(&output));
            assert!(names(folder.path()).is_empty());
            let partial = create(&output);
            let how = Publish {
                replace: false,
                sync: false,
            };
            partial.publish(how).unwrap();
            assert_eq!(names(folder.path()), ["out"]);
            fs::remove_file(&output).unwrap();
        }
    }
}
