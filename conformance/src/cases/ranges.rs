//! Ranges that S3 ignores, and parts of objects by their numbers.

use anyhow::{Context, Result, ensure};

use crate::{
    case::Bench,
    wire::{AmzTime, Presign},
};

crate::cases! {
    "GetObject": malformed_ranges_count_as_none, ranges_are_read_leniently, malformed_ranges_on_presigned_urls,
        an_object_is_its_own_part, overrides_need_a_signature;
}

const NONE: [&str; 9] = [
    "bytes=0-1,3-4",
    "bytes=5-2",
    "bytes=abc",
    "bytes=-",
    "bytes=",
    "bytes=1",
    "octets=0-1",
    "0-1",
    "nonsense",
];

async fn malformed_ranges_count_as_none(bench: Bench) -> Result<()> {
    for key in ["k", "a b+c%&ü/d"] {
        bench.put(key, b"0123456789").await?;
        for method in ["GET", "HEAD"] {
            for range in NONE {
                let request = bench.object(method, key).header("range", range).signed(&bench.target)?;
                let answer = request.send(&bench.target).await?;
                answer
                    .expect_status(200)
                    .with_context(|| format!("{method} {key} {range}"))?;
                ensure!(
                    answer.header("content-length") == Some("10"),
                    "{range}: {:?}",
                    answer.headers
                );
                ensure!(
                    answer.header("content-range").is_none(),
                    "{range}: {:?}",
                    answer.headers
                );
                ensure!(
                    method == "HEAD" || answer.body == b"0123456789",
                    "{range}: {}",
                    answer.text()
                );
            }
        }
    }
    // A request that is mended is not trusted more than others.
    let request = bench.object("GET", "k").header("range", "bytes=abc");
    let mut forged = request.clone().signed(&bench.target)?;
    forged.path.push('x');
    forged
        .send(&bench.target)
        .await?
        .expect_error(403, "SignatureDoesNotMatch")?;
    request.send(&bench.target).await?.expect_error(403, "AccessDenied")
}

async fn ranges_are_read_leniently(bench: Bench) -> Result<()> {
    bench.put("k", b"0123456789").await?;
    for (range, bytes) in [
        ("Bytes=0-1", "01"),
        ("bytes= 0-1", "01"),
        ("bytes=8-99999999999999999999", "89"),
    ] {
        let request = bench.object("GET", "k").header("range", range).signed(&bench.target)?;
        let answer = request.send(&bench.target).await?;
        answer.expect_status(206).with_context(|| range.to_owned())?;
        ensure!(answer.text() == bytes, "{range}: {}", answer.text());
    }
    let far = bench.object("GET", "k").header("range", "bytes=99999999999999999999-");
    far.signed(&bench.target)?
        .send(&bench.target)
        .await?
        .expect_error(416, "InvalidRange")
}

async fn malformed_ranges_on_presigned_urls(bench: Bench) -> Result<()> {
    bench.put("k", b"0123456789").await?;
    let presign = Presign {
        time: AmzTime::now(),
        expires: 60,
    };
    let request = bench.object("GET", "k").query("response-content-type", "text/a+b c");
    let answer = request
        .presigned(&bench.target, &presign)?
        .header("range", "bytes=0-1,3-4")
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    ensure!(answer.text() == "0123456789", "{}", answer.text());
    ensure!(
        answer.header("content-type") == Some("text/a+b c"),
        "{:?}",
        answer.headers
    );
    Ok(())
}

async fn an_object_is_its_own_part(bench: Bench) -> Result<()> {
    bench.put("k", b"0123").await?;
    let part = |number: &str| {
        bench
            .object("GET", "k")
            .query("partNumber", number)
            .signed(&bench.target)
    };
    let first = part("1")?.send(&bench.target).await?;
    first.expect_status(206)?;
    ensure!(first.text() == "0123");
    ensure!(
        first.header("content-range") == Some("bytes 0-3/4"),
        "{:?}",
        first.headers
    );
    part("2")?
        .send(&bench.target)
        .await?
        .expect_error(416, "InvalidPartNumber")?;
    for number in ["0", "-1", "x"] {
        part(number)?
            .send(&bench.target)
            .await?
            .expect_error(400, "InvalidArgument")?;
    }
    let both = bench
        .object("GET", "k")
        .query("partNumber", "1")
        .header("range", "bytes=0-1");
    both.signed(&bench.target)?
        .send(&bench.target)
        .await?
        .expect_error(400, "InvalidRequest")
}

/// S3 API Reference, "GetObject": only a signed request may set the headers of its answer.
async fn overrides_need_a_signature(bench: Bench) -> Result<()> {
    bench.put("k", b"x").await?;
    let request = bench.object("GET", "k").query("response-content-type", "text/html");
    let answer = request.send(&bench.target).await?;
    ensure!(
        matches!(answer.status, 400 | 403),
        "{} {}",
        answer.status,
        answer.text()
    );
    Ok(())
}
