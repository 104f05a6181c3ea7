//! Contents that are made again where they are needed instead of being kept, and sparse disk images made of them.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path};

use md5::{Digest, Md5};

/// Incompressible bytes without a run of zeros, the same ones for the same seed, at any offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    /// The bytes of `range`.
    pub fn bytes(self, range: Range<u64>) -> Vec<u8> {
        let first = range.start / 8;
        let last = range.end.div_ceil(8);
        let mut bytes =
            Vec::with_capacity(usize::try_from((last - first) * 8).expect("a test's buffer fits in memory"));
        for word in first..last {
            bytes.extend_from_slice(&mix(self.0 ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
        }
        let len = usize::try_from(range.end - range.start).expect("a test's buffer fits in memory");
        let skip = usize::try_from(range.start % 8).expect("a remainder is small");
        bytes.drain(..skip);
        bytes.truncate(len);
        bytes
    }
}

/// The finalizer of `SplitMix64` (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators").
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Numbers that look random, for choices in tests.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }
}

/// A seed that differs from run to run.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// The MD5 of `bytes` in hexadecimal digits.
pub fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// A disk image: islands of content in a sea of zeros, about 30 % of it content.
///
/// Island `n` begins at a multiple of [`SparseImage::STRIDE`], and is 30 % of it long; not a multiple of any cluster.
#[derive(Debug, Clone, Copy)]
pub struct SparseImage {
    /// Bytes of the image.
    pub size: u64,
    /// What its islands are made of.
    pub pattern: Pattern,
}

impl SparseImage {
    /// From one island to the next.
    pub const STRIDE: u64 = 16 << 20;
    /// Bytes of an island: 30 %, and a little for odd ends.
    const ISLAND: u64 = Self::STRIDE * 3 / 10 + 512;

    /// Bytes that are not zero.
    pub fn content_len(self) -> u64 {
        self.islands().map(|island| island.end - island.start).sum()
    }

    fn islands(self) -> impl Iterator<Item = Range<u64>> {
        (0..self.size)
            .step_by(usize::try_from(Self::STRIDE).expect("a stride fits in memory"))
            .map(move |start| start..(start + Self::ISLAND).min(self.size))
    }

    /// Makes the image as a sparse file.
    ///
    /// # Errors
    ///
    /// If the disk fails.
    pub fn write(self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size)?;
        for island in self.islands() {
            file.write_all_at(&self.pattern.bytes(island.clone()), island.start)?;
        }
        Ok(())
    }

    /// The bytes of `range`.
    pub fn bytes(self, range: Range<u64>) -> Vec<u8> {
        let len = usize::try_from(range.end - range.start).expect("a test's buffer fits in memory");
        let mut bytes = vec![0; len];
        let first = range.start / Self::STRIDE * Self::STRIDE;
        for start in (first..range.end).step_by(usize::try_from(Self::STRIDE).expect("a stride fits in memory")) {
            let island = start.max(range.start)..(start + Self::ISLAND).min(range.end);
            if island.start < island.end {
                let at = usize::try_from(island.start - range.start).expect("a test's buffer fits in memory");
                let content = self.pattern.bytes(island);
                if let Some(place) = bytes.get_mut(at..at + content.len()) {
                    place.copy_from_slice(&content);
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_the_same_at_any_offset() {
        let whole = Pattern(7).bytes(0..100);
        for (start, end) in [(0, 1), (3, 17), (8, 16), (99, 100), (50, 50)] {
            assert_eq!(
                Pattern(7).bytes(start..end),
                whole[start as usize..end as usize],
                "{start}..{end}"
            );
        }
        assert_ne!(Pattern(8).bytes(0..100), whole);
    }

    #[test]
    fn images_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let image = SparseImage {
            size: 40 << 20,
            pattern: Pattern(1),
        };
        image.write(&path).unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len() as u64, image.size);
        for range in [0..100, (5 << 20) - 100..(17 << 20), (39 << 20)..(40 << 20)] {
            assert_eq!(
                image.bytes(range.clone()),
                file[range.start as usize..range.end as usize]
            );
        }
        assert!(image.content_len() * 100 / image.size < 40);
    }
}
