//! What a guest reads, and from where in the image file.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use crate::probe::probe_strictly;
use crate::{Codec, Error, Format, ReadAt, RunKind, envelope, qcow2, raw, safety, vdi, vhd, vhdx, vmdk};

/// An open image: a map from the guest's disk to the bytes of the image file.
///
/// It holds no content and, whatever the size of the image, only a bounded part of its tables.
pub trait Image: Send + Sync {
    /// The format that was read.
    fn format(&self) -> Format;

    /// The size of the guest's disk in bytes, at most [`MAX_VIRTUAL_SIZE`](crate::MAX_VIRTUAL_SIZE).
    fn virtual_size(&self) -> u64;

    /// How much of the disk the image knows of, in bytes; what is behind that was added, and is zeros.
    fn content_size(&self) -> u64 {
        self.virtual_size()
    }

    /// The size of the image file in bytes.
    fn file_size(&self) -> u64;

    /// Finds what the guest reads at `guest`, a byte offset below [`virtual_size`](Self::virtual_size).
    ///
    /// Neighbours of one kind are joined where that is cheap; the run never reaches beyond the virtual size, except for
    /// [`Mapping::Compressed`], which names a whole cluster.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if a table entry is invalid or points outside of the image file, with the
    /// place of the entry.
    fn map(&self, guest: u64) -> Result<Mapping, Error>;

    /// Which flavour of the format it is, in the words of the format, where there are several.
    fn variant(&self) -> Option<&'static str> {
        None
    }

    /// The size of the clusters, grains or blocks that the disk is cut into, in bytes, where it is.
    fn block_size(&self) -> Option<u64> {
        None
    }

    /// What a conversion leaves behind, or what an operator should look at; a clause each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What the guest reads at some offset. Lengths are in bytes and never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Zeros, whether allocated or not.
    Zero {
        /// How many, from the offset that was asked for.
        len: u64,
    },
    /// Bytes of the image file as they are.
    Data {
        /// Where in the image file the byte that was asked for is.
        offset: u64,
        /// How many follow it.
        len: u64,
    },
    /// A compressed cluster.
    Compressed {
        /// Where in the image file the compressed bytes start.
        offset: u64,
        /// How many there are at most: formats count in sectors, and the stream may end earlier.
        len: u64,
        /// How they are compressed.
        codec: Codec,
        /// The guest offset of the first decoded byte, at or before the one that was asked for.
        guest_start: u64,
        /// How many bytes the cluster decodes to; in the last cluster that can be more than is left of the disk.
        guest_len: u64,
    },
}

impl Mapping {
    /// What a guest reads of `len` bytes that are at `offset` of the image file, as far as that is of one kind.
    ///
    /// What lies in a hole of the file, or beyond its end, is zeros.
    pub(crate) fn in_file(source: &dyn ReadAt, offset: u64, len: u64) -> Result<Self, Error> {
        let there = source.size().saturating_sub(offset).min(len);
        if there == 0 {
            return Ok(Self::Zero { len });
        }
        let run = safety::run_at(source, offset)?;
        let len = run.len.min(there);
        Ok(match run.kind {
            RunKind::Zero => Self::Zero { len },
            RunKind::Data => Self::Data { offset, len },
        })
    }

    /// How long it is; of a compressed cluster, all of it.
    pub(crate) fn len(self) -> u64 {
        match self {
            Self::Zero { len } | Self::Data { len, .. } => len,
            Self::Compressed { guest_len, .. } => guest_len,
        }
    }

    /// At most the first `most` bytes of it. A compressed cluster stays whole.
    pub(crate) fn cut(self, most: u64) -> Self {
        match self {
            Self::Zero { len } => Self::Zero { len: len.min(most) },
            Self::Data { offset, len } => Self::Data {
                offset,
                len: len.min(most),
            },
            Self::Compressed { .. } => self,
        }
    }
}

/// Opens an image for mapping, having found out its format by its content.
///
/// An OVA whose disk is in several files is opened as it is, as an image of the format VMDK whose offsets are those of the
/// archive; its digests are for [`Manifest::check`](crate::Manifest::check). Any other envelope is refused: its content has to be
/// [taken out](crate::unwrap()).
///
/// # Errors
///
/// - [`Unsupported`](crate::ErrorKind::Unsupported) names the format or feature that cannot be read.
/// - [`ReferenceDenied`](crate::ErrorKind::ReferenceDenied) if the image needs another file.
/// - [`Corrupt`](crate::ErrorKind::Corrupt) and [`TooLarge`](crate::ErrorKind::TooLarge) name the field that is wrong.
/// - [`Io`](crate::ErrorKind::Io) if the source cannot be read.
pub fn open(source: Arc<dyn ReadAt>) -> Result<Box<dyn Image>, Error> {
    open_any(source)
}

/// [`open`] for a source that is only borrowed, too.
pub(crate) fn open_any<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    match probe_strictly(&source)?.format {
        Format::Raw => Ok(Box::new(raw::Raw::open(source)?)),
        Format::Qcow2 => Ok(Box::new(qcow2::Reader::open(source)?)),
        Format::Vmdk => vmdk::open(source),
        Format::Vhd => vhd::open(source),
        Format::Vhdx => vhdx::open(source),
        Format::Vdi => vdi::open(source),
        format @ Format::Luks => {
            Err(Error::unsupported("the image is an encrypted volume, of no use without its key").with_format(format))
        }
        format @ Format::Aki => Err(Error::unsupported("the file is a kernel, not a disk").with_format(format)),
        format @ Format::Ari => Err(Error::unsupported("the file is a ramdisk, not a disk").with_format(format)),
        format @ (Format::Qcow | Format::Qed | Format::Ploop) => {
            Err(Error::unsupported("images of this format are recognised but cannot be read").with_format(format))
        }
        Format::Tar => match envelope::split_disk(&source)? {
            Some(disk) => vmdk::open_extents(source, &disk),
            None => Err(still_wrapped(Format::Tar)),
        },
        format @ (Format::Gzip | Format::Xz | Format::Zstd | Format::Bzip2 | Format::Zip) => Err(still_wrapped(format)),
        format @ (Format::Lz4
        | Format::SevenZip
        | Format::Rar
        | Format::Lzip
        | Format::Lzop
        | Format::Compress
        | Format::Lzma) => {
            let reason =
                "the file is compressed in a way that is recognised but cannot be undone here: decompress it first";
            Err(Error::unsupported(reason).with_format(format))
        }
    }
}

fn still_wrapped(format: Format) -> Error {
    Error::unsupported("an envelope, whose content has to be taken out first").with_format(format)
}

impl<T: Image + ?Sized> Image for &T {
    fn format(&self) -> Format {
        (**self).format()
    }

    fn virtual_size(&self) -> u64 {
        (**self).virtual_size()
    }

    fn file_size(&self) -> u64 {
        (**self).file_size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        (**self).map(guest)
    }

    fn content_size(&self) -> u64 {
        (**self).content_size()
    }

    fn variant(&self) -> Option<&'static str> {
        (**self).variant()
    }

    fn block_size(&self) -> Option<u64> {
        (**self).block_size()
    }

    fn warnings(&self) -> Vec<String> {
        (**self).warnings()
    }
}

impl<T: Image + ?Sized> Image for Arc<T> {
    fn format(&self) -> Format {
        (**self).format()
    }

    fn virtual_size(&self) -> u64 {
        (**self).virtual_size()
    }

    fn file_size(&self) -> u64 {
        (**self).file_size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        (**self).map(guest)
    }

    fn content_size(&self) -> u64 {
        (**self).content_size()
    }

    fn variant(&self) -> Option<&'static str> {
        (**self).variant()
    }

    fn block_size(&self) -> Option<u64> {
        (**self).block_size()
    }

    fn warnings(&self) -> Vec<String> {
        (**self).warnings()
    }
}

impl<T: Image + ?Sized> Image for Box<T> {
    fn format(&self) -> Format {
        (**self).format()
    }

    fn virtual_size(&self) -> u64 {
        (**self).virtual_size()
    }

    fn file_size(&self) -> u64 {
        (**self).file_size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        (**self).map(guest)
    }

    fn content_size(&self) -> u64 {
        (**self).content_size()
    }

    fn variant(&self) -> Option<&'static str> {
        (**self).variant()
    }

    fn block_size(&self) -> Option<u64> {
        (**self).block_size()
    }

    fn warnings(&self) -> Vec<String> {
        (**self).warnings()
    }
}

impl fmt::Debug for dyn Image + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("format", &self.format())
            .field("virtual_size", &self.virtual_size())
            .field("file_size", &self.file_size())
            .finish_non_exhaustive()
    }
}

/// A stretch of the guest's disk that comes from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) guest: u64,
    pub(crate) len: u64,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Zero,
    Data {
        offset: u64,
    },
    /// The piece is `skip..skip + len` of the `decoded_len` bytes that come out.
    Compressed {
        offset: u64,
        compressed_len: u64,
        codec: Codec,
        decoded_len: u64,
        skip: u64,
    },
}

impl Piece {
    pub(crate) fn end(&self) -> u64 {
        self.guest.saturating_add(self.len)
    }

    /// The part before guest offset `guest`, which is inside, and the part from there if there is one.
    pub(crate) fn split_at(self, guest: u64) -> (Self, Option<Self>) {
        let len = guest.saturating_sub(self.guest);
        if len >= self.len {
            return (self, None);
        }
        let origin = match self.origin {
            Origin::Zero => Origin::Zero,
            Origin::Data { offset } => Origin::Data {
                offset: offset.saturating_add(len),
            },
            Origin::Compressed {
                offset,
                compressed_len,
                codec,
                decoded_len,
                skip,
            } => Origin::Compressed {
                offset,
                compressed_len,
                codec,
                decoded_len,
                skip: skip.saturating_add(len),
            },
        };
        let rest = Self {
            guest,
            len: self.len.saturating_sub(len),
            origin,
        };
        (Self { len, ..self }, Some(rest))
    }

    /// Grows by `next`, which follows it on the guest's disk, if both come from the same run.
    fn join(&mut self, next: &Self) -> bool {
        let joins = match (self.origin, next.origin) {
            (Origin::Zero, Origin::Zero) => true,
            (Origin::Data { offset }, Origin::Data { offset: next }) => offset.saturating_add(self.len) == next,
            _ => false,
        };
        if joins {
            self.len = self.len.saturating_add(next.len);
        }
        joins
    }
}

/// The whole disk of an image as pieces: in guest order, without gap or overlap, neighbours joined, none empty.
#[derive(Debug)]
pub(crate) struct Pieces<I> {
    image: I,
    /// The first guest offset that has not been mapped.
    guest: u64,
    /// A piece that has been mapped but not given out.
    ahead: Option<Piece>,
    /// An error that has been met, but not given out because a piece comes first.
    error: Option<Error>,
}

impl<I: Image> Pieces<I> {
    pub(crate) fn new(image: I) -> Self {
        Self {
            image,
            guest: 0,
            ahead: None,
            error: None,
        }
    }

    fn fetch(&mut self) -> Result<Option<Piece>, Error> {
        let guest = self.guest;
        let (content, size) = (self.image.content_size(), self.image.virtual_size());
        let left = if guest < content { content } else { size }.saturating_sub(guest);
        if left == 0 {
            return Ok(None);
        }
        let (len, origin) = match self.image.map(guest)? {
            Mapping::Zero { len } => (len, Origin::Zero),
            Mapping::Data { offset, len } => (len, Origin::Data { offset }),
            Mapping::Compressed {
                offset,
                len,
                codec,
                guest_start,
                guest_len,
            } => {
                let skip = guest.saturating_sub(guest_start);
                let origin = Origin::Compressed {
                    offset,
                    compressed_len: len,
                    codec,
                    decoded_len: guest_len,
                    skip,
                };
                (guest_len.saturating_sub(skip), origin)
            }
        };
        let len = len.min(left);
        assert!(len > 0, "a mapping is never empty");
        self.guest = guest.saturating_add(len);
        Ok(Some(Piece { guest, len, origin }))
    }

    /// Maps the next piece; an error is kept and ends the iteration.
    fn fetch_or_keep(&mut self) -> Option<Piece> {
        self.fetch().unwrap_or_else(|error| {
            self.error = Some(error);
            self.guest = u64::MAX;
            None
        })
    }
}

impl<I: Image> Iterator for Pieces<I> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(mut piece) = self.ahead.take().or_else(|| self.fetch_or_keep()) else {
            return self.error.take().map(Err);
        };
        while let Some(next) = self.fetch_or_keep() {
            if !piece.join(&next) {
                self.ahead = Some(next);
                break;
            }
        }
        Some(Ok(piece))
    }
}

impl<I: Image> FusedIterator for Pieces<I> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of 512-byte mappings, one letter each: zero, data, next data, compressed, error.
    struct Letters(&'static str);

    impl Image for Letters {
        fn format(&self) -> Format {
            Format::Raw
        }

        fn virtual_size(&self) -> u64 {
            self.0.len() as u64 * 512 - 100
        }

        fn file_size(&self) -> u64 {
            1 << 20
        }

        fn map(&self, guest: u64) -> Result<Mapping, Error> {
            let len = 512 - guest % 512;
            match self.0.as_bytes()[usize::try_from(guest / 512).unwrap()] {
                b'z' => Ok(Mapping::Zero { len }),
                b'd' => Ok(Mapping::Data { offset: guest, len }),
                b'D' => Ok(Mapping::Data {
                    offset: guest + 4096,
                    len,
                }),
                b'c' => Ok(Mapping::Compressed {
                    offset: 7,
                    len: 9,
                    codec: Codec::Deflate,
                    guest_start: guest - guest % 512,
                    guest_len: 512,
                }),
                _ => Err(Error::corrupt("e")),
            }
        }
    }

    fn summary(letters: &'static str) -> Vec<String> {
        let pieces = Pieces::new(Letters(letters)).map(|piece| match piece {
            Ok(Piece {
                guest,
                len,
                origin: Origin::Zero,
            }) => format!("{guest}+{len} zero"),
            Ok(Piece {
                guest,
                len,
                origin: Origin::Data { offset },
            }) => format!("{guest}+{len} data {offset}"),
            Ok(Piece {
                guest,
                len,
                origin: Origin::Compressed { .. },
            }) => format!("{guest}+{len} compressed"),
            Err(error) => error.reason().to_owned(),
        });
        pieces.collect()
    }

    #[test]
    fn neighbours_from_one_run_are_joined_and_the_end_is_cut() {
        assert_eq!(summary("zz"), ["0+924 zero"]);
        assert_eq!(summary("ddDD"), ["0+1024 data 0", "1024+924 data 5120"]);
        assert_eq!(
            summary("zccd"),
            [
                "0+512 zero",
                "512+512 compressed",
                "1024+512 compressed",
                "1536+412 data 1536"
            ]
        );
        assert_eq!(summary("zc"), ["0+512 zero", "512+412 compressed"]);
    }

    #[test]
    fn an_error_comes_after_the_pieces_before_it_and_ends_the_walk() {
        assert_eq!(summary("zzezz"), ["0+1024 zero", "e"]);
        assert_eq!(summary("ddze"), ["0+1024 data 0", "1024+512 zero", "e"]);
        assert_eq!(summary("e"), ["e"]);
    }
}
