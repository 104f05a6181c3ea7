//! Object lock: retention, legal holds and what they forbid (S3 User Guide, "Using S3 Object Lock").

use anyhow::{Context, Result, ensure};

use crate::{
    case::Bench,
    wire::{AmzTime, Request, Response, element, object_path},
};

crate::cases! {
    "CreateBucket": a_bucket_with_object_lock_keeps_versions_for_ever;
    "PutObjectLockConfiguration": configurations_are_checked_and_given_back, it_needs_a_bucket_that_keeps_versions,
        defaults_protect_what_comes_without_a_lock;
    "PutObjectRetention": governance_can_be_bypassed, compliance_can_only_be_extended, retentions_are_checked,
        a_retention_that_has_ended_protects_nothing;
    "PutObjectLegalHold": a_legal_hold_protects_until_it_is_lifted;
    "PutObject": locks_come_with_uploads_copies_and_parts, locks_need_a_bucket_that_has_them;
    "DeleteObjects": each_locked_version_is_refused;
}

/// A bucket with object lock, in the place of the case's own.
async fn locked_bucket(bench: &Bench) -> Result<Bench> {
    let bucket = format!("{}-lock", bench.bucket);
    let create = Request::new("PUT", format!("/{bucket}")).header("x-amz-bucket-object-lock-enabled", "true");
    send(bench, create).await?.expect_status(200)?;
    Ok(Bench {
        bucket,
        ..bench.clone()
    })
}

async fn send(bench: &Bench, request: Request) -> Result<Response> {
    request.signed(&bench.target)?.send(&bench.target).await
}

fn iso(seconds: i64) -> String {
    let time = AmzTime::seconds_from_now(seconds).long();
    let part = |range: std::ops::Range<usize>| time.get(range).unwrap_or_default().to_owned();
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    )
}

/// Puts an object, and gives its version.
async fn put(bench: &Bench, key: &str, headers: &[(&str, &str)]) -> Result<String> {
    let mut put = bench.object("PUT", key).body("content");
    for (name, value) in headers {
        put = put.header(name, *value);
    }
    let answer = send(bench, put).await?;
    answer.expect_status(200)?;
    answer
        .header("x-amz-version-id")
        .map(str::to_owned)
        .context("there is no version")
}

fn version(bench: &Bench, method: &'static str, key: &str, version: &str) -> Request {
    Request::new(method, object_path(&bench.bucket, key)).query("versionId", version)
}

fn bypassing(request: Request) -> Request {
    request.header("x-amz-bypass-governance-retention", "true")
}

fn retention(mode: &str, until: &str) -> String {
    format!("<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>")
}

async fn set_retention(bench: &Bench, of: &str, body: String, bypass: bool) -> Result<Response> {
    let mut request = version(bench, "PUT", "k", of).query("retention", "").body(body);
    if bypass {
        request = bypassing(request);
    }
    send(bench, request).await
}

async fn set_hold(bench: &Bench, of: &str, status: &str) -> Result<Response> {
    let body = format!("<LegalHold><Status>{status}</Status></LegalHold>");
    send(bench, version(bench, "PUT", "k", of).query("legal-hold", "").body(body)).await
}

/// Removes the bucket, in which nothing is protected but by governance.
async fn clear(bench: &Bench) -> Result<()> {
    let list = bench.client.list_object_versions().bucket(&bench.bucket).send().await?;
    let versions = list
        .versions()
        .iter()
        .map(|version| (version.key(), version.version_id()));
    let markers = list
        .delete_markers()
        .iter()
        .map(|marker| (marker.key(), marker.version_id()));
    for (key, id) in versions.chain(markers) {
        let (key, id) = (key.context("no key")?, id.context("no version")?);
        let gone = send(bench, bypassing(version(bench, "DELETE", key, id))).await?;
        gone.expect_status(204)?;
    }
    send(bench, bench.bucket("DELETE")).await?.expect_status(204)
}

async fn a_bucket_with_object_lock_keeps_versions_for_ever(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let versioning = send(&bench, bench.bucket("GET").query("versioning", "")).await?;
    ensure!(
        element(&versioning.text(), "Status") == Some("Enabled"),
        "{}",
        versioning.text()
    );
    let lock = send(&bench, bench.bucket("GET").query("object-lock", "")).await?;
    lock.expect_status(200)?;
    ensure!(
        element(&lock.text(), "ObjectLockEnabled") == Some("Enabled"),
        "{}",
        lock.text()
    );
    let suspend = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    let suspended = send(&bench, bench.bucket("PUT").query("versioning", "").body(suspend)).await?;
    suspended.expect_error(409, "InvalidBucketState")?;
    clear(&bench).await
}

fn configuration(rule: &str) -> String {
    format!("<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</ObjectLockConfiguration>")
}

fn default_rule(mode: &str, period: &str) -> String {
    configuration(&format!(
        "<Rule><DefaultRetention><Mode>{mode}</Mode>{period}</DefaultRetention></Rule>"
    ))
}

async fn set_configuration(bench: &Bench, body: &str) -> Result<Response> {
    send(bench, bench.bucket("PUT").query("object-lock", "").body(body)).await
}

async fn configurations_are_checked_and_given_back(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    for (body, status, code) in [
        (default_rule("SOMETIMES", "<Days>1</Days>"), 400, "MalformedXML"),
        (default_rule("GOVERNANCE", ""), 400, "MalformedXML"),
        (
            default_rule("GOVERNANCE", "<Days>1</Days><Years>1</Years>"),
            400,
            "MalformedXML",
        ),
        (
            default_rule("GOVERNANCE", "<Days>0</Days>"),
            400,
            "InvalidRetentionPeriod",
        ),
        (
            default_rule("GOVERNANCE", "<Days>36501</Days>"),
            400,
            "InvalidRetentionPeriod",
        ),
        (
            default_rule("GOVERNANCE", "<Years>-1</Years>"),
            400,
            "InvalidRetentionPeriod",
        ),
        ("<ObjectLockConfiguration/>".to_owned(), 400, "MalformedXML"),
        (configuration("<Rule/>"), 400, "MalformedXML"),
    ] {
        let answer = set_configuration(&bench, &body).await?;
        answer.expect_error(status, code).with_context(|| body.clone())?;
    }
    set_configuration(&bench, &default_rule("COMPLIANCE", "<Years>2</Years>"))
        .await?
        .expect_status(200)?;
    let shown = send(&bench, bench.bucket("GET").query("object-lock", "")).await?.text();
    ensure!(
        element(&shown, "Mode") == Some("COMPLIANCE") && element(&shown, "Years") == Some("2"),
        "{shown}"
    );
    ensure!(element(&shown, "Days").is_none(), "{shown}");
    set_configuration(&bench, &configuration(""))
        .await?
        .expect_status(200)?;
    let shown = send(&bench, bench.bucket("GET").query("object-lock", "")).await?.text();
    ensure!(element(&shown, "Rule").is_none(), "{shown}");
    clear(&bench).await
}

async fn it_needs_a_bucket_that_keeps_versions(bench: Bench) -> Result<()> {
    let none = send(&bench, bench.bucket("GET").query("object-lock", "")).await?;
    none.expect_error(404, "ObjectLockConfigurationNotFoundError")?;
    let refused = set_configuration(&bench, &configuration("")).await?;
    refused.expect_error(409, "InvalidBucketState")
}

async fn defaults_protect_what_comes_without_a_lock(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let body = default_rule("GOVERNANCE", "<Days>1</Days>");
    set_configuration(&bench, &body).await?.expect_status(200)?;
    let id = put(&bench, "k", &[]).await?;
    let head = send(&bench, bench.object("HEAD", "k")).await?;
    ensure!(head.header("x-amz-object-lock-mode") == Some("GOVERNANCE"), "{head:?}");
    let until = head
        .header("x-amz-object-lock-retain-until-date")
        .unwrap_or_default()
        .to_owned();
    let (earliest, latest) = (iso(86_400 - 300), iso(86_400 + 300));
    ensure!(earliest < until && until < latest, "{until} is not in a day");
    let refused = send(&bench, version(&bench, "DELETE", "k", &id)).await?;
    refused.expect_error(403, "AccessDenied")?;
    clear(&bench).await
}

async fn governance_can_be_bypassed(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let id = put(&bench, "k", &[]).await?;
    let none = send(&bench, version(&bench, "GET", "k", &id).query("retention", "")).await?;
    none.expect_error(404, "NoSuchObjectLockConfiguration")?;
    let (soon, later) = (iso(3600), iso(7200));
    let set = |mode: &'static str, until: &str, bypass| set_retention(&bench, &id, retention(mode, until), bypass);
    set("GOVERNANCE", &soon, false).await?.expect_status(200)?;
    let shown = send(&bench, version(&bench, "GET", "k", &id).query("retention", ""))
        .await?
        .text();
    ensure!(element(&shown, "Mode") == Some("GOVERNANCE"), "{shown}");
    // Extended by anybody, shortened and removed by who bypasses.
    set("GOVERNANCE", &later, false).await?.expect_status(200)?;
    set("GOVERNANCE", &soon, false)
        .await?
        .expect_error(403, "AccessDenied")?;
    set("COMPLIANCE", &later, false)
        .await?
        .expect_error(403, "AccessDenied")?;
    set_retention(&bench, &id, "<Retention/>".to_owned(), false)
        .await?
        .expect_error(403, "AccessDenied")?;
    set("GOVERNANCE", &soon, true).await?.expect_status(200)?;
    let refused = send(&bench, version(&bench, "DELETE", "k", &id)).await?;
    refused.expect_error(403, "AccessDenied")?;
    set_retention(&bench, &id, "<Retention/>".to_owned(), true)
        .await?
        .expect_status(200)?;
    send(&bench, version(&bench, "DELETE", "k", &id))
        .await?
        .expect_status(204)?;
    // A delete without a version is a delete marker, and a new version may come.
    let id = put(&bench, "k", &[]).await?;
    set_retention(&bench, &id, retention("GOVERNANCE", &soon), false)
        .await?
        .expect_status(200)?;
    put(&bench, "k", &[]).await?;
    send(&bench, bench.object("DELETE", "k")).await?.expect_status(204)?;
    let kept = send(&bench, version(&bench, "GET", "k", &id)).await?;
    kept.expect_status(200)?;
    send(&bench, bypassing(version(&bench, "DELETE", "k", &id)))
        .await?
        .expect_status(204)?;
    clear(&bench).await
}

async fn compliance_can_only_be_extended(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let id = put(&bench, "k", &[]).await?;
    // Seconds, so that the case can clear up behind itself.
    let (soon, later) = (iso(4), iso(8));
    let set = |mode: &'static str, until: &str| set_retention(&bench, &id, retention(mode, until), true);
    set("COMPLIANCE", &soon).await?.expect_status(200)?;
    set("COMPLIANCE", &later).await?.expect_status(200)?;
    set("COMPLIANCE", &soon).await?.expect_error(403, "AccessDenied")?;
    set("GOVERNANCE", &later).await?.expect_error(403, "AccessDenied")?;
    set_retention(&bench, &id, "<Retention/>".to_owned(), true)
        .await?
        .expect_error(403, "AccessDenied")?;
    let delete = || send(&bench, bypassing(version(&bench, "DELETE", "k", &id)));
    delete().await?.expect_error(403, "AccessDenied")?;
    wait_for_delete(&bench, &id).await?;
    clear(&bench).await
}

/// Deletes a version when its retention has ended.
async fn wait_for_delete(bench: &Bench, id: &str) -> Result<()> {
    for _ in 0..60 {
        let answer = send(bench, version(bench, "DELETE", "k", id)).await?;
        if answer.status == 204 {
            return Ok(());
        }
        answer.expect_error(403, "AccessDenied")?;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    anyhow::bail!("the retention does not end")
}

async fn a_retention_that_has_ended_protects_nothing(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let until = iso(3);
    let locked = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-retain-until-date", &*until),
    ];
    let id = put(&bench, "k", &locked).await?;
    wait_for_delete(&bench, &id).await?;
    clear(&bench).await
}

async fn retentions_are_checked(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let id = put(&bench, "k", &[]).await?;
    for (body, code) in [
        (retention("GOVERNANCE", &iso(-60)), "InvalidArgument"),
        (retention("SOMETIMES", &iso(60)), "MalformedXML"),
        (retention("GOVERNANCE", "tomorrow"), "MalformedXML"),
        (
            "<Retention><Mode>GOVERNANCE</Mode></Retention>".to_owned(),
            "MalformedXML",
        ),
    ] {
        let answer = set_retention(&bench, &id, body.clone(), false).await?;
        answer.expect_error(400, code).with_context(|| body)?;
    }
    set_hold(&bench, &id, "MAYBE")
        .await?
        .expect_error(400, "MalformedXML")?;
    let missing = version(&bench, "PUT", "missing", &id).query("retention", "");
    let missing = send(&bench, missing.body(retention("GOVERNANCE", &iso(60)))).await?;
    ensure!(missing.status == 404, "{}", missing.text());
    clear(&bench).await
}

async fn a_legal_hold_protects_until_it_is_lifted(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let id = put(&bench, "k", &[]).await?;
    let shown = || send(&bench, version(&bench, "GET", "k", &id).query("legal-hold", ""));
    shown().await?.expect_error(404, "NoSuchObjectLockConfiguration")?;
    set_hold(&bench, &id, "ON").await?.expect_status(200)?;
    ensure!(element(&shown().await?.text(), "Status") == Some("ON"));
    let head = send(&bench, bench.object("HEAD", "k")).await?;
    ensure!(head.header("x-amz-object-lock-legal-hold") == Some("ON"), "{head:?}");
    // Nobody bypasses a legal hold.
    let delete = || send(&bench, bypassing(version(&bench, "DELETE", "k", &id)));
    delete().await?.expect_error(403, "AccessDenied")?;
    set_hold(&bench, &id, "OFF").await?.expect_status(200)?;
    ensure!(element(&shown().await?.text(), "Status") == Some("OFF"));
    delete().await?.expect_status(204)?;
    clear(&bench).await
}

async fn locks_come_with_uploads_copies_and_parts(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let until = iso(3600);
    let locked = [
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-retain-until-date", &*until),
        ("x-amz-object-lock-legal-hold", "OFF"),
    ];
    put(&bench, "put", &locked).await?;
    let with_lock = |mut request: Request| {
        for (name, value) in locked {
            request = request.header(name, value);
        }
        request
    };
    let source = format!("/{}/put", bench.bucket);
    let copy = with_lock(bench.object("PUT", "copy").header("x-amz-copy-source", source.as_str()));
    send(&bench, copy).await?.expect_status(200)?;
    // A copy does not inherit the lock.
    let bare = bench.object("PUT", "bare").header("x-amz-copy-source", source);
    send(&bench, bare).await?.expect_status(200)?;
    let begin = send(&bench, with_lock(bench.object("POST", "parts").query("uploads", ""))).await?;
    begin.expect_status(200)?;
    let text = begin.text();
    let id = element(&text, "UploadId").context("no upload id")?;
    let part = bench
        .object("PUT", "parts")
        .query("partNumber", "1")
        .query("uploadId", id);
    let part = send(&bench, part.body("part")).await?;
    part.expect_status(200)?;
    let etag = part.header("etag").context("no ETag")?;
    let parts = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let complete = send(&bench, bench.object("POST", "parts").query("uploadId", id).body(parts)).await?;
    complete.expect_status(200)?;
    for key in ["put", "copy", "parts"] {
        let head = send(&bench, bench.object("HEAD", key)).await?;
        ensure!(
            head.header("x-amz-object-lock-mode") == Some("GOVERNANCE"),
            "{key}: {head:?}"
        );
        ensure!(
            head.header("x-amz-object-lock-legal-hold") == Some("OFF"),
            "{key}: {head:?}"
        );
        let shown = head.header("x-amz-object-lock-retain-until-date").unwrap_or_default();
        ensure!(shown.get(..19) == until.get(..19), "{key}: {shown} is not {until}");
        let id = head.header("x-amz-version-id").context("no version")?;
        let refused = send(&bench, version(&bench, "DELETE", key, id)).await?;
        refused.expect_error(403, "AccessDenied")?;
    }
    let head = send(&bench, bench.object("HEAD", "bare")).await?;
    ensure!(head.header("x-amz-object-lock-mode").is_none(), "{head:?}");
    clear(&bench).await
}

async fn locks_need_a_bucket_that_has_them(bench: Bench) -> Result<()> {
    let locked = |name: &str, value: &str| bench.object("PUT", "k").header(name, value).body("x");
    let hold = send(&bench, locked("x-amz-object-lock-legal-hold", "ON")).await?;
    hold.expect_error(400, "InvalidRequest")?;
    let half = send(&bench, locked("x-amz-object-lock-mode", "GOVERNANCE")).await?;
    half.expect_error(400, "InvalidArgument")?;
    bench.put("k", b"x").await?;
    let body = retention("GOVERNANCE", &iso(60));
    for (what, body) in [
        ("retention", &*body),
        ("legal-hold", "<LegalHold><Status>ON</Status></LegalHold>"),
    ] {
        let set = send(&bench, bench.object("PUT", "k").query(what, "").body(body)).await?;
        set.expect_error(400, "InvalidRequest")?;
        let get = send(&bench, bench.object("GET", "k").query(what, "")).await?;
        get.expect_error(400, "InvalidRequest")?;
    }
    Ok(())
}

async fn each_locked_version_is_refused(bench: Bench) -> Result<()> {
    let bench = locked_bucket(&bench).await?;
    let (free, held) = (put(&bench, "free", &[]).await?, put(&bench, "k", &[]).await?);
    set_hold(&bench, &held, "ON").await?.expect_status(200)?;
    let body = format!(
        "<Delete><Object><Key>free</Key><VersionId>{free}</VersionId></Object>\
         <Object><Key>k</Key><VersionId>{held}</VersionId></Object></Delete>"
    );
    let answer = send(&bench, bypassing(bench.bucket("POST").query("delete", "").body(body))).await?;
    answer.expect_status(200)?;
    let text = answer.text();
    let (_, error) = text.split_once("<Error>").context("nothing was refused")?;
    ensure!(
        element(error, "Code") == Some("AccessDenied") && element(error, "Key") == Some("k"),
        "{text}"
    );
    let (_, deleted) = text.split_once("<Deleted>").context("nothing was deleted")?;
    ensure!(element(deleted, "Key") == Some("free"), "{text}");
    set_hold(&bench, &held, "OFF").await?.expect_status(200)?;
    clear(&bench).await
}
