//! Damaged files of the index. It is refused rather than believed, and the error says what to do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{pattern::Pattern, target::Server, tool::run_failing, wire::object_path};

use super::{flip, fsck, get_as_it_comes};
use crate::images::Images;

/// Objects that are rows of the index only.
const OBJECTS: u64 = 300;
const LEN: u64 = 2000;
/// What every error about a damaged index says.
const ADVICE: [&str; 3] = ["the index", "lithos fsck", "lithos restore"];

fn content(number: u64) -> Vec<u8> {
    Pattern(number + 1).bytes(0..LEN)
}

async fn put_all(images: &Images) -> Result<()> {
    for number in 0..OBJECTS {
        images.bench.put(&number.to_string(), &content(number)).await?;
    }
    Ok(())
}

/// The files of the index whose names end so, in the order of their names.
fn files(server: &Server, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(server.data().join("index"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) && fs::metadata(&path)?.len() > 0 {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// All files of the index, to be put back.
fn keep(server: &Server) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut kept = BTreeMap::new();
    for entry in fs::read_dir(server.data().join("index"))? {
        let path = entry?.path();
        kept.insert(path.clone(), fs::read(path)?);
    }
    Ok(kept)
}

fn put_back(server: &Server, kept: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let index = server.data().join("index");
    fs::remove_dir_all(&index)?;
    fs::create_dir(&index)?;
    for (path, bytes) in kept {
        fs::write(path, bytes)?;
    }
    Ok(())
}

fn ensure_advice(text: &str) -> Result<()> {
    for words in ADVICE {
        ensure!(text.contains(words), "nothing is said of {words:?}: {text}");
    }
    Ok(())
}

/// Where `needle` begins in the file.
fn find(path: &Path, needle: &[u8]) -> Result<Option<u64>> {
    let bytes = fs::read(path)?;
    let at = bytes.windows(needle.len()).position(|window| window == needle);
    Ok(at.map(|at| at as u64))
}

/// How many objects cannot be read; those that can be are right.
async fn unreadable(images: &Images) -> Result<u64> {
    let mut failed = 0;
    for number in 0..OBJECTS {
        let path = object_path(&images.bench.bucket, &number.to_string());
        let got = get_as_it_comes(&images.bench.target, path).await?;
        if got.status == 200 {
            ensure!(
                got.body == content(number),
                "{number} is another: wrong bytes were served"
            );
        } else {
            ensure!(got.status == 500, "{got:?}");
            failed += 1;
        }
    }
    Ok(failed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_is_never_believed() -> Result<()> {
    let mut images = Images::start().await?;
    put_all(&images).await?;
    images.server.stop()?;
    let kept = keep(&images.server)?;
    let tables = files(&images.server, "sst")?;
    let table = tables.iter().max_by_key(|path| kept.get(*path).map_or(0, Vec::len));
    let table = table.context("there is no table")?;
    let len = kept.get(table).context("it is gone")?.len() as u64;
    ensure!(len > OBJECTS * LEN / 2, "the objects are not in the largest table");
    let (mut refused, mut failed) = (0, 0);
    for tenth in [0, 3, 5, 8] {
        flip(table, len * tenth / 10 + 100)?;
        let checked = Server::offline_command()?
            .args(["fsck", "--data"])
            .arg(images.server.data())
            .output()?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        ensure!(
            checked.status.code() == Some(2),
            "fsck ends with {}: {said}",
            checked.status
        );
        ensure_advice(&said)?;
        if let Err(error) = images.run() {
            refused += 1;
            ensure_advice(&format!("{error:#}"))?;
        } else {
            let hurt = unreadable(&images).await?;
            if hurt > 0 {
                ensure_advice(&images.server.log())?;
            }
            failed += hurt;
            images.server.kill()?;
        }
        put_back(&images.server, &kept)?;
    }
    println!("of four flipped bits {refused} kept the server from starting; {failed} reads failed");
    ensure!(refused + failed > 0, "nobody met the damage");
    images.run()?;
    ensure!(unreadable(&images).await? == 0, "the index was put back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_end_loses_no_more_than_that() -> Result<()> {
    let mut images = Images::start().await?;
    put_all(&images).await?;
    images.server.kill()?;
    let log = files(&images.server, "log")?.pop().context("there is no log")?;
    // The record of the last object is larger than this, so no other one is cut.
    let file = fs::File::options().write(true).open(&log)?;
    file.set_len(file.metadata()?.len() - 1000)?;
    images.run()?;
    for number in 0..OBJECTS - 1 {
        ensure!(
            images.bench.get(&number.to_string()).await? == content(number),
            "{number} is another"
        );
    }
    images.bench.expect_absent(&(OBJECTS - 1).to_string()).await?;
    images.bench.put("after", b"it takes writes").await?;
    images.server.stop()?;
    let report = fsck(&images.server.data())?;
    ensure!(
        report["clean"] == true && report["counts"]["objects"] == OBJECTS,
        "{report:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_damaged_in_the_middle_is_refused() -> Result<()> {
    let mut images = Images::start().await?;
    put_all(&images).await?;
    images.server.kill()?;
    let kept = keep(&images.server)?;
    let log = files(&images.server, "log")?.pop().context("there is no log")?;
    // The first bytes of an object, which no boundary of the log's blocks cuts in two.
    let mut place = None;
    for number in OBJECTS / 3..OBJECTS / 3 + 3 {
        let found = find(&log, content(number).get(..64).unwrap_or_default())?;
        place = place.or(found);
    }
    flip(&log, place.context("the log does not hold the objects")? + 10)?;
    let error = images.run().err().context("it starts with a damaged log")?;
    ensure_advice(&format!("{error:#}"))?;
    let said = run_failing(
        Server::offline_command()?
            .args(["fsck", "--data"])
            .arg(images.server.data()),
    )?;
    ensure_advice(&said)?;
    // Nothing was made worse: a person may still have a way to bring the byte back.
    flip(&log, place.unwrap_or_default() + 10)?;
    images.run()?;
    ensure!(unreadable(&images).await? == 0);
    images.server.stop()?;
    put_back(&images.server, &kept)?;
    images.run()?;
    ensure!(unreadable(&images).await? == 0);
    Ok(())
}
