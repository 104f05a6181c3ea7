//! Users as an operator makes them, with the command, and as they work, with profiles of the aws command.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    target::{Server, ServerOptions},
    tool::{aws, run, run_failing},
};
use serde_json::Value;

/// `aws` as a user, by a profile in `credentials`.
fn aws_as(server: &Server, home: &Path, credentials: &Path, profile: &str) -> Command {
    let mut command = aws(server.target(), home);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", credentials)
        .args(["--profile", profile])
        .current_dir(home);
    command
}

fn lithos(server: &Server, arguments: &[&str]) -> Result<String> {
    run(server.command()?.args(arguments))
}

#[tokio::test]
async fn two_users_work_side_by_side() -> Result<()> {
    let server = Server::start()?;
    let home = tempfile::tempdir()?;
    let credentials = home.path().join("credentials");
    let mut profiles = fs::read_to_string(server.credentials())?;
    for name in ["alice", "bob"] {
        profiles.push_str(&lithos(&server, &["user", "create", name])?);
    }
    fs::write(&credentials, profiles)?;
    let as_user = |profile: &str, words: &[&str]| run(aws_as(&server, home.path(), &credentials, profile).args(words));
    let refused =
        |profile: &str, words: &[&str]| run_failing(aws_as(&server, home.path(), &credentials, profile).args(words));

    fs::write(home.path().join("disk.img"), b"hers")?;
    as_user("alice", &["s3", "mb", "s3://hers"])?;
    as_user("bob", &["s3", "mb", "s3://his"])?;
    as_user("alice", &["s3", "cp", "disk.img", "s3://hers/disk.img"])?;
    ensure!(as_user("alice", &["s3", "ls"])?.trim_end().ends_with(" hers"));
    ensure!(!as_user("bob", &["s3", "ls"])?.contains("hers"));
    ensure!(as_user("default", &["s3", "ls"])?.lines().count() == 2);
    for words in [
        &["s3", "ls", "s3://hers"][..],
        &["s3", "cp", "disk.img", "s3://hers/mine"],
        &["s3", "rm", "s3://hers/disk.img"],
        &["s3", "rb", "s3://hers"],
        &["s3", "cp", "s3://hers/disk.img", "s3://his/disk.img"],
    ] {
        let message = refused("bob", words)?;
        ensure!(
            message.contains("AccessDenied") || message.contains("403"),
            "{words:?}: {message}"
        );
    }
    ensure!(refused("bob", &["s3", "mb", "s3://hers"])?.contains("BucketAlreadyExists"));

    let users: Value = serde_json::from_str(&lithos(&server, &["user", "list", "--json"])?)?;
    let id = users[0]["id"].as_str().context("no id")?;
    let list = as_user(
        "alice",
        &["s3api", "list-objects", "--bucket", "hers", "--output", "json"],
    )?;
    let list: Value = serde_json::from_str(&list)?;
    let owner = &list["Contents"][0]["Owner"];
    ensure!(owner["ID"] == id && owner["DisplayName"] == "alice", "{owner}");

    lithos(&server, &["quota", "set", "user", "alice", "--bytes", "6"])?;
    ensure!(refused("alice", &["s3", "cp", "disk.img", "s3://hers/second"])?.contains("QuotaExceeded"));
    let shown = lithos(&server, &["quota", "show", "user", "alice"])?;
    ensure!(shown.contains("bytes    4 of 6"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn users_and_keys_outlive_restarts_and_end_at_once() -> Result<()> {
    let mut server = Server::start()?;
    let home = tempfile::tempdir()?;
    let credentials = home.path().join("credentials");
    let chosen = [
        "--access-key",
        "CHOSEN_BY_THE_OPERATOR",
        "--secret-key",
        "with/slashes+and=signs/0123456789",
    ];
    let created = lithos(&server, &[&["user", "create", "alice"][..], &chosen].concat())?;
    ensure!(
        created.contains("[alice]\naws_access_key_id = CHOSEN_BY_THE_OPERATOR\n"),
        "{created}"
    );
    fs::write(&credentials, &created)?;
    run(aws_as(&server, home.path(), &credentials, "alice").args(["s3", "mb", "s3://hers"]))?;
    server.kill()?;
    server.run()?;
    run(aws_as(&server, home.path(), &credentials, "alice").args(["s3", "ls", "s3://hers"]))?;
    // The index holds no secret in the clear.
    let secret = b"with/slashes+and=signs/0123456789";
    for file in fs::read_dir(server.data().join("index"))? {
        let bytes = fs::read(file?.path())?;
        ensure!(
            !bytes.windows(secret.len()).any(|window| window == secret),
            "a secret is in the index"
        );
    }

    let second = lithos(&server, &["user", "key", "create", "alice", "--json"])?;
    let second: Value = serde_json::from_str(&second)?;
    let keys = lithos(&server, &["user", "key", "list", "alice"])?;
    let key = second["access_key"].as_str().context("no key")?;
    ensure!(keys.lines().count() == 2 && keys.contains(key), "{keys}");
    lithos(&server, &["user", "key", "delete", "alice", "CHOSEN_BY_THE_OPERATOR"])?;
    let refused = run_failing(aws_as(&server, home.path(), &credentials, "alice").args(["s3", "ls"]))?;
    ensure!(refused.contains("InvalidAccessKeyId"), "{refused}");

    let refused = run_failing(server.command()?.args(["user", "delete", "alice"]))?;
    ensure!(refused.contains("still owns bucket hers"), "{refused}");
    run(aws(server.target(), home.path()).args(["s3", "rb", "s3://hers"]))?;
    lithos(&server, &["user", "delete", "alice"])?;
    let none = lithos(&server, &["user", "list"])?;
    ensure!(none.contains("lithos user create"), "{none}");
    server.stop()?;
    let mut fsck = Server::offline_command()?;
    run(fsck.arg("fsck").arg("--data").arg(server.data()))?;
    Ok(())
}

#[tokio::test]
async fn a_backup_has_the_users() -> Result<()> {
    let server = Server::start()?;
    let home = tempfile::tempdir()?;
    let credentials = home.path().join("credentials");
    fs::write(&credentials, lithos(&server, &["user", "create", "alice"])?)?;
    run(aws_as(&server, home.path(), &credentials, "alice").args(["s3", "mb", "s3://hers"]))?;
    let backup = home.path().join("backup");
    let to = backup.to_str().context("the folder's name is no text")?;
    lithos(&server, &["backup", to])?;
    let restored = Server::start_with(ServerOptions {
        data: Some(backup),
        ..ServerOptions::default()
    })?;
    let list = run(aws_as(&restored, home.path(), &credentials, "alice").args(["s3", "ls"]))?;
    ensure!(list.trim_end().ends_with(" hers"), "{list}");
    Ok(())
}
