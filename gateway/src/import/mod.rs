//! Fetching a URL safely.
//!
//! | module | holds |
//! | --- | --- |
//! | `guard` | which addresses may be fetched from |
//! | `fetch` | one request: redirects, statuses, errors |
//! | `download` | a body that survives broken connections |
//! | `checksum` | what the bytes must hash to |
//!
//! What becomes of the bytes is the matter of the import job.

mod checksum;
mod download;
mod fetch;
mod guard;
#[cfg(test)]
pub(crate) mod origin;

use url::Url;

pub(crate) use self::{
    checksum::Checksum,
    download::Download,
    fetch::{FetchError, Fetcher},
};

/// Longest object, in bytes: 5 TiB, the bound of S3.
pub(crate) const OBJECT_LEN_MAX: u64 = 5 << 40;
/// Longest URL, in bytes: what servers commonly take, and it has to fit into the payload of a job.
const URL_LEN_MAX: usize = 8 << 10;

/// Checks early what an import is asked for, before there is a job: the URL and the checksum.
///
/// Says nothing of the address, which is checked by the job each time it connects.
///
/// # Errors
///
/// What is wrong with them.
pub(crate) fn check_request(url: &str, checksum: Option<&str>) -> Result<(), String> {
    parse_url(url)?;
    checksum.map(str::parse::<Checksum>).transpose()?;
    Ok(())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_before_there_is_a_job() {
        let sum = format!("sha256:{}", "0".repeat(64));
        let good = [
            "http://example.org/a.img",
            "https://u:p@example.org:8443/?sig=x",
            "HTTP://[2606:4700::1]/",
        ];
        for url in good {
            assert_eq!(check_request(url, Some(&sum)), Ok(()), "{url}");
            assert_eq!(check_request(url, None), Ok(()), "{url}");
        }
        let long = format!("http://example.org/{}", "a".repeat(URL_LEN_MAX));
        let bad = [
            ("", "not a URL"),
            ("example.org/a.img", "not a URL"),
            ("ftp://example.org/a.img", "not with ftp:"),
            ("file:///etc/shadow", "not with file:"),
            ("http://", "not a URL"),
            ("http://exa mple.org/", "not a URL"),
            (&long, "over 8192"),
        ];
        for (url, why) in bad {
            let error = check_request(url, None).expect_err(url);
            assert!(error.contains(why), "{url}: {error}");
        }
        assert!(
            check_request("http://example.org/", Some("sha1:00"))
                .unwrap_err()
                .contains("sha1")
        );
    }
}
