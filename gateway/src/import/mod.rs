//! Fetching a URL safely.
//!
//! | module | holds |
//! | --- | --- |
//! | `guard` | which addresses may be fetched from |
//! | `fetch` | one request: redirects, statuses, errors |
//! | `download` | a body that survives broken connections |
//!
//! What becomes of the bytes is the matter of the import job.

mod download;
mod fetch;
mod guard;
#[cfg(test)]
pub(crate) mod origin;

use url::Url;

pub(crate) use self::{
    download::Download,
    fetch::{FetchError, Fetcher},
};

/// Longest object, in bytes: 5 TiB, the bound of S3.
pub(crate) const OBJECT_LEN_MAX: u64 = 5 << 40;
/// Longest URL, in bytes: what servers commonly take, and it has to fit into the payload of a job.
const URL_LEN_MAX: usize = 8 << 10;

/// Parses a URL that can be fetched.
pub(crate) fn parse_url(text: &str) -> Result<Url, String> {
    if text.len() > URL_LEN_MAX {
        return Err(format!("a URL of {} bytes is over {URL_LEN_MAX}", text.len()));
    }
    let url = Url::parse(text).map_err(|e| format!("this is not a URL: {e}"))?;
    check_scheme(&url)?;
    Ok(url)
}

/// URLs of these schemes have a host: their syntax wants one.
fn check_scheme(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "http" | "https" => Ok(()),
        other => Err(format!("a URL must begin with http:// or https://, not with {other}:")),
    }
}
