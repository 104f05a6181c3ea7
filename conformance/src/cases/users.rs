//! Users with keys of their own: whose buckets are whose (S3 User Guide, "Bucket owner condition" and "Identity and access
//! management for Amazon S3"). The users are made by the admin API, so that other servers are not asked.

#![expect(
    clippy::indexing_slicing,
    reason = "a JSON value gives null for what it lacks; it never panics"
)]

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use serde_json::{Value, json};

use super::forms::Form;
use crate::{
    case::{Bench, Skip},
    pattern::fresh_seed,
    sdk,
    target::Target,
    wire::{AmzTime, Presign, Request, Response, object_path},
};

crate::cases! {
    "ListBuckets": a_user_sees_the_buckets_that_it_owns;
    "CreateBucket": names_that_are_taken_say_by_whom;
    "ListObjectsV2": listings_name_their_owners;
    "GetObject": a_bucket_is_closed_to_other_users, presigned_urls_are_as_good_as_their_user,
        revoked_keys_stop_at_once, wrong_secrets_and_unknown_keys_are_refused;
    "CopyObject": copies_need_both_sides;
    "CompleteMultipartUpload": uploads_belong_to_who_began_them;
    "PostObject": forms_are_signed_by_users;
    "PutObject": a_users_quota_holds_for_all_its_buckets;
    "DeleteUser": users_go_when_their_buckets_are_gone, keys_are_checked_as_they_come;
}

/// Somebody with keys and a bucket.
struct User {
    name: String,
    id: String,
    /// As the bench of a case, with the user's keys and bucket.
    bench: Bench,
}

/// Asks the admin API.
async fn admin(bench: &Bench, method: &'static str, path: &str, body: Option<&Value>) -> Result<Response> {
    let management = bench.target.management.clone();
    let target = Target {
        endpoint: management.ok_or(Skip("the server has no admin API that is known here"))?,
        ..bench.target.clone()
    };
    let body = body.map(Value::to_string).unwrap_or_default();
    Request::new(method, path)
        .body(body)
        .signed(&target)?
        .send(&target)
        .await
}

fn parsed(answer: &Response) -> Result<Value> {
    serde_json::from_slice(&answer.body).with_context(|| answer.text())
}

/// The target with the keys of an answer of the admin API.
fn with_keys(target: &Target, created: &Value) -> Result<Target> {
    let text = |name: &str| created[name].as_str().map(str::to_owned).context("no key was created");
    Ok(Target {
        access_key: text("access_key")?,
        secret_key: text("secret_key")?,
        ..target.clone()
    })
}

impl User {
    /// Creates a user, who creates a bucket.
    async fn new(bench: &Bench) -> Result<Self> {
        let name = format!("user-{:08x}", fresh_seed() & 0xffff_ffff);
        let answer = admin(bench, "POST", "/api/v1/users", Some(&json!({"name": name}))).await?;
        answer.expect_status(201)?;
        let created = parsed(&answer)?;
        let target = with_keys(&bench.target, &created)?;
        let user = Self {
            id: created["id"].as_str().context("the user has no id")?.to_owned(),
            bench: Bench {
                client: sdk::client(&target),
                target,
                bucket: format!("of-{name}"),
            },
            name,
        };
        let bucket = user.bench.client.create_bucket().bucket(&user.bench.bucket);
        bucket.send().await.context("the user cannot create a bucket")?;
        Ok(user)
    }

    /// Removes the bucket and the user.
    async fn clear(&self, bench: &Bench) -> Result<()> {
        let own = Bench {
            bucket: self.bench.bucket.clone(),
            ..bench.clone()
        };
        own.clear().await?;
        let gone = admin(bench, "DELETE", &format!("/api/v1/users/{}", self.name), None).await?;
        gone.expect_status(204)
    }
}

async fn a_user_sees_the_buckets_that_it_owns(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    ensure!(alice.id.len() == 64 && alice.id != bob.id, "{} {}", alice.id, bob.id);
    for user in [&alice, &bob] {
        let list = user.bench.client.list_buckets().send().await?;
        let names: Vec<_> = list.buckets().iter().filter_map(|bucket| bucket.name()).collect();
        ensure!(names == [user.bench.bucket.as_str()], "{} sees {names:?}", user.name);
        let owner = list.owner().context("no owner")?;
        ensure!(
            owner.id() == Some(&user.id) && owner.display_name() == Some(&user.name),
            "{owner:?}"
        );
    }
    let all = bench.client.list_buckets().send().await?;
    for name in [&bench.bucket, &alice.bench.bucket, &bob.bench.bucket] {
        let seen = all.buckets().iter().any(|bucket| bucket.name() == Some(name));
        ensure!(seen, "root does not see {name}");
    }
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn names_that_are_taken_say_by_whom(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    for (who, whose, code) in [
        (&alice.bench, &alice.bench.bucket, "BucketAlreadyOwnedByYou"),
        (&bob.bench, &alice.bench.bucket, "BucketAlreadyExists"),
        (&alice.bench, &bench.bucket, "BucketAlreadyExists"),
        (&bench, &alice.bench.bucket, "BucketAlreadyExists"),
        (&bench, &bench.bucket, "BucketAlreadyOwnedByYou"),
    ] {
        let answer = Request::new("PUT", format!("/{whose}")).signed(&who.target)?;
        let answer = answer.send(&who.target).await?;
        answer
            .expect_error(409, code)
            .with_context(|| format!("{} creates {whose}", who.target.access_key))?;
    }
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn a_bucket_is_closed_to_other_users(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    alice.bench.put("k", b"secret").await?;
    bench.put("k", b"root's").await?;
    let tags = "<Tagging><TagSet></TagSet></Tagging>";
    let keys = "<Delete><Object><Key>k</Key></Object></Delete>";
    for bucket in [&alice.bench.bucket, &bench.bucket] {
        let of_bucket = |method| Request::new(method, format!("/{bucket}"));
        let of_object = |method, key: &str| Request::new(method, object_path(bucket, key));
        for request in [
            of_bucket("GET"),
            of_bucket("GET").query("list-type", "2"),
            of_bucket("GET").query("location", ""),
            of_bucket("GET").query("uploads", ""),
            of_bucket("GET").query("tagging", ""),
            of_bucket("PUT").query("tagging", "").body(tags),
            of_bucket("DELETE").query("tagging", ""),
            of_bucket("DELETE"),
            of_bucket("POST").query("delete", "").body(keys),
            of_object("GET", "k"),
            // Nor is anybody told what is there.
            of_object("GET", "missing"),
            of_object("GET", "k")
                .query("attributes", "")
                .header("x-amz-object-attributes", "ETag"),
            of_object("GET", "k").query("tagging", ""),
            of_object("PUT", "k").query("tagging", "").body(tags),
            of_object("DELETE", "k").query("tagging", ""),
            of_object("PUT", "k").body("mine"),
            of_object("DELETE", "k"),
            of_object("POST", "k").query("uploads", ""),
        ] {
            let what = format!("{} {} {:?}", request.method, request.path, request.query);
            let answer = request.signed(&bob.bench.target)?.send(&bob.bench.target).await?;
            answer.expect_error(403, "AccessDenied").context(what)?;
        }
        for head in [of_bucket("HEAD"), of_object("HEAD", "k"), of_object("HEAD", "missing")] {
            let answer = head.signed(&bob.bench.target)?.send(&bob.bench.target).await?;
            answer.expect_status(403)?;
        }
    }
    ensure!(alice.bench.get("k").await? == b"secret");
    // Root may all of it.
    let got = bench
        .client
        .get_object()
        .bucket(&alice.bench.bucket)
        .key("k")
        .send()
        .await?;
    ensure!(got.body.collect().await?.to_vec() == b"secret");
    // What is not there belongs to nobody.
    let missing = Request::new("GET", "/no-such-bucket-of-anybody").signed(&bob.bench.target)?;
    let missing = missing.send(&bob.bench.target).await?;
    missing.expect_error(404, "NoSuchBucket")?;
    let unsigned = Request::new("GET", object_path(&alice.bench.bucket, "k"));
    unsigned.send(&bench.target).await?.expect_error(403, "AccessDenied")?;
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn copies_need_both_sides(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    alice.bench.put("k", b"secret").await?;
    let copy = |who: &User, from: &str, to: &str| {
        let copy = who.bench.client.copy_object().bucket(to).key("copy");
        copy.copy_source(format!("{from}/k")).send()
    };
    let (hers, his) = (alice.bench.bucket.as_str(), bob.bench.bucket.as_str());
    sdk::expect_code(copy(&bob, hers, his).await, "AccessDenied")?;
    sdk::expect_code(copy(&alice, hers, his).await, "AccessDenied")?;
    copy(&alice, hers, hers).await?;
    ensure!(alice.bench.get("copy").await? == b"secret");
    let upload = bob
        .bench
        .client
        .create_multipart_upload()
        .bucket(his)
        .key("u")
        .send()
        .await?;
    let part = bob.bench.client.upload_part_copy().bucket(his).key("u").part_number(1);
    let part = part.set_upload_id(upload.upload_id).copy_source(format!("{hers}/k"));
    sdk::expect_code(part.send().await, "AccessDenied")?;
    bob.bench.expect_absent("copy").await?;
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn listings_name_their_owners(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    let (client, bucket) = (&alice.bench.client, &alice.bench.bucket);
    alice.bench.put("hers", b"1").await?;
    let list = client.list_objects_v2().bucket(bucket).fetch_owner(true).send().await?;
    let owner = list.contents()[0].owner().context("no owner")?;
    ensure!(
        owner.id() == Some(&alice.id) && owner.display_name() == Some(&alice.name),
        "{owner:?}"
    );
    let list = client.list_objects().bucket(bucket).send().await?;
    ensure!(list.contents()[0].owner() == Some(owner), "{list:?}");
    alice.clear(&bench).await
}

async fn uploads_belong_to_who_began_them(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    let (client, bucket) = (&alice.bench.client, &alice.bench.bucket);
    let upload = client.create_multipart_upload().bucket(bucket).key("u").send().await?;
    let id = upload.upload_id().context("no upload id")?;
    let put = |who: &User| {
        let part = who.bench.client.upload_part().bucket(bucket).key("u").upload_id(id);
        part.part_number(1).body(b"part".to_vec().into()).send()
    };
    sdk::expect_code(put(&bob).await, "AccessDenied")?;
    let part = put(&alice).await?;
    let parts = client.list_parts().bucket(bucket).key("u").upload_id(id).send().await?;
    let owner = parts.owner().context("no owner")?;
    ensure!(
        owner.id() == Some(&alice.id) && owner.display_name() == Some(&alice.name),
        "{owner:?}"
    );
    let uploads = client.list_multipart_uploads().bucket(bucket).send().await?;
    let initiator = uploads.uploads()[0].initiator().context("no initiator")?;
    ensure!(initiator.id() == Some(&alice.id), "{initiator:?}");
    let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
    let complete = |who: &User| {
        let parts = CompletedMultipartUpload::builder().parts(part.clone()).build();
        let complete = who.bench.client.complete_multipart_upload().bucket(bucket).key("u");
        complete.upload_id(id).multipart_upload(parts).send()
    };
    sdk::expect_code(complete(&bob).await, "AccessDenied")?;
    let abort = bob
        .bench
        .client
        .abort_multipart_upload()
        .bucket(bucket)
        .key("u")
        .upload_id(id);
    sdk::expect_code(abort.send().await, "AccessDenied")?;
    complete(&alice).await?;
    ensure!(alice.bench.get("u").await? == b"part");
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn presigned_urls_are_as_good_as_their_user(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    alice.bench.put("k", b"secret").await?;
    let presign = Presign {
        time: AmzTime::now(),
        expires: 300,
    };
    let get = alice.bench.object("GET", "k");
    let hers = get.clone().presigned(&alice.bench.target, &presign)?;
    let answer = hers.send(&bench.target).await?;
    answer.expect_status(200)?;
    ensure!(answer.body == b"secret");
    // A range that has to be mended takes the signature apart and makes another.
    let answer = hers
        .clone()
        .header("range", "bytes=0-1,3-4")
        .send(&bench.target)
        .await?;
    answer.expect_status(200)?;
    let his = get.presigned(&bob.bench.target, &presign)?;
    his.send(&bench.target).await?.expect_error(403, "AccessDenied")?;
    alice.clear(&bench).await?;
    bob.clear(&bench).await?;
    // With the user, its keys are gone.
    hers.send(&bench.target).await?.expect_error(403, "InvalidAccessKeyId")
}

async fn forms_are_signed_by_users(bench: Bench) -> Result<()> {
    let (alice, bob) = (User::new(&bench).await?, User::new(&bench).await?);
    let answer = Form::new(&alice.bench, "form").send().await?;
    answer.expect_status(204)?;
    ensure!(alice.bench.get("form").await? == b"content");
    let hers_by_him = Bench {
        bucket: alice.bench.bucket.clone(),
        ..bob.bench.clone()
    };
    let answer = Form::new(&hers_by_him, "other").send().await?;
    answer.expect_error(403, "AccessDenied")?;
    alice.bench.expect_absent("other").await?;
    alice.clear(&bench).await?;
    bob.clear(&bench).await
}

async fn revoked_keys_stop_at_once(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    alice.bench.put("k", b"1").await?;
    let keys = format!("/api/v1/users/{}/keys", alice.name);
    let answer = admin(&bench, "POST", &keys, Some(&json!({}))).await?;
    answer.expect_status(201)?;
    let second = with_keys(&bench.target, &parsed(&answer)?)?;
    let get = |target: &Target| alice.bench.object("GET", "k").signed(target);
    get(&second)?.send(&second).await?.expect_status(200)?;
    let first = &alice.bench.target;
    let key = format!("{keys}/{}", first.access_key);
    admin(&bench, "DELETE", &key, None).await?.expect_status(204)?;
    get(first)?.send(first).await?.expect_error(403, "InvalidAccessKeyId")?;
    get(&second)?.send(&second).await?.expect_status(200)?;
    admin(&bench, "DELETE", &key, None).await?.expect_status(404)?;
    alice.clear(&bench).await
}

async fn wrong_secrets_and_unknown_keys_are_refused(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    let wrong = Target {
        secret_key: bench.target.secret_key.clone(),
        ..alice.bench.target.clone()
    };
    let answer = alice.bench.object("GET", "k").signed(&wrong)?.send(&wrong).await?;
    answer.expect_error(403, "SignatureDoesNotMatch")?;
    for unknown in ["LITHOS0000000000UNKNOWN", "short", "with-a-hyphen-in-it"] {
        let unknown = Target {
            access_key: unknown.to_owned(),
            ..alice.bench.target.clone()
        };
        let answer = alice.bench.object("GET", "k").signed(&unknown)?.send(&unknown).await?;
        answer.expect_error(403, "InvalidAccessKeyId")?;
    }
    // The admin API is root's.
    let management = Target {
        endpoint: bench.target.management.clone().context("no admin API")?,
        ..alice.bench.target.clone()
    };
    let answer = Request::new("GET", "/api/v1/users").signed(&management)?;
    answer.send(&management).await?.expect_status(403)?;
    alice.clear(&bench).await
}

async fn a_users_quota_holds_for_all_its_buckets(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    let path = format!("/api/v1/users/{}/quota", alice.name);
    let quota = json!({"bytes": 100});
    admin(&bench, "PUT", &path, Some(&quota)).await?.expect_status(200)?;
    alice.bench.put("k", &[1; 60]).await?;
    let put = |len| {
        let put = alice.bench.object("PUT", "l").body(vec![2; len]);
        put.signed(&alice.bench.target)
    };
    let answer = put(41)?.send(&alice.bench.target).await?;
    answer.expect_error(403, "QuotaExceeded")?;
    put(40)?.send(&alice.bench.target).await?.expect_status(200)?;
    let shown = parsed(&admin(&bench, "GET", &path, None).await?)?;
    ensure!(shown["usage"] == json!({"bytes": 100, "objects": 2}), "{shown}");
    let nobody = admin(&bench, "PUT", "/api/v1/users/nobody-of-that-name/quota", Some(&quota)).await?;
    nobody.expect_status(404)?;
    alice.clear(&bench).await
}

async fn users_go_when_their_buckets_are_gone(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    let path = format!("/api/v1/users/{}", alice.name);
    let shown = parsed(&admin(&bench, "GET", &path, None).await?)?;
    ensure!(
        shown["id"] == json!(alice.id) && shown["keys"].as_array().is_some_and(|keys| keys.len() == 1),
        "{shown}"
    );
    ensure!(
        !shown.to_string().contains(&alice.bench.target.secret_key),
        "the secret is shown"
    );
    let again = admin(&bench, "POST", "/api/v1/users", Some(&json!({"name": alice.name}))).await?;
    again.expect_status(409)?;
    admin(&bench, "DELETE", &path, None).await?.expect_status(409)?;
    alice.bench.put("k", b"1").await?;
    alice.clear(&bench).await?;
    admin(&bench, "GET", &path, None).await?.expect_status(404)?;
    admin(&bench, "DELETE", &path, None).await?.expect_status(404)
}

async fn keys_are_checked_as_they_come(bench: Bench) -> Result<()> {
    let alice = User::new(&bench).await?;
    let keys = format!("/api/v1/users/{}/keys", alice.name);
    let secret = "s3cr3t/+=".repeat(5);
    for (wrong, status) in [
        (json!({"access_key": "CHOSENCHOSENCHOSEN"}), 400),
        (json!({"access_key": "fifteencharacte", "secret_key": secret}), 400),
        (json!({"access_key": "not-a-word-of-iam", "secret_key": secret}), 400),
        (
            json!({"access_key": "CHOSENCHOSENCHOSEN", "secret_key": "too short"}),
            400,
        ),
        (
            json!({"access_key": bench.target.access_key, "secret_key": secret}),
            409,
        ),
        (
            json!({"access_key": alice.bench.target.access_key, "secret_key": secret}),
            409,
        ),
    ] {
        let answer = admin(&bench, "POST", &keys, Some(&wrong)).await?;
        answer.expect_status(status).with_context(|| wrong.to_string())?;
    }
    let access_key = format!("CHOSEN_{:016x}", fresh_seed());
    let chosen = json!({"access_key": access_key, "secret_key": secret});
    let answer = admin(&bench, "POST", &keys, Some(&chosen)).await?;
    answer.expect_status(201)?;
    let chosen = with_keys(&bench.target, &parsed(&answer)?)?;
    ensure!(chosen.access_key == access_key && chosen.secret_key == secret);
    let answer = alice.bench.bucket("GET").signed(&chosen)?.send(&chosen).await?;
    answer.expect_status(200)?;
    for name in ["", "a b", "../x", "root", &"a".repeat(65)] {
        let answer = admin(&bench, "POST", "/api/v1/users", Some(&json!({"name": name}))).await?;
        answer.expect_status(400).with_context(|| format!("{name:?}"))?;
    }
    alice.clear(&bench).await
}
