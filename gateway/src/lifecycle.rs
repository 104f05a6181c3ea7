//! Carries out the lifecycle rules of buckets.
//!
//! Rules are due at midnight, so there is one pass a day through each bucket that has rules, and one when they are set. A pass
//! looks at all versions, then at the uploads in progress, in pages, each of which waits for its turn like all background
//! work. After each page it is noted how far it has come, and a restart goes on there; whatever part of a page is done twice
//! finds nothing to do. What a client does meanwhile is safe: see [`lithos_storage::lifecycle`].

use std::time::Duration;

use lithos_storage::{
    BucketName, BucketRecord, ErrorKind, LayoutId, ListObjects, ListUploads, ListVersions, ListingEntry, Result,
    Version, VersionEntry,
    clock::Timestamp,
    lifecycle::{Day, Expired, Expiring, LifecycleRecord, LifecycleStage, LifecycleState},
};

use crate::app::{App, SharedApp};

/// How often it is asked whether a pass is due, at most and at least; a twentieth of a day lies between.
const LOOKS: [Duration; 2] = [Duration::from_millis(100), Duration::from_mins(10)];
/// Looks a day.
const LOOKS_A_DAY: u32 = 20;
/// Entries of a page.
const PAGE: usize = 1000;
/// Buckets that are listed at a time.
const BUCKETS: usize = 1000;
/// What a page counts for in the pace of background work: about what its rows take.
const PAGE_COST: u64 = 1 << 20;
/// What a delete counts for: a sync of the index.
const DELETE_COST: u64 = 16 << 10;

/// Makes the passes that are due, then waits for the next look.
pub(crate) async fn run(app: SharedApp) -> Result<()> {
    let mut after: Option<BucketName> = None;
    loop {
        let page = app.store.list_buckets(after.as_ref(), BUCKETS).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (name, bucket) in page {
            match carry_out(&app, &name, &bucket).await {
                Ok(()) => {}
                // The bucket has gone meanwhile.
                Err(error) if error.kind() == ErrorKind::NoSuchBucket => {}
                // One bucket in trouble does not hold up the others.
                Err(error) => tracing::warn!(
                    bucket = %name,
                    error = &error as &dyn std::error::Error,
                    "lifecycle rules could not be carried out; they are tried again"
                ),
            }
        }
    }
    let every = app.config.lifecycle_day / LOOKS_A_DAY;
    let [least, most] = LOOKS;
    tokio::select! {
        () = app.store.lifecycle_changed() => {}
        () = tokio::time::sleep(every.clamp(least, most)) => {}
    }
    Ok(())
}

/// Makes a pass through a bucket, if one is due or under way.
async fn carry_out(app: &App, name: &BucketName, bucket: &BucketRecord) -> Result<()> {
    let Some(rules) = app.store.lifecycle_of(bucket).await? else {
        return Ok(());
    };
    let now = app.store.now();
    let state = app.store.lifecycle_state(bucket).await?;
    let state = match state {
        Some(state) if state.stage != LifecycleStage::Done => state,
        Some(state) if state.begun >= app.config.day().midnight_before(now) => return Ok(()),
        _ => LifecycleState {
            begun: now,
            ..LifecycleState::default()
        },
    };
    let mut pass = Pass {
        app,
        name,
        bucket,
        rules: &rules,
        state,
        done: Done::default(),
    };
    while pass.state.stage != LifecycleStage::Done {
        app.pace.step(PAGE_COST).await;
        match pass.state.stage {
            LifecycleStage::Versions => pass.versions().await?,
            LifecycleStage::Uploads => pass.uploads().await?,
            LifecycleStage::Done => {}
        }
        if !app.store.set_lifecycle_state(bucket, &rules, &pass.state).await? {
            return Ok(());
        }
    }
    if pass.done != Done::default() {
        tracing::info!(bucket = %name, done = ?pass.done, "lifecycle rules were carried out");
    }
    Ok(())
}

/// What a pass has done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    expired: u64,
    versions: u64,
    markers: u64,
    uploads: u64,
    /// Kept by object lock.
    locked: u64,
}

/// A pass through a bucket.
struct Pass<'a> {
    app: &'a App,
    name: &'a BucketName,
    bucket: &'a BucketRecord,
    rules: &'a LifecycleRecord,
    state: LifecycleState,
    done: Done,
}

/// The versions of one key, as they pass by.
#[derive(Debug, Default)]
struct Seen {
    key: String,
    versions: u32,
    noncurrent: u32,
}

impl Pass<'_> {
    /// Goes through the versions of whole keys, at least a page of them.
    async fn versions(&mut self) -> Result<()> {
        let mut seen = Seen::default();
        let mut list = ListVersions {
            keys: ListObjects {
                after: self.state.after.clone(),
                limit: PAGE,
                ..ListObjects::default()
            },
            after_version: None,
        };
        let mut before: Option<(String, VersionEntry)> = None;
        loop {
            let page = self.app.store.list_versions(self.name, &list).await?;
            let more = page.more;
            for entry in page.entries {
                let ListingEntry::Key(key, entry) = entry else { continue };
                // Whether a marker is alone shows when the next version has another key.
                if let Some((key_before, entry_before)) = before.replace((key.clone(), entry)) {
                    let is_last = key_before != key;
                    self.look_at(&mut seen, &key_before, &entry_before, is_last).await?;
                }
            }
            let Some((key, entry)) = &before else { break };
            if !more {
                self.look_at(&mut seen, key, entry, true).await?;
                break;
            }
            // A key with more versions than a page goes on in the next one.
            if seen.key != *key && !seen.key.is_empty() {
                self.state.after.clone_from(&seen.key);
                return Ok(());
            }
            list.keys.after.clone_from(key);
            list.after_version = Some(entry.version.stamp().id());
        }
        self.state.stage = LifecycleStage::Uploads;
        self.state.after.clear();
        Ok(())
    }

    async fn look_at(&mut self, seen: &mut Seen, key: &str, entry: &VersionEntry, is_last: bool) -> Result<()> {
        if seen.key != key {
            *seen = Seen {
                key: key.to_owned(),
                ..Seen::default()
            };
        }
        let is_only = seen.versions == 0 && is_last;
        seen.versions = seen.versions.saturating_add(1);
        let due = self.due(key, entry, seen.noncurrent, is_only);
        if entry.noncurrent_since.is_some() {
            seen.noncurrent = seen.noncurrent.saturating_add(1);
        }
        match due {
            Some((due, what)) if due <= self.app.store.now() => self.expire(key, entry, what).await,
            _ => Ok(()),
        }
    }

    /// When a version is to go, if it is, and how.
    fn due(&self, key: &str, entry: &VersionEntry, newer: u32, is_only: bool) -> Option<(Timestamp, Expiring)> {
        let (day, rules) = (self.day(), &self.rules.rules);
        match (&entry.version, entry.noncurrent_since) {
            (Version::DeleteMarker(marker), _) if is_only => {
                let due = rules
                    .iter()
                    .filter_map(|rule| rule.marker_due(day, key, marker.last_modified));
                due.min().map(|due| (due, Expiring::Marker))
            }
            (Version::DeleteMarker(_), _) => None,
            (Version::Object(record), None) => {
                let expires = self
                    .rules
                    .expires(day, key, &record.tags, record.size(), record.last_modified);
                expires.map(|(due, _)| (due, Expiring::Current))
            }
            (Version::Object(record), Some(since)) => {
                let due = rules
                    .iter()
                    .filter_map(|rule| rule.noncurrent_due(day, key, &record.tags, record.size(), since, newer));
                due.min().map(|due| (due, Expiring::Noncurrent))
            }
        }
    }

    async fn expire(&mut self, key: &str, entry: &VersionEntry, what: Expiring) -> Result<()> {
        self.app.pace.step(DELETE_COST).await;
        let stamp = entry.version.stamp();
        let expired = self
            .app
            .store
            .expire(self.name, self.bucket, &key.parse()?, stamp, what)
            .await?;
        let count = match (expired, what) {
            (Expired::Changed, _) => return Ok(()),
            (Expired::Locked, _) => &mut self.done.locked,
            (Expired::Gone, Expiring::Current) => &mut self.done.expired,
            (Expired::Gone, Expiring::Noncurrent) => &mut self.done.versions,
            (Expired::Gone, Expiring::Marker) => &mut self.done.markers,
        };
        *count = count.saturating_add(1);
        Ok(())
    }

    /// Goes through the uploads in progress. They are few: a restart begins anew.
    async fn uploads(&mut self) -> Result<()> {
        let mut list = ListUploads {
            keys: ListObjects {
                limit: PAGE,
                ..ListObjects::default()
            },
            after_upload: None,
        };
        loop {
            let page = self.app.store.list_uploads(self.name, &list).await?;
            for entry in page.entries {
                let ListingEntry::Key(key, upload) = entry else {
                    continue;
                };
                let rules = self.rules.rules.iter();
                let due = rules.filter_map(|rule| rule.upload_due(self.day(), &key, upload.record.initiated));
                if due.min().is_some_and(|due| due <= self.app.store.now()) {
                    self.abort(&key, upload.id).await?;
                }
                list.keys.after = key;
                list.after_upload = Some(upload.id);
            }
            if !page.more {
                break;
            }
            self.app.pace.step(PAGE_COST).await;
        }
        self.state.stage = LifecycleStage::Done;
        Ok(())
    }

    async fn abort(&mut self, key: &str, upload: LayoutId) -> Result<()> {
        self.app.pace.step(DELETE_COST).await;
        match self.app.store.abort_upload(self.name, &key.parse()?, upload).await {
            // It was completed or aborted meanwhile.
            Err(error) if error.kind() == ErrorKind::NoSuchUpload => Ok(()),
            aborted => {
                aborted?;
                self.done.uploads = self.done.uploads.saturating_add(1);
                Ok(())
            }
        }
    }

    fn day(&self) -> Day {
        self.app.config.day()
    }
}
