//! Replicates an object to the servers of a zone.
//!
//! The other side is offered the blobs, says which it lacks, gets those, and then the object; `zone/wire.rs` has the
//! requests. All of it may be cut off anywhere and begun again: what has arrived there is not sent twice. Another job may
//! be sending the same blobs, for another format of the image: then this one waits for it.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use indicatif::BinaryBytes;
use lithos_storage::{
    BLOB_TRAILER_LEN, BucketName, BucketRecord, ErrorKind, ObjectKey, ObjectRecord, OpenObject, PeerRecord, Replica,
    Store, blob::BlobId,
};

use super::{JobContext, JobError, runner::ATTEMPTS_MAX};
use crate::{
    client::{Client, Error as ClientError},
    image::wishes,
    zone::{
        COMPLETED, FAILED, ZoneName, registry,
        wire::{
            BAD_REPLICA, BLOB_PENDING, BLOBS_MISSING, Missing, OFFER_BLOBS_MAX, ObjectOffer, Offer, Outcome, PREFIX,
            Taken,
        },
    },
};

/// Blobs that are sent at a time.
const BLOBS_AT_A_TIME: usize = 2;
/// How often blobs are offered again that went away on the other side before the object was committed.
const ROUNDS_MAX: usize = 3;
/// How often the other side is asked, with a pause, about blobs that somebody else sends it. Then the job makes room for
/// others, and is tried again.
const ASKS_MAX: usize = 40;
/// How often the connection may break while blobs are sent, before the other side counts as away.
const BREAKS_MAX: usize = 3;
/// The pause.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// How often progress is noted.
const NOTE_EVERY: Duration = Duration::from_millis(100);

/// Brings the current version of an object to every server of `zone`.
pub(super) async fn run(
    context: &JobContext,
    bucket: &BucketName,
    key: &ObjectKey,
    zone: &ZoneName,
) -> Result<String, JobError> {
    if context.app.serves(zone) {
        return Ok(format!("nothing to do: this server serves {zone}"));
    }
    let Some(object) = open(&context.app.store, bucket, key).await? else {
        return Ok("nothing to do: the object is gone".to_owned());
    };
    let job = Replication {
        context,
        bucket,
        key,
        zone,
    };
    let result = job.run(&object).await;
    let for_good = match &result {
        Ok(_) => return result,
        Err(JobError::Failed(_)) => true,
        Err(JobError::Retry(_)) => context.attempt >= ATTEMPTS_MAX,
        Err(JobError::Unreachable(_)) => false,
    };
    if for_good {
        job.note(&object.record, FAILED).await?;
    }
    result
}

/// The object, if it is there.
async fn open(store: &Store, bucket: &BucketName, key: &ObjectKey) -> Result<Option<OpenObject>, JobError> {
    match store.open_object(bucket, key).await {
        Ok(object) => Ok(Some(object)),
        Err(e) if matches!(e.kind(), ErrorKind::NoSuchKey | ErrorKind::NoSuchBucket) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What is to be replicated, and where to.
struct Replication<'a> {
    context: &'a JobContext,
    bucket: &'a BucketName,
    key: &'a ObjectKey,
    zone: &'a ZoneName,
}

/// What was sent.
#[derive(Debug, Default, Clone, Copy)]
struct Sent {
    blobs: u64,
    bytes: u64,
}

/// What stands between the blobs and the other side, after they have been sent.
#[derive(Debug)]
enum Left {
    Nothing,
    /// Some were on their way already.
    Pending,
    /// The connection broke. A server that does not want a body closes the connection, and its answer may be lost with
    /// that; asking again tells whether it is away.
    Broken(JobError),
}

/// How the replication to one server ended.
enum Ended {
    Taken(Outcome),
    /// The object here was replaced or deleted meanwhile.
    Replaced,
}

impl Replication<'_> {
    async fn run(&self, object: &OpenObject) -> Result<String, JobError> {
        let app = &self.context.app;
        let peers = registry::serving(app, self.zone).await?;
        if peers.is_empty() {
            return Err(JobError::Unreachable(format!(
                "no server of zone {} is known; add one with `lithos server add`",
                self.zone
            )));
        }
        let blobs = app.store.blobs_of(object).await?;
        let mut results = Vec::new();
        let mut failure = None;
        // One server that is away must not keep the object from the others.
        for peer in &peers {
            match self.to_peer(object, &blobs, peer).await {
                Ok(Some(result)) => results.push(result),
                Ok(None) => return Ok("nothing to do: the object was replaced or deleted meanwhile".to_owned()),
                Err(error) => failure = Some(failure.map_or(error.clone(), |first| graver(first, error))),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.note(&object.record, COMPLETED).await?;
        Ok(results.join("; "))
    }

    /// Brings the object to one server. `None` if there is no such object any more.
    async fn to_peer(
        &self,
        object: &OpenObject,
        blobs: &[BlobId],
        peer: &PeerRecord,
    ) -> Result<Option<String>, JobError> {
        let client =
            registry::transfer_client(&self.context.app, peer).map_err(|e| JobError::Failed(format!("{e:#}")))?;
        let mut sent = Sent::default();
        for _ in 0..ROUNDS_MAX {
            self.send_missing(&client, peer, blobs, &mut sent).await?;
            let outcome = match self.send_object(&client, object).await? {
                None => continue,
                Some(Ended::Replaced) => return Ok(None),
                Some(Ended::Taken(outcome)) => outcome,
            };
            let newer = if outcome == Outcome::Superseded {
                ", which keeps a newer object"
            } else {
                ""
            };
            return Ok(Some(format!(
                "sent {} of {} blobs ({}) to {}{newer}",
                sent.blobs,
                blobs.len(),
                BinaryBytes(sent.bytes),
                peer.name,
            )));
        }
        Err(JobError::Retry(format!(
            "{} keeps losing blobs before it has the object",
            peer.name
        )))
    }

    /// Sends what the other side lacks, until it lacks nothing.
    async fn send_missing(
        &self,
        client: &Client,
        peer: &PeerRecord,
        blobs: &[BlobId],
        sent: &mut Sent,
    ) -> Result<(), JobError> {
        let mut breaks = 0;
        for _ in 0..ASKS_MAX {
            self.context.stage(&format!("asking {}", peer.name), None);
            let (missing, pending) = ask(client, blobs).await?;
            let left = if missing.is_empty() {
                Left::Nothing
            } else {
                self.send_blobs(client, peer, &missing, sent).await?
            };
            match left {
                Left::Nothing if !pending => return Ok(()),
                Left::Nothing | Left::Pending => {}
                Left::Broken(error) => {
                    breaks += 1;
                    if breaks >= BREAKS_MAX {
                        return Err(error);
                    }
                }
            }
            self.context
                .stage(&format!("waiting for another transfer to {}", peer.name), None);
            tokio::time::sleep(ASK_PAUSE).await;
        }
        Err(JobError::Unreachable(format!(
            "another job is still sending blobs of this object to {}",
            peer.name
        )))
    }

    /// Sends blobs, up to the first whose connection breaks.
    async fn send_blobs(
        &self,
        client: &Client,
        peer: &PeerRecord,
        blobs: &[BlobId],
        sent: &mut Sent,
    ) -> Result<Left, JobError> {
        let store = &self.context.app.store;
        let mut total = 0_u64;
        for id in blobs {
            total = total.saturating_add(store.blobs().open(*id).await?.len());
        }
        self.context.stage(&format!("sending to {}", peer.name), Some(total));
        let done = Arc::new(AtomicU64::new(0));
        let start = {
            let (store, client, done) = (store.clone(), client.clone(), Arc::clone(&done));
            move |id| send_blob(store.clone(), client.clone(), id, Arc::clone(&done))
        };
        let mut sending = stream::iter(blobs.to_vec())
            .map(start)
            .buffer_unordered(BLOBS_AT_A_TIME);
        let mut left = Left::Nothing;
        let mut tick = tokio::time::interval(NOTE_EVERY);
        loop {
            let ended = tokio::select! {
                ended = sending.try_next() => ended,
                _ = tick.tick() => {
                    self.context.done(done.load(Ordering::Relaxed).min(total));
                    continue;
                }
            };
            match ended {
                Ok(Some(Some(len))) => {
                    sent.blobs += 1;
                    sent.bytes = sent.bytes.saturating_add(len);
                }
                Ok(Some(None)) => left = Left::Pending,
                Ok(None) => break,
                Err(error @ JobError::Unreachable(_)) => return Ok(Left::Broken(error)),
                Err(error) => return Err(error),
            }
        }
        self.context.done(total);
        Ok(left)
    }

    /// Sends the object as it is now: its tags may have changed while its blobs were on their way. `None` if blobs are
    /// missing on the other side.
    async fn send_object(&self, client: &Client, object: &OpenObject) -> Result<Option<Ended>, JobError> {
        let now = open(&self.context.app.store, self.bucket, self.key).await?;
        let Some(now) = now.filter(|now| now.record.layout_id == object.record.layout_id) else {
            return Ok(Some(Ended::Replaced));
        };
        let mut record = now.record;
        record.jobs.clear();
        record.replication.clear();
        let offer = ObjectOffer {
            zone: self.zone.clone(),
            bucket: self.bucket.to_string(),
            region: now.bucket.region,
            bucket_tags: now.bucket.tags,
            bucket_owner: now.bucket.owner,
            key: self.key.to_string(),
            record: Replica::encode(&record),
        };
        match client.post_json::<_, Taken>(&format!("{PREFIX}/objects"), &offer).await {
            Ok(taken) => Ok(Some(Ended::Taken(taken.outcome))),
            Err(e) if e.code() == Some(BLOBS_MISSING) => Ok(None),
            Err(e) => Err(job_error(&e)),
        }
    }

    /// Notes in the object where its replication stands, unless it has been replaced.
    async fn note(&self, sent: &ObjectRecord, status: &str) -> Result<(), JobError> {
        let zone = self.zone.as_str();
        let noted =
            self.context
                .app
                .store
                .update_object(self.bucket, self.key, Some(sent.layout_id), |bucket, record| {
                    let changed = record.tags != sent.tags || record.metadata != sent.metadata;
                    // Who changed the tags has queued a job of their own, if they still name the zone.
                    if !(changed && wants(bucket, record, self.zone)) {
                        record.replication.insert(zone.to_owned(), status.to_owned());
                    }
                    Ok(Vec::new())
                });
        match noted.await {
            Ok(_) => Ok(()),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::NoSuchKey | ErrorKind::NoSuchBucket | ErrorKind::PreconditionFailed
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether the object is still wanted in `zone`.
fn wants(bucket: &BucketRecord, record: &ObjectRecord, zone: &ZoneName) -> bool {
    let wants = |tags, tag| wishes::zones(tags, tag).is_ok_and(|zones| zones.contains(zone));
    wants(&bucket.tags, wishes::ZONES) || wants(&record.tags, wishes::REPLICATE_TO)
}

/// Asks which of `blobs` the other side lacks, and whether it is about to get others.
async fn ask(client: &Client, blobs: &[BlobId]) -> Result<(Vec<BlobId>, bool), JobError> {
    let mut absent = Vec::new();
    let mut pending = false;
    for batch in blobs.chunks(OFFER_BLOBS_MAX) {
        let offer = Offer {
            blobs: batch.iter().map(ToString::to_string).collect(),
        };
        let answer: Missing = client
            .post_json(&format!("{PREFIX}/blobs/missing"), &offer)
            .await
            .map_err(|e| job_error(&e))?;
        // What it did not say is not asked of it: an answer cannot make this server send anything else.
        let missing: HashSet<String> = answer.missing.into_iter().collect();
        absent.extend(batch.iter().filter(|id| missing.contains(&id.to_string())));
        pending |= !answer.pending.is_empty();
    }
    Ok((absent, pending))
}

/// Sends one blob. Gives its length, or `None` if somebody else sends it now.
async fn send_blob(store: Store, client: Client, id: BlobId, done: Arc<AtomicU64>) -> Result<Option<u64>, JobError> {
    let (len, body) = store.send_blob(id).await?;
    // An error of this side's disk breaks the request off, and is told apart from an error of the network by this.
    let broken = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&broken);
    let body = body
        .inspect_ok(move |chunk| {
            done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        })
        .map_err(move |error| {
            let text = super::chain(&error);
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(JobError::from(error));
            std::io::Error::other(text)
        });
    let put = client.put_stream(&format!("{PREFIX}/blobs/{id}"), len, body).await;
    if let Some(error) = broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    match put {
        Ok(()) => Ok(Some(len.saturating_sub(BLOB_TRAILER_LEN))),
        Err(e) if e.code() == Some(BLOB_PENDING) => Ok(None),
        Err(e) => Err(job_error(&e)),
    }
}

/// What an error of the other side means for the job.
fn job_error(error: &ClientError) -> JobError {
    let text = error.to_string();
    match error {
        ClientError::Unreachable { .. } => JobError::Unreachable(text),
        // Keys, clocks, zones and addresses are what people correct; a record that is refused stays as it is.
        ClientError::Refused { status, code, .. }
            if *status == StatusCode::BAD_REQUEST && code == "InvalidArgument" || code == BAD_REPLICA =>
        {
            JobError::Failed(text)
        }
        ClientError::Refused { .. } | ClientError::Foreign { .. } => JobError::Retry(text),
    }
}

/// Of the errors of two servers, the one by which the job goes on: while one may come back, it is not over.
fn graver(one: JobError, other: JobError) -> JobError {
    let rank = |error: &JobError| match error {
        JobError::Unreachable(_) => 2,
        JobError::Retry(_) => 1,
        JobError::Failed(_) => 0,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

#[cfg(test)]
mod tests;
