//! What the server counts, for Prometheus and its like.
//!
//! `GET /metrics` on the management address answers in the `OpenMetrics` text format, unsigned as `/healthz` is: whoever may
//! reach that address may read it. No bucket, key or client is named, and every label has few values: operations, classes
//! of status, kinds of jobs.
//!
//! Counters are added to where things happen. Gauges are read when they are asked for ([`Metrics::render`]); the space of
//! the disk is asked for just before ([`Metrics::space`]).

mod process;

use std::{fmt, sync::atomic::AtomicU64};

use lithos_storage::{SweepReport, blob::Space, job::JobState};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::app::App;

/// What `OpenMetrics` calls its text format (`OpenMetrics` 1.0, "Protocol Negotiation").
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds of the histograms in seconds: from an index read to a long upload.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// A gauge of bytes, descriptors and other counts.
type Amount = Gauge<u64, AtomicU64>;
type Seconds = Family<Operation, Histogram, fn() -> Histogram>;

/// The labels of answered requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// As S3 names it, such as `GetObject`; `peer`, `admin` and `other` for what is not S3's.
    pub(crate) operation: &'static str,
    /// `2xx` to `5xx`.
    pub(crate) class: &'static str,
}

/// The label of how long requests take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Operation {
    /// As of [`Answered`].
    pub(crate) operation: &'static str,
}

/// The label of what is counted by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Listener {
    /// `transfer` or `management`.
    pub(crate) listener: &'static str,
}

/// The label of requests that were told to slow down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    /// `full` or `late`.
    pub(crate) reason: &'static str,
}

/// The labels of attempts at jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct JobEvent {
    /// What the job does, or `unknown`.
    pub(crate) kind: String,
    /// `begun`, and then where the job stands when the attempt is over.
    pub(crate) state: &'static str,
}

/// The label of what the sweep cleared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Swept {
    /// `blobs`, `layouts`, `parts` or `jobs`.
    pub(crate) what: &'static str,
}

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Answered requests.
    pub(crate) requests: Family<Answered, Counter>,
    /// From the head of a request to the head of its answer, the wait for its turn included.
    pub(crate) request_seconds: Seconds,
    /// Bytes of bodies that clients sent.
    pub(crate) received_bytes: Counter,
    /// Bytes of bodies that clients took.
    pub(crate) sent_bytes: Counter,
    /// Requests that were refused because there were too many.
    pub(crate) slow_downs: Family<Reason, Counter>,
    /// Open connections.
    pub(crate) connections: Family<Listener, Gauge>,
    /// Connections that were closed unused because there were too many.
    pub(crate) connections_refused: Family<Listener, Counter>,
    /// Clients that were cut off because they were silent or too slow.
    pub(crate) cut_off: Family<Listener, Counter>,
    /// Attempts at jobs.
    pub(crate) jobs: Family<JobEvent, Counter>,
    /// What the sweep cleared.
    pub(crate) swept: Family<Swept, Counter>,
    /// Sweeps that failed.
    pub(crate) sweep_failures: Counter,
    /// Blocks of blobs whose checksum was wrong.
    pub(crate) damaged_blocks: Counter,
    free_bytes: Amount,
    total_bytes: Amount,
    requests_running: Amount,
    requests_waiting: Amount,
    buffered_bytes: Amount,
    resident_bytes: Amount,
    open_descriptors: Amount,
    max_descriptors: Amount,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            slow_downs: Family::default(),
            connections: Family::default(),
            connections_refused: Family::default(),
            cut_off: Family::default(),
            jobs: Family::default(),
            swept: Family::default(),
            sweep_failures: Counter::default(),
            damaged_blocks: Counter::default(),
            free_bytes: Amount::default(),
            total_bytes: Amount::default(),
            requests_running: Amount::default(),
            requests_waiting: Amount::default(),
            buffered_bytes: Amount::default(),
            resident_bytes: Amount::default(),
            open_descriptors: Amount::default(),
            max_descriptors: Amount::default(),
        };
        metrics.register_requests();
        metrics.register_store();
        metrics.register_process();
        metrics
    }
}

impl Metrics {
    fn register_requests(&mut self) {
        let registry = &mut self.registry;
        registry.register("lithos_requests", "Answered requests", self.requests.clone());
        registry.register_with_unit(
            "lithos_request",
            "From the head of a request to the head of its answer",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        registry.register_with_unit(
            "lithos_received",
            "Bodies that clients sent",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        registry.register_with_unit(
            "lithos_sent",
            "Bodies that clients took",
            Unit::Bytes,
            self.sent_bytes.clone(),
        );
        registry.register(
            "lithos_requests_in_flight",
            "S3 requests under way",
            self.requests_running.clone(),
        );
        registry.register(
            "lithos_requests_queued",
            "S3 requests that wait for their turn",
            self.requests_waiting.clone(),
        );
        registry.register_with_unit(
            "lithos_buffers",
            "Memory set aside for the bodies of S3 requests under way",
            Unit::Bytes,
            self.buffered_bytes.clone(),
        );
        registry.register(
            "lithos_slow_downs",
            "Requests refused because there were too many",
            self.slow_downs.clone(),
        );
        registry.register("lithos_connections", "Open connections", self.connections.clone());
        registry.register(
            "lithos_connections_refused",
            "Connections closed unused because there were too many",
            self.connections_refused.clone(),
        );
        registry.register(
            "lithos_clients_cut_off",
            "Clients cut off because they were silent or too slow",
            self.cut_off.clone(),
        );
    }

    fn register_store(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "lithos_jobs",
            "Attempts at jobs that began, and how they ended",
            self.jobs.clone(),
        );
        registry.register("lithos_swept", "What the sweep cleared", self.swept.clone());
        registry.register(
            "lithos_sweep_failures",
            "Sweeps that failed, to go on later",
            self.sweep_failures.clone(),
        );
        registry.register(
            "lithos_damaged_blocks",
            "Stored blocks whose checksum was wrong",
            self.damaged_blocks.clone(),
        );
        registry.register_with_unit(
            "lithos_space_free",
            "Free space where the data is",
            Unit::Bytes,
            self.free_bytes.clone(),
        );
        registry.register_with_unit(
            "lithos_space_total",
            "All space where the data is",
            Unit::Bytes,
            self.total_bytes.clone(),
        );
    }

    fn register_process(&mut self) {
        let registry = &mut self.registry;
        registry.register_with_unit(
            "process_resident_memory",
            "Resident memory of the process",
            Unit::Bytes,
            self.resident_bytes.clone(),
        );
        registry.register(
            "process_open_fds",
            "Open file descriptors",
            self.open_descriptors.clone(),
        );
        registry.register(
            "process_max_fds",
            "File descriptors that may be open",
            self.max_descriptors.clone(),
        );
    }

    /// Counts an attempt at a job that has begun.
    pub(crate) fn job_begun(&self, kind: &str) {
        self.job(kind, "begun");
    }

    /// Counts how an attempt ended: a job that is queued again will be tried again.
    pub(crate) fn job_ended(&self, kind: &str, state: JobState) {
        self.job(
            kind,
            match state {
                JobState::Queued => "queued",
                JobState::Running => "running",
                JobState::Done => "done",
                JobState::Failed => "failed",
                JobState::Cancelled => "cancelled",
            },
        );
    }

    fn job(&self, kind: &str, state: &'static str) {
        let kind = kind.to_owned();
        self.jobs.get_or_create(&JobEvent { kind, state }).inc();
    }

    /// Counts what a sweep did.
    pub(crate) fn sweep(&self, report: &SweepReport) {
        for (what, count) in [
            ("blobs", report.blobs),
            ("layouts", report.layouts),
            ("parts", report.parts),
            ("jobs", report.jobs),
        ] {
            self.swept.get_or_create(&Swept { what }).inc_by(count);
        }
    }

    /// Notes the space of the file system of the data folder; none where blobs are not files.
    pub(crate) fn space(&self, space: Option<Space>) {
        let Some(Space { free, total }) = space else { return };
        self.free_bytes.set(free);
        self.total_bytes.set(total);
    }

    /// All of it, in [`CONTENT_TYPE`]. Reads `/proc`, and so belongs on a blocking thread.
    ///
    /// # Errors
    ///
    /// If a metric cannot be written as text.
    pub(crate) fn render(&self, app: &App) -> Result<String, fmt::Error> {
        let load = app.admission.load();
        self.requests_running.set(load.running as u64);
        self.requests_waiting.set(load.waiting as u64);
        self.buffered_bytes.set(load.bytes);
        self.resident_bytes.set(process::resident_bytes().unwrap_or(0));
        self.open_descriptors.set(process::open_descriptors().unwrap_or(0));
        self.max_descriptors.set(process::max_descriptors());
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// The class of a status, as [`Answered`] has it.
pub(crate) fn class(status: http::StatusCode) -> &'static str {
    match status.as_u16() {
        100..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}
