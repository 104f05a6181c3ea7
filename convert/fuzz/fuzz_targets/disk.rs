//! Raw disks: partition tables, file systems, and the files that are read of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert::Format;
use lithos_convert_fuzz::{Sparse, walk_as};

fuzz_target!(|input: &[u8]| {
    let mut file = Sparse::unpack(input);
    file.mend_gpt();
    walk_as(Format::Raw, file);
});
