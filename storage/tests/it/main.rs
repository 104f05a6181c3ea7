//! The store through its public items, against models, faults and itself.

mod concurrency;
mod crash;
mod ingest;
mod jobs;
mod layout;
mod list;
mod model;
mod multipart;
mod world;
