//! Versions, in a bucket that keeps them: clients add them, delete them by their ids, and put delete markers in front.
//!
//! The oracle of a key is the list of its versions, the newest first. What was not acknowledged is at most one thing, because
//! nothing more is done to a key until a look at the restarted server has told.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use super::{
    client::{Answer, Client},
    load::{Round, Worker},
    model::Outcome,
};
use crate::wire::{Request, element, elements, object_path};

/// The bucket that keeps versions.
const BUCKET: &str = "torture-versions";
/// Keys of each client.
const KEYS: u64 = 3;
/// Versions of a key; at so many some are deleted.
const VERSIONS_MAX: usize = 8;
const ENABLED: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";

/// A version, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: String,
    /// `None` for a delete marker.
    bytes: Option<Bytes>,
}

/// What was sent and not answered.
#[derive(Debug, Clone)]
enum Pending {
    /// A new version, or a delete marker where there are no bytes.
    Add(Option<Bytes>),
    /// The version of this id is deleted.
    Remove(String),
}

/// What a key is.
#[derive(Debug, Clone, Default)]
pub(super) struct Versions {
    /// The newest first.
    kept: Vec<Kept>,
    pending: Option<Pending>,
}

fn object(method: &'static str, key: &str) -> Request {
    Request::new(method, object_path(BUCKET, key))
}

fn version(method: &'static str, key: &str, id: &str) -> Request {
    object(method, key).query("versionId", id)
}

/// Makes the bucket and has it keep versions.
pub(super) async fn make_bucket(client: &Client) -> Result<()> {
    let made = client.ask(Request::new("PUT", format!("/{BUCKET}"))).await?;
    ensure!(
        matches!(made.status, 200 | 409),
        "no bucket can be made: {}",
        made.text()
    );
    let enable = Request::new("PUT", format!("/{BUCKET}")).query("versioning", "");
    client.ask(enable.body(ENABLED)).await?.expect_status(200)
}

impl Worker {
    /// Does one thing to a key of the bucket that keeps versions.
    pub(super) async fn version(&mut self, round: &Round) -> Result<()> {
        if !round.keeps_versions {
            return Ok(());
        }
        let key = format!("{}/v{}", self.number, self.dice.below(KEYS));
        let Versions { kept, pending } = self.model.versioned.entry(key.clone()).or_default().clone();
        if pending.is_some() {
            return Ok(());
        }
        let at = usize::try_from(self.dice.below(kept.len().max(1) as u64))?;
        let chosen = kept.get(at).cloned();
        let choice = if kept.len() >= VERSIONS_MAX {
            5
        } else {
            self.dice.below(9)
        };
        match (choice, chosen) {
            (5 | 6, Some(chosen)) => {
                let answer = self.send(round, version("DELETE", &key, &chosen.id)).await;
                self.changed(&key, Pending::Remove(chosen.id), &answer)
            }
            (7 | 8, Some(chosen)) => {
                let answer = self.send(round, version("GET", &key, &chosen.id)).await;
                is_kept(&key, &chosen, &answer)
            }
            (4, _) => {
                let answer = self.send(round, object("DELETE", &key)).await;
                self.changed(&key, Pending::Add(None), &answer)
            }
            _ => {
                let bytes = self.any_bytes();
                let answer = self.send(round, object("PUT", &key).body(bytes.to_vec())).await;
                self.changed(&key, Pending::Add(Some(bytes)), &answer)
            }
        }
    }

    fn changed(&mut self, key: &str, change: Pending, answer: &Answer) -> Result<()> {
        let versions = self.model.versioned.entry(key.to_owned()).or_default();
        match (answer.outcome()?, answer.done()) {
            (Outcome::Done, Some(answer)) => {
                let id = answer.header("x-amz-version-id").context("no version id")?;
                versions.apply(change, id);
            }
            (Outcome::Refused, _) => bail!("{key}: {change:?} was refused"),
            _ => versions.pending = Some(change),
        }
        Ok(())
    }
}

impl Versions {
    fn apply(&mut self, change: Pending, id: &str) {
        match change {
            Pending::Add(bytes) => {
                let id = id.to_owned();
                self.kept.insert(0, Kept { id, bytes });
            }
            Pending::Remove(id) => self.kept.retain(|kept| kept.id != id),
        }
    }
}

/// Whether a version is answered with as it was written.
fn is_kept(key: &str, kept: &Kept, answer: &Answer) -> Result<()> {
    let Answer::Said(answer) = answer else { return Ok(()) };
    let found = (answer.status == 200).then_some(answer.body.as_slice());
    let marked = answer.status == 405 && kept.bytes.is_none();
    ensure!(
        marked || kept.bytes.is_some() && kept.bytes.as_deref() == found,
        "version {} of {key} is answered with {} and {:?} bytes",
        kept.id,
        answer.status,
        found.map(<[u8]>::len)
    );
    Ok(())
}

/// A version of a listing.
#[derive(Debug)]
struct Listed {
    id: String,
    is_marker: bool,
    is_latest: bool,
}

/// The versions of each key.
async fn listing(client: &Client, prefix: &str) -> Result<BTreeMap<String, Vec<Listed>>> {
    let request = Request::new("GET", format!("/{BUCKET}")).query("versions", "");
    let answer = client.ask(request.query("prefix", prefix)).await?;
    answer.expect_status(200)?;
    let text = answer.text();
    ensure!(
        element(&text, "IsTruncated") == Some("false"),
        "so many versions nobody wrote"
    );
    let mut found: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
    for (name, is_marker) in [("Version", false), ("DeleteMarker", true)] {
        for entry in elements(&text, name) {
            let key = element(entry, "Key").context("no key")?;
            let id = element(entry, "VersionId").context("no version id")?.to_owned();
            let is_latest = element(entry, "IsLatest") == Some("true");
            let listed = Listed {
                id,
                is_marker,
                is_latest,
            };
            found.entry(key.to_owned()).or_default().push(listed);
        }
    }
    Ok(found)
}

/// Checks all that a client knows, and settles what was not certain. Gives how many things were checked.
pub(super) async fn check(client: &Client, worker: &mut Worker) -> Result<u64> {
    let prefix = worker.prefix();
    let mut found = listing(client, &prefix).await?;
    let mut checks = 0;
    for (key, versions) in &mut worker.model.versioned {
        settle(key, versions, &found.remove(key).unwrap_or_default())?;
        for kept in &versions.kept {
            let answer = client.ask(version("GET", key, &kept.id)).await?;
            is_kept(key, kept, &Answer::Said(answer))?;
            checks += 1;
        }
        let answer = client.ask(object("GET", key)).await?;
        let latest = versions.kept.first().and_then(|kept| kept.bytes.as_deref());
        let current = (answer.status == 200).then_some(answer.body.as_slice());
        ensure!(current == latest, "{key} is answered with {}", answer.status);
        checks += 1;
    }
    ensure!(found.is_empty(), "versions are listed that nobody wrote: {found:?}");
    Ok(checks)
}

/// Holds a key's listing against what it may be.
fn settle(key: &str, versions: &mut Versions, found: &[Listed]) -> Result<()> {
    let pending = versions.pending.take();
    let is_known = |listed: &&Listed| versions.kept.iter().any(|kept| kept.id == listed.id);
    let more: Vec<&Listed> = found.iter().filter(|listed| !is_known(listed)).collect();
    let is_found = |kept: &&Kept| found.iter().any(|listed| listed.id == kept.id);
    let gone: Vec<&Kept> = versions.kept.iter().filter(|kept| !is_found(kept)).collect();
    let explained = match (&pending, &more[..], &gone[..]) {
        (_, [], []) => None,
        (Some(Pending::Add(bytes)), [new], []) if new.is_marker == bytes.is_none() => Some(new.id.clone()),
        (Some(Pending::Remove(id)), [], [gone]) if gone.id == *id => Some(id.clone()),
        _ => bail!("{key} has {more:?} more and {gone:?} less than it should, where {pending:?} was not answered"),
    };
    if let (Some(id), Some(pending)) = (explained, pending) {
        versions.apply(pending, &id);
    }
    let latest = versions.kept.first().map(|kept| kept.id.as_str());
    let listed: Vec<&str> = found
        .iter()
        .filter(|listed| listed.is_latest)
        .map(|listed| listed.id.as_str())
        .collect();
    ensure!(
        listed.first().copied() == latest && listed.len() <= 1,
        "the latest of {key} is {latest:?}, and listed are {listed:?}"
    );
    for kept in &versions.kept {
        let listed = found.iter().find(|listed| listed.id == kept.id);
        let as_marker = listed.is_some_and(|listed| listed.is_marker);
        ensure!(
            as_marker == kept.bytes.is_none(),
            "{key}: {kept:?} is listed as {listed:?}"
        );
    }
    Ok(())
}

/// Deletes all versions and delete markers, one by one.
pub(super) async fn clear(client: &Client) -> Result<()> {
    for (key, versions) in listing(client, "").await? {
        for listed in versions {
            client
                .ask(version("DELETE", &key, &listed.id))
                .await?
                .expect_status(204)?;
        }
    }
    ensure!(listing(client, "").await?.is_empty(), "deleted versions are listed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: &str, content: Option<&'static str>) -> Kept {
        Kept {
            id: id.to_owned(),
            bytes: content.map(Bytes::from),
        }
    }

    fn listed(id: &str, is_marker: bool, is_latest: bool) -> Listed {
        Listed {
            id: id.to_owned(),
            is_marker,
            is_latest,
        }
    }

    #[test]
    fn what_was_not_answered_has_happened_or_not() {
        let versions = |pending: Option<Pending>| Versions {
            kept: vec![kept("2", None), kept("1", Some("one"))],
            pending,
        };
        let before = [listed("2", true, true), listed("1", false, false)];
        let added = [
            listed("3", false, true),
            listed("2", true, false),
            listed("1", false, false),
        ];
        let removed = [listed("1", false, true)];
        let add = || Some(Pending::Add(Some(Bytes::from("three"))));
        let remove = || Some(Pending::Remove("2".to_owned()));
        for (pending, found, holds) in [
            (None, &before[..], true),
            (None, &added, false),
            (None, &removed, false),
            (add(), &before, true),
            (add(), &added, true),
            (add(), &removed, false),
            (remove(), &before, true),
            (remove(), &removed, true),
            (remove(), &added, false),
            (Some(Pending::Add(None)), &added, false),
        ] {
            let mut versions = versions(pending.clone());
            assert_eq!(
                settle("k", &mut versions, found).is_ok(),
                holds,
                "{pending:?} {found:?}"
            );
            if holds {
                let ids: Vec<_> = versions.kept.iter().map(|kept| kept.id.as_str()).collect();
                let expected: Vec<_> = found.iter().map(|listed| listed.id.as_str()).collect();
                assert_eq!(ids, expected);
            }
        }
        let mut versions = versions(None);
        let stale = [listed("2", true, false), listed("1", false, true)];
        assert!(
            settle("k", &mut versions, &stale).is_err(),
            "another is listed as the latest"
        );
    }
}
