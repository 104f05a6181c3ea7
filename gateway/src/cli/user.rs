//! `lithos user`: who has access keys beside root.

#![expect(clippy::print_stdout, reason = "the users are what the command is asked for")]

use std::{fmt::Write as _, process::ExitCode};

use serde::Serialize;

use super::printable;
use crate::{
    admin::user::{CreatedKey, NewKey, NewUser, UserPage, UserView},
    client::{Client, encode_segment},
};

/// Where users are in the API.
const PATH: &str = "/api/v1/users";

/// What to do with users.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a user, and print its access key
    ///
    /// A user sees and uses the buckets that it creates, and no others. The key is printed as a profile of the aws command:
    /// append it to ~/.aws/credentials, and say `aws --profile NAME`. The secret key is never shown again.
    Create {
        /// Its name: letters, digits and _+=,.@-
        name: String,

        #[command(flatten)]
        keys: Keys,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// List the users
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Delete a user that owns no bucket; its access keys stop at once
    Delete {
        /// Its name
        name: String,
    },
    /// Create, list and delete the access keys of a user
    #[command(subcommand)]
    Key(KeyCommand),
}

/// What to do with the access keys of a user.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeyCommand {
    /// Give a user another access key, and print it as `user create` does
    Create {
        /// The user's name
        name: String,

        #[command(flatten)]
        keys: Keys,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// List the access keys of a user
    List {
        /// The user's name
        name: String,

        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Delete an access key of a user; it stops at once
    Delete {
        /// The user's name
        name: String,

        /// The access key
        access_key: String,
    },
}

/// Keys of one's own choice.
#[derive(Debug, clap::Args)]
pub(crate) struct Keys {
    /// The access key, 16 to 128 letters, digits and underscores [default: a random one]
    #[arg(long, value_name = "KEY", requires = "secret_key")]
    access_key: Option<String>,

    /// The secret key, at least 16 characters [default: a random one]. Other users of this machine see flags: the variable
    /// is safer
    #[arg(
        long,
        env = "LITHOS_USER_SECRET_KEY",
        value_name = "KEY",
        hide_env_values = true,
        requires = "access_key"
    )]
    secret_key: Option<s3s::auth::SecretKey>,
}

impl Keys {
    fn given(self) -> NewKey {
        NewKey {
            access_key: self.access_key,
            secret_key: self.secret_key.map(|key| key.expose().to_owned()),
        }
    }
}

/// Carries out `command` on the server that `client` asks.
pub(crate) async fn run(command: Command, client: &Client) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create { name, keys, json } => {
            let NewKey { access_key, secret_key } = keys.given();
            let new = NewUser {
                name,
                access_key,
                secret_key,
            };
            let created: CreatedKey = client.post_json(PATH, &new).await?;
            print(json, &created, profile)?;
        }
        Command::List { json } => print(json, all(client).await?.as_slice(), table)?,
        Command::Delete { name } => {
            client.delete(&path(&name)).await?;
            println!("user {name:?} is deleted");
        }
        Command::Key(KeyCommand::Create { name, keys, json }) => {
            let path = format!("{}/keys", path(&name));
            let created: CreatedKey = client.post_json(&path, &keys.given()).await?;
            print(json, &created, profile)?;
        }
        Command::Key(KeyCommand::List { name, json }) => {
            let user: UserView = client.get_json(&path(&name)).await?;
            print(json, user.keys.as_slice(), |keys| {
                let lines = keys
                    .iter()
                    .map(|key| format!("{}  {}\n", printable(&key.access_key), printable(&key.created)));
                lines.collect()
            })?;
        }
        Command::Key(KeyCommand::Delete { name, access_key }) => {
            let path = format!("{}/keys/{}", path(&name), encode_segment(&access_key));
            client.delete(&path).await?;
            println!("the access key {access_key:?} of user {name:?} is deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(name: &str) -> String {
    format!("{PATH}/{}", encode_segment(name))
}

/// Prints JSON, or what people read.
fn print<T: Serialize + ?Sized>(json: bool, value: &T, render: impl Fn(&T) -> String) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else {
        print!("{}", render(value));
    }
    Ok(())
}

/// All users, page by page.
async fn all(client: &Client) -> anyhow::Result<Vec<UserView>> {
    let (mut users, mut query) = (Vec::new(), String::new());
    loop {
        let page: UserPage = client.get_json(&format!("{PATH}{query}")).await?;
        users.extend(page.users);
        let Some(next) = page.next else { return Ok(users) };
        query = format!("?after={}", encode_segment(&next));
    }
}

/// A key as a profile of the AWS command line.
fn profile(key: &CreatedKey) -> String {
    format!(
        "# {}\n[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        printable(&key.id),
        printable(&key.user),
        printable(&key.access_key),
        printable(&key.secret_key)
    )
}

/// A line a user.
fn table(users: &[UserView]) -> String {
    if users.is_empty() {
        return "there are no users beside root; create one with `lithos user create`\n".to_owned();
    }
    let names = users.iter().map(|user| user.name.chars().count());
    let width = names.max().unwrap_or_default().max("NAME".len());
    let mut text = format!("{:width$}  {:64}  {:>4}  CREATED\n", "NAME", "ID", "KEYS");
    for user in users {
        let (name, id, created) = (printable(&user.name), printable(&user.id), printable(&user.created));
        let _ = writeln!(text, "{name:width$}  {id:64}  {:>4}  {created}", user.keys.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::user::KeyView;

    #[test]
    fn a_key_is_a_profile_of_the_aws_command() {
        let key = CreatedKey {
            user: "alice".into(),
            id: "00ff".into(),
            access_key: "A".into(),
            secret_key: "hush".into(),
        };
        assert_eq!(
            profile(&key),
            "# 00ff\n[alice]\naws_access_key_id = A\naws_secret_access_key = hush\n"
        );
    }

    #[test]
    fn users_are_lines_of_a_table() {
        assert!(table(&[]).contains("lithos user create"));
        let user = UserView {
            name: "alice".into(),
            id: "0".repeat(64),
            created: "2026-01-01T00:00:00Z".into(),
            keys: vec![KeyView::default()],
        };
        let text = table(&[user]);
        let (_, line) = text.split_once('\n').unwrap();
        assert!(
            line.starts_with("alice  000") && line.ends_with("     1  2026-01-01T00:00:00Z\n"),
            "{text}"
        );
    }

    #[test]
    fn names_are_segments_of_the_path() {
        assert_eq!(path("a+b@c"), "/api/v1/users/a%2Bb%40c");
    }
}
