//! OVAs whose checksums of headers hold: what is in them, and disks in several files from bytes to segments.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use lithos_convert::{Format, ReadAt, unwrap};
use lithos_convert_fuzz::{Sparse, walk_as};

/// How much may come out of an envelope; an archive is opened in place.
const EXPANDED_MAX: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let mut file = Sparse::unpack(input);
    file.mend_tar();
    let source: Arc<dyn ReadAt> = Arc::new(file.clone());
    let _ = unwrap(&source, EXPANDED_MAX);
    walk_as(Format::Tar, file);
});
