//! The map of a VMDK image of one file.

use std::num::NonZeroU64;

use super::descriptor::{CreateType, Descriptor};
use super::grains::{File, Grains, Pages};
use super::header::{Header, field};
use crate::blocks::{Block, BlockImage, Blocks};
use crate::envelope::Slice;
use crate::safety;
use crate::{Error, ErrorKind, Format, Image, ReadAt};

/// What is said of an image that was not closed.
pub(super) const UNCLEAN: &str = "the image was not closed properly; what was written last may be missing";

/// Opens a VMDK image of one file.
pub(crate) fn open<'a>(source: impl ReadAt + 'a) -> Result<Box<dyn Image + 'a>, Error> {
    let reader = Reader::open(source).map_err(|error| error.with_format(Format::Vmdk))?;
    Ok(Box::new(BlockImage(reader)))
}

#[derive(Debug)]
struct Reader<S> {
    source: S,
    create_type: CreateType,
    grains: Grains,
    pages: Pages,
}

impl<S: ReadAt> Reader<S> {
    fn open(source: S) -> Result<Self, Error> {
        let header = Header::read(&source)?;
        let Some(region) = header.descriptor(source.size())? else {
            let reason = "there is no descriptor: the file is an extent of a disk of several files";
            return Err(Error::new(ErrorKind::ReferenceDenied, reason).at(field::DESCRIPTOR_OFFSET));
        };
        let text = safety::read_region(&source, region)?;
        let descriptor = Descriptor::of_one_file(&text).map_err(|error| error.shifted(region.offset))?;
        check_agreement(&header, &descriptor)?;
        let pages = Pages::new(u32::from_le_bytes);
        let grains = in_whole(&source, &pages, |file| Grains::open(file, header, Some(region)))?;
        Ok(Self {
            source,
            create_type: descriptor.create_type,
            grains,
            pages,
        })
    }
}

/// Asks something of a file that is the whole source.
fn in_whole<T>(source: &dyn ReadAt, pages: &Pages, ask: impl FnOnce(File<'_>) -> T) -> T {
    let bytes = &Slice::new(source, 0, source.size());
    ask(File { bytes, pages })
}

fn check_agreement(header: &Header, descriptor: &Descriptor) -> Result<(), Error> {
    if descriptor.sectors() != header.capacity_sectors {
        let reason = format!(
            "the capacity is {} sectors, the extent in the descriptor has {}",
            header.capacity_sectors,
            descriptor.sectors()
        );
        return Err(Error::corrupt(reason).at(field::CAPACITY));
    }
    if header.is_compressed() != (descriptor.create_type == CreateType::StreamOptimized) {
        let reason = format!(
            "create type {} and flag bit 16 contradict each other",
            descriptor.create_type.name()
        );
        return Err(Error::corrupt(reason).at(field::FLAGS));
    }
    Ok(())
}

impl<S: ReadAt> Blocks for Reader<S> {
    const FORMAT: Format = Format::Vmdk;

    fn source(&self) -> &dyn ReadAt {
        &self.source
    }

    fn virtual_size(&self) -> u64 {
        self.grains.header().virtual_size()
    }

    fn block_size(&self) -> NonZeroU64 {
        self.grains.grain_size()
    }

    fn variant(&self) -> &'static str {
        self.create_type.name()
    }

    fn warnings(&self) -> Vec<String> {
        let unclean = self.grains.header().unclean;
        unclean.then(|| UNCLEAN.to_owned()).into_iter().collect()
    }

    fn block(&self, index: u64) -> Result<Block, Error> {
        in_whole(&self.source, &self.pages, |file| self.grains.block(file, index))
    }
}
