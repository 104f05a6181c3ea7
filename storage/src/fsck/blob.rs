//! Intents, and the rows of blobs against what is on the disk.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, stream};

use super::{Check, Finding, FindingKind as Kind, FsckOptions, Progress, Report, Severity};
use crate::{
    blob::{BlobId, Blobs},
    error::Result,
    gc::unused_blobs,
    kv::Kv,
    multipart::parse_number,
    rows::Pages,
    schema::{
        BlobRecord, EndedUpload, IntentRecord, IntentStage, Keys, LayoutId, LayoutRecord, LayoutState, PartRecord,
        decode,
    },
};

/// Blobs that are looked at together: enough to hide what opening a file costs.
const LOOKS: usize = 16;
/// Bytes that are verified in one go.
const VERIFY_LEN: u64 = 4 << 20;
/// Blobs that are listed together, of 24 bytes each. A folder is read anew for each listing, so few would be slow.
const LIST_COUNT: usize = 64 << 10;
/// Damages of one blob that are told; a file that is worse is all bad.
const DAMAGES_MAX: usize = 16;
/// Layouts over a hurt blob that are looked at, and objects of them that are named: a base image may have thousands of
/// derivatives, and the first few tell what it was.
const LOOKED_AT_MAX: usize = 1000;
const NAMED_MAX: usize = 8;

/// Checks only that the blobs which the index names are there and whole: what a restored store needs.
pub(crate) async fn check_blobs(
    index: &Arc<dyn Kv>,
    blobs: &Arc<dyn Blobs>,
    options: &FsckOptions,
    progress: &mut (dyn FnMut(Progress) + Send + Sync),
) -> Result<Report> {
    let mut check = Check::new(index, blobs, progress).await?;
    intents(&mut check).await?;
    rows(&mut check, options).await?;
    Ok(check.report)
}

pub(super) async fn check(check: &mut Check<'_>, options: &FsckOptions) -> Result<()> {
    intents(check).await?;
    rows(check, options).await?;
    strays(check).await
}

async fn intents(check: &mut Check<'_>) -> Result<()> {
    let mut unfinished = 0_u64;
    let mut pages = check.table("blobs being written", b'I');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let parsed = Keys::parse_blob(&key);
            let (Some(id), Some(intent)) = (check.take(&key, parsed), check.read::<IntentRecord>(&key, &value)) else {
                continue;
            };
            if check.has(&Keys::blob(id)).await? {
                check.add(Kind::StaleIntent, id.to_string(), "it has both rows");
            }
            match intent.stage {
                IntentStage::Arrived(len) => {
                    let looked = look(check.blobs, id, len, FsckOptions::default()).await?;
                    check.report_all(looked);
                }
                IntentStage::Writing | IntentStage::Dropped => unfinished += 1,
            }
        }
    }
    if unfinished > 0 {
        check.add(Kind::UnfinishedWrites, "the index", format!("{unfinished} blobs"));
    }
    Ok(())
}

async fn rows(check: &mut Check<'_>, options: &FsckOptions) -> Result<()> {
    let stage = if options.deep { "verifying blobs" } else { "blobs" };
    let mut pages = check.table(stage, b'X');
    loop {
        let page = pages.next(&*check.snapshot).await?;
        let Some(page) = page else { return Ok(()) };
        let mut known = Vec::with_capacity(page.len());
        for (key, value) in page {
            let parsed = Keys::parse_blob(&key);
            let (Some(id), Some(record)) = (check.take(&key, parsed), check.read::<BlobRecord>(&key, &value)) else {
                continue;
            };
            check.report.counts.blobs += 1;
            let bytes = &mut check.report.counts.blob_bytes;
            *bytes = bytes.saturating_add(record.len);
            known.push((id, record.len));
        }
        let (blobs, deep) = (check.blobs, *options);
        let mut looks = stream::iter(known)
            .map(|(id, len)| async move { (id, len, look(blobs, id, len, deep).await) })
            .buffer_unordered(LOOKS);
        while let Some((id, len, looked)) = looks.next().await {
            let mut looked = excuse(check, id, looked?).await?;
            if let Some(hurt) = looked.iter_mut().find(|found| found.kind.severity() == Severity::Error) {
                hurt.detail.push_str(&objects_over(check, id).await?);
            }
            check.report_all(looked);
            check.step(if options.deep { len } else { 1 });
        }
    }
}

/// Looks at the file of a blob that should have `len` bytes.
async fn look(blobs: &Arc<dyn Blobs>, id: BlobId, len: u64, options: FsckOptions) -> Result<Vec<Finding>> {
    let finding = |kind, detail: String| Finding {
        kind,
        subject: id.to_string(),
        detail,
    };
    let blob = match blobs.open(id).await {
        Ok(blob) => blob,
        Err(error) => {
            // One that cannot be looked for cannot be read either, which its own error says best.
            let there = blobs.exists(id).await.unwrap_or(true);
            let kind = if there { Kind::DamagedBlob } else { Kind::MissingBlob };
            return Ok(vec![finding(kind, error.to_string())]);
        }
    };
    let mut found = Vec::new();
    if blob.len() != len {
        let detail = format!("it has {} bytes, and its row says {len}", blob.len());
        found.push(finding(Kind::DamagedBlob, detail));
    }
    let mut start = 0;
    while options.deep && start < blob.len() && found.len() < DAMAGES_MAX {
        let end = blob.len().min(start.saturating_add(VERIFY_LEN));
        match blob.verify(start..end).await {
            Ok(damages) => found.extend(
                damages
                    .iter()
                    .map(|damage| finding(Kind::DamagedBlob, damage.to_string())),
            ),
            Err(error) => found.push(finding(Kind::DamagedBlob, error.to_string())),
        }
        start = end;
    }
    Ok(found)
}

/// The objects whose layouts may lie over the blob, for the end of a sentence: those of its owner and of who borrows from
/// it, the first few.
async fn objects_over(check: &Check<'_>, id: BlobId) -> Result<String> {
    let mut layouts = vec![id.owner];
    let mut pages = Pages::of(Keys::borrowers_of(id.owner));
    while layouts.len() < LOOKED_AT_MAX
        && let Some(page) = pages.next(&*check.snapshot).await?
    {
        for (key, _) in page {
            layouts.extend(Keys::parse_last_id(&key).ok().map(LayoutId));
        }
    }
    let mut names = BTreeSet::new();
    for layout in layouts {
        let record: Option<LayoutRecord> = check.get(&Keys::layout(layout)).await?;
        let holder = record
            .filter(|record| record.state == LayoutState::Held)
            .and_then(|record| record.holder);
        names.extend(holder.map(|holder| check.object_name(holder.bucket, &holder.key)));
    }
    if names.is_empty() {
        return Ok(String::new());
    }
    let more = names.len().saturating_sub(NAMED_MAX);
    let named: Vec<String> = names.into_iter().take(NAMED_MAX).collect();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Ok(format!("; objects over it: {}{more}", named.join(", ")))
}

/// Takes the edge off what the sweep explains, and finds blobs whose layout does not exist.
async fn excuse(check: &mut Check<'_>, id: BlobId, looked: Vec<Finding>) -> Result<Vec<Finding>> {
    let owner: Option<LayoutRecord> = check.get(&Keys::layout(id.owner)).await?;
    let Some(owner) = owner else {
        let detail = format!("layout {} does not exist", id.owner);
        check.add(Kind::ForgottenBlob, id.to_string(), detail);
        return Ok(looked);
    };
    let missing = looked.iter().any(|finding| finding.kind == Kind::MissingBlob);
    if missing && (owner.state == LayoutState::Dying || is_left_out(check, id).await?) {
        let detail = "its file has gone, and its row has not".to_owned();
        return Ok(vec![Finding {
            kind: Kind::HalfSwept,
            subject: id.to_string(),
            detail,
        }]);
    }
    Ok(looked)
}

/// Whether the blob was a part's that a completed upload had no use for.
async fn is_left_out(check: &Check<'_>, id: BlobId) -> Result<bool> {
    let Some(ended) = check.get::<EndedUpload>(&Keys::ended_upload(id.owner)).await? else {
        return Ok(false);
    };
    let mut pages = Pages::of(Keys::parts(id.owner));
    while let Some(page) = pages.next(&*check.snapshot).await? {
        for (key, part) in page {
            let (Ok(number), Ok(part)) = (parse_number(&key), decode::<PartRecord>(&part)) else {
                continue;
            };
            if unused_blobs(id.owner, &ended, number.get(), &part).contains(&id) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Files without a row.
async fn strays(check: &mut Check<'_>) -> Result<()> {
    check.stage = Progress {
        stage: "files of blobs",
        done: 0,
    };
    let mut after = None;
    loop {
        let listed = check.blobs.list(after, LIST_COUNT).await?;
        let Some(last) = listed.last() else { return Ok(()) };
        after = Some(*last);
        for id in &listed {
            if !check.has(&Keys::blob(*id)).await? && !check.has(&Keys::intent(*id)).await? {
                check.add(Kind::StrayBlob, id.to_string(), "no row names it");
            }
        }
        check.step(listed.len() as u64);
    }
}

impl Check<'_> {
    fn report_all(&mut self, findings: Vec<Finding>) {
        for Finding { kind, subject, detail } in findings {
            self.add(kind, subject, detail);
        }
    }
}
