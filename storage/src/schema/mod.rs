//! The records the index holds, one type a file, and the keys they live under.
//!
//! Every key begins with one byte that names its table:
//!
//! | table | key after the table byte | value |
//! | --- | --- | --- |
//! | `B` | bucket name | [`BucketRecord`] |
//! | `O` | bucket id, object key | [`ObjectRecord`] of the current version |
//! | `V` | bucket id, object key with each byte one larger, NUL, sequence inverted | [`VersionRow`]: a version that is not current, or a delete marker; the newest of a key first |
//! | `v` | bucket id, object key | the sequence of the row of table `V` that is the key's null version, if one is |
//! | `U` | bucket id, object key, NUL, upload id | [`UploadRecord`] |
//! | `P` | upload id, part number | [`PartRecord`] |
//! | `N` | layout id, page | the checksums of a completed upload's parts, a page of them |
//! | `E` | upload id | [`EndedUpload`]: parts to clear in the background |
//! | `L` | layout id | [`LayoutRecord`], if the layout owns blobs or borrows some |
//! | `X` | owner's layout id, blob index | [`BlobRecord`]: a blob in use |
//! | `I` | owner's layout id, blob index | [`IntentRecord`]: a blob being written |
//! | `A` | layout id, owner's layout id | empty: the first layout borrows blobs of the second |
//! | `C` | owner's layout id, layout id | empty: the same fact, found from the owner |
//! | `D` | layout id | [`DeadLayout`]: to be looked at by the sweep |
//! | `H` | owner's layout id, blob index | [`DamageRecord`](crate::DamageRecord): a damaged blob |
//! | `K` | layout id | [`CompressRecord`](crate::compress::CompressRecord): its blobs are to be compressed |
//! | `Y` | layout id | [`DeadLayout`]: its blobs may be worth compacting |
//! | `J` | job id | [`JobRecord`](crate::job::JobRecord) |
//! | `Q` | due time, job id | empty: when the job wants a worker |
//! | `S` | name | a peer server |
//! | `T` | bucket id, `r` | [`LifecycleRecord`](crate::lifecycle::LifecycleRecord): the bucket's rules |
//! | `T` | bucket id, `s` | [`LifecycleState`](crate::lifecycle::LifecycleState): how far they have been carried out |
//! | `R` | user name | [`UserRecord`](crate::UserRecord) |
//! | `G` | user id | the user's name |
//! | `F` | access key | the name of the user who has it |
//! | `M` | name | facts about the store itself, its format version (`format`) and the release that wrote last (`release`) |
//! | `W` | `b`, bucket id, measure | a counter: what the bucket holds, in bytes (`b`) or objects (`o`) |
//! | `W` | `u`, measure, user | a counter: what all buckets of the user hold |
//! | `W` | `p`, upload id | a counter: bytes of the parts of an upload in progress |
//! | `Z` | user | [`QuotaRecord`] of all buckets of the user |
//!
//! Ids are 16 bytes, numbers big-endian, so that keys sort as their parts do. Text in UTF-8 has no byte 255, so each byte
//! of an object key can be made one larger to have NUL end it: then versions sort by key first, as objects do. Values are CBOR arrays with numbered
//! fields (RFC 8949), so that a later version can add fields that an earlier record lacks; counters are those of
//! [`kv`](crate::kv).

mod bucket;
mod id;
mod key;
mod layout;
mod lock;
mod object;
mod quota;
mod upload;
mod version;

pub use self::{
    bucket::{BucketName, BucketRecord},
    id::{BucketId, JobId, LayoutId},
    key::ObjectKey,
    lock::{DefaultRetention, LockMode, ObjectLock, Retention, RetentionPeriod, VersionLock},
    object::{Checksum, ChecksumAlgorithm, ChecksumType, ContentHeaders, ObjectRecord, PartSize, Tags},
    quota::{QuotaRecord, Usage},
    upload::{PartNumber, PartRecord, UploadRecord},
    version::{DeleteMarker, Version, VersionId, VersionStamp, Versioning},
};
pub(crate) use self::{
    id::random_u64,
    key::{Keys, upload_key_parts},
    layout::{BlobRecord, DeadLayout, Holder, IntentRecord, IntentStage, LayoutRecord, LayoutState},
    quota::Measure,
    upload::EndedUpload,
    version::VersionRow,
};

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::error::{Error, Result};

/// The format of what this version writes. A store of another format is not opened; `upgrade` knows the way from older ones.
///
/// | format | since then |
/// | --- | --- |
/// | 1 | the tables above |
/// | 2 | a [`LayoutRecord`] names its holder; blob files may be compressed |
/// | 3 | tables `V` and `v`; an object has a [`VersionStamp`], and a holder the version |
pub(crate) const FORMAT_VERSION: u64 = 3;

/// Renders a record.
pub(crate) fn encode<T: Encode<()>>(record: &T) -> Bytes {
    minicbor::to_vec(record).expect("writing to memory cannot fail").into()
}

/// Reads a record back.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) naming the record's type.
pub(crate) fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T> {
    minicbor::decode(bytes)
        .map_err(|e| Error::corrupt(format!("the index holds a damaged {}", short_name::<T>())).caused_by(e))
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}
