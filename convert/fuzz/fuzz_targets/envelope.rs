//! Compressed files and archives, and what is in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lithos_convert_fuzz::open_envelopes;

fuzz_target!(|input: &[u8]| open_envelopes(input.to_vec()));
