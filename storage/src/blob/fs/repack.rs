//! Stores a blob anew in another form, under the same name.
//!
//! | step | what a crash after it leaves |
//! | --- | --- |
//! | 1. read the blob, verify it, and write the other form to `tmp/` | the old form, and a file in `tmp/`, which the next start removes |
//! | 2. sync the new file | the same |
//! | 3. if the blob still has its name, rename the new file over it | either form, both whole |
//! | 4. let go of the old file in the cache of open blobs | |
//! | 5. sync the folder | the new form |
//!
//! The third step shares a lock with [`delete`](crate::blob::Blobs::delete), so that a blob is not brought back by its
//! repacking: the name is either gone when it is looked for, or it is removed after the rename. The lock is within this
//! process, which is the only one that uses the root. Who has the old file open reads on in it; its space is free when the
//! last one has closed it.

use std::sync::Arc;

use super::{Shared, draft::Draft, format::Summer, packed, packed::Packer, reader::Sealed};
use crate::{
    blob::{BlobId, Compression, Repacked, compression::worthwhile_len_max},
    error::{Error, ErrorKind, Result},
};

/// Bytes of the blob that are packed in one go on a thread: below a second's work at a common level, so that giving up
/// and shutting down need not wait long. A whole number of groups.
const STEP_LEN: u64 = 32 * packed::GROUP_LEN;

/// A blob on its way to another form. Dropping it gives up.
pub(super) struct Repack {
    shared: Arc<Shared>,
    source: Sealed,
    draft: Draft,
    form: NewForm,
    offset: u64,
}

enum NewForm {
    Plain(Box<Summer>),
    Packed(Box<Packer>),
}

impl NewForm {
    /// Stores the bytes that come next: whole groups, unless they are the last.
    fn write(&mut self, data: &[u8], draft: &mut Draft) -> Result<()> {
        match self {
            Self::Plain(summer) => {
                summer.update(data);
                draft.write(data)
            }
            Self::Packed(packer) => data.chunks(packed::GROUP).try_for_each(|group| {
                let stored = packer.pack(group).map_err(|error| not_compressed(draft.id(), error))?;
                draft.write(stored)
            }),
        }
    }

    /// The stored length so far, if it must be worth it.
    fn bounded_len(&self) -> Option<u64> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(packer) => Some(packer.stored_len()),
        }
    }

    fn finish(self, id: BlobId) -> Vec<u8> {
        match self {
            Self::Plain(summer) => summer.finish(id).1,
            Self::Packed(packer) => packer.finish(id),
        }
    }
}

fn not_compressed(id: BlobId, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("compress blob {id}")).caused_by(error)
}

/// What to do next.
pub(super) enum Next {
    /// More of the same.
    Step(Repack),
    /// The last step.
    Finish(Repack),
    /// Nothing: the blob stays as it is.
    Stay(Repacked),
}

impl Repack {
    /// Opens the blob, past the cache of open blobs, so that every byte is verified.
    pub(super) fn begin(shared: Arc<Shared>, id: BlobId, compression: Compression) -> Result<Next> {
        let source = Sealed::open(&shared, id)?;
        let form = match (compression, source.level()) {
            (Compression::None, None) => return Ok(Next::Stay(Repacked::unchanged(source.stored_len()))),
            (Compression::Zstd(level), Some(packed)) if packed >= level => {
                return Ok(Next::Stay(Repacked::unchanged(source.stored_len())));
            }
            (Compression::None, Some(_)) => NewForm::Plain(Box::new(Summer::new())),
            (Compression::Zstd(level), _) => {
                let packer = Packer::new(level).map_err(|error| not_compressed(id, error))?;
                NewForm::Packed(Box::new(packer))
            }
        };
        let draft = Draft::create(&shared.folders, &shared.open, id)?;
        let repack = Self {
            shared,
            source,
            draft,
            form,
            offset: 0,
        };
        Ok(repack.next())
    }

    fn next(self) -> Next {
        let before = self.source.stored_len();
        if self
            .form
            .bounded_len()
            .is_some_and(|len| len > worthwhile_len_max(before))
        {
            Next::Stay(Repacked::unchanged(before))
        } else if self.offset < self.source.len() {
            Next::Step(self)
        } else {
            Next::Finish(self)
        }
    }

    pub(super) fn step(mut self) -> Result<Next> {
        let end = (self.offset + STEP_LEN).min(self.source.len());
        let data = self.source.read(self.offset..end)?;
        self.form.write(&data, &mut self.draft)?;
        self.offset = end;
        Ok(self.next())
    }

    /// The steps from the end of the first on.
    pub(super) fn finish(self) -> Result<Repacked> {
        let Self {
            shared,
            source,
            mut draft,
            form,
            ..
        } = self;
        let (id, before) = (source.id(), source.stored_len());
        let groups_len = form.bounded_len();
        let trailer = form.finish(id);
        if groups_len.is_some_and(|len| len + trailer.len() as u64 > worthwhile_len_max(before)) {
            return Ok(Repacked::unchanged(before));
        }
        draft.write(&trailer)?;
        let after = draft.len()?;
        draft.sync()?;
        {
            let _names = shared.lock_name(id);
            if !shared.exists(id)? {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("blob {id} was deleted while it was repacked"),
                ));
            }
            draft.rename()?;
        }
        shared.open.remove(id);
        shared.sync_folder_of(id)?;
        Ok(Repacked { before, after })
    }
}
