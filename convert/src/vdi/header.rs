//! The header: what an image is, how large, and where its blocks are.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 64 | text for people |
//! | 64 | 4 | signature |
//! | 68 | 4 | version |
//! | 72 | 4 | header size |
//! | 76 | 4 | image type |
//! | 80 | 4 | image flags |
//! | 84 | 256 | description |
//! | 340 | 4 | block map offset |
//! | 344 | 4 | data offset |
//! | 348 | 12 | legacy geometry: cylinders, heads, sectors |
//! | 360 | 4 | sector size |
//! | 364 | 4 | unused |
//! | 368 | 8 | disk size |
//! | 376 | 4 | block size |
//! | 380 | 4 | block extra data |
//! | 384 | 4 | blocks in image |
//! | 388 | 4 | blocks allocated |
//! | 392 | 16 | UUID of the image |
//! | 408 | 16 | UUID of its last snapshot |
//! | 424 | 16 | UUID of the image before it |
//! | 440 | 16 | UUID of its parent |

use nom::bytes::complete::{tag, take};
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::{BLOCK_LEN, BLOCK_SIZE, SECTOR_SIZE};
use crate::safety::{self, Region};
use crate::{Error, ErrorKind};

/// The sector that the header is in.
pub(super) const HEADER_LEN: u64 = 512;
const TEXT: &[u8] = b"<<< Lithos Disk Image >>>\n";
pub(super) const SIGNATURE: &[u8; 4] = &[0x7f, 0x10, 0xda, 0xbe];
const VERSION: u32 = 0x0001_0001;
/// Counted from the field itself, up to the UUIDs and without a modern geometry, as QEMU writes it.
const HEADER_SIZE: u32 = 0x180;

/// Where fields stand, for errors.
pub(super) mod field {
    pub(crate) const SIGNATURE: u64 = 64;
    pub(crate) const VERSION: u64 = 68;
    pub(crate) const IMAGE_TYPE: u64 = 76;
    pub(crate) const MAP_OFFSET: u64 = 340;
    pub(crate) const DATA_OFFSET: u64 = 344;
    pub(crate) const SECTOR_SIZE: u64 = 360;
    pub(crate) const DISK_SIZE: u64 = 368;
    pub(crate) const BLOCK_SIZE: u64 = 376;
    pub(crate) const BLOCK_EXTRA: u64 = 380;
    pub(crate) const BLOCKS_IN_IMAGE: u64 = 384;
    pub(crate) const UUID_LINK: u64 = 424;
    pub(crate) const UUID_PARENT: u64 = 440;
}

/// The image types that stand alone.
pub(super) const TYPE_DYNAMIC: u32 = 1;
pub(super) const TYPE_FIXED: u32 = 2;

/// The fields that mean something, as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) image_type: u32,
    pub(super) map_offset: u32,
    pub(super) data_offset: u32,
    pub(super) sector_size: u32,
    /// In bytes.
    pub(super) disk_size: u64,
    pub(super) block_size: u32,
    pub(super) block_extra: u32,
    pub(super) blocks_in_image: u32,
    pub(super) blocks_allocated: u32,
    pub(super) uuid_image: [u8; 16],
    pub(super) uuid_last_snapshot: [u8; 16],
    pub(super) uuid_link: [u8; 16],
    pub(super) uuid_parent: [u8; 16],
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (_, header) = parse(bytes).map_err(|error| match error {
            nom::Err::Error(error) if error.code == nom::error::ErrorKind::Tag => {
                Error::new(ErrorKind::NotThisFormat, "the signature is missing").at(field::SIGNATURE)
            }
            _ => Error::corrupt("the file ends inside of the header").at(bytes.len() as u64),
        })?;
        Ok(header)
    }

    pub(super) fn new(image_type: u32, disk_size: u64, blocks: u32, data_offset: u32) -> Self {
        Self {
            version: VERSION,
            image_type,
            map_offset: u32::try_from(HEADER_LEN).expect("a sector"),
            data_offset,
            sector_size: u32::try_from(SECTOR_SIZE).expect("a sector"),
            disk_size,
            block_size: BLOCK_LEN,
            block_extra: 0,
            blocks_in_image: blocks,
            blocks_allocated: blocks,
            uuid_image: [0; 16],
            uuid_last_snapshot: [0; 16],
            uuid_link: [0; 16],
            uuid_parent: [0; 16],
        }
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = TEXT.to_vec();
        bytes.resize(64, 0);
        bytes.extend(SIGNATURE);
        for number in [self.version, HEADER_SIZE, self.image_type, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(340, 0);
        for number in [self.map_offset, self.data_offset, 0, 0, 0, self.sector_size, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.disk_size.to_le_bytes());
        for number in [
            self.block_size,
            self.block_extra,
            self.blocks_in_image,
            self.blocks_allocated,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        for uuid in [
            self.uuid_image,
            self.uuid_last_snapshot,
            self.uuid_link,
            self.uuid_parent,
        ] {
            bytes.extend(uuid);
        }
        bytes.resize(512, 0);
        bytes
    }

    /// The size of the guest's disk in bytes: in whole sectors, as QEMU rounds it.
    pub(super) fn virtual_size(&self) -> u64 {
        // A disk within the bound is far from the end of the numbers.
        self.disk_size.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(u64::MAX)
    }

    /// Refuses what cannot be read, or should not be.
    pub(super) fn check(&self) -> Result<(), Error> {
        let known = [
            ("version", field::VERSION, self.version, VERSION),
            ("sector size", field::SECTOR_SIZE, self.sector_size, 512),
            ("block size", field::BLOCK_SIZE, self.block_size, BLOCK_LEN),
            ("block extra data", field::BLOCK_EXTRA, self.block_extra, 0),
        ];
        for (name, place, found, known) in known {
            if found != known {
                let reason = format!("{name} {found:#x}, only {known:#x} is known");
                return Err(Error::unsupported(reason).at(place));
            }
        }
        self.check_references()?;
        safety::virtual_size(self.virtual_size()).map_err(|error| error.at(field::DISK_SIZE))?;
        let room = u64::from(self.blocks_in_image).saturating_mul(BLOCK_SIZE.get());
        if self.disk_size > room {
            let reason = format!(
                "{} blocks in image have no room for disk size {}",
                self.blocks_in_image, self.disk_size
            );
            return Err(Error::corrupt(reason).at(field::BLOCKS_IN_IMAGE));
        }
        Ok(())
    }

    fn check_references(&self) -> Result<(), Error> {
        let denied = |reason: &str, place| Err(Error::new(ErrorKind::ReferenceDenied, reason).at(place));
        match self.image_type {
            TYPE_DYNAMIC | TYPE_FIXED => {}
            3 => return denied("the image is an undo image and needs its parent", field::IMAGE_TYPE),
            4 => return denied("the image is differencing and needs its parent", field::IMAGE_TYPE),
            other => {
                let reason = format!("image type {other}, only 1 (dynamic) and 2 (fixed) are known");
                return Err(Error::unsupported(reason).at(field::IMAGE_TYPE));
            }
        }
        if self.uuid_link != [0; 16] {
            return denied("the image is linked to another one (link UUID)", field::UUID_LINK);
        }
        if self.uuid_parent != [0; 16] {
            return denied("the image has a parent (parent UUID)", field::UUID_PARENT);
        }
        Ok(())
    }

    /// The block map: an entry for each block that the disk needs. What is listed beyond means nothing.
    pub(super) fn map(&self, file_size: u64) -> Result<Region, Error> {
        let header = Region {
            name: "header",
            offset: 0,
            len: HEADER_LEN,
        };
        let map = Region {
            name: "block map",
            offset: u64::from(self.map_offset),
            len: self.virtual_size().div_ceil(BLOCK_SIZE.get()).saturating_mul(4),
        };
        map.aligned(SECTOR_SIZE)
            .and_then(|map| map.inside(file_size))
            .and_then(|map| map.keeps_off(&[header]))
            .map_err(|error| error.at(field::MAP_OFFSET))?;
        let data = Region {
            name: "data",
            offset: u64::from(self.data_offset),
            len: 1,
        };
        data.aligned(SECTOR_SIZE)
            .and_then(|data| data.keeps_off(&[header, map]))
            .map_err(|error| error.at(field::DATA_OFFSET))?;
        Ok(map)
    }
}

fn parse(input: &[u8]) -> IResult<&[u8], Header> {
    let (input, (_text, _)) = (take(64_usize), tag(&SIGNATURE[..])).parse(input)?;
    let (input, (version, _header_size, image_type, _flags)) = (le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let (input, (_description, map_offset, data_offset)) = (take(256_usize), le_u32, le_u32).parse(input)?;
    let (input, (_geometry, sector_size, _unused, disk_size)) =
        (take(12_usize), le_u32, le_u32, le_u64).parse(input)?;
    let (input, (block_size, block_extra, blocks_in_image, blocks_allocated)) =
        (le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let (input, (uuid_image, uuid_last_snapshot, uuid_link, uuid_parent)) = (uuid, uuid, uuid, uuid).parse(input)?;
    let header = Header {
        version,
        image_type,
        map_offset,
        data_offset,
        sector_size,
        disk_size,
        block_size,
        block_extra,
        blocks_in_image,
        blocks_allocated,
        uuid_image,
        uuid_last_snapshot,
        uuid_link,
        uuid_parent,
    };
    Ok((input, header))
}

fn uuid(input: &[u8]) -> IResult<&[u8], [u8; 16]> {
    let (input, bytes) = take(16_usize).parse(input)?;
    Ok((input, bytes.first_chunk().copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn render_then_parse_gives_it_back(disk_size: u64, blocks: u32, data_offset: u32, uuid: [u8; 16]) {
            let header = Header { uuid_image: uuid, uuid_link: uuid, ..Header::new(TYPE_FIXED, disk_size, blocks, data_offset) };
            let bytes = header.render();
            prop_assert_eq!(bytes.len(), 512);
            prop_assert_eq!(Header::parse(&bytes).unwrap(), header);
        }
    }

    #[test]
    fn short_and_foreign_headers_are_told_apart() {
        let good = Header::new(TYPE_DYNAMIC, 1 << 20, 1, 1 << 20).render();
        assert_eq!(Header::parse(&good[..400]).unwrap_err().kind(), ErrorKind::Corrupt);
        let mut foreign = good;
        foreign[64] = 0;
        assert_eq!(Header::parse(&foreign).unwrap_err().kind(), ErrorKind::NotThisFormat);
    }
}
