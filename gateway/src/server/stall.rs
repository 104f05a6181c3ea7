//! When a client is too slow.
//!
//! A client may take its time, but it must move: in every span of [`client_timeout`](crate::config::Bounds) that the
//! server has spent waiting for it, at least [`RATE_MIN`] bytes a second. Time that the server itself needs does not
//! count, so a slow disk cuts nobody off. One [`Stall`] watches one direction.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The least rate in bytes a second: a hundredth of a bad mobile connection, and still enough that whoever holds many
/// requests open for long has to move something for it.
const RATE_MIN: u64 = 4 << 10;

/// Watches how much moves while the server waits.
#[derive(Debug)]
pub(super) struct Stall {
    window: Duration,
    /// Time that was waited in this window, up to `since`.
    waited: Duration,
    /// Since when it waits now.
    since: Option<Instant>,
    /// Bytes that moved in this window.
    moved: u64,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            waited: Duration::ZERO,
            since: None,
            moved: 0,
            alarm: None,
        }
    }

    /// The client moved `len` bytes.
    pub(super) fn moved(&mut self, len: usize) {
        if let Some(since) = self.since.take() {
            self.waited = self.waited.saturating_add(since.elapsed());
        }
        self.moved = self.moved.saturating_add(len as u64);
        if self.waited >= self.window && self.is_fast_enough() {
            self.begin_window();
        }
    }

    /// Waits for the client; ready when it has been too slow.
    pub(super) fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let is_new = self.since.is_none();
            let since = *self.since.get_or_insert_with(Instant::now);
            let deadline = since + self.window.saturating_sub(self.waited);
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if is_new {
                alarm.as_mut().reset(deadline);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !self.is_fast_enough() {
                return Poll::Ready(());
            }
            self.begin_window();
        }
    }

    fn is_fast_enough(&self) -> bool {
        u128::from(self.moved) * 1000 >= u128::from(RATE_MIN) * self.window.as_millis()
    }

    fn begin_window(&mut self) {
        self.waited = Duration::ZERO;
        self.since = None;
        self.moved = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use tokio::time::{sleep, timeout};

    use super::*;

    const WINDOW: Duration = Duration::from_millis(250);

    /// Moves `len` bytes every tenth of a window, and tells after how many it was cut off.
    async fn cut_off_after(len: usize) -> Option<u32> {
        let mut stall = Stall::new(WINDOW);
        for n in 0..25 {
            let mut waiting = pin!(poll_fn(|cx| stall.poll_waiting(cx)));
            if timeout(WINDOW / 10, &mut waiting).await.is_ok() {
                return Some(n);
            }
            stall.moved(len);
        }
        None
    }

    #[tokio::test]
    async fn who_moves_too_little_is_cut_off_after_a_window() {
        let (silent, slow, fast) = tokio::join!(cut_off_after(0), cut_off_after(10), cut_off_after(1 << 10));
        for count in [silent, slow] {
            assert!((7..=10).contains(&count.unwrap()), "{count:?}");
        }
        assert_eq!(fast, None);
    }

    #[tokio::test]
    async fn the_time_of_the_server_does_not_count() {
        let mut stall = Stall::new(WINDOW);
        for _ in 0..3 {
            let waiting = poll_fn(|cx| stall.poll_waiting(cx));
            assert!(timeout(WINDOW / 10, waiting).await.is_err());
            stall.moved(1);
            sleep(WINDOW).await;
        }
        poll_fn(|cx| stall.poll_waiting(cx)).await;
    }
}
