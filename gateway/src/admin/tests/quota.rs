//! Quotas, as clients set and see them.

use http::StatusCode;
use lithos_storage::Tags;
use serde_json::{Value, json};

use super::Server;

#[tokio::test]
async fn quotas_are_set_shown_and_cleared() {
    let server = Server::start().await;
    let store = &server.app.store;
    let bucket = "images".parse().unwrap();
    let created = store.create_bucket(&bucket, None, Tags::new(), "ROOT".to_owned());
    created.await.unwrap();
    let client = server.client();
    let new = json!({"name": "builder+1"});
    let user: Value = client.post_json("/api/v1/users", &new).await.unwrap();
    for path in [
        "/api/v1/buckets/images/quota",
        "/api/v1/users/builder%2B1/quota",
        "/api/v1/users/root/quota",
    ] {
        let none = json!({"quota": {"bytes": null, "objects": null}, "usage": {"bytes": 0, "objects": 0}});
        assert_eq!(client.get_json::<Value>(path).await.unwrap(), none, "{path}");
        let quota = json!({"bytes": 10_737_418_240_u64});
        let set: Value = client.put_json(path, &quota).await.unwrap();
        assert_eq!(set["quota"], json!({"bytes": 10_737_418_240_u64, "objects": null}));
        assert_eq!(client.get_json::<Value>(path).await.unwrap(), set);
        let set: Value = client.put_json(path, &json!({"objects": 5})).await.unwrap();
        assert_eq!(
            set["quota"],
            json!({"bytes": null, "objects": 5}),
            "in place of the earlier"
        );
        client.delete(path).await.unwrap();
        client.delete(path).await.unwrap();
        assert_eq!(client.get_json::<Value>(path).await.unwrap(), none, "{path}");
        for wrong in [json!({"bites": 5}), json!({"bytes": -1}), json!("much")] {
            let refused = client.put_json::<_, Value>(path, &wrong).await.unwrap_err();
            assert_eq!(refused.status(), Some(StatusCode::BAD_REQUEST), "{wrong}");
        }
    }
    let stored = |record: Option<lithos_storage::QuotaRecord>| record.and_then(|record| record.bytes);
    for (name, id) in [
        ("builder%2B1", user["id"].as_str().unwrap()),
        ("root", "ROOT"),
        ("ROOT", "ROOT"),
    ] {
        let path = format!("/api/v1/users/{name}/quota");
        client.put_json::<_, Value>(&path, &json!({"bytes": 7})).await.unwrap();
        assert_eq!(stored(store.user_quota(id).await.unwrap()), Some(7));
        client.delete(&path).await.unwrap();
    }
    let refused = client
        .get_json::<Value>("/api/v1/users/absent/quota")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::NOT_FOUND));
    let refused = client
        .get_json::<Value>("/api/v1/buckets/absent/quota")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::NOT_FOUND));
    let refused = client
        .get_json::<Value>("/api/v1/buckets/Not_a_name/quota")
        .await
        .unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::BAD_REQUEST));
}
