//! Jobs as people and programs see them: the command, the API, its events.

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    pattern::Pattern,
    target::Target,
    tool::{run, run_failing},
    wire::{Request, elements},
};

use crate::images::Images;

async fn with_jobs() -> Result<Images> {
    let images = Images::start().await?;
    images.bench.put("good.img", &Pattern(1).bytes(0..3 << 20)).await?;
    images.bench.put("bad.img", &Pattern(2).bytes(0..1 << 20)).await?;
    images.bench.put("bad.qcow2", b"foreign").await?;
    images.tag("good.img", &[("convert-to", "qcow2")]).await?;
    images.await_jobs("good.img").await?;
    images.tag("bad.img", &[("convert-to", "qcow2")]).await?;
    images.await_jobs("bad.img").await?;
    Ok(images)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lists_shows_and_watches() -> Result<()> {
    let images = with_jobs().await?;
    let lithos = |arguments: &[&str]| run(images.server.command()?.args(arguments));
    let list = lithos(&["job", "list"])?;
    ensure!(
        list.contains("done") && list.contains("failed") && list.contains("good.img"),
        "{list}"
    );
    let jobs: serde_json::Value = serde_json::from_str(&lithos(&["job", "list", "--state", "failed", "--json"])?)?;
    let jobs = jobs
        .as_array()
        .or_else(|| jobs["jobs"].as_array())
        .context("no list")?
        .clone();
    ensure!(jobs.len() == 1, "{jobs:?}");
    let id = jobs[0]["id"].as_str().context("no id")?;
    let shown = lithos(&["job", "show", id])?;
    ensure!(shown.contains("bad.qcow2") && shown.contains("failed"), "{shown}");
    lithos(&["job", "watch"])?;
    run_failing(images.server.command()?.args(["job", "watch", id]))?;
    // The way is free now.
    images
        .bench
        .client
        .delete_object()
        .bucket(&images.bench.bucket)
        .key("bad.qcow2")
        .send()
        .await?;
    lithos(&["job", "retry", id])?;
    lithos(&["job", "watch", id])?;
    images.head("bad.qcow2").await?;
    let error = run_failing(images.server.command()?.args(["job", "show", "nonsense"]))?;
    ensure!(!error.trim().is_empty());
    let error = run_failing(
        images
            .server
            .command()?
            .env("LITHOS_SECRET_KEY", "wrong")
            .args(["job", "list"]),
    )?;
    ensure!(error.contains("key"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_api_wants_a_signature_and_speaks_json() -> Result<()> {
    let images = with_jobs().await?;
    let target = images.server.management_target();
    for path in ["/healthz", "/readyz"] {
        Request::new("GET", path).send(&target).await?.expect_status(200)?;
    }
    let list = || Request::new("GET", "/api/v1/jobs");
    ensure!(list().send(&target).await?.status == 403, "it answers anybody");
    let wrong = Target {
        secret_key: "wrong".into(),
        ..target.clone()
    };
    let answer = list().signed(&wrong)?.send(&target).await?;
    ensure!(
        answer.status == 403 && elements(&answer.text(), "Code").next().is_none(),
        "{}",
        answer.text()
    );
    let error: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(error["error"]["code"] == "SignatureDoesNotMatch", "{error}");
    let jobs = images.admin(list()).await?;
    ensure!(jobs["jobs"].as_array().is_some_and(|jobs| jobs.len() == 2), "{jobs}");
    let missing = Request::new("GET", "/api/v1/jobs/00000000000000000000000000000000");
    ensure!(missing.signed(&target)?.send(&target).await?.status == 404);
    let openapi = images.admin(Request::new("GET", "/api/v1/openapi.json")).await?;
    ensure!(
        openapi["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.")),
        "{openapi}"
    );
    Ok(())
}

/// The stream of a job that has ended, ends.
#[tokio::test]
async fn events_tell_of_a_job() -> Result<()> {
    let images = with_jobs().await?;
    let target = images.server.management_target();
    let (id, _) = images.await_jobs("good.img").await?.pop().context("no job")?;
    let events = Request::new("GET", format!("/api/v1/jobs/{id}/events"))
        .signed(&target)?
        .send(&target)
        .await?;
    events.expect_status(200)?;
    ensure!(
        events
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/event-stream")),
        "{events:?}"
    );
    let text = events.text();
    let data = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .next_back()
        .context("no event")?;
    let job: serde_json::Value = serde_json::from_str(data.trim())?;
    ensure!(job["state"] == "done" && job["id"] == id.as_str(), "{text}");
    Ok(())
}
