//! Background work yields to clients.
//!
//! A loop that works in the background (the sweep, a scrub, a compression) asks [`Pace::step`] before each step. A step
//! waits for two things:
//!
//! 1. **its turn**: all background work together moves [`background_rate`](crate::config::Bounds::background_rate) bytes
//!    a second, whatever clients do;
//! 2. **quiet**: while requests wait, or more are under way than [`Pace`] was made for, at most [`YIELD_MAX`].
//!
//! So background work slows down under load, and never stops: one step a second is always done.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::admission::Admission;

/// The longest that one step waits for clients.
const YIELD_MAX: Duration = Duration::from_secs(1);
/// How often it looks whether it is quiet. A request takes some milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Work that was not done earlier may be done at once, up to what this time has room for.
const BURST: Duration = Duration::from_millis(250);
/// Bytes that a step counts for at least: it costs a few index operations, or a sync.
const STEP_LEN_MIN: u64 = 4 << 10;

/// The pace of background work, shared by all loops of it.
#[derive(Debug)]
pub(crate) struct Pace {
    admission: Arc<Admission>,
    /// Bytes a second.
    rate: u64,
    /// Requests that may be under way while it is still quiet.
    quiet_max: usize,
    /// When the next step may begin.
    next: Mutex<Instant>,
}

impl Pace {
    /// A pace of `rate` bytes a second beside the requests of `admission`. Up to `quiet_max` requests at a time do not
    /// slow it down.
    pub(crate) fn new(admission: Arc<Admission>, rate: u64, quiet_max: usize) -> Self {
        Self {
            admission,
            rate: rate.max(1),
            quiet_max,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until a step that reads or writes about `bytes` may be done. Keep steps short: a step is not interrupted.
    /// Dropping the future gives up the wait, not the turn.
    pub(crate) async fn step(&self, bytes: u64) {
        sleep_until(self.turn(bytes.max(STEP_LEN_MIN))).await;
        let begun = Instant::now();
        while self.is_busy() && begun.elapsed() < YIELD_MAX {
            sleep(LOOK_EVERY).await;
        }
    }

    /// When a step may begin; those behind it come after its bytes.
    fn turn(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.rate);
        let took = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let mut next = self.next.lock().expect("nothing panics while it holds this lock");
        let turn = (*next).max(earliest);
        *next = turn.checked_add(took).unwrap_or(turn);
        turn
    }

    fn is_busy(&self) -> bool {
        let load = self.admission.load();
        load.waiting > 0 || load.running > self.quiet_max
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::admission::{Client, Limits, Permit};

    fn admission() -> Arc<Admission> {
        Admission::new(Limits {
            requests: 8,
            bytes: 1 << 20,
            waiting: 8,
            patience: YIELD_MAX,
        })
    }

    async fn request(admission: &Arc<Admission>) -> Permit {
        let client = Client {
            address: IpAddr::from([127, 0, 0, 1]),
            access_key: None,
        };
        admission.admit(client, 1).await.unwrap()
    }

    #[tokio::test]
    async fn all_work_together_keeps_the_rate() {
        let pace = Pace::new(admission(), 1 << 20, 0);
        let begun = Instant::now();
        let work = async || {
            for _ in 0..5 {
                pace.step(1 << 16).await;
            }
        };
        tokio::join!(work(), work());
        // 640 KiB, of which the last step is still to be paid for, and a burst was free: 0.31 s and no less.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(300), "{took:?}");
    }

    #[tokio::test]
    async fn load_slows_work_down_and_does_not_stop_it() {
        let admission = admission();
        let pace = Pace::new(Arc::clone(&admission), 1 << 30, 1);
        let one = request(&admission).await;
        let begun = Instant::now();
        for _ in 0..10 {
            pace.step(1).await;
        }
        assert!(begun.elapsed() < YIELD_MAX, "one request at a time is quiet");
        let two = request(&admission).await;
        let begun = Instant::now();
        pace.step(1).await;
        assert!(begun.elapsed() >= YIELD_MAX);
        let stepping = async {
            pace.step(1).await;
            Instant::now()
        };
        let quiet = async {
            sleep(Duration::from_millis(100)).await;
            drop((one, two));
            Instant::now()
        };
        let (stepped, quiet) = tokio::join!(stepping, quiet);
        assert!(stepped >= quiet, "the step did not wait for quiet");
    }
}
