//! `lithos import`: have a server fetch a URL.

#![expect(clippy::print_stdout, reason = "the job's id is what the command is asked for")]

use std::{collections::BTreeMap, process::ExitCode};

use super::{
    Connection,
    job::{Watched, watch},
    printable,
};
use crate::{
    admin::import::{Accepted, NewImport},
    config::RootKeys,
};

/// Have the server fetch an image by URL
///
/// The server fetches, verifies and stores the image as a job; the object appears when the job is done, whole or not at all.
/// A broken connection is resumed. Loopback, link-local and private addresses are refused, unless the server is told to allow
/// them (--import-allow).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    lithos import https://cloud.debian.org/images/cloud/trixie/latest/debian-13-generic-amd64.qcow2 \\\n      \
        s3://images/debian-13.qcow2 --tag convert-to=raw --wait\n  \
    lithos import https://example.org/disk.img.xz s3://images/disk.img.xz --checksum sha256:9f86d0…\n  \
    lithos job watch ID")]
pub(crate) struct Args {
    /// Where the image is: http or https
    url: String,

    /// The object to make of it
    #[arg(value_name = "s3://BUCKET/KEY", value_parser = parse_target)]
    target: Target,

    /// What the image must hash to: sha256:…, sha512:… or md5:…, in hexadecimal digits
    #[arg(long, value_name = "ALGORITHM:DIGEST")]
    checksum: Option<String>,

    /// Tag of the object, such as convert-to=qcow2 or replicate-to=ZONE; give the flag again for each
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,

    /// Content type of the object [default: what the URL's server says]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// Show the progress, and wait until the import has finished
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    connection: Connection,
}

/// The object to make.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    bucket: String,
    key: String,
}

pub(super) async fn run(args: Args, keys: Option<RootKeys>) -> anyhow::Result<ExitCode> {
    let client = args.connection.open(keys)?;
    let new = NewImport {
        url: args.url,
        bucket: args.target.bucket,
        key: args.target.key,
        checksum: args.checksum,
        content_type: args.content_type,
        tags: args.tags.into_iter().collect(),
        metadata: BTreeMap::new(),
    };
    let accepted: Accepted = client.post_json("/api/v1/imports", &new).await?;
    println!("{}", printable(&accepted.job));
    if args.wait {
        return watch(&client, Watched::Some(vec![accepted.job])).await;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_target(text: &str) -> Result<Target, String> {
    match text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => Ok(Target {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        }),
        _ => Err("give the object as s3://BUCKET/KEY".to_owned()),
    }
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give the tag as KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_bucket_and_key() {
        let target = |bucket: &str, key: &str| Target {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        };
        assert_eq!(parse_target("s3://b/k"), Ok(target("b", "k")));
        assert_eq!(parse_target("s3://b/a/b c"), Ok(target("b", "a/b c")));
        for bad in ["", "b/k", "s3://b", "s3://b/", "s3:///k", "S3://b/k", "http://b/k"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_may_have_no_value_but_a_key() {
        assert_eq!(
            parse_tag("convert-to=qcow2:zstd"),
            Ok(("convert-to".into(), "qcow2:zstd".into()))
        );
        assert_eq!(parse_tag("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_tag("a="), Ok(("a".into(), String::new())));
        assert!(parse_tag("=b").is_err() && parse_tag("a").is_err());
    }
}
