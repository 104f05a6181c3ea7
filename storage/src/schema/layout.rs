//! Who owns blobs, who borrows them, and what is to be cleared.

use minicbor::{Decode, Encode};

use super::{BucketId, ObjectKey, VersionStamp};
use crate::clock::Timestamp;

/// A layout that owns blobs or borrows some of another layout's.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LayoutRecord {
    /// Whether something still names it.
    #[n(0)]
    pub(crate) state: LayoutState,
    /// Whether it owns blobs; if not, a copy of it borrows from the same owners instead of from it.
    #[n(1)]
    pub(crate) owns_blobs: bool,
    /// What has it, or had it last. Since format 2; a layout that nothing has had yet has none.
    #[n(2)]
    pub(crate) holder: Option<Holder>,
}

/// The way from a layout back to the record that refers to it: the version of that object, current or not, that has the
/// layout's id, or else the upload of that name and id. Completing an upload leaves its name as it is, so both are found
/// alike. A version that becomes current, or ceases to be, keeps its sequence, so the holder need not be written anew.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Holder {
    /// The bucket.
    #[n(0)]
    pub(crate) bucket: BucketId,
    /// The object's key, or that of the object to be.
    #[n(1)]
    pub(crate) key: String,
    /// The sequence of the version. 0 for an upload, and for what was written before there were versions.
    #[n(2)]
    #[cbor(default)]
    pub(crate) sequence: u64,
}

impl Holder {
    /// An upload to `key` of `bucket`.
    pub(crate) fn upload(bucket: BucketId, key: &ObjectKey) -> Self {
        Self::version(bucket, key, VersionStamp::default())
    }

    /// A version of the object `key` of `bucket`.
    pub(crate) fn version(bucket: BucketId, key: &ObjectKey, stamp: VersionStamp) -> Self {
        Self {
            bucket,
            key: key.as_str().to_owned(),
            sequence: stamp.sequence,
        }
    }
}

/// The life of a layout. It only moves forward, except that a replica may hold a released one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum LayoutState {
    /// An object version or an upload in progress has it.
    #[n(0)]
    Held,
    /// Nothing has it any more; it stays as long as others borrow its blobs.
    #[n(1)]
    Released,
    /// It is being swept; nothing may borrow from it any more.
    #[n(2)]
    Dying,
}

/// A blob in use.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BlobRecord {
    /// Its length in bytes.
    #[n(0)]
    pub(crate) len: u64,
    /// The bytes it takes on the disk, once it was compressed, or found not to be worth it.
    #[n(1)]
    pub(crate) stored: Option<u64>,
}

impl BlobRecord {
    /// A blob as it was written.
    pub(crate) fn new(len: u64) -> Self {
        Self { len, stored: None }
    }
}

/// A blob that is being written, or is sealed and waits for its layout.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct IntentRecord {
    /// After this the sweep may take it, and its writer can no longer commit.
    #[n(0)]
    pub(crate) expires: Timestamp,
    /// How far it has come.
    #[n(1)]
    #[cbor(default)]
    pub(crate) stage: IntentStage,
}

/// How far a blob with an intent has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) enum IntentStage {
    /// It is being written, or its writer holds it until its commit.
    #[default]
    #[n(0)]
    Writing,
    /// It came from another server and is whole, with this length in bytes. It outlives a restart: nobody here holds it.
    #[n(1)]
    Arrived(#[n(0)] u64),
    /// It is being deleted. Nobody may begin to write it until that is done.
    #[n(2)]
    Dropped,
}

/// A layout that the sweep shall look at.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct DeadLayout {
    /// Not before this time.
    #[n(0)]
    pub(crate) not_before: Timestamp,
}
