//! Fetches a URL into an object.
//!
//! The bytes go into the store as they come, and become an object in one commit after they have been verified: before it
//! there is nothing to be seen, and an import that fails or is cancelled leaves nothing behind.

use std::error::Error as _;

use futures::{StreamExt, TryStreamExt};
use lithos_storage::{
    BucketName, ContentHeaders, Error, IngestOptions, Ingested, NewObject, ObjectKey, WriteCondition,
};

use super::{ImportTask, JobContext, JobError};
use crate::{
    auth::user,
    image::{annotate, wishes},
    import::{self, Checksum, Download, FetchError, Fetcher, OBJECT_LEN_MAX},
};

impl From<FetchError> for JobError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Failed(text) => Self::Failed(text),
            FetchError::Broken(text) | FetchError::Stale(text) => Self::Retry(text),
        }
    }
}

/// Fetches the URL of `task`, verifies it, and commits the object.
pub(super) async fn run(context: &JobContext, task: ImportTask) -> Result<String, JobError> {
    let fetcher = Fetcher::new(&context.app.config.import)?;
    fetch(context, task, &fetcher).await
}

async fn fetch(context: &JobContext, mut task: ImportTask, fetcher: &Fetcher) -> Result<String, JobError> {
    let bucket: BucketName = task.bucket.parse()?;
    let key: ObjectKey = task.key.parse()?;
    let url = import::parse_url(&task.url).map_err(JobError::Failed)?;
    let checksum: Option<Checksum> = task
        .checksum
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(JobError::Failed)?;

    context.stage("connecting", None);
    // Found out now rather than after the last byte.
    context.app.store.bucket(&bucket).await?;
    let download = fetcher.open(url).await?;
    if checksum.is_none() && !download.shows_its_end() {
        let why =
            "the server does not say how long it is, so that a broken connection would go unnoticed: give a checksum";
        return Err(JobError::Failed(why.to_owned()));
    }
    task.content_type = task.content_type.or_else(|| download.content_type());

    context.stage("fetching", download.len());
    let ingested = ingest(context, download, checksum.as_ref()).await?;

    let size = ingested.content.size();
    context.stage("verifying", Some(size));
    if let Some(checksum) = &checksum {
        checksum.verify(&ingested.digests).map_err(JobError::Failed)?;
    }
    commit(context, &bucket, &key, task, ingested, checksum.as_ref()).await?;
    context.done(size);
    Ok(match checksum {
        Some(checksum) => format!("imported {size} bytes, {checksum} verified"),
        None => format!("imported {size} bytes, with no checksum to verify"),
    })
}

/// Takes the bytes in. Dropped, it leaves nothing.
async fn ingest(context: &JobContext, download: Download, checksum: Option<&Checksum>) -> Result<Ingested, JobError> {
    let options = IngestOptions {
        declared_len: download.len(),
        len_max: Some(OBJECT_LEN_MAX),
        digests: checksum.map(Checksum::digests).unwrap_or_default(),
        upload: None,
    };
    let mut done = 0_u64;
    let body = download.into_stream().inspect_ok(|chunk| {
        done = done.saturating_add(chunk.len() as u64);
        context.done(done);
    });
    let ingested = context
        .app
        .store
        .ingest(body.map(|chunk| chunk.map_err(Into::into)), options)
        .await;
    ingested.map_err(|error| fetch_error(&error).map_or_else(|| error.into(), JobError::from))
}

/// The error of the body that an ingest failed with, if it did.
fn fetch_error(error: &Error) -> Option<FetchError> {
    error.source()?.downcast_ref().cloned()
}

/// Makes the bytes an object, with the jobs that its tags wish for.
async fn commit(
    context: &JobContext,
    bucket: &BucketName,
    key: &ObjectKey,
    task: ImportTask,
    ingested: Ingested,
    checksum: Option<&Checksum>,
) -> Result<(), JobError> {
    let app = &context.app;
    let annotations = {
        let said = annotate::Said::new(key.as_str(), task.content_type.as_deref());
        annotate::annotations(app, ingested.content.layout(), said).await
    };
    let new = NewObject {
        content: ingested.content,
        etag: hex::encode(ingested.digests.md5),
        headers: ContentHeaders {
            content_type: task.content_type,
            ..ContentHeaders::default()
        },
        metadata: task.metadata,
        tags: task.tags,
        checksum: checksum.and_then(Checksum::of_object),
        part_sizes: Vec::new(),
        annotations,
        owner: task.owner,
        last_modified: None,
        condition: WriteCondition::Always,
        fence: Some(context.fence),
        source: None,
    };
    let put = app.store.put_object(bucket, key, new, |bucket_record, record| {
        user::require_owner(app, bucket_record, &record.owner)?;
        Ok(wishes::jobs(app, bucket.as_str(), key.as_str(), bucket_record, record))
    });
    put.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use lithos_storage::job::Lease;
    use sha2::Digest as _;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        app::{App, SharedApp},
        config::Settings,
        import::origin::{self, Origin, cut_reply, reply},
        job::Task,
    };

    /// A gateway, and its data folder.
    async fn gateway() -> (SharedApp, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let allow = vec!["127.0.0.1/32".parse().unwrap()];
        let settings = Settings {
            data: Some(folder.path().into()),
            import_allow: allow,
            ..Settings::default()
        };
        let app = App::open(settings.check(None).unwrap()).await.unwrap();
        app.store
            .create_bucket(&"images".parse().unwrap(), None, BTreeMap::new(), "me".to_owned())
            .await
            .unwrap();
        (app, folder)
    }

    fn task(origin: &Origin, checksum: Option<&str>) -> ImportTask {
        ImportTask {
            bucket: "images".to_owned(),
            key: "debian.img".to_owned(),
            url: origin.url("/debian.img").into(),
            checksum: checksum.map(str::to_owned),
            owner: "me".to_owned(),
            ..ImportTask::default()
        }
    }

    async fn claimed(app: &SharedApp, task: &ImportTask) -> (JobContext, Lease) {
        app.store
            .queue_job(Task::Import(Box::new(task.clone())).job())
            .await
            .unwrap();
        let lease = app.store.claim_job(1).await.unwrap().unwrap();
        let (app, stop) = (Arc::clone(app), CancellationToken::new());
        (
            JobContext {
                app,
                fence: lease.fence(),
                attempt: 1,
                stop,
                progress: Mutex::default(),
            },
            lease,
        )
    }

    /// Runs the import as a job.
    async fn import(app: &SharedApp, task: &ImportTask) -> Result<String, JobError> {
        let (context, _) = claimed(app, task).await;
        fetch(&context, task.clone(), &origin::fetcher(&app.config.import)).await
    }

    async fn object(app: &SharedApp) -> lithos_storage::Result<lithos_storage::OpenObject> {
        app.store
            .open_object(&"images".parse().unwrap(), &"debian.img".parse().unwrap())
            .await
    }

    /// Nothing to be seen, and no bytes once it has been swept.
    async fn assert_nothing_is_left(app: &SharedApp) {
        assert!(object(app).await.is_err());
        app.store.sweep().await.unwrap();
        let strays = app.store.sweep_strays().await.unwrap();
        assert_eq!(strays, lithos_storage::SweepReport::default());
        assert!(app.store.blobs().list(None, 10).await.unwrap().is_empty());
    }

    /// Bytes that need a blob of their own.
    fn image() -> Vec<u8> {
        (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    fn sha256(bytes: &[u8]) -> String {
        format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
    }

    #[tokio::test]
    async fn an_import_becomes_an_object_with_all_it_was_given() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| {
            reply("200 OK", &[("content-type", "application/x-raw")], &image())
        });
        let task = ImportTask {
            metadata: BTreeMap::from([("colour".to_owned(), "red".to_owned())]),
            tags: BTreeMap::from([("convert-to".to_owned(), "qcow2".to_owned())]),
            ..task(&origin, Some(&sha256(&image())))
        };
        let result = import(&app, &task).await.unwrap();
        assert_eq!(result, format!("imported 800000 bytes, {} verified", sha256(&image())));

        let object = object(&app).await.unwrap();
        assert_eq!(object.reader().read(0..800_000).await.unwrap(), image());
        let record = object.record;
        assert_eq!(record.headers.content_type.as_deref(), Some("application/x-raw"));
        assert_eq!(
            (record.metadata, record.tags, record.owner),
            (task.metadata, task.tags, "me".to_owned())
        );
        assert!(record.checksum.is_some());
        assert_eq!(record.jobs.len(), 1, "the conversion that the tag wishes for");
        assert_eq!(record.etag, hex::encode(md5::Md5::digest(image())));
    }

    #[tokio::test]
    async fn the_type_that_was_asked_for_wins() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| {
            reply("200 OK", &[("content-type", "text/html")], b"image")
        });
        let task = ImportTask {
            content_type: Some("application/x-raw".to_owned()),
            ..task(&origin, None)
        };
        assert_eq!(
            import(&app, &task).await.unwrap(),
            "imported 5 bytes, with no checksum to verify"
        );
        assert_eq!(
            object(&app).await.unwrap().record.headers.content_type.as_deref(),
            Some("application/x-raw")
        );
    }

    #[tokio::test]
    async fn progress_is_in_bytes() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| reply("200 OK", &[], &image()));
        let task = task(&origin, None);
        let (context, _) = claimed(&app, &task).await;
        fetch(&context, task, &origin::fetcher(&app.config.import))
            .await
            .unwrap();
        let progress = context.snapshot();
        assert_eq!(
            (progress.stage.as_str(), progress.done, progress.total),
            ("verifying", 800_000, Some(800_000))
        );
    }

    #[tokio::test]
    async fn a_wrong_checksum_leaves_nothing() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| reply("200 OK", &[], &image()));
        for expected in [
            format!("sha256:{}", "0".repeat(64)),
            format!("sha512:{}", "0".repeat(128)),
            format!("md5:{}", "0".repeat(32)),
        ] {
            let error = import(&app, &task(&origin, Some(&expected))).await.unwrap_err();
            let JobError::Failed(text) = error else {
                panic!("{error:?}")
            };
            assert!(text.contains(&format!("expected {expected}, got ")), "{text}");
            assert_nothing_is_left(&app).await;
        }
        let text = import(&app, &task(&origin, Some(&format!("sha256:{}", "0".repeat(64)))))
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(&sha256(&image())), "{text}");
    }

    #[tokio::test]
    async fn a_broken_connection_is_gone_on_with_and_all_is_verified() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |request| match request.header("range") {
            None => cut_reply("200 OK", &[("etag", "\"v1\"")], &image(), 300_000),
            Some("bytes=300000-") => {
                let range = "bytes 300000-799999/800000";
                reply(
                    "206 Partial Content",
                    &[("etag", "\"v1\""), ("content-range", range)],
                    &image()[300_000..],
                )
            }
            Some(_) => reply("416 Range Not Satisfiable", &[], b""),
        });
        import(&app, &task(&origin, Some(&sha256(&image())))).await.unwrap();
        assert_eq!(object(&app).await.unwrap().record.size(), 800_000);
    }

    #[tokio::test]
    async fn what_may_get_better_is_tried_again_and_leaves_nothing_meanwhile() {
        let (app, _folder) = gateway().await;
        let replies = [
            (cut_reply("200 OK", &[], &image(), 300_000), "after 300000 bytes"),
            (reply("503 Service Unavailable", &[], b""), "503"),
        ];
        for (reply, why) in replies {
            let origin = Origin::start("127.0.0.1", move |_| reply.clone());
            let error = import(&app, &task(&origin, None)).await.unwrap_err();
            assert!(
                matches!(&error, JobError::Retry(text) if text.contains(why)),
                "{error:?}"
            );
            assert_nothing_is_left(&app).await;
        }
    }

    #[tokio::test]
    async fn what_cannot_get_better_fails() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| reply("404 Not Found", &[], b""));
        let good = task(&origin, None);
        let bad = [
            (good.clone(), "404"),
            (
                ImportTask {
                    url: "http://127.0.0.2/".to_owned(),
                    ..good.clone()
                },
                "127.0.0.2 is a loopback address",
            ),
            (
                ImportTask {
                    url: "ftp://127.0.0.1/".to_owned(),
                    ..good.clone()
                },
                "not with ftp:",
            ),
            (
                ImportTask {
                    checksum: Some("sha1:00".to_owned()),
                    ..good.clone()
                },
                "sha1",
            ),
            (
                ImportTask {
                    bucket: "nowhere".to_owned(),
                    ..good.clone()
                },
                "bucket nowhere does not exist",
            ),
        ];
        for (task, why) in bad {
            let error = import(&app, &task).await.expect_err(why);
            assert!(
                matches!(&error, JobError::Failed(text) if text.contains(why)),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_whose_end_is_uncertain_needs_a_checksum() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| b"HTTP/1.0 200 OK\r\n\r\nimage".to_vec());
        let error = import(&app, &task(&origin, None)).await.unwrap_err();
        assert!(
            matches!(&error, JobError::Failed(text) if text.contains("give a checksum")),
            "{error:?}"
        );
        import(&app, &task(&origin, Some(&sha256(b"image")))).await.unwrap();
        assert_eq!(object(&app).await.unwrap().record.size(), 5);
    }

    #[tokio::test]
    async fn a_cancelled_import_leaves_nothing() {
        let (app, _folder) = gateway().await;
        // The rest is asked for, and does not come as long as the test lasts.
        let cut = CancellationToken::new();
        let asked = cut.clone();
        let (_release, released) = std::sync::mpsc::channel::<()>();
        let origin = Origin::start("127.0.0.1", move |request| {
            if request.header("range").is_some() {
                asked.cancel();
                let _ = released.recv();
            }
            cut_reply("200 OK", &[("etag", "\"v1\"")], &image(), 300_000)
        });
        let task = task(&origin, None);
        let (context, _) = claimed(&app, &task).await;
        let running = tokio::spawn(async move {
            let fetcher = origin::fetcher(&context.app.config.import);
            fetch(&context, task, &fetcher).await
        });
        cut.cancelled().await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert_nothing_is_left(&app).await;
    }

    #[tokio::test]
    async fn an_import_whose_job_was_cancelled_commits_nothing() {
        let (app, _folder) = gateway().await;
        let origin = Origin::start("127.0.0.1", |_| reply("200 OK", &[], &image()));
        let task = task(&origin, None);
        let (context, lease) = claimed(&app, &task).await;
        app.store.cancel_job(lease.job.id).await.unwrap();
        let error = fetch(&context, task, &origin::fetcher(&app.config.import))
            .await
            .unwrap_err();
        assert!(matches!(error, JobError::Failed(_)), "{error:?}");
        assert_nothing_is_left(&app).await;
    }
}
