//! Reads a packed blob: only the groups that a range touches, each of them verified.

use std::ops::Range;

use bytes::Bytes;

use super::in_memory;
use crate::{
    blob::{
        damaged,
        fs::{
            file::BlobFile,
            packed::{GROUP, GROUP_LEN, Groups, group_len, unpack},
            partial::{Opening, PartialGroups},
        },
    },
    error::Result,
};

/// Ranges from this length on are unpacked by two threads: less would take longer to hand over than to unpack.
const SHARED_LEN_MIN: u64 = 4 * GROUP_LEN;

#[derive(Debug)]
pub(super) struct PackedForm {
    len: u64,
    groups: Groups,
    opening: Opening,
}

/// The range of a blob, cut at the edges of groups.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// The end of a group that is not wanted whole; or the middle of the one group that is touched.
    head: Range<u64>,
    /// Groups that are wanted whole.
    whole: Range<u64>,
    /// The beginning of a group that is not wanted whole.
    tail: Range<u64>,
}

impl Cut {
    /// Cuts `range` of a blob of `len` bytes.
    fn new(range: &Range<u64>, len: u64) -> Self {
        let first = range.start.div_ceil(GROUP_LEN);
        let head = range.start..(first * GROUP_LEN).min(range.end);
        if head.end == range.end {
            return Self {
                head,
                whole: first..first,
                tail: range.end..range.end,
            };
        }
        let end = if range.end == len {
            len.div_ceil(GROUP_LEN)
        } else {
            range.end / GROUP_LEN
        };
        Self {
            head,
            whole: first..end,
            tail: (end * GROUP_LEN).min(range.end)..range.end,
        }
    }
}

/// Where a range that is long enough is best cut in two, for two threads to unpack.
pub(super) fn middle(range: &Range<u64>) -> Option<u64> {
    let len = range.end.saturating_sub(range.start);
    (len >= SHARED_LEN_MIN).then(|| (range.start + len / 2) / GROUP_LEN * GROUP_LEN)
}

impl PackedForm {
    pub(super) fn new(len: u64, groups: Groups, opening: Opening) -> Self {
        Self { len, groups, opening }
    }

    pub(super) fn level(&self) -> i32 {
        self.groups.level()
    }

    /// Where some groups are stored: offset and length.
    pub(super) fn stored(&self, groups: Range<u64>) -> (u64, u64) {
        let Some(last) = groups.end.checked_sub(1).filter(|last| *last >= groups.start) else {
            return (0, 0);
        };
        let (start, _) = self.groups.stored(in_memory(groups.start));
        let (offset, len) = self.groups.stored(in_memory(last));
        (start, offset + len as u64 - start)
    }

    pub(super) fn read(&self, file: &BlobFile, partial: &PartialGroups, range: Range<u64>) -> Result<Bytes> {
        let cut = Cut::new(&range, self.len);
        for part in [&cut.head, &cut.tail] {
            if *part == range {
                return self.part(file, partial, part);
            }
        }
        let mut data = vec![0; in_memory(range.end - range.start)];
        self.fill(file, partial, range, &mut data)?;
        Ok(data.into())
    }

    /// Writes a range to `out`, which is as long.
    pub(super) fn fill(
        &self,
        file: &BlobFile,
        partial: &PartialGroups,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        let cut = Cut::new(&range, self.len);
        let head = self.part(file, partial, &cut.head)?;
        let tail = self.part(file, partial, &cut.tail)?;
        let (head_room, rest) = out.split_at_mut(head.len());
        let (whole_room, tail_room) = rest.split_at_mut(rest.len() - tail.len());
        head_room.copy_from_slice(&head);
        tail_room.copy_from_slice(&tail);
        self.unpack(file, cut.whole, whole_room)
    }

    /// A range within one group, which is kept for whoever wants the rest of it.
    fn part(&self, file: &BlobFile, partial: &PartialGroups, range: &Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let index = range.start / GROUP_LEN;
        let group = partial.get(self.opening, in_memory(index), || {
            let mut group = vec![0; group_len(self.len, index)];
            self.unpack(file, index..index + 1, &mut group)?;
            Ok(group.into())
        })?;
        let start = index * GROUP_LEN;
        Ok(group.slice(in_memory(range.start - start)..in_memory(range.end - start)))
    }

    /// Reads a group and verifies it.
    pub(super) fn check(&self, file: &BlobFile, index: u64) -> Result<()> {
        let mut group = vec![0; group_len(self.len, index)];
        self.unpack(file, index..index + 1, &mut group)
    }

    /// Reads whole groups at once and unpacks them into `out`, which is as long as they are.
    fn unpack(&self, file: &BlobFile, groups: Range<u64>, out: &mut [u8]) -> Result<()> {
        let (start, len) = self.stored(groups.clone());
        let mut stored = vec![0; in_memory(len)];
        file.read(&mut stored, start, Some(groups.start * GROUP_LEN))?;
        let mut stored = &stored[..];
        for (index, out) in groups.zip(out.chunks_mut(GROUP)) {
            let (_, len) = self.groups.stored(in_memory(index));
            let (group, rest) = stored.split_at(len);
            unpack(&self.groups, in_memory(index), group, out)
                .map_err(|reason| damaged(file.id, Some(index * GROUP_LEN), reason))?;
            stored = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = GROUP_LEN;

    #[test]
    fn range_is_cut_at_the_edges_of_groups() {
        let len = 3 * G + 10;
        for (range, head, whole, tail) in [
            (0..len, 0..0, 0..4, len..len),
            (0..G, 0..0, 0..1, G..G),
            (5..6, 5..6, 1..1, 6..6),
            (5..G, 5..G, 1..1, G..G),
            (0..5, 0..0, 0..0, 0..5),
            (5..2 * G + 7, 5..G, 1..2, 2 * G..2 * G + 7),
            (G - 1..G + 1, G - 1..G, 1..1, G..G + 1),
            (3 * G..len, 3 * G..3 * G, 3..4, len..len),
            (3 * G..len - 1, 3 * G..3 * G, 3..3, 3 * G..len - 1),
            (3 * G + 1..len, 3 * G + 1..len, 4..4, len..len),
            (2 * G + 1..len, 2 * G + 1..3 * G, 3..4, len..len),
        ] {
            assert_eq!(Cut::new(&range, len), Cut { head, whole, tail }, "{range:?}");
        }
    }
}
