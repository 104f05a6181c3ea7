//! The file that is written: beside its place, until it is whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with};
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
    path: Option<PathBuf>,
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
        let path = output.with_file_name(partial);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file,
            path: Some(path),
            output: output.to_owned(),
        })
    }

    /// Syncs the bytes, gives the file its name, and syncs the folder; or only gives it its name.
    pub(super) fn publish(mut self, how: Publish) -> anyhow::Result<()> {
        let Self { file, path, output } = &mut self;
        let named = path.as_deref().expect("published once");
        if how.sync {
            file.sync_all()
                .with_context(|| format!("cannot sync {}", named.display()))?;
        }
        rename(named, output, how.replace).with_context(|| format!("cannot create {}", output.display()))?;
        *path = None;
        if !how.sync {
            return Ok(());
        }
        let folder = output
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)?
            .sync_all()
            .with_context(|| format!("cannot sync {}", folder.display()))
    }
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

    #[test]
    fn an_output_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        let partial = Partial::create(&output).unwrap();
        fs::write(&output, "precious").unwrap();
        let how = Publish {
            replace: false,
            sync: true,
        };
        partial.publish(how).unwrap_err();
        assert_eq!(fs::read(&output).unwrap(), b"precious");
        let names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["out"]);
    }
}
