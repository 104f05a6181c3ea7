//! Virtual-host style: the bucket stands in the `Host` header (S3 User Guide, "Virtual hosting of buckets").

use anyhow::{Result, ensure};

use crate::{
    case::{Bench, Skip},
    wire::{AmzTime, Presign, Request},
};

crate::cases! {
    "GetObject": virtual_host_style;
    "ListObjectsV2": virtual_host_style_listing;
}

fn at_host(bench: &Bench, method: &'static str, path: &str) -> Result<Request> {
    let Some(domain) = &bench.target.domain else {
        return Err(Skip("no domain is known of the endpoint").into());
    };
    let port = bench
        .target
        .authority()?
        .rsplit_once(':')
        .map_or("80", |(_, port)| port);
    let mut request = Request::new(method, path);
    request.host = Some(format!("{}.{domain}:{port}", bench.bucket));
    Ok(request)
}

async fn virtual_host_style(bench: Bench) -> Result<()> {
    let put = at_host(&bench, "PUT", "/a%20b/c")?
        .body("hello")
        .signed(&bench.target)?;
    put.send(&bench.target).await?.expect_status(200)?;
    ensure!(bench.get("a b/c").await? == b"hello", "path style sees another object");
    let got = at_host(&bench, "GET", "/a%20b/c")?
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    ensure!(got.body == b"hello", "{}", got.text());
    let presign = Presign {
        time: AmzTime::now(),
        expires: 60,
    };
    let got = at_host(&bench, "GET", "/a%20b/c")?
        .presigned(&bench.target, &presign)?
        .send(&bench.target)
        .await?;
    ensure!(got.body == b"hello", "{}", got.text());
    let missing = at_host(&bench, "GET", "/missing")?
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    missing.expect_error(404, "NoSuchKey")
}

async fn virtual_host_style_listing(bench: Bench) -> Result<()> {
    bench.put("only", b"x").await?;
    let list = at_host(&bench, "GET", "/")?
        .query("list-type", "2")
        .signed(&bench.target)?
        .send(&bench.target)
        .await?;
    list.expect_status(200)?;
    ensure!(list.text().contains("<Key>only</Key>"), "{}", list.text());
    Ok(())
}
