//! The clients and image tools of other people, as `deploy/bootstrap` installs them.

use std::{
    io,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::target::{Server, Target};

/// A command by name. Whether it is there shows when it is run.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null());
    command
}

/// The AWS command line against a server, without anything of the machine's own configuration.
pub fn aws(server: &Server) -> Command {
    let mut command = tool("aws");
    isolate(&mut command, server.target(), server.scratch());
    command
}

/// Sets the environment of a program that uses an AWS SDK.
pub fn isolate(command: &mut Command, target: &Target, home: &Path) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env("AWS_CONFIG_FILE", home.join("no-config"))
        .env("AWS_SHARED_CREDENTIALS_FILE", home.join("no-credentials"))
        .env("AWS_ENDPOINT_URL", &target.endpoint)
        .env("AWS_ACCESS_KEY_ID", &target.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &target.secret_key)
        .env("AWS_DEFAULT_REGION", &target.region)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_PAGER", "");
}

/// s3cmd against a server.
pub fn s3cmd(server: &Server) -> Result<Command> {
    let target = server.target();
    let authority = target.authority()?;
    let mut command = tool("s3cmd");
    command
        .arg(format!("--config={}", server.scratch().join("no-s3cfg").display()))
        .arg(format!("--access_key={}", target.access_key))
        .arg(format!("--secret_key={}", target.secret_key))
        .arg(format!("--host={authority}"))
        .arg(format!("--host-bucket={authority}"))
        .args(["--no-ssl", "--no-progress"])
        .env("HOME", server.scratch());
    Ok(command)
}

/// Runs a command, and gives what it wrote to its standard output.
///
/// # Errors
///
/// If it fails: then with all it wrote. If it is missing: then with how to get it.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed, {}:\n{stdout}{stderr}", shown(command), output.status);
    }
    Ok(stdout)
}

/// Runs a command that must fail, and gives what it wrote to its standard error.
///
/// # Errors
///
/// If it succeeds, or is missing.
pub fn run_failing(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if output.status.success() {
        bail!(
            "{} succeeded, and should have failed:\n{}",
            shown(command),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "{:?} is not installed. Run `deploy/bootstrap test`, and put what `deploy/bootstrap --print-path` prints in \
             front of PATH; `make test` does both",
            command.get_program()
        ),
        _ => anyhow::Error::new(error).context(shown(command)),
    })
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    format!("{} {}", command.get_program().to_string_lossy(), words.join(" "))
}

/// Whether `qemu-img` finds the image sound.
///
/// # Errors
///
/// If it does not.
pub fn qemu_img_check(path: &Path, format: &str) -> Result<()> {
    run(tool("qemu-img").args(["check", "-q", "-f", format]).arg(path)).map(drop)
}

/// Whether a guest sees the same bytes in both images, each with its format.
///
/// # Errors
///
/// If it does not.
pub fn qemu_img_compare(ours: (&Path, &str), theirs: (&Path, &str)) -> Result<()> {
    run(tool("qemu-img")
        .args(["compare", "-q", "-f", ours.1, "-F", theirs.1])
        .args([ours.0, theirs.0]))
    .map(drop)
}

/// Makes an image of another format.
///
/// # Errors
///
/// If `qemu-img` fails.
pub fn qemu_img_convert(from: &Path, to: &Path, arguments: &[&str]) -> Result<()> {
    run(tool("qemu-img").arg("convert").args(arguments).arg(from).arg(to))
        .context("qemu-img convert")
        .map(drop)
}
