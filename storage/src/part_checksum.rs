//! The checksums of a completed upload's parts, kept beside the object that they became.
//!
//! They are shown by part number and in lists of parts. 10,000 of them do not fit the object's record, so they lie in
//! rows of their own, a page of parts each. The transaction that completes the upload writes them, and the one that frees
//! the layout removes them: a crash leaves both or neither. A copy of the object has none.

use std::ops::Range;

use crate::{
    error::Result,
    kv::{Order, Scan, Txn},
    object::OpenObject,
    schema::{Checksum, ChecksumType, Keys, LayoutId, PartNumber, decode, encode},
    store::Store,
};

/// Most parts whose checksums one call reads: a page of a listing.
pub const PARTS_A_READ_MAX: u32 = 1000;
/// Parts of one row: 1,000 times a SHA256 in base64 are 46 KB, which fits a value.
const ROW_PARTS: u16 = 1000;
/// Rows of the longest object.
const ROWS_MAX: usize = PartNumber::MAX.div_ceil(ROW_PARTS) as usize;

/// Notes the checksums of `parts` in their order, if the object has one that was made of them.
pub(crate) fn keep_part_checksums<'c>(
    txn: &mut Txn,
    layout: LayoutId,
    whole: Option<&Checksum>,
    parts: impl Iterator<Item = Option<&'c Checksum>>,
) -> Result<()> {
    let Some(whole) = whole else { return Ok(()) };
    let values: Vec<&str> = parts
        .flatten()
        .filter(|part| part.algorithm == whole.algorithm)
        .map(|part| part.value.as_str())
        .collect();
    for (page, values) in (0..).zip(values.chunks(usize::from(ROW_PARTS))) {
        txn.put(Keys::part_checksums(layout, page), encode(&values))?;
    }
    Ok(())
}

/// Removes what [`keep_part_checksums`] noted.
pub(crate) async fn clear_part_checksums(txn: &mut Txn, layout: LayoutId) -> Result<()> {
    let scan = Scan {
        range: Keys::part_checksums_of(layout),
        limit: ROWS_MAX,
        order: Order::Ascending,
    };
    for (row, _) in txn.scan(&scan).await?.rows {
        txn.delete(row)?;
    }
    Ok(())
}

impl Store {
    /// The checksums of the `parts` of an open object, which are counted from 0, at most [`PARTS_A_READ_MAX`] of them.
    /// Empty if they are not known: then no checksum was announced with the upload, or the object is a copy.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the index cannot be read.
    pub async fn part_checksums(&self, object: &OpenObject, parts: Range<u32>) -> Result<Vec<Checksum>> {
        let Some(whole) = &object.record.checksum else {
            return Ok(Vec::new());
        };
        let end = parts.end.min(parts.start.saturating_add(PARTS_A_READ_MAX));
        let mut txn = self.begin().await?;
        let mut checksums = Vec::new();
        let mut row: Option<(u16, Vec<String>)> = None;
        for part in parts.start..end {
            let Ok(page) = u16::try_from(part / u32::from(ROW_PARTS)) else {
                break;
            };
            if row.as_ref().is_none_or(|(read, _)| *read != page) {
                let Some(value) = txn.get(&Keys::part_checksums(object.record.layout_id, page)).await? else {
                    break;
                };
                row = Some((page, decode(&value)?));
            }
            let values = row.as_ref().map(|(_, values)| values.as_slice()).unwrap_or_default();
            let Some(value) = values.get((part % u32::from(ROW_PARTS)) as usize) else {
                break;
            };
            checksums.push(Checksum {
                algorithm: whole.algorithm,
                value: value.clone(),
                kind: ChecksumType::FullObject,
            });
        }
        Ok(checksums)
    }
}
