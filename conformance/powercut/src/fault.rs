//! Calls that fail.
//!
//! `KIND@FIRST` or `KIND@FIRST:LAST` names calls by their number, from 1, among those that the kind is about:
//!
//! | kind | calls counted | what happens |
//! | --- | --- | --- |
//! | `enospc` | that make files larger, or new ones | "no space left"; a write may have an effect in part |
//! | `eio` | writes | "input/output error"; it may have an effect in part |
//! | `short` | writes | a part is written, and said to be |
//! | `sync` | syncs | "input/output error"; what it was about may never become durable, however often it is synced afterwards, as on Linux, which takes pages that it failed to write for clean |
//! | `rename` | renames | "input/output error", without effect |

use std::{
    ffi::c_int,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::sys;

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Opens a file to read it.
    Open,
    /// Opens a file to write it.
    OpenToWrite,
    /// Makes a file.
    Create,
    Write,
    /// Changes a file's length or place.
    Resize,
    Sync,
    Rename,
    /// Makes or removes a name in another way.
    Name,
}

/// What is to become of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    /// Fails with this `errno`.
    Fail(c_int),
    /// Only a part is written.
    Short,
}

/// Calls that fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: Kind,
    first: u64,
    last: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NoSpace,
    Io,
    Short,
    Sync,
    Rename,
}

impl Kind {
    fn is_about(self, call: Call) -> bool {
        match self {
            Self::NoSpace => matches!(call, Call::Write | Call::Resize | Call::Create),
            Self::Io | Self::Short => call == Call::Write,
            Self::Sync => call == Call::Sync,
            Self::Rename => call == Call::Rename,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::NoSpace => Verdict::Fail(libc::ENOSPC),
            Self::Io | Self::Sync | Self::Rename => Verdict::Fail(libc::EIO),
            Self::Short => Verdict::Short,
        }
    }
}

impl Fault {
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        let unknown = || format!("POWERCUT_FAIL: {word} is not KIND@FIRST or KIND@FIRST:LAST");
        let (kind, calls) = word.split_once('@').ok_or_else(unknown)?;
        let (first, last) = calls.split_once(':').unwrap_or((calls, calls));
        let kind = match kind {
            "enospc" => Kind::NoSpace,
            "eio" => Kind::Io,
            "short" => Kind::Short,
            "sync" => Kind::Sync,
            "rename" => Kind::Rename,
            _ => return Err(unknown()),
        };
        let number = |text: &str| text.parse().map_err(|_| unknown());
        Ok(Self {
            kind,
            first: number(first)?,
            last: number(last)?,
        })
    }
}

/// Counts calls, and finds those that are to fail.
#[derive(Debug)]
pub(crate) struct Judge {
    /// Each with how many calls there were that it is about.
    faults: Vec<(Fault, u64)>,
}

impl Judge {
    pub(crate) fn new(faults: Vec<Fault>) -> Self {
        Self {
            faults: faults.into_iter().map(|fault| (fault, 0)).collect(),
        }
    }

    pub(crate) fn judge(&mut self, call: Call, mode: Mode) -> Verdict {
        let mut verdict = mode.verdict(call);
        for (fault, count) in &mut self.faults {
            if fault.kind.is_about(call) {
                *count += 1;
                if (fault.first..=fault.last).contains(count) && verdict == Verdict::Proceed {
                    verdict = fault.kind.verdict();
                }
            }
        }
        verdict
    }
}

/// What goes wrong until it is switched off again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Sound,
    /// Whatever makes a file larger, or a new one, fails with "no space left".
    Full,
    /// Whatever writes fails with "read-only file system".
    ReadOnly,
    /// Whatever opens fails with "too many open files".
    NoFiles,
}

impl Mode {
    fn verdict(self, call: Call) -> Verdict {
        match self {
            Self::Full if Kind::NoSpace.is_about(call) => Verdict::Fail(libc::ENOSPC),
            Self::ReadOnly if !matches!(call, Call::Open | Call::Sync) => Verdict::Fail(libc::EROFS),
            Self::NoFiles if matches!(call, Call::Open | Call::OpenToWrite | Call::Create) => {
                Verdict::Fail(libc::EMFILE)
            }
            _ => Verdict::Proceed,
        }
    }
}

/// A file in memory that the test and this library share, in the byte order of the machine:
///
/// | offset | size | holds |
/// | --- | --- | --- |
/// | 0 | 4 | written by the test: 0 all is well, 1 full, 2 read-only, 3 no more open files |
/// | 4 | 4 | written by the test: how many MiB `statvfs` says are free; 0 what is really free |
/// | 8 | 8 | written by this library: calls so far, as `POWERCUT_AT` counts them |
#[derive(Debug)]
pub(crate) struct Control {
    memory: *mut u8,
}

/// Bytes of the file that are used.
const CONTROL_LEN: usize = 16;

// SAFETY: the mapping lives as long as the process, and is only touched through atomics.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

impl Control {
    pub(crate) fn map(path: &str) -> Result<Self, String> {
        let failed = || format!("POWERCUT_CONTROL={path} is not a file of at least {CONTROL_LEN} bytes");
        let fd = sys::openat(
            libc::AT_FDCWD,
            &sys::c_path(path.as_bytes()),
            libc::O_RDWR | libc::O_CLOEXEC,
            0,
        );
        let len = sys::fstat(fd).map_or(0, |stat| stat.st_size);
        if usize::try_from(len).unwrap_or(0) < CONTROL_LEN {
            return Err(failed());
        }
        // SAFETY: a new mapping, of a file that is long enough.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), CONTROL_LEN, access, libc::MAP_SHARED, fd, 0)
        };
        sys::close(fd);
        if memory == libc::MAP_FAILED {
            return Err(failed());
        }
        Ok(Self { memory: memory.cast() })
    }

    pub(crate) fn mode(&self) -> Mode {
        // SAFETY: within the mapping, aligned, and shared as an atomic.
        let word = unsafe { AtomicU32::from_ptr(self.memory.cast()) };
        match word.load(Ordering::Relaxed) {
            1 => Mode::Full,
            2 => Mode::ReadOnly,
            3 => Mode::NoFiles,
            _ => Mode::Sound,
        }
    }

    /// Bytes that are said to be free; `None` for what really is.
    pub(crate) fn free(&self) -> Option<u64> {
        // SAFETY: within the mapping, aligned, and shared as an atomic.
        let word = unsafe { AtomicU32::from_ptr(self.memory.add(4).cast()) };
        match word.load(Ordering::Relaxed) {
            0 => None,
            mebibytes => Some(u64::from(mebibytes) << 20),
        }
    }

    pub(crate) fn set_calls(&self, calls: u64) {
        // SAFETY: within the mapping, aligned, and shared as an atomic.
        let word = unsafe { AtomicU64::from_ptr(self.memory.add(8).cast()) };
        word.store(calls, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_by_their_kind() {
        let faults = ["eio@2:3", "sync@1"].map(|word| Fault::parse(word).unwrap());
        let mut judge = Judge::new(faults.into());
        let mut judge = |call| judge.judge(call, Mode::Sound);
        assert_eq!(judge(Call::Write), Verdict::Proceed);
        assert_eq!(judge(Call::Sync), Verdict::Fail(libc::EIO));
        assert_eq!(judge(Call::Sync), Verdict::Proceed);
        assert_eq!(judge(Call::Write), Verdict::Fail(libc::EIO));
        assert_eq!(judge(Call::Rename), Verdict::Proceed);
        assert_eq!(judge(Call::Write), Verdict::Fail(libc::EIO));
        assert_eq!(judge(Call::Write), Verdict::Proceed);
    }

    #[test]
    fn modes_spare_what_they_are_not_about() {
        let mut judge = Judge::new(Vec::new());
        for (mode, call, verdict) in [
            (Mode::Full, Call::Write, Verdict::Fail(libc::ENOSPC)),
            (Mode::Full, Call::Name, Verdict::Proceed),
            (Mode::Full, Call::Open, Verdict::Proceed),
            (Mode::ReadOnly, Call::Name, Verdict::Fail(libc::EROFS)),
            (Mode::ReadOnly, Call::Open, Verdict::Proceed),
            (Mode::NoFiles, Call::Open, Verdict::Fail(libc::EMFILE)),
            (Mode::NoFiles, Call::Write, Verdict::Proceed),
        ] {
            assert_eq!(judge.judge(call, mode), verdict, "{mode:?} {call:?}");
        }
    }
}
