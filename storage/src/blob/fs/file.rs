//! The file of a sealed blob: ranges of it, and errors that say which place of the blob they are about.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt};

use rustix::{
    fs::{Advice, fadvise},
    io::Errno,
};

use crate::{
    blob::{BlobId, damaged},
    error::{Damage, Error, ErrorKind, Result},
};

#[derive(Debug)]
pub(super) struct BlobFile {
    pub(super) id: BlobId,
    pub(super) file: File,
}

impl BlobFile {
    /// Fills `buffer` from `offset` of the file, where the blob's bytes from `content` on are stored.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64, content: Option<u64>) -> Result<()> {
        let id = self.id;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(id, content, "its file ends early"),
                _ => Error::io(format!("read blob {id} at byte {offset} of its file"), error),
            })
    }

    /// Asks the system to let go of what it holds of the file in memory. It may not, which is no harm.
    pub(super) fn drop_pages(&self, offset: u64, len: u64) {
        let Some(len) = NonZeroU64::new(len) else { return };
        if let Err(error) = fadvise(&self.file, offset, Some(len), Advice::DontNeed) {
            tracing::debug!(blob = %self.id, %error, "the pages of a blob stay in memory");
        }
    }
}

/// What an error of reading the blob's bytes from `content` on says about them; the error itself, if it is not about them.
pub(super) fn damage_in(id: BlobId, content: u64, error: Error) -> Result<Damage> {
    if let Some(damage) = error.damage() {
        return Ok(damage.clone());
    }
    if error.kind() == ErrorKind::Io && is_unreadable_place(&error) {
        return Ok(Damage {
            blob: id,
            offset: Some(content),
            reason: "the disk cannot read it".to_owned(),
        });
    }
    Err(error)
}

/// Whether a disk said that it cannot give a place back, as it does of a bad sector.
fn is_unreadable_place(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|source| source.raw_os_error() == Some(Errno::IO.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::LayoutId;

    #[test]
    fn bad_sector_is_damage_and_a_lost_disk_is_an_error() {
        let id = BlobId {
            owner: LayoutId([1; 16]),
            index: 2,
        };
        let failed = |errno: Errno| Error::io("read", io::Error::from_raw_os_error(errno.raw_os_error()));
        let damage = damage_in(id, 65_536, failed(Errno::IO)).unwrap();
        assert_eq!((damage.blob, damage.offset), (id, Some(65_536)));
        let error = damage_in(id, 0, failed(Errno::NODEV)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let known = damage_in(id, 0, damaged(id, Some(7), "torn")).unwrap();
        assert_eq!(known.offset, Some(7));
    }
}
