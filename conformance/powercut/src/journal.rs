//! What was done below the folder and is not synced, with what it takes to undo it.
//!
//! Calls are carried out under the journal's lock, so what the journal says and what is on disk agree whenever the lock
//! is free. A file that has changes which are not synced is kept open, whatever becomes of its names; what a removed or
//! replaced name stood for is kept by a second name in the folder of graves, beside the folder itself.

use std::{collections::HashMap, ffi::c_int};

use libc::{off_t, ssize_t};

use crate::{
    cut,
    fault::{Call, Judge, Mode, Verdict},
    settings::{Settings, SyncOf},
    sys,
};

/// Numbers that look random.
#[derive(Debug, Default)]
pub(crate) struct Dice(u64);

impl Dice {
    /// A number below `bound`; 0 if `bound` is 0. The generator is `SplitMix64`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).checked_rem(bound).unwrap_or(0)
    }
}

/// Device and number of a file. It is not used again while the file is open, and the journal keeps those open that it
/// speaks of.
type Inode = (u64, u64);

/// What a descriptor stands for.
#[derive(Debug, Clone)]
enum Handle {
    File { inode: Inode, append: bool },
    Folder(Vec<u8>),
}

/// A file with changes that are not synced.
#[derive(Debug)]
pub(crate) struct Unsynced {
    /// Open to read and write.
    pub(crate) fd: c_int,
    /// Its length when it was synced last.
    pub(crate) synced_len: u64,
    pub(crate) changes: Vec<Change>,
}

/// A change of a file's bytes.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) at: u64,
    /// It will never become durable, because a sync of it failed.
    pub(crate) lost: bool,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// `len` bytes at `offset`; `old` is what was there, less where the file ended.
    Write { offset: u64, len: u64, old: Vec<u8> },
    /// The length became `len`; `tail` is what was cut off.
    Resize { len: u64, tail: Vec<u8> },
}

/// A change of the names in a folder.
#[derive(Debug)]
pub(crate) struct Naming {
    pub(crate) at: u64,
    pub(crate) folder: Vec<u8>,
    pub(crate) what: Name,
}

/// Graves are `None` where nothing could be kept; then the change is not undone.
#[derive(Debug)]
pub(crate) enum Name {
    Added {
        path: Vec<u8>,
    },
    Removed {
        path: Vec<u8>,
        grave: Option<Vec<u8>>,
    },
    RemovedFolder {
        path: Vec<u8>,
    },
    Replaced {
        path: Vec<u8>,
        grave: Option<Vec<u8>>,
    },
    Moved {
        from: Vec<u8>,
        to: Vec<u8>,
        grave: Option<Vec<u8>>,
    },
}

impl Name {
    pub(crate) fn grave(&self) -> Option<&[u8]> {
        match self {
            Self::Added { .. } | Self::RemovedFolder { .. } => None,
            Self::Removed { grave, .. } | Self::Replaced { grave, .. } | Self::Moved { grave, .. } => grave.as_deref(),
        }
    }
}

/// A sync that has begun.
#[derive(Debug)]
pub(crate) enum Sync {
    /// It is over, with this result.
    Ended(c_int),
    /// What was done before this moment is durable once the disk has been synced.
    Begun(u64),
}

/// All that is known of the folder.
#[derive(Debug)]
pub(crate) struct Journal {
    settings: Settings,
    judge: Judge,
    pub(crate) dice: Dice,
    /// Calls that were counted.
    calls: u64,
    /// Grows with each change.
    clock: u64,
    handles: HashMap<c_int, Handle>,
    pub(crate) files: HashMap<Inode, Unsynced>,
    pub(crate) names: Vec<Naming>,
}

impl Journal {
    pub(crate) fn new(mut settings: Settings) -> Self {
        let judge = Judge::new(std::mem::take(&mut settings.faults));
        let journal = Self {
            judge,
            dice: Dice(settings.seed),
            calls: 0,
            clock: 0,
            handles: HashMap::new(),
            files: HashMap::new(),
            names: Vec::new(),
            settings,
        };
        sys::mkdir(&journal.graves(), 0o700);
        journal
    }

    /// Where what was removed is kept: beside the folder, so on the same file system.
    pub(crate) fn graves(&self) -> Vec<u8> {
        [self.settings.folder.as_slice(), b".graves"].concat()
    }

    /// What is to become of a call. Cuts the power if this is the moment.
    fn admit(&mut self, call: Call) -> Verdict {
        if call != Call::Open {
            self.calls += 1;
            if self.settings.cut_at == Some(self.calls) {
                cut::cut(self);
            }
        }
        let mode = self.settings.control.as_ref().map_or(Mode::Sound, |control| {
            control.set_calls(self.calls);
            control.mode()
        });
        self.judge.judge(call, mode)
    }

    /// Bytes that are said to be free, if the test says so.
    pub(crate) fn free(&self) -> Option<u64> {
        self.settings.control.as_ref()?.free()
    }

    /// [`Journal::admit`] for calls that either fail or do all.
    fn refuse(&mut self, call: Call) -> bool {
        match self.admit(call) {
            Verdict::Fail(errno) => {
                sys::set_errno(errno);
                true
            }
            Verdict::Proceed | Verdict::Short => false,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn named(&mut self, what: Name, path: &[u8]) {
        let at = self.tick();
        self.names.push(Naming {
            at,
            folder: folder_of(path).to_vec(),
            what,
        });
    }

    /// Keeps what `path` stands for.
    fn bury(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        let name = format!("/{}-{}", std::process::id(), self.tick());
        let grave = [self.graves().as_slice(), name.as_bytes()].concat();
        (sys::link(path, &grave, 0) == 0).then_some(grave)
    }

    pub(crate) fn open(&mut self, path: &[u8], flags: c_int, mode: libc::mode_t) -> c_int {
        let before = sys::lstat(path);
        let call = match &before {
            None if flags & libc::O_CREAT != 0 => Call::Create,
            _ if flags & libc::O_ACCMODE != libc::O_RDONLY => Call::OpenToWrite,
            _ => Call::Open,
        };
        if self.refuse(call) {
            return -1;
        }
        let fd = sys::openat(libc::AT_FDCWD, &sys::c_path(path), flags & !libc::O_TRUNC, mode);
        let Some(stat) = (fd >= 0).then(|| sys::fstat(fd)).flatten() else {
            return fd;
        };
        if before.is_none() {
            self.named(Name::Added { path: path.to_vec() }, path);
        }
        if sys::is_folder(&stat) {
            self.handles.insert(fd, Handle::Folder(path.to_vec()));
        } else if sys::is_file(&stat) {
            let append = flags & libc::O_APPEND != 0;
            let inode = (stat.st_dev, stat.st_ino);
            self.handles.insert(fd, Handle::File { inode, append });
            if flags & libc::O_TRUNC != 0 && stat.st_size > 0 {
                self.resized(inode, fd, 0);
                sys::ftruncate(fd, 0);
            }
        }
        fd
    }

    pub(crate) fn is_tracked(&self, fd: c_int) -> bool {
        self.handles.contains_key(&fd)
    }

    pub(crate) fn close(&mut self, fd: c_int) {
        self.handles.remove(&fd);
    }

    pub(crate) fn dup(&mut self, from: c_int, to: c_int) {
        match self.handles.get(&from).cloned() {
            Some(handle) => self.handles.insert(to, handle),
            None => self.handles.remove(&to),
        };
    }

    /// The file of a descriptor, unless it was closed past this library and is another one by now.
    fn file_of(&mut self, fd: c_int) -> Option<(Inode, bool, u64)> {
        let Some(Handle::File { inode, append }) = self.handles.get(&fd) else {
            return None;
        };
        let (inode, append) = (*inode, *append);
        match sys::fstat(fd) {
            Some(stat) if (stat.st_dev, stat.st_ino) == inode => {
                Some((inode, append, u64::try_from(stat.st_size).unwrap_or(0)))
            }
            _ => {
                self.handles.remove(&fd);
                None
            }
        }
    }

    /// What is not synced of a file, which may be nothing so far.
    fn unsynced(&mut self, inode: Inode, fd: c_int) -> &mut Unsynced {
        self.files.entry(inode).or_insert_with(|| {
            let Some(again) = sys::open_again(fd) else {
                cut::fail("a file could not be opened again")
            };
            let synced_len = sys::fstat(again).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            Unsynced {
                fd: again,
                synced_len,
                changes: Vec::new(),
            }
        })
    }

    /// Writes at `offset`, or where the descriptor stands.
    pub(crate) fn write(&mut self, fd: c_int, bytes: &[u8], offset: Option<u64>) -> ssize_t {
        let verdict = self.admit(Call::Write);
        let Some((inode, append, len)) = self.file_of(fd) else {
            return write_raw(fd, bytes, offset);
        };
        let at = if append {
            len
        } else {
            offset.unwrap_or_else(|| sys::position(fd))
        };
        let less = usize::try_from(self.dice.below(bytes.len() as u64)).unwrap_or(0);
        let part = bytes.get(..less).unwrap_or_default();
        match verdict {
            Verdict::Proceed => self.write_noted((inode, fd), bytes, offset, at, len),
            // A write of nothing would say that the file is full.
            Verdict::Short if part.is_empty() => self.write_noted((inode, fd), bytes, offset, at, len),
            Verdict::Short => self.write_noted((inode, fd), part, offset, at, len),
            Verdict::Fail(errno) => {
                if !part.is_empty() && self.dice.below(2) == 0 {
                    self.write_noted((inode, fd), part, Some(at), at, len);
                }
                sys::set_errno(errno);
                -1
            }
        }
    }

    fn write_noted(
        &mut self,
        (inode, fd): (Inode, c_int),
        bytes: &[u8],
        offset: Option<u64>,
        at: u64,
        len: u64,
    ) -> ssize_t {
        let clock = self.tick();
        let unsynced = self.unsynced(inode, fd);
        let overlap = len.saturating_sub(at).min(bytes.len() as u64);
        let mut old = sys::read_at(unsynced.fd, at, usize::try_from(overlap).unwrap_or(0));
        let wrote = write_raw(fd, bytes, offset);
        if let Ok(count) = usize::try_from(wrote) {
            old.truncate(count);
            let what = What::Write {
                offset: at,
                len: count as u64,
                old,
            };
            unsynced.changes.push(Change {
                at: clock,
                lost: false,
                what,
            });
        }
        wrote
    }

    fn resized(&mut self, inode: Inode, fd: c_int, len: u64) {
        let clock = self.tick();
        let unsynced = self.unsynced(inode, fd);
        let now = sys::fstat(unsynced.fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        let tail = sys::read_at(unsynced.fd, len, usize::try_from(now.saturating_sub(len)).unwrap_or(0));
        unsynced.changes.push(Change {
            at: clock,
            lost: false,
            what: What::Resize { len, tail },
        });
    }

    pub(crate) fn ftruncate(&mut self, fd: c_int, len: off_t) -> c_int {
        if self.refuse(Call::Resize) {
            return -1;
        }
        if let (Some((inode, ..)), Ok(len)) = (self.file_of(fd), u64::try_from(len)) {
            self.resized(inode, fd, len);
        }
        sys::ftruncate(fd, len)
    }

    pub(crate) fn fallocate(&mut self, fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
        if self.refuse(Call::Resize) {
            return -1;
        }
        match (mode, self.file_of(fd)) {
            // Space without length changes nothing that can be read.
            (libc::FALLOC_FL_KEEP_SIZE, _) | (_, None) => {}
            (0, Some((inode, _, size))) => {
                let end = u64::try_from(offset.saturating_add(len)).unwrap_or(0);
                if end > size {
                    self.resized(inode, fd, end);
                }
            }
            _ => {
                sys::set_errno(libc::EOPNOTSUPP);
                return -1;
            }
        }
        sys::fallocate(fd, mode, offset, len)
    }

    /// Begins a sync, which [`Journal::end_sync`] ends.
    pub(crate) fn begin_sync(&mut self, fd: c_int) -> Sync {
        let refused = self.refuse(Call::Sync);
        if refused {
            if self.dice.below(2) == 0
                && let Some((inode, ..)) = self.file_of(fd)
                && let Some(unsynced) = self.files.get_mut(&inode)
            {
                unsynced.changes.iter_mut().for_each(|change| change.lost = true);
            }
            return Sync::Ended(-1);
        }
        let of = match self.handles.get(&fd) {
            Some(Handle::Folder(_)) => SyncOf::Folder,
            _ => SyncOf::Data,
        };
        let mut ignored = self.settings.ignored.iter().peekable();
        if ignored.peek().is_some() {
            let path = sys::path_of(fd).unwrap_or_default();
            if ignored.any(|ignored| ignored.covers(of, &path)) {
                return Sync::Ended(0);
            }
        }
        Sync::Begun(self.clock)
    }

    pub(crate) fn syncs_the_disk(&self) -> bool {
        self.settings.real_sync
    }

    pub(crate) fn end_sync(&mut self, fd: c_int, begun: u64) {
        if let Some(Handle::Folder(folder)) = self.handles.get(&fd) {
            self.names.retain(|naming| {
                let stays = naming.at > begun || naming.folder != *folder;
                if let (false, Some(grave)) = (stays, naming.what.grave()) {
                    sys::unlink(grave, 0);
                }
                stays
            });
        } else if let Some((inode, _, len)) = self.file_of(fd)
            && let Some(unsynced) = self.files.get_mut(&inode)
        {
            let later = unsynced.changes.iter().find(|change| change.at > begun);
            unsynced.synced_len = later.map_or(len, |change| change.what.len_before(unsynced.synced_len));
            unsynced.changes.retain(|change| change.at > begun || change.lost);
            if unsynced.changes.is_empty() {
                sys::close(unsynced.fd);
                self.files.remove(&inode);
            }
        }
    }

    pub(crate) fn rename(&mut self, from: &[u8], to: &[u8], flags: libc::c_uint) -> c_int {
        if self.refuse(Call::Rename) {
            return -1;
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            sys::set_errno(libc::EINVAL);
            return -1;
        }
        let (source, target) = (sys::lstat(from), sys::lstat(to));
        let Some(source) = source.filter(|source| {
            // Two names of one file: nothing happens.
            target.is_none_or(|target| (target.st_dev, target.st_ino) != (source.st_dev, source.st_ino))
        }) else {
            return sys::rename(from, to, flags);
        };
        let grave = target.filter(sys::is_file).and_then(|_| self.bury(to));
        let crosses = folder_of(from) != folder_of(to) && sys::is_file(&source);
        let source = if crosses { self.bury(from) } else { None };
        let result = sys::rename(from, to, flags);
        if result != 0 {
            let errno = sys::errno();
            for grave in [grave, source].iter().flatten() {
                sys::unlink(grave, 0);
            }
            sys::set_errno(errno);
            return result;
        }
        let path = to.to_vec();
        if crosses {
            let what = match grave {
                None => Name::Added { path },
                grave => Name::Replaced { path, grave },
            };
            self.named(what, to);
            self.named(
                Name::Removed {
                    path: from.to_vec(),
                    grave: source,
                },
                from,
            );
        } else {
            self.named(
                Name::Moved {
                    from: from.to_vec(),
                    to: path,
                    grave,
                },
                to,
            );
        }
        0
    }

    pub(crate) fn link(&mut self, from: &[u8], to: &[u8], flags: c_int) -> c_int {
        if self.refuse(Call::Name) {
            return -1;
        }
        let result = sys::link(from, to, flags);
        if result == 0 {
            self.named(Name::Added { path: to.to_vec() }, to);
        }
        result
    }

    pub(crate) fn unlink(&mut self, path: &[u8], flags: c_int) -> c_int {
        if self.refuse(Call::Name) {
            return -1;
        }
        let is_folder = flags & libc::AT_REMOVEDIR != 0;
        let grave = if is_folder { None } else { self.bury(path) };
        let result = sys::unlink(path, flags);
        let kept = path.to_vec();
        match (result, grave) {
            (0, _) if is_folder => self.named(Name::RemovedFolder { path: kept }, path),
            (0, grave) => self.named(Name::Removed { path: kept, grave }, path),
            (_, Some(grave)) => {
                let errno = sys::errno();
                sys::unlink(&grave, 0);
                sys::set_errno(errno);
            }
            _ => {}
        }
        result
    }

    pub(crate) fn mkdir(&mut self, path: &[u8], mode: libc::mode_t) -> c_int {
        // The kernel looks for the name before it looks whether it may write, and callers rely on it.
        if sys::lstat(path).is_some() {
            sys::set_errno(libc::EEXIST);
            return -1;
        }
        if self.refuse(Call::Name) {
            return -1;
        }
        let result = sys::mkdir(path, mode);
        if result == 0 {
            self.named(Name::Added { path: path.to_vec() }, path);
        }
        result
    }
}

impl What {
    /// The length of the file just before; `known` if it cannot be told from the change alone.
    fn len_before(&self, known: u64) -> u64 {
        match self {
            Self::Write { offset, len, old } if (old.len() as u64) < *len => offset + old.len() as u64,
            Self::Write { offset, len, .. } => known.max(offset + len),
            Self::Resize { len, tail } => len + tail.len() as u64,
        }
    }
}

fn write_raw(fd: c_int, bytes: &[u8], offset: Option<u64>) -> ssize_t {
    // SAFETY: the slice is as long as said.
    unsafe {
        match offset {
            Some(offset) => sys::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), sys::signed(offset)),
            None => sys::write(fd, bytes.as_ptr().cast(), bytes.len()),
        }
    }
}

/// The folder that holds a name.
pub(crate) fn folder_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// `path` without empty and `.` components.
pub(crate) fn normal(path: &[u8]) -> Vec<u8> {
    let parts = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    parts.flat_map(|part| [b"/", part].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(normal(b"//a/./b//c/"), b"/a/b/c");
        assert_eq!(folder_of(b"/a/b/c"), b"/a/b");
        assert_eq!(folder_of(b"/a"), b"");
    }
}
