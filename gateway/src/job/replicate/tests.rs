//! Two servers over real sockets, with signatures verified as on the transfer address.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use lithos_storage::{
    BodyError, Content, IngestOptions, NewObject, Tags, WriteCondition, job::Progress, layout::Layout,
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::*;
use crate::{
    app::{App, SharedApp},
    auth::user,
    client::parse_server,
    config::{Bounds, COMPACT_AFTER, Config, ImportConfig, LIFECYCLE_DAY, Reserve, RootKeys},
    s3,
    zone::{REPLICA, registry::NewPeer, status},
};

/// A server, its folder and its transfer address.
struct Site {
    app: SharedApp,
    addr: SocketAddr,
    /// Methods and paths, as they were asked for.
    asked: Arc<Mutex<Vec<String>>>,
    /// How many blobs it is to hang up on.
    hang_ups: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
    _data: tempfile::TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn root_keys(zone: &str) -> RootKeys {
    RootKeys {
        access_key: format!("access-{zone}"),
        secret_key: format!("secret-{zone}").into(),
    }
}

impl Site {
    async fn new(zone: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let app = App::open(Config {
            data: data.path().to_owned(),
            listen: any,
            admin_listen: any,
            zones: vec![zone.parse().unwrap()],
            domains: Vec::new(),
            import: ImportConfig::default(),
            image: lithos_convert::Limits::DEFAULT,
            workers: 1,
            bounds: Bounds::default(),
            reserve: Reserve::Bytes(0),
            scrub_days: 0,
            compact_after: COMPACT_AFTER,
            lifecycle_day: LIFECYCLE_DAY,
            read_only: false,
            root_keys: Some(root_keys(zone)),
        })
        .await
        .unwrap();
        let sweeping = Arc::clone(&app);
        let sweep = tokio::spawn(async move {
            loop {
                sweeping.store.sweep_due().await;
                sweeping.store.sweep().await.unwrap();
            }
        });
        let mut site = Self {
            app,
            addr: any,
            asked: Arc::default(),
            hang_ups: Arc::default(),
            tasks: vec![sweep],
            _data: data,
        };
        site.listen(TcpListener::bind(any).await.unwrap());
        site
    }

    fn listen(&mut self, listener: TcpListener) {
        self.addr = listener.local_addr().unwrap();
        let service = s3::service(&self.app).unwrap();
        let (asked, hang_ups) = (Arc::clone(&self.asked), Arc::clone(&self.hang_ups));
        self.tasks.push(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (service, asked, hang_ups) = (Arc::clone(&service), Arc::clone(&asked), Arc::clone(&hang_ups));
                let answer = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    asked
                        .lock()
                        .unwrap()
                        .push(format!("{} {}", request.method(), request.uri().path()));
                    let fewer = |left: u64| left.checked_sub(1);
                    let hang_up = request.method() == Method::PUT
                        && hang_ups
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer)
                            .is_ok();
                    let answer = (!hang_up).then(|| service(request.map(s3s::Body::from)));
                    async move {
                        match answer {
                            Some(answer) => Ok(answer.await),
                            None => Err(std::io::Error::other("hung up")),
                        }
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, answer)
                        .await;
                });
            }
        }));
    }

    /// Whoever knows `keys` as a client of this one's transfer address.
    fn client(&self, keys: RootKeys) -> Client {
        Client::new(parse_server(&format!("http://{}", self.addr)).unwrap(), keys).unwrap()
    }

    /// How many blobs were sent here since the last time this was asked.
    fn blobs_received(&self) -> usize {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked
            .iter()
            .filter(|asked| asked.starts_with(Method::PUT.as_str()))
            .count()
    }

    async fn knows(&self, peer: &Site, zone: &str, keys: RootKeys) {
        let new = NewPeer {
            name: format!("server-{zone}"),
            management: "http://127.0.0.1:1".into(),
            transfer: format!("http://{}", peer.addr),
            zones: vec![zone.parse().unwrap()],
            access_key: keys.access_key,
            secret_key: keys.secret_key.expose().to_owned(),
        };
        registry::add(&self.app, new).await.unwrap();
    }

    async fn put(&self, name: &str, content: Content) -> OpenObject {
        let new = NewObject {
            content,
            etag: format!("etag of {name}"),
            headers: lithos_storage::ContentHeaders {
                content_type: Some("image/raw".into()),
                ..Default::default()
            },
            metadata: [("colour".to_owned(), "blue".to_owned())].into(),
            tags: [("replicate-to".to_owned(), "az2".to_owned())].into(),
            checksum: None,
            part_sizes: Vec::new(),
            annotations: [("image-format".to_owned(), "raw".to_owned())].into(),
            owner: "access-az1".into(),
            last_modified: None,
            condition: WriteCondition::Always,
            fence: None,
            source: None,
        };
        let wish = |bucket: &BucketRecord, record: &mut ObjectRecord| {
            Ok(wishes::jobs(&self.app, "images", name, bucket, record))
        };
        self.app
            .store
            .put_object(&bucket(), &key(name), new, wish)
            .await
            .unwrap();
        self.open(name).await
    }

    async fn put_bytes(&self, name: &str, bytes: Bytes) -> OpenObject {
        let body = stream::iter([Ok::<_, BodyError>(bytes)]);
        let ingested = self.app.store.ingest(body, IngestOptions::default()).await.unwrap();
        self.put(name, ingested.content).await
    }

    async fn open(&self, name: &str) -> OpenObject {
        self.app.store.open_object(&bucket(), &key(name)).await.unwrap()
    }

    async fn read(&self, name: &str) -> Vec<u8> {
        let chunks: Vec<_> = self.open(name).await.reader().stream(0..u64::MAX).collect().await;
        chunks.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect()
    }

    async fn blobs(&self) -> usize {
        self.app.store.blobs().list(None, 10_000).await.unwrap().len()
    }

    /// Runs the replication of `name` to az2 as the runner would, and gives the progress it came to.
    async fn replicate_as(&self, name: &str, attempt: u32) -> (Result<String, JobError>, Progress) {
        let lease = loop {
            if let Some(lease) = self.app.store.claim_job(1).await.unwrap() {
                break lease;
            }
            let zone = "az2".parse().unwrap();
            let task = crate::job::Task::Replicate {
                bucket: "images".into(),
                key: name.into(),
                zone,
            };
            self.app.store.queue_job(task.job()).await.unwrap();
        };
        let context = JobContext {
            app: Arc::clone(&self.app),
            fence: lease.fence(),
            attempt,
            stop: self.app.stopping.child_token(),
            progress: Mutex::default(),
        };
        let result = run(&context, &bucket(), &key(name), &"az2".parse().unwrap()).await;
        (result, context.snapshot())
    }

    async fn replicate(&self, name: &str) -> Result<String, JobError> {
        self.replicate_as(name, 1).await.0
    }

    async fn status(&self, name: &str) -> Option<&'static str> {
        status(&self.open(name).await.record)
    }
}

fn bucket() -> BucketName {
    "images".parse().unwrap()
}

fn key(name: &str) -> ObjectKey {
    name.parse().unwrap()
}

fn noise(len: usize, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0] | 1
    };
    (0..len).map(next).collect::<Vec<_>>().into()
}

/// az1 with the bucket, az2 without; az1 knows az2.
async fn two_sites() -> (Site, Site) {
    let (az1, az2) = (Site::new("az1").await, Site::new("az2").await);
    az1.knows(&az2, "az2", root_keys("az2")).await;
    let tags = [("project".to_owned(), "x".to_owned())].into();
    az1.app
        .store
        .create_bucket(&bucket(), Some("az1".into()), tags, "access-az1".into())
        .await
        .unwrap();
    (az1, az2)
}

#[tokio::test]
async fn an_image_and_its_derivative_travel_once() {
    let (az1, az2) = two_sites().await;
    let bytes = noise(3 << 20, 1);
    let name = "dir/../a b+ä%.img";
    let raw = az1.put_bytes(name, bytes.clone()).await;
    assert_eq!(az1.status(name).await, Some("PENDING"));

    let (result, progress) = az1.replicate_as(name, 1).await;
    let result = result.unwrap();
    assert!(
        result.contains("sent 1 of 1 blobs (3.00 MiB) to server-az2"),
        "{result}"
    );
    assert_eq!((progress.done, progress.total), (3 << 20, Some(3 << 20)));
    assert_eq!(az2.blobs_received(), 1);
    assert_eq!(az1.status(name).await, Some(COMPLETED));
    assert_eq!(az2.status(name).await, Some(REPLICA));

    let there = az2.open(name).await;
    assert_eq!(
        there.record.replication,
        [("az2".to_owned(), REPLICA.to_owned())].into()
    );
    let mut expected = raw.record.clone();
    (expected.replication, expected.jobs) = (there.record.replication.clone(), Vec::new());
    // Versions are each server's own.
    expected.version = there.record.version;
    assert_eq!(there.record, expected);
    assert_eq!(there.bucket.region.as_deref(), Some("az1"));
    assert_eq!(there.bucket.tags, raw.bucket.tags);
    assert_eq!(there.bucket.owner, "access-az2");
    assert_eq!(az2.read(name).await, bytes);

    let mut builder = az1.app.store.content_builder(Some(&raw)).await.unwrap();
    builder.push_bytes(noise(70_000, 2)).await.unwrap();
    builder
        .push_range(&mut raw.reader(), 0, raw.record.size())
        .await
        .unwrap();
    az1.put("a.qcow2", builder.finish().await.unwrap()).await;
    let result = az1.replicate("a.qcow2").await.unwrap();
    assert!(result.contains("sent 1 of 2 blobs"), "{result}");
    assert_eq!(az2.blobs_received(), 1);
    assert_eq!(az2.read("a.qcow2").await, az1.read("a.qcow2").await);
    assert_eq!(az2.blobs().await, 2);

    let result = az1.replicate("a.qcow2").await.unwrap();
    assert!(result.contains("sent 0 of 2 blobs"), "{result}");
    assert_eq!(az2.blobs_received(), 0);
}

#[tokio::test]
async fn objects_of_every_form_of_layout_arrive() {
    let (az1, az2) = two_sites().await;
    let raw = az1.put_bytes("raw", noise(2 << 20, 1)).await;
    az1.put_bytes("empty", Bytes::new()).await;
    az1.put_bytes("inline", noise(1000, 1)).await;
    az1.put_bytes("zeros", vec![0; 1 << 20].into()).await;
    let mut builder = az1.app.store.content_builder(Some(&raw)).await.unwrap();
    for extent in 0..1500 {
        builder.push_range(&mut raw.reader(), extent * 1000, 500).await.unwrap();
    }
    let paged = az1.put("paged", builder.finish().await.unwrap()).await;
    assert!(matches!(paged.record.layout, Layout::Paged(_)));
    for (name, blobs) in [("empty", 0), ("inline", 0), ("zeros", 0), ("paged", 2), ("raw", 0)] {
        az1.replicate(name).await.unwrap();
        assert_eq!(az2.read(name).await, az1.read(name).await, "{name}");
        assert_eq!(az2.blobs_received(), blobs, "{name}");
    }
}

#[tokio::test]
async fn a_peer_that_is_away_is_waited_for() {
    let (az1, mut az2) = two_sites().await;
    az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    let listening = az2.tasks.pop().unwrap();
    listening.abort();
    let _ = listening.await;
    let error = az1.replicate_as("a.img", 100).await.0.unwrap_err();
    assert!(
        matches!(&error, JobError::Unreachable(text) if text.contains("is the server running")),
        "{error}"
    );
    assert_eq!(az1.status("a.img").await, Some("PENDING"));

    az2.listen(TcpListener::bind(az2.addr).await.unwrap());
    az1.replicate("a.img").await.unwrap();
    assert_eq!(az1.status("a.img").await, Some(COMPLETED));
    assert_eq!(az2.read("a.img").await, az1.read("a.img").await);
}

#[tokio::test]
async fn a_zone_without_a_server_is_waited_for_and_a_lost_object_is_not() {
    let (az1, _az2) = two_sites().await;
    az1.put_bytes("a.img", noise(100, 1)).await;
    registry::remove(&az1.app, "server-az2").await.unwrap();
    let error = az1.replicate("a.img").await.unwrap_err();
    assert!(
        matches!(&error, JobError::Unreachable(text) if text.contains("lithos server add")),
        "{error}"
    );
    az1.app.store.delete_object(&bucket(), &key("a.img")).await.unwrap();
    assert!(az1.replicate("a.img").await.unwrap().contains("gone"));
}

#[tokio::test]
async fn wrong_keys_and_wrong_zones_say_so_and_fail_in_the_end() {
    let (az1, az2) = two_sites().await;
    az1.put_bytes("a.img", noise(100, 1)).await;
    az1.knows(
        &az2,
        "az2",
        RootKeys {
            access_key: "access-az2".into(),
            secret_key: "guess".into(),
        },
    )
    .await;
    let error = az1.replicate("a.img").await.unwrap_err();
    assert!(
        matches!(&error, JobError::Retry(text) if text.contains("secret key")),
        "{error}"
    );
    assert_eq!(az1.status("a.img").await, Some("PENDING"));
    az1.replicate_as("a.img", ATTEMPTS_MAX).await.0.unwrap_err();
    assert_eq!(az1.status("a.img").await, Some(FAILED));

    // A server of zone az3 that az1 takes for one of az2.
    let az3 = Site::new("az3").await;
    az1.knows(&az3, "az2", root_keys("az3")).await;
    let error = az1.replicate("a.img").await.unwrap_err();
    assert!(
        matches!(&error, JobError::Retry(text) if text.contains("zone az2")),
        "{error}"
    );

    az1.knows(&az2, "az2", root_keys("az2")).await;
    az1.replicate("a.img").await.unwrap();
    assert_eq!(az1.status("a.img").await, Some(COMPLETED));
}

#[tokio::test]
async fn a_newer_object_of_the_peer_stays() {
    let (az1, az2) = two_sites().await;
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    az2.app
        .store
        .create_bucket(&bucket(), None, Tags::new(), "access-az2".into())
        .await
        .unwrap();
    while az2.app.store.now() <= raw.record.last_modified {
        tokio::task::yield_now().await;
    }
    az2.put_bytes("a.img", noise(10, 2)).await;
    let result = az1.replicate("a.img").await.unwrap();
    assert!(result.contains("newer"), "{result}");
    assert_eq!(az2.read("a.img").await, noise(10, 2));
}

#[tokio::test]
async fn changed_tags_follow_without_the_bytes() {
    let (az1, az2) = two_sites().await;
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    az1.replicate("a.img").await.unwrap();
    assert_eq!(az2.blobs_received(), 1);
    let store = &az1.app.store;
    let retag = |bucket: &BucketRecord, record: &mut ObjectRecord| {
        record.tags.insert("os".into(), "debian".into());
        Ok(wishes::jobs(&az1.app, "images", "a.img", bucket, record))
    };
    store
        .update_object(&bucket(), &key("a.img"), None, retag)
        .await
        .unwrap();
    // A job that began before the change does not call it done.
    assert_eq!(az1.status_after_sending(&raw.record).await, Some("PENDING"));
    az1.replicate("a.img").await.unwrap();
    assert_eq!(az1.status("a.img").await, Some(COMPLETED));
    assert_eq!(az2.blobs_received(), 0);
    assert_eq!(az2.open("a.img").await.record.tags["os"], "debian");
}

impl Site {
    /// What the status is when a job ends that sent `record`.
    async fn status_after_sending(&self, record: &ObjectRecord) -> Option<&'static str> {
        let lease = self.app.store.claim_job(1).await.unwrap().unwrap();
        let context = JobContext {
            app: Arc::clone(&self.app),
            fence: lease.fence(),
            attempt: 1,
            stop: self.app.stopping.child_token(),
            progress: Mutex::default(),
        };
        let (bucket, key, zone) = (bucket(), key("a.img"), "az2".parse().unwrap());
        let job = Replication {
            context: &context,
            bucket: &bucket,
            key: &key,
            zone: &zone,
        };
        job.note(record, COMPLETED).await.unwrap();
        self.status("a.img").await
    }
}

#[tokio::test]
async fn what_the_peer_loses_between_offer_and_commit_is_sent_again() {
    let (az1, az2) = two_sites().await;
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    az1.replicate("a.img").await.unwrap();
    let client = az2.client(root_keys("az2"));
    let blobs = az1.app.store.blobs_of(&raw).await.unwrap();
    assert_eq!(ask(&client, &blobs).await.unwrap(), (Vec::new(), false));
    az2.app.store.delete_object(&bucket(), &key("a.img")).await.unwrap();
    while az2.blobs().await > 0 {
        tokio::task::yield_now().await;
    }
    // A job asks anew. Without asking, the commit says that the answer is out of date.
    let result = az1.replicate("a.img").await.unwrap();
    assert!(result.contains("sent 1 of 1"), "{result}");
    let offer = ObjectOffer {
        zone: "az2".parse().unwrap(),
        bucket: "images".into(),
        region: None,
        bucket_tags: Tags::new(),
        bucket_owner: String::new(),
        key: "b.img".into(),
        record: Replica::encode(&raw.record),
    };
    az2.app.store.delete_object(&bucket(), &key("a.img")).await.unwrap();
    while az2.blobs().await > 0 {
        tokio::task::yield_now().await;
    }
    let refused = client
        .post_json::<_, Taken>(&format!("{PREFIX}/objects"), &offer)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(BLOBS_MISSING));
}

#[tokio::test]
async fn nothing_comes_into_the_bucket_of_another_user() {
    let (az1, az2) = two_sites().await;
    let keys = user::KeyPair::new(None, None).unwrap();
    let bob = user::create(&az2.app, "bob", &keys).await.unwrap();
    az2.app
        .store
        .create_bucket(&bucket(), None, Tags::new(), bob.id.clone())
        .await
        .unwrap();
    let raw = az1.put_bytes("a.img", noise(1000, 1)).await;
    let mut offer = ObjectOffer {
        zone: "az2".parse().unwrap(),
        bucket: "images".into(),
        region: None,
        bucket_tags: Tags::new(),
        bucket_owner: "access-az1".into(),
        key: "a.img".into(),
        record: Replica::encode(&raw.record),
    };
    let client = az2.client(root_keys("az2"));
    let send = async |offer: &ObjectOffer| client.post_json::<_, Taken>(&format!("{PREFIX}/objects"), offer).await;
    assert_eq!(send(&offer).await.unwrap_err().code(), Some("AccessDenied"));
    // The same user may be known on both sides.
    offer.bucket_owner = bob.id;
    send(&offer).await.unwrap();
}

#[tokio::test]
async fn requests_that_break_the_rules_are_refused_and_leave_nothing() {
    let (az1, az2) = two_sites().await;
    let client = az2.client(root_keys("az2"));
    let raw = az1.put_bytes("a.img", noise(100_000, 1)).await;
    let id = az1.app.store.blobs_of(&raw).await.unwrap()[0];
    let path = format!("{PREFIX}/blobs/{id}");
    let (len, body) = az1.app.store.send_blob(id).await.unwrap();
    let chunks: Vec<Bytes> = body.map(|chunk| chunk.unwrap()).collect().await;
    let good = chunks.concat();
    assert_eq!(good.len() as u64, len);
    let put = async |path: &str, len: u64, body: &[u8]| {
        let body = Bytes::copy_from_slice(body);
        client
            .put_stream(path, len, stream::iter([Ok::<_, BodyError>(body)]))
            .await
    };
    let mut wrong = good.clone();
    wrong[5] ^= 1;
    assert_eq!(
        put(&path, len, &wrong).await.unwrap_err().code(),
        Some("InvalidArgument")
    );
    assert_eq!(
        put(&format!("{PREFIX}/blobs/{id}0"), len, &good)
            .await
            .unwrap_err()
            .code(),
        Some("InvalidArgument")
    );
    assert_eq!(
        put(&format!("{PREFIX}/blobs/x"), len, &good).await.unwrap_err().code(),
        Some("InvalidArgument")
    );
    assert_eq!(put(&path, 3, b"abc").await.unwrap_err().code(), Some("IncompleteBody"));
    let oversize = lithos_storage::blob::BLOB_LEN_MAX + 9;
    assert!(put(&path, oversize, &good).await.is_err());
    // Breaks off: the length that was declared does not come.
    let broken = stream::iter([
        Ok(Bytes::from(good[..1000].to_vec())),
        Err::<_, BodyError>("gone".into()),
    ]);
    assert!(matches!(
        client.put_stream(&path, len, broken).await,
        Err(ClientError::Unreachable { .. })
    ));
    while ask(&client, &[id]).await.unwrap() != (vec![id], false) {
        tokio::task::yield_now().await;
    }
    az2.app.store.sweep().await.unwrap();
    assert_eq!(az2.blobs().await, 0);

    put(&path, len, &good).await.unwrap();
    assert_eq!(az2.blobs().await, 1);
}

#[tokio::test]
async fn requests_over_a_bound_or_without_sense_are_refused() {
    let az2 = Site::new("az2").await;
    let client = az2.client(root_keys("az2"));
    let id = format!("{}-{:016x}", "0".repeat(32), 1);
    let too_many = Offer {
        blobs: vec![id; OFFER_BLOBS_MAX + 1],
    };
    let missing = format!("{PREFIX}/blobs/missing");
    let refused = client.post_json::<_, Missing>(&missing, &too_many).await.unwrap_err();
    assert_eq!(refused.code(), Some("InvalidArgument"));
    let long = serde_json::json!({ "blobs": ["x".repeat(2 << 20)] });
    let refused = client.post_json::<_, Missing>(&missing, &long).await.unwrap_err();
    assert_eq!(refused.code(), Some("EntityTooLarge"));
    for rubbish in [
        serde_json::json!({}),
        serde_json::json!({"zone": "az2", "bucket": "B", "bucket_tags": {}, "key": "k", "record": "gA=="}),
    ] {
        let refused = client
            .post_json::<_, Taken>(&format!("{PREFIX}/objects"), &rubbish)
            .await
            .unwrap_err();
        assert_eq!(refused.status(), Some(StatusCode::BAD_REQUEST), "{refused}");
    }

    let stranger = az2.client(RootKeys {
        access_key: "nobody".into(),
        secret_key: "guess".into(),
    });
    let refused = stranger
        .post_json::<_, Missing>(&missing, &Offer { blobs: Vec::new() })
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn two_jobs_share_the_blobs_of_one_image() {
    let (az1, az2) = two_sites().await;
    let raw = az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    let copy = az1.app.store.content_builder(Some(&raw)).await.unwrap().share(&raw);
    az1.put("b.img", copy).await;
    let (one, other) = tokio::join!(az1.replicate("a.img"), az1.replicate("b.img"));
    let results = format!("{} and {}", one.unwrap(), other.unwrap());
    assert!(
        results.contains("sent 1 of 1") && results.contains("sent 0 of 1"),
        "{results}"
    );
    assert_eq!(az2.blobs().await, 1);
    assert_eq!(az2.read("b.img").await, az1.read("a.img").await);
}

#[tokio::test]
async fn a_connection_that_breaks_is_not_yet_a_server_that_is_away() {
    let (az1, az2) = two_sites().await;
    az1.put_bytes("a.img", noise(1 << 20, 1)).await;
    az2.hang_ups.store(BREAKS_MAX as u64, Ordering::Relaxed);
    let error = az1.replicate("a.img").await.unwrap_err();
    assert!(matches!(error, JobError::Unreachable(_)), "{error}");
    az2.hang_ups.store(1, Ordering::Relaxed);
    let result = az1.replicate("a.img").await.unwrap();
    assert!(result.contains("sent 1 of 1"), "{result}");
    assert_eq!(az2.blobs_received(), BREAKS_MAX + 2);
}

#[tokio::test]
async fn peers_are_kept_without_their_secret_in_the_clear() {
    let az1 = Site::new("az1").await;
    let new = |name: &str, transfer: &str, zones: &[&str]| NewPeer {
        name: name.into(),
        management: "http://127.0.0.1:9001/".into(),
        transfer: transfer.into(),
        zones: zones.iter().map(|zone| zone.parse().unwrap()).collect(),
        access_key: "access".into(),
        secret_key: "hush-hush".into(),
    };
    let added = registry::add(&az1.app, new("b", "http://127.0.0.1:9000", &["az3", "az2", "az2"]))
        .await
        .unwrap();
    assert_eq!((&added.management[..], added.zones.len()), ("http://127.0.0.1:9001", 2));
    let kept = az1.app.store.list_peers().await.unwrap();
    assert!(!kept[0].sealed_secret.windows(4).any(|window| window == b"hush"));
    registry::transfer_client(&az1.app, &kept[0]).unwrap();
    assert_eq!(registry::list(&az1.app).await.unwrap(), [added]);
    for bad in [
        new("..", "http://h", &["z"]),
        new("b", "ftp://h", &["z"]),
        new("b", "http://h/p", &["z"]),
        new("b", "http://h", &[]),
    ] {
        let error = registry::add(&az1.app, bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!(
        registry::serving(&az1.app, &"az3".parse().unwrap())
            .await
            .unwrap()
            .len(),
        1
    );
    registry::remove(&az1.app, "b").await.unwrap();
    assert_eq!(
        registry::remove(&az1.app, "b").await.unwrap_err().kind(),
        ErrorKind::NoSuchRecord
    );
}
