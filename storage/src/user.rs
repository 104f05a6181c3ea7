//! Users: who they are, and the access keys that they sign with.
//!
//! Three tables hold a user: its record under its name, and a row for its id and for each of its access keys that lead
//! there. One transaction changes them together, so that a crash leaves all of a change or nothing.

use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    kv::{Order, SCAN_ROWS_MAX, Scan, Txn, transact},
    schema::{BucketRecord, Keys, Measure, decode, encode},
    staging::get,
    store::Store,
};

/// Most access keys of a user. One to use and one to replace it by suffice; the others are for users that are programs on
/// several machines.
pub const KEYS_OF_USER_MAX: usize = 16;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct UserRecord {
    /// What records name it by, for ever: 64 hexadecimal digits.
    #[n(0)]
    pub id: String,
    /// What people call it, unique here. It does not change.
    #[n(1)]
    pub name: String,
    /// When it was created.
    #[n(2)]
    pub created: Timestamp,
    /// Its access keys, the oldest first.
    #[n(3)]
    pub keys: Vec<AccessKeyRecord>,
}

/// An access key of a user.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AccessKeyRecord {
    /// The key that requests name.
    #[n(0)]
    pub access_key: String,
    /// When it was created.
    #[n(1)]
    pub created: Timestamp,
    /// The secret key, sealed by whoever stores it: the index holds no secret in the clear.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub sealed_secret: Vec<u8>,
}

impl Store {
    /// Adds a user with its first access keys.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::PreconditionFailed`] if there is a user of that name or id, or an access key is taken;
    /// [`ErrorKind::TooLarge`] if it has more than [`KEYS_OF_USER_MAX`] keys; [`ErrorKind::Io`] if the index fails.
    pub async fn create_user(&self, user: &UserRecord) -> Result<()> {
        check_count(user)?;
        transact!(&self.core.kv, |txn| {
            let taken = txn.get(&Keys::user(&user.name)).await?.is_some()
                || txn.get(&Keys::name_of_user(&user.id)).await?.is_some();
            if taken {
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("there is a user {:?} already", user.name),
                ));
            }
            for key in &user.keys {
                insert_key(&mut txn, user, &key.access_key).await?;
            }
            txn.put(Keys::name_of_user(&user.id), Bytes::from(user.name.clone()))?;
            txn.put(Keys::user(&user.name), encode(user))
        });
        Ok(())
    }

    /// Forgets a user that owns no bucket, with its access keys and its quota.
    ///
    /// A bucket that the user creates at the same time may be left. Like the objects that it wrote to buckets of others, it
    /// then belongs to an id that nobody has.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`]; [`ErrorKind::PreconditionFailed`] if it owns a bucket; [`ErrorKind::Io`] if the index
    /// fails.
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let user = require_user(&mut txn, name).await?;
            require_no_bucket(&mut txn, &user).await?;
            for key in &user.keys {
                txn.delete(Keys::user_of_key(&key.access_key))?;
            }
            for measure in Measure::ALL {
                txn.delete(Keys::user_usage(&user.id, measure))?;
            }
            txn.delete(Keys::user_quota(&user.id))?;
            txn.delete(Keys::name_of_user(&user.id))?;
            txn.delete(Keys::user(name))
        });
        Ok(())
    }

    /// Adds an access key to user `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`] if there is no such user; [`ErrorKind::PreconditionFailed`] if the key is taken;
    /// [`ErrorKind::TooLarge`] if the user has too many; [`ErrorKind::Io`] if the index fails.
    pub async fn add_access_key(&self, name: &str, key: &AccessKeyRecord) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let mut user = require_user(&mut txn, name).await?;
            insert_key(&mut txn, &user, &key.access_key).await?;
            user.keys.push(key.clone());
            check_count(&user)?;
            txn.put(Keys::user(name), encode(&user))
        });
        Ok(())
    }

    /// Takes an access key from user `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`] if there is no such user, or it has no such key; [`ErrorKind::Io`] if the index fails.
    pub async fn delete_access_key(&self, name: &str, access_key: &str) -> Result<()> {
        transact!(&self.core.kv, |txn| {
            let mut user = require_user(&mut txn, name).await?;
            let count = user.keys.len();
            user.keys.retain(|key| key.access_key != access_key);
            if user.keys.len() == count {
                return Err(Error::new(
                    ErrorKind::NoSuchRecord,
                    format!("user {name:?} has no access key {access_key:?}"),
                ));
            }
            txn.delete(Keys::user_of_key(access_key))?;
            txn.put(Keys::user(name), encode(&user))
        });
        Ok(())
    }

    /// User `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchRecord`]; [`ErrorKind::Io`] if the index cannot be read.
    pub async fn user(&self, name: &str) -> Result<UserRecord> {
        require_user(&mut self.begin().await?, name).await
    }

    /// The user who has `access_key`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
    pub async fn user_of_access_key(&self, access_key: &str) -> Result<Option<UserRecord>> {
        let mut txn = self.begin().await?;
        match txn.get(&Keys::user_of_key(access_key)).await? {
            Some(name) => get(&mut txn, &Keys::user(text(&name)?)).await,
            None => Ok(None),
        }
    }

    /// The name of the user whose id is `id`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
    pub async fn name_of_user(&self, id: &str) -> Result<Option<String>> {
        let name = self.begin().await?.get(&Keys::name_of_user(id)).await?;
        name.map(|name| text(&name).map(str::to_owned)).transpose()
    }

    /// Users by name, at most `limit`, beginning after `after`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
    pub async fn list_users(&self, after: Option<&str>, limit: usize) -> Result<Vec<UserRecord>> {
        let mut range = Keys::users();
        if let Some(after) = after {
            // Names hold no NUL, so that no name lies between one and itself followed by NUL.
            range.start = [&Keys::user(after)[..], &[0]].concat().into();
        }
        let scan = Scan {
            range,
            limit: limit.clamp(1, SCAN_ROWS_MAX),
            order: Order::Ascending,
        };
        let page = self.begin().await?.scan(&scan).await?;
        page.rows.iter().map(|(_, user)| decode(user)).collect()
    }
}

/// Notes that `access_key` is of `user`, unless it is taken.
async fn insert_key(txn: &mut Txn, user: &UserRecord, access_key: &str) -> Result<()> {
    let row = Keys::user_of_key(access_key);
    if txn.get(&row).await?.is_some() {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("the access key {access_key:?} is taken"),
        ));
    }
    txn.put(row, Bytes::from(user.name.clone()))
}

/// Looks through all buckets. The ranges are protected: of a bucket of the user that is being created, and this, one meets
/// a conflict.
async fn require_no_bucket(txn: &mut Txn, user: &UserRecord) -> Result<()> {
    let mut range = Keys::buckets();
    loop {
        let scan = Scan {
            range: range.clone(),
            limit: SCAN_ROWS_MAX,
            order: Order::Ascending,
        };
        let page = txn.scan(&scan).await?;
        for (key, bucket) in &page.rows {
            if decode::<BucketRecord>(bucket)?.owner == user.id {
                let bucket = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
                return Err(Error::new(
                    ErrorKind::PreconditionFailed,
                    format!("user {:?} still owns bucket {bucket}", user.name),
                ));
            }
        }
        match page.rows.last() {
            Some((last, _)) if page.more => range.start = [&last[..], &[0]].concat().into(),
            _ => return Ok(()),
        }
    }
}

async fn require_user(txn: &mut Txn, name: &str) -> Result<UserRecord> {
    get(txn, &Keys::user(name))
        .await?
        .ok_or_else(|| Error::new(ErrorKind::NoSuchRecord, format!("there is no user {name:?}")))
}

fn check_count(user: &UserRecord) -> Result<()> {
    if user.keys.len() > KEYS_OF_USER_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "user {:?} would have more than {KEYS_OF_USER_MAX} access keys",
                user.name
            ),
        ));
    }
    Ok(())
}

fn text(name: &[u8]) -> Result<&str> {
    std::str::from_utf8(name).map_err(|e| Error::corrupt("the index holds a user whose name is not text").caused_by(e))
}
