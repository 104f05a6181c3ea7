//! Format 2: a blob in groups that may be compressed.
//!
//! A group is [`GROUP_LEN`] bytes of the blob, the last one what is left. It is stored as one frame of zstd (RFC 8878) if
//! that saves enough, otherwise as it is. For each group the table has:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | stored length; the highest bit is set if it is a frame |
//! | 4 | 4 | CRC32C of the stored bytes |
//!
//! A range is read by reading the groups it touches, and no other. The length of groups trades one for the other. Of
//! `/usr/lib` in a tar, the first 128 MiB, `zstd -b3 -B` stores groups of 128 KiB in 71.2 % and of 256 KiB in 70.4 %, and
//! decompresses them at 2.9 and 2.6 GB/s. So twice the length saves one byte in a hundred, and doubles what a short read
//! costs; hence the shorter ones.
//!
//! Reading a packed blob takes several times as long as a plain one whose pages are in memory, since that is hardly more
//! than a copy: the bench `compressed` tells how much. It is for blobs that are seldom read.
//!
//! The checksum is over what is stored, so that the decompressor never sees bytes that were not written by this module;
//! nevertheless all lengths are checked before they are used, and a frame that gives another length is damage.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::format::{Format, block_sum, with_footer};
use crate::blob::{BlobId, SAVED_PART_MIN};

/// Bytes of a blob in one group.
pub(super) const GROUP_LEN: u64 = 128 << 10;
/// [`GROUP_LEN`] as a length in memory.
pub(super) const GROUP: usize = 128 << 10;
/// Bytes of a group in the table.
pub(super) const ENTRY_LEN: usize = 8;
/// Bytes of the level behind the table.
pub(super) const LEVEL_LEN: usize = 4;

/// Set in the stored length of a group that is a frame.
const FRAME: u32 = 1 << 31;

const _: () = assert!(
    GROUP as u64 == GROUP_LEN && GROUP_LEN < FRAME as u64,
    "one length, below the flag"
);

/// Where a group is, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    offset: u32,
    stored_len: u32,
    kind: Kind,
    sum: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The bytes of the blob.
    Raw,
    /// A frame of zstd.
    Frame,
}

/// The groups of a file. They lie within it, one behind the other.
#[derive(Debug)]
pub(super) struct Groups {
    level: i32,
    groups: Box<[Group]>,
}

impl Groups {
    /// Reads the table of a blob of `len` bytes, whose groups take `stored_len`, or says what is wrong with it.
    pub(super) fn parse(len: u64, stored_len: u64, table: &[u8]) -> Result<Self, &'static str> {
        let (entries, level) = table.split_last_chunk::<LEVEL_LEN>().ok_or("its table is too short")?;
        let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() || entries.len() as u64 != len.div_ceil(GROUP_LEN) {
            return Err("its table has another length than its footer says");
        }
        let mut groups = Vec::with_capacity(entries.len());
        let mut offset = 0_u32;
        for ([a, b, c, d, sum @ ..], index) in entries.iter().zip(0..) {
            let group = Group::parse(
                offset,
                u32::from_le_bytes([*a, *b, *c, *d]),
                *sum,
                group_len(len, index),
            )?;
            offset = offset.checked_add(group.stored_len).ok_or("its groups are too long")?;
            groups.push(group);
        }
        if u64::from(offset) != stored_len {
            return Err("its groups do not fill its file");
        }
        Ok(Self {
            level: i32::from_le_bytes(*level),
            groups: groups.into(),
        })
    }

    /// The level that the groups were compressed at.
    pub(super) fn level(&self) -> i32 {
        self.level
    }

    /// The offset in the file, and the length, of a stored group.
    pub(super) fn stored(&self, index: usize) -> (u64, usize) {
        let group = self.group(index);
        (u64::from(group.offset), group.stored_len as usize)
    }

    fn group(&self, index: usize) -> &Group {
        self.groups.get(index).expect("the index is within the blob")
    }
}

impl Group {
    fn parse(offset: u32, word: u32, sum: [u8; 4], len: usize) -> Result<Self, &'static str> {
        let stored_len = word & !FRAME;
        let kind = if word & FRAME == 0 { Kind::Raw } else { Kind::Frame };
        let fits = match kind {
            Kind::Raw => stored_len as usize == len,
            Kind::Frame => (1..len).contains(&(stored_len as usize)),
        };
        if !fits {
            return Err("a group has another stored length than it can have");
        }
        Ok(Self {
            offset,
            stored_len,
            kind,
            sum: u32::from_le_bytes(sum),
        })
    }
}

/// The length of the group `index` of a blob of `len` bytes.
pub(super) fn group_len(len: u64, index: u64) -> usize {
    let rest = len.saturating_sub(index.saturating_mul(GROUP_LEN)).min(GROUP_LEN);
    usize::try_from(rest).unwrap_or(GROUP)
}

thread_local! {
    /// The context of zstd, 160 KiB, which costs more to make than a group to decompress. Threads that are idle for ten
    /// seconds end, and it with them.
    static CONTEXT: RefCell<Decompressor<'static>> = RefCell::default();
}

/// Writes the group `index`, from what is stored of it, into `out`, which is as long as the group; or says what is
/// wrong with it.
pub(super) fn unpack(groups: &Groups, index: usize, stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let group = groups.group(index);
    if block_sum(stored) != group.sum {
        return Err("a group does not match its checksum");
    }
    match group.kind {
        Kind::Raw if stored.len() == out.len() => out.copy_from_slice(stored),
        Kind::Raw => return Err("a group has another length than it must have"),
        Kind::Frame => decompress(stored, out)?,
    }
    Ok(())
}

fn decompress(frame: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    // The output is bounded by `out`, whatever the frame says of itself.
    match CONTEXT.with_borrow_mut(|context| context.decompress_to_buffer(frame, out)) {
        Ok(len) if len == out.len() => Ok(()),
        Ok(_) => Err("a group is shorter than it must be"),
        Err(_) => Err("a group cannot be decompressed"),
    }
}

/// Packs a blob, group by group.
pub(super) struct Packer {
    level: i32,
    compressor: Compressor<'static>,
    /// Room for one frame.
    frame: Vec<u8>,
    /// Room to decompress it again.
    check: Vec<u8>,
    len: u64,
    stored_len: u64,
    table: Vec<u8>,
}

impl Packer {
    /// At a level that was checked.
    pub(super) fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            level,
            compressor: Compressor::new(level)?,
            frame: Vec::with_capacity(zstd::zstd_safe::compress_bound(GROUP)),
            check: vec![0; GROUP],
            len: 0,
            stored_len: 0,
            table: Vec::new(),
        })
    }

    /// What is to be stored of the next group: all groups but the last are [`GROUP`] bytes.
    pub(super) fn pack<'a>(&'a mut self, group: &'a [u8]) -> std::io::Result<&'a [u8]> {
        self.frame.clear();
        self.compressor.compress_to_buffer(group, &mut self.frame)?;
        let saved = group.len().saturating_sub(self.frame.len()) as u64;
        let (stored, flag) = if saved * SAVED_PART_MIN >= group.len() as u64 && self.gives_back(group) {
            (&self.frame[..], FRAME)
        } else {
            (group, 0)
        };
        let stored_len = u32::try_from(stored.len()).expect("a stored group is at most GROUP_LEN");
        self.table.extend_from_slice(&(stored_len | flag).to_le_bytes());
        self.table.extend_from_slice(&block_sum(stored).to_le_bytes());
        self.len += group.len() as u64;
        self.stored_len += u64::from(stored_len);
        Ok(stored)
    }

    /// Whether the frame decompresses to `group`. The plain form is given up for it, so this is looked at rather than
    /// believed; it costs little beside compressing.
    fn gives_back(&mut self, group: &[u8]) -> bool {
        self.check.resize(group.len(), 0);
        decompress(&self.frame, &mut self.check).is_ok() && self.check == group
    }

    /// Bytes of the groups so far.
    pub(super) fn stored_len(&self) -> u64 {
        self.stored_len
    }

    /// What stands behind the groups.
    pub(super) fn finish(mut self, id: BlobId) -> Vec<u8> {
        self.table.extend_from_slice(&self.level.to_le_bytes());
        with_footer(id, Format::Packed, self.len, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::format::FOOTER_LEN, *};
    use crate::{blob::fs::format::Footer, schema::LayoutId};

    const ID: BlobId = BlobId {
        owner: LayoutId([7; 16]),
        index: 9,
    };

    /// A group that compresses, one that does not, and a short one.
    fn content() -> Vec<u8> {
        let mut content = b"all work and no play ".repeat(GROUP / 21 + 1);
        content.truncate(GROUP);
        content.extend(noise(GROUP));
        content.extend([5; 1000]);
        content
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect()
    }

    fn pack(content: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut packer = Packer::new(3).unwrap();
        let mut stored = Vec::new();
        for group in content.chunks(GROUP) {
            stored.extend_from_slice(packer.pack(group).unwrap());
        }
        assert_eq!(packer.stored_len(), stored.len() as u64);
        (stored, packer.finish(ID))
    }

    fn parse(content: &[u8], stored: &[u8], trailer: &[u8]) -> Result<Groups, &'static str> {
        let file_len = (stored.len() + trailer.len()) as u64;
        let footer = Footer::parse(*trailer.last_chunk().unwrap(), file_len)?;
        let table = &trailer[..trailer.len() - FOOTER_LEN];
        footer.verify(ID, table)?;
        assert_eq!((footer.len, footer.format), (content.len() as u64, Format::Packed));
        Groups::parse(footer.len, footer.table_offset, table)
    }

    #[test]
    fn groups_are_given_back() {
        for len in [0, 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 2 * GROUP + 1000] {
            let content = &content()[..len];
            let (stored, trailer) = pack(content);
            let groups = parse(content, &stored, &trailer).unwrap();
            assert_eq!(groups.level(), 3);
            let mut unpacked = Vec::new();
            for index in 0..len.div_ceil(GROUP) {
                let (offset, stored_len) = groups.stored(index);
                let offset = usize::try_from(offset).unwrap();
                let mut out = vec![0; group_len(len as u64, index as u64)];
                unpack(&groups, index, &stored[offset..offset + stored_len], &mut out).unwrap();
                unpacked.extend(out);
            }
            assert!(unpacked == content, "{len} bytes");
        }
    }

    #[test]
    fn group_that_does_not_compress_is_stored_as_it_is() {
        let content = content();
        let (stored, trailer) = pack(&content);
        let groups = parse(&content, &stored, &trailer).unwrap();
        let kinds: Vec<_> = groups.groups.iter().map(|group| group.kind).collect();
        assert_eq!(kinds, [Kind::Frame, Kind::Raw, Kind::Frame]);
        assert_eq!(groups.stored(1).1, GROUP);
        assert!(stored.len() < GROUP + 1000);
    }

    #[test]
    fn flipped_bit_of_a_trailer_is_found() {
        let content = content();
        let (stored, trailer) = pack(&content);
        for index in 0..trailer.len() {
            for bit in 0..8 {
                let mut damaged = trailer.clone();
                damaged[index] ^= 1 << bit;
                let parsed = parse(&content, &stored, &damaged);
                assert!(parsed.is_err(), "bit {bit} of byte {index}");
            }
        }
    }

    #[test]
    fn table_that_lies_is_refused() {
        let entry = |len: u32| [len.to_le_bytes(), [0; 4]].concat();
        let table = |entries: &[u32]| [entries.iter().flat_map(|len| entry(*len)).collect(), vec![3, 0, 0, 0]].concat();
        let group = u32::try_from(GROUP).unwrap();
        let len = GROUP_LEN + 10;
        for (entries, stored_len) in [
            (&[group, 10][..], len),
            (&[FRAME | 5, 10], 15),
            (&[FRAME | (group - 1), FRAME | 9], len - 2),
        ] {
            assert!(Groups::parse(len, stored_len, &table(entries)).is_ok(), "{entries:x?}");
        }
        for (entries, stored_len, why) in [
            (&[group, 10][..], len + 1, "a gap"),
            (&[group, 10], len - 1, "an overlap"),
            (&[group], GROUP_LEN, "too few"),
            (&[group, 10, 0], len, "too many"),
            (&[group - 1, 10], len - 1, "short and raw"),
            (&[group, 11], len + 1, "long and raw"),
            (&[FRAME, 10], 10, "an empty frame"),
            (&[FRAME | group, 10], len, "a frame that saves nothing"),
            (&[u32::MAX, 10], len, "the longest frame"),
            (&[group, FRAME | 0xa], len, "a last frame that saves nothing"),
        ] {
            assert!(Groups::parse(len, stored_len, &table(entries)).is_err(), "{why}");
        }
        let mut ragged = table(&[group, 10]);
        ragged.push(0);
        assert!(Groups::parse(len, len, &ragged).is_err());
        assert!(Groups::parse(len, len, &[]).is_err());
    }

    #[test]
    fn frame_of_another_length_is_damage() {
        let group = vec![1; 1000];
        for (frame_of, why) in [(999, "shorter"), (1001, "longer"), (1 << 26, "a bomb"), (0, "empty")] {
            let frame = zstd::bulk::compress(&vec![1; frame_of], 3).unwrap();
            let word = FRAME | u32::try_from(frame.len()).unwrap();
            let sum = block_sum(&frame);
            let groups = Groups {
                level: 3,
                groups: [Group {
                    offset: 0,
                    stored_len: word & !FRAME,
                    kind: Kind::Frame,
                    sum,
                }]
                .into(),
            };
            let mut out = vec![0; group.len()];
            let unpacked = unpack(&groups, 0, &frame, &mut out);
            assert!(unpacked.is_err(), "{why}");
        }
    }
}
