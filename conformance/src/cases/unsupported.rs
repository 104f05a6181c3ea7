//! What a server may lack: it says so, and never answers with an empty success or a fault of its own.
//!
//! A server that has an operation passes too, as long as its answer is not 500.

use anyhow::{Context, Result, ensure};

use crate::case::Bench;

crate::cases! {
    "NotImplemented": readings_of_buckets, settings_of_buckets, removals_from_buckets, operations_on_objects,
        methods_that_s3_lacks;
}

async fn ask(bench: &Bench, method: &'static str, key: Option<&str>, query: &str, body: &str) -> Result<u16> {
    let mut request = match key {
        Some(key) => bench.object(method, key),
        None => bench.bucket(method),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        request = request.query(name, value);
    }
    let request = request.body(body).signed(&bench.target)?;
    let answer = request.send(&bench.target).await?;
    let status = answer.status;
    if status >= 500 {
        answer
            .expect_error(501, "NotImplemented")
            .with_context(|| format!("{method} {key:?} ?{query}"))?;
    }
    Ok(status)
}

async fn readings_of_buckets(bench: Bench) -> Result<()> {
    for query in [
        "abac",
        "accelerate",
        "acl",
        "analytics",
        "analytics&id=x",
        "cors",
        "encryption",
        "intelligent-tiering",
        "intelligent-tiering&id=x",
        "inventory",
        "inventory&id=x",
        "logging",
        "metadataConfiguration",
        "metadataTable",
        "metrics",
        "metrics&id=x",
        "notification",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "replication",
        "requestPayment",
        "session",
        "versioning",
        "versions",
        "website",
    ] {
        ask(&bench, "GET", None, query, "").await?;
    }
    Ok(())
}

async fn settings_of_buckets(bench: Bench) -> Result<()> {
    for (query, body) in [
        (
            "accelerate",
            "<AccelerateConfiguration><Status>Enabled</Status></AccelerateConfiguration>",
        ),
        ("acl", "<AccessControlPolicy></AccessControlPolicy>"),
        (
            "cors",
            "<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>",
        ),
        (
            "encryption",
            "<ServerSideEncryptionConfiguration></ServerSideEncryptionConfiguration>",
        ),
        ("logging", "<BucketLoggingStatus></BucketLoggingStatus>"),
        (
            "notification",
            "<NotificationConfiguration></NotificationConfiguration>",
        ),
        (
            "ownershipControls",
            "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>",
        ),
        ("policy", "{\"Version\":\"2012-10-17\",\"Statement\":[]}"),
        (
            "publicAccessBlock",
            "<PublicAccessBlockConfiguration></PublicAccessBlockConfiguration>",
        ),
        (
            "replication",
            "<ReplicationConfiguration><Role>r</Role></ReplicationConfiguration>",
        ),
        (
            "requestPayment",
            "<RequestPaymentConfiguration><Payer>Requester</Payer></RequestPaymentConfiguration>",
        ),
        (
            "versioning",
            "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>",
        ),
        ("website", "<WebsiteConfiguration></WebsiteConfiguration>"),
        ("nonsense", ""),
    ] {
        ask(&bench, "PUT", None, query, body).await?;
    }
    // Nothing of it was taken for a new bucket, nor for a body to keep.
    let list = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
    ensure!(list.contents().is_empty(), "{:?}", list.contents());
    Ok(())
}

async fn removals_from_buckets(bench: Bench) -> Result<()> {
    for query in [
        "analytics&id=x",
        "cors",
        "encryption",
        "intelligent-tiering&id=x",
        "inventory&id=x",
        "metadataConfiguration",
        "metadataTable",
        "metrics&id=x",
        "ownershipControls",
        "policy",
        "publicAccessBlock",
        "replication",
        "website",
    ] {
        ask(&bench, "DELETE", None, query, "").await?;
        bench
            .client
            .head_bucket()
            .bucket(&bench.bucket)
            .send()
            .await
            .with_context(|| format!("?{query} removed the bucket"))?;
    }
    Ok(())
}

async fn operations_on_objects(bench: Bench) -> Result<()> {
    bench.put("k", b"kept").await?;
    for (method, query, body) in [
        ("GET", "acl", ""),
        ("GET", "torrent", ""),
        ("PUT", "acl", "<AccessControlPolicy></AccessControlPolicy>"),
        ("POST", "restore", "<RestoreRequest></RestoreRequest>"),
        (
            "POST",
            "select&select-type=2",
            "<SelectObjectContentRequest></SelectObjectContentRequest>",
        ),
    ] {
        ask(&bench, method, Some("k"), query, body).await?;
        ensure!(bench.get("k").await? == b"kept", "{method} ?{query} changed the object");
    }
    Ok(())
}

async fn methods_that_s3_lacks(bench: Bench) -> Result<()> {
    bench.put("k", b"kept").await?;
    for method in ["PATCH", "TRACE", "PURGE"] {
        for key in [None, Some("k")] {
            let status = ask(&bench, method, key, "", "").await?;
            ensure!(status >= 400, "{method} {key:?} was answered by {status}");
        }
    }
    ensure!(bench.get("k").await? == b"kept");
    Ok(())
}
