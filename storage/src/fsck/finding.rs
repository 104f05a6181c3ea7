//! What can be found, what it means, and what to do.

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Left over from a process that was cut off; the next start or the sweep deals with it.
    Note,
    /// No data is hurt: space is lost, or the index says too much.
    Warning,
    /// Data is hurt or at risk, or the server will not start.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// What has it: an object as `bucket/key`, a blob by its id, a row by its key.
    pub subject: String,
    /// The particulars, in one clause.
    pub detail: String,
}

/// Declares the kinds with all that is said of them.
macro_rules! kinds {
    ($($kind:ident, $name:literal, $severity:ident, $meaning:literal, $advice:literal;)*) => {
        /// What can be found.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FindingKind {
            $(#[doc = $meaning] $kind,)*
        }

        impl FindingKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its name, for programs.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$kind => Severity::$severity,)* }
            }

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$kind => $meaning,)* }
            }

            /// What to do next, in a sentence.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$kind => $advice,)* }
            }
        }
    };
}

kinds! {
    DamagedRow, "damaged-row", Error,
        "A row of the index cannot be read.",
        "Restore a backup beside, and compare; what the row held is lost here.";
    DamagedLayout, "damaged-layout", Error,
        "The list of an object's extents cannot be read to its end.",
        "Upload the object again, or take it from a backup or another zone.";
    UnknownBlob, "unknown-blob", Error,
        "An object refers to a blob that the index does not know.",
        "Upload the object again, or take it from a backup or another zone.";
    BeyondBlob, "beyond-blob", Error,
        "An object refers to bytes behind the end of a blob.",
        "Upload the object again, or take it from a backup or another zone.";
    MissingBlob, "missing-blob", Error,
        "The file of a blob is missing: what refers to it cannot be read whole.",
        "Look whether the right disk is mounted; else copy the file from a backup or a peer, under the same name.";
    DamagedBlob, "damaged-blob", Error,
        "The file of a blob does not match its checksums or its row.",
        "Copy the file from a backup or a peer, under the same name, and have the disk checked.";
    Unprotected, "unprotected", Error,
        "An object refers to another layout's blobs without a row that keeps them: the sweep may free them.",
        "Do not start the server; copy the object from here, or restore a backup.";
    NotHeld, "not-held", Error,
        "The layout of an object or upload is not marked as in use: the sweep may free its blobs.",
        "Do not start the server; copy the object from here, or restore a backup.";
    BrokenBorrow, "broken-borrow", Error,
        "A layout borrows blobs of another, and the other does not know: the sweep may free them.",
        "Do not start the server; copy the object from here, or restore a backup.";
    NoBucket, "no-bucket", Error,
        "An object or upload is in no bucket, so that nobody can reach it.",
        "Restore a backup beside, and look whether a bucket is missing.";
    BrokenQueue, "broken-queue", Error,
        "The queue and the jobs contradict each other: a job never runs, or the server does not start.",
        "Restore a backup, or report this with the output of the command.";
    BrokenUser, "broken-user", Warning,
        "A user's name, id and access keys contradict each other: requests of the user are refused, or it cannot be deleted.",
        "No data is hurt. Report this with the output of the command.";
    WrongHolder, "wrong-holder", Warning,
        "A layout names another object than the one that has it; background work passes it over.",
        "Copy the object onto itself, which writes it anew.";
    BrokenVersions, "broken-versions", Error,
        "The versions of a key contradict each other: reads may give another one than the latest, or find none.",
        "List the versions of the key, and copy the one that should be the latest onto the key.";
    UnheldLayout, "unheld-layout", Warning,
        "A layout is marked as in use, and nothing uses it: its blobs take space for ever.",
        "No data is hurt. Back up and restore frees nothing; report this with the output of the command.";
    ForgottenLayout, "forgotten-layout", Warning,
        "A layout is released, and the sweep does not know: its blobs take space for ever.",
        "No data is hurt. Report this with the output of the command.";
    ForgottenBlob, "forgotten-blob", Warning,
        "A blob belongs to a layout that does not exist: it takes space for ever.",
        "No data is hurt. Report this with the output of the command.";
    ForgottenPart, "forgotten-part", Warning,
        "Parts belong to an upload that does not exist: they take space for ever.",
        "No data is hurt. Report this with the output of the command.";
    StaleBorrow, "stale-borrow", Warning,
        "A layout is kept for a borrower that does not exist: its blobs take space for ever.",
        "No data is hurt. Report this with the output of the command.";
    StaleIntent, "stale-intent", Warning,
        "A blob in use is also noted as one that is being written.",
        "No data is hurt. Report this with the output of the command.";
    KnownDamage, "known-damage", Error,
        "A read or a scrub found the blob damaged: objects over it cannot be read in whole.",
        "Restore the objects from a backup or another zone, or delete them; `lithos damage` names them while a server runs.";
    WrongUsage, "wrong-usage", Warning,
        "A counter of what a bucket or a user holds is wrong: quotas are held against it.",
        "No data is hurt. Report this with the output of the command.";
    StrayBlob, "stray-blob", Warning,
        "The file of a blob has no row: a crash of the machine leaves such files.",
        "The server deletes it within an hour of its start.";
    UnfinishedWrites, "unfinished-writes", Note,
        "Blobs were being written or deleted when the server ended.",
        "The next start clears them.";
    HalfSwept, "half-swept", Note,
        "The sweep was cut off while it deleted blobs that nothing needs.",
        "The server goes on with it.";
    Drafts, "drafts", Note,
        "Files of blobs that were being written when the server ended.",
        "The next start removes them.";
    UnknownTable, "unknown-table", Note,
        "The index has rows of a kind that this check does not know.",
        "Check with the release that wrote last.";
}
