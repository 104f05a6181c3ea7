//! Any bytes: probe, inspect, open, plan and walk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert_fuzz::{Sparse, walk};

fuzz_target!(|input: &[u8]| walk(Sparse::unpack(input)));
