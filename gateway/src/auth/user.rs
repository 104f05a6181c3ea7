//! Users: who signs, with what keys, and what they are called.
//!
//! The holder of the root keys is a user too, one that the index does not know: its id is its access key, and it may do
//! everything. All others have an id of their own, which records name them by.
//!
//! What signatures are verified with is kept in memory, in a cache that is bounded and emptied by every change: a key that
//! is deleted here is refused by the next request. A lookup that began before a change leaves nothing in the cache.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lithos_storage::{AccessKeyRecord, BucketRecord, Error, ErrorKind, Result, UserRecord};
use lru::LruCache;
use s3s::{S3Error, S3ErrorCode, S3Result, auth::SecretKey, s3_error};

use super::{random_name, seal::fill_random};
use crate::{app::App, error::s3_error};

/// Access keys, and names of users, that are kept in memory: about 2 MiB when full.
const CACHED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not 0");
/// Longest name of a user, in characters: IAM API Reference, "`CreateUser`".
const NAME_LEN_MAX: usize = 64;
/// Lengths of an access key, in characters: IAM API Reference, "`AccessKey`".
const ACCESS_KEY_LENS: std::ops::RangeInclusive<usize> = 16..=128;
/// Lengths of a secret key, in characters. IAM makes them of 40; fewer than 16 could be guessed.
const SECRET_KEY_LENS: std::ops::RangeInclusive<usize> = 16..=128;
/// The name that stands for the holder of the root keys.
pub(crate) const ROOT: &str = "root";

/// Who made a request. The operations find it among the request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// What records name it by.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Root,
    User,
}

impl Identity {
    /// The holder of the root keys, who is called by the access key.
    fn root(access_key: &str) -> Self {
        Self {
            id: access_key.to_owned(),
            name: access_key.to_owned(),
            kind: Kind::Root,
        }
    }

    /// Whether it holds the root keys, which open everything.
    pub(crate) fn is_root(&self) -> bool {
        self.kind == Kind::Root
    }

    /// Whether it may use what belongs to `owner`.
    pub(crate) fn may_use(&self, owner: &str) -> bool {
        self.is_root() || self.id == owner
    }
}

/// An access key of a user.
#[derive(Debug, Clone)]
struct Known {
    identity: Arc<Identity>,
    secret_key: SecretKey,
}

/// The users that were looked up lately.
#[derive(Debug)]
pub(crate) struct Recent(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    /// How many changes there have been. What was read before one is not kept after it.
    changes: u64,
    by_access_key: LruCache<String, Known>,
    name_by_id: LruCache<String, String>,
}

impl Default for Recent {
    fn default() -> Self {
        Self(Mutex::new(Tables {
            changes: 0,
            by_access_key: LruCache::new(CACHED_MAX),
            name_by_id: LruCache::new(CACHED_MAX),
        }))
    }
}

impl Recent {
    /// Whether `access_key` was looked up lately, and is some user's.
    pub(crate) fn knows(&self, access_key: &str) -> bool {
        self.tables().by_access_key.contains(access_key)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing here stops half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything, because something has changed.
    fn forget(&self) {
        let mut tables = self.tables();
        tables.changes += 1;
        tables.by_access_key.clear();
        tables.name_by_id.clear();
    }

    fn keep(&self, changes: u64, keep: impl FnOnce(&mut Tables)) {
        let mut tables = self.tables();
        if tables.changes == changes {
            keep(&mut tables);
        }
    }
}

/// The secret key of `access_key`.
///
/// # Errors
///
/// `InvalidAccessKeyId`; `InternalError` if the index or the sealed secret cannot be read.
pub(crate) async fn secret_key(app: &App, access_key: &str) -> S3Result<SecretKey> {
    let root = app.keyring.root();
    if access_key == root.access_key {
        return Ok(root.secret_key.clone());
    }
    Ok(known(app, access_key).await?.secret_key)
}

/// Who has `access_key`.
///
/// # Errors
///
/// As [`secret_key`].
pub(crate) async fn identity(app: &App, access_key: &str) -> S3Result<Arc<Identity>> {
    if access_key == app.keyring.root().access_key {
        return Ok(Arc::new(Identity::root(access_key)));
    }
    Ok(known(app, access_key).await?.identity)
}

async fn known(app: &App, access_key: &str) -> S3Result<Known> {
    let changes = {
        let mut tables = app.users.tables();
        if let Some(known) = tables.by_access_key.get(access_key) {
            return Ok(known.clone());
        }
        tables.changes
    };
    // No row is under a key of another form: a stranger's need not be looked for.
    let user = match check_access_key(access_key) {
        Ok(()) => app.store.user_of_access_key(access_key).await.map_err(s3_error)?,
        Err(_) => None,
    };
    let found = user.and_then(|user| {
        let key = user.keys.iter().find(|key| key.access_key == access_key)?;
        Some((key.sealed_secret.clone(), user))
    });
    let Some((sealed, user)) = found else {
        return Err(s3_error!(InvalidAccessKeyId, "the access key is not known here"));
    };
    let secret_key = app
        .keyring
        .unseal(&secret_context(access_key), &sealed)
        .map_err(|error| {
            tracing::error!(user = user.name, access_key, "{error:#}");
            S3Error::with_message(
                S3ErrorCode::InternalError,
                "the key of this user cannot be read; the log has the reason",
            )
        })?;
    let known = Known {
        identity: Arc::new(Identity {
            id: user.id,
            name: user.name,
            kind: Kind::User,
        }),
        secret_key,
    };
    app.users.keep(changes, |tables| {
        tables.by_access_key.put(access_key.to_owned(), known.clone());
    });
    Ok(known)
}

/// What people call the owner `id`: the name of the user; of root, and of who is not known any more, the id itself.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
pub(crate) async fn name(app: &App, id: &str) -> Result<String> {
    let changes = {
        let mut tables = app.users.tables();
        if let Some(name) = tables.name_by_id.get(id) {
            return Ok(name.clone());
        }
        tables.changes
    };
    let name = app.store.name_of_user(id).await?.unwrap_or_else(|| id.to_owned());
    app.users.keep(changes, |tables| {
        tables.name_by_id.put(id.to_owned(), name.clone());
    });
    Ok(name)
}

/// The id of the user `name`, or of root by its access key or as [`ROOT`]; `None` if there is no such user.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
pub(crate) async fn id(app: &App, name: &str) -> Result<Option<String>> {
    let root = &app.keyring.root().access_key;
    if name == ROOT || name == root {
        return Ok(Some(root.clone()));
    }
    match app.store.user(name).await {
        Ok(user) => Ok(Some(user.id)),
        Err(error) if error.kind() == ErrorKind::NoSuchRecord => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `id` is of a user; else it is root's, or that of an earlier root.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] or [`ErrorKind::Io`] if the index cannot be read.
pub(crate) async fn is_user(app: &App, id: &str) -> Result<bool> {
    Ok(app.store.name_of_user(id).await?.is_some())
}

/// Refuses a write to `bucket` on behalf of `id`, who is not root and does not own it.
///
/// What writes by the name of a bucket asks in its transaction: by the time a long body has come, or a job has its turn,
/// the bucket may be gone, and another's be there.
///
/// # Errors
///
/// [`ErrorKind::AccessDenied`].
pub(crate) fn require_owner(app: &App, bucket: &BucketRecord, id: &str) -> Result<()> {
    if id == bucket.owner || id == app.keyring.root().access_key {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::AccessDenied,
        "the bucket belongs to another user",
    ))
}

/// An access key with its secret key, when it has just been made.
#[derive(Debug, Clone)]
pub(crate) struct KeyPair {
    pub(crate) access_key: String,
    pub(crate) secret_key: SecretKey,
}

impl KeyPair {
    /// The keys that were chosen, or new ones.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidArgument`] if one of two is missing, or what is wrong with one.
    pub(crate) fn new(access_key: Option<String>, secret_key: Option<SecretKey>) -> Result<Self> {
        match (access_key, secret_key) {
            (None, None) => Self::random(),
            (Some(access_key), Some(secret_key)) => {
                check_access_key(&access_key)?;
                check_secret_key(secret_key.expose())?;
                Ok(Self { access_key, secret_key })
            }
            _ => Err(invalid("give both an access key and a secret key, or neither")),
        }
    }

    fn random() -> Result<Self> {
        let random = |len| random_name(len).map_err(|e| Error::new(ErrorKind::Io, "make a key").caused_by(e));
        Ok(Self {
            access_key: format!("LITHOS{}", random(14)?),
            secret_key: random(40)?.into(),
        })
    }

    fn record(&self, app: &App) -> Result<AccessKeyRecord> {
        if self.access_key == app.keyring.root().access_key {
            return Err(Error::new(
                ErrorKind::PreconditionFailed,
                format!("the access key {:?} is taken", self.access_key),
            ));
        }
        let sealed = app
            .keyring
            .seal(&secret_context(&self.access_key), self.secret_key.expose());
        Ok(AccessKeyRecord {
            access_key: self.access_key.clone(),
            created: app.store.now(),
            sealed_secret: sealed.map_err(|e| Error::new(ErrorKind::Io, "seal a secret key").caused_by(e))?,
        })
    }
}

/// Creates a user who signs with `keys`.
///
/// # Errors
///
/// [`ErrorKind::InvalidArgument`] if it is no name for a user; [`ErrorKind::PreconditionFailed`] if the name or the access
/// key is taken; [`ErrorKind::Io`] if the index fails.
pub(crate) async fn create(app: &App, name: &str, keys: &KeyPair) -> Result<UserRecord> {
    check_name(name)?;
    if name == app.keyring.root().access_key {
        return Err(invalid("the name is the access key of the root keys"));
    }
    let mut id = [0; 32];
    fill_random(&mut id).map_err(|e| Error::new(ErrorKind::Io, "make an id").caused_by(e))?;
    let user = UserRecord {
        id: hex::encode(id),
        name: name.to_owned(),
        created: app.store.now(),
        keys: vec![keys.record(app)?],
    };
    app.store.create_user(&user).await?;
    app.users.forget();
    tracing::info!(user = name, id = user.id, "user created");
    Ok(user)
}

/// Forgets a user. Its keys stop at once.
///
/// # Errors
///
/// As [`Store::delete_user`](lithos_storage::Store::delete_user).
pub(crate) async fn delete(app: &App, name: &str) -> Result<()> {
    // Whatever the outcome: of a commit that is unknown, the index tells.
    let deleted = app.store.delete_user(name).await;
    app.users.forget();
    deleted?;
    tracing::info!(user = name, "user deleted");
    Ok(())
}

/// Gives a user another pair of keys.
///
/// # Errors
///
/// As [`Store::add_access_key`](lithos_storage::Store::add_access_key).
pub(crate) async fn add_key(app: &App, name: &str, keys: &KeyPair) -> Result<()> {
    app.store.add_access_key(name, &keys.record(app)?).await?;
    app.users.forget();
    tracing::info!(user = name, access_key = keys.access_key, "access key created");
    Ok(())
}

/// Takes an access key from a user. It stops at once.
///
/// # Errors
///
/// As [`Store::delete_access_key`](lithos_storage::Store::delete_access_key).
pub(crate) async fn delete_key(app: &App, name: &str, access_key: &str) -> Result<()> {
    let deleted = app.store.delete_access_key(name, access_key).await;
    app.users.forget();
    deleted?;
    tracing::info!(user = name, access_key, "access key deleted");
    Ok(())
}

/// What the secret key of `access_key` is sealed for.
fn secret_context(access_key: &str) -> String {
    format!("access key {access_key}")
}

/// Names are those of IAM (IAM API Reference, "`CreateUser`"), which begin with a letter or digit here: a name is a segment
/// of a path in the admin API.
fn check_name(name: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || name.len() > NAME_LEN_MAX || !name.bytes().all(legal) || name == ROOT {
        let shown: String = name.chars().take(NAME_LEN_MAX).collect();
        return Err(invalid(format!(
            "{shown:?} is not a name for a user: 1 to {NAME_LEN_MAX} letters, digits and _+=,.@- beginning with a letter \
             or digit, and not {ROOT:?}"
        )));
    }
    Ok(())
}

fn check_access_key(key: &str) -> Result<()> {
    let word = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !word || !ACCESS_KEY_LENS.contains(&key.len()) {
        return Err(invalid(format!(
            "an access key has {} to {} letters, digits and underscores",
            ACCESS_KEY_LENS.start(),
            ACCESS_KEY_LENS.end()
        )));
    }
    Ok(())
}

fn check_secret_key(key: &str) -> Result<()> {
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) || !SECRET_KEY_LENS.contains(&key.len()) {
        return Err(invalid(format!(
            "a secret key has {} to {} printable ASCII characters without spaces",
            SECRET_KEY_LENS.start(),
            SECRET_KEY_LENS.end()
        )));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_are_segments_of_a_path() {
        for good in ["a", "build.er+1@example.com", "9_=,-", &"a".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", "root", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_have_the_lengths_and_characters_of_iam() {
        let pair = |access: &str, secret: &str| {
            KeyPair::new(Some(access.to_owned()), Some(SecretKey::from(secret.to_owned()))).is_ok()
        };
        let (access, secret) = ("a".repeat(16), "s/+=".repeat(10));
        assert!(pair(&access, &secret));
        assert!(pair(&"a_9Z".repeat(32), &"s".repeat(128)));
        for bad in [
            "",
            &"a".repeat(15),
            &"a".repeat(129),
            "has-a-hyphen-in-it",
            "has a space in it",
            "ümläutümläutümläut",
        ] {
            assert!(!pair(bad, &secret), "{bad}");
        }
        for bad in [
            "",
            &"s".repeat(15),
            &"s".repeat(129),
            "sixteen characters",
            "seventeen\u{1}characters",
        ] {
            assert!(!pair(&access, bad), "{bad}");
        }
        assert!(KeyPair::new(Some(access), None).is_err());
        let random = KeyPair::new(None, None).unwrap();
        assert!(pair(&random.access_key, random.secret_key.expose()), "{random:?}");
        assert!(!format!("{random:?}").contains(random.secret_key.expose()));
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let recent = Recent::default();
        let keep = |changes| {
            recent.keep(changes, |tables| {
                tables.name_by_id.put("id".to_owned(), "name".to_owned());
            });
        };
        keep(0);
        assert!(recent.tables().name_by_id.contains("id"));
        recent.forget();
        assert!(!recent.tables().name_by_id.contains("id"));
        keep(0);
        assert!(!recent.tables().name_by_id.contains("id"));
        keep(1);
        assert!(recent.tables().name_by_id.contains("id"));
    }
}
