//! restic, as a tool that keeps backups.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{client_cases, desk::Desk, tree, version_of};
use crate::tool::{restic, tool};

client_cases! {
    "restic", "restic", || version_of({
        let mut command = tool("restic");
        command.arg("version");
        command
    });
    "backup": backups_are_made_checked_thinned_out_and_restored;
}

impl Desk {
    fn restic(&self, arguments: &[&str]) -> Result<String> {
        self.run(restic(&self.target, self.folder(), &self.bucket), arguments)
    }
}

fn backups_are_made_checked_thinned_out_and_restored(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    desk.restic(&["init"])?;
    desk.restic(&["backup", "tree"])?;
    // One that is changed between two backups, and one whose blocks only the first one holds.
    tree::change(&tree)?;
    fs::rename(tree.join("large.img"), desk.path("large.img"))?;
    desk.restic(&["backup", "tree"])?;
    let snapshots: Value = serde_json::from_str(&desk.restic(&["snapshots", "--json"])?)?;
    ensure!(snapshots.as_array().map(Vec::len) == Some(2), "{snapshots}");
    desk.restic(&["check", "--read-data"])?;
    desk.restic(&["forget", "--keep-last=1", "--prune"])?;
    desk.restic(&["check", "--read-data"])?;
    desk.restic(&["restore", "latest", "--target", "back"])?;
    tree::expect_same(&tree, &desk.path("back/tree"))
}
