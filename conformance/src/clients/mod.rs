//! The clients people really use, each with the everyday work of its users.
//!
//! A case here is a short story that a client goes through in a bucket and a folder of its own. Each command of it is a
//! step, and an error names the step with all that the client said. What comes back is compared byte by byte.

pub mod aws;
pub mod boto3;
pub mod desk;
pub mod javascript;
pub mod rclone;
pub mod restic;
pub mod rust_sdk;
pub mod s3cmd;
pub mod tree;

use std::process::Command;

use crate::{
    case::Case,
    tool::{is_installed, run},
};

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    /// What its users call it.
    pub name: &'static str,
    /// The module of its cases.
    pub module: &'static str,
    /// Which version of it is here, if it is here.
    pub version: fn() -> Option<String>,
    /// Its work.
    pub cases: Vec<Case>,
}

/// All of them.
pub fn all() -> Vec<Client> {
    vec![
        aws::client(),
        s3cmd::client(),
        rclone::client(),
        restic::client(),
        boto3::client(),
        javascript::client(),
        rust_sdk::client(),
    ]
}

/// Lists the functions of this module as a client's cases. They take a [`Desk`](desk::Desk), and are run where they may
/// wait. Without the command, they are skipped.
macro_rules! client_cases {
    (
        $name:literal, $command:literal, $version:expr;
        $($operation:literal: $($function:ident),+ $(,)?;)+
    ) => {
        /// The client with its cases.
        pub fn client() -> $crate::clients::Client {
            $crate::clients::Client {
                name: $name,
                module: module_path!(),
                version: $version,
                cases: vec![$($($crate::case::Case {
                    family: module_path!(),
                    operation: $operation,
                    name: stringify!($function),
                    run: |bench| Box::pin($crate::clients::desk::work(
                        bench,
                        $command,
                        concat!($command, " is not installed: see `deploy/bootstrap test`"),
                        $function,
                    )),
                }),+),+],
            }
        }
    };
}
use client_cases;

/// The first word with a dot between digits of what a command prints, without what stands before the number.
fn version_of(mut command: Command) -> Option<String> {
    if !is_installed(command.get_program().to_str()?) {
        return None;
    }
    let text = run(&mut command).ok()?;
    first_version(&text).map(str::to_owned)
}

fn first_version(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| {
        let number = word.trim_start_matches(|c: char| !c.is_ascii_digit());
        (number.contains('.') && number.len() > 2).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_clients_say() {
        for (text, version) in [
            ("aws-cli/1.46.3 Python/3.11.2 Linux/6", Some("1.46.3")),
            ("s3cmd version 2.4.0\n", Some("2.4.0")),
            ("rclone v1.60.1-DEV\n- os/version: debian 12", Some("1.60.1-DEV")),
            ("restic 0.14.0 compiled with go1.19.8", Some("0.14.0")),
            ("no number here", None),
        ] {
            assert_eq!(first_version(text), version, "{text}");
        }
    }
}
