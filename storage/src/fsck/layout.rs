//! Who owns blobs and borrows them, and that the sweep finds what is released.

use super::{Check, FindingKind as Kind, row_name};
use crate::{
    error::{Error, Result},
    kv::{Order, Scan},
    schema::{DeadLayout, EndedUpload, Keys, LayoutId, LayoutRecord, LayoutState, ObjectRecord, VersionRow},
};

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    layouts(check).await?;
    borrows(check).await?;
    borrowers(check).await?;
    to_be_swept(check).await
}

async fn layouts(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("layouts", b'L');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let id = whole_id(&key);
            let (Some(id), Some(record)) = (check.take(&key, id), check.read::<LayoutRecord>(&key, &value)) else {
                continue;
            };
            check.report.counts.layouts += 1;
            match record.state {
                LayoutState::Held => held(check, id, &record).await?,
                LayoutState::Released | LayoutState::Dying => released(check, id, record.state).await?,
            }
        }
    }
    Ok(())
}

/// Something must have the layout: a version of the object that it names, or the upload.
async fn held(check: &mut Check<'_>, id: LayoutId, record: &LayoutRecord) -> Result<()> {
    let Some(holder) = &record.holder else {
        check.add(Kind::UnheldLayout, format!("layout {id}"), "it names no object");
        return Ok(());
    };
    let object: Option<ObjectRecord> = check.get(&Keys::object(holder.bucket, holder.key.as_bytes())).await?;
    let version = Keys::version(holder.bucket, &holder.key, holder.sequence);
    let version: Option<VersionRow> = check.get(&version).await?;
    let has_it = object.is_some_and(|object| object.layout_id == id)
        || version
            .and_then(VersionRow::object)
            .is_some_and(|version| version.layout_id == id)
        || check.has(&Keys::upload(holder.bucket, &holder.key, id)).await?;
    if !has_it {
        let name = check.object_name(holder.bucket, &holder.key);
        check.add(
            Kind::UnheldLayout,
            format!("layout {id}"),
            format!("{name} does not have it"),
        );
    }
    Ok(())
}

/// The sweep must find the layout: now, or when its last borrower goes.
async fn released(check: &mut Check<'_>, id: LayoutId, state: LayoutState) -> Result<()> {
    if check.has(&Keys::dead_layout(id)).await? {
        return Ok(());
    }
    let borrowed = check
        .snapshot
        .scan(&Scan {
            range: Keys::borrowers_of(id),
            limit: 1,
            order: Order::Ascending,
        })
        .await?;
    if state == LayoutState::Dying || borrowed.rows.is_empty() {
        let detail = format!("it is {state:?}, and not in the list of the sweep");
        check.add(Kind::ForgottenLayout, format!("layout {id}"), detail);
    }
    Ok(())
}

async fn borrows(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("borrowings", b'A');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, _) in page {
            let Some((layout, owner)) = check.take(&key, two_ids(&key)) else {
                continue;
            };
            let subject = format!("layout {layout}");
            if !check.has(&Keys::layout(layout)).await? {
                check.add(
                    Kind::StaleBorrow,
                    &subject,
                    format!("it does not exist, and borrows from {owner}"),
                );
                continue;
            }
            if !check.has(&Keys::borrower(owner, layout)).await? {
                check.add(
                    Kind::BrokenBorrow,
                    &subject,
                    format!("layout {owner} does not know that it lends"),
                );
            }
            let lender: Option<LayoutRecord> = check.get(&Keys::layout(owner)).await?;
            if lender.is_none_or(|lender| lender.state == LayoutState::Dying) {
                check.add(
                    Kind::BrokenBorrow,
                    &subject,
                    format!("layout {owner}, which lends, is gone or going"),
                );
            }
        }
    }
    Ok(())
}

async fn borrowers(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("borrowers", b'C');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, _) in page {
            let Some((owner, layout)) = check.take(&key, two_ids(&key)) else {
                continue;
            };
            if !check.has(&Keys::borrows(layout, owner)).await? {
                let detail = format!("layout {layout} does not borrow from it");
                check.add(Kind::StaleBorrow, format!("layout {owner}"), detail);
            }
        }
    }
    Ok(())
}

async fn to_be_swept(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("layouts to be swept", b'D');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.take(&key, whole_id(&key));
            check.read::<DeadLayout>(&key, &value);
        }
    }
    let mut pages = check.table("uploads that ended", b'E');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            check.take(&key, whole_id(&key));
            check.read::<EndedUpload>(&key, &value);
        }
    }
    Ok(())
}

/// The id that is all of a key.
fn whole_id(key: &[u8]) -> Result<LayoutId> {
    match Keys::parse_first_id(key)? {
        (id, []) => Ok(LayoutId(id)),
        _ => Err(damaged(key)),
    }
}

/// The two ids that are all of a key.
fn two_ids(key: &[u8]) -> Result<(LayoutId, LayoutId)> {
    let (first, rest) = Keys::parse_first_id(key)?;
    let second = rest.try_into().map_err(|_| damaged(key))?;
    Ok((LayoutId(first), LayoutId(second)))
}

fn damaged(key: &[u8]) -> Error {
    Error::corrupt(format!("the key of {} has the wrong length", row_name(key)))
}
