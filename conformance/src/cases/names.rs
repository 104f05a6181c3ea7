//! Names that are hard on XML: characters that it cannot hold, and keys up to their bounds.

use anyhow::{Context, Result, ensure};

use crate::{
    case::Bench,
    wire::{element, elements},
};

crate::cases! {
    "ListObjectsV2": what_xml_cannot_hold_is_a_reference, names_come_encoded_where_that_is_asked_for,
        numbers_are_numbers;
    "ListObjects": markers_may_be_any_name;
    "ListMultipartUploads": uploads_of_odd_keys_are_listed;
    "DeleteObjects": keys_are_answered_as_they_are;
    "Errors": errors_say_what_they_are_about;
}

/// Keys, and how XML shows them.
const KEYS: [(&str, &str); 6] = [
    ("\u{0}", "&#x0;"),
    ("\u{1}a", "&#x1;a"),
    ("cr\r", "cr&#xd;"),
    ("tab\t", "tab\t"),
    ("\u{fffe}", "&#xfffe;"),
    ("\u{fdd0}", "&#xfdd0;"),
];

async fn put_all(bench: &Bench) -> Result<()> {
    for (key, _) in KEYS {
        bench
            .put(key, key.as_bytes())
            .await
            .with_context(|| format!("{key:?}"))?;
        ensure!(bench.get(key).await? == key.as_bytes(), "{key:?}");
    }
    Ok(())
}

async fn what_xml_cannot_hold_is_a_reference(bench: Bench) -> Result<()> {
    put_all(&bench).await?;
    for query in [vec![("list-type", "2")], vec![]] {
        let mut list = bench.bucket("GET");
        for (name, value) in query {
            list = list.query(name, value);
        }
        let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
        let mut shown: Vec<&str> = elements(&text, "Key").collect();
        let mut expected = KEYS.map(|(_, shown)| shown);
        shown.sort_unstable();
        expected.sort_unstable();
        ensure!(shown == expected, "{shown:?}: {text}");
    }
    // What a request says is echoed, and no less odd.
    for (name, value) in [
        ("prefix", "\u{0}"),
        ("delimiter", "\u{1}"),
        ("start-after", "\u{0}\u{1}"),
    ] {
        let list = bench.bucket("GET").query("list-type", "2").query(name, value);
        let answer = list.signed(&bench.target)?.send(&bench.target).await?;
        answer.expect_status(200).with_context(|| name.to_owned())?;
        ensure!(answer.text().contains("&#x"), "{name}: {}", answer.text());
    }
    Ok(())
}

async fn names_come_encoded_where_that_is_asked_for(bench: Bench) -> Result<()> {
    bench.put("a b/+c\u{1}", b"").await?;
    bench.put("a b/d%/e", b"").await?;
    let list = bench
        .bucket("GET")
        .query("list-type", "2")
        .query("encoding-type", "url")
        .query("prefix", "a b/")
        .query("delimiter", "%/")
        .query("start-after", "a +");
    let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
    for (name, shown) in [
        ("Delimiter", "%25/"),
        ("StartAfter", "a%20%2B"),
        ("Key", "a%20b/%2Bc%01"),
        ("EncodingType", "url"),
    ] {
        ensure!(element(&text, name) == Some(shown), "{name}: {text}");
    }
    let prefixes: Vec<_> = elements(&text, "Prefix").collect();
    ensure!(
        prefixes.contains(&"a%20b/") && prefixes.contains(&"a%20b/d%25/"),
        "{text}"
    );
    Ok(())
}

async fn numbers_are_numbers(bench: Bench) -> Result<()> {
    bench.put("k", b"").await?;
    for (name, page) in [
        ("max-keys", "list-type"),
        ("max-keys", "prefix"),
        ("max-uploads", "uploads"),
    ] {
        let value = if page == "list-type" { "2" } else { "" };
        for bad in ["-1", "x", "1x", "99999999999"] {
            let list = bench.bucket("GET").query(page, value).query(name, bad);
            let answer = list.signed(&bench.target)?.send(&bench.target).await?;
            answer
                .expect_error(400, "InvalidArgument")
                .with_context(|| format!("{page} {name}={bad}"))?;
        }
    }
    for (asked, shown, count) in [("0", "0", 0), ("1000", "1000", 1), ("5000", "1000", 1)] {
        let list = bench.bucket("GET").query("list-type", "2").query("max-keys", asked);
        let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
        ensure!(element(&text, "MaxKeys") == Some(shown), "{text}");
        ensure!(element(&text, "IsTruncated") == Some("false"), "{text}");
        ensure!(elements(&text, "Key").count() == count, "{text}");
        ensure!(element(&text, "KeyCount") == Some(&count.to_string()), "{text}");
    }
    Ok(())
}

async fn markers_may_be_any_name(bench: Bench) -> Result<()> {
    for key in ["a", "b", "c/1", "c/2", "d"] {
        bench.put(key, b"").await?;
    }
    for (marker, delimiter, first) in [
        ("", "", "a"),
        ("a", "", "b"),
        ("aa", "", "b"),
        ("\u{0}", "", "a"),
        ("c/1", "", "c/2"),
        ("c/", "/", "d"),
        ("d", "", ""),
        ("zzz", "", ""),
    ] {
        let list = bench
            .bucket("GET")
            .query("marker", marker)
            .query("delimiter", delimiter);
        let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
        ensure!(element(&text, "Key").unwrap_or_default() == first, "{marker:?}: {text}");
    }
    let list = bench.bucket("GET").query("max-keys", "2").query("delimiter", "/");
    let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
    ensure!(element(&text, "NextMarker") == Some("b"), "{text}");
    // Without a delimiter, the last key is the marker.
    let list = bench.bucket("GET").query("max-keys", "2");
    let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
    ensure!(
        element(&text, "NextMarker").is_none() && element(&text, "IsTruncated") == Some("true"),
        "{text}"
    );
    Ok(())
}

async fn uploads_of_odd_keys_are_listed(bench: Bench) -> Result<()> {
    for (key, _) in KEYS {
        let create = bench.object("POST", key).query("uploads", "").signed(&bench.target)?;
        create
            .send(&bench.target)
            .await?
            .expect_status(200)
            .with_context(|| format!("{key:?}"))?;
    }
    let list = bench.bucket("GET").query("uploads", "").signed(&bench.target)?;
    let text = list.send(&bench.target).await?.text();
    let shown: Vec<&str> = elements(&text, "Key").collect();
    ensure!(shown.len() == KEYS.len(), "{text}");
    for (_, expected) in KEYS {
        ensure!(shown.contains(&expected), "{expected}: {text}");
    }
    let list = bench.bucket("GET").query("uploads", "").query("encoding-type", "url");
    let text = list.signed(&bench.target)?.send(&bench.target).await?.text();
    let keys: Vec<String> = elements(&text, "Key").map(str::to_owned).collect();
    ensure!(keys.iter().any(|key| key == "%01a"), "{text}");
    // Clearing up is by a client that reads XML strictly.
    for (key, id) in keys.iter().zip(elements(&text, "UploadId")) {
        let key = percent_encoding::percent_decode_str(key).decode_utf8()?;
        let abort = bench
            .object("DELETE", &key)
            .query("uploadId", id)
            .signed(&bench.target)?;
        abort.send(&bench.target).await?.expect_status(204)?;
    }
    Ok(())
}

async fn keys_are_answered_as_they_are(bench: Bench) -> Result<()> {
    bench.put("\u{1}a", b"").await?;
    let delete = bench
        .bucket("POST")
        .query("delete", "")
        .body("<Delete><Object><Key>\u{1}a</Key></Object></Delete>");
    let answer = delete.signed(&bench.target)?.send(&bench.target).await?;
    answer.expect_status(200)?;
    ensure!(answer.text().contains("<Key>&#x1;a</Key>"), "{}", answer.text());
    bench.expect_absent("\u{1}a").await
}

/// S3 API Reference, "REST Error Responses".
async fn errors_say_what_they_are_about(bench: Bench) -> Result<()> {
    let missing = bench
        .object("GET", "a&b")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    missing.expect_error(404, "NoSuchKey")?;
    let unsigned = bench.object("GET", "a&b").send(&bench.target).await?;
    unsigned.expect_error(403, "AccessDenied")?;
    for answer in [missing, unsigned] {
        let text = answer.text();
        ensure!(
            answer.header("content-type") == Some("application/xml"),
            "{:?}",
            answer.headers
        );
        let id = answer.header("x-amz-request-id").context("no request id")?;
        ensure!(element(&text, "RequestId") == Some(id), "{text}");
        ensure!(answer.header("x-amz-id-2").is_some(), "{:?}", answer.headers);
        ensure!(element(&text, "HostId").is_some(), "{text}");
        let resource = format!("/{}/a%26b", bench.bucket);
        ensure!(element(&text, "Resource") == Some(&resource), "{text}");
    }
    let head = bench
        .object("HEAD", "missing")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    ensure!(head.status == 404 && head.body.is_empty(), "{head:?}");
    Ok(())
}
