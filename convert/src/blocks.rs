//! Disks that are cut into blocks of one size, which a table finds in the file: what VHD, VHDX, VDI and VMDK have in common.
//!
//! A block (VMDK says grain) is in the file as a whole or not at all. The first half of this module maps such an image; the
//! second half helps to plan one: which blocks hold something, which of them comes how manieth in the file, and the data
//! itself with zeros where pieces of the disk leave a gap.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use crate::identity::Identity;
use crate::map::{Mapping, Origin, Piece, Pieces};
use crate::pages::{PAGE_LEN, entry_len};
use crate::plan::{Segment, Totals, zeros};
use crate::{Codec, Error, Format, Image, ReadAt, safety};

/// What the table says about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// Reads as zeros, and so do the blocks that follow: `count` of them in all, at least one.
    Zero { count: u64 },
    /// Is in the file from this offset, which has been checked.
    Data { offset: u64 },
    /// Is compressed in `len` bytes from this offset. The last block may decode to less, up to the end of the disk.
    Compressed { offset: u64, len: u64, codec: Codec },
}

/// A disk of blocks, as its format has opened it.
pub(crate) trait Blocks: Send + Sync {
    /// The format that was read.
    const FORMAT: Format;

    /// Where the blocks are.
    fn source(&self) -> &dyn ReadAt;

    /// The size of the guest's disk in bytes.
    fn virtual_size(&self) -> u64;

    /// The size of the image file in bytes.
    fn file_size(&self) -> u64 {
        self.source().size()
    }

    /// The size of every block in bytes.
    fn block_size(&self) -> NonZeroU64;

    /// Which flavour of the format it is.
    fn variant(&self) -> &'static str;

    /// What an operator should look at; a clause each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Finds block `index`, which is on the disk.
    fn block(&self, index: u64) -> Result<Block, Error>;
}

/// An image of blocks.
#[derive(Debug)]
pub(crate) struct BlockImage<B>(pub(crate) B);

impl<B: Blocks> BlockImage<B> {
    fn map_unnamed(&self, guest: u64) -> Result<Mapping, Error> {
        let range = guest..self.0.virtual_size();
        map_block(self.0.source(), self.0.block_size(), range, |index| self.0.block(index))
    }
}

/// Finds what is read at the start of `guest`, a range that ends where the disk does; `find` says where in `source` a block is.
pub(crate) fn map_block(
    source: &dyn ReadAt,
    block_size: NonZeroU64,
    guest: Range<u64>,
    find: impl FnOnce(u64) -> Result<Block, Error>,
) -> Result<Mapping, Error> {
    let left = guest.end.saturating_sub(guest.start);
    if left == 0 {
        return Err(Error::beyond_the_disk());
    }
    let index = guest.start / block_size;
    let within = guest.start % block_size;
    let rest = block_size.get().saturating_sub(within).min(left);
    Ok(match find(index)? {
        Block::Zero { count } => Mapping::Zero {
            len: count.saturating_mul(block_size.get()).saturating_sub(within).min(left),
        },
        Block::Data { offset } => Mapping::in_file(source, offset.saturating_add(within), rest)?,
        Block::Compressed { offset, len, codec } => Mapping::Compressed {
            offset,
            len,
            codec,
            guest_start: guest.start.saturating_sub(within),
            guest_len: within.saturating_add(rest),
        },
    })
}

impl<B: Blocks> Image for BlockImage<B> {
    fn format(&self) -> Format {
        B::FORMAT
    }

    fn virtual_size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn file_size(&self) -> u64 {
        self.0.file_size()
    }

    fn map(&self, guest: u64) -> Result<Mapping, Error> {
        self.map_unnamed(guest).map_err(|error| error.with_format(B::FORMAT))
    }

    fn variant(&self) -> Option<&'static str> {
        Some(self.0.variant())
    }

    fn block_size(&self) -> Option<u64> {
        Some(self.0.block_size().get())
    }

    fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }
}

/// What a first walk over an image finds out for a target of blocks.
#[derive(Debug)]
pub(crate) struct Census {
    pub(crate) totals: Totals,
    /// How many blocks hold something.
    pub(crate) blocks: u64,
    pub(crate) identity: Identity,
}

impl Census {
    /// Walks over the whole image, which finds every error in its tables.
    pub(crate) fn of(image: &dyn Image, seed: &[u8], block_size: NonZeroU64) -> Result<Self, Error> {
        let mut occupied = Occupied::new(block_size);
        let mut identity = Identity::new(seed, image.virtual_size());
        let mut blocks: u64 = 0;
        let totals = Totals::of(image, |piece| {
            let new = occupied.new_in(piece);
            blocks = blocks.saturating_add(new.end.saturating_sub(new.start));
            identity.add(piece);
        })?;
        Ok(Self {
            totals,
            blocks,
            identity,
        })
    }
}

/// The blocks of the disk that hold something, found piece by piece.
#[derive(Debug)]
pub(crate) struct Occupied {
    block_size: NonZeroU64,
    /// The first block that no piece has reached.
    next: u64,
}

impl Occupied {
    pub(crate) fn new(block_size: NonZeroU64) -> Self {
        Self { block_size, next: 0 }
    }

    /// The blocks that `piece` is the first to need.
    pub(crate) fn new_in(&mut self, piece: &Piece) -> Range<u64> {
        if piece.origin == Origin::Zero {
            return self.next..self.next;
        }
        let start = (piece.guest / self.block_size).max(self.next);
        self.next = piece.end().div_ceil(self.block_size.get());
        start..self.next
    }
}

/// The place of each occupied block among the others, found by a walk over the image while a table is made.
#[derive(Debug)]
pub(crate) struct Ordinals {
    pieces: Pieces<Arc<dyn Image>>,
    occupied: Occupied,
    /// Occupied blocks that have not been passed.
    ahead: Range<u64>,
    /// How many have been passed.
    passed: u64,
}

impl Ordinals {
    pub(crate) fn new(image: Arc<dyn Image>, block_size: NonZeroU64) -> Self {
        Self {
            pieces: Pieces::new(image),
            occupied: Occupied::new(block_size),
            ahead: 0..0,
            passed: 0,
        }
    }

    /// Where block `index` comes among the occupied ones. From call to call, `index` does not go down.
    pub(crate) fn of(&mut self, index: u64) -> Result<Place, Error> {
        loop {
            let passed = index.clamp(self.ahead.start, self.ahead.end);
            self.passed = self.passed.saturating_add(passed.saturating_sub(self.ahead.start));
            self.ahead.start = passed;
            if !self.ahead.is_empty() {
                return Ok(match self.ahead.start.saturating_sub(index) {
                    0 => Place {
                        ordinal: Some(self.passed),
                        count: 1,
                    },
                    count => Place { ordinal: None, count },
                });
            }
            let Some(piece) = self.pieces.next().transpose()? else {
                return Ok(Place {
                    ordinal: None,
                    count: u64::MAX,
                });
            };
            self.ahead = self.occupied.new_in(&piece);
        }
    }
}

/// Where a block of the disk goes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// How many occupied blocks come before it, if it is one itself.
    pub(crate) ordinal: Option<u64>,
    /// How many blocks from it on share that, at least: 1, or so many that are absent.
    pub(crate) count: u64,
}

impl Place {
    /// The entries of a table for it and what shares its place, of which `entry` makes one.
    pub(crate) fn entries<const N: usize>(self, entry: impl FnOnce(Option<u64>) -> [u8; N]) -> Entries<N> {
        Entries {
            entry: entry(self.ordinal),
            count: self.count,
        }
    }
}

/// Entries of a table that follow each other and are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entries<const N: usize> {
    entry: [u8; N],
    /// How many there are, at least; never 0, and it may reach beyond the end of the table.
    count: u64,
}

impl<const N: usize> From<[u8; N]> for Entries<N> {
    fn from(entry: [u8; N]) -> Self {
        Self { entry, count: 1 }
    }
}

/// A table of `count` entries, made page by page; pages that are all zeros are said to be just that.
///
/// `entries` says what stands from some place of the table on, and is asked about the first of them only: what it costs to make a
/// table goes with how often its entries change, not with how many there are.
pub(crate) fn table<const N: usize>(
    count: u64,
    entries: impl FnMut(u64) -> Result<Entries<N>, Error> + Send,
) -> impl Iterator<Item = Result<Segment, Error>> + Send {
    let mut table = Table {
        source: entries,
        next: 0,
        left: count,
        here: Entries {
            entry: [0; N],
            count: 0,
        },
    };
    std::iter::repeat_with(move || table.segment()).map_while(Result::transpose)
}

/// A table in the making.
struct Table<const N: usize, F> {
    source: F,
    /// The place of the entry that comes next.
    next: u64,
    /// How many entries there are from there on.
    left: u64,
    /// Those that stand there, as far as they have been asked for.
    here: Entries<N>,
}

impl<const N: usize, F: FnMut(u64) -> Result<Entries<N>, Error>> Table<N, F> {
    /// The entries that come next, at least one.
    fn here(&mut self) -> Result<Entries<N>, Error> {
        if self.here.count == 0 {
            self.here = (self.source)(self.next)?;
        }
        let count = self.here.count.clamp(1, self.left.max(1));
        Ok(Entries { count, ..self.here })
    }

    fn pass(&mut self, count: u64) {
        self.next = self.next.saturating_add(count);
        self.left = self.left.saturating_sub(count);
        self.here.count = self.here.count.saturating_sub(count);
    }

    /// Pages of zeros, as many as there are, or one page.
    fn segment(&mut self) -> Result<Option<Segment>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let page = PAGE_LEN / entry_len::<N>();
        let Entries { entry, count } = self.here()?;
        let whole = if count == self.left {
            count
        } else {
            count.saturating_sub(count.checked_rem(page).unwrap_or(count))
        };
        if entry == [0; N] && whole > 0 {
            self.pass(whole);
            return Ok(zeros(whole.saturating_mul(entry_len::<N>().get())));
        }
        let mut wanted = page.min(self.left);
        let mut bytes = Vec::new();
        while wanted > 0 {
            let Entries { entry, count } = self.here()?;
            let count = count.min(wanted);
            let some = vec![entry; usize::try_from(count).unwrap_or_default()];
            bytes.extend_from_slice(some.as_flattened());
            self.pass(count);
            wanted = wanted.saturating_sub(count);
        }
        Ok(bytes_or_zeros(bytes))
    }
}

/// The segment for these bytes, if there are any: zeros, if they are nothing else.
pub(crate) fn bytes_or_zeros(bytes: Vec<u8>) -> Option<Segment> {
    if bytes.iter().all(|byte| *byte == 0) {
        zeros(bytes.len() as u64)
    } else {
        Some(Segment::Bytes(bytes))
    }
}

/// `len` bytes of a file of which the start is `bytes`: those, and zeros.
pub(crate) fn padded(bytes: Vec<u8>, len: u64) -> impl Iterator<Item = Segment> + Send {
    let padding = zeros(len.saturating_sub(bytes.len() as u64));
    bytes_or_zeros(bytes).into_iter().chain(padding)
}

/// The occupied blocks one after another: pieces of the image with zeros between them where they share a block.
#[derive(Debug)]
pub(crate) struct DataBlocks {
    pieces: Pieces<Arc<dyn Image>>,
    block_size: NonZeroU64,
    /// What stands before each block.
    prefix: Vec<u8>,
    /// The guest offset up to which the blocks have been filled; inside of a block while one is open.
    filled: u64,
    /// Whether the prefix of the block at `filled` has been given out.
    open: bool,
    /// A piece that waits for what comes before it.
    piece: Option<Piece>,
}

impl DataBlocks {
    pub(crate) fn new(image: Arc<dyn Image>, block_size: NonZeroU64) -> Self {
        Self::with_prefix(image, block_size, Vec::new())
    }

    pub(crate) fn with_prefix(image: Arc<dyn Image>, block_size: NonZeroU64, prefix: Vec<u8>) -> Self {
        Self {
            pieces: Pieces::new(image),
            block_size,
            prefix,
            filled: 0,
            open: false,
            piece: None,
        }
    }

    /// The next piece that is not zeros.
    fn next_piece(&mut self) -> Result<Option<Piece>, Error> {
        while self.piece.is_none() {
            match self.pieces.next().transpose()? {
                Some(piece) if piece.origin == Origin::Zero => {}
                Some(piece) => self.piece = Some(piece),
                None => break,
            }
        }
        Ok(self.piece)
    }

    /// Zeros up to `guest`, where the block goes on or ends.
    fn fill_to(&mut self, guest: u64) -> Option<Segment> {
        let gap = zeros(guest.saturating_sub(self.filled));
        self.filled = guest;
        gap
    }

    fn step(&mut self) -> Result<Option<Segment>, Error> {
        loop {
            let piece = self.next_piece()?;
            let block_end = self.filled.saturating_add(1).next_multiple_of(self.block_size.get());
            let segment = match piece {
                Some(piece) if !self.open => {
                    self.filled = piece.guest.saturating_sub(piece.guest % self.block_size);
                    self.open = true;
                    (!self.prefix.is_empty()).then(|| Segment::Bytes(self.prefix.clone()))
                }
                Some(piece) if piece.guest < block_end && piece.guest > self.filled => self.fill_to(piece.guest),
                Some(piece) if piece.guest < block_end => Some(self.put(piece, block_end)),
                None if !self.open => return Ok(None),
                Some(_) | None => {
                    self.open = false;
                    self.fill_to(block_end)
                }
            };
            if segment.is_some() {
                return Ok(segment);
            }
        }
    }

    /// Gives out what of a piece goes to the place where the blocks are filled: all of it, if nothing stands between blocks.
    fn put(&mut self, piece: Piece, block_end: u64) -> Segment {
        let (here, rest) = if self.prefix.is_empty() {
            (piece, None)
        } else {
            piece.split_at(block_end)
        };
        self.piece = rest;
        self.filled = here.end();
        self.open = !self.filled.is_multiple_of(self.block_size.get());
        Segment::of(&here)
    }
}

impl Iterator for DataBlocks {
    type Item = Result<Segment, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// Most parts of a file that are minded, in 16 MiB of bits. In parts of a MiB that is a file of 128 TiB, twice the largest disk.
const PART_COUNT_MAX: u64 = 1 << 27;

/// A bit for each of the equal parts that a file is cut into: which of them are taken.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// Parts 0 to `last`, none of them taken.
    pub(crate) fn new(last: u64) -> Self {
        let words = usize::try_from(last / 64).unwrap_or(usize::MAX).saturating_add(1);
        Self { words: vec![0; words] }
    }

    /// The parts of `part_size` bytes that a file has, unless these are too many.
    pub(crate) fn of_file(file_size: u64, part_size: NonZeroU64) -> Result<Self, Error> {
        let last = file_size / part_size;
        safety::at_most("number of parts of the file", last, PART_COUNT_MAX)?;
        Ok(Self::new(last))
    }

    /// Takes a part, and says whether it was there to be taken.
    pub(crate) fn set(&mut self, part: u64) -> bool {
        let bit = 1_u64.rotate_left(u32::try_from(part % 64).unwrap_or_default());
        let word = usize::try_from(part / 64)
            .ok()
            .and_then(|index| self.words.get_mut(index));
        let Some(word) = word else { return false };
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    /// Whether a part is taken.
    pub(crate) fn has(&self, part: u64) -> bool {
        let bit = 1_u64.rotate_left(u32::try_from(part % 64).unwrap_or_default());
        let index = usize::try_from(part / 64).unwrap_or(usize::MAX);
        self.words.get(index).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_file_are_taken_once() {
        let mut bitmap = Bitmap::new(64);
        for part in [0, 1, 63, 64] {
            assert!(bitmap.set(part), "{part}");
            assert!(!bitmap.set(part), "{part} again");
            assert!(bitmap.has(part), "{part} is taken");
        }
        assert!(
            !bitmap.set(1 << 40) && !bitmap.has(1 << 40) && !bitmap.has(2),
            "beyond the end"
        );
    }

    #[test]
    fn tables_are_cut_into_pages_and_zero_pages_are_zeros() {
        let entry = |index: u64| {
            let entry = if (16384..32768).contains(&index) { 0 } else { index };
            Ok(u32::try_from(entry).unwrap().to_le_bytes().into())
        };
        let segments: Vec<_> = table(32_770, entry).map(Result::unwrap).collect();
        let lens: Vec<u64> = segments.iter().map(Segment::len).collect();
        assert_eq!(lens, [65536, 65536, 8]);
        assert_eq!(segments[1], Segment::Zeros { len: 65536 });
        assert!(matches!(&segments[2], Segment::Bytes(bytes) if bytes[..4] == 32768_u32.to_le_bytes()));
        assert_eq!(table(0, |_| Ok([0; 8].into())).count(), 0);
    }

    #[test]
    fn tables_cost_what_changes_in_them() {
        const COUNT: u64 = 1 << 40;
        /// Where the table is not zeros: in the first page, across two pages, in the last entry.
        const SET: [u64; 4] = [3, 100 * 16384 - 1, 100 * 16384, COUNT - 1];
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let segments: Vec<_> = table(COUNT, |index| {
            asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let next = SET.into_iter().find(|set| *set >= index);
            Ok(match next.map_or(u64::MAX, |next| next - index) {
                0 => [1, 2, 3, 4].into(),
                count => Entries { entry: [0; 4], count },
            })
        })
        .map(Result::unwrap)
        .collect();
        assert!(asked.into_inner() <= 3 * SET.len() + 1);
        let lens: Vec<_> = segments.iter().map(Segment::len).collect();
        let between = |pages: u64| pages * PAGE_LEN;
        assert_eq!(
            lens,
            [
                PAGE_LEN,
                between(98),
                PAGE_LEN,
                PAGE_LEN,
                between(COUNT / 16384 - 102),
                PAGE_LEN
            ]
        );
        let mut at = 0;
        let mut set = Vec::new();
        for segment in &segments {
            if let Segment::Bytes(bytes) = segment {
                let entries = bytes.as_chunks::<4>().0.iter().zip(at / 4..);
                set.extend(entries.filter_map(|(entry, index)| (*entry == [1, 2, 3, 4]).then_some(index)));
            }
            at += segment.len();
        }
        assert_eq!(set, SET);
    }

    #[test]
    fn entries_that_are_alike_are_repeated() {
        for (count, lens) in [(1, &[4][..]), (16384, &[65536]), (20_000, &[65536, 14464])] {
            let segments: Vec<_> = table(count, |_| {
                Ok(Entries {
                    entry: [0xff; 4],
                    count: u64::MAX,
                })
            })
            .map(Result::unwrap)
            .collect();
            assert_eq!(segments.iter().map(Segment::len).collect::<Vec<_>>(), lens);
            let all_ones =
                |segment: &Segment| matches!(segment, Segment::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0xff));
            assert!(segments.iter().all(all_ones), "{count}");
        }
    }
}
