//! System calls, past the C library, whose functions of these names are the ones this crate stands in for.
//!
//! The standard library's files would come back to this crate too, so nothing here uses them. Results are those of the
//! C library: -1 and `errno`. The calls that older processors have beside their `...at` form are not used.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libc::{AT_FDCWD, off_t, size_t, ssize_t};

/// A path as the kernel takes it.
pub(crate) fn c_path(path: &[u8]) -> CString {
    // A path that came from a C string has no zero byte, and those made here are made of such.
    CString::new(path).unwrap_or_default()
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Narrows what the kernel answers for calls whose results are small numbers.
fn small(result: libc::c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

fn sized(result: libc::c_long) -> ssize_t {
    ssize_t::try_from(result).unwrap_or(-1)
}

pub(crate) fn openat(folder: c_int, path: &CStr, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the path ends in a zero byte.
    small(unsafe { libc::syscall(libc::SYS_openat, folder, path.as_ptr(), flags, mode) })
}

pub(crate) fn close(fd: c_int) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_close, fd) })
}

/// # Safety
///
/// `bytes` holds `len` bytes.
pub(crate) unsafe fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's promise.
    sized(unsafe { libc::syscall(libc::SYS_write, fd, bytes, len) })
}

/// # Safety
///
/// `bytes` holds `len` bytes.
pub(crate) unsafe fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: the caller's promise.
    sized(unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, len, offset) })
}

/// # Safety
///
/// `pieces` holds `count` valid pieces.
pub(crate) unsafe fn writev(fd: c_int, pieces: *const libc::iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    sized(unsafe { libc::syscall(libc::SYS_writev, fd, pieces, count) })
}

/// Writes all of `bytes` at `offset`, whether or not the kernel takes them at once.
pub(crate) fn write_all_at(fd: c_int, bytes: &[u8], offset: u64) -> bool {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = signed(offset.saturating_add(done as u64));
        // SAFETY: the slice is as long as said.
        let wrote = unsafe { pwrite(fd, rest.as_ptr().cast(), rest.len(), at) };
        match usize::try_from(wrote) {
            Ok(count) if count > 0 => done += count,
            _ => return false,
        }
    }
    true
}

/// Up to `len` bytes at `offset`: fewer at the end of the file.
pub(crate) fn read_at(fd: c_int, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = signed(offset.saturating_add(done as u64));
        // SAFETY: the slice is as long as said.
        let read = unsafe { libc::syscall(libc::SYS_pread64, fd, rest.as_mut_ptr(), rest.len(), at) };
        match usize::try_from(read) {
            Ok(count) if count > 0 => done += count,
            _ => break,
        }
    }
    bytes.truncate(done);
    bytes
}

/// What `fstat` tells of an open file.
pub(crate) fn fstat(fd: c_int) -> Option<libc::stat> {
    // SAFETY: all zeros is a valid `stat`, which libc's function, that this crate leaves alone, fills.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable.
    (unsafe { libc::fstat(fd, &raw mut stat) } == 0).then_some(stat)
}

/// What `lstat` tells of a name.
pub(crate) fn lstat(path: &[u8]) -> Option<libc::stat> {
    // SAFETY: as for `fstat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let path = c_path(path);
    // SAFETY: the path ends in a zero byte, and `stat` is writable.
    (unsafe { libc::lstat(path.as_ptr(), &raw mut stat) } == 0).then_some(stat)
}

pub(crate) fn is_folder(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

pub(crate) fn is_file(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

pub(crate) fn position(fd: c_int) -> u64 {
    // SAFETY: no memory is involved.
    let at = unsafe { libc::syscall(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) };
    u64::try_from(at).unwrap_or(0)
}

pub(crate) fn ftruncate(fd: c_int, len: off_t) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) })
}

pub(crate) fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, len) })
}

pub(crate) fn fsync(fd: c_int) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_fsync, fd) })
}

pub(crate) fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_fdatasync, fd) })
}

pub(crate) fn rename(from: &[u8], to: &[u8], flags: c_uint) -> c_int {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: the paths end in zero bytes.
    small(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            AT_FDCWD,
            from.as_ptr(),
            AT_FDCWD,
            to.as_ptr(),
            flags,
        )
    })
}

pub(crate) fn link(from: &[u8], to: &[u8], flags: c_int) -> c_int {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: the paths end in zero bytes.
    small(unsafe { libc::syscall(libc::SYS_linkat, AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), flags) })
}

/// Removes a name; `flags` may be `AT_REMOVEDIR`.
pub(crate) fn unlink(path: &[u8], flags: c_int) -> c_int {
    let path = c_path(path);
    // SAFETY: the path ends in a zero byte.
    small(unsafe { libc::syscall(libc::SYS_unlinkat, AT_FDCWD, path.as_ptr(), flags) })
}

pub(crate) fn mkdir(path: &[u8], mode: c_uint) -> c_int {
    let path = c_path(path);
    // SAFETY: the path ends in a zero byte.
    small(unsafe { libc::syscall(libc::SYS_mkdirat, AT_FDCWD, path.as_ptr(), mode) })
}

pub(crate) fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: no memory is involved.
    small(unsafe { libc::syscall(libc::SYS_dup3, from, to, flags) })
}

pub(crate) fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the argument is what the caller of `fcntl` gave, or a number.
    small(unsafe { libc::syscall(libc::SYS_fcntl, fd, command, argument) })
}

/// The path of an open file, as the kernel knows it.
pub(crate) fn path_of(fd: c_int) -> Option<Vec<u8>> {
    let link = c_path(format!("/proc/self/fd/{fd}").as_bytes());
    let mut path = vec![0_u8; libc::PATH_MAX.unsigned_abs() as usize];
    // SAFETY: the link ends in a zero byte, and `path` is as long as said.
    let len = unsafe {
        libc::syscall(
            libc::SYS_readlinkat,
            AT_FDCWD,
            link.as_ptr(),
            path.as_mut_ptr().cast::<c_char>(),
            path.len(),
        )
    };
    path.truncate(usize::try_from(len).ok()?);
    Some(path)
}

/// Opens an open file again, to read and write, whatever its name is now.
pub(crate) fn open_again(fd: c_int) -> Option<c_int> {
    let link = c_path(format!("/proc/self/fd/{fd}").as_bytes());
    let again = openat(AT_FDCWD, &link, libc::O_RDWR | libc::O_CLOEXEC, 0);
    (again >= 0).then_some(again)
}

/// Ends the process with no more ado.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: does not return, and runs nothing of this process any more.
    unsafe { libc::_exit(status) }
}

/// A length or offset as the kernel takes it.
pub(crate) fn signed(value: u64) -> off_t {
    off_t::try_from(value).unwrap_or(off_t::MAX)
}
