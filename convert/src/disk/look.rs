//! Reading a guest's disk to see what is on it: by pages, within bounds that all who look share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::limits::LookLimits;
use crate::safety;
use crate::{Error, ErrorKind, Guest, Image, Mapping, ReadAt};

/// What is read at once: what compressed clusters mostly are, so that few of them are decoded twice.
const PAGE_LEN: u64 = 64 << 10;
/// 1 MiB of pages in all.
const PAGE_COUNT_MAX: usize = 16;

/// A guest's disk, and what may still be done to see what is on it.
pub(super) struct Look<'a> {
    guest: Guest<&'a dyn ReadAt, &'a dyn Image>,
    image: &'a dyn Image,
    limits: LookLimits,
    pages: RefCell<VecDeque<(u64, Rc<[u8]>)>>,
    bytes: Cell<u64>,
    expanded: Cell<u64>,
    entries: Cell<u64>,
}

impl<'a> Look<'a> {
    pub(super) fn new(source: &'a dyn ReadAt, image: &'a dyn Image, limits: LookLimits) -> Self {
        Self {
            guest: Guest::new(source, image),
            image,
            limits,
            pages: RefCell::default(),
            bytes: Cell::new(0),
            expanded: Cell::new(0),
            entries: Cell::new(0),
        }
    }

    pub(super) fn limits(&self) -> LookLimits {
        self.limits
    }

    /// The whole disk.
    pub(super) fn disk(&'a self) -> View<'a> {
        View {
            look: self,
            start: 0,
            len: self.image.virtual_size(),
        }
    }

    /// The page that starts at `start`, or what there is of it.
    fn page(&self, start: u64) -> Result<Rc<[u8]>, Error> {
        if let Some((_, page)) = self.pages.borrow().iter().find(|(place, _)| *place == start) {
            return Ok(Rc::clone(page));
        }
        let len = self.image.virtual_size().saturating_sub(start).min(PAGE_LEN);
        let LookLimits {
            bytes: bytes_max,
            expanded_bytes: expanded_max,
            ..
        } = self.limits;
        spend("bytes read", &self.bytes, len, bytes_max)?;
        if let Mapping::Compressed { guest_len, .. } = self.image.map(start)? {
            let clusters = PAGE_LEN.div_ceil(guest_len.max(1)).max(1);
            let decoded = guest_len.saturating_mul(clusters);
            spend("bytes decoded", &self.expanded, decoded, expanded_max)?;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.guest.read(&mut bytes, start)?;
        let page: Rc<[u8]> = bytes.into();
        let mut pages = self.pages.borrow_mut();
        pages.truncate(PAGE_COUNT_MAX.saturating_sub(1));
        pages.push_front((start, Rc::clone(&page)));
        Ok(page)
    }
}

/// Adds to what was done, and refuses to do more than the bound.
fn spend(what: &str, spent: &Cell<u64>, more: u64, max: u64) -> Result<(), Error> {
    spent.set(spent.get().saturating_add(more));
    if spent.get() <= max {
        return Ok(());
    }
    let reason = format!("the look at the disk was ended after {max} {what}");
    Err(Error::new(ErrorKind::TooLarge, reason))
}

/// A part of a disk: all of it, or a partition.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    look: &'a Look<'a>,
    start: u64,
    len: u64,
}

impl<'a> View<'a> {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn limits(&self) -> LookLimits {
        self.look.limits()
    }

    /// A part of it, if it is inside.
    pub(super) fn part(&self, start: u64, len: u64) -> Option<View<'a>> {
        let end = start.checked_add(len)?;
        (end <= self.len).then_some(View {
            look: self.look,
            start: self.start.saturating_add(start),
            len,
        })
    }

    /// Counts one thing that is looked at.
    pub(super) fn step(&self) -> Result<(), Error> {
        spend("entries", &self.look.entries, 1, self.limits().entries)
    }

    /// The bytes at `offset`; what is beyond the end is an error.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Fields, Error> {
        let within = self.part(offset, len).ok_or_else(|| {
            let end = self.len;
            Error::corrupt(format!(
                "{len} bytes at {offset} reach beyond the end of the partition or disk at {end}"
            ))
        })?;
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        let mut place = within.start;
        let end = within.start.saturating_add(len);
        while place < end {
            let start = place.saturating_sub(place % PAGE_LEN);
            let page = self.look.page(start)?;
            let from = usize::try_from(place.saturating_sub(start)).unwrap_or(usize::MAX);
            let to = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
            let here = page.get(from..to.min(page.len())).unwrap_or_default();
            bytes.extend_from_slice(here);
            place = place.saturating_add((here.len() as u64).max(1));
        }
        Ok(Fields(bytes))
    }

    /// The bytes at `offset`, if they are there.
    pub(super) fn read_if_there(&self, offset: u64, len: u64) -> Result<Option<Fields>, Error> {
        match self.part(offset, len) {
            Some(_) => self.read(offset, len).map(Some),
            None => Ok(None),
        }
    }
}

/// Fields of a structure by their places. What is beyond its end is zeros.
#[derive(Debug, Clone)]
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let rest = self.0.get(offset..).unwrap_or_default();
        rest.first_chunk().copied().unwrap_or([0; N])
    }

    pub(super) fn u8(&self, offset: usize) -> u8 {
        let [byte] = self.array(offset);
        byte
    }

    pub(super) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    pub(super) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    pub(super) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    /// Bytes `offset` to `offset + len`, or none if they are not all there.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        self.0
            .get(offset..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default()
    }

    pub(super) fn has(&self, offset: usize, magic: &[u8]) -> bool {
        self.bytes(offset, magic.len()) == magic
    }

    /// Text that is padded with zeros or blanks, if there is any.
    pub(super) fn text(&self, offset: usize, len: usize) -> Option<String> {
        let bytes = self.bytes(offset, len);
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
        (!text.is_empty()).then(|| safety::text(text))
    }

    /// The same in UTF-16, as little-endian units.
    pub(super) fn text_utf16(&self, offset: usize, len: usize) -> Option<String> {
        let (units, _) = self.bytes(offset, len).as_chunks::<2>();
        let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
        let text: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        (!text.is_empty()).then(|| safety::text(String::from_utf16_lossy(&text).as_bytes()))
    }

    /// A UUID in network order, unless it is nil.
    pub(super) fn uuid(&self, offset: usize) -> Option<String> {
        let number = u128::from_be_bytes(self.array(offset));
        (number != 0).then(|| spell_uuid(number))
    }

    /// A GUID as in a file, where its first three numbers are little-endian.
    pub(super) fn guid(&self, offset: usize) -> String {
        let at = |within: usize| offset.saturating_add(within);
        let (first, second, third) = (self.u32(offset), self.u16(at(4)), self.u16(at(6)));
        let rest = u64::from_be_bytes(self.array(at(8)));
        let start = u128::from(first) << 96 | u128::from(second) << 80 | u128::from(third) << 64;
        spell_uuid(start | u128::from(rest))
    }
}

fn spell_uuid(number: u128) -> String {
    let part = |shift: u32, mask: u128| number >> shift & mask;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 0xffff_ffff),
        part(80, 0xffff),
        part(64, 0xffff),
        part(48, 0xffff),
        part(0, 0xffff_ffff_ffff)
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Looks at `bytes` as a raw disk.
    pub(crate) fn with_disk<T>(bytes: &Vec<u8>, look: impl FnOnce(View<'_>) -> T) -> T {
        let image = crate::raw::Raw::open(bytes).unwrap();
        look(Look::new(bytes, &image, LookLimits::DEFAULT).disk())
    }

    #[test]
    fn reads_cross_pages_and_end_with_the_disk() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
        with_disk(&bytes, |disk| {
            assert_eq!(disk.read(65_000, 70_000).unwrap().0, bytes[65_000..135_000]);
            let part = disk.part(100_000, 100_000).unwrap();
            assert_eq!(part.read(99_990, 10).unwrap().0, bytes[199_990..]);
            assert!(part.read(99_991, 10).is_err());
            assert!(part.read(u64::MAX, 10).is_err());
            assert!(disk.part(100_000, 100_001).is_none());
        });
    }

    #[test]
    fn a_look_ends() {
        let bytes = vec![1; 10 << 20];
        with_disk(&bytes, |disk| {
            let error = disk.read(0, 10 << 20).unwrap_err();
            assert_eq!(
                error.reason(),
                "the look at the disk was ended after 8388608 bytes read"
            );
            let steps = (0..1 << 20).find(|_| disk.step().is_err());
            assert_eq!(steps, Some(20_000));
        });
    }

    #[test]
    fn fields_beyond_the_end_are_zero() {
        let fields = Fields(vec![1, 2, 3]);
        assert_eq!((fields.u16(1), fields.u32(0), fields.u64(usize::MAX)), (0x302, 0, 0));
        assert_eq!(fields.bytes(2, 2), b"");
        assert_eq!(
            Fields(b" a\n\x1b \0x".to_vec()).text(0, 7).as_deref(),
            Some("a\n\u{1b}")
        );
        assert_eq!(Fields(vec![b' '; 11]).text(0, 11), None);
        let guid = Fields((0..16).collect());
        assert_eq!(guid.guid(0), "03020100-0504-0706-0809-0a0b0c0d0e0f");
        assert_eq!(guid.uuid(0).as_deref(), Some("00010203-0405-0607-0809-0a0b0c0d0e0f"));
    }
}
