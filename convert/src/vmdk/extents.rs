//! The map of a disk of several files, all of them in one archive.
//!
//! ```text
//! archive   … │ disk.vmdk │ … │ disk-s001.vmdk         │ … │ disk-s002.vmdk         │ …
//!               descriptor      header, tables, grains       header, tables, grains        SPARSE
//!                               sectors of the disk          sectors of the disk           FLAT
//! ```
//!
//! The descriptor lists extents in the order of the disk. Their names are looked up among the files of the archive, and nowhere
//! else; each file is used once. A sparse extent is like a monolithicSparse file without a descriptor: there is no place for one,
//! or an empty one (as QEMU makes it). Places in the map, and in errors, are those of the archive.
//!
//! Differs: QEMU passes over extents of the type ZERO, so that what follows them moves; here they are zeros.
//!
//! Format: "Virtual Disk Format", "The Descriptor File" and "Simple Extents".

use std::collections::BTreeSet;
use std::ops::Range;

use super::descriptor::{Content, CreateType, Descriptor, Extent};
use super::grains::{File, Grains, Pages};
use super::header::{Header, field};
use super::{SECTOR_SIZE, reader};
use crate::envelope::{Entry, Slice, SplitDisk};
use crate::safety::{self, Region, quote};
use crate::{Error, ErrorKind, Format, Image, Mapping, ReadAt};

/// 128 KiB: the most extents that there may be, with lines of 128 bytes, of which a name may have a hundred.
const DESCRIPTOR_LEN_MAX: u64 = 128 << 10;

/// Opens a disk whose files are in the archive `source`.
pub(crate) fn open<'a>(source: impl ReadAt + 'a, disk: &SplitDisk) -> Result<Box<dyn Image + 'a>, Error> {
    let image = Extents::open(source, disk).map_err(|error| error.with_format(Format::Vmdk))?;
    Ok(Box::new(image))
}

#[derive(Debug)]
struct Extents<S> {
    source: S,
    create_type: CreateType,
    /// Without a gap, in the order of the disk.
    stretches: Vec<Stretch>,
    pages: Pages,
}

/// What an extent is to the guest.
#[derive(Debug)]
struct Stretch {
    guest: Range<u64>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Zero,
    /// Bytes from `offset` of the source on.
    Flat {
        offset: u64,
    },
    Sparse {
        file: Entry,
        grains: Grains,
    },
}

impl<S: ReadAt> Extents<S> {
    fn open(source: S, disk: &SplitDisk) -> Result<Self, Error> {
        let descriptor = read_descriptor(&source, &disk.descriptor)?;
        let pages = Pages::new(u32::from_le_bytes);
        let mut files = Files::of(disk);
        let mut stretches = Vec::with_capacity(descriptor.extents.len());
        let mut start: u64 = 0;
        for extent in &descriptor.extents {
            let end = start.saturating_add(extent.len());
            let data = files
                .data(&source, &pages, extent)
                .map_err(|error| error.at(disk.descriptor.offset.saturating_add(extent.place)))?;
            stretches.push(Stretch {
                guest: start..end,
                data,
            });
            start = end;
        }
        Ok(Self {
            source,
            create_type: descriptor.create_type,
            stretches,
            pages,
        })
    }

    fn map_unnamed(&self, guest: u64) -> Result<Mapping, Error> {
        let index = self.stretches.partition_point(|stretch| stretch.guest.end <= guest);
        let stretch = self.stretches.get(index).ok_or_else(Error::beyond_the_disk)?;
        let len = stretch.guest.end.saturating_sub(guest);
        let within = guest.saturating_sub(stretch.guest.start);
        match &stretch.data {
            Data::Zero => Ok(Mapping::Zero { len }),
            Data::Flat { offset } => Mapping::in_file(&self.source, offset.saturating_add(within), len),
            Data::Sparse { file, grains } => {
                let range = within..within.saturating_add(len);
                let mapping = in_file(&self.source, &self.pages, file, |file| grains.map(file, range))?;
                Ok(moved(mapping, file.offset, stretch.guest.start))
            }
        }
    }

    fn sparse(&self) -> impl Iterator<Item = &Grains> {
        self.stretches.iter().filter_map(|stretch| match &stretch.data {
            Data::Sparse { grains, .. } => Some(grains),
            Data::Zero | Data::Flat { .. } => None,
        })
    }
}

impl<S: ReadAt> Image for Extents<S> {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn virtual_size(&self) -> u64 {
        self.stretches.last().map_or(0, |stretch| stretch.guest.end)
    }

    fn file_size(&self) -> u64 {
        self.source.size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        self.map_unnamed(guest).map_err(|error| error.with_format(Format::Vmdk))
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.create_type.name())
    }

    /// The size of grains, if all extents agree on it.
    fn block_size(&self) -> Option<u64> {
        let mut sizes = self.sparse().map(|grains| grains.grain_size().get());
        let first = sizes.next()?;
        sizes.all(|size| size == first).then_some(first)
    }

    fn warnings(&self) -> Vec<String> {
        let unclean = self.sparse().any(|grains| grains.header().unclean);
        unclean.then(|| reader::UNCLEAN.to_owned()).into_iter().collect()
    }
}

/// The files of the archive, of which each is used once.
struct Files<'a> {
    all: &'a [Entry],
    taken: BTreeSet<&'a str>,
}

impl<'a> Files<'a> {
    fn of(disk: &'a SplitDisk) -> Self {
        Self {
            all: &disk.files,
            taken: BTreeSet::from([disk.descriptor.name.as_str()]),
        }
    }

    fn data(&mut self, source: &dyn ReadAt, pages: &Pages, extent: &Extent) -> Result<Data, Error> {
        match &extent.content {
            Content::Zero => Ok(Data::Zero),
            Content::Flat { name, sector } => {
                let flat = Region {
                    name: "flat extent",
                    offset: sector.saturating_mul(SECTOR_SIZE),
                    len: extent.len(),
                };
                let file = self.take(name)?;
                flat.inside(file.len).map_err(|error| error.within(&extent_of(name)))?;
                let offset = file.offset.saturating_add(flat.offset);
                Ok(Data::Flat { offset })
            }
            Content::Sparse { name } => {
                let file = self.take(name)?;
                let grains = in_file(source, pages, file, |file| open_sparse(file, extent.sectors))?;
                let file = file.clone();
                Ok(Data::Sparse { file, grains })
            }
        }
    }

    /// The file of this name, if there is just one, and nothing else uses it.
    fn take(&mut self, name: &str) -> Result<&'a Entry, Error> {
        let shown = extent_of(name);
        let mut named = self.all.iter().filter(|file| file.name == name);
        let Some(file) = named.next() else {
            let reason = format!("the {shown} is not in the archive");
            return Err(Error::new(ErrorKind::ReferenceDenied, reason));
        };
        if named.next().is_some() {
            return Err(Error::corrupt(format!("the {shown} is in the archive twice")));
        }
        if !self.taken.insert(&file.name) {
            let reason = format!("the {shown} is in a file that has another part of the disk, or is the descriptor");
            return Err(Error::corrupt(reason));
        }
        Ok(file)
    }
}

fn extent_of(name: &str) -> String {
    format!("extent {}", quote(name.as_bytes()))
}

fn read_descriptor(source: &dyn ReadAt, file: &Entry) -> Result<Descriptor, Error> {
    let region = Region {
        name: "descriptor",
        offset: file.offset,
        len: file.len,
    };
    let read = || {
        safety::at_most("descriptor size", file.len, DESCRIPTOR_LEN_MAX)?;
        let text = safety::read_region(source, region.inside(source.size())?)?;
        Descriptor::of_files(&text)
    };
    read().map_err(|error| error.shifted(file.offset))
}

/// Asks something of a file of the source. Errors name it, and their places become those of the source.
fn in_file<T>(
    source: &dyn ReadAt,
    pages: &Pages,
    file: &Entry,
    ask: impl FnOnce(File<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let bytes = &Slice::new(source, file.offset, file.len);
    ask(File { bytes, pages }).map_err(|error| error.shifted(file.offset).within(&extent_of(&file.name)))
}

/// The grains of an extent of so many sectors.
fn open_sparse(file: File<'_>, sectors: u64) -> Result<Grains, Error> {
    let header = Header::read(file.bytes)?;
    if header.is_compressed() {
        let reason = "compressed grains (flag bit 16), which create type \"twoGbMaxExtentSparse\" does not have";
        return Err(Error::corrupt(reason).at(field::FLAGS));
    }
    if header.capacity_sectors != sectors {
        let reason = format!(
            "the capacity is {} sectors, the extent in the descriptor has {sectors}",
            header.capacity_sectors
        );
        return Err(Error::corrupt(reason).at(field::CAPACITY));
    }
    let descriptor = header.descriptor(file.bytes.size())?;
    if let Some(region) = descriptor {
        let text = safety::read_region(file.bytes, region)?;
        if text.first().is_some_and(|byte| *byte != 0) {
            let reason = "a descriptor of its own, beside that of the disk";
            return Err(Error::corrupt(reason).at(region.offset));
        }
    }
    Grains::open(file, header, descriptor)
}

/// The mapping of an extent, in the place of the disk and of the source where the extent is.
fn moved(mapping: Mapping, file_start: u64, guest_start_of_extent: u64) -> Mapping {
    match mapping {
        Mapping::Zero { len } => Mapping::Zero { len },
        Mapping::Data { offset, len } => Mapping::Data {
            offset: offset.saturating_add(file_start),
            len,
        },
        Mapping::Compressed {
            offset,
            len,
            codec,
            guest_start,
            guest_len,
        } => Mapping::Compressed {
            offset: offset.saturating_add(file_start),
            len,
            codec,
            guest_start: guest_start.saturating_add(guest_start_of_extent),
            guest_len,
        },
    }
}
