//! Holds blobs against their checksums: all of them, or one that a read has found damaged.
//!
//! A pass writes down where it stands, so that a restart goes on from there. Damage fails the job, with the objects that
//! it hurts: that is what somebody has to look at.

use std::{collections::BTreeSet, fmt::Write as _};

use lithos_storage::{ScrubState, blob::BlobId};

use super::{JobContext, JobError};

/// How much is read before the position is written down: what a restart reads again.
const NOTE_EVERY: u64 = 256 << 20;
/// Objects and places that a job's message names.
const NAMED_MAX: usize = 8;

/// Reads every blob, at the pace of background work unless `hurry`.
pub(super) async fn run(context: &JobContext, hurry: bool) -> Result<String, JobError> {
    context.stage("waiting for another scrub", None);
    let _turn = context.app.scrubbing.lock().await;
    let store = &context.app.store;
    // Where an earlier attempt of this job was cut off, this one goes on.
    let mut state = match store.scrub_state().await? {
        Some(state) if state.ended.is_none() && context.attempt > 1 => state,
        _ => ScrubState {
            begun: store.now(),
            ..ScrubState::default()
        },
    };
    let (_, total) = store.blob_totals().await?;
    context.stage("reading blobs", Some(total));
    let mut scrub = store.scrub(state.position);
    let mut noted = state.bytes;
    let mut hurt = Hurt::default();
    while let Some(step) = scrub.step().await? {
        state.bytes = state.bytes.saturating_add(step.bytes);
        if let Some(blob) = step.ended {
            state.blobs += 1;
            state.position = Some(blob);
        }
        for damage in step.damage {
            if hurt.blobs.insert(damage.blob) {
                state.damaged += 1;
            }
            hurt.note(context, &damage);
        }
        context.done(state.bytes);
        if state.bytes.saturating_sub(noted) >= NOTE_EVERY {
            noted = state.bytes;
            store.set_scrub_state(&state).await?;
        }
        if !hurry {
            context.app.pace.step(step.bytes).await;
        }
    }
    state.ended = Some(store.now());
    store.set_scrub_state(&state).await?;
    if state.damaged > 0 {
        return Err(JobError::Failed(hurt.message(context, &state).await?));
    }
    Ok(format!("{} blobs, {} bytes: all whole", state.blobs, state.bytes))
}

/// Reads one blob, and says what its damage hurts.
pub(super) async fn run_one(context: &JobContext, blob: BlobId) -> Result<String, JobError> {
    context.stage("waiting for another scrub", None);
    let _turn = context.app.scrubbing.lock().await;
    context.stage("reading a blob", None);
    let mut scrub = context.app.store.scrub_blob(blob);
    let mut hurt = Hurt::default();
    let mut state = ScrubState {
        blobs: 1,
        ..ScrubState::default()
    };
    while let Some(step) = scrub.step().await? {
        state.bytes = state.bytes.saturating_add(step.bytes);
        context.done(state.bytes);
        for damage in step.damage {
            hurt.blobs.insert(damage.blob);
            hurt.note(context, &damage);
        }
    }
    state.damaged = hurt.blobs.len() as u64;
    if state.damaged > 0 {
        return Err(JobError::Failed(hurt.message(context, &state).await?));
    }
    Ok(format!(
        "blob {blob}: whole, or gone; what a read met was of the moment, or has been deleted"
    ))
}

/// What was found damaged.
#[derive(Default)]
struct Hurt {
    blobs: BTreeSet<BlobId>,
    places: Vec<String>,
}

impl Hurt {
    fn note(&mut self, context: &JobContext, damage: &lithos_storage::Damage) {
        tracing::error!(%damage, "stored bytes are damaged");
        context.app.metrics.damaged_blocks.inc();
        if self.places.len() < NAMED_MAX {
            self.places.push(damage.to_string());
        }
    }

    async fn message(&self, context: &JobContext, state: &ScrubState) -> Result<String, JobError> {
        let mut objects = BTreeSet::new();
        for blob in self.blobs.iter().take(NAMED_MAX) {
            objects.extend(context.app.store.objects_over(*blob).await?);
        }
        let mut message = format!("{} of {} blobs are damaged: ", state.damaged, state.blobs);
        message.push_str(&self.places.join("; "));
        if !objects.is_empty() {
            let named: Vec<String> = objects.iter().take(NAMED_MAX).cloned().collect();
            let _ = write!(message, "; objects over them: {}", named.join(", "));
            if objects.len() > named.len() {
                let _ = write!(message, " and {} more", objects.len() - named.len());
            }
        }
        message.push_str("; restore them from a backup or another zone, or delete them (`lithos damage` lists all)");
        Ok(message)
    }
}
