//! Lithos.
fn main() {}
