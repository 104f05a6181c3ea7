//! Waiting for jobs, over the server's stream of events.
//!
//! A stream begins with all unfinished jobs and a `synced`; what was unfinished before and is not among them has finished
//! meanwhile, and is asked for. A change that brings about another job commits it before it ends itself, but the new job is
//! told only once it is at work: so before `watch` ends for want of jobs, it looks again with a new stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use futures::StreamExt;
use http::StatusCode;
use tokio::time::Instant;

use super::{
    display::Display,
    path,
    sse::{Event, Parser},
};
use crate::{
    admin::job::{JobStateView, JobView},
    client::{Client, Error},
};

/// How long a server may be away before it is given up.
const AWAY_MAX: Duration = Duration::from_mins(2);
/// How long to wait before the next look at a server that is away.
const RECONNECT: Duration = Duration::from_secs(1);

/// Which jobs to wait for.
#[derive(Debug, Clone)]
pub(in crate::cli) enum Watched {
    /// All, and those that they bring about.
    All,
    /// Those with these ids.
    Some(Vec<String>),
}

/// Shows the progress of jobs until they have finished.
pub(in crate::cli) async fn watch(client: &Client, watched: Watched) -> anyhow::Result<ExitCode> {
    let mut watch = Watch::new(client, watched).await?;
    let mut display = Display::on_stderr();
    let outcome = watch.run(&mut display).await;
    display.end();
    outcome?;
    if watch.jobs.is_empty() {
        eprintln!("no unfinished jobs");
    }
    let done = watch.jobs.values().all(|job| job.state == JobStateView::Done);
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Watch<'a> {
    client: &'a Client,
    watched: Watched,
    /// The jobs that are or were waited for.
    jobs: BTreeMap<String, JobView>,
    /// Those that were told since the last beginning of a stream.
    told: BTreeSet<String>,
}

/// Whether to go on with a stream.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Yes.
    Listen,
    /// No: look again with a new one, at once.
    LookAgain,
    /// No: there is nothing left to wait for.
    End,
}

impl<'a> Watch<'a> {
    async fn new(client: &'a Client, watched: Watched) -> anyhow::Result<Self> {
        let mut jobs = BTreeMap::new();
        if let Watched::Some(ids) = &watched {
            for id in ids {
                let job: JobView = client.get_json(&path(id, "")).await?;
                jobs.insert(job.id.clone(), job);
            }
        }
        Ok(Self {
            client,
            watched,
            jobs,
            told: BTreeSet::new(),
        })
    }

    async fn run(&mut self, display: &mut Display) -> anyhow::Result<()> {
        for job in self.jobs.values() {
            display.show(job);
        }
        if matches!(self.watched, Watched::Some(_)) && self.finished() {
            return Ok(());
        }
        let (mut heard, mut away) = (Instant::now(), false);
        loop {
            let before = heard;
            let left = self.listen(display, &mut heard).await;
            away &= heard == before;
            match left {
                Ok(Next::End) => return Ok(()),
                Ok(Next::LookAgain) => continue,
                // The server ended the stream: it is about to stop.
                Ok(Next::Listen) => {}
                Err(Stopped::Other(error)) => return Err(error),
                Err(Stopped::Client(error @ Error::Unreachable { .. })) => {
                    // Who has never been reached is rather given wrong than away.
                    if heard.elapsed() > AWAY_MAX || self.jobs.is_empty() {
                        return Err(error.into());
                    }
                    if !away {
                        display.say(&format!("{error}; trying again"));
                    }
                }
                Err(Stopped::Client(error)) => return Err(error.into()),
            }
            away = true;
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Follows one stream to its end.
    async fn listen(&mut self, display: &mut Display, heard: &mut Instant) -> Result<Next, Stopped> {
        self.told.clear();
        let mut parser = Parser::default();
        let mut stream = self.client.get_stream("/api/v1/jobs/events").await?;
        while let Some(chunk) = stream.next().await {
            *heard = Instant::now();
            for event in parser.push(&chunk?)? {
                match self.take(&event, display).await? {
                    Next::Listen => {}
                    next => return Ok(next),
                }
            }
        }
        Ok(Next::Listen)
    }

    async fn take(&mut self, event: &Event, display: &mut Display) -> Result<Next, Stopped> {
        match event.name.as_str() {
            "job" => {
                let job: JobView = serde_json::from_str(&event.data).map_err(anyhow::Error::from)?;
                self.told.insert(job.id.clone());
                if matches!(self.watched, Watched::All) || self.jobs.contains_key(&job.id) {
                    display.show(&job);
                    self.jobs.insert(job.id.clone(), job);
                    return Ok(self.after_change());
                }
            }
            "synced" => return self.synced(display).await,
            "resync" => self.told.clear(),
            // A later release may have more to tell.
            _ => {}
        }
        Ok(Next::Listen)
    }

    fn after_change(&self) -> Next {
        match self.watched {
            _ if !self.finished() => Next::Listen,
            Watched::All => Next::LookAgain,
            Watched::Some(_) => Next::End,
        }
    }

    /// Asks for the jobs that have finished while nobody listened.
    async fn synced(&mut self, display: &mut Display) -> Result<Next, Stopped> {
        let missed: Vec<_> = self
            .jobs
            .values()
            .filter(|job| !job.state.is_finished() && !self.told.contains(&job.id))
            .map(|job| job.id.clone())
            .collect();
        for id in missed {
            match self.client.get_json::<JobView>(&path(&id, "")).await {
                Ok(job) => {
                    display.show(&job);
                    self.jobs.insert(id, job);
                }
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
                    return Err(anyhow::anyhow!("the server no longer knows job {id}").into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(if self.finished() { Next::End } else { Next::Listen })
    }

    fn finished(&self) -> bool {
        self.jobs.values().all(|job| job.state.is_finished())
    }
}

/// Why a stream was left.
enum Stopped {
    Client(Error),
    Other(anyhow::Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use lithos_storage::job::Ending;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    use super::*;
    use crate::{
        admin::tests::{Server, keys},
        client::parse_server,
    };

    /// Stands between client and server, and tells when a stream is synced.
    struct Proxy {
        client: Client,
        synced: mpsc::UnboundedReceiver<()>,
    }

    impl Proxy {
        /// Breaks off the first `cuts` streams when they are synced.
        async fn start(server: &Server, cuts: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let target = server.address.strip_prefix("http://").unwrap().to_owned();
            let (tell, synced) = mpsc::unbounded_channel();
            let cuts = Arc::new(AtomicUsize::new(cuts));
            tokio::spawn(async move {
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    let far = TcpStream::connect(&target).await.unwrap();
                    tokio::spawn(pass_on(near, far, tell.clone(), Arc::clone(&cuts)));
                }
            });
            let client = Client::new(parse_server(&address).unwrap(), keys("hush")).unwrap();
            Self { client, synced }
        }
    }

    /// Passes one connection on, until it ends, or is cut off since it was synced.
    async fn pass_on(
        mut near: TcpStream,
        mut far: TcpStream,
        tell: mpsc::UnboundedSender<()>,
        cuts: Arc<AtomicUsize>,
    ) -> std::io::Result<()> {
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                len = near.read(&mut up) => match len? {
                    0 => return Ok(()),
                    len => far.write_all(&up[..len]).await?,
                },
                len = far.read(&mut down) => {
                    let down = &down[..len?];
                    let synced = String::from_utf8_lossy(down).contains("event: synced");
                    let cut = synced && cuts.fetch_update(SeqCst, SeqCst, |cuts| cuts.checked_sub(1)).is_ok();
                    if !cut {
                        near.write_all(down).await?;
                    }
                    if synced {
                        // The test may have heard enough.
                        let _ = tell.send(());
                    }
                    if cut || down.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn outcome(watched: Watched, proxy: &mut Proxy, then: impl AsyncFnOnce()) -> ExitCode {
        let Proxy { client, synced } = proxy;
        let (code, ()) = tokio::join!(watch(client, watched), async {
            synced.recv().await.unwrap();
            then().await;
        });
        code.unwrap()
    }

    // `ExitCode` cannot be compared.
    fn shown(code: ExitCode) -> String {
        format!("{code:?}")
    }

    #[tokio::test]
    async fn watching_all_ends_when_what_jobs_brought_about_has_ended() {
        let server = Server::start().await;
        for (ending, expected) in [
            (Ending::Done(String::new()), ExitCode::SUCCESS),
            (Ending::Failed("broken".into()), ExitCode::FAILURE),
        ] {
            server.queue("first").await;
            let mut proxy = Proxy::start(&server, 0).await;
            let code = outcome(Watched::All, &mut proxy, async || {
                let lease = server.claim().await;
                server.queue("second").await;
                server.end(&lease, Ending::Done("made it".into())).await;
                let lease = server.claim().await;
                server.end(&lease, ending).await;
            });
            assert_eq!(shown(code.await), shown(expected));
        }
    }

    #[tokio::test]
    async fn watching_one_survives_broken_streams() {
        let server = Server::start().await;
        server.queue("one").await;
        let lease = server.claim().await;
        server.queue("other").await;
        let id = lease.job.id.to_string();
        let mut proxy = Proxy::start(&server, 1).await;
        let code = outcome(Watched::Some(vec![id]), &mut proxy, async || {
            server.end(&lease, Ending::Done("made it".into())).await;
        });
        assert_eq!(shown(code.await), shown(ExitCode::SUCCESS));
    }

    #[tokio::test]
    async fn watching_says_at_once_what_cannot_be_watched() {
        let server = Server::start().await;
        let watch = |client: Client, watched| async move { watch(&client, watched).await };
        let code = watch(server.client(), Watched::All).await.unwrap();
        assert_eq!(shown(code), shown(ExitCode::SUCCESS));
        let error = watch(server.client(), Watched::Some(vec!["0".repeat(32)]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
        let error = watch(server.client_with(keys("guess")), Watched::All)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("check the access key"), "{error}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = Client::new(parse_server(&format!("http://{closed}")).unwrap(), keys("hush")).unwrap();
        let error = watch(nobody, Watched::All).await.unwrap_err();
        assert!(error.to_string().contains("is the server running"), "{error}");
    }
}
