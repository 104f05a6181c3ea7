//! The file that is written: beside its place, until it is whole.
//!
//! Where the file system can, it has no name until then, and the kernel takes it away with the process, however that ends. To
//! replace a file it gets a temporary name for the moment between two system calls.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
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

impl Partial {
    pub(super) fn create(output: &Path) -> anyhow::Result<Self> {
        let name = output
            .file_name()
            .with_context(|| format!("{} does not name a file", output.display()))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let temporary = output.with_file_name(partial);
        let (file, path) = match unnamed(folder_of(output)) {
            Some(file) => (file, None),
            None => (named(&temporary)?, Some(temporary.clone())),
        };
        Ok(Self {
            file,
            path,
            temporary,
            output: output.to_owned(),
        })
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

    fn names(folder: &Path) -> Vec<OsString> {
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
