//! Zeros that were written: a disk that was copied from a device has no holes, and most of it may be zeros all the same.
//!
//! They are looked for before a target is laid out, as its tables say what is in the file, and once only, so that all passes
//! over the source see the same. A chunk that holds something mostly shows it in its first page: what is found to be data has
//! cost a sixteenth of reading it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use lithos_convert::RunKind;

/// The unit that is zeros or is not, in bytes: the clusters and grains that most targets have.
const CHUNK_LEN: usize = 64 << 10;
/// So much of a chunk is read at first.
const PAGE_LEN: usize = 4 << 10;
/// How many chunks are looked at in one go.
const GROUP_CHUNKS: u64 = 64;
/// The longest run that is looked for at once.
const RUN_LEN_MAX: u64 = 64 << 20;

/// What was found out about the chunks of a file: some 6 MiB for a tebibyte of data.
#[derive(Debug, Default)]
pub(super) struct WrittenZeros {
    /// By the number of the group: a bit for each chunk that is all zeros.
    groups: BTreeMap<u64, u64>,
    /// The run that was found last: most questions are about neighbours.
    last: Option<(Range<u64>, RunKind)>,
}

impl WrittenZeros {
    /// The end of the run that begins at the start of `data`, and what it is. `data` is a range of the image that is not a hole;
    /// the image is `size` bytes of `file`, from `start` on.
    pub(super) fn run(&mut self, file: &File, start: u64, size: u64, data: Range<u64>) -> io::Result<(u64, RunKind)> {
        if let Some((range, kind)) = &self.last
            && range.contains(&data.start)
        {
            return Ok((range.end.min(data.end), *kind));
        }
        let mut chunk = data.start / CHUNK_LEN as u64;
        let is_zero = self.is_zero(file, start, size, chunk)?;
        let end_max = data.end.min(data.start.saturating_add(RUN_LEN_MAX));
        let mut end = data.start;
        while end < end_max && self.is_zero(file, start, size, chunk)? == is_zero {
            chunk += 1;
            end = (chunk * CHUNK_LEN as u64).min(data.end);
        }
        let kind = if is_zero { RunKind::Zero } else { RunKind::Data };
        self.last = Some((data.start..end, kind));
        Ok((end, kind))
    }

    fn is_zero(&mut self, file: &File, start: u64, size: u64, chunk: u64) -> io::Result<bool> {
        let group = chunk / GROUP_CHUNKS;
        let zeros = if let Some(zeros) = self.groups.get(&group) {
            *zeros
        } else {
            let zeros = look_at_group(file, start, size, group)?;
            self.groups.insert(group, zeros);
            zeros
        };
        Ok(zeros & (1 << (chunk % GROUP_CHUNKS)) != 0)
    }
}

/// A bit for each chunk of a group that is all zeros, as far as the image goes.
fn look_at_group(file: &File, start: u64, size: u64, group: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut zeros = 0;
    for chunk in 0..GROUP_CHUNKS {
        let offset = (group * GROUP_CHUNKS + chunk) * CHUNK_LEN as u64;
        let Some(left) = size.checked_sub(offset).filter(|left| *left > 0) else {
            break;
        };
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let page = len.min(PAGE_LEN);
        let is_zero = [0..page, page..len].into_iter().try_fold(true, |is_zero, part| {
            let bytes = buffer.get_mut(part.clone()).unwrap_or_default();
            if is_zero {
                file.read_exact_at(bytes, start + offset + part.start as u64)?;
            }
            Ok::<_, io::Error>(is_zero && bytes.iter().all(|byte| *byte == 0))
        })?;
        zeros |= u64::from(is_zero) << chunk;
    }
    Ok(zeros)
}
