//! Folders that clients carry to and fro.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::pattern::{Pattern, SparseImage};

/// More than one part of the smallest size, and an odd end.
pub const LARGE: u64 = (20 << 20) + 4321;

/// The files of a tree by [`make`], in order.
pub const NAMES: [&str; 5] = ["empty", "large.img", "small", "sub dir/a+b & c.txt", "sub dir/ü/100%"];

/// Makes a folder with files large and small, nested and oddly named.
///
/// # Errors
///
/// If the disk fails.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("sub dir/ü"))?;
    fs::write(folder.join("small"), "hello")?;
    fs::write(folder.join("empty"), "")?;
    fs::write(folder.join("sub dir/a+b & c.txt"), Pattern(1).bytes(0..100_000))?;
    fs::write(folder.join("sub dir/ü/100%"), "percent")?;
    SparseImage {
        size: LARGE,
        pattern: Pattern(2),
    }
    .write(&folder.join("large.img"))?;
    Ok(())
}

/// Changes a tree by [`make`] as a day's work does: a file changes, one goes, one comes, one moves.
///
/// # Errors
///
/// If the disk fails.
pub fn change(folder: &Path) -> Result<()> {
    fs::write(folder.join("small"), "hello again")?;
    fs::remove_file(folder.join("empty"))?;
    fs::write(folder.join("new"), "new")?;
    fs::rename(folder.join("sub dir/ü/100%"), folder.join("sub dir/100%"))?;
    Ok(())
}

/// Whether two folders hold the same files with the same content. Empty folders do not count: S3 has none.
///
/// # Errors
///
/// If they differ: then with the first file that does.
pub fn expect_same(ours: &Path, theirs: &Path) -> Result<()> {
    let (a, b) = (files(ours)?, files(theirs)?);
    let (names_a, names_b): (Vec<_>, Vec<_>) = (a.keys().collect(), b.keys().collect());
    ensure!(names_a == names_b, "one folder has {names_a:?}, the other {names_b:?}");
    for (name, path) in &a {
        let other = b.get(name).context("the other folder lacks it")?;
        ensure!(fs::read(path)? == fs::read(other)?, "{} differs", name.display());
    }
    Ok(())
}

/// The files below a folder, by their names relative to it.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder)?.to_owned(), path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_in_names_or_content_is_found() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
        make(&a).unwrap();
        make(&b).unwrap();
        expect_same(&a, &b).unwrap();
        let names: Vec<_> = files(&a).unwrap().into_keys().collect();
        assert_eq!(names, NAMES.map(PathBuf::from));
        fs::write(b.join("small"), "hellO").unwrap();
        expect_same(&a, &b).unwrap_err();
        fs::write(b.join("small"), "hello").unwrap();
        change(&a).unwrap();
        expect_same(&a, &b).unwrap_err();
        change(&b).unwrap();
        expect_same(&a, &b).unwrap();
    }
}
