//! What one client may find of what it did: the oracle.
//!
//! A client has keys of its own and does one thing at a time. What was acknowledged is what a key is; what was sent and
//! not acknowledged, because the server or its disk was gone, is one more thing that the key may be, until a look at the
//! restarted server tells. Nothing else is allowed: no mixture of two, and nothing from before the last acknowledgement.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::versions::Versions;
use crate::pattern::md5_hex;

/// The tags of an object.
pub(super) type Tags = BTreeMap<String, String>;

/// An object as one attempt to write it would have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) bytes: Bytes,
    /// Without quotes; `None` where only the server knows.
    pub(super) etag: Option<String>,
    pub(super) tags: Tags,
}

impl Version {
    pub(super) fn new(bytes: Bytes, tags: Tags) -> Self {
        let etag = Some(md5_hex(&bytes));
        Self { bytes, etag, tags }
    }
}

/// What a key may be.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// `None` is no object. Never empty.
    pub(super) may: Vec<Option<Version>>,
}

impl Default for Known {
    fn default() -> Self {
        Self { may: vec![None] }
    }
}

impl Known {
    /// What it is, if that is certain.
    pub(super) fn settled(&self) -> Option<&Option<Version>> {
        match self.may.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Takes note of a write of which the outcome is this.
    pub(super) fn written(&mut self, version: Option<Version>, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.may = vec![version],
            Outcome::Refused => {}
            Outcome::Unknown => self.may.push(version),
        }
    }
}

/// What is known of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was acknowledged.
    Done,
    /// It was answered with an error that says that nothing was done.
    Refused,
    /// It may have been done, or not.
    Unknown,
}

/// A part of an upload as one attempt to write it would have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) bytes: Bytes,
    pub(super) etag: Option<String>,
}

/// An upload in progress.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) tags: Tags,
    /// What each part may be; `None` is no part.
    pub(super) parts: BTreeMap<u16, Vec<Option<Part>>>,
    /// It may have ended: a completion or an abortion was not answered.
    pub(super) may_have_ended: bool,
}

impl Upload {
    /// Parts of which it is certain what they are.
    pub(super) fn settled(&self) -> impl Iterator<Item = (u16, &Part)> {
        self.parts.iter().filter_map(|(number, may)| match may.as_slice() {
            [Some(part)] if part.etag.is_some() => Some((*number, part)),
            _ => None,
        })
    }
}

/// All that one client knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) objects: BTreeMap<String, Known>,
    pub(super) uploads: BTreeMap<String, Upload>,
    /// Keys of the bucket that keeps versions.
    pub(super) versioned: BTreeMap<String, Versions>,
    /// The upload that was completed last, with its parts and where it stands, to be completed again.
    pub(super) completed: Option<Completed>,
    /// Uploads that may have begun, of which the id was not answered.
    pub(super) nameless: usize,
}

/// An upload that was completed.
#[derive(Debug, Clone)]
pub(super) struct Completed {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) body: String,
}
