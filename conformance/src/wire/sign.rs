//! Signature version 4 (S3 API Reference, "Authenticating Requests").
//!
//! Written from the specification rather than taken from an SDK, so that each part of it can be left out or spoiled.

use std::fmt::Write as _;

use anyhow::Result;
use ring::{digest, hmac};

use super::{Request, uri_encode};
use crate::target::Target;

/// How the body is declared in `x-amz-content-sha256`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// By its hash.
    Hashed,
    /// Not at all.
    Unsigned,
    /// As this value.
    Declared(String),
}

/// A time as signatures have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AmzTime(jiff::Timestamp);

impl AmzTime {
    /// This moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "a client of a real server signs with the real time"
    )]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// Some seconds away from now.
    pub fn seconds_from_now(seconds: i64) -> Self {
        Self(Self::now().0 + jiff::SignedDuration::from_secs(seconds))
    }

    /// `20130524T000000Z`
    pub fn long(self) -> String {
        self.0.strftime("%Y%m%dT%H%M%SZ").to_string()
    }

    /// `20130524`
    fn date(self) -> String {
        self.0.strftime("%Y%m%d").to_string()
    }
}

/// How to presign.
#[derive(Debug, Clone, Copy)]
pub struct Presign {
    /// When.
    pub time: AmzTime,
    /// For how many seconds.
    pub expires: i64,
}

/// The SHA-256 of `bytes` in hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// A request with a signature, and what the signatures of chunks go on from.
pub(super) struct Signed {
    pub(super) request: Request,
    pub(super) signature: String,
}

/// A credential scope with its key.
pub(super) struct Scope {
    pub(super) time: AmzTime,
    region: String,
    key: hmac::Key,
}

impl Scope {
    pub(super) fn new(target: &Target, time: AmzTime) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", target.secret_key).as_bytes());
        let key = [&time.date(), &target.region, "s3", "aws4_request"]
            .iter()
            .fold(secret, |key, word| {
                hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, word.as_bytes()).as_ref())
            });
        Self {
            time,
            region: target.region.clone(),
            key,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}/s3/aws4_request", self.time.date(), self.region)
    }

    pub(super) fn sign(&self, string_to_sign: &str) -> String {
        hex::encode(hmac::sign(&self.key, string_to_sign.as_bytes()))
    }
}

/// What a policy of a form is signed with (S3 API Reference, "Authenticating Requests in Browser-Based Uploads").
pub struct PolicyScope {
    scope: Scope,
    credential: String,
}

impl PolicyScope {
    /// For the keys of a target.
    pub fn new(target: &Target, time: AmzTime) -> Self {
        let scope = Scope::new(target, time);
        let credential = format!("{}/{}", target.access_key, scope.name());
        Self { scope, credential }
    }

    /// The fields that a form must have, and its policy name.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("x-amz-algorithm", "AWS4-HMAC-SHA256".to_owned()),
            ("x-amz-credential", self.credential.clone()),
            ("x-amz-date", self.scope.time.long()),
        ]
    }

    /// The signature of a policy in base64.
    pub fn sign(&self, policy: &str) -> String {
        self.scope.sign(policy)
    }
}

impl std::fmt::Debug for PolicyScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.credential)
    }
}

pub(super) fn sign(mut request: Request, target: &Target, payload: &Payload, time: &AmzTime) -> Result<Signed> {
    let hash = match payload {
        Payload::Hashed => sha256_hex(&request.body),
        Payload::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
        Payload::Declared(value) => value.clone(),
    };
    request.headers.push(("x-amz-content-sha256".to_owned(), hash.clone()));
    request.headers.push(("x-amz-date".to_owned(), time.long()));
    let scope = Scope::new(target, *time);
    let (canonical, names) = canonical_request(&request, target, &hash)?;
    let signature = scope.sign(&string_to_sign(&scope, &canonical));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={signature}",
        target.access_key,
        scope.name()
    );
    request.headers.push(("authorization".to_owned(), authorization));
    Ok(Signed { request, signature })
}

pub(super) fn presign(mut request: Request, target: &Target, presign: &Presign) -> Result<Request> {
    let scope = Scope::new(target, presign.time);
    let mut names: Vec<String> = request
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.push("host".to_owned());
    names.sort();
    let credential = format!("{}/{}", target.access_key, scope.name());
    for (name, value) in [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &presign.time.long()),
        ("X-Amz-Expires", &presign.expires.to_string()),
        ("X-Amz-SignedHeaders", &names.join(";")),
    ] {
        request.query.push((name.to_owned(), value.to_owned()));
    }
    let (canonical, _) = canonical_request(&request, target, "UNSIGNED-PAYLOAD")?;
    let signature = scope.sign(&string_to_sign(&scope, &canonical));
    request.query.push(("X-Amz-Signature".to_owned(), signature));
    Ok(request)
}

fn string_to_sign(scope: &Scope, canonical: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256\n{}\n{}\n{}",
        scope.time.long(),
        scope.name(),
        sha256_hex(canonical.as_bytes())
    )
}

/// Runs of spaces count as one.
fn single_spaced(value: &str) -> String {
    let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// The canonical request, and the names of the headers in it.
fn canonical_request(request: &Request, target: &Target, hash: &str) -> Result<(String, String)> {
    let mut query: Vec<(String, String)> = request
        .query
        .iter()
        .map(|(name, value)| (uri_encode(name), uri_encode(value)))
        .collect();
    query.sort();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let host = match &request.host {
        Some(host) => host.clone(),
        None => target.authority()?.to_owned(),
    };
    let mut headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), single_spaced(value)))
        .collect();
    headers.push(("host".to_owned(), host));
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, query.join("&"));
    for (name, value) in &headers {
        writeln!(canonical, "{name}:{value}")?;
    }
    write!(canonical, "\n{names}\n{hash}")?;
    Ok((canonical, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S3 API Reference, "Examples: Signature Calculations", GET Object.
    #[test]
    fn worked_example_of_the_reference() {
        let target = Target {
            endpoint: "http://examplebucket.s3.amazonaws.com".into(),
            region: "us-east-1".into(),
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            domain: None,
            management: None,
        };
        let time = AmzTime("2013-05-24T00:00:00Z".parse().unwrap());
        let request = Request::new("GET", "/test.txt").header("Range", "bytes=0-9");
        let signed = sign(request, &target, &Payload::Hashed, &time).unwrap();
        assert_eq!(
            signed.signature,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }
}
