//! Header extensions: what follows the fixed fields in the header cluster.
//!
//! Each is a type and a length of four bytes, and content padded to eight bytes; type 0 ends them.
//!
//! Format: QEMU qcow2 specification, "Header extensions".

use nom::bytes::complete::take;
use nom::number::complete::be_u32;
use nom::{IResult, Parser};

use crate::Error;
use crate::safety::quote;

/// What the header extensions say, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// Foreign names.
    pub(crate) backing_format: Option<Vec<u8>>,
    pub(crate) data_file: Option<Vec<u8>>,
    /// Type (0 incompatible, 1 compatible, 2 autoclear), bit number and quoted name.
    pub(crate) feature_names: Vec<(u8, u8, String)>,
    pub(crate) bitmaps: bool,
    pub(crate) encryption_header: bool,
}

impl Extensions {
    /// Parses the extensions that start at byte `start` of the file.
    pub(crate) fn parse(bytes: &[u8], start: u64) -> Result<Self, Error> {
        let mut extensions = Self::default();
        let mut input = bytes;
        while !input.is_empty() {
            let place = start.saturating_add(bytes.len().saturating_sub(input.len()) as u64);
            let (rest, (kind, content)) = extension(input).map_err(|_| {
                Error::corrupt("a header extension reaches beyond the header cluster or the backing file name")
                    .at(place)
            })?;
            match kind {
                0 => break,
                0xe279_2aca => extensions.backing_format = Some(content.to_vec()),
                0x4441_5441 => extensions.data_file = Some(content.to_vec()),
                0x6803_f857 => extensions.feature_names = feature_names(content),
                0x2385_2875 => extensions.bitmaps = true,
                0x0537_be77 => extensions.encryption_header = true,
                _ => {} // The specification says to ignore what is unknown.
            }
            input = rest;
        }
        Ok(extensions)
    }
}

fn extension(input: &[u8]) -> IResult<&[u8], (u32, &[u8])> {
    let (input, (kind, len)) = (be_u32, be_u32).parse(input)?;
    if kind == 0 {
        return Ok((input, (0, &[])));
    }
    let (input, content) = take(len)(input)?;
    let padding = (len.wrapping_neg() % 8) as usize;
    // The last extension may end with the area, without its padding.
    let (input, _) = take(padding.min(input.len()))(input)?;
    Ok((input, (kind, content)))
}

/// Entries of 48 bytes: type, bit number, and a name padded with zeros.
fn feature_names(content: &[u8]) -> Vec<(u8, u8, String)> {
    let (entries, _) = content.as_chunks::<48>();
    let named = entries.iter().filter_map(|[kind, bit, name @ ..]| {
        let name = name.split(|byte| *byte == 0).next()?;
        Some((*kind, *bit, quote(name)))
    });
    // Three fields of 64 bits are all that there is to name.
    named.take(192).collect()
}
