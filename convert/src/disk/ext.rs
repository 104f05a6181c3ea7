//! Reading a file of an ext2, ext3 or ext4 file system.
//!
//! Only what a small text file takes: one group descriptor, inodes, folders read from their first entry to their last (the
//! nodes of a hashed folder read as empty entries), symbolic links, and blocks found by extents or by lists of blocks. The
//! journal is not replayed, and checksums are not looked at: what comes out is a guess for people.
//!
//! There are libraries for it; those that we know read all group descriptors and the journal first, in memory that grows with
//! what the superblock claims.
//!
//! Format: Linux kernel documentation, "ext4 Data Structures and Algorithms".

use super::filesystem::FileSystemKind;
use super::look::{Fields, View};
use crate::Error;

const ROOT_INODE: u32 = 2;
/// Incompatible features: how group descriptors and files are laid out.
const INCOMPATIBLE_META_BG: u32 = 0x10;
const INCOMPATIBLE_64BIT: u32 = 0x80;
/// What came with ext4: extents, 64 bit, multiple mount protection, flexible groups, and all after.
const INCOMPATIBLE_EXT4: u32 = 0xffff_ffc0;
/// Huge files, group descriptor checksums, many links, large inodes, and all after.
const READ_ONLY_EXT4: u32 = 0xffff_fff8;
const COMPATIBLE_JOURNAL: u32 = 4;
const INODE_EXTENTS: u32 = 0x8_0000;
const INODE_INLINE_DATA: u32 = 0x1000_0000;
const INODE_ENCRYPTED: u32 = 0x800;
/// The place in an inode for extents, block numbers, or the target of a short link.
const INODE_BLOCKS: usize = 40;
const INODE_BLOCKS_LEN: usize = 60;
const EXTENT_MAGIC: u16 = 0xf30a;
/// An extent that is longer than this is allocated, but was never written.
const EXTENT_LEN_MAX: u32 = 32768;
/// A target is shorter than a path may be.
const LINK_LEN_MAX: u64 = 4096;

/// The superblock, whose block size and revision make sense.
pub(super) struct Superblock {
    pub(super) fields: Fields,
}

impl Superblock {
    /// Two bytes of magic are few, so the block size and the revision have to make sense as well.
    pub(super) fn read(view: View<'_>) -> Result<Option<Self>, Error> {
        let fields = view.read_if_there(1024, 1024)?;
        let good = |fields: &Fields| fields.has(56, &[0x53, 0xef]) && fields.u32(24) <= 6 && fields.u32(76) <= 1;
        Ok(fields.filter(good).map(|fields| Self { fields }))
    }

    pub(super) fn kind(&self) -> FileSystemKind {
        let [compatible, incompatible, read_only] = [92, 96, 100].map(|place| self.fields.u32(place));
        if incompatible & INCOMPATIBLE_EXT4 != 0 || read_only & READ_ONLY_EXT4 != 0 {
            FileSystemKind::Ext4
        } else if compatible & COMPATIBLE_JOURNAL != 0 {
            FileSystemKind::Ext3
        } else {
            FileSystemKind::Ext2
        }
    }
}

/// A file system that files can be read from.
pub(super) struct Ext<'a> {
    view: View<'a>,
    block_size: u64,
    /// Where the group descriptors start, in bytes.
    descriptors: u64,
    descriptor_len: u64,
    inode_len: u64,
    inodes_per_group: u32,
    is_64bit: bool,
}

impl<'a> Ext<'a> {
    pub(super) fn open(view: View<'a>) -> Result<Self, Error> {
        let superblock = Superblock::read(view)?.ok_or_else(|| Error::corrupt("the superblock of ext is gone"))?;
        let fields = superblock.fields;
        let incompatible = fields.u32(96);
        if incompatible & INCOMPATIBLE_META_BG != 0 {
            return Err(Error::unsupported("ext4 with meta block groups is not looked into"));
        }
        let block_size = 1024_u64.checked_shl(fields.u32(24)).unwrap_or(1024);
        let is_64bit = incompatible & INCOMPATIBLE_64BIT != 0;
        let inode_len = if fields.u32(76) == 0 {
            128
        } else {
            u64::from(fields.u16(88))
        };
        let descriptor_len = if is_64bit { u64::from(fields.u16(254)) } else { 32 };
        let inodes_per_group = fields.u32(40);
        if inodes_per_group == 0 || !(128..=block_size).contains(&inode_len) {
            return Err(Error::corrupt(format!(
                "ext with {inodes_per_group} inodes of {inode_len} bytes in a group"
            )));
        }
        if !(32..=1024).contains(&descriptor_len) {
            return Err(Error::corrupt(format!(
                "ext with group descriptors of {descriptor_len} bytes"
            )));
        }
        let first_block = u64::from(fields.u32(20)).saturating_add(1);
        Ok(Self {
            view,
            block_size,
            descriptors: first_block.saturating_mul(block_size),
            descriptor_len,
            inode_len,
            inodes_per_group,
            is_64bit,
        })
    }

    /// The start of the file at `path`, whose links are followed; none if there is no such file.
    pub(super) fn read_file(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(inode) = self.find(path)? else { return Ok(None) };
        if !inode.is_file() {
            return Ok(None);
        }
        let len = inode.size().min(self.view.limits().text_bytes);
        self.content(&inode, len).map(Some)
    }

    /// The inode at an absolute path, after following links.
    fn find(&self, path: &str) -> Result<Option<Inode>, Error> {
        let mut names = names_of(path);
        let mut folders = vec![self.inode(ROOT_INODE)?];
        let mut links: u32 = 0;
        while let Some(name) = names.pop() {
            self.view.step()?;
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    folders.truncate(folders.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some(folder) = folders.last().filter(|inode| inode.is_folder()) else {
                return Ok(None);
            };
            let Some(number) = self.entry(folder, &name)? else {
                return Ok(None);
            };
            let inode = self.inode(number)?;
            if !inode.is_link() {
                folders.push(inode);
                continue;
            }
            links = links.saturating_add(1);
            if links > self.view.limits().nesting {
                return Err(Error::corrupt("ext with links that lead to links for ever"));
            }
            let target = self.target(&inode)?;
            if target.starts_with(b"/") {
                folders.truncate(1);
            }
            names.extend(names_of_bytes(&target));
        }
        Ok(folders.pop())
    }

    /// What a symbolic link says.
    fn target(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let size = inode.size().min(LINK_LEN_MAX);
        let short = usize::try_from(size).unwrap_or(usize::MAX);
        if short < INODE_BLOCKS_LEN && !inode.has(INODE_EXTENTS) {
            return Ok(inode.fields.bytes(INODE_BLOCKS, short).to_vec());
        }
        self.content(inode, size)
    }

    /// Looks for a name in a folder, from its first entry to its last.
    fn entry(&self, folder: &Inode, name: &[u8]) -> Result<Option<u32>, Error> {
        let blocks = folder.size().div_ceil(self.block_size);
        for index in 0..blocks {
            self.view.step()?;
            let block = self.block(folder, index)?;
            let Some(block) = block else { continue };
            if let Some(number) = self.entry_in(&block, name)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn entry_in(&self, block: &Fields, name: &[u8]) -> Result<Option<u32>, Error> {
        let mut place: usize = 0;
        while place < block.0.len() {
            self.view.step()?;
            let at = |offset: usize| place.saturating_add(offset);
            let (number, len, name_len) = (block.u32(place), usize::from(block.u16(at(4))), block.u8(at(6)));
            if len < 8 || !len.is_multiple_of(4) {
                // A block of 64 KiB that is one entry: its length does not fit the field.
                return Ok(None);
            }
            if number != 0 && block.bytes(at(8), usize::from(name_len)) == name {
                return Ok(Some(number));
            }
            place = at(len);
        }
        Ok(None)
    }

    fn inode(&self, number: u32) -> Result<Inode, Error> {
        let index = number
            .checked_sub(1)
            .ok_or_else(|| Error::corrupt("ext with a folder entry of inode 0"))?;
        let group = u64::from(index.checked_div(self.inodes_per_group).unwrap_or_default());
        let within = u64::from(index.checked_rem(self.inodes_per_group).unwrap_or_default());
        let place = group
            .saturating_mul(self.descriptor_len)
            .saturating_add(self.descriptors);
        let descriptor = self.view.read(place, self.descriptor_len)?;
        let high = if self.is_64bit { descriptor.u32(0x28) } else { 0 };
        let table = u64::from(high) << 32 | u64::from(descriptor.u32(8));
        let place = table
            .saturating_mul(self.block_size)
            .saturating_add(within.saturating_mul(self.inode_len));
        let fields = self.view.read(place, self.inode_len)?;
        Ok(Inode { fields })
    }

    /// The first `len` bytes of a file.
    fn content(&self, inode: &Inode, len: u64) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        for index in 0..len.div_ceil(self.block_size) {
            match self.block(inode, index)? {
                Some(block) => content.extend(block.0),
                None => content.resize(
                    content
                        .len()
                        .saturating_add(usize::try_from(self.block_size).unwrap_or_default()),
                    0,
                ),
            }
        }
        content.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(content)
    }

    /// Block `index` of a file, if it is not a hole.
    fn block(&self, inode: &Inode, index: u64) -> Result<Option<Fields>, Error> {
        if inode.has(INODE_INLINE_DATA) {
            return Err(Error::unsupported("ext4 with data in inodes is not looked into"));
        }
        if inode.has(INODE_ENCRYPTED) {
            return Err(Error::unsupported("ext4 with encrypted files is not looked into"));
        }
        let number = if inode.has(INODE_EXTENTS) {
            self.by_extents(inode, index)?
        } else {
            self.by_list(inode, index)?
        };
        if number == 0 {
            return Ok(None);
        }
        self.read_block(number).map(Some)
    }

    fn read_block(&self, number: u64) -> Result<Fields, Error> {
        self.view.read(number.saturating_mul(self.block_size), self.block_size)
    }

    /// Goes down a tree of extents; 0 is a hole.
    fn by_extents(&self, inode: &Inode, index: u64) -> Result<u64, Error> {
        let mut node = Fields(inode.fields.bytes(INODE_BLOCKS, INODE_BLOCKS_LEN).to_vec());
        let mut depth_max = u64::from(self.view.limits().nesting);
        loop {
            self.view.step()?;
            let (magic, count, depth) = (node.u16(0), node.u16(2), u64::from(node.u16(6)));
            if magic != EXTENT_MAGIC || depth > depth_max {
                return Err(Error::corrupt("ext4 with a broken tree of extents"));
            }
            let room = node.0.len().saturating_sub(12) / 12;
            let places = (0..room.min(usize::from(count))).map(|entry| entry.saturating_mul(12).saturating_add(12));
            // The last one that does not start behind the block.
            let Some(place) = places.take_while(|place| u64::from(node.u32(*place)) <= index).last() else {
                return Ok(0);
            };
            let at = |offset: usize| place.saturating_add(offset);
            let within = index.saturating_sub(u64::from(node.u32(place)));
            if depth == 0 {
                let start = u64::from(node.u16(at(6))) << 32 | u64::from(node.u32(at(8)));
                let len = u32::from(node.u16(at(4)));
                let here = len <= EXTENT_LEN_MAX && within < u64::from(len);
                return Ok(if here { start.saturating_add(within) } else { 0 });
            }
            depth_max = depth.saturating_sub(1);
            node = self.read_block(u64::from(node.u16(at(8))) << 32 | u64::from(node.u32(at(4))))?;
        }
    }

    /// Twelve blocks, then lists, lists of lists, and lists of these; 0 is a hole.
    fn by_list(&self, inode: &Inode, index: u64) -> Result<u64, Error> {
        let per_block = self.block_size / 4;
        let pointer = |slot: u64| {
            let slot = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(4);
            u64::from(inode.fields.u32(slot.saturating_add(INODE_BLOCKS)))
        };
        let Some(mut rest) = index.checked_sub(12) else {
            return Ok(pointer(index));
        };
        for level in 1..=3_u32 {
            let room = per_block.saturating_pow(level);
            if rest >= room {
                rest = rest.saturating_sub(room);
                continue;
            }
            let mut number = pointer(u64::from(level).saturating_add(11));
            for below in (0..level).rev() {
                self.view.step()?;
                if number == 0 {
                    return Ok(0);
                }
                let span = per_block.saturating_pow(below).max(1);
                let slot = rest.checked_div(span).unwrap_or_default();
                rest = rest.checked_rem(span).unwrap_or_default();
                let slot = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(4);
                number = u64::from(self.read_block(number)?.u32(slot));
            }
            return Ok(number);
        }
        Ok(0)
    }
}

struct Inode {
    fields: Fields,
}

impl Inode {
    fn kind(&self) -> u16 {
        self.fields.u16(0) & 0xf000
    }

    fn is_folder(&self) -> bool {
        self.kind() == 0x4000
    }

    fn is_file(&self) -> bool {
        self.kind() == 0x8000
    }

    fn is_link(&self) -> bool {
        self.kind() == 0xa000
    }

    fn has(&self, flag: u32) -> bool {
        self.fields.u32(32) & flag != 0
    }

    fn size(&self) -> u64 {
        let high = if self.is_folder() { 0 } else { self.fields.u32(108) };
        u64::from(high) << 32 | u64::from(self.fields.u32(4))
    }
}

/// The names of a path, the last one first.
fn names_of(path: &str) -> Vec<Vec<u8>> {
    names_of_bytes(path.as_bytes())
}

fn names_of_bytes(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.rev().map(<[u8]>::to_vec).collect()
}
