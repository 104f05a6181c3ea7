//! Disk image formats as pure code: what an image is, what its guest sees, and how another file of the same disk looks.
//!
//! ```text
//! bytes ──ReadAt──▶ probe ──▶ open ──▶ Image::map     guest range ─▶ zero | data at | compressed at
//!                     │                    │
//!                  inspect               plan ──▶ segments   bytes | zeros | copy | decode
//!                                          │
//!                                        encode ──▶ jobs ──▶ results, in order ──▶ bytes of a compressed target
//! ```
//!
//! A [`Plan`] is the whole point: it describes the target file, in order and without a gap, as freshly made tables plus
//! references into the source. Whoever holds the bytes carries it out: a server turns it into a layout over blobs it already
//! has, a command line writes a file.
//!
//! | module | holds |
//! | --- | --- |
//! | [`io`](ReadAt) | the one way bytes come in |
//! | [`probe`](probe()), [`inspect`](inspect()) | what a file is, by its content |
//! | [`unwrap`](unwrap()) | images in envelopes: compressed streams and archives |
//! | `disk` | what is on a disk: partitions, file systems, an installed system |
//! | [`Limits`] | how much of everything is accepted |
//! | [`map`](Image) | what a guest reads, and from where |
//! | [`plan`](plan()) | the segments of a target file |
//! | [`encode`](encode()) | compressed target files, by parts that may be made at the same time |
//! | `qcow2`, `raw`, `vdi`, `vhd`, `vhdx`, `vmdk` | one module a format: a reader and a planner |
//! | [`Profile`] | what clouds take |
//! | `blocks`, `pages` | what formats of equal blocks have in common, and tables read by pages |
//! | `safety` | the checks that every format shares |
//!
//! A new format is a new module, one arm in [`open`] and one in [`plan`](plan()) or [`encode`](encode()).
//!
//! # What is deliberately absent
//!
//! Nothing here opens a path or a socket, spawns a thread or a process, or reads a clock or the environment. Every image is
//! hostile: a backing file, an external data file and any other name inside an image is data that gets quoted in a refusal,
//! never a path to open. Tables are compared with the real size of the file before anything is allocated for them, memory does
//! not grow with the image, and input of any kind ends in an [`Error`] with a reason, never in a panic.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//!
//! let source: Arc<dyn lithos_convert::ReadAt> = Arc::new(vec![1_u8; 100_000]);
//! let image = lithos_convert::open(source)?;
//! let plan = lithos_convert::plan(image.into(), &"qcow2".parse()?)?;
//! let covered: u64 = plan.segments().map(|segment| segment.map(|s| s.len())).sum::<Result<_, _>>()?;
//! assert_eq!(covered, plan.size());
//! # Ok::<(), lithos_convert::Error>(())
//! ```

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod blocks;
mod compression;
mod disk;
mod encode;
mod envelope;
mod error;
mod format;
mod guest;
mod identity;
mod inspect;
mod io;
mod limits;
mod map;
mod padded;
mod pages;
mod plan;
mod probe;
mod profile;
mod qcow2;
mod raw;
mod safety;
mod signature;
mod target;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use compression::{Codec, Decoder, decode};
pub use disk::{BootMode, BootReason, Disk, FileSystem, FileSystemKind, Os, Partition, PartitionTable};
pub use encode::{Assembler, Encoded, Encoder, Encoding, JOB_LEN, Job, Jobs, encode, encode_pipe};
pub use envelope::{Content, DECODER_MEMORY_MAX, Manifest, Part, Slice, unwrap};
pub use error::{Error, ErrorKind};
pub use format::Format;
pub use guest::Guest;
pub use inspect::{Declared, Inspection, Qcow2Details, Refusal, inspect, inspect_declared};
pub use io::{ReadAt, Run, RunKind};
pub use limits::Limits;
pub use map::{Image, Mapping, open};
pub use plan::{Plan, Segment, Segments, Totals, plan, plan_with_seed};
pub use probe::{Evidence, Probe, probe};
pub use profile::Profile;
pub use safety::{MAX_VIRTUAL_SIZE, printable};
pub use signature::Signature;
pub use target::Target;
