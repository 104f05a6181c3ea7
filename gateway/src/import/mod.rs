//! Fetching a URL safely.
