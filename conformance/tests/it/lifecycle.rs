//! Lifecycle rules as they are carried out, by a server whose days are short; and what they leave alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    case::Bench,
    target::{POLL, Server, ServerOptions},
    tool::{aws, run, run_failing},
    wire::{Request, Response, element, elements, object_path},
};

/// How long a day is. Rules are due within two.
const DAY: &str = "400ms";
/// Rules on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Some days, in which what has to stay could go.
const DAYS: Duration = Duration::from_secs(2);

fn start() -> Result<Server> {
    Server::start_with(ServerOptions {
        arguments: vec!["--lifecycle-day".to_owned(), DAY.to_owned()],
        ..ServerOptions::default()
    })
}

async fn send(bench: &Bench, request: Request) -> Result<Response> {
    request.signed(&bench.target)?.send(&bench.target).await
}

async fn set_rules(bench: &Bench, rules: &[&str]) -> Result<()> {
    let mut text = String::new();
    for rule in rules {
        text.push_str("<Rule><Status>Enabled</Status>");
        text.push_str(rule);
        text.push_str("</Rule>");
    }
    let body = format!("<LifecycleConfiguration>{text}</LifecycleConfiguration>");
    let answer = send(bench, bench.bucket("PUT").query("lifecycle", "").body(body)).await?;
    answer.expect_status(200)
}

async fn keep_versions(bench: &Bench) -> Result<()> {
    let body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    send(bench, bench.bucket("PUT").query("versioning", "").body(body))
        .await?
        .expect_status(200)
}

/// The keys of the bucket's versions, and of its delete markers.
async fn versions(bench: &Bench) -> Result<(Vec<String>, Vec<String>)> {
    let text = send(bench, bench.bucket("GET").query("versions", "")).await?.text();
    let keys = |element_name: &str| -> Vec<String> {
        let entries = elements(&text, element_name);
        entries
            .filter_map(|entry| element(entry, "Key").map(str::to_owned))
            .collect()
    };
    Ok((keys("Version"), keys("DeleteMarker")))
}

async fn keys(bench: &Bench) -> Result<Vec<String>> {
    let text = send(bench, bench.bucket("GET").query("list-type", "2")).await?.text();
    Ok(elements(&text, "Key").map(str::to_owned).collect())
}

/// Waits until `look` gives what is `wanted`.
async fn await_equal<T: PartialEq + std::fmt::Debug>(look: impl AsyncFn() -> Result<T>, wanted: T) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = look().await?;
        if found == wanted {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{found:?} does not become {wanted:?}");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn objects_expire_as_their_rules_say() -> Result<()> {
    let server = start()?;
    let bench = Bench::new(server.target()).await?;
    for key in ["logs/a", "logs/b", "other", "small", "big"] {
        bench.put(key, &[1; 10]).await?;
    }
    bench.put("big", &[1; 1000]).await?;
    let tagged = bench
        .object("PUT", "tagged")
        .header("x-amz-tagging", "gone=soon")
        .body("x");
    send(&bench, tagged).await?.expect_status(200)?;
    let begin = send(&bench, bench.object("POST", "upload").query("uploads", "")).await?;
    begin.expect_status(200)?;
    set_rules(
        &bench,
        &[
            "<Filter><Prefix>logs/</Prefix></Filter><Expiration><Days>1</Days></Expiration>",
            "<Filter><Tag><Key>gone</Key><Value>soon</Value></Tag></Filter><Expiration><Days>1</Days></Expiration>",
            "<Filter><ObjectSizeGreaterThan>500</ObjectSizeGreaterThan></Filter><Expiration><Days>1</Days></Expiration>",
            "<Filter><Prefix>other</Prefix></Filter><Expiration><Days>20000</Days></Expiration>",
            "<Filter/><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>\
             </AbortIncompleteMultipartUpload>",
        ],
    )
    .await?;
    await_equal(|| keys(&bench), vec!["other".to_owned(), "small".to_owned()]).await?;
    let uploads = async || {
        let text = send(&bench, bench.bucket("GET").query("uploads", "")).await?.text();
        Ok(elements(&text, "Upload").count())
    };
    await_equal(uploads, 0).await?;
    tokio::time::sleep(DAYS).await;
    ensure!(keys(&bench).await?.len() == 2, "what no rule names is gone");
    // What comes later expires too.
    bench.put("logs/c", b"x").await?;
    await_equal(|| keys(&bench), vec!["other".to_owned(), "small".to_owned()]).await?;
    bench.clear().await?;
    server.await_no_blobs()
}

#[tokio::test]
async fn versions_expire_and_the_newest_stay() -> Result<()> {
    let server = start()?;
    let bench = Bench::new(server.target()).await?;
    keep_versions(&bench).await?;
    for n in 0..5_u8 {
        bench.put("many", &[n; 10]).await?;
    }
    bench.put("deleted", b"x").await?;
    send(&bench, bench.object("DELETE", "deleted"))
        .await?
        .expect_status(204)?;
    set_rules(
        &bench,
        &[
            "<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>\
           <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
           <NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
        ],
    )
    .await?;
    // One is current, two are kept; of what was deleted, the version is kept, and so the marker is not alone.
    let many = ["deleted", "many", "many", "many"].map(str::to_owned).to_vec();
    await_equal(|| versions(&bench), (many, vec!["deleted".to_owned()])).await?;
    ensure!(bench.get("many").await? == [4; 10], "the current version is another");
    set_rules(
        &bench,
        &[
            "<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>\
           <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>",
        ],
    )
    .await?;
    await_equal(|| versions(&bench), (vec!["many".to_owned()], Vec::new())).await?;
    // A current version that expires leaves a marker, its version expires after it, then the marker.
    set_rules(
        &bench,
        &["<Filter/><Expiration><Days>1</Days></Expiration>\
           <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>"],
    )
    .await?;
    await_equal(|| versions(&bench), (Vec::new(), Vec::new())).await?;
    let gone = send(&bench, bench.bucket("DELETE")).await?;
    gone.expect_status(204)?;
    server.await_no_blobs()
}

#[tokio::test]
async fn what_object_lock_protects_stays() -> Result<()> {
    let server = start()?;
    let bench = Bench::new(server.target()).await?;
    let bucket = format!("{}-lock", bench.bucket);
    let bench = Bench {
        bucket: bucket.clone(),
        ..bench
    };
    let create = bench.bucket("PUT").header("x-amz-bucket-object-lock-enabled", "true");
    send(&bench, create).await?.expect_status(200)?;
    let held = bench
        .object("PUT", "held")
        .header("x-amz-object-lock-legal-hold", "ON")
        .body("x");
    send(&bench, held).await?.expect_status(200)?;
    bench.put("free", b"x").await?;
    set_rules(
        &bench,
        &["<Filter/><Expiration><Days>1</Days></Expiration>\
           <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>"],
    )
    .await?;
    let held = vec!["held".to_owned()];
    await_equal(|| versions(&bench), (held.clone(), held.clone())).await?;
    tokio::time::sleep(DAYS).await;
    ensure!(
        versions(&bench).await? == (held.clone(), held),
        "a legal hold was not kept"
    );
    Ok(())
}

#[tokio::test]
async fn a_pass_survives_kills_and_takes_nothing_that_came_later() -> Result<()> {
    let mut server = start()?;
    let bench = Bench::new(server.target()).await?;
    for n in 0..40 {
        bench.put(&format!("old/{n:03}"), b"x").await?;
    }
    let rule = "<Filter><Prefix>old/</Prefix></Filter><Expiration><Days>1</Days></Expiration>";
    set_rules(&bench, &[rule]).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill()?;
        server.run()?;
    }
    let bench = Bench {
        target: server.target().clone(),
        client: lithos_conformance::sdk::client(server.target()),
        ..bench
    };
    await_equal(|| keys(&bench), Vec::new()).await?;
    // An object that is always written anew never grows old enough.
    let begun = Instant::now();
    let far = "<Filter/><Expiration><Days>10</Days></Expiration>";
    set_rules(&bench, &[far]).await?;
    while begun.elapsed() < DAYS * 3 {
        bench.put("young", b"x").await?;
        let answer = send(&bench, Request::new("HEAD", object_path(&bench.bucket, "young"))).await?;
        answer.expect_status(200)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop()?;
    let mut fsck = Server::offline_command()?;
    run(fsck.arg("fsck").arg("--data").arg(server.data()))?;
    Ok(())
}

#[tokio::test]
async fn the_aws_command_sets_rules_and_locks() -> Result<()> {
    let server = Server::start()?;
    let home = tempfile::tempdir()?;
    let s3api = |words: &[&str]| {
        let mut command = aws(server.target(), home.path());
        command.arg("s3api").args(words);
        command
    };
    let locked = ["--bucket", "locked"];
    run(&mut s3api(
        &[&["create-bucket"][..], &locked, &["--object-lock-enabled-for-bucket"]].concat(),
    ))?;
    let rules = r#"{"Rules": [{"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""},
        "Expiration": {"Days": 9000}, "NoncurrentVersionExpiration": {"NoncurrentDays": 3}}]}"#;
    let set = ["put-bucket-lifecycle-configuration", "--lifecycle-configuration", rules];
    run(&mut s3api(&[&set[..], &locked].concat()))?;
    let shown = run(&mut s3api(
        &[&["get-bucket-lifecycle-configuration"][..], &locked].concat(),
    ))?;
    ensure!(shown.contains("\"NoncurrentDays\": 3"), "{shown}");
    let default =
        r#"{"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}"#;
    let set = ["put-object-lock-configuration", "--object-lock-configuration", default];
    run(&mut s3api(&[&set[..], &locked].concat()))?;
    let put = run(&mut s3api(&[&["put-object", "--key", "k"][..], &locked].concat()))?;
    let put: serde_json::Value = serde_json::from_str(&put)?;
    let version = put["VersionId"].as_str().context("no version")?;
    let delete = ["delete-object", "--key", "k", "--version-id", version];
    let refused = run_failing(&mut s3api(&[&delete[..], &locked].concat()))?;
    ensure!(refused.contains("AccessDenied"), "{refused}");
    let hold = ["put-object-legal-hold", "--key", "k", "--legal-hold", "Status=ON"];
    run(&mut s3api(&[&hold[..], &locked].concat()))?;
    let bypass = [&delete[..], &locked, &["--bypass-governance-retention"]].concat();
    ensure!(run_failing(&mut s3api(&bypass))?.contains("AccessDenied"));
    let hold = ["put-object-legal-hold", "--key", "k", "--legal-hold", "Status=OFF"];
    run(&mut s3api(&[&hold[..], &locked].concat()))?;
    let shown = run(&mut s3api(
        &[&["get-object-retention", "--key", "k"][..], &locked].concat(),
    ))?;
    ensure!(shown.contains("GOVERNANCE"), "{shown}");
    run(&mut s3api(&bypass))?;
    run(&mut s3api(&[&["delete-bucket"][..], &locked].concat()))?;
    Ok(())
}
