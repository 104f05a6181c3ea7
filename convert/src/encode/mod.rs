//! Targets whose bytes are not those of the source: compressed clusters, grains, members and frames.
//!
//! Nobody knows where a compressed cluster ends before it is compressed, so there is no [`Plan`](crate::Plan) for these files.
//! Instead the disk is cut into [`Job`]s, which may be encoded at the same time and by anybody; what comes out is put together
//! in the order of the disk:
//!
//! ```text
//! Encoding ──jobs──▶ Job ──▶ Encoder ──▶ Encoded ──in order──▶ Assembler ──▶ the bytes of the body, one after another
//!                            one for each thread                    └─finish──▶ the end of the body, then the head
//! ```
//!
//! The file is a head, whose length is known from the start and which is zero for what can be written to a pipe, and a body
//! that only grows. Tables are written into the body as soon as their part of the disk is passed, so that the memory of an
//! [`Assembler`] is at most 16 MiB and 32 bytes for each GiB of disk and file. An [`Encoder`] holds a job and its result: less than
//! 10 MiB.
//!
//! The crate spawns no thread: who drives it decides how many there are.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//!
//! let source: Arc<dyn lithos_convert::ReadAt> = Arc::new(vec![1_u8; 100_000]);
//! let image = lithos_convert::open(Arc::clone(&source))?;
//! let encoding = lithos_convert::encode(image.into(), &"qcow2:zstd".parse()?, b"")?;
//! let (mut encoder, mut assembler) = (encoding.encoder(), encoding.assembler());
//! let mut body = Vec::new();
//! for job in encoding.jobs() {
//!     assembler.push(&encoder.encode(&job?, &*source)?, &mut body)?;
//! }
//! let head = assembler.finish(&mut body)?;
//! let file = [head, body].concat();
//! assert_eq!(lithos_convert::open(Arc::new(file))?.virtual_size(), 100_352);
//! # Ok::<(), lithos_convert::Error>(())
//! ```

mod compressor;
mod encoder;
mod envelope;
mod job;
mod ova;
mod tar_gz;

use std::fmt;
use std::sync::Arc;

use self::compressor::Compression;
pub(crate) use self::encoder::Unit;
pub use self::encoder::{Encoded, Encoder};
pub use self::job::{Job, Jobs};
pub(crate) use self::tar_gz::archived_len;
use crate::padded::padded;
use crate::plan::Totals;
use crate::{Error, Format, Image, Target, qcow2, vmdk};

/// How much of the disk a job is about: no cluster of any source is larger, so that none has to be decoded twice, and a member
/// or frame of this length loses nothing worth mentioning.
pub const JOB_LEN: usize = 2 << 20;
/// [`JOB_LEN`] as a length of the disk.
pub(crate) const JOB_SIZE: u64 = JOB_LEN as u64;
/// Clusters of qcow2 and grains of VMDK, as everybody makes them.
const CLUSTER_LEN: usize = 64 << 10;

/// What happens to the disk, in what portions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recipe {
    compression: Compression,
    /// What is compressed at once; a divisor of [`JOB_LEN`].
    unit_len: usize,
    /// Units that are all zeros are encoded like others. Else they are absent.
    keeps_zeros: bool,
    /// A unit that does not shrink stays as it is.
    may_stay_plain: bool,
}

impl Recipe {
    fn of(target: Target) -> Option<Self> {
        let clusters = |compression| Self {
            compression,
            unit_len: CLUSTER_LEN,
            keeps_zeros: false,
            may_stay_plain: true,
        };
        let whole = |compression| Self {
            compression,
            unit_len: JOB_LEN,
            keeps_zeros: true,
            may_stay_plain: false,
        };
        match target {
            Target::QCOW2_ZLIB => Some(clusters(Compression::Deflate)),
            Target::QCOW2_ZLIB_4K => Some(clusters(Compression::Deflate4k)),
            Target::QCOW2_ZSTD => Some(clusters(Compression::Zstd)),
            Target::VMDK_STREAM | Target::OVA => Some(Self {
                may_stay_plain: false,
                ..clusters(Compression::Zlib)
            }),
            Target::RAW_GZ | Target::RAW_TAR_GZ => Some(whole(Compression::Gzip)),
            Target::RAW_ZST => Some(whole(Compression::ZstdChecked)),
            _ => None,
        }
    }
}

/// How to make a target file of encoded parts.
#[derive(Clone)]
pub struct Encoding {
    target: Target,
    recipe: Recipe,
    seed: Vec<u8>,
    totals: Totals,
    /// Absent while a disk is taken as it comes.
    image: Option<Arc<dyn Image>>,
}

/// Prepares the encoding of `image` as `target`; `seed` is as in [`plan_with_seed`](crate::plan_with_seed).
///
/// Walks over the map of the whole image once.
///
/// # Errors
///
/// Whatever [`Image::map`] finds wrong, [`Corrupt`](crate::ErrorKind::Corrupt) if the image refers to more data than its
/// file can hold, or [`Unsupported`](crate::ErrorKind::Unsupported) if the target can be [planned](crate::plan()).
pub fn encode(image: Arc<dyn Image>, target: &Target, seed: &[u8]) -> Result<Encoding, Error> {
    let (image, target) = (padded(image, target.alignment())?, target.made());
    let recipe = recipe(target)?;
    let totals = Totals::of(&*image, |_| ())?;
    Ok(Encoding {
        target,
        recipe,
        seed: seed.to_vec(),
        totals,
        image: Some(image),
    })
}

/// Prepares the encoding of a disk that comes through a pipe, so that its size is known only at its end.
///
/// There are no [`jobs`](Encoding::jobs) to ask for: whoever reads the pipe makes them, by [`Job::of_bytes`].
///
/// # Errors
///
/// [`Unsupported`](crate::ErrorKind::Unsupported) if the target begins with the size of the disk, or can be
/// [planned](crate::plan()).
pub fn encode_pipe(target: &Target) -> Result<Encoding, Error> {
    let target = target.made();
    let recipe = recipe(target)?;
    if [Target::VMDK_STREAM, Target::OVA, Target::RAW_TAR_GZ].contains(&target) {
        let reason = "the file begins with the size of the disk, which a pipe does not tell";
        return Err(Error::unsupported(reason).with_format(target.file_format()));
    }
    Ok(Encoding {
        target,
        recipe,
        seed: Vec::new(),
        totals: Totals::default(),
        image: None,
    })
}

fn recipe(target: Target) -> Result<Recipe, Error> {
    Recipe::of(target).ok_or_else(|| {
        let reason = format!("{target} is planned, and has nothing to encode");
        Error::unsupported(reason).with_format(target.format())
    })
}

impl Encoding {
    /// The size of the guest's disk in bytes; 0 while a pipe has not ended.
    pub fn virtual_size(&self) -> u64 {
        self.image.as_ref().map_or(0, Image::virtual_size)
    }

    /// What the guest's disk is made of, by the tables of the source.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The length of the head, in bytes: what stands before the body and is known after it. It is 0 for a file that can be
    /// written to a pipe.
    pub fn head_len(&self) -> u64 {
        head_len(self.target)
    }

    /// The parts of the disk that have to be encoded, in the order of the disk. Each call starts anew.
    ///
    /// They are found as they are asked for, from a bounded amount of memory. An error ends them.
    pub fn jobs(&self) -> Jobs {
        Jobs::new(self.image.clone(), self.recipe.keeps_zeros)
    }

    /// What one thread needs for encoding.
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self.recipe)
    }

    /// What puts the results together.
    pub fn assembler(&self) -> Assembler {
        let inner: Box<dyn Assemble> = match (self.target, &self.image) {
            (Target::VMDK_STREAM, Some(image)) => Box::new(vmdk::stream::Assembler::new(&**image, &self.seed)),
            (Target::OVA, Some(image)) => Box::new(ova::Assembler::new(&**image, &self.seed)),
            (Target::RAW_TAR_GZ, Some(image)) => Box::new(tar_gz::Assembler::new(image.virtual_size())),
            (Target::QCOW2_ZSTD, _) => Box::new(qcow2::assembler::Assembler::new(qcow2::assembler::Kind::Zstd)),
            (target, _) if target.format() == Format::Qcow2 => {
                Box::new(qcow2::assembler::Assembler::new(qcow2::assembler::Kind::Zlib))
            }
            _ => Box::new(envelope::Assembler::new(self.recipe.compression)),
        };
        Assembler {
            inner,
            format: self.target.format(),
            virtual_size: self.image.as_ref().map(Image::virtual_size),
            next: 0,
        }
    }
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoding")
            .field("target", &self.target)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

fn head_len(target: Target) -> u64 {
    match (target, target.format()) {
        (_, Format::Qcow2) => qcow2::assembler::HEAD_LEN,
        (Target::OVA, _) => ova::HEAD_LEN,
        _ => 0,
    }
}

/// How a format puts its file together.
pub(crate) trait Assemble: Send {
    /// Adds what stands before the first result.
    fn start(&mut self, body: &mut Vec<u8>);

    /// Adds a result.
    fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error>;

    /// Adds what stands behind the last result, of a disk of `virtual_size` bytes, and gives the head.
    fn finish(&mut self, virtual_size: u64, body: &mut Vec<u8>) -> Result<Vec<u8>, Error>;
}

/// Puts the results of all jobs together, in the order of the jobs.
pub struct Assembler {
    inner: Box<dyn Assemble>,
    format: Format,
    virtual_size: Option<u64>,
    /// Where the disk goes on.
    next: u64,
}

impl Assembler {
    /// Adds a result: appends to `body` the bytes that follow what was given out before.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](crate::ErrorKind::TooLarge) if the file becomes larger than its format can be.
    ///
    /// # Panics
    ///
    /// If a later part of the disk was added before.
    pub fn push(&mut self, encoded: &Encoded, body: &mut Vec<u8>) -> Result<(), Error> {
        assert!(
            encoded.guest >= self.next,
            "the results come in the order of their jobs"
        );
        self.start(body);
        self.next = encoded.end();
        self.inner
            .push(encoded, body)
            .map_err(|error| error.with_format(self.format))
    }

    /// Appends to `body` what the file ends with, and gives its head, of [`head_len`](Encoding::head_len) bytes.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](crate::ErrorKind::TooLarge) if the file becomes larger than its format can be.
    pub fn finish(mut self, body: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        self.start(body);
        let virtual_size = self.virtual_size.unwrap_or(self.next);
        self.inner
            .finish(virtual_size, body)
            .map_err(|error| error.with_format(self.format))
    }

    fn start(&mut self, body: &mut Vec<u8>) {
        self.inner.start(body);
    }
}

impl fmt::Debug for Assembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembler")
            .field("format", &self.format)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
