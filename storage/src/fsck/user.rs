//! Users: that records, ids and access keys lead to each other.

use super::{Check, FindingKind as Kind};
use crate::{error::Result, schema::Keys, user::UserRecord};

pub(super) async fn check(check: &mut Check<'_>) -> Result<()> {
    let mut pages = check.table("users", b'R');
    while let Some(page) = check.page(&mut pages).await? {
        for (key, value) in page {
            let Some(user) = check.read::<UserRecord>(&key, &value) else {
                continue;
            };
            if key != Keys::user(&user.name) {
                check.add(
                    Kind::DamagedRow,
                    format!("user {}", user.name),
                    "its row has another name",
                );
            }
            let ways = user.keys.iter().map(|key| Keys::user_of_key(&key.access_key));
            for way in ways.chain([Keys::name_of_user(&user.id)]) {
                if check.snapshot.get(&way).await?.as_deref() != Some(user.name.as_bytes()) {
                    let detail = format!("{} does not lead to it", super::row_name(&way));
                    check.add(Kind::BrokenUser, format!("user {}", user.name), detail);
                }
            }
        }
    }
    ways(check, "access keys", b'F').await?;
    ways(check, "user ids", b'G').await
}

/// Looks whether the users are there that the rows of `table` lead to, and know of them.
async fn ways(check: &mut Check<'_>, stage: &'static str, table: u8) -> Result<()> {
    let mut pages = check.table(stage, table);
    while let Some(page) = check.page(&mut pages).await? {
        for (way, name) in page {
            let name = String::from_utf8_lossy(&name).into_owned();
            let user: Option<UserRecord> = check.get(&Keys::user(&name)).await?;
            let known = user.is_some_and(|user| {
                way == Keys::name_of_user(&user.id)
                    || user.keys.iter().any(|key| way == Keys::user_of_key(&key.access_key))
            });
            if !known {
                let detail = format!(
                    "{} leads to it, and it does not exist or know of it",
                    super::row_name(&way)
                );
                check.add(Kind::BrokenUser, format!("user {name}"), detail);
            }
        }
    }
    Ok(())
}
