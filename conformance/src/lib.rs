//! Black-box cases against an S3 endpoint.
//!
//! The cases know the wire and nothing behind it: they run against any endpoint (`lithos-conformance`, the binary of this
//! crate) and, in this crate's tests, against a Lithos server that each test starts for itself. The tests add what needs a
//! server of one's own: images, kills, races, memory.
//!
//! | module | holds |
//! | --- | --- |
//! | [`target`] | an endpoint and its credentials, or a server of ours; the only file that knows our binary |
//! | [`case`](mod@case), [`cases`](mod@cases) | what a case is; one file a family of operations, named as in the S3 API Reference |
//! | [`clients`] | the clients people really use, each with its everyday work |
//! | [`suite`] | all of these by family |
//! | [`report`], [`table`] | passed, failed, skipped and why |
//! | [`sdk`] | the AWS SDK for a target |
//! | [`wire`] | requests made by hand: signed, badly signed, cut off |
//! | [`pattern`] | contents that are made again instead of kept, and sparse images |
//! | [`torture`] | power cuts, kills and failing disks under load, and what must hold afterwards |
//! | [`tool`] | the clients and image tools that `deploy/bootstrap` installs |
//!
//! Deliberately absent: TLS (a target is plain HTTP), and any dependency on the other crates of the workspace.

pub mod case;
pub mod cases;
pub mod clients;
pub mod pattern;
pub mod report;
pub mod sdk;
pub mod suite;
pub mod table;
pub mod target;
pub mod tool;
pub mod torture;
pub mod wire;
