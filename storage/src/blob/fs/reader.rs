//! A sealed blob that is open.

mod packed;
mod plain;

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::task::spawn_blocking;

use self::{packed::PackedForm, plain::PlainForm};
use super::{
    Shared,
    file::{BlobFile, damage_in},
    format::{FOOTER_LEN, Footer, Format, block_sums},
    packed::Groups,
    partial::PartialGroups,
    verified::Periods,
};
use crate::{
    blob::{Blob, BlobId, check_range, unreadable},
    error::{Damage, Error, Result},
};

/// What all open blobs of a store share.
#[derive(Debug)]
pub(super) struct Reading {
    periods: Periods,
    partial: PartialGroups,
}

impl Reading {
    pub(super) fn new(verified_for: Duration) -> Self {
        Self {
            periods: Periods::new(verified_for),
            partial: PartialGroups::new(),
        }
    }
}

/// The file of a blob, and what its trailer says; both stay as they are if the blob is deleted or repacked.
#[derive(Debug)]
pub(super) struct Sealed {
    file: BlobFile,
    len: u64,
    stored_len: u64,
    form: Form,
    reading: Arc<Reading>,
    /// Whether anybody but the scrub has read from it.
    was_read: AtomicBool,
}

#[derive(Debug)]
enum Form {
    Plain(PlainForm),
    Packed(PackedForm),
}

impl Sealed {
    /// Opens the file and verifies its trailer.
    pub(super) fn open(shared: &Shared, id: BlobId) -> Result<Self> {
        let path = shared.folders.path(id);
        let file = shared
            .open
            .with_room(|| File::open(&path))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => unreadable(id, "it is missing").caused_by(error),
                _ => Error::io(format!("open blob {id}"), error),
            })?;
        let stored_len = file
            .metadata()
            .map_err(|error| Error::io(format!("open blob {id}"), error))?
            .len();
        let file = BlobFile { id, file };
        let damaged = |reason| unreadable(id, reason);
        let footer_offset = stored_len.checked_sub(FOOTER_LEN as u64);
        let footer_offset = footer_offset.ok_or_else(|| damaged("its file is too short"))?;
        let mut footer = [0; FOOTER_LEN];
        file.read(&mut footer, footer_offset, None)?;
        let footer = Footer::parse(footer, stored_len).map_err(damaged)?;
        let mut table = vec![0; footer.table_len];
        file.read(&mut table, footer.table_offset, None)?;
        footer.verify(id, &table).map_err(damaged)?;
        let form = match footer.format {
            Format::Plain => Form::Plain(PlainForm::new(footer.len, block_sums(&table))),
            Format::Packed => {
                let groups = Groups::parse(footer.len, footer.table_offset, &table).map_err(damaged)?;
                Form::Packed(PackedForm::new(footer.len, groups, shared.reading.partial.opening()))
            }
        };
        Ok(Self {
            file,
            len: footer.len,
            stored_len,
            form,
            reading: Arc::clone(&shared.reading),
            was_read: AtomicBool::new(false),
        })
    }

    pub(super) fn id(&self) -> BlobId {
        self.file.id
    }

    /// The length of the blob.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The length of the file.
    pub(super) fn stored_len(&self) -> u64 {
        self.stored_len
    }

    /// The level of zstd, if the blob is packed.
    pub(super) fn level(&self) -> Option<i32> {
        match &self.form {
            Form::Plain(_) => None,
            Form::Packed(form) => Some(form.level()),
        }
    }

    /// The bytes of a range that is within the blob.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.was_read.store(true, Ordering::Relaxed);
        match &self.form {
            Form::Plain(form) => form.read(&self.file, self.reading.periods.now(), range),
            Form::Packed(form) => form.read(&self.file, &self.reading.partial, range),
        }
    }

    /// Where a range that is best read by two threads is cut.
    fn middle(&self, range: &Range<u64>) -> Option<u64> {
        match &self.form {
            Form::Plain(_) => None,
            Form::Packed(_) => packed::middle(range),
        }
    }

    /// Writes a range that is within the blob to `out`, which is as long.
    fn fill(&self, range: Range<u64>, mut out: BytesMut) -> Result<BytesMut> {
        self.was_read.store(true, Ordering::Relaxed);
        match &self.form {
            Form::Plain(form) => out.copy_from_slice(&form.read(&self.file, self.reading.periods.now(), range)?),
            Form::Packed(form) => form.fill(&self.file, &self.reading.partial, range, &mut out)?,
        }
        Ok(out)
    }

    /// The damage in the units that a range touches, which is within the blob.
    ///
    /// While nobody reads from this open blob, its pages in memory are let go before and after: before, so that it is
    /// the disk that is verified; after, so that a scrub of everything does not drive out what is in use.
    fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let unit_len = match &self.form {
            Form::Plain(_) => Format::Plain.unit_len(),
            Form::Packed(_) => Format::Packed.unit_len(),
        };
        let units = range.start / unit_len..range.end.div_ceil(unit_len);
        let (offset, stored_len) = match &self.form {
            Form::Plain(form) => form.stored(units.clone()),
            Form::Packed(form) => form.stored(units.clone()),
        };
        self.drop_idle_pages(offset, stored_len);
        let period = self.reading.periods.now();
        let mut damage = Vec::new();
        let mut buffer = Vec::new();
        for unit in units {
            let checked = match &self.form {
                Form::Plain(form) => form.check(&self.file, period, unit, &mut buffer),
                Form::Packed(form) => form.check(&self.file, unit),
            };
            if let Err(error) = checked {
                damage.push(damage_in(self.id(), unit * unit_len, error)?);
            }
        }
        self.drop_idle_pages(offset, stored_len);
        Ok(damage)
    }

    fn drop_idle_pages(&self, offset: u64, len: u64) {
        if !self.was_read.load(Ordering::Relaxed) {
            self.file.drop_pages(offset, len);
        }
    }
}

/// A length that a range of a blob bounds, and so [`BLOB_LEN_MAX`](crate::blob::BLOB_LEN_MAX).
fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("a blob's length fits in memory")
}

/// What callers hold.
#[derive(Debug)]
pub(super) struct FsBlob(pub(super) Arc<Sealed>);

#[async_trait]
impl Blob for FsBlob {
    fn len(&self) -> u64 {
        self.0.len
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        check_range(self.0.id(), self.0.len, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let sealed = Arc::clone(&self.0);
        let Some(middle) = sealed.middle(&range) else {
            return spawn_blocking(move || sealed.read(range)).await?;
        };
        let mut head = BytesMut::zeroed(in_memory(range.end - range.start));
        let tail = head.split_off(in_memory(middle - range.start));
        let other = Arc::clone(&sealed);
        let (head, tail) = tokio::try_join!(
            spawn_blocking(move || sealed.fill(range.start..middle, head)),
            spawn_blocking(move || other.fill(middle..range.end, tail))
        )?;
        let mut whole = head?;
        // They lie side by side: nothing is copied.
        whole.unsplit(tail?);
        Ok(whole.freeze())
    }

    async fn verify(&self, range: Range<u64>) -> Result<Vec<Damage>> {
        check_range(self.0.id(), self.0.len, &range)?;
        let sealed = Arc::clone(&self.0);
        spawn_blocking(move || sealed.verify(range)).await?
    }
}
