//! The clients people really use: aws, s3cmd and boto3.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    pattern::{Pattern, SparseImage},
    target::Server,
    tool::{aws, isolate, run, run_failing, s3cmd, tool},
    wire::Request,
};

use crate::images::ensure_same;

/// More than one part of the smallest size, and an odd end.
const LARGE: u64 = (20 << 20) + 4321;

/// A folder with files large and small, nested and oddly named.
fn make_tree(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("sub dir/ü"))?;
    fs::write(folder.join("small"), "hello")?;
    fs::write(folder.join("empty"), "")?;
    fs::write(folder.join("sub dir/a+b & c.txt"), Pattern(1).bytes(0..100_000))?;
    fs::write(folder.join("sub dir/ü/100%"), "percent")?;
    SparseImage {
        size: LARGE,
        pattern: Pattern(2),
    }
    .write(&folder.join("large.img"))?;
    Ok(())
}

fn ensure_same_tree(ours: &Path, theirs: &Path) -> Result<()> {
    for name in ["small", "empty", "sub dir/a+b & c.txt", "sub dir/ü/100%", "large.img"] {
        ensure_same(&ours.join(name), &theirs.join(name)).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// What a plain GET of a URL answers.
async fn fetch(server: &Server, url: &str) -> Result<Vec<u8>> {
    let path = url
        .trim()
        .strip_prefix(&server.target().endpoint)
        .context("the URL is elsewhere")?;
    let answer = Request::new("GET", path).send(server.target()).await?;
    answer.expect_status(200)?;
    Ok(answer.body)
}

#[tokio::test]
async fn aws_s3() -> Result<()> {
    let server = Server::start()?;
    let tree = server.scratch().join("tree");
    make_tree(&tree)?;
    let s3 = |arguments: &[&str]| run(aws(&server).arg("s3").args(arguments).current_dir(server.scratch()));
    s3(&["mb", "s3://images"])?;
    s3(&["sync", "tree", "s3://images/t", "--no-progress"])?;
    let again = s3(&["sync", "tree", "s3://images/t", "--no-progress"])?;
    ensure!(again.trim().is_empty(), "the second sync was not idle: {again}");
    let list = s3(&["ls", "--recursive", "s3://images"])?;
    ensure!(
        list.lines().count() == 5 && list.contains("t/sub dir/a+b & c.txt") && list.contains("t/sub dir/ü/100%"),
        "{list}"
    );
    s3(&[
        "cp",
        "s3://images/t/large.img",
        "s3://images/copy/large.img",
        "--no-progress",
    ])?;
    s3(&[
        "mv",
        "s3://images/t",
        "s3://images/moved",
        "--recursive",
        "--no-progress",
    ])?;
    s3(&["sync", "s3://images/moved", "back", "--no-progress"])?;
    ensure_same_tree(&tree, &server.scratch().join("back"))?;
    s3(&["cp", "s3://images/copy/large.img", "copied.img", "--no-progress"])?;
    ensure_same(&tree.join("large.img"), &server.scratch().join("copied.img"))?;
    let url = s3(&["presign", "s3://images/moved/sub dir/a+b & c.txt"])?;
    ensure!(
        fetch(&server, &url).await? == Pattern(1).bytes(0..100_000),
        "the presigned URL gives something else"
    );
    let refused = run_failing(aws(&server).args(["s3", "rb", "s3://images"]))?;
    ensure!(refused.contains("BucketNotEmpty"), "{refused}");
    s3(&["rm", "s3://images", "--recursive", "--quiet"])?;
    s3(&["rb", "s3://images"])?;
    server.await_blob_files(|files| files.is_empty())
}

#[tokio::test]
async fn aws_s3api() -> Result<()> {
    let server = Server::start()?;
    let content = Pattern(3).bytes(0..300_000);
    fs::write(server.scratch().join("in"), &content)?;
    let api = |arguments: &[&str]| -> Result<serde_json::Value> {
        let mut command = aws(&server);
        command
            .arg("s3api")
            .args(arguments)
            .args(["--bucket", "images", "--output", "json"]);
        let text = run(command.current_dir(server.scratch()))?;
        Ok(if text.trim().is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::from_str(&text)?
        })
    };
    api(&["create-bucket"])?;
    api(&[
        "put-object",
        "--key",
        "k",
        "--body",
        "in",
        "--metadata",
        "color=red",
        "--tagging",
        "a=1&b=2",
    ])?;
    let head = api(&["head-object", "--key", "k"])?;
    ensure!(
        head["ContentLength"] == 300_000 && head["Metadata"]["color"] == "red",
        "{head}"
    );
    let range = api(&["get-object", "--key", "k", "--range", "bytes=100000-199999", "part"])?;
    ensure!(range["ContentRange"] == "bytes 100000-199999/300000", "{range}");
    ensure!(fs::read(server.scratch().join("part"))? == content[100_000..200_000]);
    api(&[
        "put-object-tagging",
        "--key",
        "k",
        "--tagging",
        "TagSet=[{Key=team,Value=a b}]",
    ])?;
    let tags = api(&["get-object-tagging", "--key", "k"])?;
    ensure!(tags["TagSet"][0]["Value"] == "a b", "{tags}");
    let upload = api(&["create-multipart-upload", "--key", "m"])?;
    let id = upload["UploadId"].as_str().context("no upload id")?;
    let part = api(&[
        "upload-part",
        "--key",
        "m",
        "--upload-id",
        id,
        "--part-number",
        "1",
        "--body",
        "in",
    ])?;
    let parts = format!(
        "Parts=[{{ETag={},PartNumber=1}}]",
        part["ETag"].as_str().unwrap_or_default().replace('"', "")
    );
    let done = api(&[
        "complete-multipart-upload",
        "--key",
        "m",
        "--upload-id",
        id,
        "--multipart-upload",
        &parts,
    ])?;
    ensure!(
        done["ETag"].as_str().is_some_and(|etag| etag.ends_with("-1\"")),
        "{done}"
    );
    let list = api(&["list-objects-v2", "--max-items", "1"])?;
    ensure!(
        list["Contents"][0]["Key"] == "k" && list["NextToken"].is_string(),
        "{list}"
    );
    let missing =
        run_failing(aws(&server).args(["s3api", "get-object", "--bucket", "images", "--key", "x", "/dev/null"]))?;
    ensure!(missing.contains("NoSuchKey"), "{missing}");
    Ok(())
}

#[tokio::test]
async fn s3cmd_commands() -> Result<()> {
    let server = Server::start()?;
    let tree = server.scratch().join("tree");
    make_tree(&tree)?;
    let s3cmd = |arguments: &[&str]| run(s3cmd(&server)?.args(arguments).current_dir(server.scratch()));
    s3cmd(&["mb", "s3://images"])?;
    s3cmd(&[
        "put",
        "--multipart-chunk-size-mb=5",
        "tree/large.img",
        "s3://images/large.img",
    ])?;
    s3cmd(&["sync", "tree/", "s3://images/t/"])?;
    let list = s3cmd(&["ls", "--recursive", "s3://images"])?;
    ensure!(list.lines().count() == 6, "{list}");
    let info = s3cmd(&["info", "s3://images/large.img"])?;
    ensure!(info.contains(&LARGE.to_string()), "{info}");
    s3cmd(&["cp", "s3://images/large.img", "s3://images/copy/large.img"])?;
    s3cmd(&["sync", "s3://images/t/", "back/"])?;
    ensure_same_tree(&tree, &server.scratch().join("back"))?;
    s3cmd(&["get", "s3://images/copy/large.img", "copied.img"])?;
    ensure_same(&tree.join("large.img"), &server.scratch().join("copied.img"))?;
    let url = s3cmd(&["signurl", "s3://images/t/small", "+600"])?;
    ensure!(
        fetch(&server, &url).await? == b"hello",
        "the signed URL gives something else"
    );
    s3cmd(&["del", "s3://images/large.img"])?;
    s3cmd(&["del", "--recursive", "--force", "s3://images"])?;
    s3cmd(&["rb", "s3://images"])?;
    server.await_blob_files(|files| files.is_empty())
}

#[test]
fn boto3() -> Result<()> {
    let server = Server::start()?;
    let has = tool("python3")
        .args(["-c", "import boto3"])
        .output()
        .is_ok_and(|output| output.status.success());
    ensure!(
        has,
        "the python3 on PATH has no boto3. Run `deploy/bootstrap test`, and put what `deploy/bootstrap --print-path` \
         prints in front of PATH; `make test` does both"
    );
    let mut python = tool("python3");
    python
        .args(["-c", include_str!("boto3_client.py")])
        .current_dir(server.scratch());
    isolate(&mut python, server.target(), server.scratch());
    println!("{}", run(&mut python)?);
    server.await_blob_files(|files| files.is_empty())
}
