//! What operators do to a data folder: a backup under load, a restore, a check; a server that only reads.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    case::Bench,
    pattern::{Dice, Pattern},
    sdk,
    target::{Server, ServerOptions},
    tool::{run, run_failing},
};
use md5::{Digest, Md5};

use crate::images::Images;

const CLIENTS: u64 = 4;
/// Keys of each client: few, so that they are replaced and deleted often.
const KEYS: u64 = 5;
/// Objects that nobody touches once the backup has begun.
const SETTLED: u64 = 12;

/// Writes and deletes until it is told to stop. How often it did.
async fn work(bench: Bench, number: u64, stop: Arc<AtomicBool>, writes: Arc<AtomicU64>) -> Result<()> {
    let mut dice = Dice(number);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("busy/{number}/{}", dice.below(KEYS));
        if dice.below(3) == 0 {
            bench
                .client
                .delete_object()
                .bucket(&bench.bucket)
                .key(&key)
                .send()
                .await?;
        } else {
            let most = [1_000, 100_000, 2 << 20][usize::try_from(dice.below(3))?];
            let len = dice.below(most);
            bench.put(&key, &Pattern(dice.below(u64::MAX)).bytes(0..len)).await?;
        }
        writes.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn settled(number: u64) -> (String, Vec<u8>) {
    let len = [10, 70_000, 3 << 20][usize::try_from(number % 3).unwrap()] + number;
    (format!("settled/{number}"), Pattern(number + 1).bytes(0..len))
}

/// A server on a data folder, and the same bucket.
fn serve(data: &Path, bucket: &str) -> Result<(Server, Bench)> {
    let server = Server::start_with(ServerOptions {
        data: Some(data.to_owned()),
        ..ServerOptions::default()
    })?;
    let bench = Bench {
        target: server.target().clone(),
        client: sdk::client(server.target()),
        bucket: bucket.to_owned(),
    };
    Ok((server, bench))
}

fn fsck(data: &Path) -> Result<serde_json::Value> {
    let report = run(Server::offline_command()?
        .args(["fsck", "--deep", "--json", "--data"])
        .arg(data))?;
    Ok(serde_json::from_str(&report)?)
}

/// Every object that is listed reads whole, as its ETag says.
async fn read_all(bench: &Bench) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let listed = bench.client.list_objects_v2().bucket(&bench.bucket).send().await?;
    ensure!(listed.is_truncated != Some(true), "the test has few objects");
    for object in listed.contents() {
        let key = object.key().context("no key")?;
        let bytes = bench.get(key).await.with_context(|| format!("{key} cannot be read"))?;
        let md5 = format!("\"{}\"", hex::encode(Md5::digest(&bytes)));
        ensure!(
            object.e_tag() == Some(md5.as_str()),
            "{key} is {md5}, and {:?}",
            object.e_tag()
        );
        found.insert(key.to_owned(), bytes);
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_whole_elsewhere() -> Result<()> {
    let mut images = Images::start().await?;
    for number in 0..SETTLED {
        let (key, bytes) = settled(number);
        images.bench.put(&key, &bytes).await?;
    }
    let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let work: Vec<_> = (0..CLIENTS)
        .map(|number| {
            tokio::spawn(work(
                images.bench.clone(),
                number,
                Arc::clone(&stop),
                Arc::clone(&writes),
            ))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let backups: Vec<PathBuf> = (0..3).map(|number| images.path(&format!("backup-{number}"))).collect();
    for backup in &backups {
        let mut command = images.server.command()?;
        command.arg("backup").arg(backup);
        let before = writes.load(Ordering::Relaxed);
        tokio::task::spawn_blocking(move || run(&mut command)).await??;
        ensure!(writes.load(Ordering::Relaxed) > before, "writes go on meanwhile");
    }
    stop.store(true, Ordering::Relaxed);
    for client in work {
        client.await??;
    }
    images.server.stop()?;
    ensure!(fsck(&images.server.data())?["clean"] == true);

    for (number, backup) in backups.iter().enumerate() {
        let data = images.path(&format!("restored-{number}"));
        let mut restore = Server::offline_command()?;
        run(restore
            .arg("restore")
            .arg(backup)
            .arg("--data")
            .arg(&data)
            .arg("--verify"))?;
        let report = fsck(&data)?;
        ensure!(report["clean"] == true, "{report:#}");
        let (mut server, bench) = serve(&data, &images.bench.bucket)?;
        let found = read_all(&bench).await?;
        for number in 0..SETTLED {
            let (key, bytes) = settled(number);
            ensure!(found.get(&key) == Some(&bytes), "{key} is not as it was");
        }
        // The backup that made the copy is not made again.
        let jobs = run(server.command()?.args(["job", "list", "--state", "queued,running"]))?;
        ensure!(jobs.contains("no jobs"), "{jobs}");
        bench.put("new", b"it takes writes").await?;
        server.stop()?;
        let report = fsck(&data)?;
        ensure!(report["clean"] == true, "{report:#}");
    }
    Ok(())
}

#[tokio::test]
async fn commands_on_a_folder_keep_off_a_server_and_say_how_it_went() -> Result<()> {
    let mut images = Images::start().await?;
    images.bench.put("key", &Pattern(1).bytes(0..100_000)).await?;
    let data = images.server.data();
    let exit = |command: &mut Command| Ok::<_, anyhow::Error>(command.output()?.status.code());
    let fsck = || {
        Ok::<_, anyhow::Error>({
            let mut command = Server::offline_command()?;
            command.arg("fsck").arg("--data").arg(&data);
            command
        })
    };
    ensure!(exit(&mut fsck()?)? == Some(2));
    let error = run_failing(&mut fsck()?)?;
    ensure!(error.contains("a server has the index"), "{error}");
    let refused = run_failing(images.server.command()?.args(["backup"]).arg(data.join("inside")))?;
    ensure!(refused.contains("within the data folder"), "{refused}");
    images.server.stop()?;
    ensure!(exit(&mut fsck()?)? == Some(0));
    let upgraded = run(Server::offline_command()?.arg("upgrade").arg("--data").arg(&data))?;
    ensure!(upgraded.contains("nothing to do"), "{upgraded}");
    // Without a server the folder is copied by the command itself.
    let backup = images.path("offline");
    run(Server::offline_command()?
        .arg("backup")
        .arg(&backup)
        .arg("--data")
        .arg(&data))?;
    ensure!(backup.join("backup.json").is_file());
    fs::remove_dir_all(data.join("blobs/blobs"))?;
    for fan_out in 0..=u8::MAX {
        fs::create_dir_all(data.join(format!("blobs/blobs/{fan_out:02x}")))?;
    }
    ensure!(exit(&mut fsck()?)? == Some(1));
    ensure!(
        exit(
            Server::offline_command()?
                .args(["fsck", "--data"])
                .arg(images.path("nothing"))
        )? == Some(2)
    );
    Ok(())
}

/// All there is below a folder: lengths and times of change.
fn tree(folder: &Path) -> Result<BTreeMap<PathBuf, (u64, SystemTime)>> {
    let mut tree = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let metadata = fs::metadata(&folder)?;
        tree.insert(folder.clone(), (0, metadata.modified()?));
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                tree.insert(entry.path(), (metadata.len(), metadata.modified()?));
            }
        }
    }
    Ok(tree)
}

#[tokio::test]
async fn a_server_for_reading_only_changes_nothing() -> Result<()> {
    let mut images = Images::start().await?;
    let bytes = Pattern(1).bytes(0..3 << 20);
    images.bench.put("key", &bytes).await?;
    let addresses = images.server.addresses();
    images.server.stop()?;
    let data = images.server.data();
    let before = tree(&data)?;
    let mut reader = Server::start_with(ServerOptions {
        addresses: Some(addresses),
        data: Some(data.clone()),
        read_only: true,
        ..ServerOptions::default()
    })?;
    let bench = Bench {
        target: reader.target().clone(),
        client: sdk::client(reader.target()),
        bucket: images.bench.bucket.clone(),
    };
    ensure!(bench.get("key").await? == bytes);
    let put = bench.object("PUT", "other").body(b"x".to_vec());
    let refused = put.signed(&bench.target)?.send(&bench.target).await?;
    ensure!(
        refused.status == 503 && refused.text().contains("ReadOnly"),
        "{}",
        refused.text()
    );
    let refused = bench
        .object("DELETE", "key")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    ensure!(refused.status == 503, "{}", refused.text());
    let refused = run_failing(reader.command()?.arg("backup").arg(images.path("backup")))?;
    ensure!(!refused.is_empty());
    reader.stop()?;
    ensure!(tree(&data)? == before, "the folder has changed");
    // It is as good as before.
    images.run()?;
    ensure!(images.bench.get("key").await? == bytes);
    Ok(())
}
