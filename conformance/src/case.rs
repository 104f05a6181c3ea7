//! What a case is: one fact about one operation, in a bucket of its own.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{Delete, ObjectIdentifier},
};
use futures::{FutureExt, future::BoxFuture};

use crate::{
    report::{Outcome, Report},
    sdk,
    target::Target,
    wire::{Request, object_path},
};

/// Longest time of a case. A client that is started ten times on a busy machine takes most of a minute.
const PATIENCE: Duration = Duration::from_mins(3);

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// The module that it is written in: see [`suite`](crate::suite).
    pub family: &'static str,
    /// The operation as in the S3 API Reference; of a client, the command or call.
    pub operation: &'static str,
    /// What is said of it, in words with underscores.
    pub name: &'static str,
    /// Shows it.
    pub run: fn(Bench) -> BoxFuture<'static, Result<()>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.name)
    }
}

/// Lists functions of this module as cases of operations.
#[macro_export]
macro_rules! cases {
    ($($operation:literal: $($function:ident),+ $(,)?;)+) => {
        /// The cases of this file.
        pub fn all() -> Vec<$crate::case::Case> {
            vec![$($($crate::case::Case {
                family: module_path!(),
                operation: $operation,
                name: stringify!($function),
                run: |bench| Box::pin($function(bench)),
            }),+),+]
        }
    };
}

/// What a case works with.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Where requests go.
    pub target: Target,
    /// The SDK.
    pub client: Client,
    /// A bucket for this case alone.
    pub bucket: String,
}

/// A case that cannot be tried on this target.
#[derive(Debug)]
pub struct Skip(pub &'static str);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skip {}

impl Bench {
    /// A bench with a new bucket.
    ///
    /// # Errors
    ///
    /// If the bucket cannot be made.
    pub async fn new(target: &Target) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let seed = crate::pattern::fresh_seed() & 0xffff_ffff;
        let bucket = format!("case-{seed:08x}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let client = sdk::client(target);
        client
            .create_bucket()
            .bucket(&bucket)
            .send()
            .await
            .context("cannot make the case's bucket")?;
        Ok(Self {
            target: target.clone(),
            client,
            bucket,
        })
    }

    /// Puts an object.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub async fn put(&self, key: &str, bytes: &[u8]) -> Result<String> {
        let body = ByteStream::from(bytes.to_vec());
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .body(body)
            .send()
            .await?;
        put.e_tag.context("PutObject gave no ETag")
    }

    /// Gets an object.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub async fn get(&self, key: &str) -> Result<Vec<u8>> {
        let got = self.client.get_object().bucket(&self.bucket).key(key).send().await?;
        Ok(got.body.collect().await?.to_vec())
    }

    /// A request by hand for an object of the case's bucket.
    pub fn object(&self, method: &'static str, key: &str) -> Request {
        Request::new(method, object_path(&self.bucket, key))
    }

    /// A request by hand for the case's bucket.
    pub fn bucket(&self, method: &'static str) -> Request {
        Request::new(method, format!("/{}", self.bucket))
    }

    /// Whether the object is not there.
    ///
    /// # Errors
    ///
    /// If it is.
    pub async fn expect_absent(&self, key: &str) -> Result<()> {
        sdk::expect_code(
            self.client.get_object().bucket(&self.bucket).key(key).send().await,
            "NoSuchKey",
        )
    }

    /// Removes the bucket with all that is in it.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub async fn clear(&self) -> Result<()> {
        let uploads = self.client.list_multipart_uploads().bucket(&self.bucket).send().await?;
        for upload in uploads.uploads() {
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket);
            abort
                .set_key(upload.key.clone())
                .set_upload_id(upload.upload_id.clone())
                .send()
                .await?;
        }
        loop {
            // Keys that XML cannot hold come encoded.
            let list = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .encoding_type(aws_sdk_s3::types::EncodingType::Url);
            let list = list.send().await?;
            for object in list.contents() {
                let key = percent_encoding::percent_decode_str(object.key().unwrap_or_default()).decode_utf8()?;
                self.client.delete_object().bucket(&self.bucket).key(key).send().await?;
            }
            if list.is_truncated != Some(true) {
                break;
            }
        }
        self.clear_versions().await?;
        self.client.delete_bucket().bucket(&self.bucket).send().await?;
        Ok(())
    }

    /// Deletes the versions and delete markers that a case, or the clearing behind it, has left.
    async fn clear_versions(&self) -> Result<()> {
        let state = self.client.get_bucket_versioning().bucket(&self.bucket).send().await;
        // A server that has none says so.
        if state.is_ok_and(|state| state.status().is_none()) {
            return Ok(());
        }
        loop {
            let list = self.client.list_object_versions().bucket(&self.bucket);
            let Ok(list) = list.encoding_type(aws_sdk_s3::types::EncodingType::Url).send().await else {
                return Ok(());
            };
            let versions = list
                .versions()
                .iter()
                .map(|version| (version.key(), version.version_id()));
            let markers = list
                .delete_markers()
                .iter()
                .map(|marker| (marker.key(), marker.version_id()));
            for (key, version) in versions.chain(markers) {
                let key = percent_encoding::percent_decode_str(key.unwrap_or_default()).decode_utf8()?;
                let delete = self.client.delete_object().bucket(&self.bucket).key(key);
                delete.set_version_id(version.map(str::to_owned)).send().await?;
            }
            if list.is_truncated != Some(true) {
                return Ok(());
            }
        }
    }

    /// A list of keys for DeleteObjects.
    ///
    /// # Errors
    ///
    /// If the SDK does not take them.
    pub fn deletion(keys: impl IntoIterator<Item = String>) -> Result<Delete> {
        let identifier = |key: String| ObjectIdentifier::builder().key(key).build();
        let objects = keys.into_iter().map(identifier).collect::<Result<Vec<_>, _>>()?;
        Ok(Delete::builder().set_objects(Some(objects)).build()?)
    }
}

/// Runs cases one after the other, and clears up behind each.
pub async fn run(target: &Target, cases: &[Case]) -> Report {
    let mut report = Report::default();
    for case in cases {
        let begun = Instant::now();
        let outcome = run_one(target, case).await;
        report.add(case, outcome, begun.elapsed());
    }
    report
}

async fn run_one(target: &Target, case: &Case) -> Outcome {
    let bench = match Bench::new(target).await {
        Ok(bench) => bench,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let running = AssertUnwindSafe((case.run)(bench.clone())).catch_unwind();
    let result = match tokio::time::timeout(PATIENCE, running).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("the case panicked")),
        Err(_) => Err(anyhow::anyhow!("the case did not end within {PATIENCE:?}")),
    };
    let cleared = bench.clear().await.context("cannot clear up behind the case");
    match result.and(cleared) {
        Ok(()) => Outcome::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => Outcome::Skipped((*why).to_owned()),
            None => Outcome::Failed(format!("{error:#}")),
        },
    }
}
