//! Users and their access keys.

use lithos_storage::{AccessKeyRecord, ErrorKind, KEYS_OF_USER_MAX, QuotaRecord, Tags, UserRecord, clock::Timestamp};

use crate::world::{SMALL, World};

fn access_key(name: &str) -> AccessKeyRecord {
    AccessKeyRecord {
        access_key: name.to_owned(),
        created: Timestamp(5),
        sealed_secret: b"sealed".to_vec(),
    }
}

fn user(name: &str, keys: &[&str]) -> UserRecord {
    UserRecord {
        id: format!("id of {name}"),
        name: name.to_owned(),
        created: Timestamp(3),
        keys: keys.iter().map(|key| access_key(key)).collect(),
    }
}

#[tokio::test]
async fn users_are_found_by_name_id_and_key() {
    let store = World::disk(SMALL).await.store;
    let alice = user("alice", &["A1", "A2"]);
    store.create_user(&alice).await.unwrap();
    store.create_user(&user("bob", &[])).await.unwrap();
    assert_eq!(store.user("alice").await.unwrap(), alice);
    assert_eq!(store.name_of_user(&alice.id).await.unwrap().as_deref(), Some("alice"));
    for key in ["A1", "A2"] {
        assert_eq!(
            store.user_of_access_key(key).await.unwrap().as_ref(),
            Some(&alice),
            "{key}"
        );
    }
    for key in ["", "A", "A11", "alice"] {
        assert_eq!(store.user_of_access_key(key).await.unwrap(), None, "{key}");
    }
    for absent in ["", "ali", "alice\0"] {
        assert_eq!(store.user(absent).await.unwrap_err().kind(), ErrorKind::NoSuchRecord);
        assert_eq!(store.name_of_user(absent).await.unwrap(), None);
    }
    store.add_access_key("bob", &access_key("B1")).await.unwrap();
    assert_eq!(store.user_of_access_key("B1").await.unwrap().unwrap().name, "bob");
    store.delete_access_key("alice", "A1").await.unwrap();
    assert_eq!(store.user_of_access_key("A1").await.unwrap(), None);
    assert_eq!(store.user("alice").await.unwrap().keys, [access_key("A2")]);
}

#[tokio::test]
async fn names_ids_and_keys_are_unique() {
    let store = World::memory(SMALL).await.store;
    store.create_user(&user("alice", &["A1"])).await.unwrap();
    let same_id = UserRecord {
        id: "id of alice".to_owned(),
        ..user("carol", &[])
    };
    for taken in [user("alice", &["A9"]), same_id, user("bob", &["B1", "A1"])] {
        let refused = store.create_user(&taken).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PreconditionFailed, "{taken:?}");
    }
    assert_eq!(store.user_of_access_key("A9").await.unwrap(), None);
    assert_eq!(store.user_of_access_key("B1").await.unwrap(), None);
    store.create_user(&user("bob", &[])).await.unwrap();
    let refused = store.add_access_key("bob", &access_key("A1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    for (name, key) in [("bob", "A1"), ("alice", "A2"), ("carol", "A1")] {
        let refused = store.delete_access_key(name, key).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSuchRecord, "{name} {key}");
    }
}

#[tokio::test]
async fn a_user_has_a_bounded_number_of_keys() {
    let store = World::memory(SMALL).await.store;
    let names: Vec<String> = (0..=KEYS_OF_USER_MAX).map(|n| format!("K{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (last, most) = names.split_last().unwrap();
    let refused = store.create_user(&user("alice", &names)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    store.create_user(&user("alice", most)).await.unwrap();
    let refused = store.add_access_key("alice", &access_key(last)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    assert_eq!(store.user_of_access_key(last).await.unwrap(), None);
}

#[tokio::test]
async fn a_user_goes_with_everything_when_it_owns_no_bucket() {
    let world = World::memory(SMALL).await;
    let store = &world.store;
    let alice = user("alice", &["A1", "A2"]);
    store.create_user(&alice).await.unwrap();
    let bucket = "hers".parse().unwrap();
    let created = store.create_bucket(&bucket, None, Tags::new(), alice.id.clone());
    created.await.unwrap();
    let quota = QuotaRecord {
        bytes: Some(1),
        objects: None,
    };
    store.set_user_quota(&alice.id, Some(quota)).await.unwrap();
    let refused = store.delete_user("alice").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PreconditionFailed);
    assert!(refused.to_string().contains("hers"), "{refused}");
    store.delete_bucket(&bucket).await.unwrap();
    store.delete_user("alice").await.unwrap();
    for table in [b"R", b"G", b"F", b"Z"] {
        assert!(world.rows(table).await.is_empty(), "{}", table.escape_ascii());
    }
    assert_eq!(
        store.delete_user("alice").await.unwrap_err().kind(),
        ErrorKind::NoSuchRecord
    );
    store.create_user(&alice).await.unwrap();
}

#[tokio::test]
async fn users_are_listed_in_pages() {
    let store = World::memory(SMALL).await.store;
    for name in ["b", "a", "ab", "a-"] {
        store.create_user(&user(name, &[])).await.unwrap();
    }
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list_users(after.as_deref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        names.extend(page.into_iter().map(|user| user.name));
    }
    assert_eq!(names, ["a", "a-", "ab", "b"]);
}
