//! s3cmd.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    client_cases,
    desk::Desk,
    tree::{self, LARGE, NAMES},
    version_of,
};
use crate::{
    pattern::{Pattern, SparseImage},
    tool::{run_failing, s3cmd, tool},
};

client_cases! {
    "s3cmd", "s3cmd", || version_of({
        let mut command = tool("s3cmd");
        command.arg("--version");
        command
    });
    "put": files_go_up_in_parts_and_come_back;
    "sync": sync_carries_changes_and_deletions_both_ways;
    "cp": copies_and_moves_are_made_on_the_server;
    "mb": buckets_are_made_listed_and_removed;
    "signurl": a_signed_url_works_without_keys;
    "multipart": uploads_in_progress_are_listed_and_aborted;
}

impl Desk {
    fn s3cmd(&self, arguments: &[&str]) -> Result<String> {
        self.run(s3cmd(&self.target, self.folder())?, arguments)
    }
}

fn files_go_up_in_parts_and_come_back(desk: &Desk) -> Result<()> {
    SparseImage {
        size: LARGE,
        pattern: Pattern(2),
    }
    .write(&desk.path("disk.img"))?;
    let url = desk.url("a b/ü+&%.img");
    desk.s3cmd(&[
        "put",
        "--multipart-chunk-size-mb=5",
        "--add-header=x-amz-meta-color:red",
        "disk.img",
        &url,
    ])?;
    let info = desk.s3cmd(&["info", &url])?;
    ensure!(
        info.contains(&LARGE.to_string()) && info.contains("x-amz-meta-color"),
        "{info}"
    );
    desk.s3cmd(&["get", &url, "back.img"])?;
    desk.expect_file("back.img", &desk.read("disk.img")?)?;
    // The rest of a download that broke off.
    desk.write("rest.img", desk.read("disk.img")?.get(..7_000_000).unwrap_or_default())?;
    desk.s3cmd(&["get", "--continue", &url, "rest.img"])?;
    desk.expect_file("rest.img", &desk.read("disk.img")?)?;
    desk.s3cmd(&["del", &url])?;
    let list = desk.s3cmd(&["ls", "--recursive", &desk.url("")])?;
    ensure!(list.trim().is_empty(), "{list}");
    Ok(())
}

fn sync_carries_changes_and_deletions_both_ways(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    let up: &[&str] = &[
        "sync",
        "--delete-removed",
        "--multipart-chunk-size-mb=5",
        "tree/",
        &desk.url("t/"),
    ];
    desk.s3cmd(up)?;
    let list = desk.s3cmd(&["ls", "--recursive", &desk.url("")])?;
    ensure!(list.lines().count() == NAMES.len(), "{list}");
    tree::change(&tree)?;
    let changes = desk.s3cmd(up)?;
    ensure!(changes.matches("delete: ").count() == 2, "{changes}");
    let again = desk.s3cmd(up)?;
    ensure!(!again.contains("upload: "), "the second sync was not idle: {again}");
    let down: &[&str] = &["sync", "--delete-removed", &desk.url("t/"), "back/"];
    fs::create_dir(desk.path("back"))?;
    desk.s3cmd(down)?;
    tree::expect_same(&tree, &desk.path("back"))?;
    fs::write(desk.path("back/stray"), "to be deleted")?;
    desk.s3cmd(down)?;
    tree::expect_same(&tree, &desk.path("back"))?;
    desk.s3cmd(&["del", "--recursive", "--force", &desk.url("")])?;
    let usage = desk.s3cmd(&["du", &desk.url("")])?;
    ensure!(usage.trim_start().starts_with("0 "), "{usage}");
    Ok(())
}

fn copies_and_moves_are_made_on_the_server(desk: &Desk) -> Result<()> {
    let content = Pattern(4).bytes(0..6_000_000);
    desk.write("in", &content)?;
    desk.s3cmd(&["put", "in", &desk.url("a/in")])?;
    desk.s3cmd(&["cp", &desk.url("a/in"), &desk.url("b/in")])?;
    desk.s3cmd(&["mv", &desk.url("a/in"), &desk.url("c/in")])?;
    desk.s3cmd(&["modify", "--add-header=x-amz-meta-color:red", &desk.url("c/in")])?;
    let info = desk.s3cmd(&["info", &desk.url("c/in")])?;
    ensure!(info.contains("x-amz-meta-color"), "{info}");
    desk.s3cmd(&["get", &desk.url("c/in"), "out"])?;
    desk.expect_file("out", &content)?;
    let list = desk.s3cmd(&["ls", "--recursive", &desk.url("")])?;
    ensure!(
        list.contains("b/in") && list.contains("c/in") && !list.contains("a/in"),
        "{list}"
    );
    Ok(())
}

fn buckets_are_made_listed_and_removed(desk: &Desk) -> Result<()> {
    let url = format!("s3://{}-own", desk.bucket);
    desk.s3cmd(&["mb", &url])?;
    desk.write("in", b"hello")?;
    desk.s3cmd(&["put", "in", &format!("{url}/k")])?;
    let list = desk.s3cmd(&["la"])?;
    ensure!(list.contains(&format!("{url}/k")), "{list}");
    let refused = run_failing(s3cmd(&desk.target, desk.folder())?.args(["rb", &url]))?;
    ensure!(refused.contains("BucketNotEmpty"), "{refused}");
    desk.s3cmd(&["rb", "--recursive", "--force", &url])?;
    let list = desk.s3cmd(&["ls"])?;
    ensure!(!list.contains(&url), "{list}");
    Ok(())
}

fn a_signed_url_works_without_keys(desk: &Desk) -> Result<()> {
    desk.write("in", b"hello")?;
    let url = desk.url("a b/ü.img");
    desk.s3cmd(&["put", "in", &url])?;
    let signed = desk.s3cmd(&["signurl", &url, "+600"])?;
    desk.run(tool("curl"), &["-fsS", "-o", "out", signed.trim()])?;
    desk.expect_file("out", b"hello")
}

fn uploads_in_progress_are_listed_and_aborted(desk: &Desk) -> Result<()> {
    let mut python = crate::tool::tool("python3");
    crate::tool::isolate(&mut python, &desk.target, desk.folder());
    let begin =
        "import boto3, sys; print(boto3.client('s3').create_multipart_upload(Bucket=sys.argv[1], Key='k')['UploadId'])";
    let id = desk.run(python, &["-c", begin, &desk.bucket])?;
    let list = desk.s3cmd(&["multipart", &desk.url("")])?;
    ensure!(list.contains(id.trim()), "{list}");
    let parts = desk.s3cmd(&["listmp", &desk.url("k"), id.trim()])?;
    ensure!(!parts.contains("ERROR"), "{parts}");
    desk.s3cmd(&["abortmp", &desk.url("k"), id.trim()])?;
    let list = desk.s3cmd(&["multipart", &desk.url("")])?;
    ensure!(!list.contains(id.trim()), "{list}");
    Ok(())
}
