//! Two zones: what is wanted in the other one gets there, once, whatever happens to either server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{ReplicationStatus, Tag, Tagging};
use lithos_conformance::{
    case::Bench,
    pattern::{Dice, Pattern, fresh_seed},
    sdk,
    target::{POLL, Server, ServerOptions},
    tool::{qemu_img_check, qemu_img_compare, run},
};

use crate::images::{Images, PATIENCE, ensure_same};

/// Two servers that know each other.
struct Zones {
    az1: Images,
    az2: Images,
}

impl Zones {
    async fn start() -> Result<Self> {
        let options = |zone: &str| ServerOptions {
            zones: vec![zone.to_owned()],
            ..ServerOptions::default()
        };
        let mut az1 = Images::start_with(options("az1")).await?;
        let mut az2 = Images::start_with(options("az2")).await?;
        // They are to be found again after a restart.
        for images in [&mut az1, &mut az2] {
            let addresses = images.server.addresses();
            images.server.listen_on(addresses);
        }
        introduce(&az1.server, &az2.server, "az2")?;
        introduce(&az2.server, &az1.server, "az1")?;
        // On the other side, the bucket of az1 is what is looked at.
        az2.bench.clear().await?;
        az2.bench = Bench {
            bucket: az1.bench.bucket.clone(),
            ..az2.bench
        };
        Ok(Self { az1, az2 })
    }

    /// Waits until az1 says that an object is where it was wanted.
    async fn await_status(&self, key: &str, status: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let head = self.az1.head(key).await?;
            let found = head.replication_status().map_or("nowhere", ReplicationStatus::as_str);
            if found == status {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{key} is {found} and not {status}; {}",
                self.az1.server.log_end()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ensure_equal(&self, key: &str) -> Result<()> {
        let (here, there) = (
            self.az1.head(key).await?,
            self.az2.head(key).await.context("it is not there")?,
        );
        ensure!(
            here.e_tag() == there.e_tag(),
            "{key}: the ETags are {:?} and {:?}",
            here.e_tag(),
            there.e_tag()
        );
        ensure!(
            here.content_type() == there.content_type(),
            "{key}: another content type"
        );
        ensure!(
            there.replication_status().map(ReplicationStatus::as_str) == Some("REPLICA"),
            "{key}: {there:?}"
        );
        let color = |head: &aws_sdk_s3::operation::head_object::HeadObjectOutput| {
            head.metadata().and_then(|metadata| metadata.get("color")).cloned()
        };
        ensure!(color(&here) == color(&there), "{key}: other metadata");
        ensure_same(
            &self.az1.get_file(key, "here").await?,
            &self.az2.get_file(key, "there").await?,
        )
    }
}

/// Tells one server of the other.
fn introduce(on: &Server, peer: &Server, zone: &str) -> Result<()> {
    let target = peer.target();
    let mut command = on.command()?;
    command.args(["server", "add", zone, "--zone", zone, "--management", peer.management()]);
    command.args(["--transfer", &target.endpoint, "--access-key", &target.access_key]);
    command.args(["--secret-key", &target.secret_key]);
    run(&mut command).map(drop)
}

async fn bind(images: &Images, zones: &str) -> Result<()> {
    let tags = Tagging::builder()
        .tag_set(Tag::builder().key("zones").value(zones).build()?)
        .build()?;
    images
        .bench
        .client
        .put_bucket_tagging()
        .bucket(&images.bench.bucket)
        .tagging(tags)
        .send()
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tagged_image_and_its_derivative_travel_once() -> Result<()> {
    let zones = Zones::start().await?;
    let raw = zones.az1.sparse_image("disk.img", 64 << 20)?;
    zones.az1.put_file(&raw, "vm/disk.img").await?;
    zones
        .az1
        .tag(
            "vm/disk.img",
            &[("convert-to", "qcow2"), ("replicate-to", "az2"), ("team", "a")],
        )
        .await?;
    zones.az1.await_done("vm/disk.img").await?;
    for key in ["vm/disk.img", "vm/disk.qcow2"] {
        zones.await_status(key, "COMPLETED").await?;
        zones.ensure_equal(key).await?;
    }
    let tags = zones
        .az2
        .bench
        .client
        .get_object_tagging()
        .bucket(&zones.az2.bench.bucket)
        .key("vm/disk.img")
        .send()
        .await?;
    ensure!(
        tags.tag_set().iter().any(|tag| tag.key == "team" && tag.value == "a"),
        "{tags:?}"
    );
    let qcow2 = zones.az2.get_file("vm/disk.qcow2", "disk.qcow2").await?;
    qemu_img_check(&qcow2, "qcow2")?;
    qemu_img_compare((&raw, "raw"), (&qcow2, "qcow2"))?;
    let (here, there) = (zones.az1.server.stored_bytes()?, zones.az2.server.stored_bytes()?);
    println!("az1 stores {here} bytes, az2 {there}");
    ensure!(
        there * 100 <= here * 103,
        "the blobs were sent twice: {there} bytes are stored there, {here} here"
    );
    // A replica is an object of its own there, and its blobs go with it.
    zones.az2.bench.clear().await?;
    zones.az2.server.await_no_blobs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_bucket_brings_all_it_holds_and_gets() -> Result<()> {
    let zones = Zones::start().await?;
    let put = |key: &'static str, seed| {
        let body = aws_sdk_s3::primitives::ByteStream::from(Pattern(seed).bytes(0..300_000));
        zones
            .az1
            .bench
            .client
            .put_object()
            .bucket(&zones.az1.bench.bucket)
            .key(key)
            .metadata("color", "red")
            .body(body)
            .send()
    };
    put("before", 1).await?;
    bind(&zones.az1, "az2").await?;
    put("after", 2).await?;
    for key in ["before", "after"] {
        zones.await_status(key, "COMPLETED").await?;
        zones.ensure_equal(key).await?;
    }
    put("before", 3).await?;
    zones.await_status("before", "COMPLETED").await?;
    zones.ensure_equal("before").await?;
    ensure!(
        zones.az2.bench.get("before").await? == Pattern(3).bytes(0..300_000),
        "the old version is there"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_away_gets_it_when_it_is_back() -> Result<()> {
    let mut zones = Zones::start().await?;
    zones.az2.server.kill()?;
    zones.az1.bench.put("k", &Pattern(1).bytes(0..3 << 20)).await?;
    zones.az1.tag("k", &[("replicate-to", "az2")]).await?;
    zones.await_status("k", "PENDING").await?;
    let (id, _) = wait_for_attempt(&zones.az1, "k").await?;
    let job = zones.az1.job(&id).await?;
    println!("while the peer is away: {job}");
    zones.az2.run()?;
    zones.await_status("k", "COMPLETED").await?;
    zones.ensure_equal("k").await
}

/// Waits until a job of the object has failed once and will be tried again.
async fn wait_for_attempt(images: &Images, key: &str) -> Result<(String, serde_json::Value)> {
    let begun = Instant::now();
    loop {
        let jobs = images.metadata(key, "image-jobs").await?.context("no job")?;
        let id = jobs.split(':').next().unwrap_or_default().to_owned();
        let job = images.job(&id).await?;
        if job["state"] == "queued" && job["error"].is_string() {
            return Ok((id, job));
        }
        ensure!(begun.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(POLL).await;
    }
}

/// Either server is killed at random moments while images travel. They all arrive, and nothing is left over.
#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_finish_what_they_send() -> Result<()> {
    let mut zones = Zones::start().await?;
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    bind(&zones.az1, "az2").await?;
    let mut keys = Vec::new();
    for round in 0..5_u64 {
        let key = format!("image-{round}.img");
        let content = Pattern(round).bytes(0..(4 << 20) + dice.below(8 << 20));
        let put = zones
            .az1
            .bench
            .client
            .put_object()
            .bucket(&zones.az1.bench.bucket)
            .key(&key);
        let put = put
            .tagging("convert-to=qcow2")
            .body(aws_sdk_s3::primitives::ByteStream::from(content));
        put.send().await?;
        keys.push(key.replace(".img", ".qcow2"));
        keys.push(key);
        tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
        let killed = if dice.below(2) == 0 {
            &mut zones.az1
        } else {
            &mut zones.az2
        };
        killed.server.kill()?;
        killed.run()?;
        killed.bench.client = sdk::client(&killed.bench.target);
    }
    for key in &keys {
        zones.az1.await_object(key).await?;
        zones.await_status(key, "COMPLETED").await?;
        zones.ensure_equal(key).await?;
    }
    // What a killed server had sent for an object that it then made anew waits there for a day, unless there is a restart.
    for images in [&mut zones.az1, &mut zones.az2] {
        images.server.stop()?;
        images.run()?;
        images.bench.clear().await?;
        images.server.await_no_blobs()?;
    }
    Ok(())
}
