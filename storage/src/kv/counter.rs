//! Counters: rows that transactions add to without reading them.
//!
//! A counter is a number of eight big-endian bytes; one that is zero has no row. Additions commute, so two transactions
//! that add to one counter do not conflict: the engine adds when it commits, in the serial order. What may not be
//! commutative, a limit, is checked at the same place: see [`Txn::require_at_most`](super::Txn::require_at_most).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Commit;
use crate::error::{Error, Result};

/// Bytes of a counter's value.
pub(super) const COUNTER_LEN: usize = size_of::<u64>();

/// New values of rows, and `None` for rows to delete.
pub(super) type Rows = BTreeMap<Bytes, Option<Bytes>>;

/// The number in a row.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if it is none.
pub(crate) fn parse(key: &[u8], value: Option<&[u8]>) -> Result<u64> {
    let Some(value) = value else { return Ok(0) };
    match <[u8; COUNTER_LEN]>::try_from(value) {
        Ok(value) => Ok(u64::from_be_bytes(value)),
        Err(_) => Err(Error::corrupt(format!(
            "the index holds no counter under {}",
            hex::encode(key)
        ))),
    }
}

/// The row for a number.
pub(super) fn render(number: u64) -> Option<Bytes> {
    (number > 0).then(|| Bytes::copy_from_slice(&number.to_be_bytes()))
}

/// The row that an addition leaves.
///
/// # Errors
///
/// As for [`parse`].
pub(super) fn add(key: &[u8], value: Option<&[u8]>, delta: i64) -> Result<Option<Bytes>> {
    Ok(render(parse(key, value)?.saturating_add_signed(delta)))
}

/// The counters that `commit` leaves, over the rows of `stored`; `None` if one is over its limit.
///
/// # Errors
///
/// The error of `stored`, and as for [`parse`].
pub(super) fn settle(commit: &Commit, stored: impl Fn(&[u8]) -> Result<Option<Bytes>>) -> Result<Option<Rows>> {
    let mut sums = BTreeMap::new();
    for (key, delta) in &commit.adds {
        let before = parse(key, stored(key)?.as_deref())?;
        if before.checked_add_signed(*delta).is_none() {
            tracing::error!(
                key = hex::encode(key),
                before,
                delta,
                "a counter would leave its range and stays at the end of it"
            );
        }
        sums.insert(key.clone(), before.saturating_add_signed(*delta));
    }
    for (key, max) in &commit.at_most {
        let sum = match sums.get(key) {
            Some(sum) => *sum,
            None => parse(key, stored(key)?.as_deref())?,
        };
        if sum > *max {
            return Ok(None);
        }
    }
    Ok(Some(sums.into_iter().map(|(key, sum)| (key, render(sum))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::ErrorKind,
        kv::{Durability, Version},
    };

    fn commit(adds: &[(&'static str, i64)], at_most: &[(&'static str, u64)]) -> Commit {
        Commit {
            read_version: Version(0),
            read_keys: Vec::new(),
            read_ranges: Vec::new(),
            writes: Rows::new(),
            adds: adds.iter().map(|(key, delta)| (Bytes::from(*key), *delta)).collect(),
            at_most: at_most.iter().map(|(key, max)| (Bytes::from(*key), *max)).collect(),
            durability: Durability::Synced,
        }
    }

    #[test]
    fn sums_stay_in_their_range_and_under_their_limits() {
        let stored = |key: &[u8]| Ok(if key == b"ten" { render(10) } else { None });
        let cases = [
            (commit(&[("ten", 5)], &[("ten", 15)]), Some(15)),
            (commit(&[("ten", 5)], &[("ten", 14)]), None),
            (commit(&[("ten", -10)], &[("ten", 0)]), Some(0)),
            (commit(&[("ten", -11)], &[]), Some(0)),
            (commit(&[("ten", 1)], &[("none", 0)]), Some(11)),
            (commit(&[("none", 1)], &[("ten", 9)]), None),
        ];
        for (commit, expected) in cases {
            let sums = settle(&commit, stored).unwrap();
            assert_eq!(sums.is_some(), expected.is_some(), "{commit:?}");
            if let Some(sums) = sums {
                let sum = sums.get(&b"ten"[..]).cloned().unwrap_or_default();
                assert_eq!(
                    parse(b"ten", sum.as_deref()).unwrap(),
                    if commit.adds.contains_key(&b"ten"[..]) {
                        expected.unwrap()
                    } else {
                        0
                    },
                    "{commit:?}"
                );
            }
        }
    }

    #[test]
    fn a_row_that_is_no_counter_is_damage() {
        for value in [&b""[..], b"1234567", b"123456789"] {
            assert_eq!(parse(b"key", Some(value)).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert_eq!(parse(b"key", Some(&7_u64.to_be_bytes())).unwrap(), 7);
        assert_eq!(parse(b"key", None).unwrap(), 0);
    }
}
