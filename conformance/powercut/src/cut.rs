//! Cutting the power: which part of the journal survives, and undoing the rest.
//!
//! Now and then nothing that was not synced survives, and now and then all. Otherwise dice decide for each file and each
//! folder by itself: its changes up to some moment. Of the write at that moment a part may be there, up to any byte, or
//! to a multiple of a sector.

use std::{cmp::Reverse, collections::HashMap, ffi::c_int};

use crate::{
    journal::{Dice, Journal, Name, Naming, Unsynced, What},
    sys,
};

/// What a process ends with whose power was cut: that of one killed by SIGKILL, as a shell says it.
pub(crate) const STATUS: c_int = 137;
/// What it ends with if this library cannot do its work; then a run has shown nothing.
pub(crate) const STATUS_BROKEN: c_int = 90;
/// What disks write whole.
const SECTOR: u64 = 512;

/// How much survives.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    All,
    Some,
}

impl Fate {
    fn throw(dice: &mut Dice) -> Self {
        match dice.below(8) {
            0 | 1 => Self::Nothing,
            2 => Self::All,
            _ => Self::Some,
        }
    }

    /// How many of `count` changes survive, and whether the next one may in part.
    fn survivors(self, dice: &mut Dice, count: usize) -> (usize, bool) {
        match self {
            Self::Nothing => (0, false),
            Self::All => (count, false),
            Self::Some => match dice.below(4) {
                0 => (0, false),
                1 => (count, false),
                _ => (
                    usize::try_from(dice.below(count as u64 + 1)).unwrap_or(0),
                    dice.below(2) == 0,
                ),
            },
        }
    }
}

/// Cuts the power. The caller holds the journal's lock, at which all other threads stop when they next come by.
pub(crate) fn cut(journal: &mut Journal) -> ! {
    let fate = Fate::throw(&mut journal.dice);
    let mut dice = std::mem::take(&mut journal.dice);
    // In an order that the dice can repeat.
    let mut files: Vec<_> = journal.files.values().collect();
    files.sort_by_key(|unsynced| unsynced.changes.first().map(|change| change.at));
    for unsynced in files {
        if !restore(unsynced, fate, &mut dice) {
            fail("a file could not be restored");
        }
    }
    let graves = journal.graves();
    restore_names(std::mem::take(&mut journal.names), fate, &mut dice);
    remove_tree(&graves);
    sys::exit(STATUS)
}

/// Ends the process because this library cannot do its work.
pub(crate) fn fail(why: &str) -> ! {
    let text = format!("powercut: {why}: errno {}\n", sys::errno());
    // SAFETY: the text is as long as said.
    unsafe { sys::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    sys::exit(STATUS_BROKEN)
}

/// Undoes what does not survive of a file.
fn restore(unsynced: &Unsynced, fate: Fate, dice: &mut Dice) -> bool {
    let hopeful = unsynced.changes.iter().filter(|change| !change.lost).count();
    let (survivors, torn) = fate.survivors(dice, hopeful);
    let mut len = unsynced.synced_len;
    let mut undo = Vec::new();
    let mut seen = 0;
    for change in &unsynced.changes {
        if !change.lost {
            seen += 1;
        }
        let kept = if change.lost {
            0
        } else if seen <= survivors {
            u64::MAX
        } else if seen == survivors + 1 && torn {
            tear(&change.what, dice)
        } else {
            0
        };
        match &change.what {
            What::Write {
                offset, len: written, ..
            } if kept > 0 => len = len.max(offset + kept.min(*written)),
            What::Resize { len: resized, .. } if kept > 0 => len = *resized,
            _ => {}
        }
        undo.push((change, kept));
    }
    undo.iter()
        .rev()
        .all(|(change, kept)| undo_change(unsynced.fd, &change.what, *kept, len))
        && sys::ftruncate(unsynced.fd, sys::signed(len)) == 0
}

/// How many bytes of a write are there; a change of length is not torn.
fn tear(what: &What, dice: &mut Dice) -> u64 {
    match what {
        What::Resize { .. } => 0,
        What::Write { len, .. } if dice.below(2) == 0 => dice.below(*len),
        What::Write { len, .. } => dice.below(*len) / SECTOR * SECTOR,
    }
}

/// Undoes a change, but for the first `kept` bytes of it. Beyond `end` the file is cut off afterwards.
fn undo_change(fd: c_int, what: &What, kept: u64, end: u64) -> bool {
    match what {
        What::Resize { len, tail } => kept > 0 || sys::write_all_at(fd, tail, *len),
        What::Write { offset, len, old } => {
            let from = kept.min(*len);
            let lost = old
                .get(usize::try_from(from).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            let blank = (offset + from.max(old.len() as u64))..(offset + len).min(end);
            let zeros = vec![0; usize::try_from(blank.end.saturating_sub(blank.start)).unwrap_or(0)];
            sys::write_all_at(fd, lost, offset + from) && sys::write_all_at(fd, &zeros, blank.start)
        }
    }
}

/// Undoes what does not survive of the names.
fn restore_names(names: Vec<Naming>, fate: Fate, dice: &mut Dice) {
    let mut folders: HashMap<Vec<u8>, Vec<Naming>> = HashMap::new();
    let mut order = Vec::new();
    for naming in names {
        let of_folder = folders.entry(naming.folder.clone()).or_default();
        if of_folder.is_empty() {
            order.push(naming.folder.clone());
        }
        of_folder.push(naming);
    }
    let mut undo = Vec::new();
    for folder in order {
        let mut of_folder = folders.remove(&folder).unwrap_or_default();
        let (survivors, _) = fate.survivors(dice, of_folder.len());
        undo.extend(of_folder.drain(survivors..));
    }
    undo.sort_by_key(|naming| Reverse(naming.at));
    for naming in undo {
        if !undo_naming(&naming.what) {
            fail(&format!("a name could not be restored: {:?}", naming.what));
        }
    }
}

fn undo_naming(what: &Name) -> bool {
    match what {
        Name::Added { path } => {
            remove_tree(path);
            sys::lstat(path).is_none()
        }
        Name::RemovedFolder { path } => sys::mkdir(path, 0o777) == 0,
        Name::Removed { path, grave } | Name::Replaced { path, grave } => unbury(grave.as_deref(), path),
        Name::Moved { from, to, grave } => sys::rename(to, from, 0) == 0 && unbury(grave.as_deref(), to),
    }
}

fn unbury(grave: Option<&[u8]>, path: &[u8]) -> bool {
    grave.is_none_or(|grave| sys::rename(grave, path, 0) == 0)
}

/// Removes a file, or a folder with all that is in it; not being there is fine.
fn remove_tree(path: &[u8]) {
    if sys::lstat(path).is_some_and(|stat| sys::is_folder(&stat)) {
        for name in names_in(path) {
            remove_tree(&[path, b"/", &name].concat());
        }
        sys::unlink(path, libc::AT_REMOVEDIR);
    } else {
        sys::unlink(path, 0);
    }
}

fn names_in(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let path = sys::c_path(path);
    // SAFETY: the path ends in a zero byte; entries are valid until the next call, and are copied before; the stream is
    // closed once.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        if stream.is_null() {
            return names;
        }
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        libc::closedir(stream);
    }
    names
}
