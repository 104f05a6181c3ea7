//! The map of a qcow2 image.
//!
//! Opening reads the header cluster and walks the L1 table and all L2 tables once, so that every table and every cluster is
//! known to be where it may be, and to be there once. When the disk is mapped, the tables are read by pages as they are asked
//! for, and their entries judged again.
//!
//! Clusters that are allocated but lie in a hole of the file are zeros: a preallocated image maps as sparse as it is.

use std::num::NonZeroU64;

use super::header::{field, power_of_two};
use super::preamble::Preamble;
use super::table::{Cluster, Geometry, parse_l1};
use super::usage::{Usage, Use};
use crate::map::Mapping;
use crate::pages::{PAGE_LEN, Page, Pages};
use crate::safety::Region;
use crate::{Codec, Error, Format, Image, ReadAt};

/// An open qcow2 image.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    source: S,
    virtual_size: u64,
    geometry: Geometry,
    l2_span: NonZeroU64,
    /// The bytes of the guest's disk that one data entry or one bit of a bitmap stands for.
    unit: NonZeroU64,
    codec: Codec,
    l1: Region,
    metadata: [Region; 3],
    pages: Pages<8, u64>,
}

/// A run in the making.
#[derive(Debug, Clone, Copy)]
enum Run {
    Zero { len: u64 },
    Data { offset: u64, len: u64 },
}

impl Run {
    fn len(self) -> u64 {
        match self {
            Self::Zero { len } | Self::Data { len, .. } => len,
        }
    }
}

impl<S: ReadAt> Reader<S> {
    pub(crate) fn open(source: S) -> Result<Self, Error> {
        let preamble = Preamble::read(&source)?;
        preamble.check()?;
        let header = &preamble.header;
        let cluster_size = power_of_two(header.cluster_bits);
        let geometry = Geometry {
            version: header.version,
            cluster_bits: header.cluster_bits,
            cluster_size,
            extended: header.is_extended_l2(),
            file_size: preamble.file_size,
        };
        let reader = Self {
            virtual_size: header.size,
            geometry,
            l2_span: header.l2_span(),
            unit: power_of_two(
                header
                    .cluster_bits
                    .saturating_sub(if geometry.extended { 5 } else { 0 }),
            ),
            codec: header.codec()?,
            l1: header.l1_table(),
            metadata: preamble.metadata(),
            pages: Pages::new(u64::from_be_bytes),
            source,
        };
        reader
            .check_l1()
            .and_then(|()| reader.check_usage())
            .map_err(|error| error.with_format(Format::Qcow2))?;
        Ok(reader)
    }

    /// Refuses L2 tables that are outside of the file or on top of another table, and more of them than the file has room for.
    fn check_l1(&self) -> Result<(), Error> {
        let Geometry {
            cluster_size,
            file_size,
            ..
        } = self.geometry;
        let mut count: u64 = 0;
        for index in 0..self.virtual_size.div_ceil(self.l2_span.get()) {
            let Some(table) = self.l2_table(index)? else { continue };
            let place = self.l1.offset.saturating_add(index.saturating_mul(8));
            table
                .inside(file_size)
                .and_then(|table| table.keeps_off(&self.metadata))
                .map_err(|error| error.at(place))?;
            count = count.saturating_add(1);
        }
        if count > file_size / cluster_size {
            let reason =
                format!("the L1 table refers to {count} L2 tables, more than a file of {file_size} bytes can hold");
            return Err(Error::corrupt(reason).at(field::L1_TABLE));
        }
        Ok(())
    }

    /// Refuses tables and clusters that are used twice.
    fn check_usage(&self) -> Result<(), Error> {
        let count = self.virtual_size.div_ceil(self.l2_span.get());
        for mut usage in Usage::passes(self.geometry.file_size, self.geometry.cluster_size)? {
            let mut index: u64 = 0;
            while index < count {
                let Some(table) = self.l2_table(index)? else {
                    let absent = self.absent_len(index.saturating_mul(self.l2_span.get()))?;
                    index = index.saturating_add(absent / self.l2_span);
                    continue;
                };
                let place = self.l1.offset.saturating_add(index.saturating_mul(8));
                usage.note(Use::Table, table.offset).map_err(|error| error.at(place))?;
                let left = self
                    .virtual_size
                    .saturating_sub(index.saturating_mul(self.l2_span.get()));
                self.check_table(table, left, &mut usage)?;
                index = index.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Notes what an L2 table uses, of which the disk has `left` bytes. Entries for what is beyond its end mean nothing.
    fn check_table(&self, table: Region, left: u64, usage: &mut Usage) -> Result<(), Error> {
        let entry_len = self.geometry.entry_len();
        let entries_len = left
            .div_ceil(self.geometry.cluster_size.get())
            .saturating_mul(entry_len.get())
            .min(table.len);
        let mut within: u64 = 0;
        while within < entries_len {
            let (page, start) = self.page(table, within)?;
            let page_len = (page.len() as u64).saturating_mul(8);
            for index in 0..page_len.min(entries_len.saturating_sub(start)) / entry_len {
                let entry = index.saturating_mul(entry_len.get());
                let place = table.offset.saturating_add(start).saturating_add(entry);
                let at = |error: Error| error.at(place);
                match self.cluster(&page, entry).map_err(at)? {
                    Cluster::Zero => {}
                    Cluster::Data(offset) | Cluster::Subclusters { offset, .. } => {
                        usage.note(Use::Data, offset).map_err(at)?;
                    }
                    Cluster::Compressed(descriptor) => {
                        usage.note(Use::Compressed, descriptor.offset).map_err(at)?;
                    }
                }
            }
            within = start.saturating_add(page_len.max(1));
        }
        Ok(())
    }

    /// The page of `table` that holds the byte `within`, and where in the table it starts.
    fn page(&self, table: Region, within: u64) -> Result<(Page<u64>, u64), Error> {
        let start = within.saturating_sub(within % PAGE_LEN);
        let len = table.len.saturating_sub(start).min(PAGE_LEN);
        let region = Region {
            name: table.name,
            offset: table.offset.saturating_add(start),
            len,
        };
        Ok((self.pages.read(&self.source, region)?, start))
    }

    /// The L2 table that entry `index` of the L1 table points to.
    fn l2_table(&self, index: u64) -> Result<Option<Region>, Error> {
        let within = index.saturating_mul(8);
        let (page, start) = self.page(self.l1, within)?;
        let entry = entry_at(&page, within.saturating_sub(start));
        let cluster_size = self.geometry.cluster_size.get();
        let offset = parse_l1(entry, cluster_size).map_err(|error| error.at(self.l1.offset.saturating_add(within)))?;
        Ok(offset.map(|offset| Region {
            name: "L2 table",
            offset,
            len: cluster_size,
        }))
    }

    /// How far the disk is without any L2 table from `guest`, which has none; looks no further than a page of the L1 table.
    fn absent_len(&self, guest: u64) -> Result<u64, Error> {
        let index = guest / self.l2_span;
        let (page, start) = self.page(self.l1, index.saturating_mul(8))?;
        let first = index.saturating_sub(start / 8);
        let zeros = page
            .iter()
            .skip(usize::try_from(first).unwrap_or(usize::MAX))
            .take_while(|entry| **entry == 0)
            .count();
        // An entry may be absent and yet not zero, by its refcount flag.
        let end = index
            .saturating_add((zeros as u64).max(1))
            .saturating_mul(self.l2_span.get());
        Ok(end.saturating_sub(guest))
    }

    /// Follows the entries of an L2 table from `guest` for as long as they continue one run, within a page and up to the edge of
    /// a hole of the file. Behind such an edge the entries would be followed anew from each of the others.
    fn run_in(&self, table: Region, guest: u64) -> Result<Mapping, Error> {
        let Geometry { cluster_size, .. } = self.geometry;
        let entry_len = self.geometry.entry_len();
        let first = (guest % self.l2_span) / cluster_size;
        let (page, page_start) = self.page(table, first.saturating_mul(entry_len.get()))?;
        let page_entries = (page.len() as u64).saturating_mul(8) / entry_len;
        let page_end = (page_start / entry_len).saturating_add(page_entries);
        let mut run: Option<Run> = None;
        let mut in_file: Option<Mapping> = None;
        let mut within = guest % cluster_size;
        for index in first..page_end {
            let entry = index.saturating_mul(entry_len.get());
            let cluster = match self.cluster(&page, entry.saturating_sub(page_start)) {
                Ok(Cluster::Compressed(descriptor)) if run.is_none() => {
                    return Ok(Mapping::Compressed {
                        offset: descriptor.offset,
                        len: descriptor.len,
                        codec: self.codec,
                        guest_start: guest.saturating_sub(within),
                        guest_len: cluster_size.get(),
                    });
                }
                Err(error) if run.is_none() => return Err(error.at(table.offset.saturating_add(entry))),
                Ok(Cluster::Compressed(_)) | Err(_) => break,
                Ok(cluster) => cluster,
            };
            let is_continued = self.extend_by_cluster(&mut run, cluster, within);
            if let (Some(Run::Data { offset, .. }), None) = (run, in_file) {
                in_file = Some(Mapping::in_file(&self.source, offset, u64::MAX)?);
            }
            let (len, most) = (run.map_or(0, Run::len), in_file.map_or(u64::MAX, Mapping::len));
            if !is_continued || len >= most {
                break;
            }
            within = 0;
        }
        let run = run.expect("the first entry of a page begins a run");
        let mapping = in_file.unwrap_or(Mapping::Zero { len: u64::MAX });
        Ok(mapping.cut(run.len()))
    }

    fn cluster(&self, page: &[u64], within_page: u64) -> Result<Cluster, Error> {
        let entry = entry_at(page, within_page);
        let bitmap = if self.geometry.extended {
            entry_at(page, within_page.saturating_add(8))
        } else {
            0
        };
        let cluster = self.geometry.parse_l2(entry, bitmap)?;
        match cluster {
            Cluster::Zero => {}
            Cluster::Data(offset) | Cluster::Subclusters { offset, .. } => {
                Region {
                    name: "data cluster",
                    offset,
                    len: self.geometry.cluster_size.get(),
                }
                .keeps_off(&self.metadata)?;
            }
            Cluster::Compressed(descriptor) => {
                // The last sector may belong to someone else, so only the first byte counts.
                Region {
                    name: "compressed cluster",
                    offset: descriptor.offset,
                    len: 1,
                }
                .keeps_off(&self.metadata)?;
            }
        }
        Ok(cluster)
    }

    /// Adds what is left of a cluster from byte `within`, and says whether all of it continued the run.
    fn extend_by_cluster(&self, run: &mut Option<Run>, cluster: Cluster, within: u64) -> bool {
        let left = self.geometry.cluster_size.get().saturating_sub(within);
        match cluster {
            Cluster::Zero => extend(run, Run::Zero { len: left }),
            Cluster::Data(offset) => extend(
                run,
                Run::Data {
                    offset: offset.saturating_add(within),
                    len: left,
                },
            ),
            Cluster::Subclusters { offset, allocated } => {
                let first = within / self.unit;
                (first..32).all(|index| {
                    let start = index.saturating_mul(self.unit.get()).max(within);
                    let len = index
                        .saturating_add(1)
                        .saturating_mul(self.unit.get())
                        .saturating_sub(start);
                    let here = allocated >> (index % 32) & 1 != 0;
                    let part = if here {
                        Run::Data {
                            offset: offset.saturating_add(start),
                            len,
                        }
                    } else {
                        Run::Zero { len }
                    };
                    extend(run, part)
                })
            }
            Cluster::Compressed(_) => false,
        }
    }

    fn map_unnamed(&self, guest: u64) -> Result<Mapping, Error> {
        let left = self.virtual_size.saturating_sub(guest);
        if left == 0 {
            return Err(Error::beyond_the_disk());
        }
        let mapping = match self.l2_table(guest / self.l2_span)? {
            Some(table) => self.run_in(table, guest)?,
            None => Mapping::Zero {
                len: self.absent_len(guest)?,
            },
        };
        Ok(mapping.cut(left))
    }
}

/// The entry at a byte offset of a page; beyond its end there are none, which reads as absent.
fn entry_at(page: &[u64], within_page: u64) -> u64 {
    let index = usize::try_from(within_page / 8).unwrap_or(usize::MAX);
    page.get(index).copied().unwrap_or_default()
}

/// Adds `next` to `run` if it continues it.
fn extend(run: &mut Option<Run>, next: Run) -> bool {
    let joined = match (*run, next) {
        (None, next) => next,
        (Some(Run::Zero { len }), Run::Zero { len: more }) => Run::Zero {
            len: len.saturating_add(more),
        },
        (
            Some(Run::Data { offset, len }),
            Run::Data {
                offset: next,
                len: more,
            },
        ) if offset.saturating_add(len) == next => Run::Data {
            offset,
            len: len.saturating_add(more),
        },
        _ => return false,
    };
    *run = Some(joined);
    true
}

impl<S: ReadAt> Image for Reader<S> {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn file_size(&self) -> u64 {
        self.geometry.file_size
    }

    fn block_size(&self) -> Option<u64> {
        Some(self.geometry.cluster_size.get())
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        self.map_unnamed(guest)
            .map_err(|error| error.with_format(Format::Qcow2))
    }
}
