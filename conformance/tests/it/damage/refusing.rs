//! A disk that takes no writes, and a process that may open no more files. (`bounds` has a server with a real limit of 64
//! descriptors.)

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    case::Bench,
    pattern::Pattern,
    sdk,
    target::{Server, ServerOptions},
    wire::{Request, object_path},
};

use super::{Disk, Faulty, get_as_it_comes, preload, set};
use crate::images::Images;

const OBJECTS: u64 = 12;

fn content(number: u64) -> Vec<u8> {
    Pattern(number).bytes(0..200_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_file_can_be_opened_requests_fail_and_the_server_lives() -> Result<()> {
    let faulty = Faulty::start(&[]).await?;
    let Faulty { images, .. } = &faulty;
    for number in 0..OBJECTS {
        faulty.await_put(&number.to_string(), &content(number)).await?;
    }
    faulty.set(Disk::NoFiles)?;
    let mut failed = 0;
    for number in 0..OBJECTS {
        let key = number.to_string();
        let got = get_as_it_comes(&images.bench.target, object_path(&images.bench.bucket, &key)).await?;
        match got.status {
            // Its blob was open.
            200 => {
                ensure!(content(number).starts_with(&got.body), "wrong bytes were served");
                failed += u64::from((got.body.len() as u64) < got.declared);
            }
            status => {
                ensure!([0, 500, 503].contains(&status), "{got:?}");
                failed += 1;
            }
        }
        let put = faulty
            .send(images.bench.object("PUT", &format!("new/{key}")).body(content(number)))
            .await?;
        ensure!([500, 503].contains(&put.status), "{} {}", put.status, put.text());
    }
    ensure!(failed > 0, "nothing was opened: the test shows nothing");
    // What needs no new file goes on.
    images.head("0").await?;
    let healthy = Request::new("GET", "/healthz")
        .send(&images.server.management_target())
        .await?;
    healthy.expect_status(200)?;
    faulty.set(Disk::Sound)?;
    let took = faulty.await_put("after", &content(0)).await?;
    println!("writes came back {took:?} after files could be opened");
    for number in 0..OBJECTS {
        ensure!(images.bench.get(&number.to_string()).await? == content(number));
        images.bench.expect_absent(&format!("new/{number}")).await?;
    }
    faulty.await_no_unfinished().await?;
    faulty.ensure_no_damage().await?;
    faulty.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_turns_read_only_is_read_on_and_written_again_when_it_turns_back() -> Result<()> {
    let faulty = Faulty::start(&[]).await?;
    let Faulty { images, .. } = &faulty;
    faulty.await_put("kept", &content(1)).await?;
    faulty.set(Disk::ReadOnly)?;
    // The first one finds it out.
    let first = faulty
        .send(images.bench.object("PUT", "first").body(content(2)))
        .await?;
    first.expect_error(503, "ReadOnly")?;
    for request in [
        images.bench.object("PUT", "small").body(b"inline"),
        images.bench.object("PUT", "large").body(content(3)),
        images.bench.object("DELETE", "kept"),
        images
            .bench
            .object("PUT", "copy")
            .header("x-amz-copy-source", object_path(&images.bench.bucket, "kept")),
    ] {
        faulty.send(request).await?.expect_error(503, "ReadOnly")?;
        ensure!(images.bench.get("kept").await? == content(1), "reads go on");
    }
    let listed = images
        .bench
        .client
        .list_objects_v2()
        .bucket(&images.bench.bucket)
        .send()
        .await?;
    ensure!(listed.key_count() == Some(1), "{listed:?}");
    faulty.set(Disk::Sound)?;
    let took = faulty.await_put("after", &content(4)).await?;
    println!("writes came back {took:?} after the file system took them");
    ensure!(took < Duration::from_secs(15), "it took {took:?}");
    for (key, number) in [("kept", 1), ("after", 4)] {
        ensure!(images.bench.get(key).await? == content(number), "{key} is another");
    }
    for key in ["first", "small", "large", "copy"] {
        images.bench.expect_absent(key).await?;
    }
    faulty.await_no_unfinished().await?;
    faulty.ensure_no_damage().await?;
    faulty.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_file_system_is_served_by_who_only_reads() -> Result<()> {
    let mut images = Images::start().await?;
    images.bench.put("kept", &content(1)).await?;
    let addresses = images.server.addresses();
    // As after a crash: the log holds rows.
    images.server.kill()?;
    let disk = images.server.disk();

    let mut writer = Server::prepare(ServerOptions {
        data: Some(images.server.data()),
        ..ServerOptions::default()
    })?;
    set(&preload(&mut writer, &disk)?, Disk::ReadOnly)?;
    let error = writer.run().err().context("it starts on a read-only disk")?;
    let error = format!("{error:#}");
    ensure!(
        error.contains("Read-only file system"),
        "it does not say why it does not start: {error}"
    );

    let mut reader = Server::prepare(ServerOptions {
        addresses: Some(addresses),
        data: Some(images.server.data()),
        read_only: true,
        ..ServerOptions::default()
    })?;
    set(&preload(&mut reader, &disk)?, Disk::ReadOnly)?;
    reader.run()?;
    let bench = Bench {
        target: reader.target().clone(),
        client: sdk::client(reader.target()),
        bucket: images.bench.bucket.clone(),
    };
    ensure!(bench.get("kept").await? == content(1));
    for request in [
        bench.object("PUT", "new").body(content(2)),
        bench.object("DELETE", "kept"),
    ] {
        let answer = request.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_error(503, "ReadOnly")?;
    }
    let ready = Request::new("GET", "/readyz").send(&reader.management_target()).await?;
    ready.expect_status(200)?;
    reader.stop()?;
    images.run()?;
    ensure!(images.bench.get("kept").await? == content(1));
    Ok(())
}
