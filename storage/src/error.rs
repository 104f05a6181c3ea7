//! The one public error of this crate.

use std::{fmt, io};

use crate::{blob::BlobId, schema::DeleteMarker};

/// What went wrong, for callers to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The bucket does not exist.
    NoSuchBucket,
    /// The bucket exists already.
    BucketAlreadyExists,
    /// The bucket still holds objects or uploads.
    BucketNotEmpty,
    /// The object does not exist, or its latest version is a delete marker, which the error then has.
    NoSuchKey,
    /// The object does not have this version.
    NoSuchVersion,
    /// The version is a delete marker, which has no content. The error has it.
    IsDeleteMarker,
    /// The multipart upload does not exist, or was completed or aborted.
    NoSuchUpload,
    /// A part named in a completion is missing or has another ETag.
    InvalidPart,
    /// The parts of a completion are not in ascending order.
    InvalidPartOrder,
    /// A part other than the last is below the minimum size.
    PartTooSmall,
    /// The job does not exist.
    NoSuchJob,
    /// The record asked for (a peer, a setting) does not exist.
    NoSuchRecord,
    /// A value from outside breaks a rule of the store; the message says which.
    InvalidArgument,
    /// An object, layout, key or value is over a named bound.
    TooLarge,
    /// The body ended before its declared length, or went past it.
    IncompleteBody,
    /// The body could not be read to its end (the client went away).
    BodyFailed,
    /// The object, layout or lease that the operation builds on has changed; look again.
    PreconditionFailed,
    /// What the object was made of is no longer the current version.
    SourceChanged,
    /// Too many concurrent changes of the same keys; try again.
    Contended,
    /// The engine could not say whether the transaction was committed.
    OutcomeUnknown,
    /// Stored bytes do not match their checksum or format.
    Corrupt,
    /// The disk is full, or less is free than is to be kept in reserve. Reads and deletes go on.
    StorageFull,
    /// The bucket has come to belong to somebody who does not let the caller do this.
    AccessDenied,
    /// Object lock protects the version.
    Locked,
    /// The bucket has no object lock.
    NoObjectLock,
    /// The bucket's versioning and object lock do not allow it.
    InvalidBucketState,
    /// A bucket or a user would hold more than their quota.
    QuotaExceeded,
    /// The store was opened for reading only, or the file system is.
    ReadOnly,
    /// The store was written in a format that this release cannot read, or must upgrade first; the message says which.
    Format,
    /// The disk or the engine failed.
    Io,
}

/// A damaged place of a blob: bytes that do not match their checksum, or that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The blob.
    pub blob: BlobId,
    /// Where the damage begins, in bytes of the blob's content; `None` if the blob as a whole is missing or unreadable.
    pub offset: Option<u64>,
    /// What is wrong, in one lower-case clause.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "blob {} is damaged at byte {offset}: {}", self.blob, self.reason),
            None => write!(f, "blob {} is damaged: {}", self.blob, self.reason),
        }
    }
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    damage: Option<Box<Damage>>,
    marker: Option<Box<DeleteMarker>>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`, with the failed thing in one lower-case clause.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            damage: None,
            marker: None,
            source: None,
        }
    }

    /// An error of kind [`ErrorKind::Corrupt`] that names the damaged place.
    pub fn damaged(damage: Damage) -> Self {
        Self {
            damage: Some(Box::new(damage.clone())),
            ..Self::new(ErrorKind::Corrupt, damage)
        }
    }

    /// The damaged place, if that is what the error is about.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_deref()
    }

    /// The delete marker that is in the way, if that is what the error is about.
    pub fn marker(&self) -> Option<&DeleteMarker> {
        self.marker.as_deref()
    }

    /// The same error, about `marker`.
    pub(crate) fn of_marker(mut self, marker: DeleteMarker) -> Self {
        self.marker = Some(Box::new(marker));
        self
    }

    /// The same error, caused by `source`.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Wraps an I/O error of the operating system: `what` names the operation and the thing. A full disk and a read-only
    /// file system have kinds of their own.
    pub fn io(what: impl fmt::Display, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            _ => ErrorKind::Io,
        };
        Self::new(kind, what).caused_by(source)
    }

    pub(crate) fn corrupt(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }
}

/// For work on a blocking thread: it panicked, or the runtime shut down before it began.
impl From<tokio::task::JoinError> for Error {
    fn from(source: tokio::task::JoinError) -> Self {
        Self::new(ErrorKind::Io, "a blocking task of the store did not end").caused_by(source)
    }
}

/// The result of an operation of the store.
pub type Result<T> = std::result::Result<T, Error>;
