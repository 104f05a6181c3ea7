//! Images of this format whose checksums hold, from bytes to segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert::Format;
use lithos_convert_fuzz::{Sparse, walk_as};

fuzz_target!(|input: &[u8]| {
    let mut file = Sparse::unpack(input);
    file.mend_vhdx();
    walk_as(Format::Vhdx, file);
});
