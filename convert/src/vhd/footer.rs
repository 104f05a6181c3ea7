//! The footer: what a disk is, how large, and who made it.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | cookie `conectix` |
//! | 8 | 4 | features |
//! | 12 | 4 | file format version |
//! | 16 | 8 | data offset: the dynamic header, all ones for a fixed disk |
//! | 24 | 4 | time stamp, in seconds since 2000 |
//! | 28 | 4 | creator application |
//! | 32 | 4 | creator version |
//! | 36 | 4 | creator host |
//! | 40 | 8 | original size |
//! | 48 | 8 | current size |
//! | 56 | 4 | disk geometry: cylinders (2 bytes), heads, sectors per track |
//! | 60 | 4 | disk type |
//! | 64 | 4 | checksum |
//! | 68 | 16 | unique id |
//! | 84 | 1 | saved state |
//! | 85 | 427 | reserved |
//!
//! # How large the disk is
//!
//! Virtual PC went by the geometry, which is coarser than sectors and ends at 127 GiB; everything since goes by the current
//! size. Which is meant shows in the creator, as in QEMU: `win ` (Hyper-V), `d2v ` (Disk2vhd), `tap\0` and `CTXS` (Xen),
//! `wa\0\0` (Azure) and `qem2` (QEMU with `force_size=on`) mean the current size, all others the geometry,
//! unless that is the largest there is, which stands for any size beyond.
//!
//! What is written here has the creator `qem2` and the largest geometry: the disk keeps its size to the sector, whoever reads
//! it.
//!
//! Format: VHD specification, "Hard Disk Footer Format".

use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u8, be_u16, be_u32, be_u64};
use nom::{IResult, Parser};

use super::{SECTOR_SIZE, check_sum, checksum};
use crate::{Error, ErrorKind};

pub(crate) const FOOTER_LEN: u64 = 512;
const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
/// Bit 1 of the features is reserved and always set.
const FEATURES: u32 = 2;
/// The data offset of a fixed disk.
pub(super) const NO_DATA_OFFSET: u64 = u64::MAX;
/// Creators whose disks are as large as their current size says.
const CREATORS_BY_CURRENT_SIZE: [&[u8; 4]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];
const CREATOR: &[u8; 4] = b"qem2";
/// As QEMU writes it.
const CREATOR_VERSION: u32 = 0x0005_0003;
/// Windows; the specification knows no other host but the Macintosh.
const CREATOR_HOST: &[u8; 4] = b"Wi2k";

/// Where fields stand in the footer, for errors.
pub(super) mod field {
    pub(crate) const VERSION: u64 = 12;
    pub(crate) const DATA_OFFSET: u64 = 16;
    pub(crate) const CURRENT_SIZE: u64 = 48;
    pub(crate) const DISK_TYPE: u64 = 60;
    pub(crate) const CHECKSUM: u64 = 64;
}

/// What sort of disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

/// Cylinders, heads, and sectors per track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) track_sectors: u8,
}

impl Geometry {
    /// The largest there is, which leaves the size to the current size.
    const MAX: Self = Self {
        cylinders: 65535,
        heads: 16,
        track_sectors: 255,
    };

    pub(super) fn sectors(self) -> u64 {
        let track = u64::from(self.heads).saturating_mul(u64::from(self.track_sectors));
        track.saturating_mul(u64::from(self.cylinders))
    }
}

/// A footer, without the fields that mean nothing to a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) data_offset: u64,
    pub(super) creator: [u8; 4],
    /// In bytes.
    pub(super) current_size: u64,
    pub(super) geometry: Geometry,
    pub(super) disk_type: DiskType,
    pub(super) unique_id: [u8; 16],
    pub(super) saved_state: bool,
}

impl Footer {
    /// The footer of a new disk; `virtual_size` is a multiple of the sector size.
    pub(super) fn new(disk_type: DiskType, virtual_size: u64, unique_id: [u8; 16]) -> Self {
        Self {
            data_offset: match disk_type {
                DiskType::Fixed => NO_DATA_OFFSET,
                DiskType::Dynamic | DiskType::Differencing => FOOTER_LEN,
            },
            creator: *CREATOR,
            current_size: virtual_size,
            geometry: Geometry::MAX,
            disk_type,
            unique_id,
            saved_state: false,
        }
    }

    /// Parses the 512 bytes of a footer. Places in errors count from its start.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (_, raw) = parse(bytes).map_err(|error| match error {
            nom::Err::Error(error) if error.code == nom::error::ErrorKind::Tag => {
                Error::new(ErrorKind::NotThisFormat, "the cookie is missing").at(0)
            }
            _ => Error::corrupt("the file ends inside of the footer"),
        })?;
        let place = usize::try_from(field::CHECKSUM).unwrap_or_default();
        check_sum("footer", bytes, place, raw.checksum).map_err(|error| error.at(field::CHECKSUM))?;
        if raw.version != VERSION {
            let reason = format!(
                "file format version {:#010x}, only {VERSION:#010x} is known",
                raw.version
            );
            return Err(Error::unsupported(reason).at(field::VERSION));
        }
        let disk_type = match raw.disk_type {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                let reason = format!("disk type {other}, only 2 (fixed), 3 (dynamic) and 4 (differencing) are known");
                return Err(Error::unsupported(reason).at(field::DISK_TYPE));
            }
        };
        Ok(Self {
            disk_type,
            ..raw.footer
        })
    }

    pub(super) fn render(&self) -> Vec<u8> {
        let mut bytes = COOKIE.to_vec();
        bytes.extend(FEATURES.to_be_bytes());
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(self.data_offset.to_be_bytes());
        // No clock is known here: the beginning of the year 2000.
        bytes.extend([0; 4]);
        bytes.extend(self.creator);
        bytes.extend(CREATOR_VERSION.to_be_bytes());
        bytes.extend(CREATOR_HOST);
        bytes.extend(self.current_size.to_be_bytes());
        bytes.extend(self.current_size.to_be_bytes());
        bytes.extend(self.geometry.cylinders.to_be_bytes());
        bytes.extend([self.geometry.heads, self.geometry.track_sectors]);
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        bytes.extend(disk_type.to_be_bytes());
        let mut rest = self.unique_id.to_vec();
        rest.push(u8::from(self.saved_state));
        rest.resize(444, 0);
        let without_sum = [&bytes[..], &[0; 4], &rest].concat();
        bytes.extend(checksum(&without_sum, bytes.len()).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// The size of the guest's disk in bytes, by the rule of its creator.
    pub(super) fn virtual_size(&self) -> u64 {
        let is_largest = self.geometry.sectors() == Geometry::MAX.sectors();
        if CREATORS_BY_CURRENT_SIZE.contains(&&self.creator) || is_largest {
            // As QEMU does, and as all who count in sectors have to, a part of a sector is left out.
            self.current_size.saturating_sub(self.current_size % SECTOR_SIZE)
        } else {
            self.geometry.sectors().saturating_mul(SECTOR_SIZE)
        }
    }
}

/// Fields as they stand in the file, some not yet judged.
struct Raw {
    version: u32,
    disk_type: u32,
    checksum: u32,
    footer: Footer,
}

fn parse(input: &[u8]) -> IResult<&[u8], Raw> {
    let (input, (_, _features, version, data_offset)) = (tag(&COOKIE[..]), be_u32, be_u32, be_u64).parse(input)?;
    let (input, (_time_stamp, creator, _creator_version, _creator_host)) =
        (be_u32, be_u32, be_u32, be_u32).parse(input)?;
    let (input, (_original_size, current_size)) = (be_u64, be_u64).parse(input)?;
    let (input, (cylinders, heads, track_sectors)) = (be_u16, be_u8, be_u8).parse(input)?;
    let (input, (disk_type, checksum, unique_id)) = (be_u32, be_u32, take(16_usize)).parse(input)?;
    let (input, (saved_state, _reserved)) = (be_u8, take(427_usize)).parse(input)?;
    let footer = Footer {
        data_offset,
        creator: creator.to_be_bytes(),
        current_size,
        geometry: Geometry {
            cylinders,
            heads,
            track_sectors,
        },
        disk_type: DiskType::Fixed,
        unique_id: unique_id.first_chunk().copied().unwrap_or_default(),
        saved_state: saved_state != 0,
    };
    Ok((
        input,
        Raw {
            version,
            disk_type,
            checksum,
            footer,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn creators_say_whether_size_or_geometry_counts() {
        let geometry = Geometry {
            cylinders: 301,
            heads: 4,
            track_sectors: 17,
        };
        for (creator, by_current_size) in [
            (b"win ", true),
            (b"qem2", true),
            (b"d2v ", true),
            (b"tap\0", true),
            (b"CTXS", true),
            (b"wa\0\0", true),
            (b"qemu", false),
            (b"vpc ", false),
            (b"vs  ", false),
            (b"vbox", false),
        ] {
            let mut footer = Footer::new(DiskType::Fixed, 10 << 20, [0; 16]);
            footer.creator = *creator;
            footer.geometry = geometry;
            let expected = if by_current_size { 10 << 20 } else { 301 * 4 * 17 * 512 };
            assert_eq!(footer.virtual_size(), expected, "{creator:?}");
            footer.geometry = Geometry::MAX;
            assert_eq!(footer.virtual_size(), 10 << 20, "{creator:?} at the largest geometry");
            footer.geometry = Geometry {
                heads: 255,
                track_sectors: 16,
                ..Geometry::MAX
            };
            assert_eq!(footer.virtual_size(), 10 << 20, "{creator:?} at as many sectors");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = Footer::new(DiskType::Dynamic, 1 << 30, [7; 16]).render();
        assert_eq!(good.len(), 512);
        let spoilt = |place: usize, value: u8, mend: bool| {
            let mut bytes = good.clone();
            bytes[place] = value;
            if mend {
                let sum = checksum(&bytes, 64);
                bytes[64..68].copy_from_slice(&sum.to_be_bytes());
            }
            Footer::parse(&bytes).unwrap_err()
        };
        assert!(
            spoilt(100, 1, false)
                .to_string()
                .contains("at byte 64: footer checksum")
        );
        assert_eq!(spoilt(0, b'k', true).kind(), ErrorKind::NotThisFormat);
        assert_eq!(spoilt(13, 2, true).offset(), Some(12));
        assert_eq!(spoilt(63, 5, true).offset(), Some(60));
        assert_eq!(Footer::parse(&good[..511]).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn render_then_parse_gives_it_back(sectors in 0..0xff00_0000_u64, id in any::<[u8; 16]>(), saved_state: bool, kind in 0..3_usize) {
            let disk_type = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing][kind];
            let footer = Footer { saved_state, ..Footer::new(disk_type, sectors * 512, id) };
            prop_assert_eq!(Footer::parse(&footer.render()).unwrap(), footer.clone());
            prop_assert_eq!(footer.virtual_size(), sectors * 512);
        }
    }
}
