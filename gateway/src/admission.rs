//! Which requests go ahead, and in which order the others wait.
//!
//! A request goes ahead when there is a place for it and room for the bytes it may hold in memory ([`Limits`]). It keeps
//! both, as a [`Permit`], until the last byte of its answer has been taken. A slow reader cannot keep them for ever: the
//! socket cuts off who takes less than a minimum (`server/stall.rs`).
//!
//! # Fairness
//!
//! Requests wait in one line a client, and places are given to the lines in turn, so a client that has one request waits
//! for at most one request of each other client, however many these have sent. Three rules keep one client from closing
//! the door:
//!
//! - it has at most [`SHARE_NUMERATOR`] / [`SHARE_DENOMINATOR`] of the places and of the bytes;
//! - when too many wait, it is the newest request in the longest line that is refused;
//! - a request waits for a bounded time, and is refused then.
//!
//! A waiting request holds its connection and nothing else: its body has not been read. All of this is in memory; a
//! crash leaves nothing.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::oneshot;

/// The part of all places, and of all bytes, that one client may have: the rest lets others in at once.
const SHARE_NUMERATOR: u64 = 7;
const SHARE_DENOMINATOR: u64 = 8;

/// How much there is to give.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests at a time.
    pub(crate) requests: usize,
    /// Bytes that they hold in memory together.
    pub(crate) bytes: u64,
    /// Requests that wait.
    pub(crate) waiting: usize,
    /// How long one waits.
    pub(crate) patience: Duration,
}

impl Limits {
    fn requests_share(&self) -> usize {
        let share = share(self.requests as u64);
        usize::try_from(share).unwrap_or(usize::MAX)
    }

    fn bytes_share(&self) -> u64 {
        share(self.bytes)
    }
}

fn share(whole: u64) -> u64 {
    let rest = whole.div_ceil(SHARE_DENOMINATOR) * (SHARE_DENOMINATOR - SHARE_NUMERATOR);
    whole.saturating_sub(rest).max(1)
}

/// Whose request it is: those of one client wait in one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// The access key it claims, if that is one that is known here: names that anybody can make up get no lines.
    pub(crate) access_key: Option<Arc<str>>,
}

/// Why a request does not go ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("too many requests are waiting")]
    Full,
    #[error("the request has waited too long")]
    Late,
}

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests that have a permit.
    pub(crate) running: usize,
    /// Requests that wait for one.
    pub(crate) waiting: usize,
    /// Bytes that the permits stand for.
    pub(crate) bytes: u64,
}

/// Gives permits.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    bytes: u64,
    waiting: usize,
    /// Numbers tickets, so that one that gives up is found.
    tickets: u64,
    lanes: HashMap<Client, Lane>,
    /// The clients that have requests waiting, the one whose turn it is in front.
    ring: VecDeque<Client>,
}

/// One client: what it has, and what waits.
#[derive(Debug, Default)]
struct Lane {
    running: usize,
    bytes: u64,
    waiting: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    bytes: u64,
    grant: oneshot::Sender<Permit>,
}

/// A ticket that has been called: it is told when the lock is free again, because one that is not wanted any more comes
/// back at once.
struct Called {
    client: Client,
    ticket: Ticket,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    /// Waits until a request of `client` that holds up to `bytes` in memory may go ahead. One that holds more than a
    /// client's share counts as holding the share, so that it can go ahead at all.
    ///
    /// # Errors
    ///
    /// [`Refused`] if too many wait, or it has waited for too long.
    pub(crate) async fn admit(self: &Arc<Self>, client: Client, bytes: u64) -> Result<Permit, Refused> {
        let bytes = bytes.min(self.limits.bytes_share());
        let (grant, granted) = oneshot::channel();
        let number = self.queue(&client, bytes, grant);
        let _waiter = Waiter {
            admission: self,
            client,
            number,
        };
        match tokio::time::timeout(self.limits.patience, granted).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Refused::Full),
            Err(_) => Err(Refused::Late),
        }
    }

    /// How things stand now.
    pub(crate) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            running: state.running,
            waiting: state.waiting,
            bytes: state.bytes,
        }
    }

    fn queue(self: &Arc<Self>, client: &Client, bytes: u64, grant: oneshot::Sender<Permit>) -> u64 {
        let mut state = self.lock();
        state.tickets += 1;
        let number = state.tickets;
        let lane = state.lanes.entry(client.clone()).or_default();
        lane.waiting.push_back(Ticket { number, bytes, grant });
        if lane.waiting.len() == 1 {
            state.ring.push_back(client.clone());
        }
        state.waiting += 1;
        let called = state.call(&self.limits);
        let refused = (state.waiting > self.limits.waiting).then(|| state.refuse_newest_of_longest());
        drop(state);
        // Without its sender, whoever waits for it knows.
        drop(refused);
        self.tell(called);
        number
    }

    fn tell(self: &Arc<Self>, called: Vec<Called>) {
        for Called { client, ticket } in called {
            let permit = Permit {
                admission: Arc::clone(self),
                client,
                bytes: ticket.bytes,
            };
            // One that has been given up meanwhile comes back here, and its drop lets the next one go.
            let _ = ticket.grant.send(permit);
        }
    }

    fn release(self: &Arc<Self>, client: &Client, requests: usize, bytes: u64) {
        let mut state = self.lock();
        state.running = state.running.saturating_sub(requests);
        state.bytes = state.bytes.saturating_sub(bytes);
        if let Some(lane) = state.lanes.get_mut(client) {
            lane.running = lane.running.saturating_sub(requests);
            lane.bytes = lane.bytes.saturating_sub(bytes);
        }
        state.forget_idle(client);
        let called = state.call(&self.limits);
        drop(state);
        self.tell(called);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Takes out the tickets that may go ahead now, each line in its turn.
    fn call(&mut self, limits: &Limits) -> Vec<Called> {
        let mut called = Vec::new();
        // Lines in a row whose client has its share already.
        let mut passed = 0;
        while self.running < limits.requests && passed < self.ring.len() {
            let Some(client) = self.ring.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(&client) else {
                continue;
            };
            let Some(bytes) = lane.waiting.front().map(|ticket| ticket.bytes) else {
                continue;
            };
            if lane.running >= limits.requests_share() || lane.bytes.saturating_add(bytes) > limits.bytes_share() {
                self.ring.push_back(client);
                passed += 1;
                continue;
            }
            if self.bytes.saturating_add(bytes) > limits.bytes {
                // Whoever needs much would never get it if all that need little went by.
                self.ring.push_front(client);
                break;
            }
            let Some(ticket) = lane.waiting.pop_front() else {
                continue;
            };
            lane.running += 1;
            lane.bytes += bytes;
            self.running += 1;
            self.bytes += bytes;
            self.waiting = self.waiting.saturating_sub(1);
            if !lane.waiting.is_empty() {
                self.ring.push_back(client.clone());
            }
            passed = 0;
            called.push(Called { client, ticket });
        }
        called
    }

    fn refuse_newest_of_longest(&mut self) -> Option<Ticket> {
        let longest = self.lanes.iter().max_by_key(|(_, lane)| lane.waiting.len());
        let client = longest.map(|(client, _)| client.clone())?;
        let newest = self.lanes.get_mut(&client)?.waiting.pop_back();
        self.waiting = self.waiting.saturating_sub(usize::from(newest.is_some()));
        self.forget_idle(&client);
        newest
    }

    /// Takes out a ticket that is not wanted any more, if it still waits.
    fn give_up(&mut self, client: &Client, number: u64) {
        let Some(lane) = self.lanes.get_mut(client) else { return };
        // Numbers in a line grow.
        if let Ok(at) = lane.waiting.binary_search_by_key(&number, |ticket| ticket.number) {
            lane.waiting.remove(at);
            self.waiting = self.waiting.saturating_sub(1);
            self.forget_idle(client);
        }
    }

    /// Takes a client without waiting requests out of the ring, and one without any out of the books.
    fn forget_idle(&mut self, client: &Client) {
        let Some(lane) = self.lanes.get(client) else { return };
        if !lane.waiting.is_empty() {
            return;
        }
        let idle = lane.running == 0;
        self.ring.retain(|waiting| waiting != client);
        if idle {
            self.lanes.remove(client);
        }
    }
}

/// Gives a ticket up when whoever waits goes away.
struct Waiter<'a> {
    admission: &'a Arc<Admission>,
    client: Client,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.give_up(&self.client, self.number);
        // A large one at the head of the line may have held up smaller ones.
        let called = state.call(&self.admission.limits);
        drop(state);
        self.admission.tell(called);
    }
}

/// The right of one request to go ahead. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    client: Client,
    bytes: u64,
}

impl Permit {
    /// The request holds no more than `bytes` from now on.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let freed = self.bytes.saturating_sub(bytes);
        if freed > 0 {
            self.bytes -= freed;
            self.admission.release(&self.client, 0, freed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release(&self.client, 1, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::BoxFuture};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    type Waiting = BoxFuture<'static, Result<Permit, Refused>>;

    fn client(number: u8) -> Client {
        Client {
            address: IpAddr::from([127, 0, 0, number]),
            access_key: None,
        }
    }

    fn admission(requests: usize, bytes: u64, waiting: usize) -> Arc<Admission> {
        Admission::new(Limits {
            requests,
            bytes,
            waiting,
            patience: PATIENCE,
        })
    }

    /// Asks for a permit, and polls once, so that it stands in line.
    fn ask(admission: &Arc<Admission>, number: u8, bytes: u64) -> (Waiting, Option<Result<Permit, Refused>>) {
        let admission = Arc::clone(admission);
        let mut asking: Waiting = async move { admission.admit(client(number), bytes).await }.boxed();
        let now = (&mut asking).now_or_never();
        (asking, now)
    }

    fn granted(admission: &Arc<Admission>, number: u8, bytes: u64) -> Permit {
        ask(admission, number, bytes).1.unwrap().unwrap()
    }

    fn waiting(admission: &Arc<Admission>, number: u8, bytes: u64) -> Waiting {
        let (asking, now) = ask(admission, number, bytes);
        assert!(now.is_none(), "client {number} does not wait");
        asking
    }

    #[tokio::test]
    async fn one_request_is_next_however_many_another_client_has_waiting() {
        let admission = admission(1, 100, 2000);
        let running = granted(&admission, 1, 1);
        let mut greedy: Vec<Waiting> = (0..1000).map(|_| waiting(&admission, 1, 1)).collect();
        let mut modest = waiting(&admission, 2, 1);
        drop(running);
        // The turn is the first client's, and then the second's.
        let first = greedy.first_mut().unwrap().now_or_never().unwrap().unwrap();
        assert!((&mut modest).now_or_never().is_none());
        drop(first);
        let modest = modest.now_or_never().unwrap().unwrap();
        assert_eq!(admission.load().waiting, 999);
        drop((modest, greedy));
        let idle = Load {
            running: 0,
            waiting: 0,
            bytes: 0,
        };
        assert_eq!(admission.load(), idle);
        assert!(admission.lock().lanes.is_empty() && admission.lock().ring.is_empty());
    }

    #[tokio::test]
    async fn a_client_leaves_room_for_others() {
        let admission = admission(16, 1600, 100);
        let mut permits: Vec<Permit> = (0..14).map(|_| granted(&admission, 1, 10)).collect();
        let mut more = waiting(&admission, 1, 10);
        permits.push(granted(&admission, 2, 10));
        permits.push(granted(&admission, 3, 10));
        let mut other = waiting(&admission, 2, 10);
        permits.remove(0);
        assert!((&mut more).now_or_never().is_some());
        assert!((&mut other).now_or_never().is_some());
    }

    #[tokio::test]
    async fn bytes_are_given_in_turn_and_given_back_early() {
        let admission = admission(16, 80, 100);
        let mut large = granted(&admission, 1, 1000);
        assert_eq!(admission.load().bytes, 70);
        let mut next = waiting(&admission, 2, 70);
        // It needs little, but comes after one that needs much.
        let mut small = waiting(&admission, 3, 1);
        large.shrink(5);
        assert!((&mut next).now_or_never().unwrap().is_ok());
        assert!((&mut small).now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn one_that_gives_up_does_not_hold_up_others() {
        let admission = admission(16, 80, 100);
        let _large = granted(&admission, 1, 70);
        let next = waiting(&admission, 2, 70);
        let mut small = waiting(&admission, 3, 1);
        drop(next);
        assert!((&mut small).now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn when_too_many_wait_the_longest_line_loses_its_newest() {
        let admission = admission(1, 100, 3);
        let _running = granted(&admission, 1, 1);
        let mut greedy: Vec<Waiting> = (0..3).map(|_| waiting(&admission, 1, 1)).collect();
        let mut modest = waiting(&admission, 2, 1);
        let newest = greedy.pop().unwrap().now_or_never().unwrap();
        assert_eq!(newest.unwrap_err(), Refused::Full);
        assert!((&mut modest).now_or_never().is_none());
        assert!(greedy.iter_mut().all(|asking| asking.now_or_never().is_none()));
        let refused = ask(&admission, 1, 1).1.unwrap();
        assert_eq!(refused.unwrap_err(), Refused::Full);
    }

    #[tokio::test]
    async fn a_request_does_not_wait_for_ever() {
        let admission = admission(1, 100, 3);
        let _running = granted(&admission, 1, 1);
        let begun = tokio::time::Instant::now();
        assert_eq!(waiting(&admission, 2, 1).await.unwrap_err(), Refused::Late);
        assert!(begun.elapsed() >= PATIENCE);
        assert_eq!(admission.load().waiting, 0);
    }
}
