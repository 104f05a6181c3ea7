//! Work on all cores whose results are taken in order: encoding and decoding of images.
//!
//! The caller's thread finds the jobs and takes the results; threads that end with the call do what is between. Jobs and
//! results that wait are bounded, so that neither a fast reader nor a slow writer makes memory grow.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// How many threads work at most. An encoder holds up to 7 MiB, so that all of them with what waits stay below 200 MiB.
const WORKERS_MAX: usize = 16;
/// For each worker, how many jobs are begun or done and not taken: one in hand, and one to go on with.
const AHEAD: usize = 2;

/// As many workers as there are cores, within reason.
pub(crate) fn all_cores() -> NonZeroUsize {
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    cores.min(NonZeroUsize::new(WORKERS_MAX).expect("not zero"))
}

/// Half of the cores, for work in the background of a server.
pub(crate) fn half_of_the_cores() -> NonZeroUsize {
    NonZeroUsize::new(all_cores().get() / 2).unwrap_or(NonZeroUsize::MIN)
}

/// Has `count` workers, each made by `worker`, do `jobs`, and gives their results to `take` in the order of the jobs.
///
/// The first error, of whomever, ends it, and jobs that nobody has begun are dropped. Cancelling is an error of `jobs` or
/// `take`.
///
/// # Errors
///
/// That of a job, a worker or `take`.
///
/// # Panics
///
/// If a worker does.
pub(crate) fn in_order<J, R, E, W>(
    count: NonZeroUsize,
    jobs: impl Iterator<Item = Result<J, E>>,
    worker: impl Fn() -> W + Sync,
    mut take: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    J: Send,
    R: Send,
    E: Send,
    W: FnMut(J) -> Result<R, E>,
{
    let ahead = count.get().saturating_mul(AHEAD);
    let (sender, receiver) = sync_channel(ahead);
    let (receiver, stop) = (Mutex::new(receiver), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..count.get() {
            scope.spawn(|| work(&receiver, &stop, worker()));
        }
        let outcome = feed(jobs, &sender, ahead, &mut take);
        stop.store(outcome.is_err(), Ordering::Relaxed);
        drop(sender);
        outcome
    })
}

/// A job, and where its result is waited for.
type Order<J, R, E> = (J, SyncSender<Result<R, E>>);

fn feed<J, R, E>(
    jobs: impl Iterator<Item = Result<J, E>>,
    sender: &SyncSender<Order<J, R, E>>,
    ahead: usize,
    take: &mut impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let mut waiting: VecDeque<Receiver<Result<R, E>>> = VecDeque::with_capacity(ahead);
    let mut take_next = |waiting: &mut VecDeque<Receiver<Result<R, E>>>| match waiting.pop_front() {
        Some(result) => take(result.recv().expect("a worker panicked")?),
        None => Ok(()),
    };
    for job in jobs {
        if waiting.len() >= ahead {
            take_next(&mut waiting)?;
        }
        let (reply, result) = sync_channel(1);
        sender.send((job?, reply)).expect("the receiver is with the caller");
        waiting.push_back(result);
    }
    while !waiting.is_empty() {
        take_next(&mut waiting)?;
    }
    Ok(())
}

fn work<J, R, E>(
    orders: &Mutex<Receiver<Order<J, R, E>>>,
    stop: &AtomicBool,
    mut worker: impl FnMut(J) -> Result<R, E>,
) {
    loop {
        let order = orders.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, reply)) = order else {
            return;
        };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Nobody waits for it any more where an earlier result was an error.
        drop(reply.send(worker(job)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn workers(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).unwrap()
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let mut taken = Vec::new();
        let slow_first = || {
            |job: u64| {
                // The first of each few takes longest.
                (0..(7 - job % 7) * 10_000).for_each(|i| assert!(std::hint::black_box(i) < u64::MAX));
                Ok::<_, ()>(job * 2)
            }
        };
        in_order(workers(4), (0..1000).map(Ok), slow_first, |result| {
            taken.push(result);
            Ok(())
        })
        .unwrap();
        assert_eq!(taken, (0..1000).map(|job| job * 2).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_is_begun_than_may_wait() {
        let (begun, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let worker = || {
            |job: usize| {
                let ahead = begun.fetch_add(1, Ordering::SeqCst) + 1 - taken.load(Ordering::SeqCst);
                assert!(ahead <= 3 * AHEAD + 1, "{ahead}");
                Ok::<_, ()>(job)
            }
        };
        in_order(workers(3), (0..500).map(Ok), worker, |_| {
            taken.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        assert_eq!(begun.into_inner(), 500);
    }

    #[test]
    fn the_first_error_of_anybody_ends_it() {
        let fine = || |job: u32| Ok(job);
        let endless = || (0_u32..).map(Ok);
        let taken = in_order(workers(2), endless(), fine, |job| {
            if job == 100 { Err("full") } else { Ok(()) }
        });
        assert_eq!(taken, Err("full"));
        let failing = || |job: u32| if job == 100 { Err("broken") } else { Ok(job) };
        assert_eq!(in_order(workers(2), endless(), failing, |_| Ok(())), Err("broken"));
        let jobs = (0..10).map(|job| if job == 9 { Err("cut off") } else { Ok(job) });
        assert_eq!(in_order(workers(2), jobs, fine, |_| Ok(())), Err("cut off"));
    }

    #[test]
    #[should_panic(expected = "a worker panicked")]
    fn a_panic_is_passed_on() {
        let worker = || |job: u32| if job == 5 { panic!("five") } else { Ok::<_, ()>(job) };
        let outcome = in_order(workers(2), (0..10).map(Ok), worker, |_| Ok(()));
        assert!(outcome.is_err(), "unreachable");
    }
}
