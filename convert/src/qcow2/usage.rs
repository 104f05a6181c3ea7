//! That each cluster of the file is used for one thing: an L2 table, data of one place of the disk, or compressed clusters.
//!
//! A bit for each cluster says that it is taken, and another one that it holds compressed clusters, of which there may be
//! several in it. Memory has a bound: a very large file is gone over in several passes, each for a window of it.
//!
//! Differs: QEMU counts references, but reads whatever the tables say.

use std::num::NonZeroU64;

use crate::blocks::Bitmap;
use crate::{Error, safety};

/// How many clusters of the file a pass minds: twice 16 MiB of bits, for 8 TiB of a file with clusters of 64 KiB.
const WINDOW_CLUSTERS: u64 = 1 << 27;

/// How many clusters a file may have, so that passes are few: 16. With clusters of 64 KiB that is 128 TiB; with the smallest,
/// 1 TiB, where the largest disk has 128 GiB.
const CLUSTER_COUNT_MAX: u64 = 16 * WINDOW_CLUSTERS;

/// What a cluster is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Table,
    Data,
    Compressed,
}

/// The clusters in a window of the file that have been met.
#[derive(Debug)]
pub(super) struct Usage {
    /// The first cluster of the window.
    first: u64,
    cluster_size: NonZeroU64,
    taken: Bitmap,
    compressed: Bitmap,
}

impl Usage {
    /// A window for each pass over the tables of a file, unless it has too many clusters.
    pub(super) fn passes(file_size: u64, cluster_size: NonZeroU64) -> Result<impl Iterator<Item = Self>, Error> {
        let clusters = file_size.div_ceil(cluster_size.get());
        safety::at_most("number of clusters in the file", clusters, CLUSTER_COUNT_MAX)?;
        let step = usize::try_from(WINDOW_CLUSTERS).unwrap_or(usize::MAX);
        Ok((0..clusters).step_by(step).map(move |first| {
            let last = clusters.saturating_sub(first).min(WINDOW_CLUSTERS).saturating_sub(1);
            Self {
                first,
                cluster_size,
                taken: Bitmap::new(last),
                compressed: Bitmap::new(last),
            }
        }))
    }

    /// Notes that what is at `offset` of the file is used. What is outside of the window is left to another pass.
    pub(super) fn note(&mut self, usage: Use, offset: u64) -> Result<(), Error> {
        let index = (offset / self.cluster_size).checked_sub(self.first);
        let Some(index) = index.filter(|index| *index < WINDOW_CLUSTERS) else {
            return Ok(());
        };
        let free = match usage {
            Use::Compressed => {
                self.compressed.set(index);
                !self.taken.has(index)
            }
            Use::Table | Use::Data => self.taken.set(index) && !self.compressed.has(index),
        };
        if free {
            return Ok(());
        }
        let what = match usage {
            Use::Table => "L2 table",
            Use::Data => "data cluster",
            Use::Compressed => "compressed cluster",
        };
        Err(Error::corrupt(format!("the {what} at {offset} is used twice")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_clusters_share_and_others_do_not() {
        use Use::{Compressed, Data, Table};
        let size = NonZeroU64::new(65536).unwrap();
        for (uses, reason) in [
            (
                &[(Table, 0), (Data, 65536), (Compressed, 131_072), (Compressed, 131_100)][..],
                None,
            ),
            (&[(Data, 0), (Data, 0)], Some("the data cluster at 0 is used twice")),
            (
                &[(Data, 65536), (Table, 65536)],
                Some("the L2 table at 65536 is used twice"),
            ),
            (
                &[(Compressed, 65600), (Data, 65536)],
                Some("the data cluster at 65536 is used twice"),
            ),
            (
                &[(Data, 65536), (Compressed, 65600)],
                Some("the compressed cluster at 65600 is used twice"),
            ),
        ] {
            let mut usage = Usage::passes(200_000, size).unwrap().next().unwrap();
            let noted = uses
                .iter()
                .try_for_each(|(usage_of, offset)| usage.note(*usage_of, *offset));
            assert_eq!(noted.as_ref().err().map(Error::reason), reason);
        }
    }

    #[test]
    fn large_files_take_several_passes() {
        let size = NonZeroU64::new(512).unwrap();
        let window = WINDOW_CLUSTERS * 512;
        let mut passes: Vec<Usage> = Usage::passes(window + 1, size).unwrap().collect();
        assert_eq!(passes.len(), 2);
        for offset in [window - 512, window] {
            let twice = passes.iter_mut().filter_map(|pass| {
                pass.note(Use::Data, offset).unwrap();
                pass.note(Use::Data, offset).err()
            });
            assert_eq!(twice.count(), 1, "{offset}");
        }
        assert!(Usage::passes(16 * window, size).is_ok());
        let error = Usage::passes(16 * window + 1, size).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::TooLarge);
    }
}
