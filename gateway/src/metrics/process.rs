//! What the operating system says of this process (proc(5)).

use std::{fs, io};

/// Resident memory in bytes.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1 << 10)
}

/// Open file descriptors, the one that lists them left out.
pub(super) fn open_descriptors() -> io::Result<u64> {
    let count = fs::read_dir("/proc/self/fd")?.count();
    Ok(u64::try_from(count.saturating_sub(1)).unwrap_or(u64::MAX))
}

/// The limit of open file descriptors.
pub(super) fn max_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_seen() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        let files: Vec<_> = (0..9).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let open = open_descriptors().unwrap();
        assert!(open >= files.len() as u64 && open < max_descriptors());
    }
}
