//! `lithos server`: the peers that a server knows.

#![expect(clippy::print_stdout, reason = "the servers are what the command is asked for")]

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context;

use crate::{
    client::{Client, encode_segment, parse_server},
    zone::{
        ZoneName,
        registry::{NewPeer, PeerView},
    },
};

/// Where servers are in the API.
const PATH: &str = "/api/v1/servers";

/// What to do with the peers.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Tell a server of another one, or correct what it was told
    ///
    /// Objects that are wanted in the zones of the other server are copied to it from then on. It need not be up yet. For
    /// both directions, tell each of the two of the other one.
    Add(Add),
    /// List the servers that a server knows
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have a server forget another one; what was copied there stays there
    Remove {
        /// Its name
        name: String,
    },
}

/// The server to add.
#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// A name of your choice: letters, digits, hyphens, dots and underscores
    name: String,

    /// Its management address, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    management: String,

    /// Its transfer address, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    transfer: String,

    /// A zone it serves; give the flag again for each
    #[arg(long = "zone", value_name = "NAME", value_delimiter = ',', required = true)]
    zones: Vec<String>,

    /// The access key to use there
    #[arg(long, value_name = "KEY")]
    access_key: String,

    /// The secret key that belongs to it. Other users of this machine see flags: the variable is safer
    #[arg(long, env = "LITHOS_PEER_SECRET_KEY", value_name = "KEY", hide_env_values = true)]
    secret_key: s3s::auth::SecretKey,
}

/// Carries out `command` on the server that `client` asks.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add(add) => {
            let peer: PeerView = client.post_json(PATH, &add.peer()?).await?;
            println!("{} at {} serves {}", peer.name, peer.transfer, peer.zones.join(", "));
        }
        Command::List { json } => {
            let peers: Vec<PeerView> = client.get_json(PATH).await?;
            if json {
                println!("{}", serde_json::to_string_pretty(&peers)?);
            } else {
                print!("{}", table(&peers));
            }
        }
        Command::Remove { name } => {
            client.delete(&format!("{PATH}/{}", encode_segment(&name))).await?;
            println!("{name:?} is forgotten");
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Add {
    /// Checks what can be checked here, so that mistakes are told in terms of the flags.
    fn peer(self) -> anyhow::Result<NewPeer> {
        parse_server(&self.management)
            .map_err(anyhow::Error::msg)
            .context("--management is wrong")?;
        parse_server(&self.transfer)
            .map_err(anyhow::Error::msg)
            .context("--transfer is wrong")?;
        let zones = self
            .zones
            .iter()
            .map(|zone| zone.parse::<ZoneName>())
            .collect::<Result<_, _>>();
        Ok(NewPeer {
            name: self.name,
            management: self.management,
            transfer: self.transfer,
            zones: zones.map_err(anyhow::Error::msg).context("--zone is wrong")?,
            access_key: self.access_key,
            secret_key: self.secret_key.expose().to_owned(),
        })
    }
}

/// The servers as a table.
fn table(peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "no other server is known; add one with `lithos server add`\n".to_owned();
    }
    let rows: Vec<[String; 4]> = peers
        .iter()
        .map(|peer| [&peer.name, &peer.zones.join(","), &peer.transfer, &peer.management].map(|text| shown(text)))
        .collect();
    let head = ["NAME", "ZONES", "TRANSFER", "MANAGEMENT"].map(ToOwned::to_owned);
    let mut widths = [0; 4];
    for row in std::iter::once(&head).chain(&rows) {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = text.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (width, text) in widths.iter().zip(row) {
            let _ = write!(line, "{text:width$}  ");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// Text from a server, fit for a terminal.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add() -> Add {
        Add {
            name: "b".into(),
            management: "http://127.0.0.1:2".into(),
            transfer: "http://127.0.0.1:1".into(),
            zones: vec!["az2".into()],
            access_key: "access".into(),
            secret_key: "hush".into(),
        }
    }

    #[test]
    fn mistakes_are_told_in_terms_of_the_flags() {
        assert!(add().peer().is_ok());
        for (wrong, flag) in [
            (
                Add {
                    management: "127.0.0.1:2".into(),
                    ..add()
                },
                "--management",
            ),
            (
                Add {
                    transfer: "http://h/path".into(),
                    ..add()
                },
                "--transfer",
            ),
            (
                Add {
                    zones: vec!["a b".into()],
                    ..add()
                },
                "--zone",
            ),
        ] {
            let error = format!("{:#}", wrong.peer().unwrap_err());
            assert!(error.contains(flag), "{error}");
        }
        assert!(!format!("{:?}", add()).contains("hush"));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let peer = PeerView {
            name: "a-long-name\u{1b}[2J".into(),
            management: "http://h:2".into(),
            transfer: "http://h:1".into(),
            zones: vec!["az1".into(), "az2".into()],
            access_key: "access".into(),
        };
        let table = table(&[peer]);
        assert_eq!(
            table,
            "NAME             ZONES    TRANSFER    MANAGEMENT\na-long-name\u{fffd}[2J  az1,az2  http://h:1  http://h:2\n"
        );
        assert!(super::table(&[]).contains("lithos server add"));
    }
}
