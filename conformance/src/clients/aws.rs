//! The AWS command line.

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
    tree::{self, LARGE, NAMES},
    version_of,
};
use crate::{
    pattern::{Pattern, SparseImage},
    tool::{aws, run_failing, tool},
};

client_cases! {
    "AWS CLI", "aws", || version_of({
        let mut command = tool("aws");
        command.arg("--version");
        command
    });
    "s3 cp": files_and_streams_go_up_and_come_back, copies_are_made_on_the_server;
    "s3 sync": sync_carries_changes_and_deletions_both_ways;
    "s3 mv": folders_and_files_are_moved;
    "s3 rm": folders_are_removed_but_for_what_is_excluded;
    "s3 mb": buckets_are_made_listed_and_removed;
    "s3 presign": a_presigned_url_works_without_keys;
    "s3api": objects_with_metadata_and_tags, conditions_and_batches, parts_and_pages;
    "s3api versions": versions_are_kept_and_brought_back;
}

impl Desk {
    /// `aws s3 ...`
    fn s3(&self, arguments: &[&str]) -> Result<String> {
        let mut command = aws(&self.target, self.folder());
        command.arg("s3");
        self.run(command, arguments)
    }

    /// `aws s3api ... --bucket BUCKET`, and what it answers.
    fn s3api(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = aws(&self.target, self.folder());
        command.args(["s3api", "--output", "json"]);
        let text = self.run(command, &[arguments, &["--bucket", &self.bucket]].concat())?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("s3api {arguments:?} wrote no JSON: {text}"))
    }

    /// `aws ...`, which must fail, and what it says then.
    fn aws_fails(&self, arguments: &[&str]) -> Result<String> {
        run_failing(
            aws(&self.target, self.folder())
                .args(arguments)
                .current_dir(self.folder()),
        )
    }
}

fn files_and_streams_go_up_and_come_back(desk: &Desk) -> Result<()> {
    let image = SparseImage {
        size: LARGE,
        pattern: Pattern(2),
    };
    image.write(&desk.path("disk.img"))?;
    desk.s3(&[
        "cp",
        "--no-progress",
        "disk.img",
        &desk.url("disk.img"),
        "--metadata",
        "color=red",
    ])?;
    desk.s3(&["cp", "--no-progress", &desk.url("disk.img"), "back.img"])?;
    desk.expect_file("back.img", &desk.read("disk.img")?)?;
    // From a pipe, of a length that is not known before, and to one.
    let mut shell = tool("sh");
    crate::tool::isolate(&mut shell, &desk.target, desk.folder());
    let url = desk.url("piped");
    desk.run(
        shell,
        &[
            "-c",
            &format!("aws s3 cp - '{url}' <disk.img && aws s3 cp '{url}' - | cmp - disk.img"),
        ],
    )?;
    let head = desk.s3api(&["head-object", "--key", "disk.img"])?;
    ensure!(
        head["Metadata"]["color"] == "red" && head["ContentLength"] == LARGE,
        "{head}"
    );
    Ok(())
}

fn copies_are_made_on_the_server(desk: &Desk) -> Result<()> {
    tree::make(&desk.path("tree"))?;
    desk.s3(&["cp", "--recursive", "--no-progress", "tree", &desk.url("a")])?;
    desk.s3(&["cp", "--recursive", "--no-progress", &desk.url("a"), &desk.url("b")])?;
    // Above the threshold of a managed copy, which is by UploadPartCopy.
    desk.s3(&["cp", "--recursive", "--no-progress", &desk.url("b"), "back"])?;
    tree::expect_same(&desk.path("tree"), &desk.path("back"))
}

fn sync_carries_changes_and_deletions_both_ways(desk: &Desk) -> Result<()> {
    let tree = desk.path("tree");
    tree::make(&tree)?;
    let up: &[&str] = &["sync", "tree", &desk.url("t"), "--no-progress", "--delete"];
    desk.s3(up)?;
    let again = desk.s3(up)?;
    ensure!(again.trim().is_empty(), "the second sync was not idle: {again}");
    let list = desk.s3(&["ls", "--recursive", &desk.url("")])?;
    ensure!(
        list.lines().count() == NAMES.len() && NAMES.iter().all(|name| list.contains(&format!("t/{name}"))),
        "{list}"
    );
    tree::change(&tree)?;
    let changes = desk.s3(up)?;
    ensure!(
        changes.matches("delete: ").count() == 2 && changes.matches("upload: ").count() == 3,
        "{changes}"
    );
    let down: &[&str] = &["sync", &desk.url("t"), "back", "--no-progress", "--delete"];
    desk.s3(down)?;
    tree::expect_same(&tree, &desk.path("back"))?;
    fs::write(desk.path("back/stray"), "to be deleted")?;
    desk.s3(down)?;
    tree::expect_same(&tree, &desk.path("back"))
}

fn folders_and_files_are_moved(desk: &Desk) -> Result<()> {
    tree::make(&desk.path("tree"))?;
    desk.s3(&["cp", "--recursive", "--no-progress", "tree", &desk.url("t")])?;
    desk.s3(&["mv", "--recursive", "--no-progress", &desk.url("t"), &desk.url("moved")])?;
    desk.s3(&[
        "mv",
        "--no-progress",
        &desk.url("moved/small"),
        &desk.url("moved/renamed"),
    ])?;
    fs::rename(desk.path("tree/small"), desk.path("tree/renamed"))?;
    let left = desk.s3api(&["list-objects-v2", "--prefix", "t/"])?;
    ensure!(left["Contents"].is_null(), "what was moved is still there: {left}");
    desk.s3(&["mv", "--recursive", "--no-progress", &desk.url("moved"), "back"])?;
    tree::expect_same(&desk.path("tree"), &desk.path("back"))?;
    let left = desk.s3api(&["list-objects-v2"])?;
    ensure!(left["Contents"].is_null(), "{left}");
    Ok(())
}

fn folders_are_removed_but_for_what_is_excluded(desk: &Desk) -> Result<()> {
    fs::create_dir_all(desk.path("tree/sub"))?;
    for name in ["a.img", "b.txt", "sub/c.img", "sub/d.txt"] {
        desk.write(&format!("tree/{name}"), name.as_bytes())?;
    }
    desk.s3(&["sync", "tree", &desk.url("t"), "--no-progress"])?;
    desk.s3(&[
        "rm",
        "--recursive",
        &desk.url("t"),
        "--exclude",
        "*",
        "--include",
        "*.txt",
    ])?;
    let list = desk.s3api(&["list-objects-v2", "--query", "Contents[].Key"])?;
    ensure!(list == serde_json::json!(["t/a.img", "t/sub/c.img"]), "{list}");
    desk.s3(&["rm", "--recursive", &desk.url("")])?;
    let list = desk.s3api(&["list-objects-v2"])?;
    ensure!(list["Contents"].is_null(), "{list}");
    Ok(())
}

fn buckets_are_made_listed_and_removed(desk: &Desk) -> Result<()> {
    let (name, url) = (format!("{}-own", desk.bucket), format!("s3://{}-own", desk.bucket));
    desk.s3(&["mb", &url])?;
    let list = desk.s3(&["ls"])?;
    ensure!(list.contains(&name), "{list}");
    desk.write("in", b"hello")?;
    desk.s3(&["cp", "in", &format!("{url}/k"), "--no-progress"])?;
    let refused = desk.aws_fails(&["s3", "rb", &url])?;
    ensure!(refused.contains("BucketNotEmpty"), "{refused}");
    desk.s3(&["rb", "--force", &url])?;
    let missing = desk.aws_fails(&["s3", "ls", &url])?;
    ensure!(missing.contains("NoSuchBucket"), "{missing}");
    Ok(())
}

fn a_presigned_url_works_without_keys(desk: &Desk) -> Result<()> {
    let content = Pattern(5).bytes(0..100_000);
    desk.write("in", &content)?;
    let url = desk.url("a b/ü+&%.img");
    desk.s3(&["cp", "in", &url, "--no-progress"])?;
    let presigned = desk.s3(&["presign", &url, "--expires-in", "60"])?;
    desk.run(tool("curl"), &["-fsS", "-o", "out", presigned.trim()])?;
    desk.expect_file("out", &content)
}

fn objects_with_metadata_and_tags(desk: &Desk) -> Result<()> {
    let content = Pattern(3).bytes(0..300_000);
    desk.write("in", &content)?;
    desk.s3api(&[
        "put-object",
        "--key",
        "k",
        "--body",
        "in",
        "--metadata",
        "color=red",
        "--tagging",
        "a=1&b=2",
        "--content-type",
        "application/x-disk",
        "--checksum-algorithm",
        "SHA256",
    ])?;
    let head = desk.s3api(&["head-object", "--key", "k", "--checksum-mode", "ENABLED"])?;
    ensure!(
        head["ContentLength"] == 300_000
            && head["Metadata"]["color"] == "red"
            && head["ContentType"] == "application/x-disk"
            && head["ChecksumSHA256"].is_string(),
        "{head}"
    );
    let range = desk.s3api(&["get-object", "--key", "k", "--range", "bytes=100000-199999", "part"])?;
    ensure!(range["ContentRange"] == "bytes 100000-199999/300000", "{range}");
    desk.expect_file("part", content.get(100_000..200_000).unwrap_or_default())?;
    desk.s3api(&[
        "put-object-tagging",
        "--key",
        "k",
        "--tagging",
        "TagSet=[{Key=team,Value=a b}]",
    ])?;
    let tags = desk.s3api(&["get-object-tagging", "--key", "k"])?;
    ensure!(
        tags["TagSet"] == serde_json::json!([{"Key": "team", "Value": "a b"}]),
        "{tags}"
    );
    let source = format!("{}/k", desk.bucket);
    desk.s3api(&["copy-object", "--key", "copy", "--copy-source", &source])?;
    let head = desk.s3api(&["head-object", "--key", "copy"])?;
    ensure!(head["Metadata"]["color"] == "red" && head["TagCount"] == 1, "{head}");
    let missing = desk.aws_fails(&["s3api", "get-object", "--bucket", &desk.bucket, "--key", "x", "out"])?;
    ensure!(missing.contains("NoSuchKey"), "{missing}");
    Ok(())
}

fn conditions_and_batches(desk: &Desk) -> Result<()> {
    desk.write("in", b"first")?;
    desk.s3api(&["put-object", "--key", "a", "--body", "in", "--if-none-match", "*"])?;
    let refused = desk.aws_fails(&[
        "s3api",
        "put-object",
        "--bucket",
        &desk.bucket,
        "--key",
        "a",
        "--body",
        "in",
        "--if-none-match",
        "*",
    ])?;
    ensure!(refused.contains("PreconditionFailed"), "{refused}");
    desk.s3api(&["put-object", "--key", "b/c & d", "--body", "in"])?;
    desk.s3api(&["wait", "object-exists", "--key", "b/c & d"])?;
    let deleted = desk.s3api(&[
        "delete-objects",
        "--delete",
        r#"{"Objects":[{"Key":"a"},{"Key":"b/c & d"},{"Key":"x"}]}"#,
    ])?;
    ensure!(
        deleted["Deleted"].as_array().map(Vec::len) == Some(3) && deleted["Errors"].is_null(),
        "{deleted}"
    );
    desk.s3api(&["wait", "object-not-exists", "--key", "a"]).map(drop)
}

fn parts_and_pages(desk: &Desk) -> Result<()> {
    desk.write("in", &Pattern(3).bytes(0..300_000))?;
    desk.s3api(&["put-object", "--key", "k"])?;
    let upload = desk.s3api(&["create-multipart-upload", "--key", "m"])?;
    let id = upload["UploadId"].as_str().context("no upload id")?;
    let of = ["--key", "m", "--upload-id", id];
    let part = desk.s3api(&[&["upload-part", "--part-number", "1", "--body", "in"], &of[..]].concat())?;
    let parts = desk.s3api(&[&["list-parts"], &of[..]].concat())?;
    ensure!(parts["Parts"][0]["Size"] == 300_000, "{parts}");
    let uploads = desk.s3api(&["list-multipart-uploads"])?;
    ensure!(uploads["Uploads"][0]["UploadId"] == id, "{uploads}");
    let named = serde_json::json!({"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}).to_string();
    let done = desk.s3api(&[&["complete-multipart-upload", "--multipart-upload", &named], &of[..]].concat())?;
    ensure!(
        done["ETag"].as_str().is_some_and(|etag| etag.ends_with("-1\"")),
        "{done}"
    );
    let list = desk.s3api(&["list-objects-v2", "--max-items", "1"])?;
    ensure!(
        list["Contents"][0]["Key"] == "k" && list["NextToken"].is_string(),
        "{list}"
    );
    let upload = desk.s3api(&["create-multipart-upload", "--key", "given up"])?;
    let id = upload["UploadId"].as_str().context("no upload id")?;
    desk.s3api(&["abort-multipart-upload", "--key", "given up", "--upload-id", id])?;
    let uploads = desk.s3api(&["list-multipart-uploads"])?;
    ensure!(uploads["Uploads"].is_null(), "{uploads}");
    Ok(())
}

fn versions_are_kept_and_brought_back(desk: &Desk) -> Result<()> {
    desk.s3api(&["put-bucket-versioning", "--versioning-configuration", "Status=Enabled"])?;
    let state = desk.s3api(&["get-bucket-versioning"])?;
    ensure!(state["Status"] == "Enabled", "{state}");
    for content in ["one", "two", "three"] {
        fs::write(desk.path("file"), content)?;
        desk.s3(&["cp", "--no-progress", "file", &desk.url("file")])?;
    }
    desk.s3(&["rm", &desk.url("file")])?;
    let listed = desk.s3(&["ls", &desk.url("")])?;
    ensure!(listed.trim().is_empty(), "{listed}");
    let list = desk.s3api(&["list-object-versions", "--prefix", "file", "--page-size", "1"])?;
    let id = |entry: &Value| entry["VersionId"].as_str().unwrap_or_default().to_owned();
    let versions: Vec<String> = list["Versions"]
        .as_array()
        .context("no versions")?
        .iter()
        .map(id)
        .collect();
    ensure!(versions.len() == 3, "{list}");
    let marker = &list["DeleteMarkers"][0];
    ensure!(marker["IsLatest"] == true, "{list}");
    desk.s3api(&["get-object", "--key", "file", "--version-id", &versions[2], "back"])?;
    desk.expect_file("back", b"one")?;
    let failed = desk.aws_fails(&["s3api", "head-object", "--bucket", &desk.bucket, "--key", "file"])?;
    ensure!(failed.contains("404"), "{failed}");
    let deleted = desk.s3api(&["delete-object", "--key", "file", "--version-id", &id(marker)])?;
    ensure!(
        deleted["DeleteMarker"] == true && deleted["VersionId"] == marker["VersionId"],
        "{deleted}"
    );
    desk.s3(&["cp", "--no-progress", &desk.url("file"), "back"])?;
    desk.expect_file("back", b"three")?;
    let source = format!("{}/file?versionId={}", desk.bucket, versions[1]);
    let copied = desk.s3api(&["copy-object", "--key", "file", "--copy-source", &source])?;
    ensure!(copied["CopySourceVersionId"] == versions[1], "{copied}");
    desk.s3(&["cp", "--no-progress", &desk.url("file"), "back"])?;
    desk.expect_file("back", b"two")?;
    let failed = desk.aws_fails(&["s3api", "delete-bucket", "--bucket", &desk.bucket])?;
    ensure!(failed.contains("BucketNotEmpty"), "{failed}");
    Ok(())
}
