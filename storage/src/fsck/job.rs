//! Jobs, the queue, peers, and what a later release may have added.

use super::{Check, FindingKind as Kind};
use crate::{
    error::Result,
    job::JobRecord,
    kv::{Order, Scan},
    peer::PeerRecord,
    schema::{JobId, Keys},
};

/// The tables that are checked; `M` was, when the format was looked at.
const TABLES: &[u8] = b"BOVvUPNELXIACDJQSMHKYWZRGFT";

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    jobs(check).await?;
    queue(check).await?;
    peers(check).await?;
    unknown_tables(check).await
}

async fn jobs(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("jobs", b'J');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let Some(job) = check.read::<JobRecord>(&key, &value) else {
                continue;
            };
            check.report.counts.jobs += 1;
            let subject = format!("job {}", job.id);
            if key != Keys::job(job.id) {
                check.add(Kind::DamagedRow, &subject, "its row has another id");
            }
            match job.due {
                Some(due) if !check.has(&Keys::queued_job(due, job.id)).await? => {
                    check.add(Kind::BrokenQueue, subject, "it waits, and is not in the queue");
                }
                None if !job.state.is_finished() => {
                    check.add(
                        Kind::BrokenQueue,
                        subject,
                        format!("it is {:?}, and waits for nothing", job.state),
                    );
                }
                _ => {}
            }
        }
    }
    Ok(())
}

async fn queue(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("queue", b'Q');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, _) in page {
            let parsed = Keys::parse_due(&key).and_then(|due| Ok((due, JobId(Keys::parse_last_id(&key)?))));
            let Some((due, id)) = check.take(&key, parsed) else {
                continue;
            };
            let job: Option<JobRecord> = check.get(&Keys::job(id)).await?;
            if job.is_none_or(|job| job.due != Some(due)) {
                let detail = "it is in the queue, and does not exist or waits for another time";
                check.add(Kind::BrokenQueue, format!("job {id}"), detail);
            }
        }
    }
    Ok(())
}

async fn peers(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("peers", b'S');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.read::<PeerRecord>(&key, &value);
        }
    }
    Ok(())
}

async fn unknown_tables(check: &mut Check<'_>) -> Result<()> {
    for table in (0..=u8::MAX).filter(|table| !TABLES.contains(table)) {
        let scan = Scan {
            range: Keys::table(table),
            limit: 1,
            order: Order::Ascending,
        };
        if !check.snapshot.scan(&scan).await?.rows.is_empty() {
            let subject = format!("table {}", table.escape_ascii());
            check.add(Kind::UnknownTable, subject, "it was not checked");
        }
    }
    Ok(())
}
