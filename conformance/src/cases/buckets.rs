//! CreateBucket, HeadBucket, ListBuckets, GetBucketLocation, DeleteBucket.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};

use crate::{
    case::{Bench, Skip},
    sdk::{expect_code, expect_status},
    wire::Request,
};

crate::cases! {
    "CreateBucket": new_bucket_is_there, names_that_are_not_allowed, twice_is_refused_or_the_same;
    "ListBuckets": pages_are_as_long_as_asked;
    "GetBucketLocation": default_is_no_location, location_is_the_constraint;
    "HeadBucket": a_missing_bucket_is_404;
    "DeleteBucket": a_bucket_with_objects_stays, a_bucket_with_uploads_only_goes_or_stays_whole, a_deleted_bucket_is_gone;
    "NoSuchBucket": every_operation_says_so;
}

async fn new_bucket_is_there(bench: Bench) -> Result<()> {
    bench.client.head_bucket().bucket(&bench.bucket).send().await?;
    let list = bench.client.list_buckets().send().await?;
    let found = list
        .buckets()
        .iter()
        .find(|bucket| bucket.name() == Some(&bench.bucket));
    ensure!(
        found.context("it is not listed")?.creation_date().is_some(),
        "it has no date"
    );
    Ok(())
}

async fn names_that_are_not_allowed(bench: Bench) -> Result<()> {
    let long = "a".repeat(64);
    for name in [
        "ab",
        "UPPER",
        "under_score",
        "-dash",
        "dash-",
        "a..b",
        "192.168.0.1",
        &long,
    ] {
        let answer = Request::new("PUT", format!("/{name}"))
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        answer
            .expect_error(400, "InvalidBucketName")
            .with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// In us-east-1 S3 answers 200 to the owner for history's sake, elsewhere 409.
async fn twice_is_refused_or_the_same(bench: Bench) -> Result<()> {
    bench.put("kept", b"x").await?;
    if let Err(error) = bench.client.create_bucket().bucket(&bench.bucket).send().await {
        expect_code::<(), _, _>(Err(error), "BucketAlreadyOwnedByYou")?;
    }
    ensure!(bench.get("kept").await? == b"x", "what it held is gone");
    Ok(())
}

async fn pages_are_as_long_as_asked(bench: Bench) -> Result<()> {
    let names: Vec<String> = (0..3).map(|n| format!("{}-{n}", bench.bucket)).collect();
    for name in &names {
        bench.client.create_bucket().bucket(name).send().await?;
    }
    let mut found = Vec::new();
    let mut token = None;
    loop {
        let page = bench
            .client
            .list_buckets()
            .prefix(format!("{}-", bench.bucket))
            .max_buckets(2);
        let page = page.set_continuation_token(token).send().await?;
        ensure!(page.buckets().len() <= 2, "a page is too long");
        found.extend(page.buckets().iter().filter_map(|bucket| bucket.name.clone()));
        token = page.continuation_token;
        if token.is_none() {
            break;
        }
    }
    for name in &names {
        bench.client.delete_bucket().bucket(name).send().await?;
    }
    ensure!(found == names, "found {found:?}");
    Ok(())
}

async fn default_is_no_location(bench: Bench) -> Result<()> {
    let answer = bench
        .bucket("GET")
        .query("location", "")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    ensure!(answer.text().contains("<LocationConstraint"), "{}", answer.text());
    Ok(())
}

async fn location_is_the_constraint(bench: Bench) -> Result<()> {
    let name = format!("{}-located", bench.bucket);
    let constraint = BucketLocationConstraint::from("eu-west-1");
    let configuration = CreateBucketConfiguration::builder()
        .location_constraint(constraint.clone())
        .build();
    let created = bench
        .client
        .create_bucket()
        .bucket(&name)
        .create_bucket_configuration(configuration)
        .send()
        .await;
    if created.is_err() {
        return Err(Skip("the endpoint takes no other location than its own").into());
    }
    let location = bench.client.get_bucket_location().bucket(&name).send().await;
    bench.client.delete_bucket().bucket(&name).send().await?;
    let location = location?.location_constraint;
    ensure!(location.as_ref() == Some(&constraint), "it is {location:?}");
    Ok(())
}

async fn a_missing_bucket_is_404(bench: Bench) -> Result<()> {
    let name = format!("{}-missing", bench.bucket);
    expect_status(bench.client.head_bucket().bucket(name).send().await, 404)
}

async fn a_bucket_with_objects_stays(bench: Bench) -> Result<()> {
    bench.put("a", b"x").await?;
    expect_code(
        bench.client.delete_bucket().bucket(&bench.bucket).send().await,
        "BucketNotEmpty",
    )?;
    ensure!(bench.get("a").await? == b"x", "its object is gone");
    Ok(())
}

/// S3 refuses it, other servers delete the uploads with it. Both leave nothing half.
async fn a_bucket_with_uploads_only_goes_or_stays_whole(bench: Bench) -> Result<()> {
    let upload = bench
        .client
        .create_multipart_upload()
        .bucket(&bench.bucket)
        .key("u")
        .send()
        .await?;
    match bench.client.delete_bucket().bucket(&bench.bucket).send().await {
        Ok(_) => {
            bench.client.create_bucket().bucket(&bench.bucket).send().await?;
            let uploads = bench
                .client
                .list_multipart_uploads()
                .bucket(&bench.bucket)
                .send()
                .await?;
            ensure!(uploads.uploads().is_empty(), "a new bucket has the old one's upload");
        }
        Err(error) => {
            expect_code::<(), _, _>(Err(error), "BucketNotEmpty")?;
            let id = upload.upload_id.unwrap_or_default();
            bench
                .client
                .list_parts()
                .bucket(&bench.bucket)
                .key("u")
                .upload_id(id)
                .send()
                .await?;
        }
    }
    Ok(())
}

async fn a_deleted_bucket_is_gone(bench: Bench) -> Result<()> {
    let name = format!("{}-gone", bench.bucket);
    bench.client.create_bucket().bucket(&name).send().await?;
    bench.client.delete_bucket().bucket(&name).send().await?;
    expect_code(bench.client.delete_bucket().bucket(&name).send().await, "NoSuchBucket")?;
    let list = bench.client.list_buckets().send().await?;
    ensure!(
        !list.buckets().iter().any(|bucket| bucket.name() == Some(&name)),
        "it is listed"
    );
    Ok(())
}

async fn every_operation_says_so(bench: Bench) -> Result<()> {
    let name = format!("/{}-missing", bench.bucket);
    let key = format!("{name}/key");
    let requests = [
        Request::new("GET", &name),
        Request::new("GET", &name).query("list-type", "2"),
        Request::new("GET", &name).query("location", ""),
        Request::new("GET", &name).query("uploads", ""),
        Request::new("GET", &name).query("tagging", ""),
        Request::new("DELETE", &name),
        Request::new("GET", &key),
        Request::new("PUT", &key).body("x"),
        Request::new("DELETE", &key),
        Request::new("POST", &key).query("uploads", ""),
        Request::new("GET", &key).query("tagging", ""),
        Request::new("PUT", &key).header("x-amz-copy-source", format!("{}/x", bench.bucket)),
    ];
    bench.put("x", b"x").await?;
    for request in requests {
        let answer = request.clone().signed(&bench.target)?.send(&bench.target).await?;
        answer
            .expect_error(404, "NoSuchBucket")
            .with_context(|| format!("{} {}", request.method, request.uri()))?;
    }
    Ok(())
}
