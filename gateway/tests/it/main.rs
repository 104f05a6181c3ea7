//! The program as its users run it.

#![allow(clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

mod convert;
mod envelope;
mod matrix;
