//! What Lithos keeps, and when it is safe.
//!
//! A [`Store`] joins an index ([`kv`]) and blobs ([`blob`]) into buckets, objects, multipart uploads and jobs. An object
//! is a [`layout`] of extents over immutable blobs; copies, conversions and completed uploads are new layouts over blobs
//! that exist already.
//!
//! # The write protocol, and what a crash leaves
//!
//! | step | what happens | a crash after it leaves |
//! | --- | --- | --- |
//! | 1 | an intent for the blob goes into the index ([`Durability::Buffered`](kv::Durability)) | an intent, which expires |
//! | 2 | the bytes are written under a temporary name | a temporary file, removed at the next start |
//! | 3 | the blob is sealed: checksums, `fdatasync`, rename, sync of the folder | a blob that only an intent names: swept |
//! | 4 | one synced transaction removes the intent, which must still be there, and inserts the blob, the layout and the object version, and releases the version it replaces, unless the bucket keeps versions | the whole object, and an entry for the sweep |
//! | 5 | the client gets its 200 | |
//! | 6 | the sweep deletes rows and blobs of the released layout, in bounded steps | the same entry for the sweep |
//!
//! A writer that is late finds its intent gone and fails; it can harm nothing. Clocks decide *when* something is swept,
//! never *whether* it may be. Giving a blob up is the way back: its intent is marked as dropped, so that no commit can take
//! the blob up any more, then the blob goes, then the intent. So after a crash of the process [`Store::recover`] finds by
//! their intents all blobs that no layout has. The intent needs no sync: after a crash of the machine, a blob that neither
//! an intent nor a layout names is found by listing ([`Store::sweep_strays`]).
//!
//! # Who keeps a blob alive
//!
//! A blob is named after the layout that owns it ([`BlobId`](blob::BlobId)). A layout borrows when its extents lie in
//! another's blobs; each borrowing is a pair of rows. A layout whose version is gone stays while it has borrowers, and is
//! swept when the last one goes. So whatever an object's size, writing, copying, converting and deleting it takes a
//! handful of index operations.
//!
//! The sweep frees only what nothing can reach: it marks a layout as dying in a transaction that has *read* the whole
//! range of its borrowers and found none; a new borrower *reads* the layout's record and finds it not dying. Both reads
//! are protected, so of two such transactions at the same time one meets a conflict. Readers in this process pin the
//! layout they read ([`OpenObject`]), and the sweep leaves pinned layouts alone. A reader that has looked an object up and
//! then pins its layout looks again if a sweep has ended in between.
//!
//! # Versions
//!
//! A bucket may keep the versions that writes and deletes would take away ([`Versioning`]). The module `version` has the
//! rules, and why a listing of objects costs the same however many there are. Each version has a layout of its own, so all
//! that is said above of objects holds of each version.
//!
//! # What is deliberately absent
//!
//! No status code, header name or XML; no image format; no network. Clocks and engines are passed in.

pub mod blob;
mod bucket;
pub mod clock;
mod compact;
mod compress;
mod damage;
mod digest;
mod error;
pub mod fault;
mod format;
pub mod fsck;
mod gc;
mod hashing;
mod ingest;
pub mod job;
pub mod kv;
pub mod layout;
pub mod lifecycle;
mod list;
mod list_versions;
pub mod local;
mod lock;
mod multipart;
mod object;
mod part_checksum;
mod peer;
mod pin;
mod quota;
mod read;
mod replica;
mod rows;
mod schema;
mod scrub;
mod space;
mod staging;
mod store;
pub mod upgrade;
mod user;
mod version;

pub use self::{
    compact::CompactStep,
    compress::{CompressPlace, CompressStep},
    damage::DamageRecord,
    digest::{DigestSet, Digests},
    error::{Damage, Error, ErrorKind, Result},
    format::Format,
    gc::{Recovered, SweepReport},
    ingest::{BodyError, IngestOptions, Ingested},
    list::{ListObjects, ListUploads, Listing, ListingEntry, UploadEntry, UploadListing},
    list_versions::{ListVersions, VersionEntry},
    lock::Governance,
    multipart::{CompletedPart, NewUpload, OpenUpload, PartListing},
    object::{DeleteCondition, Deleted, JOBS_MAX, NewObject, OpenObject, PutOutcome, SourceVersion, WriteCondition},
    part_checksum::PARTS_A_READ_MAX,
    peer::{PEERS_MAX, PeerRecord},
    read::{ObjectReader, ReadStream},
    replica::{BLOB_TRAILER_LEN, MissingBlobs, REPLICA_BLOBS_MAX, Replica, ReplicaOutcome},
    schema::{
        BucketId, BucketName, BucketRecord, Checksum, ChecksumAlgorithm, ChecksumType, ContentHeaders,
        DefaultRetention, DeleteMarker, JobId, LayoutId, LockMode, ObjectKey, ObjectLock, ObjectRecord, PartNumber,
        PartRecord, PartSize, QuotaRecord, Retention, RetentionPeriod, Tags, UploadRecord, Usage, Version, VersionId,
        VersionLock, VersionStamp, Versioning,
    },
    scrub::{Scrub, ScrubState, ScrubStep},
    staging::{Content, ContentBuilder, Staging},
    store::{Limits, Store},
    user::{AccessKeyRecord, KEYS_OF_USER_MAX, UserRecord},
    version::VersionState,
};
