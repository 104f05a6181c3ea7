//! The queue of jobs.

use lithos_storage::{
    ErrorKind, JobId, Limits, NewObject, SourceVersion, Versioning,
    job::{Ending, Fence, JobState, KEEP_MILLIS, LEASE_MILLIS, Lease, NewJob, Progress},
};

use crate::world::{SMALL, World, key, new_object};

fn job(subject: &str) -> NewJob {
    NewJob {
        kind: "test".to_owned(),
        subject: subject.to_owned(),
        payload: subject.as_bytes().to_vec(),
    }
}

async fn claim(world: &World, worker: u64) -> Lease {
    world.store.claim_job(worker).await.unwrap().expect("a job is due")
}

async fn is_lost(world: &World, fence: Fence) -> bool {
    let progress = world.store.report_progress(fence, &Progress::default()).await;
    let empty = world.store.content_builder(None).await.unwrap().finish().await.unwrap();
    let mut new = new_object(empty, "0".repeat(32));
    new.fence = Some(fence);
    let name = key("by-a-job");
    let put = world
        .store
        .put_object(&world.bucket, &name, new, |_, _| Ok(Vec::new()))
        .await;
    let ended = world.store.end_job(fence, Ending::Done(String::new())).await;
    let lost = [progress.err(), ended.err(), put.err()].map(|e| e.map(|e| e.kind()));
    let all = lost.iter().all(|kind| *kind == Some(ErrorKind::PreconditionFailed));
    let none = lost.iter().all(Option::is_none);
    assert!(all || none, "a fence holds for everything or for nothing: {lost:?}");
    all
}

#[tokio::test]
async fn a_job_is_done_once_by_one_worker() {
    let world = World::memory(Limits::default()).await;
    let id = world.store.queue_job(job("a")).await.unwrap();
    let lease = claim(&world, 1).await;
    assert_eq!(
        (lease.job.id, lease.job.attempts, &lease.job.payload[..]),
        (id, 1, &b"a"[..])
    );
    assert!(world.store.claim_job(2).await.unwrap().is_none(), "it is taken");
    let progress = Progress {
        stage: "copying".to_owned(),
        done: 5,
        total: Some(10),
    };
    world.store.report_progress(lease.fence(), &progress).await.unwrap();
    let seen = world.store.job(id).await.unwrap();
    assert_eq!((seen.state, seen.done, seen.total), (JobState::Running, 5, Some(10)));
    let done = world
        .store
        .end_job(lease.fence(), Ending::Done("result".to_owned()))
        .await
        .unwrap();
    assert_eq!((done.state, &done.message[..]), (JobState::Done, "result"));
    world.clock.advance_millis(10 * LEASE_MILLIS);
    assert!(world.store.claim_job(2).await.unwrap().is_none());
    assert!(is_lost(&world, lease.fence()).await, "an ended job cannot be changed");
}

#[tokio::test]
async fn a_stalled_worker_loses_its_job_and_cannot_harm_it() {
    let world = World::memory(Limits::default()).await;
    world.store.queue_job(job("a")).await.unwrap();
    let stalled = claim(&world, 1).await;
    world.clock.advance_millis(LEASE_MILLIS - 1);
    world
        .store
        .report_progress(stalled.fence(), &Progress::default())
        .await
        .unwrap();
    world.clock.advance_millis(LEASE_MILLIS - 1);
    assert!(
        world.store.claim_job(2).await.unwrap().is_none(),
        "progress renewed the lease"
    );
    world.clock.advance_millis(1);
    let second = claim(&world, 2).await;
    assert_eq!((second.job.id, second.job.attempts), (stalled.job.id, 2));
    assert!(is_lost(&world, stalled.fence()).await);
    assert_eq!(world.get("by-a-job").await, None);
    assert!(!is_lost(&world, second.fence()).await);
    assert_eq!(world.get("by-a-job").await, Some(Vec::new()));
}

#[tokio::test]
async fn a_failed_attempt_is_made_again_when_it_is_due() {
    let world = World::memory(Limits::default()).await;
    let id = world.store.queue_job(job("a")).await.unwrap();
    let lease = claim(&world, 1).await;
    let again = Ending::Retry {
        message: "the peer is away".to_owned(),
        after_millis: 5000,
    };
    let waiting = world.store.end_job(lease.fence(), again).await.unwrap();
    assert_eq!(
        (waiting.state, &waiting.message[..]),
        (JobState::Queued, "the peer is away")
    );
    world.clock.advance_millis(4999);
    assert!(world.store.claim_job(1).await.unwrap().is_none());
    world.clock.advance_millis(1);
    let lease = claim(&world, 1).await;
    assert_eq!((lease.job.id, lease.job.attempts), (id, 2));
    world
        .store
        .end_job(lease.fence(), Ending::Failed("broken".to_owned()))
        .await
        .unwrap();
    let retried = world.store.retry_job(id).await.unwrap();
    assert_eq!((retried.state, retried.done), (JobState::Queued, 0));
    assert_eq!(
        world.store.retry_job(id).await.unwrap_err().kind(),
        ErrorKind::PreconditionFailed
    );
    let lease = claim(&world, 1).await;
    world
        .store
        .end_job(lease.fence(), Ending::Done(String::new()))
        .await
        .unwrap();
    assert_eq!(
        world.store.retry_job(id).await.unwrap_err().kind(),
        ErrorKind::PreconditionFailed
    );
}

#[tokio::test]
async fn a_cancelled_job_stops_at_its_next_commit() {
    let world = World::memory(Limits::default()).await;
    let id = world.store.queue_job(job("a")).await.unwrap();
    let lease = claim(&world, 1).await;
    assert_eq!(world.store.cancel_job(id).await.unwrap().state, JobState::Cancelled);
    assert!(is_lost(&world, lease.fence()).await);
    assert_eq!(
        world.store.cancel_job(id).await.unwrap_err().kind(),
        ErrorKind::PreconditionFailed
    );
    world.store.retry_job(id).await.unwrap();
    let second = claim(&world, 1).await;
    assert!(
        is_lost(&world, lease.fence()).await,
        "the worker from before the cancelling stays out"
    );
    assert_eq!(second.job.attempts, 2);
    assert_eq!(
        world.store.cancel_job(JobId([9; 16])).await.unwrap_err().kind(),
        ErrorKind::NoSuchJob
    );
}

#[tokio::test]
async fn a_restart_takes_over_what_the_last_process_had() {
    let world = World::disk(Limits::default()).await;
    for n in 0..300 {
        world.store.queue_job(job(&n.to_string())).await.unwrap();
    }
    let mut leases = Vec::new();
    for _ in 0..150 {
        leases.push(claim(&world, 1).await);
    }
    let mine = claim(&world, 2).await;
    let recovered = world.store.recover(2).await.unwrap();
    assert_eq!(recovered.jobs, 150);
    assert!(is_lost(&world, leases[0].fence()).await);
    world
        .store
        .report_progress(mine.fence(), &Progress::default())
        .await
        .unwrap();
    for _ in 0..299 {
        claim(&world, 2).await;
    }
    assert!(world.store.claim_job(2).await.unwrap().is_none());
}

#[tokio::test]
async fn jobs_are_listed_from_the_newest_in_pages() {
    let world = World::memory(Limits::default()).await;
    let mut queued = Vec::new();
    for n in 0..25 {
        world.clock.advance_millis(1);
        queued.push(world.store.queue_job(job(&n.to_string())).await.unwrap());
    }
    queued.reverse();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = world.store.list_jobs(after, 10).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        listed.extend(page.iter().map(|job| job.id));
    }
    assert_eq!(listed, queued);
}

#[tokio::test]
async fn finished_jobs_are_forgotten_behind_any_number_that_are_not() {
    let world = World::memory(Limits::default()).await;
    for n in 0..300 {
        world.store.queue_job(job(&n.to_string())).await.unwrap();
    }
    world.clock.advance_millis(1);
    let mut finished = Vec::new();
    for n in 0..300 {
        let id = world.store.queue_job(job(&n.to_string())).await.unwrap();
        world.store.cancel_job(id).await.unwrap();
        finished.push(id);
    }
    world.clock.advance_millis(KEEP_MILLIS);
    assert_eq!(world.store.sweep().await.unwrap().jobs, 0, "not yet");
    world.store.retry_job(finished[0]).await.unwrap();
    world.clock.advance_millis(1);
    assert_eq!(world.store.sweep().await.unwrap().jobs, 299);
    assert_eq!(world.rows(b"J").await.len(), 301);
    assert_eq!(
        world.store.job(finished[1]).await.unwrap_err().kind(),
        ErrorKind::NoSuchJob
    );
}

#[tokio::test]
async fn a_job_that_is_too_large_is_refused() {
    let world = World::memory(Limits::default()).await;
    let large = NewJob {
        payload: vec![0; 33 << 10],
        ..job("a")
    };
    assert_eq!(
        world.store.queue_job(large).await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    let id = world.store.queue_job(job("a")).await.unwrap();
    let lease = claim(&world, 1).await;
    let long = Ending::Failed("ä".repeat(8 << 10));
    world.store.end_job(lease.fence(), long).await.unwrap();
    assert!(
        world.store.job(id).await.unwrap().message.len() <= 8 << 10,
        "a long message is cut"
    );
}

#[tokio::test]
async fn what_is_made_of_a_version_is_written_only_while_that_is_current() {
    let world = World::memory(SMALL).await;
    let derive = async |layout_id| {
        let content = world.store.content_builder(None).await.unwrap().finish().await.unwrap();
        let new = NewObject {
            source: Some(SourceVersion {
                key: key("source"),
                layout_id,
            }),
            ..new_object(content, "0".repeat(32))
        };
        let name = key("derived");
        let put = world.store.put_object(&world.bucket, &name, new, |_, _| Ok(Vec::new()));
        put.await.map(|_| ()).map_err(|error| error.kind())
    };
    let current = async || {
        let open = world.store.open_object(&world.bucket, &key("source")).await;
        open.unwrap().record.layout_id
    };
    world.put("source", b"first").await.unwrap();
    let first = current().await;
    assert_eq!(derive(first).await, Ok(()));

    world.put("source", b"second").await.unwrap();
    let second = current().await;
    assert_eq!(derive(first).await, Err(ErrorKind::SourceChanged));
    assert_eq!(derive(second).await, Ok(()));

    // Nor is it where versions stay: the one that it was made of is no longer the one that is seen.
    world.set_versioning(Versioning::Enabled).await;
    world.put("source", b"third").await.unwrap();
    assert_eq!(derive(second).await, Err(ErrorKind::SourceChanged));
    let third = current().await;
    world.store.delete_object(&world.bucket, &key("source")).await.unwrap();
    assert_eq!(derive(third).await, Err(ErrorKind::SourceChanged));
}
