//! rclone.

#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value gives null for what it lacks; it never panics"
)]

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    client_cases,
    desk::Desk,
    tree::{self, NAMES},
    version_of,
};
use crate::{
    pattern::Pattern,
    tool::{rclone, run_failing, tool},
};

client_cases! {
    "rclone", "rclone", || version_of({
        let mut command = tool("rclone");
        command.arg("version");
        command
    });
    "sync": sync_carries_changes_and_deletions_both_ways, checksums_decide_and_lists_are_fast;
    "copy": copies_and_moves_are_made_on_the_server;
    "check": a_changed_file_is_found;
    "purge": a_folder_and_a_bucket_are_removed;
    "rcat": streams_go_up_and_ranges_come_back;
    "--s3-versions": versions_are_listed_read_and_cleaned_up;
}

/// Parts as small as S3 lets them be, so that a small file has several.
const SMALL_PARTS: [&str; 3] = ["--s3-upload-cutoff=5Mi", "--s3-chunk-size=5Mi", "--s3-copy-cutoff=5Mi"];

impl Desk {
    fn rclone(&self, arguments: &[&str]) -> Result<String> {
        let mut command = rclone(&self.target, self.folder());
        command.args(SMALL_PARTS);
        self.run(command, arguments)
    }

    /// A place as rclone calls it.
    fn remote(&self, key: &str) -> String {
        format!("s3:{}/{key}", self.bucket)
    }
}

fn sync_carries_changes_and_deletions_both_ways(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    let remote = desk.remote("t");
    desk.rclone(&["copy", "tree", &remote])?;
    desk.rclone(&["check", "tree", &remote])?;
    // Times are kept: nothing is sent again.
    let idle = desk.rclone(&["sync", "--dry-run", "--use-json-log", "-v", "tree", &remote])?;
    ensure!(!idle.contains("Skipped"), "{idle}");
    tree::change(&tree)?;
    desk.rclone(&["sync", "tree", &remote])?;
    let list = desk.rclone(&["lsf", "--recursive", "--files-only", &remote])?;
    ensure!(list.lines().count() == NAMES.len() && !list.contains("empty"), "{list}");
    desk.rclone(&["sync", &remote, "back"])?;
    tree::expect_same(&tree, &desk.path("back"))?;
    fs::write(desk.path("back/stray"), "to be deleted")?;
    desk.rclone(&["sync", &remote, "back"])?;
    tree::expect_same(&tree, &desk.path("back"))
}

fn checksums_decide_and_lists_are_fast(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    let remote = desk.remote("t");
    desk.rclone(&["sync", "--checksum", "--fast-list", "tree", &remote])?;
    // The same content with another time is the same file; another content of the same length and time is not.
    fs::write(tree.join("small"), "hello")?;
    fs::write(tree.join("sub dir/ü/100%"), "PERCENT")?;
    desk.rclone(&["sync", "--checksum", "--fast-list", "tree", &remote])?;
    desk.rclone(&["check", "--checksum", "--fast-list", "tree", &remote])?;
    let content = desk.rclone(&["cat", &format!("{remote}/sub dir/ü/100%")])?;
    ensure!(content == "PERCENT", "{content}");
    let size: Value = serde_json::from_str(&desk.rclone(&["size", "--json", "--fast-list", &remote])?)?;
    ensure!(size["count"] == NAMES.len(), "{size}");
    Ok(())
}

fn copies_and_moves_are_made_on_the_server(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    desk.rclone(&["copy", "tree", &desk.remote("a")])?;
    desk.rclone(&["copy", &desk.remote("a"), &desk.remote("b")])?;
    desk.rclone(&["check", &desk.remote("a"), &desk.remote("b")])?;
    desk.rclone(&["moveto", &desk.remote("b/small"), &desk.remote("b/renamed")])?;
    desk.rclone(&["move", "--delete-empty-src-dirs", &desk.remote("b"), &desk.remote("c")])?;
    fs::rename(tree.join("small"), tree.join("renamed"))?;
    desk.rclone(&["check", "--download", "tree", &desk.remote("c")])?;
    let left = desk.rclone(&["lsf", "--recursive", "--files-only", &desk.remote("")])?;
    ensure!(!left.lines().any(|name| name.starts_with("b/")), "{left}");
    Ok(())
}

fn a_changed_file_is_found(desk: &Desk) -> Result<()> {
    tree::make(&desk.path("tree"))?;
    desk.rclone(&["copy", "tree", &desk.remote("t")])?;
    desk.write("tree/small", b"hellO")?;
    let found = run_failing(
        rclone(&desk.target, desk.folder())
            .args(["check", "tree", &desk.remote("t")])
            .current_dir(desk.folder()),
    )?;
    ensure!(
        found.contains("small") && found.contains("1 differences found"),
        "{found}"
    );
    Ok(())
}

fn a_folder_and_a_bucket_are_removed(desk: &Desk) -> Result<()> {
    tree::make(&desk.path("tree"))?;
    let own = format!("s3:{}-own", desk.bucket);
    desk.rclone(&["mkdir", &own])?;
    desk.rclone(&["copy", "tree", &format!("{own}/a")])?;
    desk.rclone(&["copy", "tree/sub dir", &format!("{own}/b")])?;
    desk.rclone(&["purge", &format!("{own}/a")])?;
    let left = desk.rclone(&["lsf", &own])?;
    ensure!(left.trim() == "b/", "{left}");
    desk.rclone(&["delete", "--rmdirs", &format!("{own}/b")])?;
    desk.rclone(&["copy", "tree", &own])?;
    desk.rclone(&["purge", &own])?;
    let buckets = desk.rclone(&["lsd", "s3:"])?;
    ensure!(!buckets.contains("-own"), "{buckets}");
    Ok(())
}

fn streams_go_up_and_ranges_come_back(desk: &Desk) -> Result<()> {
    let content = Pattern(6).bytes(0..12_000_000);
    desk.write("in", &content)?;
    let mut command = rclone(&desk.target, desk.folder());
    command.args(SMALL_PARTS).stdin(fs::File::open(desk.path("in"))?);
    desk.run(command, &["rcat", &desk.remote("piped")])?;
    desk.rclone(&["copyto", &desk.remote("piped"), "out"])?;
    desk.expect_file("out", &content)?;
    desk.rclone(&[
        "copyto",
        "--multi-thread-cutoff=1Mi",
        "--multi-thread-streams=4",
        &desk.remote("piped"),
        "threads",
    ])?;
    desk.expect_file("threads", &content)?;
    let list = desk.rclone(&["lsjson", "--hash", &desk.remote("piped")])?;
    let list: Value = serde_json::from_str(&list)?;
    let size = list
        .get(0)
        .and_then(|entry| entry["Size"].as_u64())
        .context("no size")?;
    ensure!(size == 12_000_000, "{list}");
    Ok(())
}

fn versions_are_listed_read_and_cleaned_up(desk: &Desk) -> Result<()> {
    let remote = desk.remote("");
    desk.rclone(&["backend", "versioning", &remote, "Enabled"])?;
    fs::create_dir(desk.path("dir"))?;
    for content in ["one", "three"] {
        desk.write("dir/file.txt", content.as_bytes())?;
        desk.rclone(&["copy", "dir", &remote])?;
    }
    ensure!(desk.rclone(&["cat", &desk.remote("file.txt")])? == "three");
    let names = |arguments: &[&str]| -> Result<Vec<String>> {
        let list = desk.rclone(&[&["lsf"], arguments, &[&remote]].concat())?;
        Ok(list.lines().map(str::to_owned).collect())
    };
    ensure!(names(&[])? == ["file.txt"]);
    // Earlier versions have their time in their names.
    let listed = names(&["--s3-versions"])?;
    let old: Vec<_> = listed.iter().filter(|name| name.starts_with("file-v")).collect();
    ensure!(listed.len() == 2 && old.len() == 1, "{listed:?}");
    let content = desk.rclone(&["cat", "--s3-versions", &desk.remote(old[0])])?;
    ensure!(content == "one", "{content}");
    desk.rclone(&["deletefile", &desk.remote("file.txt")])?;
    ensure!(names(&[])?.is_empty());
    let listed = names(&["--s3-versions"])?;
    ensure!(listed.len() == 2, "{listed:?}");
    desk.rclone(&["copy", "--s3-versions", &remote, "back"])?;
    let mut back: Vec<_> = fs::read_dir(desk.path("back"))?
        .map(|entry| Ok(fs::read_to_string(entry?.path())?))
        .collect::<Result<_>>()?;
    back.sort();
    ensure!(back == ["one", "three"], "{back:?}");
    desk.rclone(&["backend", "cleanup-hidden", &remote])?;
    ensure!(names(&["--s3-versions"])?.is_empty());
    Ok(())
}
