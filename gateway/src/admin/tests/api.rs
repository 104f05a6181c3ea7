//! Requests and answers.

use http::StatusCode;
use lithos_storage::{
    Tags,
    job::{Ending, JobState},
};
use serde_json::{Value, json};

use super::{Server, keys};
use crate::{
    admin::{
        import::Accepted,
        job::{JobPage, JobStateView, JobView},
        request::BODY_LEN_MAX,
    },
    client::{Client, Error},
    job::Task,
};

fn status<T: std::fmt::Debug>(answer: Result<T, Error>) -> u16 {
    answer.unwrap_err().status().unwrap().as_u16()
}

async fn show(client: &Client, id: &str) -> JobView {
    client.get_json(&format!("/api/v1/jobs/{id}")).await.unwrap()
}

/// Asks without a signature.
async fn get(server: &Server, path: &str) -> reqwest::Result<reqwest::Response> {
    let client = crate::outgoing::client().build()?;
    client.get(format!("{}{path}", server.address)).send().await
}

#[tokio::test]
async fn only_the_holder_of_the_root_keys_is_served() {
    let server = Server::start().await;
    let _: JobPage = server.client().get_json("/api/v1/jobs").await.unwrap();

    let refused = server
        .client_with(keys("guess"))
        .get_json::<Value>("/api/v1/jobs")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::FORBIDDEN));
    assert_eq!(refused.code(), Some("SignatureDoesNotMatch"));
    assert!(
        refused
            .to_string()
            .contains("the secret key is not the one of this access key"),
        "{refused}"
    );

    let mut stranger = keys("hush");
    stranger.access_key = "STRANGER".to_owned();
    let refused = server
        .client_with(stranger)
        .get_json::<Value>("/api/v1/jobs")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::FORBIDDEN));
    assert_eq!(refused.code(), Some("InvalidAccessKeyId"));

    // Nor is anybody told what exists.
    for path in ["/api/v1/jobs", "/api/v1/jobs/events", "/api/v1/nothing", "/api/v2/jobs"] {
        let answer = get(&server, path).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(body["error"]["code"], "AccessDenied");
        assert_eq!(body["error"]["request_id"], "0123");
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains("sign it with the root keys"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn health_needs_no_signature() {
    let server = Server::start().await;
    let get = |path: &'static str| get(&server, path);
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    assert_eq!(get("/readyz").await.unwrap().status(), StatusCode::OK);
    server.app.stopping.cancel();
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    let answer = get("/readyz").await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().await.unwrap().contains("stopping"));
}

#[tokio::test]
async fn s3_clients_are_told_where_s3_is() {
    let server = Server::start().await;
    let refused = server.client().get_json::<Value>("/bucket/key").await.unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::BAD_REQUEST));
    assert!(
        refused.to_string().contains("S3 is served at http://127.0.0.1:9000"),
        "{refused}"
    );

    let endpoints = r#"{"transfer":"http://127.0.0.1:7","management":"http://127.0.0.1:8"}"#;
    server
        .app
        .endpoints
        .set(serde_json::from_str(endpoints).unwrap())
        .unwrap();
    let answer = get(&server, "/nothing").await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert!(
        answer
            .text()
            .await
            .unwrap()
            .contains("S3 is served at http://127.0.0.1:7")
    );

    let view: Value = server.client().get_json("/api/v1/server").await.unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        view,
        json!({
            "version": version, "zones": ["az1"],
            "transfer": "http://127.0.0.1:7", "management": "http://127.0.0.1:8",
        })
    );
}

#[tokio::test]
async fn wrong_paths_methods_and_bodies_have_their_own_errors() {
    let server = Server::start().await;
    let client = server.client();
    let id = "0".repeat(32);
    assert_eq!(status(client.get_json::<Value>("/api/v1/nothing").await), 404);
    assert_eq!(
        status(client.post_json::<_, Value>("/api/v1/jobs", &json!({})).await),
        405
    );
    assert_eq!(
        status(client.get_json::<Value>(&format!("/api/v1/jobs/{id}")).await),
        404
    );
    assert_eq!(
        status(client.get_json::<Value>(&format!("/api/v1/jobs/{id}/events")).await),
        404
    );
    assert_eq!(
        status(
            client
                .post_json::<_, Value>(&format!("/api/v1/jobs/{id}/cancel"), &json!({}))
                .await
        ),
        404
    );
    assert_eq!(status(client.get_json::<Value>("/api/v1/jobs/7").await), 400);
    assert_eq!(status(client.get_json::<Value>("/api/v1/jobs/7/events").await), 400);
    for query in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "state=gone",
        "state=",
        "after=1",
        "sate=done",
    ] {
        assert_eq!(
            status(client.get_json::<Value>(&format!("/api/v1/jobs?{query}")).await),
            400,
            "{query}"
        );
    }
    let fits = vec![b' '; BODY_LEN_MAX];
    assert_eq!(
        status(client.post_bytes::<Value>("/api/v1/imports", "x/y", fits.into()).await),
        400
    );
    let long = vec![b' '; BODY_LEN_MAX + 1];
    let refused = client
        .post_bytes::<Value>("/api/v1/imports", "x/y", long.into())
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::PAYLOAD_TOO_LARGE));
    assert_eq!(refused.code(), Some("EntityTooLarge"));
    assert_eq!(status(client.delete("/api/v1/servers/nobody").await), 404);
}

#[tokio::test]
async fn jobs_are_listed_from_the_newest_in_pages_and_by_state() {
    let server = Server::start().await;
    let client = server.client();
    let mut ids = Vec::new();
    for i in 0..7 {
        ids.push(server.queue(&format!("{i}")).await.to_string());
    }
    // Ids of one millisecond sort by chance, not by time.
    ids.sort_by(|a, b| b.cmp(a));
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page: JobPage = client.get_json(&format!("/api/v1/jobs?limit=3{after}")).await.unwrap();
        assert!(page.jobs.len() <= 3);
        found.extend(page.jobs.into_iter().map(|job| job.id));
        let Some(next) = page.next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(found, ids);

    let (done, failed) = (server.claim().await, server.claim().await);
    server.end(&done, Ending::Done("made".to_owned())).await;
    server.end(&failed, Ending::Failed("broken".to_owned())).await;
    let _running = server.claim().await;
    for (states, count) in [
        ("done", 1),
        ("failed", 1),
        ("done,failed", 2),
        ("queued", 4),
        ("queued,running", 5),
        ("cancelled", 0),
    ] {
        let page: JobPage = client.get_json(&format!("/api/v1/jobs?state={states}")).await.unwrap();
        assert_eq!(page.jobs.len(), count, "{states}");
        assert_eq!(page.next, None);
    }
    let page: JobPage = client.get_json("/api/v1/jobs?state=queued&limit=2").await.unwrap();
    assert_eq!(page.jobs.len(), 2);
    assert!(page.next.is_some());
}

#[tokio::test]
async fn jobs_show_results_and_errors_but_not_their_payload() {
    let server = Server::start().await;
    let client = server.client();
    let id = server.queue("b/k").await.to_string();
    let job = show(&client, &id).await;
    assert_eq!((job.state, job.attempts, job.percent), (JobStateView::Queued, 0, None));
    assert_eq!(job.next_attempt.as_ref(), Some(&job.created));

    let lease = server.claim().await;
    assert_eq!(show(&client, &id).await.next_attempt, None);
    let retry = Ending::Retry {
        message: "az2 is away".to_owned(),
        after_millis: 0,
    };
    server.end(&lease, retry).await;
    let job = show(&client, &id).await;
    assert_eq!(
        (job.state, job.attempts, job.error.as_deref()),
        (JobStateView::Queued, 1, Some("az2 is away"))
    );

    let lease = server.claim().await;
    server.end(&lease, Ending::Done("made it".to_owned())).await;
    let value: Value = client.get_json(&format!("/api/v1/jobs/{id}")).await.unwrap();
    assert_eq!(value["result"], "made it");
    assert_eq!(value["error"], Value::Null);
    assert!(
        !value.to_string().contains("hush") && value.get("payload").is_none(),
        "{value}"
    );
}

#[tokio::test]
async fn jobs_are_cancelled_and_retried_only_where_that_makes_sense() {
    let server = Server::start().await;
    let client = server.client();
    let id = server.queue("b/k").await;
    let act = |what| {
        let (client, path) = (client.clone(), format!("/api/v1/jobs/{id}/{what}"));
        async move { client.post_json::<_, JobView>(&path, &json!({})).await }
    };
    assert_eq!(status(act("retry").await), 409);
    assert_eq!(act("cancel").await.unwrap().state, JobStateView::Cancelled);
    assert_eq!(status(act("cancel").await), 409);
    assert_eq!(act("retry").await.unwrap().state, JobStateView::Queued);

    let lease = server.claim().await;
    assert_eq!(act("cancel").await.unwrap().state, JobStateView::Cancelled);
    assert!(
        server
            .app
            .store
            .end_job(lease.fence(), Ending::Done(String::new()))
            .await
            .is_err()
    );
    assert_eq!(act("retry").await.unwrap().state, JobStateView::Queued);
    let lease = server.claim().await;
    server.end(&lease, Ending::Done(String::new())).await;
    assert_eq!(status(act("retry").await), 409);
    assert_eq!(status(act("cancel").await), 409);
}

#[tokio::test]
async fn imports_become_jobs() {
    let server = Server::start().await;
    let store = &server.app.store;
    store
        .create_bucket(&"images".parse().unwrap(), None, Tags::new(), "ROOT".to_owned())
        .await
        .unwrap();
    let request = json!({
        "url": "https://user:hush@example.org/a.img?token=hush", "bucket": "images", "key": "a.img",
        "checksum": format!("sha256:{}", "0".repeat(64)), "content_type": "application/x-raw-disk-image",
        "tags": { "convert-to": "qcow2" }, "metadata": { "os": "debian" },
    });
    let accepted: Accepted = server.client().post_json("/api/v1/imports", &request).await.unwrap();
    let job = store.job(accepted.job.parse().unwrap()).await.unwrap();
    assert_eq!(job.state, JobState::Queued);
    let Ok(Task::Import(task)) = Task::of(&job) else {
        panic!("{job:?}")
    };
    assert_eq!(task.owner, "ROOT");
    assert_eq!(task.url, "https://user:hush@example.org/a.img?token=hush");
    assert_eq!(
        (task.tags["convert-to"].as_str(), task.metadata["os"].as_str()),
        ("qcow2", "debian")
    );
    let shown: Value = server
        .client()
        .get_json(&format!("/api/v1/jobs/{}", accepted.job))
        .await
        .unwrap();
    assert!(!shown.to_string().contains("hush"), "{shown}");
}

#[tokio::test]
async fn imports_that_cannot_succeed_are_refused_at_once() {
    let server = Server::start().await;
    let store = &server.app.store;
    store
        .create_bucket(&"images".parse().unwrap(), None, Tags::new(), "ROOT".to_owned())
        .await
        .unwrap();
    let good = json!({ "url": "https://example.org/a.img", "bucket": "images", "key": "a.img" });
    for (field, value, expected) in [
        ("url", json!("ftp://example.org/a"), 400),
        ("url", json!("a.img"), 400),
        ("url", json!(7), 400),
        ("bucket", json!("Images"), 400),
        ("bucket", json!("absent"), 404),
        ("key", json!(""), 400),
        ("key", json!("k".repeat(1025)), 400),
        ("checksum", json!("sha256:12"), 400),
        ("checksum", json!("crc:12345678"), 400),
        ("content_type", json!("a\nb"), 400),
        ("tags", json!({ "convert-to": "floppy" }), 400),
        ("metadata", json!({ "Os": "x" }), 400),
        ("checksums", json!("x"), 400),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let refused = server.client().post_json::<_, Accepted>("/api/v1/imports", &bad).await;
        assert_eq!(status(refused), expected, "{bad}");
    }
    assert!(store.list_jobs(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn peers_are_added_listed_and_removed_without_their_secret() {
    let server = Server::start().await;
    let client = server.client();
    let peer = json!({
        "name": "az2", "management": "http://127.0.0.1:2", "transfer": "http://127.0.0.1:1", "zones": ["az2"],
        "access_key": "PEER", "secret_key": "do not tell",
    });
    let added: Value = client.post_json("/api/v1/servers", &peer).await.unwrap();
    let listed: Value = client.get_json("/api/v1/servers").await.unwrap();
    assert_eq!(listed, json!([added]));
    assert_eq!(listed[0]["zones"], json!(["az2"]));
    assert!(!listed.to_string().contains("tell"), "{listed}");
    client.delete("/api/v1/servers/az2").await.unwrap();
    assert_eq!(client.get_json::<Value>("/api/v1/servers").await.unwrap(), json!([]));
    assert_eq!(status(client.delete("/api/v1/servers/az2").await), 404);

    for (field, value) in [
        ("transfer", json!("127.0.0.1:1")),
        ("zones", json!(["a b"])),
        ("secret", json!("x")),
    ] {
        let mut bad = peer.clone();
        bad[field] = value;
        assert_eq!(
            status(client.post_json::<_, Value>("/api/v1/servers", &bad).await),
            400,
            "{bad}"
        );
    }
}
