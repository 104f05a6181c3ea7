//! The disk, cut into parts to be encoded.

use std::iter::FusedIterator;
use std::sync::Arc;

use super::JOB_SIZE;
use crate::map::{Origin, Piece, Pieces};
use crate::{Error, Image};

/// The most parts of the disk that a job of zeros is about: 2 GiB, which become 2 MiB of gzip, as much as any other job may.
const ZERO_PARTS_MAX: u64 = 1024;

/// A part of the disk, from a multiple of [`JOB_LEN`](super::JOB_LEN) on and of at most that many bytes; several such parts if
/// they are known to be zeros.
#[derive(Debug, Clone)]
pub struct Job {
    pub(super) guest: u64,
    pub(super) content: Content,
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// In the source: in guest order, without a gap, none empty.
    Pieces(Vec<Piece>),
    /// Here.
    Bytes(Vec<u8>),
    /// Nowhere: so many parts of [`JOB_LEN`](super::JOB_LEN) zeros.
    Zeros { parts: u64 },
}

impl Job {
    /// The part of a disk that starts at guest offset `guest` and is `bytes`.
    ///
    /// `guest` is a multiple of [`JOB_LEN`](super::JOB_LEN), and only the last part of a disk may have fewer bytes than that.
    pub fn of_bytes(guest: u64, bytes: Vec<u8>) -> Self {
        Self {
            guest,
            content: Content::Bytes(bytes),
        }
    }

    /// How many bytes of the disk it is about.
    #[expect(clippy::len_without_is_empty, reason = "no job is empty")]
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Pieces(pieces) => pieces.iter().map(|piece| piece.len).sum(),
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros { parts } => parts.saturating_mul(JOB_SIZE),
        }
    }
}

/// The jobs of an [`Encoding`](super::Encoding).
#[derive(Debug)]
pub struct Jobs {
    pieces: Option<Pieces<Arc<dyn Image>>>,
    /// A piece that belongs to the next job, or begins before it ends.
    ahead: Option<Piece>,
    /// Where the next job starts, unless zeros are passed over.
    guest: u64,
    virtual_size: u64,
    keeps_zeros: bool,
}

impl Jobs {
    pub(super) fn new(image: Option<Arc<dyn Image>>, keeps_zeros: bool) -> Self {
        Self {
            virtual_size: image.as_ref().map_or(0, Image::virtual_size),
            pieces: image.map(Pieces::new),
            ahead: None,
            guest: 0,
            keeps_zeros,
        }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, Error> {
        if let Some(piece) = self.ahead.take() {
            return Ok(Some(piece));
        }
        self.pieces.as_mut().and_then(Iterator::next).transpose()
    }

    /// Passes over whole jobs of zeros, and gives the first piece behind them.
    fn first_piece(&mut self) -> Result<Option<Piece>, Error> {
        while let Some(piece) = self.next_piece()? {
            let end = self.end();
            if self.keeps_zeros || piece.origin != Origin::Zero || piece.end() < end {
                return Ok(Some(piece));
            }
            let last = piece.end() == self.virtual_size;
            let passed = if last {
                piece.end()
            } else {
                piece.end().saturating_sub(piece.end() % JOB_SIZE)
            };
            self.guest = passed;
            if passed < piece.end() {
                (_, self.ahead) = piece.split_at(passed);
            }
        }
        Ok(None)
    }

    /// Where the job ends that starts at `guest`.
    fn end(&self) -> u64 {
        self.guest.saturating_add(JOB_SIZE).min(self.virtual_size)
    }

    /// The job of the whole parts of zeros that `piece`, which a job begins with, begins with.
    fn zeros(&mut self, piece: Piece) -> Option<Job> {
        let parts = (piece.len / JOB_SIZE).min(ZERO_PARTS_MAX);
        if piece.origin != Origin::Zero || parts == 0 {
            return None;
        }
        let guest = self.guest;
        self.guest = guest.saturating_add(parts.saturating_mul(JOB_SIZE));
        (_, self.ahead) = piece.split_at(self.guest);
        Some(Job {
            guest,
            content: Content::Zeros { parts },
        })
    }

    fn fetch(&mut self) -> Result<Option<Job>, Error> {
        let Some(mut piece) = self.first_piece()? else {
            return Ok(None);
        };
        if let Some(zeros) = self.zeros(piece) {
            return Ok(Some(zeros));
        }
        let (guest, end) = (self.guest, self.end());
        let mut pieces = Vec::new();
        loop {
            let (inside, rest) = piece.split_at(end);
            pieces.push(inside);
            if inside.end() >= end {
                self.ahead = rest;
                break;
            }
            match self.next_piece()? {
                Some(next) => piece = next,
                None => return Err(Error::corrupt("the source has changed while it was read")),
            }
        }
        self.guest = end;
        Ok(Some(Job {
            guest,
            content: Content::Pieces(pieces),
        }))
    }
}

impl Iterator for Jobs {
    type Item = Result<Job, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let job = self.fetch().transpose();
        if !matches!(job, Some(Ok(_))) {
            (self.pieces, self.ahead) = (None, None);
        }
        job
    }
}

impl FusedIterator for Jobs {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Mapping};

    /// Mappings by end and kind.
    struct Runs(Vec<(u64, char)>);

    impl Image for Runs {
        fn format(&self) -> Format {
            Format::Raw
        }

        fn virtual_size(&self) -> u64 {
            self.0.last().map_or(0, |run| run.0)
        }

        fn file_size(&self) -> u64 {
            u64::MAX
        }

        fn map(&self, guest: u64) -> Result<Mapping, Error> {
            let (end, kind) = *self.0.iter().find(|run| guest < run.0).unwrap();
            let len = end - guest;
            match kind {
                'z' => Ok(Mapping::Zero { len }),
                'd' => Ok(Mapping::Data { offset: guest, len }),
                _ => Err(Error::corrupt("e")),
            }
        }
    }

    const JOB: u64 = JOB_SIZE;

    fn jobs(runs: &[(u64, char)], keeps_zeros: bool) -> Vec<String> {
        let image: Arc<dyn Image> = Arc::new(Runs(runs.to_vec()));
        Jobs::new(Some(image), keeps_zeros)
            .map(|job| match job {
                Ok(Job {
                    guest,
                    content: Content::Pieces(pieces),
                }) => {
                    let kind = |piece: &Piece| if piece.origin == Origin::Zero { 'z' } else { 'd' };
                    let pieces: Vec<_> = pieces.iter().map(|p| format!("{}{}", kind(p), p.len)).collect();
                    format!("{}+{}: {}", guest / JOB, guest % JOB, pieces.join(" "))
                }
                Ok(Job {
                    guest,
                    content: Content::Zeros { parts },
                }) => format!("{}+{}: {parts} of zeros", guest / JOB, guest % JOB),
                Ok(other) => panic!("{other:?}"),
                Err(error) => error.reason().to_owned(),
            })
            .collect()
    }

    #[test]
    fn jobs_cover_the_disk_but_for_zeros() {
        let runs = [
            (5 * JOB + 7, 'z'),
            (6 * JOB + 1, 'd'),
            (9 * JOB - 1, 'z'),
            (9 * JOB + 3, 'd'),
            (12 * JOB + 9, 'z'),
        ];
        let expected = [
            format!("5+0: z7 d{}", JOB - 7),
            format!("6+0: d1 z{}", JOB - 1),
            format!("8+0: z{} d1", JOB - 1),
            format!("9+0: d3 z{}", JOB - 3),
        ];
        assert_eq!(jobs(&runs, false), expected);
        let all = [
            "0+0: 5 of zeros".to_owned(),
            expected[0].clone(),
            expected[1].clone(),
            "7+0: 1 of zeros".to_owned(),
            expected[2].clone(),
            expected[3].clone(),
            "10+0: 2 of zeros".to_owned(),
            "12+0: z9".to_owned(),
        ];
        assert_eq!(jobs(&runs, true), all);
    }

    #[test]
    fn zeros_that_are_kept_come_by_many_parts() {
        let size = 64 << 40;
        let all = jobs(&[(size - 5, 'z'), (size, 'd')], true);
        assert_eq!(all.len() as u64, size / (ZERO_PARTS_MAX * JOB) + 1);
        assert_eq!(all[1], "1024+0: 1024 of zeros");
        assert!(all[all.len() - 2].ends_with("+0: 1023 of zeros"));
        assert!(all[all.len() - 1].ends_with(&format!("+0: z{} d5", JOB - 5)));
    }

    #[test]
    fn empty_and_zero_disks_have_no_jobs() {
        assert!(jobs(&[], true).is_empty());
        for end in [1, JOB - 1, JOB, JOB + 1, 2 * JOB] {
            assert!(jobs(&[(end, 'z')], false).is_empty(), "{end}");
        }
    }

    #[test]
    fn an_error_ends_them() {
        assert_eq!(
            jobs(&[(JOB, 'd'), (2 * JOB, 'e')], false),
            [format!("0+0: d{JOB}"), "e".to_owned()]
        );
        assert_eq!(
            jobs(&[(JOB + 1, 'd'), (2 * JOB, 'e')], true),
            [format!("0+0: d{JOB}"), "e".to_owned()]
        );
    }
}
