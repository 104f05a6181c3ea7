//! A disk that is made larger, with zeros behind its end.

use std::sync::Arc;

use crate::safety::virtual_size;
use crate::{Error, Format, Image, Mapping};

/// An image whose disk goes on with zeros.
struct Padded {
    image: Arc<dyn Image>,
    size: u64,
}

/// `image` with its size rounded up to a multiple of `alignment` bytes, which is not 0.
///
/// # Errors
///
/// [`TooLarge`](crate::ErrorKind::TooLarge) if no disk may be that large.
pub(crate) fn padded(image: Arc<dyn Image>, alignment: u64) -> Result<Arc<dyn Image>, Error> {
    let size = image.virtual_size();
    if size.is_multiple_of(alignment) && (size > 0 || alignment == 1) {
        return Ok(image);
    }
    let size = virtual_size(size.max(1).checked_next_multiple_of(alignment).unwrap_or(u64::MAX))?;
    Ok(Arc::new(Padded { image, size }))
}

impl Image for Padded {
    fn format(&self) -> Format {
        self.image.format()
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn content_size(&self) -> u64 {
        self.image.content_size()
    }

    fn file_size(&self) -> u64 {
        self.image.file_size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        if guest < self.image.virtual_size() {
            return self.image.map(guest);
        }
        match self.size.checked_sub(guest) {
            None | Some(0) => Err(Error::beyond_the_disk()),
            Some(len) => Ok(Mapping::Zero { len }),
        }
    }

    fn variant(&self) -> Option<&'static str> {
        self.image.variant()
    }

    fn warnings(&self) -> Vec<String> {
        self.image.warnings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Origin, Pieces};
    use crate::{ReadAt, open};

    fn image(bytes: Vec<u8>) -> Arc<dyn Image> {
        let source: Arc<dyn ReadAt> = Arc::new(bytes);
        open(source).unwrap().into()
    }

    #[test]
    fn what_is_added_is_zeros() {
        let padded = padded(image(vec![1; 1000]), 4096).unwrap();
        assert_eq!((padded.virtual_size(), padded.file_size()), (4096, 1000));
        let pieces: Vec<_> = Pieces::new(&*padded).map(|piece| piece.unwrap()).collect();
        let origins: Vec<_> = pieces.iter().map(|piece| (piece.len, piece.origin)).collect();
        assert_eq!(origins, [(1000, Origin::Data { offset: 0 }), (3096, Origin::Zero)]);
        assert!(padded.map(4096).is_err());
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        for (len, size) in [(4096, 4096), (0, 4096), (4097, 8192)] {
            assert_eq!(padded(image(vec![1; len]), 4096).unwrap().virtual_size(), size);
        }
    }

    /// A cluster that goes on behind the end of the disk, with bytes that no guest has written.
    struct Overlong;

    impl Image for Overlong {
        fn format(&self) -> Format {
            Format::Qcow2
        }

        fn virtual_size(&self) -> u64 {
            1000
        }

        fn file_size(&self) -> u64 {
            1 << 20
        }

        fn map(&self, _: u64) -> Result<Mapping, Error> {
            Ok(Mapping::Compressed {
                offset: 512,
                len: 512,
                codec: crate::Codec::Deflate,
                guest_start: 0,
                guest_len: 65536,
            })
        }
    }

    #[test]
    fn no_cluster_reaches_into_what_is_added() {
        let padded = padded(Arc::new(Overlong), 4096).unwrap();
        let lens: Vec<_> = Pieces::new(&*padded).map(|piece| piece.unwrap().len).collect();
        assert_eq!(lens, [1000, 3096]);
    }
}
