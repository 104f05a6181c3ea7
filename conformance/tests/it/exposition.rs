//! `/metrics`, read as strictly as `OpenMetrics` 1.0 says ("ABNF", "Overall Structure").

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lithos_conformance::{
    target::{POLL, Server},
    wire::Request,
};

use crate::images::Images;

/// How long it may take until something is counted.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server counts: values by series, as `name{label="value"}`.
#[derive(Debug)]
pub(crate) struct Exposition(BTreeMap<String, f64>);

impl Exposition {
    /// Asks a server.
    pub(crate) async fn of(server: &Server) -> Result<Self> {
        let answer = Request::new("GET", "/metrics")
            .send(&server.management_target())
            .await?;
        answer.expect_status(200)?;
        let kind = answer.header("content-type").unwrap_or_default();
        ensure!(
            kind == "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "{kind}"
        );
        Self::parse(&answer.text())
    }

    /// The value of a series; none that was never touched.
    pub(crate) fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// The sum of all series of a name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        self.0
            .iter()
            .filter(|(series, _)| of_name(series))
            .map(|(_, value)| value)
            .sum()
    }

    /// Parses the text, and refuses what a strict reader would refuse.
    fn parse(text: &str) -> Result<Self> {
        let text = text
            .strip_suffix("# EOF\n")
            .context("it does not end with an EOF line")?;
        let mut families = BTreeSet::new();
        let mut family: Option<Family> = None;
        let mut values = BTreeMap::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let (what, rest) = comment.split_once(' ').context("a comment of one word")?;
                let (name, rest) = rest.split_once(' ').context("a comment without a value")?;
                if family.as_ref().is_none_or(|family| family.name != name) {
                    ensure!(families.insert(name.to_owned()), "{name} is declared twice");
                    family = Some(Family {
                        name: name.to_owned(),
                        kind: String::new(),
                    });
                }
                match what {
                    "HELP" => ensure!(!rest.is_empty(), "{name} has no help"),
                    "UNIT" => ensure!(name.ends_with(&format!("_{rest}")), "{name} does not end with {rest}"),
                    "TYPE" => {
                        ensure!(["counter", "gauge", "histogram"].contains(&rest), "{name} is a {rest}");
                        if let Some(family) = &mut family {
                            rest.clone_into(&mut family.kind);
                        }
                    }
                    _ => bail!("a comment {what}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').context("a line without a value")?;
            let value: f64 = value.parse().with_context(|| format!("{series} is {value}"))?;
            let family = family.as_ref().with_context(|| format!("{series} has no family"))?;
            family.check(series, value)?;
            ensure!(
                values.insert(series.to_owned(), value).is_none(),
                "{series} is there twice"
            );
        }
        check_buckets(&values)?;
        Ok(Self(values))
    }
}

/// A metric, and what kind it is.
struct Family {
    name: String,
    kind: String,
}

impl Family {
    fn check(&self, series: &str, value: f64) -> Result<()> {
        let name = series.split('{').next().unwrap_or_default();
        let suffix = name
            .strip_prefix(self.name.as_str())
            .with_context(|| format!("{name} is below {}", self.name))?;
        let allowed: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[],
        };
        ensure!(allowed.contains(&suffix), "{name} in a {} {}", self.kind, self.name);
        ensure!(
            value >= 0.0 && value.is_finite(),
            "{series} is {value}: nothing here is negative"
        );
        let legal = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        ensure!(legal(name), "{name} is not a name of ours");
        if let Some((_, labels)) = series.split_once('{') {
            let labels = labels.strip_suffix('}').context("labels without an end")?;
            for label in labels.split(',') {
                let (name, value) = label.split_once('=').context("a label without a value")?;
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                let value = value.with_context(|| format!("{series} has a value without quotes"))?;
                ensure!(legal(name) && !value.contains(['"', '\\']), "{series}");
            }
        }
        Ok(())
    }
}

/// Buckets grow, and the last one is the count.
fn check_buckets(values: &BTreeMap<String, f64>) -> Result<()> {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in values {
        if let Some((name, labels)) = series.split_once("_bucket{") {
            let labels = labels.trim_end_matches('}');
            let (le, others): (Vec<&str>, Vec<&str>) = labels.split(',').partition(|label| label.starts_with("le="));
            let bound = le.first().context("a bucket without a bound")?;
            let bound = bound.trim_start_matches("le=").trim_matches('"').parse()?;
            let count = format!("{name}_count{{{}}}", others.join(","));
            buckets.entry(count).or_default().push((bound, *value));
        }
    }
    for (count, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        ensure!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{count}: {buckets:?}"
        );
        let (bound, last) = buckets.last().context("no buckets")?;
        ensure!(
            bound.is_infinite() && Some(last) == values.get(&count),
            "{count}: {buckets:?}"
        );
    }
    Ok(())
}

/// Waits until what a server counts is as it should be.
pub(crate) async fn await_metric(server: &Server, what: &str, is_so: impl Fn(&Exposition) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let counted = Exposition::of(server).await?;
        if is_so(&counted) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{what} did not come to be: {counted:?}");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn metrics_are_open_well_formed_and_count_what_happened() -> Result<()> {
    let images = Images::start().await?;
    let (client, bucket) = (&images.bench.client, &images.bench.bucket);
    let body = vec![7; 100_000];
    let put = client.put_object().bucket(bucket).key("a").body(body.into());
    put.send().await?;
    let got = client.get_object().bucket(bucket).key("a").send().await?;
    ensure!(got.body.collect().await?.to_vec().len() == 100_000, "another length");
    let missing = client.get_object().bucket(bucket).key("b").send().await;
    ensure!(missing.is_err(), "there is no such object");
    let forged = Request::new("GET", "/").header("authorization", "AWS nobody:x");
    let refused = forged.send(images.server.target()).await?.status;
    ensure!(
        (400..500).contains(&refused),
        "a forged request was answered with {refused}"
    );
    images.tag("a", &[("convert-to", "qcow2")]).await?;
    images.await_done("a").await?;
    for key in ["a", "a.qcow2"] {
        client.delete_object().bucket(bucket).key(key).send().await?;
    }
    let swept = "lithos_swept_total{what=\"blobs\"}";
    await_metric(&images.server, "a sweep", |counted| counted.value(swept) > 0.5).await?;

    // What has just ended may still be counted.
    let expected = [
        ("lithos_requests_total{operation=\"PutObject\",class=\"2xx\"}", 1.0),
        ("lithos_requests_total{operation=\"GetObject\",class=\"2xx\"}", 1.0),
        ("lithos_requests_total{operation=\"GetObject\",class=\"4xx\"}", 1.0),
        ("lithos_requests_total{operation=\"other\",class=\"4xx\"}", 1.0),
        ("lithos_request_seconds_count{operation=\"PutObject\"}", 1.0),
        ("lithos_jobs_total{kind=\"convert\",state=\"begun\"}", 1.0),
        ("lithos_requests_in_flight", 0.0),
        ("lithos_requests_queued", 0.0),
        ("lithos_buffers_bytes", 0.0),
        ("lithos_damaged_blocks_total", 0.0),
        ("lithos_connections{listener=\"management\"}", 1.0),
    ];
    let is_as_expected = |counted: &Exposition| {
        let mut series = expected.iter();
        series.all(|(series, value)| (counted.value(series) - value).abs() < 0.1)
    };
    await_metric(&images.server, &format!("{expected:?}"), is_as_expected).await?;
    let counted = Exposition::of(&images.server).await?;
    for (series, least) in [
        ("lithos_received_bytes_total", 100_000.0),
        ("lithos_sent_bytes_total", 100_000.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 8.0),
        ("process_max_fds", 64.0),
    ] {
        let found = counted.value(series);
        ensure!(found >= least, "{series} is {found}, less than {least}");
    }
    Ok(())
}

#[test]
fn what_is_not_an_exposition_is_refused() {
    const GOOD: &str = "# HELP a_seconds b.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
        a_seconds_sum{o=\"x\"} 1\na_seconds_count{o=\"x\"} 2\n\
        a_seconds_bucket{le=\"1.0\",o=\"x\"} 1\na_seconds_bucket{le=\"+Inf\",o=\"x\"} 2\n\
        # HELP c d.\n# TYPE c counter\nc_total 1\n# EOF\n";
    assert!(Exposition::parse(GOOD).is_ok());
    for (from, to) in [
        ("# EOF\n", ""),
        ("seconds_count{o=\"x\"} 2", "seconds_count{o=\"x\"} 3"),
        ("} 1\na_seconds_bucket", "} 5\na_seconds_bucket"),
        ("le=\"+Inf\"", "le=\"2.0\""),
        ("c_total 1", "c 1"),
        ("c_total 1", "c_total -1"),
        ("c_total 1", "c_total x"),
        ("c_total 1", "c_total 1\nc_total 2"),
        ("c_total 1", "other_total 1"),
        ("c_total 1", "c_total{a=b} 1"),
        ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
        ("TYPE c counter", "TYPE c thing"),
        ("HELP c d.\n# TYPE c", "HELP a_seconds d.\n# TYPE a_seconds"),
    ] {
        let bad = GOOD.replacen(from, to, 1);
        assert_ne!(bad, GOOD, "{from} is not there");
        assert!(Exposition::parse(&bad).is_err(), "{bad}");
    }
}
