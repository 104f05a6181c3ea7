//! The store through its public items, against models, faults and itself.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test may stop at the first surprise: that is its job"
)]

mod concurrency;
mod crash;
mod held;
mod ingest;
mod jobs;
mod layout;
mod list;
mod locks;
mod model;
mod multipart;
mod quota;
mod upkeep;
mod users;
mod versions;
mod world;
