//! The streams of jobs.

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use lithos_storage::job::{Ending, Progress};

use super::Server;
use crate::{
    admin::job::{JobStateView, JobView},
    client::{Client, Error},
};

/// A stream of events, read one by one. Comments are left out.
struct Events {
    chunks: BoxStream<'static, Result<Bytes, Error>>,
    text: String,
}

impl Events {
    async fn open(client: &Client, path: &str) -> Self {
        Self {
            chunks: client.get_stream(path).await.unwrap(),
            text: String::new(),
        }
    }

    /// The name and the data of the next event; nothing at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::to_owned)
                };
                let (name, data) = (field("event: "), field("data: "));
                self.text = rest.to_owned();
                if let (Some(name), Some(data)) = (name, data) {
                    return Some((name, data));
                }
                continue;
            }
            let chunk = self.chunks.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn job(&mut self) -> JobView {
        let (name, data) = self.next().await.unwrap();
        assert_eq!(name, "job", "{data}");
        serde_json::from_str(&data).unwrap()
    }

    async fn name(&mut self) -> String {
        self.next().await.unwrap().0
    }
}

#[tokio::test]
async fn a_stream_tells_what_is_unfinished_and_then_each_change() {
    let server = Server::start().await;
    server.queue("finished").await;
    let lease = server.claim().await;
    server.end(&lease, Ending::Done(String::new())).await;
    let id = server.queue("unfinished").await.to_string();

    let mut events = Events::open(&server.client(), "/api/v1/jobs/events").await;
    let job = events.job().await;
    assert_eq!((job.id, job.state), (id.clone(), JobStateView::Queued));
    assert_eq!(events.name().await, "synced");

    let lease = server.claim().await;
    assert_eq!(events.job().await.state, JobStateView::Running);
    let progress = Progress {
        stage: "writing".to_owned(),
        done: 3,
        total: Some(4),
    };
    server
        .app
        .store
        .report_progress(lease.fence(), &progress)
        .await
        .unwrap();
    let job = events.job().await;
    assert_eq!(
        (job.stage.as_str(), job.done, job.total, job.percent),
        ("writing", 3, Some(4), Some(75))
    );
    server.end(&lease, Ending::Failed("broken".to_owned())).await;
    let job = events.job().await;
    assert_eq!(
        (job.id, job.state, job.error.as_deref()),
        (id, JobStateView::Failed, Some("broken"))
    );

    server.app.stopping.cancel();
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_stream_of_one_job_ends_with_it() {
    let server = Server::start().await;
    let id = server.queue("one").await;
    let lease = server.claim().await;
    let mut events = Events::open(&server.client(), &format!("/api/v1/jobs/{id}/events")).await;
    assert_eq!(events.job().await.state, JobStateView::Running);
    server.queue("other").await;
    server.claim().await;
    server.end(&lease, Ending::Done("made it".to_owned())).await;
    let job = events.job().await;
    assert_eq!(
        (job.state, job.result.as_deref()),
        (JobStateView::Done, Some("made it"))
    );
    assert_eq!(events.next().await, None);

    let mut events = Events::open(&server.client(), &format!("/api/v1/jobs/{id}/events")).await;
    assert_eq!(events.job().await.state, JobStateView::Done);
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn who_falls_behind_is_told_everything_anew() {
    let server = Server::start().await;
    let id = server.queue("busy").await.to_string();
    let lease = server.claim().await;
    let mut events = Events::open(&server.client(), "/api/v1/jobs/events").await;
    assert_eq!(events.job().await.id, id);
    assert_eq!(events.name().await, "synced");

    // Large changes, so that those nobody reads fill what lies between the two sides, and then the store's channel.
    let progress = Progress {
        stage: "s".repeat(32 << 10),
        done: 0,
        total: None,
    };
    for done in 0..2500 {
        let progress = Progress {
            done,
            ..progress.clone()
        };
        server
            .app
            .store
            .report_progress(lease.fence(), &progress)
            .await
            .unwrap();
    }
    server.end(&lease, Ending::Done(String::new())).await;
    let mut last = 0;
    loop {
        let (name, data) = events.next().await.unwrap();
        if name == "resync" {
            break;
        }
        let job: JobView = serde_json::from_str(&data).unwrap();
        assert!(job.done >= last, "the job went backwards");
        last = job.done;
    }
    // The job has finished meanwhile: it is no longer among the unfinished.
    assert_eq!(events.name().await, "synced");
}
