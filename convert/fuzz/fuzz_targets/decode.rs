//! Compressed clusters: the codec and the length of the cluster come first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert::{Codec, decode};

fuzz_target!(|input: &[u8]| {
    let [codec, bits, compressed @ ..] = input else { return };
    let codec = [Codec::Deflate, Codec::Zlib, Codec::Zstd][usize::from(codec % 3)];
    // Clusters of 512 bytes to 2 MiB.
    let mut cluster = vec![0; 512 << (bits % 13)];
    let _ = decode(codec, compressed, &mut cluster);
});
