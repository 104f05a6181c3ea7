//! The checks that every format shares: bounds, regions, and quoting of names that come from an image.
//!
//! A size that has passed [`virtual_size`] or [`Region::inside`] is far below `i64::MAX`, so that sums of a few of them cannot
//! overflow; code behind these checks may add with `saturating_add`, which is then exact.

use crate::{Error, ErrorKind, Limits, ReadAt, Run};

/// The largest disk that is accepted: 64 TiB, see [`Limits::DEFAULT`].
pub const MAX_VIRTUAL_SIZE: u64 = Limits::DEFAULT.virtual_size_max;

/// How much of a foreign name is quoted. qcow2 allows 1023 bytes; a reason should still fit into a log line.
const MAX_QUOTED_BYTES: usize = 128;

/// Refuses disks beyond [`MAX_VIRTUAL_SIZE`].
pub(crate) fn virtual_size(size: u64) -> Result<u64, Error> {
    if size <= MAX_VIRTUAL_SIZE {
        return Ok(size);
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("virtual size {size} is more than {MAX_VIRTUAL_SIZE} bytes (64 TiB)"),
    ))
}

/// Refuses a number that is beyond a bound.
pub(crate) fn at_most(name: &str, number: u64, max: u64) -> Result<u64, Error> {
    if number <= max {
        return Ok(number);
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("{name} {number} is more than {max}"),
    ))
}

/// A table or other structure that an image says is somewhere in its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// As the specification calls it, for the reason.
    pub(crate) name: &'static str,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Region {
    /// Refuses a region that does not start at a multiple of `alignment`, a power of two.
    pub(crate) fn aligned(self, alignment: u64) -> Result<Self, Error> {
        // By mask, since this is asked for every entry of every table, and a division is slow.
        if self.offset & alignment.saturating_sub(1) == 0 {
            return Ok(self);
        }
        Err(Error::corrupt(format!(
            "{} offset {} is not a multiple of {alignment}",
            self.name, self.offset
        )))
    }

    /// Refuses a region that is not wholly inside of a file of `file_size` bytes.
    pub(crate) fn inside(self, file_size: u64) -> Result<Self, Error> {
        if self.offset.checked_add(self.len).is_some_and(|end| end <= file_size) {
            return Ok(self);
        }
        let Self { name, offset, len } = self;
        Err(Error::corrupt(format!(
            "{name} of {len} bytes at {offset} reaches beyond the end of the file at {file_size}"
        )))
    }

    /// Refuses a region that shares a byte with one of `others`.
    pub(crate) fn keeps_off(self, others: &[Self]) -> Result<Self, Error> {
        match others.iter().find(|other| other.overlaps(self)) {
            None => Ok(self),
            Some(other) => {
                let reason = format!("{} at {} overlaps the {}", self.name, self.offset, other.name);
                Err(Error::corrupt(reason))
            }
        }
    }

    /// Whether the two share a byte.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset.saturating_add(other.len) && other.offset < self.offset.saturating_add(self.len)
    }
}

/// Reads what `region` names, which has been checked to be inside of the file.
pub(crate) fn read_region(source: &dyn ReadAt, region: Region) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(region.len).map_err(|_| Error::new(ErrorKind::TooLarge, region.name))?;
    let mut bytes = vec![0; len];
    source
        .read_exact_at(&mut bytes, region.offset)
        .map_err(|error| Error::io(region.name, error).at(region.offset))?;
    Ok(bytes)
}

/// Fills `buf` with the bytes at `offset` of the image file.
pub(crate) fn read_into(source: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<(), Error> {
    source
        .read_exact_at(buf, offset)
        .map_err(|error| Error::io("the image file", error).at(offset))
}

/// [`ReadAt::run_at`], held to its contract: never empty, never beyond the end.
pub(crate) fn run_at(source: &dyn ReadAt, offset: u64) -> Result<Run, Error> {
    let left = source.size().saturating_sub(offset);
    let run = source
        .run_at(offset)
        .map_err(|error| Error::io("where the holes are", error).at(offset))?;
    match run.len.min(left) {
        0 => Err(Error::io("an empty run", std::io::ErrorKind::InvalidData.into()).at(offset)),
        len => Ok(Run { len, ..run }),
    }
}

/// Shows a foreign name in quotes, with everything but plain printable text escaped, and cut to a bounded length.
pub(crate) fn quote(name: &[u8]) -> String {
    let shown = printable(&text(name));
    if is_cut(name) {
        format!("\"{shown}\" (cut, {} bytes in all)", name.len())
    } else {
        format!("\"{shown}\"")
    }
}

/// Foreign text as it is, but for what is no UTF-8, and cut to a bounded length.
pub(crate) fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let start = text.char_indices().take_while(|(index, _)| *index < MAX_QUOTED_BYTES);
    start.map(|(_, char)| char).collect()
}

/// Foreign text as it may be shown on a terminal: with everything but plain printable text escaped as Rust does, and so the
/// escape character and quotes themselves.
///
/// The fields of an [`Inspection`](crate::Inspection) hold text as the image has it, which may be anything. Messages of errors and
/// warnings are fit to be shown.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars() {
        if char.is_ascii_graphic() && char != '"' && char != '\\' || char == ' ' || char.is_alphanumeric() {
            shown.push(char);
        } else {
            shown.extend(char.escape_default());
        }
    }
    shown
}

/// Whether [`text`] leaves out a part.
fn is_cut(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.char_indices().any(|(index, _)| index >= MAX_QUOTED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_without_control_characters() {
        for (name, quoted) in [
            (&b"base.img"[..], "\"base.img\""),
            (b"a b\"c\\", "\"a b\\\"c\\\\\""),
            (b"/etc/passwd\n\x1b[2J\0", "\"/etc/passwd\\n\\u{1b}[2J\\u{0}\""),
            ("über\u{202e}".as_bytes(), "\"über\\u{202e}\""),
            (b"\xff", "\"\\u{fffd}\""),
        ] {
            assert_eq!(quote(name), quoted);
        }
    }

    #[test]
    fn text_is_kept_as_it_is_and_shown_escaped() {
        let kept = text(b"a\"b\n\x1b[2J\xff");
        assert_eq!(kept, "a\"b\n\u{1b}[2J\u{fffd}");
        assert_eq!(printable(&kept), "a\\\"b\\n\\u{1b}[2J\\u{fffd}");
        assert_eq!(text("\u{fc}".repeat(100).as_bytes()), "\u{fc}".repeat(64));
    }

    #[test]
    fn long_names_are_cut() {
        let quoted = quote(&[b'x'; 1023]);
        assert!(quoted.len() < 170, "{quoted}");
        assert!(quoted.ends_with("x\" (cut, 1023 bytes in all)"), "{quoted}");
    }

    #[test]
    fn regions_are_held_against_the_file() {
        let region = |offset, len| Region {
            name: "table",
            offset,
            len,
        };
        assert!(region(0, 10).inside(10).is_ok());
        assert!(region(10, 0).inside(10).is_ok());
        assert!(region(1, 10).inside(10).is_err());
        assert!(region(u64::MAX, 2).inside(u64::MAX).is_err());
        assert!(region(512, 1).aligned(512).is_ok());
        assert!(region(513, 1).aligned(512).is_err());
        assert!(region(0, 10).overlaps(region(9, 1)));
        assert!(!region(0, 10).overlaps(region(10, 1)));
        assert!(region(u64::MAX - 1, 8).overlaps(region(0, u64::MAX)));
    }

    #[test]
    fn disks_end_at_64_tib() {
        assert!(virtual_size(64 << 40).is_ok());
        assert_eq!(virtual_size((64 << 40) + 1).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
