//! `lithos quota`: what buckets and users hold, and may hold.

#![expect(clippy::print_stdout, reason = "the quota is what the command is asked for")]

use std::process::ExitCode;

use crate::{
    admin::quota::{QuotaStateView, QuotaView},
    client::{Client, encode_segment},
};

/// What to do with a quota.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Set the quota of a bucket or a user, in place of an earlier one
    ///
    /// Puts that would pass it are refused from then on; deletes always work. What is there already stays.
    Set {
        #[command(flatten)]
        whose: Whose,

        #[command(flatten)]
        limits: Limits,
    },
    /// Show the quota of a bucket or a user, and what they hold
    Show {
        #[command(flatten)]
        whose: Whose,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Remove the quota of a bucket or a user
    Clear {
        #[command(flatten)]
        whose: Whose,
    },
}

/// Whose quota it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Whose {
    /// A bucket, or all buckets of a user together
    kind: Kind,

    /// The bucket's name, or the user's; `root` is the holder of the root keys
    name: String,
}

/// What has quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Bucket,
    User,
}

/// The most that is allowed.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Limits {
    /// Most bytes of objects and of parts of uploads in progress, such as 10GiB or 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bytes: Option<u64>,

    /// Most objects
    #[arg(long, value_name = "COUNT")]
    objects: Option<u64>,
}

impl Whose {
    fn path(&self) -> String {
        let kind = match self.kind {
            Kind::Bucket => "buckets",
            Kind::User => "users",
        };
        format!("/api/v1/{kind}/{}/quota", encode_segment(&self.name))
    }
}

/// Carries out `command` on the server that `client` asks.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Set { whose, limits } => {
            let quota = QuotaView {
                bytes: limits.bytes,
                objects: limits.objects,
            };
            let state: QuotaStateView = client.put_json(&whose.path(), &quota).await?;
            print!("{}", lines(&state));
        }
        Command::Show { whose, json } => {
            let state: QuotaStateView = client.get_json(&whose.path()).await?;
            if json {
                println!("{}", serde_json::to_string_pretty(&state)?);
            } else {
                print!("{}", lines(&state));
            }
        }
        Command::Clear { whose } => {
            client.delete(&whose.path()).await?;
            println!("the quota of {:?} is removed", whose.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a measure.
fn lines(state: &QuotaStateView) -> String {
    let line = |what: &str, used: u64, most: Option<u64>| match most {
        Some(most) => format!("{what:8} {used} of {most}\n"),
        None => format!("{what:8} {used}, no quota\n"),
    };
    line("bytes", state.usage.bytes, state.quota.bytes) + &line("objects", state.usage.objects, state.quota.objects)
}

/// Units of sizes: binary ones as IEC 80000-13 names them, decimal ones as SI does.
const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
];

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let factor = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() || unit == "B" => 1,
        None => {
            let names: Vec<_> = UNITS.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "{unit:?} is no unit: give one of {}, or none for bytes",
                names.join(", ")
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "give the size as a whole number and a unit, such as 10GiB".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "the size is over 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::quota::UsageView;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("10GiB", 10 << 30),
            ("3kB", 3000),
            ("2PB", 2_000_000_000_000_000),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for bad in [
            "",
            "GiB",
            "-1",
            "1.5GiB",
            "1gib",
            "1 GiB",
            "10G",
            "16384PiB",
            "99999999999999999999",
            "1\u{fc}",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_name_bucket_or_user() {
        let whose = |kind, name: &str| Whose {
            kind,
            name: name.to_owned(),
        };
        assert_eq!(whose(Kind::Bucket, "b").path(), "/api/v1/buckets/b/quota");
        assert_eq!(whose(Kind::User, "a b").path(), "/api/v1/users/a%20b/quota");
    }

    #[test]
    fn a_missing_quota_is_said() {
        let state = QuotaStateView {
            quota: QuotaView {
                bytes: Some(100),
                objects: None,
            },
            usage: UsageView { bytes: 7, objects: 1 },
        };
        assert_eq!(lines(&state), "bytes    7 of 100\nobjects  1, no quota\n");
    }
}
