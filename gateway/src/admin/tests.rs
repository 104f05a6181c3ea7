//! The management address as clients see it: a real store, a real socket.

mod api;
mod description;
mod events;
mod quota;

use std::sync::Arc;

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use lithos_storage::{
    JobId,
    job::{Ending, Lease, NewJob},
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    app::{App, SharedApp},
    client::{Client, parse_server},
    config::{RootKeys, Settings},
    server::RequestId,
};

/// A server that serves nothing but the management address.
pub(crate) struct Server {
    pub(crate) app: SharedApp,
    pub(crate) address: String,
    accepting: JoinHandle<()>,
    /// Removed with it.
    _data: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let settings = Settings {
            data: Some(data.path().join("data")),
            zone: vec!["az1".to_owned()],
            ..Settings::default()
        };
        let app = App::open(settings.check(Some(keys("hush"))).unwrap()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(accept(listener, super::service(&app)));
        Self {
            app,
            address,
            accepting,
            _data: data,
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(keys("hush"))
    }

    pub(crate) fn client_with(&self, keys: RootKeys) -> Client {
        Client::new(parse_server(&self.address).unwrap(), keys).unwrap()
    }

    /// Queues a job that only tests know.
    pub(crate) async fn queue(&self, subject: &str) -> JobId {
        let job = NewJob {
            kind: "test".to_owned(),
            subject: subject.to_owned(),
            payload: b"hush".to_vec(),
        };
        self.app.store.queue_job(job).await.unwrap()
    }

    /// Claims the job that is due first.
    pub(crate) async fn claim(&self) -> Lease {
        self.app.store.claim_job(1).await.unwrap().unwrap()
    }

    pub(crate) async fn end(&self, lease: &Lease, ending: Ending) {
        self.app.store.end_job(lease.fence(), ending).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.stopping.cancel();
        self.accepting.abort();
    }
}

pub(crate) fn keys(secret: &str) -> RootKeys {
    RootKeys {
        access_key: "ROOT".to_owned(),
        secret_key: secret.into(),
    }
}

async fn accept(listener: TcpListener, service: crate::server::Service) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = Arc::clone(&service);
        let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let mut request = request.map(s3s::Body::from);
            request.extensions_mut().insert(RequestId("0123".to_owned()));
            let response = service(request);
            async { Ok::<_, std::convert::Infallible>(response.await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
