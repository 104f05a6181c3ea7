//! The clients and image tools of other people, as `deploy/bootstrap` installs them.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::target::{POLL, Target};

/// Longest time of one command. On a busy machine the clients take seconds to start.
const PATIENCE: Duration = Duration::from_mins(1);

/// A command by name. Whether it is there shows when it is run.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null());
    command
}

/// Whether a command of this name is on `PATH`.
pub fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// The AWS command line against a target, without anything of the machine's own configuration.
pub fn aws(target: &Target, home: &Path) -> Command {
    let mut command = tool("aws");
    isolate(&mut command, target, home);
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
        .env("AWS_REGION", &target.region)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_PAGER", "");
}

/// s3cmd against a target.
///
/// # Errors
///
/// If the target is not plain HTTP.
pub fn s3cmd(target: &Target, home: &Path) -> Result<Command> {
    let authority = target.authority()?;
    let mut command = tool("s3cmd");
    command
        .arg(format!("--config={}", home.join("no-s3cfg").display()))
        .arg(format!("--access_key={}", target.access_key))
        .arg(format!("--secret_key={}", target.secret_key))
        .arg(format!("--host={authority}"))
        .arg(format!("--host-bucket={authority}"))
        .args(["--no-ssl", "--no-progress"])
        .env("HOME", home);
    Ok(command)
}

/// rclone against a target, which it calls `s3:`.
pub fn rclone(target: &Target, home: &Path) -> Command {
    let mut command = tool("rclone");
    isolate(&mut command, target, home);
    command
        // A log that says what it did is worth more than one that retried until it went well.
        .args(["--retries=1", "--low-level-retries=1"])
        .env("RCLONE_CONFIG", home.join("no-rclone.conf"))
        .env("RCLONE_CONFIG_S3_TYPE", "s3")
        .env("RCLONE_CONFIG_S3_PROVIDER", "Other")
        .env("RCLONE_CONFIG_S3_ENV_AUTH", "true")
        .env("RCLONE_CONFIG_S3_ENDPOINT", &target.endpoint)
        .env("RCLONE_CONFIG_S3_REGION", &target.region);
    command
}

/// restic with a repository in a bucket.
pub fn restic(target: &Target, home: &Path, bucket: &str) -> Command {
    let mut command = tool("restic");
    isolate(&mut command, target, home);
    command
        .env("RESTIC_REPOSITORY", format!("s3:{}/{bucket}/backup", target.endpoint))
        .env("RESTIC_PASSWORD", "not a secret")
        .env("RESTIC_CACHE_DIR", home.join("restic-cache"));
    command
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

/// Runs it to its end. Its output goes through files: a pipe that nobody empties would stop it.
fn output(command: &mut Command) -> Result<Output> {
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "{} is not installed. Run `deploy/bootstrap test`, and put what `deploy/bootstrap --print-path` prints in \
             front of PATH; `make test` does both",
            command.get_program().display()
        ),
        _ => anyhow::Error::new(error).context(shown(command)),
    })?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            let (stdout, stderr) = (written(stdout)?, written(stderr)?);
            bail!(
                "{} did not end within {PATIENCE:?}:\n{}{}",
                shown(command),
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            );
        }
        sleep(POLL);
    };
    Ok(Output {
        status,
        stdout: written(stdout)?,
        stderr: written(stderr)?,
    })
}

fn written(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
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
