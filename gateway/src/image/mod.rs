//! Where an object meets an image: what tags wish for, what a probe finds, and how a layout is read as an image.

pub(crate) mod annotate;
pub(crate) mod read_at;
pub(crate) mod wishes;
