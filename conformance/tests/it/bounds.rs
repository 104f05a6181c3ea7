//! What happens when clients are too many, too slow or too greedy: others are served, and they are told.
//!
//! Clients are told apart by where they come from, so greedy and modest ones take different addresses of the loopback
//! network.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lithos_conformance::{
    case::Bench,
    target::{POLL, Server, ServerOptions, Target},
    tool::{aws, run, run_failing},
    wire::{AmzTime, Payload, Request, object_path},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::exposition::{Exposition, await_metric};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
const GREEDY: Ipv4Addr = Ipv4Addr::LOCALHOST;
const MODEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A server with these arguments, and a bucket on it.
async fn start(arguments: &[&str], descriptors: Option<u64>) -> Result<(Server, Bench)> {
    let server = Server::start_with(ServerOptions {
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        descriptors,
        ..ServerOptions::default()
    })?;
    let bench = Bench::new(server.target()).await?;
    Ok((server, bench))
}

async fn connect(from: Ipv4Addr, target: &Target) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    Ok(socket.connect(target.authority()?.parse()?).await?)
}

/// Sends a request from an address; its status, and all of the answer.
async fn ask(from: Ipv4Addr, target: &Target, request: &Request) -> Result<(u16, String)> {
    let mut stream = connect(from, target).await?;
    let bytes = [request.head(target)?.as_bytes(), &request.body].concat();
    stream.write_all(&bytes).await?;
    answer(&mut stream).await
}

/// A connection on which the head of a request has been sent.
async fn sent(target: &Target, request: &Request) -> Result<TcpStream> {
    let mut stream = connect(GREEDY, target).await?;
    stream.write_all(request.head(target)?.as_bytes()).await?;
    Ok(stream)
}

async fn answer(stream: &mut TcpStream) -> Result<(u16, String)> {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no status: {answer:?}"))?, answer))
}

/// Holds a place of the server: an upload whose body does not come.
async fn hold(from: Ipv4Addr, bench: &Bench) -> Result<TcpStream> {
    let mut request = Request::new("PUT", object_path(&bench.bucket, "held"));
    request.content_length = Some("1000".to_owned());
    let signed = request.signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
    let mut stream = connect(from, &bench.target).await?;
    stream.write_all(signed.head(&bench.target)?.as_bytes()).await?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_of_one_client_do_not_hold_up_another() -> Result<()> {
    let (server, bench) = start(&["--requests-max", "8"], None).await?;
    let path = object_path(&bench.bucket, "k");
    let body = vec![9; 200_000];
    let put = Request::new("PUT", path.clone()).body(body).signed(&bench.target)?;
    ensure!(
        ask(MODEST, &bench.target, &put).await?.0 == 200,
        "the object is not there"
    );

    let stop = Arc::new(AtomicBool::new(false));
    let mut greedy = JoinSet::new();
    for _ in 0..200 {
        let (stop, target, put) = (Arc::clone(&stop), bench.target.clone(), put.clone());
        greedy.spawn(async move {
            let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                *statuses.entry(ask(GREEDY, &target, &put).await?.0).or_default() += 1;
            }
            Ok::<_, anyhow::Error>(statuses)
        });
    }
    await_metric(&server, "a queue", |counted| {
        counted.value("lithos_requests_queued") >= 20.0
    })
    .await?;
    let mut slowest = Duration::ZERO;
    for n in 0..60 {
        let request = if n % 2 == 0 {
            Request::new("GET", path.clone()).signed(&bench.target)?
        } else {
            put.clone()
        };
        let begun = Instant::now();
        let (status, text) = ask(MODEST, &bench.target, &request).await?;
        ensure!(
            status == 200,
            "request {n} of the modest client: {}",
            &text[..text.len().min(500)]
        );
        slowest = slowest.max(begun.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    while let Some(ended) = greedy.join_next().await {
        for (status, count) in ended?? {
            *statuses.entry(status).or_default() += count;
        }
    }
    println!("greedy: {statuses:?}; the slowest of 60 modest requests took {slowest:?}");
    ensure!(
        statuses.keys().all(|status| [200, 503].contains(status)) && statuses.contains_key(&200),
        "{statuses:?}"
    );
    ensure!(statuses.contains_key(&503), "the queue was never full");
    ensure!(slowest < Duration::from_secs(3), "a modest request took {slowest:?}");
    await_metric(&server, "rest", |counted| {
        counted.value("lithos_requests_in_flight") + counted.value("lithos_buffers_bytes") < 0.1
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_many_is_told_to_slow_down_in_a_way_that_clients_understand() -> Result<()> {
    let (server, bench) = start(&["--requests-max", "1"], None).await?;
    let file = server.scratch().join("large");
    std::fs::write(&file, vec![5; 24 << 20])?;
    let held = hold(GREEDY, &bench).await?;
    await_metric(&server, "a held place", |counted| {
        counted.value("lithos_requests_in_flight") > 0.5
    })
    .await?;
    // The line is filled anew whenever one in it has waited for too long.
    let (target, path) = (bench.target.clone(), object_path(&bench.bucket, "k"));
    let mut line = JoinSet::new();
    for _ in 0..4 {
        let (target, path) = (target.clone(), path.clone());
        line.spawn(async move {
            loop {
                let waiting = Request::new("HEAD", path.clone()).signed(&target)?;
                ask(GREEDY, &target, &waiting).await?;
            }
            #[expect(unreachable_code, reason = "it says the type of the error")]
            Ok::<_, anyhow::Error>(())
        });
    }
    let is_full = |counted: &Exposition| counted.value("lithos_requests_queued") > 3.5;
    await_metric(&server, "a full line", is_full).await?;

    // A body that nobody asked to wait for: all of it is sent before the answer is read.
    let put = Request::new("PUT", path).body(vec![1; 24 << 20]).signed(&target)?;
    let answer = put.send(&target).await?;
    answer.expect_error(503, "SlowDown")?;
    ensure!(answer.header("retry-after") == Some("2"), "{:?}", answer.headers);
    ensure!(answer.header("connection") == Some("close"), "{:?}", answer.headers);
    let id = answer.header("x-amz-request-id").context("no id")?;
    ensure!(
        answer.text().contains(&format!("<RequestId>{id}</RequestId>")),
        "{}",
        answer.text()
    );

    for arguments in [
        &["s3api", "head-bucket", "--bucket", bench.bucket.as_str()][..],
        &["s3api", "list-objects-v2", "--bucket", bench.bucket.as_str()],
        &[
            "s3api",
            "put-object",
            "--key",
            "k",
            "--bucket",
            bench.bucket.as_str(),
            "--body",
            "large",
        ],
    ] {
        await_metric(&server, "a full line", is_full).await?;
        let mut command = aws(server.target(), server.scratch());
        command.env("AWS_MAX_ATTEMPTS", "1").current_dir(server.scratch());
        let told = run_failing(command.args(arguments))?;
        // The answer to a HEAD has no body that could say more.
        let expected = if arguments.contains(&"head-bucket") {
            "503"
        } else {
            "SlowDown"
        };
        ensure!(told.contains(expected), "{arguments:?}: {told}");
    }
    line.shutdown().await;
    drop(held);
    run(aws(server.target(), server.scratch()).args(["s3api", "head-bucket", "--bucket", &bench.bucket]))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_is_cut_off() -> Result<()> {
    let (server, bench) = start(&["--client-timeout", "2s"], None).await?;
    let target = &bench.target;
    let path = object_path(&bench.bucket, "large");
    // More than the buffers of both sockets hold.
    let large = Request::new("PUT", path.clone()).body(vec![3; 64 << 20]);
    large.signed(target)?.send(target).await?.expect_status(200)?;
    let answer_not_taken = async {
        let get = Request::new("GET", path.clone()).signed(target)?;
        let stream = sent(target, &get).await?;
        let begun = Instant::now();
        let cut_off = "lithos_clients_cut_off_total{listener=\"transfer\"}";
        await_metric(&server, "three cut off", |counted| counted.value(cut_off) > 2.5).await?;
        let took = begun.elapsed();
        drop(stream);
        Ok(took)
    };
    let (head, xml, body, answer) =
        tokio::try_join!(slow_head(target), slow_xml(&bench), slow_body(&bench), answer_not_taken)?;
    println!("cut off: a head after {head:?}, bodies after {xml:?} and {body:?}, an answer after {answer:?}");
    for took in [head, xml, body, answer] {
        ensure!(
            took >= Duration::from_millis(1900) && took < Duration::from_secs(12),
            "{took:?}"
        );
    }
    await_metric(&server, "rest", |counted| {
        counted.value("lithos_requests_in_flight") < 0.5
    })
    .await?;
    let again = Request::new("HEAD", path).signed(target)?;
    again.send(target).await?.expect_status(200)
}

/// A head, one byte at a time, for as long as it is taken.
async fn slow_head(target: &Target) -> Result<Duration> {
    let mut stream = connect(GREEDY, target).await?;
    let begun = Instant::now();
    for byte in "GET / HTTP/1.1\r\nx-slow: ".bytes().chain(std::iter::repeat(b'x')) {
        if stream.write_all(&[byte]).await.is_err() || begun.elapsed() > PATIENCE {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(begun.elapsed())
}

/// An XML body that does not come, and is read whole before anything is made of it.
async fn slow_xml(bench: &Bench) -> Result<Duration> {
    let mut request = Request::new("POST", format!("/{}", bench.bucket)).query("delete", "");
    request.content_length = Some("1000".to_owned());
    let signed = request.signed_as(&bench.target, &Payload::Unsigned, &AmzTime::now())?;
    let mut stream = sent(&bench.target, &signed).await?;
    let begun = Instant::now();
    expect_timeout(&answer(&mut stream).await?.1)?;
    Ok(begun.elapsed())
}

/// The body of an upload, one byte at a time.
async fn slow_body(bench: &Bench) -> Result<Duration> {
    let mut stream = hold(GREEDY, bench).await?;
    let begun = Instant::now();
    let (mut reading, mut writing) = stream.split();
    let dripping = async {
        while writing.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        read = timeout(PATIENCE, reading.read_to_end(&mut answer)) => read?.map(drop)?,
        () = dripping => {}
    }
    expect_timeout(&String::from_utf8_lossy(&answer))?;
    Ok(begun.elapsed())
}

fn expect_timeout(answer: &str) -> Result<()> {
    let told = answer.starts_with("HTTP/1.1 400 ") && answer.contains("<Code>RequestTimeout</Code>");
    ensure!(told, "{answer:?}");
    Ok(())
}

/// Sends headers until the server has enough of them; how many bytes it let pass, and what it said.
async fn flood(target: &Target, line: &str) -> Result<(usize, String)> {
    /// More than any server reads of a head.
    const LEN_MAX: usize = 100 << 20;
    let mut stream = connect(GREEDY, target).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: flood\r\n").await?;
    let chunk = line.repeat((64 << 10) / line.len() + 1);
    let mut passed = 0;
    while passed < LEN_MAX && timeout(PATIENCE, stream.write_all(chunk.as_bytes())).await?.is_ok() {
        passed += chunk.len();
    }
    let mut said = Vec::new();
    // A reset may take the answer along.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await?;
    Ok((passed, String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_headers_is_refused_and_not_kept() -> Result<()> {
    /// What lies in the buffers of two sockets, many times.
    const PASSED_MAX: usize = 16 << 20;
    const GROWTH_MAX: u64 = 16 << 20;
    let (server, bench) = start(&[], None).await?;
    let before = server.memory("VmHWM")?;
    for line in [
        "x-amz-meta-flood: aaaaaaaaaaaaaaaaaaaaaaaa\r\n",
        "x-long-without-an-end-",
    ] {
        for _ in 0..10 {
            let (passed, said) = flood(&bench.target, line).await?;
            ensure!(passed < PASSED_MAX, "{passed} bytes of headers passed");
            ensure!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");
        }
    }
    // One that stops right behind the bound hears why.
    let mut stream = connect(GREEDY, &bench.target).await?;
    let many = "x-flood: y\r\n".repeat(200);
    let head = format!("GET / HTTP/1.1\r\nhost: flood\r\n{many}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let (status, said) = answer(&mut stream).await?;
    ensure!(status == 431, "{said}");
    let grown = server.memory("VmHWM")?.saturating_sub(before);
    println!("20 floods of headers: {} KiB more memory at most", grown >> 10);
    ensure!(grown < GROWTH_MAX, "it grew by {grown} bytes");
    let head = Request::new("HEAD", format!("/{}", bench.bucket)).signed(&bench.target)?;
    let (status, _) = ask(MODEST, &bench.target, &head).await?;
    ensure!(status == 200, "another client got {status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_few_descriptors_goes_on() -> Result<()> {
    let (server, bench) = start(&["--client-timeout", "5s"], Some(64)).await?;
    ensure!(
        server.log().contains("the limit of open files is small"),
        "the log is silent"
    );
    let target = &bench.target;
    // Blobs of their own, more than may be open at a time.
    let keys: Vec<String> = (0..60).map(|n| object_path(&bench.bucket, &n.to_string())).collect();
    for key in &keys {
        let put = Request::new("PUT", key.clone()).body(vec![1; 70_000]);
        put.signed(target)?.send(target).await?.expect_status(200)?;
    }
    // Connections that do nothing, and more than there are descriptors.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connect(GREEDY, target).await?);
    }
    let mut clients = JoinSet::new();
    for key in keys.clone() {
        let target = target.clone();
        clients.spawn(async move {
            // What finds no place is closed, and tried again, as clients do.
            for _ in 0..20 {
                let get = Request::new("GET", key.clone()).signed(&target)?;
                match ask(MODEST, &target, &get).await {
                    Ok((200, _)) => return Ok(()),
                    Ok((status, text)) => ensure!(status == 503, "{text}"),
                    Err(_) => sleep(POLL).await,
                }
            }
            anyhow::bail!("{key} was never answered")
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    drop(idle);
    for key in &keys {
        let get = Request::new("GET", key.clone()).signed(target)?;
        get.send(target).await?.expect_status(200)?;
    }
    let counted = Exposition::of(&server).await?;
    let open = counted.value("process_open_fds");
    println!("{open} descriptors open of 64");
    ensure!(open <= 64.0 && counted.value("process_max_fds") < 64.5, "{open}");
    ensure!(counted.sum("lithos_requests_total") > 120.0, "{counted:?}");
    Ok(())
}

/// Has the machine to itself.
mod heavy {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// What the server may grow by: the memory for bodies, and a little for each of 1,000 connections.
    const GROWTH_MAX: u64 = 32 * MIB + 64 * MIB;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_thousand_connections_do_not_make_memory_grow() -> Result<()> {
        let (server, bench) = start(&["--buffer-max", "32MiB", "--requests-max", "1000"], None).await?;
        let target = &bench.target;
        let path = object_path(&bench.bucket, "large");
        let large = Request::new("PUT", path.clone())
            .body(vec![3; 64 << 20])
            .signed(target)?;
        large.send(target).await?.expect_status(200)?;
        let before = server.memory("RssAnon")?;
        let get = Request::new("GET", path).signed(target)?;
        let mut connections = Vec::new();
        for n in 0..1000 {
            let mut stream = connect(GREEDY, target).await?;
            match n % 4 {
                // Idle; half a head; an upload that does not come; a download that is not taken.
                0 => {}
                1 => stream.write_all(b"GET / HTTP/1.1\r\nx-half: ").await?,
                2 => stream = hold(GREEDY, &bench).await?,
                _ => stream.write_all(get.head(target)?.as_bytes()).await?,
            }
            connections.push(stream);
        }
        await_metric(&server, "a thousand connections", |counted| {
            counted.value("lithos_connections{listener=\"transfer\"}") > 999.5
        })
        .await?;
        let mut most = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            most = most.max(server.memory("RssAnon")?);
            sleep(POLL).await;
        }
        let counted = Exposition::of(&server).await?;
        println!(
            "1,000 connections: {} MiB, after {} MiB; {} requests under way, {} waiting, {} MiB for bodies",
            most / MIB,
            before / MIB,
            counted.value("lithos_requests_in_flight"),
            counted.value("lithos_requests_queued"),
            counted.value("lithos_buffers_bytes") / 1_048_576.0,
        );
        ensure!(most < before + GROWTH_MAX, "it grew from {before} to {most} bytes");
        ensure!(
            counted.value("lithos_buffers_bytes") <= 32e6 * 1.05,
            "the budget is exceeded"
        );
        // Another client is served meanwhile.
        let head = Request::new("HEAD", object_path(&bench.bucket, "large")).signed(target)?;
        let (status, _) = ask(MODEST, target, &head).await?;
        ensure!(status == 200, "another client got {status}");
        drop(connections);
        // The one that the bench keeps for itself stays.
        await_metric(&server, "rest", |counted| {
            counted.value("lithos_requests_in_flight") < 0.5
                && counted.value("lithos_connections{listener=\"transfer\"}") < 1.5
        })
        .await
    }
}
