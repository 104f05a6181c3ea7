//! The functions of the C library that are stood in for.
//!
//! Each passes on what is not about the folder, at the price of one look into a table, and gives the rest to the journal.
//! `open`, `openat` and `fcntl` are variadic in C; on the 64-bit processors Linux runs on, their optional argument is
//! passed as if it were not.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::MaybeUninit,
    slice,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use libc::{iovec, mode_t, off_t, size_t, ssize_t};

use crate::{
    cut,
    journal::{Journal, Sync, normal},
    settings::Settings,
    sys,
};

/// Descriptors below this are looked at; a process has 1024 unless it asks for more.
const DESCRIPTORS: usize = 1 << 16;

/// Whether a descriptor may be one of the journal's.
static TRACKED: [AtomicBool; DESCRIPTORS] = [const { AtomicBool::new(false) }; DESCRIPTORS];
static STATE: OnceLock<State> = OnceLock::new();

struct State {
    folder: Vec<u8>,
    journal: Mutex<Journal>,
}

impl State {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.folder.as_slice())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }
}

/// Runs before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let settings = match Settings::read(|name| std::env::var(name).ok()) {
        Ok(None) => return,
        Ok(Some(settings)) => settings,
        Err(why) => cut::fail(&why),
    };
    let folder = settings.folder.clone();
    let state = STATE.get_or_init(|| State {
        folder,
        journal: Mutex::new(Journal::new(settings)),
    });
    cut_at_signal(state);
}

/// Has a thread wait for the signal; all other threads inherit that they do not take it.
fn cut_at_signal(state: &'static State) {
    let mut signals = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is made before it is used.
    let signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
        signals.assume_init()
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both are valid, and this thread's own.
        if unsafe { libc::sigwait(&raw const signals, &raw mut signal) } == 0 {
            cut::cut(&mut state.journal());
        }
    });
}

fn flag(fd: c_int) -> Option<&'static AtomicBool> {
    TRACKED.get(usize::try_from(fd).ok()?)
}

fn set_tracked(fd: c_int, tracked: bool) {
    if let Some(flag) = flag(fd) {
        flag.store(tracked, Ordering::Release);
    }
}

/// The journal, if `fd` may be one of its descriptors.
fn tracked(fd: c_int) -> Option<MutexGuard<'static, Journal>> {
    if !flag(fd)?.load(Ordering::Acquire) {
        return None;
    }
    STATE.get().map(State::journal)
}

/// The absolute path that a call names.
///
/// # Safety
///
/// `path` is a C string.
unsafe fn absolute(folder: c_int, path: *const c_char) -> Vec<u8> {
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if path.starts_with(b"/") {
        return normal(path);
    }
    let base = if folder == libc::AT_FDCWD {
        let mut buffer = vec![0_u8; libc::PATH_MAX.unsigned_abs() as usize];
        // SAFETY: the buffer is as long as said; libc's function is not one of this library's.
        let found = unsafe { libc::getcwd(buffer.as_mut_ptr().cast(), buffer.len()) };
        buffer.truncate(if found.is_null() {
            0
        } else {
            buffer.iter().position(|byte| *byte == 0).unwrap_or(0)
        });
        buffer
    } else {
        sys::path_of(folder).unwrap_or_default()
    };
    normal(&[base.as_slice(), b"/", path].concat())
}

/// The state and the path, if the path is below the folder.
///
/// # Safety
///
/// `path` is a C string.
unsafe fn inside(folder: c_int, path: *const c_char) -> Option<(&'static State, Vec<u8>)> {
    let state = STATE.get()?;
    // SAFETY: the caller's promise.
    let path = unsafe { absolute(folder, path) };
    state.has(&path).then_some((state, path))
}

/// # Safety
///
/// As for the function of the C library: all of these take pointers as C gives them.
#[unsafe(no_mangle)]
unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    let fd = match unsafe { inside(folder, path) } {
        // A file without a name can get one only by a link through /proc, which nothing here makes.
        Some((state, path)) if flags & libc::O_TMPFILE != libc::O_TMPFILE => {
            let mut journal = state.journal();
            let fd = journal.open(&path, flags, mode);
            set_tracked(fd, journal.is_tracked(fd));
            return fd;
        }
        // SAFETY: the caller's promise.
        _ => sys::openat(folder, unsafe { CStr::from_ptr(path) }, flags, mode),
    };
    set_tracked(fd, false);
    fd
}

macro_rules! opens {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
        }
    )*};
}
opens!(open open64);

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { openat(folder, path, flags, mode) }
}

macro_rules! creats {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, mode: mode_t) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { openat(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
        }
    )*};
}
creats!(creat creat64);

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if let Some(mut journal) = tracked(fd) {
        // Before the descriptor can be another file's.
        journal.close(fd);
        set_tracked(fd, false);
    }
    sys::close(fd)
}

/// Notes that `to` is now what `from` is.
fn duplicated(from: c_int, to: c_int) -> c_int {
    if to >= 0
        && let Some(state) = STATE.get()
    {
        let mut journal = state.journal();
        journal.dup(from, to);
        set_tracked(to, journal.is_tracked(to));
    }
    to
}

#[unsafe(no_mangle)]
extern "C" fn dup(fd: c_int) -> c_int {
    duplicated(fd, sys::fcntl(fd, libc::F_DUPFD, 0))
}

#[unsafe(no_mangle)]
extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        return if sys::fcntl(from, libc::F_GETFD, 0) < 0 { -1 } else { to };
    }
    dup3(from, to, 0)
}

#[unsafe(no_mangle)]
extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    duplicated(from, sys::dup3(from, to, flags))
}

macro_rules! fcntls {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(fd: c_int, command: c_int, argument: usize) -> c_int {
            let result = sys::fcntl(fd, command, argument);
            if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) { duplicated(fd, result) } else { result }
        }
    )*};
}
fcntls!(fcntl fcntl64);

/// # Safety
///
/// `bytes` holds `len` bytes.
unsafe fn bytes_of<'a>(bytes: *const c_void, len: size_t) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(bytes.cast(), len) }
}

/// # Safety
///
/// `pieces` holds `count` valid pieces.
unsafe fn gather(pieces: *const iovec, count: c_int) -> Vec<u8> {
    // SAFETY: the caller's promise.
    let pieces = unsafe { slice::from_raw_parts(pieces, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: the caller's promise.
    pieces
        .iter()
        .flat_map(|piece| unsafe { bytes_of(piece.iov_base, piece.iov_len) })
        .copied()
        .collect()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    match tracked(fd) {
        // SAFETY: the caller's promise.
        Some(mut journal) => journal.write(fd, unsafe { bytes_of(bytes, len) }, None),
        // SAFETY: the caller's promise.
        None => unsafe { sys::write(fd, bytes, len) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    match tracked(fd) {
        // SAFETY: the caller's promise.
        Some(mut journal) => journal.write(fd, &unsafe { gather(pieces, count) }, None),
        // SAFETY: the caller's promise.
        None => unsafe { sys::writev(fd, pieces, count) },
    }
}

macro_rules! pwrites {
    ($($name:ident $vector:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, bytes: *const c_void, len: size_t, offset: off_t) -> ssize_t {
            match (tracked(fd), u64::try_from(offset)) {
                // SAFETY: the caller's promise.
                (Some(mut journal), Ok(offset)) => journal.write(fd, unsafe { bytes_of(bytes, len) }, Some(offset)),
                // SAFETY: the caller's promise.
                _ => unsafe { sys::pwrite(fd, bytes, len, offset) },
            }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $vector(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t {
            // SAFETY: the caller's promise; the gathered bytes live until the call is over.
            unsafe {
                let bytes = gather(pieces, count);
                $name(fd, bytes.as_ptr().cast(), bytes.len(), offset)
            }
        }
    )*};
}
pwrites!(pwrite pwritev pwrite64 pwritev64);

macro_rules! truncates {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(fd: c_int, len: off_t) -> c_int {
            match tracked(fd) {
                Some(mut journal) => journal.ftruncate(fd, len),
                None => sys::ftruncate(fd, len),
            }
        }
    )*};
}
truncates!(ftruncate ftruncate64);

macro_rules! allocates {
    ($($name:ident $posix:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
            match tracked(fd) {
                Some(mut journal) => journal.fallocate(fd, mode, offset, len),
                None => sys::fallocate(fd, mode, offset, len),
            }
        }

        /// Gives the error instead of setting it.
        #[unsafe(no_mangle)]
        extern "C" fn $posix(fd: c_int, offset: off_t, len: off_t) -> c_int {
            if $name(fd, 0, offset, len) == 0 { 0 } else { sys::errno() }
        }
    )*};
}
allocates!(fallocate posix_fallocate fallocate64 posix_fallocate64);

fn sync(fd: c_int, real: fn(c_int) -> c_int) -> c_int {
    let Some(mut journal) = tracked(fd) else {
        return real(fd);
    };
    let begun = match journal.begin_sync(fd) {
        Sync::Ended(result) => return result,
        Sync::Begun(begun) => begun,
    };
    if journal.syncs_the_disk() {
        // Others go on meanwhile.
        drop(journal);
        let result = real(fd);
        if result != 0 {
            return result;
        }
        let Some(again) = tracked(fd) else { return 0 };
        journal = again;
    }
    journal.end_sync(fd, begun);
    0
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, sys::fsync)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, sys::fdatasync)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat2(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller's promise.
    let (from_inside, to_inside) = unsafe { (inside(from_folder, from), inside(to_folder, to)) };
    match (from_inside, to_inside) {
        (Some((state, from)), Some((_, to))) => state.journal().rename(&from, &to, flags),
        // SAFETY: the caller's promise.
        _ => unsafe { sys::rename(&absolute(from_folder, from), &absolute(to_folder, to), flags) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(from_folder: c_int, from: *const c_char, to_folder: c_int, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { renameat2(from_folder, from, to_folder, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { renameat2(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn linkat(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let (from, to_inside) = unsafe { (absolute(from_folder, from), inside(to_folder, to)) };
    match to_inside {
        Some((state, to)) => state.journal().link(&from, &to, flags),
        // SAFETY: the caller's promise.
        None => sys::link(&from, &unsafe { absolute(to_folder, to) }, flags),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { linkat(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { inside(folder, path) } {
        Some((state, path)) => state.journal().unlink(&path, flags),
        // SAFETY: the caller's promise.
        None => sys::unlink(&unsafe { absolute(folder, path) }, flags),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(folder: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { inside(folder, path) } {
        Some((state, path)) => state.journal().mkdir(&path, mode),
        // SAFETY: the caller's promise.
        None => sys::mkdir(&unsafe { absolute(folder, path) }, mode),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { mkdirat(libc::AT_FDCWD, path, mode) }
}

/// Refused into the folder, so that callers fall back to `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    if tracked(to).is_some() {
        sys::set_errno(libc::EXDEV);
        return -1;
    }
    // SAFETY: the caller's promise.
    let count = unsafe { libc::syscall(libc::SYS_copy_file_range, from, from_offset, to, to_offset, len, flags) };
    ssize_t::try_from(count).unwrap_or(-1)
}

macro_rules! sendfiles {
    ($($name:ident)*) => {$(
        /// Refused into the folder, so that callers fall back to `write`.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
            if tracked(to).is_some() {
                sys::set_errno(libc::EINVAL);
                return -1;
            }
            // SAFETY: the caller's promise.
            let count = unsafe { libc::syscall(libc::SYS_sendfile, to, from, offset, len) };
            ssize_t::try_from(count).unwrap_or(-1)
        }
    )*};
}
sendfiles!(sendfile sendfile64);

/// Fills `out` for a path below the folder with what the kernel says, or the test instead.
///
/// # Safety
///
/// `path` is a C string, and `out` can be written.
unsafe fn space(path: *const c_char, out: *mut libc::statvfs) -> c_int {
    // SAFETY: the caller's promise.
    let fd = sys::openat(
        libc::AT_FDCWD,
        unsafe { CStr::from_ptr(path) },
        libc::O_PATH | libc::O_CLOEXEC,
        0,
    );
    if fd < 0 {
        return -1;
    }
    // SAFETY: the caller's promise; `fstatvfs` of the C library is not one of this library's.
    let answer = unsafe { libc::fstatvfs(fd, out) };
    sys::close(fd);
    if answer != 0 {
        return answer;
    }
    // SAFETY: the caller's promise.
    let told = unsafe { inside(libc::AT_FDCWD, path) }.and_then(|(state, _)| state.journal().free());
    if let Some(free) = told {
        // SAFETY: the caller's promise.
        let out = unsafe { &mut *out };
        out.f_bfree = (free / out.f_frsize.max(1)).min(out.f_blocks);
        out.f_bavail = out.f_bfree;
    }
    0
}

macro_rules! statvfses {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, out: *mut libc::statvfs) -> c_int {
            // SAFETY: the caller's promise; the two structures of the C library are the same on 64-bit processors.
            unsafe { space(path, out) }
        }
    )*};
}
statvfses!(statvfs statvfs64);
