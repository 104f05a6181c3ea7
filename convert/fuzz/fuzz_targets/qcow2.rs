//! Images of this format, from bytes to segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert::Format;
use lithos_convert_fuzz::{Sparse, walk_as};

fuzz_target!(|input: &[u8]| walk_as(Format::Qcow2, Sparse::unpack(input)));
