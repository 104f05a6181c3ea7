//! Identifiers for targets whose format asks for unique ones.
//!
//! Nothing here has randomness, and a plan made twice should give the same bytes twice, so that a copy can be told by its
//! checksum. Hence identifiers are made of a seed that the caller gives and of what the plan knows: the size of the disk, and
//! where each piece of it comes from. That tells the images of one source apart from each other by their labels, and sources
//! of different shape from each other. Two sources that are allocated in the very same places are told apart by the seed
//! alone, which matters to software that keeps a registry of disks: `VirtualBox` refuses a second one of the same UUID.
//!
//! The digest is FNV-1a with 128 bits: it has to spread, not to withstand anybody.

use crate::map::{Origin, Piece};

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// What the identifiers of a target are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity(u128);

impl Identity {
    pub(crate) fn new(seed: &[u8], virtual_size: u64) -> Self {
        let mut identity = Self(OFFSET_BASIS);
        identity.mix(seed);
        identity.mix(&virtual_size.to_le_bytes());
        identity
    }

    pub(crate) fn add(&mut self, piece: &Piece) {
        let (kind, place) = match piece.origin {
            Origin::Zero => (0, 0),
            Origin::Data { offset } => (1, offset),
            Origin::Compressed { offset, .. } => (2, offset),
        };
        for number in [kind, piece.len, place] {
            self.mix(&number.to_le_bytes());
        }
    }

    /// The identifier for one purpose: a UUID of version 8 and variant 1 (RFC 9562), in network order. It is never zero.
    pub(crate) fn uuid(mut self, purpose: &str) -> [u8; 16] {
        self.mix(purpose.as_bytes());
        let version = self.0 & !(0xf << 76) | 0x8 << 76;
        (version & !(0x3 << 62) | 0x2 << 62).to_be_bytes()
    }

    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_fnv_1a() {
        let mut identity = Identity(OFFSET_BASIS);
        identity.mix(b"foobar");
        assert_eq!(identity.0, 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn identifiers_differ_by_seed_size_piece_and_purpose_and_are_uuids() {
        let piece = |len| Piece {
            guest: 0,
            len,
            origin: Origin::Data { offset: 7 },
        };
        let seeded = |seed: &[u8], size, len| {
            let mut identity = Identity::new(seed, size);
            identity.add(&piece(len));
            identity
        };
        let with = |size, len| seeded(b"", size, len);
        let uuids = [
            seeded(b"another", 1, 1).uuid("disk"),
            with(1, 1).uuid("disk"),
            with(1, 1).uuid("page 83"),
            with(1, 2).uuid("disk"),
            with(2, 1).uuid("disk"),
        ];
        for (index, uuid) in uuids.iter().enumerate() {
            assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2), "{uuid:x?}");
            assert!(!uuids[..index].contains(uuid), "{uuid:x?}");
        }
        assert_eq!(with(1, 1).uuid("disk"), uuids[1]);
    }
}
