//! The store through its public items, against models, faults and itself.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

mod concurrency;
mod crash;
mod ingest;
mod jobs;
mod layout;
mod list;
mod model;
mod multipart;
mod world;
