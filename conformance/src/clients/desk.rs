//! Where a client works: a bucket, and a folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    case::{Bench, Skip},
    target::Target,
    tool::{is_installed, run},
};

/// A bucket and a folder for one case.
#[derive(Debug)]
pub struct Desk {
    /// Where requests go.
    pub target: Target,
    /// A bucket for this case alone.
    pub bucket: String,
    folder: TempDir,
}

impl Desk {
    /// The folder, in which commands are run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Writes a file in the folder.
    ///
    /// # Errors
    ///
    /// If the disk fails.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        fs::write(self.path(name), content).with_context(|| format!("cannot write {name}"))
    }

    /// Reads a file in the folder.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| format!("cannot read {name}"))
    }

    /// Whether a file in the folder holds just this.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn expect_file(&self, name: &str, content: &[u8]) -> Result<()> {
        ensure!(self.read(name)? == content, "the file {name} has other content");
        Ok(())
    }

    /// Runs a command in the folder, and gives what it wrote to its standard output.
    ///
    /// # Errors
    ///
    /// If it fails: with the command and all it wrote.
    pub fn run(&self, mut command: Command, arguments: &[&str]) -> Result<String> {
        run(command.args(arguments).current_dir(self.folder()))
    }

    /// `s3://BUCKET/KEY`
    pub fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// Runs a program in a language whose interpreter this is, which gets the endpoint by its environment, and the name
    /// of a story and the bucket as arguments.
    ///
    /// # Errors
    ///
    /// If it fails: with all it wrote.
    pub fn run_program(&self, mut interpreter: Command, program: (&str, &str), story: &str) -> Result<()> {
        let (file, text) = program;
        self.write(file, text.as_bytes())?;
        crate::tool::isolate(&mut interpreter, &self.target, self.folder());
        self.run(interpreter, &[file, story, &self.bucket]).map(drop)
    }
}

/// Has a client work, on a thread that may wait.
///
/// # Errors
///
/// [`Skip`] with `missing` if there is no such command; else those of the client.
pub(super) async fn work(
    bench: Bench,
    command: &'static str,
    missing: &'static str,
    story: fn(&Desk) -> Result<()>,
) -> Result<()> {
    if !is_installed(command) {
        return Err(Skip(missing).into());
    }
    let desk = Desk {
        target: bench.target,
        bucket: bench.bucket,
        folder: tempfile::Builder::new().prefix("lithos-client.").tempdir()?,
    };
    tokio::task::spawn_blocking(move || story(&desk)).await?
}
