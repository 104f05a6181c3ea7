//! The one public error of this crate.

use std::fmt;

/// What went wrong, for callers to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The bucket does not exist.
    NoSuchBucket,
    /// The bucket exists already.
    BucketAlreadyExists,
    /// The bucket still holds objects or uploads.
    BucketNotEmpty,
    /// The object does not exist.
    NoSuchKey,
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
    /// Too many concurrent changes of the same keys; try again.
    Contended,
    /// The engine could not say whether the transaction was committed.
    OutcomeUnknown,
    /// Stored bytes do not match their checksum or format.
    Corrupt,
    /// The disk or the engine failed.
    Io,
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`, with the failed thing in one lower-case clause.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            source: None,
        }
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

    /// Wraps an I/O error of the operating system: `what` names the operation and the thing.
    pub fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, what).caused_by(source)
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
