//! Raw images: the file is the disk.
//!
//! A raw image of any size is accepted as it is; formats that count in sectors round it up.

use std::sync::Arc;

use crate::map::{Mapping, Pieces};
use crate::plan::{Segment, SegmentIter, Shape, Totals};
use crate::{Error, Format, Image, ReadAt, safety};

/// A raw image.
#[derive(Debug)]
pub(crate) struct Raw<S> {
    source: S,
}

impl<S: ReadAt> Raw<S> {
    pub(crate) fn open(source: S) -> Result<Self, Error> {
        safety::virtual_size(source.size()).map_err(|error| error.with_format(Format::Raw))?;
        Ok(Self { source })
    }
}

impl<S: ReadAt> Image for Raw<S> {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn virtual_size(&self) -> u64 {
        self.source.size()
    }

    fn file_size(&self) -> u64 {
        self.source.size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        if guest >= self.source.size() {
            return Err(Error::beyond_the_disk().with_format(Format::Raw));
        }
        let left = self.source.size().saturating_sub(guest);
        Mapping::in_file(&self.source, guest, left).map_err(|error| error.with_format(Format::Raw))
    }
}

/// Plans a raw file.
pub(crate) fn plan(image: &dyn Image) -> Result<(Totals, Disk), Error> {
    let size = image.virtual_size();
    Ok((Totals::of(image, |_| ())?, Disk { size }))
}

/// A file that is the disk.
#[derive(Debug)]
pub(crate) struct Disk {
    size: u64,
}

impl Shape for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter {
        Box::new(disk(image))
    }
}

/// The whole disk as segments.
pub(crate) fn disk(image: Arc<dyn Image>) -> impl Iterator<Item = Result<Segment, Error>> + Send {
    Pieces::new(image).map(|piece| piece.map(|piece| Segment::of(&piece)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Run, RunKind};
    use std::io;

    /// A file that is a hole of the given size, or says a nonsensical run.
    #[derive(Debug)]
    struct Hole {
        size: u64,
        run: Option<u64>,
    }

    impl ReadAt for Hole {
        fn size(&self) -> u64 {
            self.size
        }

        fn read_exact_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
            buf.fill(0);
            Ok(())
        }

        fn run_at(&self, offset: u64) -> io::Result<Run> {
            Ok(Run {
                kind: RunKind::Zero,
                len: self.run.unwrap_or(self.size - offset),
            })
        }
    }

    #[test]
    fn holes_are_zero_and_the_rest_is_data() {
        let hole = Raw::open(Hole { size: 1000, run: None }).unwrap();
        assert_eq!(hole.map(10).unwrap(), Mapping::Zero { len: 990 });
        let bytes = Raw::open(vec![0; 1000]).unwrap();
        assert_eq!(bytes.map(10).unwrap(), Mapping::Data { offset: 10, len: 990 });
    }

    #[test]
    fn runs_that_a_store_may_not_give_are_cut_or_refused() {
        let long = Raw::open(Hole {
            size: 1000,
            run: Some(u64::MAX),
        })
        .unwrap();
        assert_eq!(long.map(10).unwrap(), Mapping::Zero { len: 990 });
        let empty = Raw::open(Hole {
            size: 1000,
            run: Some(0),
        })
        .unwrap();
        assert_eq!(empty.map(10).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(empty.map(1000).unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn too_large_disk_is_refused() {
        let error = Raw::open(Hole {
            size: (64 << 40) + 1,
            run: None,
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.format(), Some(Format::Raw));
    }
}
