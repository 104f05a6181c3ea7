//! The text inside of a VMDK, behind a header that is good.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert::open;

/// Where the descriptor is, and how long it may be.
const DESCRIPTOR: std::ops::Range<usize> = 512..512 + 20 * 512;

fuzz_target!(|text: &[u8]| {
    let mut file = vec![0; 64 << 10];
    file[..4].copy_from_slice(b"KDMV");
    for (place, number) in [(4, 1_u32), (12, 128), (20, 128), (28, 1), (36, 20), (44, 512), (56, 21)] {
        file[place..place + 4].copy_from_slice(&number.to_le_bytes());
    }
    let len = text.len().min(DESCRIPTOR.len());
    file[DESCRIPTOR][..len].copy_from_slice(&text[..len]);
    let _ = open(std::sync::Arc::new(file));
});
