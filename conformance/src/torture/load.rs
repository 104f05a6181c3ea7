//! The load: clients that do one random thing after the other until the server is gone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use super::{
    client::{self, Answer, BUCKET, Client, unquoted},
    history::{Actor, Histories, Op, Ret},
    model::{Completed, Known, Model, Outcome, Part, Tags, Upload, Version},
};
use crate::{
    pattern::{Dice, Pattern},
    wire::{Request, element, elements},
};

/// Keys of each client: few, so that they are replaced and deleted often.
const KEYS: u64 = 5;
/// The one key of each client that holds a qcow2 image.
const QCOW2_KEY: &str = "image.qcow2";
/// Keys that all clients write.
pub(super) const SHARED_KEYS: [&str; 3] = ["shared/a", "shared/b", "shared/c"];
/// The least length of a part that is not the last (S3 API Reference, "Amazon S3 multipart upload limits").
const PART_LEN_MIN: usize = 5 << 20;
/// Uploads in progress of each client.
const UPLOADS_MAX: usize = 3;

/// What the clients of a round share.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) client: Client,
    pub(super) histories: Histories,
    /// Numbers that are written to shared keys, each once.
    pub(super) values: Arc<AtomicU64>,
    pub(super) actors: AtomicU64,
    pub(super) stop: AtomicBool,
    /// Whether there is a bucket that keeps versions.
    pub(super) keeps_versions: bool,
    /// A qcow2 image and what a guest sees in it.
    pub(super) qcow2: Option<Qcow2>,
}

/// An image of two formats.
#[derive(Debug, Clone)]
pub(super) struct Qcow2 {
    pub(super) file: Bytes,
    pub(super) raw: Bytes,
}

/// What a client may do.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Put,
    PutTagged,
    PutIfAbsent,
    PutImage,
    Copy,
    Delete,
    DeleteMany,
    Tag,
    Untag,
    Get,
    List,
    CreateUpload,
    UploadPart,
    UploadPartCopy,
    Complete,
    CompleteAgain,
    Abort,
    Version,
    Shared,
}

impl Operation {
    fn throw(dice: &mut Dice) -> Self {
        match dice.below(40) {
            0..=5 => Self::Put,
            6 | 7 => Self::PutTagged,
            8 => Self::PutIfAbsent,
            9 => Self::PutImage,
            10 | 11 => Self::Copy,
            12 => Self::Delete,
            13 => Self::DeleteMany,
            14 => Self::Tag,
            15 => Self::Untag,
            16 => Self::Get,
            17 => Self::List,
            18 | 19 => Self::CreateUpload,
            20..=23 => Self::UploadPart,
            24 => Self::UploadPartCopy,
            25 | 26 => Self::Complete,
            27 => Self::CompleteAgain,
            28 => Self::Abort,
            29..=34 => Self::Version,
            _ => Self::Shared,
        }
    }
}

/// A client.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: u64,
    pub(super) dice: Dice,
    pub(super) model: Model,
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    /// Whether the server is gone.
    gone: bool,
    /// Whether an operation on a shared key was not answered in this round. Then there is no further one: each that stays in
    /// flight multiplies the orders that the tester has to try.
    in_flight: bool,
}

impl Worker {
    pub(super) fn new(number: u64, seed: u64) -> Self {
        Self {
            number,
            dice: Dice(seed),
            model: Model::default(),
            acknowledged: 0,
            unknown: 0,
            gone: false,
            in_flight: false,
        }
    }

    pub(super) fn prefix(&self) -> String {
        format!("{}/", self.number)
    }

    /// Works until the server is gone or the round is over; fails if an answer is one that must not be.
    pub(super) async fn work(&mut self, round: &Round) -> Result<()> {
        self.gone = false;
        self.in_flight = false;
        let actor = round.actors.fetch_add(1, Ordering::Relaxed);
        while !self.gone && !round.stop.load(Ordering::Relaxed) {
            let operation = Operation::throw(&mut self.dice);
            let done = match operation {
                Operation::Shared => self.shared(round, actor).await,
                Operation::Version => self.version(round).await,
                Operation::CreateUpload
                | Operation::UploadPart
                | Operation::UploadPartCopy
                | Operation::Complete
                | Operation::CompleteAgain
                | Operation::Abort => self.upload(round, operation).await,
                _ => self.object(round, operation).await,
            };
            done.with_context(|| format!("{operation:?} of client {}", self.number))?;
        }
        Ok(())
    }

    pub(super) async fn send(&mut self, round: &Round, request: Request) -> Answer {
        let answer = round.client.send(request).await;
        self.gone |= matches!(answer, Answer::Gone);
        match answer {
            Answer::Said(_) => self.acknowledged += 1,
            Answer::Failed | Answer::Gone => self.unknown += 1,
        }
        answer
    }

    fn key(&mut self) -> String {
        format!("{}/{}.img", self.number, self.dice.below(KEYS))
    }

    /// A key with an object on it of which it is certain what it is.
    fn settled(&mut self) -> Option<(String, Version)> {
        let key = self.key();
        let version = self.model.objects.get(&key)?.settled()?.clone()?;
        Some((key, version))
    }

    /// Some of it is zeros, which are not stored.
    fn bytes(&mut self, most: u64) -> Bytes {
        let len = self.dice.below(most);
        let mut bytes = Pattern(self.dice.below(u64::MAX)).bytes(0..len);
        let len = bytes.len();
        if let Some(hole) = bytes.get_mut(len / 3..len / 2) {
            hole.fill(0);
        }
        // Some of it can be compressed, which the server does in the background.
        if let Some(plain) = bytes.get_mut(len / 2..) {
            for run in plain.chunks_mut(16) {
                let first = run.first().copied().unwrap_or_default();
                run.fill(first);
            }
        }
        bytes.into()
    }

    pub(super) fn any_bytes(&mut self) -> Bytes {
        let most = match self.dice.below(8) {
            0..=2 => 200,
            3 | 4 => 5_000,
            5 | 6 => 100_000,
            _ => 1 << 20,
        };
        self.bytes(most)
    }

    fn tags(&mut self) -> Tags {
        let count = self.dice.below(3) + 1;
        (0..count)
            .map(|tag| (format!("tag{tag}"), self.dice.below(1 << 20).to_string()))
            .collect()
    }

    fn known(&mut self, key: &str) -> &mut Known {
        self.model.objects.entry(key.to_owned()).or_default()
    }

    async fn write(&mut self, round: &Round, key: &str, request: Request, version: Option<Version>) -> Result<Outcome> {
        let outcome = self.send(round, request).await.outcome()?;
        self.known(key).written(version, outcome);
        Ok(outcome)
    }

    async fn object(&mut self, round: &Round, operation: Operation) -> Result<()> {
        let key = self.key();
        match operation {
            Operation::Put | Operation::PutTagged => {
                let tags = match operation {
                    Operation::PutTagged if self.dice.below(3) == 0 => to("qcow2"),
                    Operation::PutTagged => self.tags(),
                    _ => Tags::new(),
                };
                let version = Version::new(self.any_bytes(), tags);
                let request = client::put(&key, &version.bytes, &version.tags);
                self.must_be_done(round, &key, request, Some(version)).await
            }
            Operation::PutIfAbsent => self.put_if_absent(round, &key).await,
            Operation::PutImage => {
                let Some(image) = &round.qcow2 else { return Ok(()) };
                let key = format!("{}/{QCOW2_KEY}", self.number);
                let version = Version::new(image.file.clone(), to("raw"));
                let request = client::put(&key, &version.bytes, &version.tags);
                self.must_be_done(round, &key, request, Some(version)).await
            }
            Operation::Copy => {
                let Some((from, version)) = self.settled() else {
                    return Ok(());
                };
                if from == key {
                    return Ok(());
                }
                let version = Version { etag: None, ..version };
                self.must_be_done(round, &key, client::copy(&from, &key), Some(version))
                    .await
            }
            Operation::Delete => {
                self.must_be_done(round, &key, client::object("DELETE", &key), None)
                    .await
            }
            Operation::DeleteMany => self.delete_many(round).await,
            Operation::Tag | Operation::Untag => {
                let Some((key, version)) = self.settled() else {
                    return Ok(());
                };
                let tags = if matches!(operation, Operation::Tag) {
                    self.tags()
                } else {
                    Tags::new()
                };
                let request = if tags.is_empty() {
                    client::object("DELETE", &key).query("tagging", "")
                } else {
                    client::put_tags(&key, &tags)
                };
                self.must_be_done(round, &key, request, Some(Version { tags, ..version }))
                    .await
            }
            Operation::Get => self.get(round, &key).await,
            _ => self.list(round).await,
        }
    }

    async fn must_be_done(
        &mut self,
        round: &Round,
        key: &str,
        request: Request,
        version: Option<Version>,
    ) -> Result<()> {
        let outcome = self.write(round, key, request, version).await?;
        ensure!(outcome != Outcome::Refused, "{key}: it was refused");
        Ok(())
    }

    async fn put_if_absent(&mut self, round: &Round, key: &str) -> Result<()> {
        let Some(before) = self.known(key).settled().cloned() else {
            return Ok(());
        };
        let version = Version::new(self.any_bytes(), Tags::new());
        let request = client::put(key, &version.bytes, &version.tags).header("if-none-match", "*");
        let answer = self.send(round, request).await.outcome()?;
        match (before, answer) {
            (None, Outcome::Refused) => anyhow::bail!("{key} is not there, and If-None-Match refuses"),
            (Some(_), Outcome::Done) => anyhow::bail!("{key} is there, and If-None-Match writes"),
            (None, outcome) => self.known(key).written(Some(version), outcome),
            (Some(_), _) => {}
        }
        Ok(())
    }

    async fn delete_many(&mut self, round: &Round) -> Result<()> {
        let mut keys: Vec<String> = (0..2).map(|_| self.key()).collect();
        keys.dedup();
        let answer = self.send(round, client::delete_many(&keys)).await;
        let failed: Vec<String> = match answer.done() {
            Some(answer) => {
                let text = answer.text();
                elements(&text, "Error")
                    .filter_map(|error| element(error, "Key"))
                    .map(str::to_owned)
                    .collect()
            }
            None => keys.clone(),
        };
        let outcome = answer.outcome()?;
        ensure!(outcome != Outcome::Refused, "it was refused");
        for key in keys {
            let outcome = if failed.contains(&key) {
                Outcome::Unknown
            } else {
                outcome
            };
            self.known(&key).written(None, outcome);
        }
        Ok(())
    }

    async fn get(&mut self, round: &Round, key: &str) -> Result<()> {
        let answer = self.send(round, client::object("GET", key)).await;
        let Answer::Said(answer) = answer else { return Ok(()) };
        let found = (answer.status == 200).then_some(answer.body.as_slice());
        let known = self.known(key);
        ensure!(
            known
                .may
                .iter()
                .any(|may| may.as_ref().map(|version| version.bytes.as_ref()) == found),
            "{key} is answered with {} and {:?} bytes, which nobody wrote last",
            answer.status,
            found.map(<[u8]>::len)
        );
        Ok(())
    }

    async fn list(&mut self, round: &Round) -> Result<()> {
        let request = Request::new("GET", format!("/{BUCKET}")).query("list-type", "2");
        let answer = self.send(round, request.query("prefix", &self.prefix())).await;
        let Some(answer) = answer.done() else { return Ok(()) };
        let text = answer.text();
        let listed: Vec<&str> = elements(&text, "Key").collect();
        for (key, known) in &self.model.objects {
            if let Some(settled) = known.settled() {
                let is_listed = listed.contains(&key.as_str());
                ensure!(
                    is_listed == settled.is_some(),
                    "{key} is listed: {is_listed}, and should be {}",
                    !is_listed
                );
            }
        }
        Ok(())
    }

    async fn upload(&mut self, round: &Round, operation: Operation) -> Result<()> {
        if matches!(operation, Operation::CreateUpload) {
            return self.create_upload(round).await;
        }
        if matches!(operation, Operation::CompleteAgain) {
            return self.complete_again(round).await;
        }
        let open: Vec<String> = self
            .model
            .uploads
            .iter()
            .filter(|(_, upload)| !upload.may_have_ended)
            .map(|(id, _)| id.clone())
            .collect();
        let chosen = usize::try_from(self.dice.below(open.len().max(1) as u64))?;
        let Some(id) = open.get(chosen) else { return Ok(()) };
        match operation {
            Operation::UploadPart => self.upload_part(round, id).await,
            Operation::UploadPartCopy => self.upload_part_copy(round, id).await,
            Operation::Complete => self.complete(round, id).await,
            _ => self.abort(round, id).await,
        }
    }

    async fn create_upload(&mut self, round: &Round) -> Result<()> {
        if self.model.uploads.len() >= UPLOADS_MAX {
            return Ok(());
        }
        let (key, tags) = (self.key(), self.tags());
        let answer = self.send(round, client::create_upload(&key, &tags)).await;
        ensure!(answer.outcome()? != Outcome::Refused, "it was refused");
        let Some(answer) = answer.done() else {
            self.model.nameless += 1;
            return Ok(());
        };
        let text = answer.text();
        let id = element(&text, "UploadId").context("no upload id")?;
        let upload = Upload {
            key,
            tags,
            parts: [].into(),
            may_have_ended: false,
        };
        self.model.uploads.insert(id.to_owned(), upload);
        Ok(())
    }

    async fn upload_part(&mut self, round: &Round, id: &str) -> Result<()> {
        let number = u16::try_from(self.dice.below(3) + 1)?;
        let mut bytes = self.bytes(50_000).to_vec();
        if number == 1 && self.dice.below(5) == 0 {
            bytes.resize(PART_LEN_MIN, 0);
        }
        let bytes = Bytes::from(bytes);
        let Some(upload) = self.model.uploads.get(id) else {
            return Ok(());
        };
        let request = client::part(&upload.key, id, number).body(bytes.to_vec());
        let part = Part {
            etag: Some(crate::pattern::md5_hex(&bytes)),
            bytes,
        };
        let answer = self.send(round, request).await;
        self.part_written(id, number, part, &answer)
    }

    async fn upload_part_copy(&mut self, round: &Round, id: &str) -> Result<()> {
        let Some((from, version)) = self.settled() else {
            return Ok(());
        };
        let Some(upload) = self.model.uploads.get(id) else {
            return Ok(());
        };
        if version.bytes.is_empty() {
            return Ok(());
        }
        let number = u16::try_from(self.dice.below(3) + 1)?;
        let path = crate::wire::object_path(BUCKET, &from);
        let last = self.dice.below(version.bytes.len() as u64);
        let request = client::part(&upload.key, id, number)
            .header("x-amz-copy-source", path)
            .header("x-amz-copy-source-range", format!("bytes=0-{last}"));
        let answer = self.send(round, request).await;
        let etag = answer
            .done()
            .and_then(|answer| element(&answer.text(), "ETag").map(unquoted));
        let bytes = version.bytes.slice(..usize::try_from(last + 1)?);
        self.part_written(id, number, Part { bytes, etag }, &answer)
    }

    fn part_written(&mut self, id: &str, number: u16, part: Part, answer: &Answer) -> Result<()> {
        let Some(upload) = self.model.uploads.get_mut(id) else {
            return Ok(());
        };
        let may = upload.parts.entry(number).or_insert_with(|| vec![None]);
        match answer.outcome()? {
            Outcome::Done => *may = vec![Some(part)],
            Outcome::Unknown => may.push(Some(part)),
            Outcome::Refused => anyhow::bail!("the upload {id} is gone"),
        }
        Ok(())
    }

    async fn complete(&mut self, round: &Round, id: &str) -> Result<()> {
        let Some(upload) = self.model.uploads.get(id).cloned() else {
            return Ok(());
        };
        // All but the last have to be large.
        let mut parts: Vec<(u16, &Part)> = upload.settled().collect();
        let last = parts.pop();
        parts.retain(|(_, part)| part.bytes.len() >= PART_LEN_MIN);
        parts.extend(last);
        if parts.is_empty() {
            return Ok(());
        }
        let bytes: Bytes = parts.iter().flat_map(|(_, part)| part.bytes.iter().copied()).collect();
        let named = parts
            .iter()
            .filter_map(|(number, part)| Some((*number, part.etag.as_deref()?)));
        let body = client::completion(named);
        let version = Version {
            bytes,
            etag: None,
            tags: upload.tags.clone(),
        };
        let request = client::complete(&upload.key, id, &body);
        match self.write(round, &upload.key, request, Some(version)).await? {
            Outcome::Done => {
                self.model.uploads.remove(id);
                self.model.completed = Some(Completed {
                    id: id.to_owned(),
                    key: upload.key,
                    body,
                });
            }
            Outcome::Unknown => self.may_have_ended(id),
            Outcome::Refused => anyhow::bail!("the upload {id} is gone"),
        }
        Ok(())
    }

    /// Changes nothing, whether it succeeds because the object is still there, or not.
    async fn complete_again(&mut self, round: &Round) -> Result<()> {
        let Some(Completed { id, key, body }) = self.model.completed.clone() else {
            return Ok(());
        };
        self.send(round, client::complete(&key, &id, &body))
            .await
            .outcome()
            .map(drop)
    }

    async fn abort(&mut self, round: &Round, id: &str) -> Result<()> {
        let Some(upload) = self.model.uploads.get(id) else {
            return Ok(());
        };
        let request = client::abort(&upload.key, id);
        match self.send(round, request).await.outcome()? {
            Outcome::Done => drop(self.model.uploads.remove(id)),
            Outcome::Unknown => self.may_have_ended(id),
            Outcome::Refused => anyhow::bail!("the upload {id} is gone"),
        }
        Ok(())
    }

    fn may_have_ended(&mut self, id: &str) {
        if let Some(upload) = self.model.uploads.get_mut(id) {
            upload.may_have_ended = true;
        }
    }

    async fn shared(&mut self, round: &Round, actor: Actor) -> Result<()> {
        let index = usize::try_from(self.dice.below(SHARED_KEYS.len() as u64))?;
        let Some(key) = SHARED_KEYS.get(index) else {
            return Ok(());
        };
        let value = round.values.fetch_add(1, Ordering::Relaxed);
        let bytes = shared_bytes(value);
        let put = client::put(key, &bytes, &Tags::new());
        let (op, request) = match self.dice.below(8) {
            0 | 1 => (Op::Write(value), put),
            2 => (Op::WriteIfAbsent(value), put.header("if-none-match", "*")),
            3 => (Op::Delete, client::object("DELETE", key)),
            4 => return self.shared_copy(round, actor, key, value).await,
            _ => (Op::Read, client::object("GET", key)),
        };
        self.shared_request(round, actor, key, op, request).await
    }

    /// Copies an object that nobody else writes, and whose content nobody else has.
    async fn shared_copy(&mut self, round: &Round, actor: Actor, key: &str, value: u64) -> Result<()> {
        let source = format!("{}/source.img", self.number);
        let version = Version::new(shared_bytes(value), Tags::new());
        let request = client::put(&source, &version.bytes, &version.tags);
        let outcome = self.write(round, &source, request, Some(version)).await?;
        if outcome != Outcome::Done {
            return Ok(());
        }
        self.shared_request(round, actor, key, Op::Write(value), client::copy(&source, key))
            .await
    }

    async fn shared_request(&mut self, round: &Round, actor: Actor, key: &str, op: Op, request: Request) -> Result<()> {
        if self.in_flight || !round.histories.begins(key, actor, op) {
            return Ok(());
        }
        let answer = self.send(round, request).await;
        let ret = match (op, answer.outcome()?, &answer) {
            (Op::Read, Outcome::Done, Answer::Said(answer)) => Ret::Value(Some(shared_value(&answer.body)?)),
            (Op::Read, Outcome::Refused, _) => Ret::Value(None),
            (_, Outcome::Done, _) => Ret::Done,
            (_, Outcome::Refused, _) => Ret::Refused,
            (_, Outcome::Unknown, _) => {
                self.in_flight = true;
                return Ok(());
            }
        };
        round.histories.ends(key, actor, ret);
        Ok(())
    }
}

fn to(format: &str) -> Tags {
    [("convert-to".to_owned(), format.to_owned())].into()
}

/// The content that stands for a number: every fourth is too long to be kept in the index.
fn shared_bytes(value: u64) -> Bytes {
    let len = if value.is_multiple_of(4) { 6_000 } else { 100 };
    [value.to_le_bytes().to_vec(), Pattern(value).bytes(0..len)]
        .concat()
        .into()
}

/// The number that a content stands for.
pub(super) fn shared_value(bytes: &[u8]) -> Result<u64> {
    let number = bytes.get(..8).and_then(|bytes| bytes.try_into().ok());
    let value = u64::from_le_bytes(number.context("a shared object is cut off")?);
    ensure!(
        shared_bytes(value) == bytes,
        "a shared object is not what was written for {value}"
    );
    Ok(value)
}
