//! The cases, one file a family of operations.

pub mod bad_input;
pub mod buckets;
pub mod checksums;
pub mod chunked_uploads;
pub mod conditions;
pub mod copy_object;
pub mod forms;
pub mod lifecycle;
pub mod list_objects;
pub mod metadata;
pub mod multipart_upload;
pub mod names;
pub mod object_lock;
pub mod objects;
pub mod presigned;
pub mod ranges;
pub mod tagging;
pub mod unsupported;
pub mod users;
pub mod versioning;
pub mod virtual_host;

use crate::case::Case;

/// Keys that are hard on somebody: encoders, signers, XML, lists sorted by something else than bytes.
pub const ODD_KEYS: [&str; 16] = [
    " leading and trailing ",
    "a+b",
    "100%",
    "%41%2f",
    "a&b<c>\"d'",
    "a/b//c/",
    "/leading",
    "q?x=1&y#z",
    "tab\tnewline\nend",
    "ümläut/日本/🪨",
    "a=b;c,d:e@f!$*()",
    "back\\slash^{}|`~[]",
    "\u{1}control\u{1f}",
    "é",
    "e\u{301}",
    "con.trailing.dots...",
];

/// All of them.
pub fn all() -> Vec<Case> {
    [
        buckets::all(),
        objects::all(),
        conditions::all(),
        ranges::all(),
        checksums::all(),
        metadata::all(),
        names::all(),
        forms::all(),
        unsupported::all(),
        copy_object::all(),
        list_objects::all(),
        multipart_upload::all(),
        tagging::all(),
        versioning::all(),
        presigned::all(),
        chunked_uploads::all(),
        virtual_host::all(),
        users::all(),
        lifecycle::all(),
        object_lock::all(),
        bad_input::all(),
    ]
    .concat()
}
