//! Fetching a URL safely.

mod guard;
