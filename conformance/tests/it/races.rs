//! Races through the wire: many clients at one key at the same moment.
//!
//! `LITHOS_TEST_FULL=1` takes the number of rounds of the promise (a thousand) instead of fifty.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lithos_conformance::{
    case::Bench,
    pattern::{Dice, fresh_seed, md5_hex},
    wire::{Connection, Request, Response, element},
};
use tokio::{sync::Barrier, task::JoinSet};

use crate::images::Images;

const CLIENTS: usize = 32;
/// Readers of the second race, and how often each looks.
const READERS: usize = 3;
const LOOKS: usize = 2;
/// Most microseconds that a client holds back, so that not always the same one is first.
const DELAY_MAX: u64 = 2_000;
/// The same for an abort, which has less to do than a completion and would win nearly always.
const ABORT_DELAY_MAX: u64 = 4 * DELAY_MAX;

fn rounds() -> usize {
    if std::env::var_os("LITHOS_TEST_FULL").is_some() {
        1000
    } else {
        50
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_32_clients_that_want_to_be_first_exactly_one_is() -> Result<()> {
    let images = Images::start().await?;
    let mut connections = connect(&images.bench, CLIENTS).await?;
    for round in 0..rounds() {
        let key = format!("first/{round}");
        let start = Arc::new(Barrier::new(CLIENTS));
        let mut clients = JoinSet::new();
        for (n, mut connection) in connections.drain(..).enumerate() {
            let (bench, key, start) = (images.bench.clone(), key.clone(), Arc::clone(&start));
            clients.spawn(async move {
                let put = bench.object("PUT", &key).header("if-none-match", "*");
                let put = put.body(content(round, n)).signed(&bench.target)?;
                start.wait().await;
                let answer = connection.send(&put).await?;
                anyhow::Ok((n, connection, answer))
            });
        }
        let mut winners = Vec::new();
        while let Some(ended) = clients.join_next().await {
            let (n, connection, answer) = ended??;
            connections.push(connection);
            match answer.status {
                200 => winners.push(n),
                409 => answer.expect_error(409, "ConditionalRequestConflict")?,
                _ => answer.expect_error(412, "PreconditionFailed")?,
            }
        }
        let [winner] = winners[..] else {
            bail!("in round {round} these won: {winners:?}");
        };
        let stored = images.bench.get(&key).await?;
        ensure!(
            stored == content(round, winner),
            "in round {round} client {winner} won, but another one's content is there"
        );
    }
    Ok(())
}

fn content(round: usize, client: usize) -> Vec<u8> {
    format!("round {round}, client {client}").into_bytes()
}

async fn connect(bench: &Bench, count: usize) -> Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(&bench.target).await?);
    }
    Ok(connections)
}

/// What an operation did to the key, or saw there. Contents are known by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Wrote(Option<usize>),
    Saw(Option<usize>),
}

/// An operation that was answered, and when.
#[derive(Debug, Clone, Copy)]
struct Event {
    begun: Instant,
    ended: Instant,
    effect: Effect,
}

/// Whether there is one order of the events that explains all of them: each takes effect at a moment between its beginning
/// and its end, and a look sees what was written last (linearizability of a register; Herlihy and Wing, 1990).
fn is_consistent(events: &[Event]) -> bool {
    let all = (1_u32 << events.len()) - 1;
    let mut seen = HashSet::new();
    let mut open = vec![(0_u32, None)];
    while let Some((done, state)) = open.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, state)) {
            continue;
        }
        let left = || (0..events.len()).filter(move |n| done & (1 << n) == 0);
        for next in left() {
            if left().any(|other| events[other].ended < events[next].begun) {
                continue;
            }
            match events[next].effect {
                Effect::Wrote(written) => open.push((done | 1 << next, written)),
                Effect::Saw(what) if what == state => open.push((done | 1 << next, state)),
                Effect::Saw(_) => {}
            }
        }
    }
    false
}

#[test]
fn histories_that_no_order_explains_are_found() {
    let origin = Instant::now();
    let event = |begun: u64, ended: u64, effect| Event {
        begun: origin + Duration::from_millis(begun),
        ended: origin + Duration::from_millis(ended),
        effect,
    };
    let (wrote, saw) = (Effect::Wrote, Effect::Saw);
    // A look during a write may see either.
    for seen in [None, Some(1)] {
        assert!(is_consistent(&[event(0, 9, wrote(Some(1))), event(1, 2, saw(seen))]));
    }
    // But not first the new and then the old.
    assert!(!is_consistent(&[
        event(0, 9, wrote(Some(1))),
        event(1, 2, saw(Some(1))),
        event(3, 4, saw(None))
    ]));
    // What was deleted after the write was answered does not come back.
    let deleted = [event(0, 1, wrote(Some(1))), event(2, 3, wrote(None))];
    assert!(is_consistent(&[&deleted[..], &[event(4, 5, saw(None))]].concat()));
    assert!(!is_consistent(&[&deleted[..], &[event(4, 5, saw(Some(1)))]].concat()));
    // Nothing comes from nowhere.
    assert!(!is_consistent(&[event(0, 1, saw(Some(7)))]));
}

/// What the clients of the second race do to the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Complete,
    Abort,
    Put(usize),
    Delete,
    Look,
}

/// The content that the upload completes to, and those that are put.
const UPLOADED: usize = 0;
const PUT: [usize; 2] = [1, 2];

/// A key that clients fight for.
#[derive(Debug, Clone)]
struct Arena {
    bench: Bench,
    key: String,
    round: usize,
    upload: String,
    part_etag: String,
}

impl Arena {
    /// Begins an upload of one part.
    async fn new(bench: &Bench, round: usize) -> Result<Self> {
        let key = format!("arena/{}", round % 3);
        let at = || (bench.client.create_multipart_upload().bucket(&bench.bucket)).key(&key);
        let upload = at().send().await?.upload_id.context("no upload id")?;
        let part = bench.client.upload_part().bucket(&bench.bucket).key(&key);
        let part = part.upload_id(&upload).part_number(1);
        let part = part.body(content(round, UPLOADED).into()).send().await?;
        Ok(Self {
            bench: bench.clone(),
            key,
            round,
            upload,
            part_etag: part.e_tag.context("the part has no ETag")?,
        })
    }

    fn request(&self, act: Act) -> Result<Request> {
        let of_upload = |method| self.bench.object(method, &self.key).query("uploadId", &self.upload);
        let request = match act {
            Act::Complete => of_upload("POST").body(format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
                self.part_etag
            )),
            Act::Abort => of_upload("DELETE"),
            Act::Put(number) => self.bench.object("PUT", &self.key).body(content(self.round, number)),
            Act::Delete => self.bench.object("DELETE", &self.key),
            Act::Look => self.bench.object("GET", &self.key),
        };
        request.signed(&self.bench.target)
    }

    /// What an answer says of the key; `None` if the act had no effect on it.
    fn effect(&self, act: Act, answer: &Response) -> Result<Option<Effect>> {
        Ok(match (act, answer.status) {
            // An error may come with status 200, once the answer has begun.
            (Act::Complete, 200) if element(&answer.text(), "Code").is_none() => Some(Effect::Wrote(Some(UPLOADED))),
            (Act::Complete | Act::Abort, 404) => {
                answer.expect_error(404, "NoSuchUpload")?;
                None
            }
            (Act::Abort, 204) => None,
            (Act::Put(number), 200) => Some(Effect::Wrote(Some(number))),
            (Act::Delete, 204) => Some(Effect::Wrote(None)),
            (Act::Look, 200) => Some(Effect::Saw(Some(self.known(answer)?))),
            (Act::Look, 404) => Some(Effect::Saw(None)),
            _ => bail!("{act:?} was answered {}: {}", answer.status, answer.text()),
        })
    }

    /// Which content this is: body and ETag must be of one.
    fn known(&self, answer: &Response) -> Result<usize> {
        let number = (0..=PUT.len()).find(|number| content(self.round, *number) == answer.body);
        let number = number.with_context(|| format!("nobody wrote {:?}", answer.text()))?;
        let etag = answer.header("etag").unwrap_or_default().trim_matches('"');
        let is_own = if number == UPLOADED {
            etag.ends_with("-1")
        } else {
            etag == md5_hex(&answer.body)
        };
        ensure!(is_own, "content {number} has the ETag {etag}");
        Ok(number)
    }

    /// An act by a client of its own.
    async fn perform(&self, act: Act, connection: &mut Connection) -> Result<(u16, Option<Event>)> {
        let request = self.request(act)?;
        let begun = Instant::now();
        let answer = connection.send(&request).await?;
        let ended = Instant::now();
        let event = self.effect(act, &answer)?.map(|effect| Event { begun, ended, effect });
        Ok((answer.status, event))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn complete_abort_put_and_delete_of_one_key_leave_one_history() -> Result<()> {
    let images = Images::start().await?;
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut acts = vec![Act::Complete, Act::Abort, Act::Delete, Act::Delete];
    acts.extend(PUT.map(Act::Put));
    acts.extend([Act::Look; READERS]);
    let mut connections = connect(&images.bench, acts.len()).await?;
    let (mut completed, mut aborted) = (0, 0);
    for round in 0..rounds() {
        let arena = Arena::new(&images.bench, round).await?;
        // What earlier rounds left is not part of this one.
        images
            .bench
            .client
            .delete_object()
            .bucket(&images.bench.bucket)
            .key(&arena.key)
            .send()
            .await?;
        let start = Arc::new(Barrier::new(acts.len()));
        let mut clients = JoinSet::new();
        for (act, mut connection) in acts.iter().copied().zip(connections.drain(..)) {
            let (arena, start) = (arena.clone(), Arc::clone(&start));
            let delay_max = if act == Act::Abort { ABORT_DELAY_MAX } else { DELAY_MAX };
            let delay = Duration::from_micros(dice.below(delay_max));
            clients.spawn(async move {
                start.wait().await;
                tokio::time::sleep(delay).await;
                let mut done = Vec::new();
                for _ in 0..if act == Act::Look { LOOKS } else { 1 } {
                    done.push(arena.perform(act, &mut connection).await?);
                }
                anyhow::Ok((act, connection, done))
            });
        }
        let (mut events, mut won) = (Vec::new(), Vec::new());
        while let Some(ended) = clients.join_next().await {
            let (act, connection, done) = ended??;
            connections.push(connection);
            won.extend(
                done.iter()
                    .filter(|(status, _)| matches!(act, Act::Complete | Act::Abort) && *status < 300)
                    .map(|_| act),
            );
            events.extend(done.into_iter().filter_map(|(_, event)| event));
        }
        let [won] = won[..] else {
            bail!("in round {round} these had the upload: {won:?}");
        };
        completed += usize::from(won == Act::Complete);
        aborted += usize::from(won == Act::Abort);
        let (_, last) = arena.perform(Act::Look, &mut connections[0]).await?;
        let last = last.context("a look sees something or nothing")?;
        events.push(last);
        ensure!(
            is_consistent(&events),
            "in round {round} of seed {seed} no order explains {events:#?}"
        );
        expect_listed(&arena, last.effect != Effect::Saw(None)).await?;
    }
    println!("{completed} completed, {aborted} aborted");
    ensure!(
        completed > 0 && aborted > 0,
        "one side won every time: this was no race"
    );
    images.bench.clear().await?;
    images.server.await_no_blobs()
}

/// Listings say the same as the look did, and the upload is in none.
async fn expect_listed(arena: &Arena, there: bool) -> Result<()> {
    let list = arena
        .bench
        .client
        .list_objects_v2()
        .bucket(&arena.bench.bucket)
        .prefix(&arena.key);
    let listed = list.send().await?.contents().len();
    ensure!(
        listed == usize::from(there),
        "{listed} objects are listed, and there: {there}"
    );
    let uploads = arena
        .bench
        .client
        .list_multipart_uploads()
        .bucket(&arena.bench.bucket)
        .send()
        .await?;
    ensure!(
        uploads.uploads().is_empty(),
        "an upload that ended is listed: {uploads:?}"
    );
    Ok(())
}
