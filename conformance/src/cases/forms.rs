//! `PostObject`: uploads by forms of browsers (S3 API Reference, "POST Object" and "Creating a POST Policy").

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::{
    case::Bench,
    pattern::{Pattern, md5_hex},
    wire::{AmzTime, PolicyScope, Request, Response, element},
};

crate::cases! {
    "PostObject": a_form_is_an_object, the_client_chooses_the_answer, names_of_files_go_into_keys,
        sizes_are_within_the_policy, a_form_does_what_its_policy_says, broken_policies_are_refused,
        forged_forms_are_refused, incomplete_forms_are_refused;
}

const BOUNDARY: &str = "----a-boundary";

/// A form, signed when it is sent.
pub(super) struct Form<'b> {
    bench: &'b Bench,
    fields: Vec<(String, String)>,
    conditions: Vec<Value>,
    expiration: String,
    file: Option<(String, Vec<u8>)>,
}

impl<'b> Form<'b> {
    /// For a key, with a policy that allows any key and up to 1 MiB.
    pub(super) fn new(bench: &'b Bench, key: &str) -> Self {
        Self {
            bench,
            fields: vec![("key".into(), key.into())],
            conditions: vec![
                json!({"bucket": bench.bucket}),
                json!(["starts-with", "$key", ""]),
                json!(["content-length-range", 0, 1 << 20]),
            ],
            expiration: iso(AmzTime::seconds_from_now(600)),
            file: Some(("f.txt".into(), b"content".to_vec())),
        }
    }

    fn file(mut self, name: &str, bytes: &[u8]) -> Self {
        self.file = Some((name.to_owned(), bytes.to_vec()));
        self
    }

    /// With a field that the policy allows.
    fn field(mut self, name: &str, value: &str) -> Self {
        self.conditions.push(json!({name: value}));
        self.unasked(name, value)
    }

    /// With a field that the policy does not name.
    fn unasked(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn condition(mut self, condition: Value) -> Self {
        self.conditions.push(condition);
        self
    }

    pub(super) async fn send(self) -> Result<Response> {
        let scope = PolicyScope::new(&self.bench.target, AmzTime::now());
        let mut conditions = self.conditions.clone();
        conditions.extend(scope.fields().into_iter().map(|(name, value)| json!({name: value})));
        let policy = json!({"expiration": self.expiration, "conditions": conditions}).to_string();
        self.send_policy(&scope, policy.as_bytes()).await
    }

    async fn send_policy(mut self, scope: &PolicyScope, policy: &[u8]) -> Result<Response> {
        let policy = BASE64.encode(policy);
        for (name, value) in scope.fields() {
            self.fields.push((name.to_owned(), value));
        }
        self.fields.push(("x-amz-signature".into(), scope.sign(&policy)));
        self.fields.push(("policy".into(), policy));
        self.send_as_is().await
    }

    async fn send_as_is(self) -> Result<Response> {
        let request = self.request();
        request.send(&self.bench.target).await
    }

    fn request(&self) -> Request {
        let mut body = Vec::new();
        for (name, value) in &self.fields {
            let part = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            body.extend_from_slice(part.as_bytes());
        }
        if let Some((name, bytes)) = &self.file {
            let head = format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
                 Content-Type: text/ignored\r\n\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(bytes);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.bench
            .bucket("POST")
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(body)
    }
}

fn iso(time: AmzTime) -> String {
    // 20130524T000000Z
    let long = time.long();
    let part = |range: std::ops::Range<usize>| long.get(range).unwrap_or_default().to_owned();
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0..4),
        part(4..6),
        part(6..8),
        part(9..11),
        part(11..13),
        part(13..15)
    )
}

async fn a_form_is_an_object(bench: Bench) -> Result<()> {
    let content = Pattern(3).bytes(0..300_000);
    let form = Form::new(&bench, "a b/ü")
        .file("x", &content)
        .field("Content-Type", "text/a")
        .field("Cache-Control", "no-cache")
        .field("x-amz-meta-color", "red")
        .field("x-amz-storage-class", "STANDARD_IA")
        .unasked("x-ignore-me", "y");
    let answer = form.send().await?;
    answer.expect_status(204)?;
    let etag = format!("\"{}\"", md5_hex(&content));
    ensure!(answer.header("etag") == Some(&etag), "{:?}", answer.headers);
    let location = format!("{}/{}/a%20b/%C3%BC", bench.target.endpoint, bench.bucket);
    ensure!(answer.header("location") == Some(&location), "{:?}", answer.headers);
    ensure!(bench.get("a b/ü").await? == content);
    let head = bench
        .client
        .head_object()
        .bucket(&bench.bucket)
        .key("a b/ü")
        .send()
        .await?;
    ensure!(head.content_type() == Some("text/a") && head.cache_control() == Some("no-cache"));
    ensure!(
        head.metadata()
            .and_then(|metadata| metadata.get("color"))
            .map(String::as_str)
            == Some("red")
    );
    ensure!(head.storage_class().map(aws_sdk_s3::types::StorageClass::as_str) == Some("STANDARD_IA"));
    Form::new(&bench, "empty")
        .file("x", b"")
        .send()
        .await?
        .expect_status(204)?;
    ensure!(bench.get("empty").await?.is_empty());
    Ok(())
}

async fn the_client_chooses_the_answer(bench: Bench) -> Result<()> {
    for (status, answered) in [("200", 200), ("201", 201), ("204", 204), ("404", 204)] {
        let form = Form::new(&bench, "k").field("success_action_status", status);
        let answer = form.send().await?;
        answer.expect_status(answered).with_context(|| status.to_owned())?;
        if answered == 201 {
            let text = answer.text();
            ensure!(
                element(&text, "Key") == Some("k") && element(&text, "Bucket") == Some(bench.bucket.as_str()),
                "{text}"
            );
        } else {
            ensure!(answer.body.is_empty(), "{}", answer.text());
        }
    }
    let form = Form::new(&bench, "k").field("success_action_redirect", "http://localhost/done?a=1");
    let answer = form.send().await?;
    answer.expect_status(303)?;
    let location = format!(
        "http://localhost/done?a=1&bucket={}&key=k&etag=%22{}%22",
        bench.bucket,
        md5_hex(b"content")
    );
    ensure!(answer.header("location") == Some(&location), "{:?}", answer.headers);
    Ok(())
}

async fn names_of_files_go_into_keys(bench: Bench) -> Result<()> {
    let form = Form::new(&bench, "up/${filename}").condition(json!(["starts-with", "$key", "up/"]));
    form.file("a b.txt", b"x").send().await?.expect_status(204)?;
    ensure!(bench.get("up/a b.txt").await? == b"x");
    Ok(())
}

async fn sizes_are_within_the_policy(bench: Bench) -> Result<()> {
    let sized = |range: Value| Form::new(&bench, "k").condition(range);
    let large = sized(json!(["content-length-range", 0, 6]));
    large.send().await?.expect_error(400, "EntityTooLarge")?;
    let small = sized(json!(["content-length-range", 8, 100]));
    small.send().await?.expect_error(400, "EntityTooSmall")?;
    bench.expect_absent("k").await?;
    sized(json!(["content-length-range", 7, 7]))
        .send()
        .await?
        .expect_status(204)
}

async fn a_form_does_what_its_policy_says(bench: Bench) -> Result<()> {
    let forms = [
        Form::new(&bench, "k").unasked("x-amz-meta-color", "red"),
        Form::new(&bench, "k").condition(json!({"x-amz-meta-color": "red"})),
        Form::new(&bench, "k").condition(json!(["eq", "$key", "other"])),
        Form::new(&bench, "k").condition(json!(["starts-with", "$key", "up/"])),
        Form::new(&bench, "k").condition(json!({"bucket": "another-bucket"})),
    ];
    for (n, form) in forms.into_iter().enumerate() {
        let answer = form.send().await?;
        answer
            .expect_error(403, "AccessDenied")
            .with_context(|| format!("form {n}"))?;
    }
    let mut late = Form::new(&bench, "k");
    late.expiration = iso(AmzTime::seconds_from_now(-10));
    late.send().await?.expect_error(403, "AccessDenied")?;
    bench.expect_absent("k").await
}

async fn broken_policies_are_refused(bench: Bench) -> Result<()> {
    let expiration = iso(AmzTime::seconds_from_now(600));
    for policy in [
        "not json".to_owned(),
        "{}".to_owned(),
        json!({"expiration": expiration}).to_string(),
        json!({"conditions": []}).to_string(),
        json!({"expiration": "2030-01-01", "conditions": []}).to_string(),
        json!({"expiration": expiration, "conditions": [["content-length-range", 0]]}).to_string(),
        json!({"expiration": expiration, "conditions": [["content-length-range", -1, 0]]}).to_string(),
    ] {
        let scope = PolicyScope::new(&bench.target, AmzTime::now());
        let answer = Form::new(&bench, "k").send_policy(&scope, policy.as_bytes()).await?;
        ensure!(answer.status == 400, "{policy}: {} {}", answer.status, answer.text());
    }
    bench.expect_absent("k").await
}

async fn forged_forms_are_refused(bench: Bench) -> Result<()> {
    let scope = PolicyScope::new(&bench.target, AmzTime::now());
    let sign_nothing = |fields: Vec<(&str, String)>| {
        let mut form = Form::new(&bench, "k");
        form.fields
            .extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        form
    };
    let conditions: Vec<Value> = scope
        .fields()
        .into_iter()
        .map(|(name, value)| json!({name: value}))
        .collect();
    let policy = json!({"expiration": iso(AmzTime::seconds_from_now(600)), "conditions": conditions});
    let mut forged = scope.fields();
    forged.push(("policy", BASE64.encode(policy.to_string())));
    forged.push(("x-amz-signature", "0".repeat(64)));
    sign_nothing(forged)
        .send_as_is()
        .await?
        .expect_error(403, "SignatureDoesNotMatch")?;
    // Nobody has signed it at all.
    sign_nothing(Vec::new())
        .send_as_is()
        .await?
        .expect_error(403, "AccessDenied")?;
    // It was signed for another day than it says.
    let conditions = json!([{"bucket": bench.bucket}, {"key": "k"}, {"x-amz-date": "20200101T000000Z"}]);
    let policy = json!({"expiration": iso(AmzTime::seconds_from_now(600)), "conditions": conditions}).to_string();
    let answer = Form::new(&bench, "k").send_policy(&scope, policy.as_bytes());
    answer.await?.expect_error(403, "AccessDenied")?;
    bench.expect_absent("k").await
}

async fn incomplete_forms_are_refused(bench: Bench) -> Result<()> {
    let mut nameless = Form::new(&bench, "k");
    nameless.fields.clear();
    let answer = nameless.send().await?;
    ensure!(answer.status == 400, "no key: {} {}", answer.status, answer.text());
    let mut empty = Form::new(&bench, "k");
    empty.file = None;
    let answer = empty.send().await?;
    ensure!(answer.status == 400, "no file: {} {}", answer.status, answer.text());
    let long = Form::new(&bench, &"k".repeat(1025)).send().await?;
    long.expect_error(400, "KeyTooLongError")?;
    let md5 = Form::new(&bench, "k").field("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==");
    md5.send().await?.expect_error(400, "BadDigest")?;
    let fields = Form::new(&bench, "k").field("x-amz-meta-long", &"x".repeat(40_000));
    let answer = fields.send().await?;
    ensure!(answer.status == 400, "fields: {} {}", answer.status, answer.text());
    // A form without an end would have to be held in memory.
    let request = Form::new(&bench, "k").request();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n",
        request.path,
        bench.target.authority()?
    );
    let answer = crate::wire::send_bytes(&bench.target, head.as_bytes()).await?;
    answer.expect_error(411, "MissingContentLength")?;
    bench.expect_absent("k").await
}
