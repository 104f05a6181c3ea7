//! The target file as segments, in order and without a gap.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use crate::map::{Origin, Piece, Pieces};
use crate::padded::padded;
use crate::{Codec, Error, Format, Image, Target, qcow2, raw, vdi, vhd, vhdx, vmdk};

/// A stretch of the target file. None is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// These bytes: a part of a header or table, of at most 64 KiB.
    Bytes(Vec<u8>),
    /// Zeros, which a sparse store need not keep.
    Zeros {
        /// How many.
        len: u64,
    },
    /// Bytes of the source as they are.
    Copy {
        /// Where they start.
        source_offset: u64,
        /// How many they are.
        len: u64,
    },
    /// A part of what a compressed cluster of the source [decodes](crate::decode) to.
    Decode {
        /// Where the compressed bytes start.
        source_offset: u64,
        /// How many there are at most.
        compressed_len: u64,
        /// How they are compressed.
        codec: Codec,
        /// How many bytes the whole cluster decodes to: at most 2 MiB.
        len: u64,
        /// How many of them come before the part.
        skip: u64,
        /// How many bytes the part has. It is what the segment covers of the target.
        take: u64,
    },
}

impl Segment {
    /// How many bytes of the target it covers.
    #[expect(clippy::len_without_is_empty, reason = "no segment is empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros { len } | Self::Copy { len, .. } | Self::Decode { take: len, .. } => *len,
        }
    }

    /// The segment that puts a piece of the guest's disk into a file.
    pub(crate) fn of(piece: &Piece) -> Self {
        match piece.origin {
            Origin::Zero => Self::Zeros { len: piece.len },
            Origin::Data { offset } => Self::Copy {
                source_offset: offset,
                len: piece.len,
            },
            Origin::Compressed {
                offset,
                compressed_len,
                codec,
                decoded_len,
                skip,
            } => Self::Decode {
                source_offset: offset,
                compressed_len,
                codec,
                len: decoded_len,
                skip,
                take: piece.len,
            },
        }
    }
}

/// Zeros, if there are any.
pub(crate) fn zeros(len: u64) -> Option<Segment> {
    (len > 0).then_some(Segment::Zeros { len })
}

/// The size of a disk where it is counted in sectors of 512 bytes: rounded up to them, and at least one.
///
/// An empty disk gets a sector because most formats, or QEMU, know none without: a fixed VHD would begin with its footer and be
/// taken for a dynamic one.
pub(crate) fn sectored(image: &dyn Image) -> u64 {
    image.virtual_size().max(1).next_multiple_of(512)
}

/// What the guest's disk is made of, in bytes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Known to be zeros.
    pub zero: u64,
    /// Copied from the source.
    pub copied: u64,
    /// Decoded from compressed clusters.
    pub decoded: u64,
}

impl Totals {
    /// Walks over the whole image, which reads each of its tables once and finds every error in them.
    pub(crate) fn of(image: impl Image, mut each: impl FnMut(&Piece)) -> Result<Self, Error> {
        let (format, file_size) = (image.format(), image.file_size());
        let mut totals = Self::default();
        for piece in Pieces::new(image) {
            let piece = piece?;
            totals
                .add(&piece, file_size)
                .map_err(|error| error.with_format(format))?;
            each(&piece);
        }
        Ok(totals)
    }

    /// Adds a piece, and refuses an image that refers to more data than its file can hold.
    ///
    /// Each byte of a file stands for one place of the disk. Tables that point to the same bytes again and again would
    /// otherwise make a small file into an enormous amount of work.
    fn add(&mut self, piece: &Piece, file_size: u64) -> Result<(), Error> {
        let (sum, bound) = match piece.origin {
            Origin::Zero => (&mut self.zero, u64::MAX),
            Origin::Data { .. } => (&mut self.copied, file_size),
            Origin::Compressed { codec, .. } => (&mut self.decoded, file_size.saturating_mul(codec.expansion_max())),
        };
        *sum = sum.saturating_add(piece.len);
        if *sum > bound {
            return Err(Error::corrupt(format!(
                "the tables refer to more data than a file of {file_size} bytes can hold"
            )));
        }
        Ok(())
    }
}

/// Segments as they are made.
pub(crate) type SegmentIter = Box<dyn Iterator<Item = Result<Segment, Error>> + Send>;

/// Where everything goes in a target file.
///
/// It holds what a first walk over the image has found out, in memory that is bounded whatever the image.
pub(crate) trait Shape: Send + Sync {
    /// The exact size of the target file in bytes.
    fn size(&self) -> u64;

    /// The target file from its first byte to its last, from the image that was walked over.
    fn segments(self: Arc<Self>, image: Arc<dyn Image>) -> SegmentIter;
}

/// How to make a target file from an image.
///
/// It holds the image's map and the place of each part of the target, no content.
#[derive(Clone)]
pub struct Plan {
    image: Arc<dyn Image>,
    totals: Totals,
    shape: Arc<dyn Shape>,
}

/// Plans the making of `target` from `image`.
///
/// Walks over the map of the whole image once. Making raw from an image gives exactly its virtual size; the other formats
/// round that up to whole sectors of 512 bytes, and all but qcow2 give an empty disk one sector.
///
/// # Errors
///
/// Whatever [`Image::map`] finds wrong, [`Corrupt`](crate::ErrorKind::Corrupt) if the image refers to more data than its
/// file can hold, [`TooLarge`](crate::ErrorKind::TooLarge) if the disk is larger than the target format can be, or
/// [`Unsupported`](crate::ErrorKind::Unsupported) if the target has to be [encoded](crate::encode()).
pub fn plan(image: Arc<dyn Image>, target: &Target) -> Result<Plan, Error> {
    plan_with_seed(image, target, &[])
}

/// [`plan()`] with a `seed` for the identifiers that some formats ask for: UUIDs of VDI, VHD and VHDX, the content id of VMDK.
///
/// The same image, target and seed give the same bytes. A seed that is another for each source, such as the id of its version,
/// keeps apart disks whose data happens to lie in the same places.
///
/// # Errors
///
/// Those of [`plan()`].
pub fn plan_with_seed(image: Arc<dyn Image>, target: &Target, seed: &[u8]) -> Result<Plan, Error> {
    if target.is_encoded() {
        let reason = format!("{target} has to be encoded, and cannot be planned");
        return Err(Error::unsupported(reason).with_format(target.format()));
    }
    let (image, target) = (padded(image, target.alignment())?, &target.made());
    let (totals, shape) = match (target.format(), target.is_fixed()) {
        (Format::Raw, _) => shaped(raw::plan(&*image)),
        (Format::Qcow2, _) => shaped(qcow2::planner::plan(&*image, qcow2_version(*target))),
        (Format::Vhd, false) => shaped(vhd::planner::dynamic(&*image, seed)),
        (Format::Vhd, true) => shaped(vhd::planner::fixed(&*image, seed)),
        (Format::Vmdk, _) => shaped(vmdk::planner::plan(&*image, seed)),
        (Format::Vhdx, false) => shaped(vhdx::planner::dynamic(&*image, seed)),
        (Format::Vhdx, true) => shaped(vhdx::planner::fixed(&*image, seed)),
        (Format::Vdi, false) => shaped(vdi::planner::dynamic(&*image, seed)),
        (Format::Vdi, true) => shaped(vdi::planner::fixed(&*image, seed)),
        (other, _) => Err(Error::unsupported("images of this format cannot be made").with_format(other)),
    }?;
    Ok(Plan { image, totals, shape })
}

fn qcow2_version(target: Target) -> qcow2::Version {
    if target == Target::QCOW2_V2 {
        qcow2::Version::Two
    } else {
        qcow2::Version::Three
    }
}

fn shaped<S: Shape + 'static>(planned: Result<(Totals, S), Error>) -> Result<(Totals, Arc<dyn Shape>), Error> {
    planned.map(|(totals, shape)| (totals, Arc::new(shape) as Arc<dyn Shape>))
}

impl Plan {
    /// The exact size of the target file in bytes.
    pub fn size(&self) -> u64 {
        self.shape.size()
    }

    /// The size of the guest's disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.image.virtual_size()
    }

    /// What the guest's disk is made of.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The target file, from its first byte to its last. Each call starts anew.
    ///
    /// Segments are made as they are asked for, from a bounded amount of memory. An error ends them.
    pub fn segments(&self) -> Segments {
        Segments {
            inner: Some(Arc::clone(&self.shape).segments(Arc::clone(&self.image))),
            left: self.size(),
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("image", &self.image)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// The segments of a [`Plan`]. They cover the target exactly, or end in an error.
pub struct Segments {
    inner: Option<SegmentIter>,
    left: u64,
}

impl Segments {
    /// Holds the segments to the size that was planned, in case the source has changed since.
    fn checked(&mut self, segment: Option<Result<Segment, Error>>) -> Option<Result<Segment, Error>> {
        let changed = || Some(Err(Error::corrupt("the source has changed while it was read")));
        match segment {
            Some(Ok(segment)) => {
                let Some(left) = self.left.checked_sub(segment.len()) else {
                    return changed();
                };
                self.left = left;
                Some(Ok(segment))
            }
            None if self.left > 0 => changed(),
            other => other,
        }
    }
}

impl Iterator for Segments {
    type Item = Result<Segment, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let segment = self.inner.as_mut()?.next();
        let segment = self.checked(segment);
        if !matches!(segment, Some(Ok(_))) {
            self.inner = None;
        }
        segment
    }
}

impl FusedIterator for Segments {}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
