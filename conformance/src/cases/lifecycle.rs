//! Lifecycle configurations as they are set, checked and given back (S3 User Guide, "Lifecycle configuration elements").
//! That they are carried out shows elsewhere, where a day can be short.

use anyhow::{Context, Result, ensure};

use crate::{
    case::Bench,
    wire::{Response, element, elements},
};

crate::cases! {
    "PutBucketLifecycleConfiguration": rules_of_every_form_are_given_back, wrong_rules_are_refused,
        transitions_are_not_implemented, ids_are_made_for_rules_without;
    "GetBucketLifecycleConfiguration": without_rules_there_is_no_configuration;
    "DeleteBucketLifecycle": rules_are_removed;
    "HeadObject": objects_say_when_they_expire;
}

async fn set(bench: &Bench, rules: &str) -> Result<Response> {
    let body = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
    let put = bench.bucket("PUT").query("lifecycle", "").body(body);
    put.signed(&bench.target)?.send(&bench.target).await
}

async fn get(bench: &Bench) -> Result<Response> {
    let get = bench.bucket("GET").query("lifecycle", "");
    get.signed(&bench.target)?.send(&bench.target).await
}

/// A rule that is enabled.
fn rule(rest: &str) -> String {
    format!("<Rule><ID>r</ID><Status>Enabled</Status>{rest}</Rule>")
}

const EXPIRE: &str = "<Expiration><Days>1</Days></Expiration>";

async fn rules_of_every_form_are_given_back(bench: Bench) -> Result<()> {
    for rest in [
        "<Prefix>logs/</Prefix><Expiration><Days>3</Days></Expiration>",
        "<Filter><Prefix>a&amp;b/</Prefix></Filter><Expiration><Date>2031-05-01T00:00:00.000Z</Date></Expiration>",
        "<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter><Expiration><Days>3</Days></Expiration>",
        "<Filter><ObjectSizeGreaterThan>500</ObjectSizeGreaterThan></Filter><Expiration><Days>3</Days></Expiration>",
        "<Filter><ObjectSizeLessThan>64000</ObjectSizeLessThan></Filter><Expiration><Days>3</Days></Expiration>",
        "<Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>6000</ObjectSizeLessThan>\
         <Prefix>p</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><Tag><Key>l</Key><Value>w</Value></Tag></And></Filter>\
         <NoncurrentVersionExpiration><NewerNoncurrentVersions>2</NewerNoncurrentVersions>\
         <NoncurrentDays>7</NoncurrentDays></NoncurrentVersionExpiration>",
        "<Filter/><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>\
         <AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation></AbortIncompleteMultipartUpload>",
    ] {
        set(&bench, &rule(rest)).await?.expect_status(200).context(rest)?;
        let answer = get(&bench).await?;
        answer.expect_status(200)?;
        let text = answer.text();
        ensure!(elements(&text, "Rule").count() == 1, "{text}");
        for name in [
            "Prefix",
            "Days",
            "Date",
            "Key",
            "Value",
            "ObjectSizeGreaterThan",
            "ObjectSizeLessThan",
            "NoncurrentDays",
            "NewerNoncurrentVersions",
            "ExpiredObjectDeleteMarker",
            "DaysAfterInitiation",
            "And",
        ] {
            let given: Vec<&str> = elements(rest, name).collect();
            let shown: Vec<&str> = elements(&text, name).collect();
            let same = given.len() == shown.len() && (name == "And" || given == shown);
            ensure!(same, "{name}: {given:?} came back as {shown:?} in {text}");
        }
        // Which form it had.
        ensure!(rest.contains("<Filter") == text.contains("<Filter"), "{text}");
    }
    set(
        &bench,
        &rule(&format!("<Filter/>{EXPIRE}")).replace("Enabled", "Disabled"),
    )
    .await?
    .expect_status(200)?;
    ensure!(element(&get(&bench).await?.text(), "Status") == Some("Disabled"));
    Ok(())
}

async fn wrong_rules_are_refused(bench: Bench) -> Result<()> {
    let with = |rest: &str| rule(&format!("<Filter/>{rest}"));
    let filtered = |filter: &str, rest: &str| rule(&format!("<Filter>{filter}</Filter>{rest}"));
    let tag = "<Tag><Key>k</Key><Value>v</Value></Tag>";
    let abort =
        "<AbortIncompleteMultipartUpload><DaysAfterInitiation>2</DaysAfterInitiation></AbortIncompleteMultipartUpload>";
    let markers = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>";
    let many: String = (0..1001)
        .map(|n| with(EXPIRE).replace(">r<", &format!(">{n}<")))
        .collect();
    for (rules, code) in [
        (String::new(), "MalformedXML"),
        (many, "MalformedXML"),
        (with(EXPIRE).repeat(2), "InvalidArgument"),
        (
            with(EXPIRE).replace(">r<", &format!(">{}<", "r".repeat(256))),
            "InvalidArgument",
        ),
        (with(EXPIRE).replace("Enabled", "enabled"), "MalformedXML"),
        (rule(EXPIRE), "MalformedXML"),
        (rule(&format!("<Prefix/><Filter/>{EXPIRE}")), "MalformedXML"),
        (filtered(&format!("<Prefix>p</Prefix>{tag}"), EXPIRE), "MalformedXML"),
        (with(""), "InvalidRequest"),
        (with("<Expiration><Days>0</Days></Expiration>"), "InvalidArgument"),
        (with("<Expiration><Days>-1</Days></Expiration>"), "InvalidArgument"),
        (with("<Expiration/>"), "MalformedXML"),
        (
            with("<Expiration><Days>1</Days><Date>2031-05-01T00:00:00Z</Date></Expiration>"),
            "MalformedXML",
        ),
        (
            with("<Expiration><Date>2031-05-01T10:00:00Z</Date></Expiration>"),
            "InvalidArgument",
        ),
        (with("<Expiration><Date>soon</Date></Expiration>"), "MalformedXML"),
        (
            with("<NoncurrentVersionExpiration><NoncurrentDays>0</NoncurrentDays></NoncurrentVersionExpiration>"),
            "InvalidArgument",
        ),
        (
            with(
                "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
                 <NewerNoncurrentVersions>101</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
            ),
            "InvalidArgument",
        ),
        (filtered(tag, abort), "InvalidRequest"),
        (filtered(tag, markers), "InvalidRequest"),
        (
            filtered(
                "<And><ObjectSizeGreaterThan>9</ObjectSizeGreaterThan><ObjectSizeLessThan>9</ObjectSizeLessThan></And>",
                EXPIRE,
            ),
            "InvalidRequest",
        ),
    ] {
        let shown: String = rules.chars().take(300).collect();
        set(&bench, &rules).await?.expect_error(400, code).context(shown)?;
    }
    get(&bench).await?.expect_error(404, "NoSuchLifecycleConfiguration")
}

async fn transitions_are_not_implemented(bench: Bench) -> Result<()> {
    for transition in [
        "<Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>",
        "<NoncurrentVersionTransition><NoncurrentDays>30</NoncurrentDays><StorageClass>GLACIER</StorageClass>\
         </NoncurrentVersionTransition>",
    ] {
        let refused = set(&bench, &rule(&format!("<Filter/>{EXPIRE}{transition}"))).await?;
        refused.expect_error(501, "NotImplemented")?;
    }
    Ok(())
}

async fn ids_are_made_for_rules_without(bench: Bench) -> Result<()> {
    let nameless = format!("<Rule><Status>Enabled</Status><Filter/>{EXPIRE}</Rule>");
    set(&bench, &nameless.repeat(2)).await?.expect_status(200)?;
    let text = get(&bench).await?.text();
    let ids: Vec<&str> = elements(&text, "ID").collect();
    ensure!(
        ids.len() == 2 && ids.first() != ids.last() && !ids.contains(&""),
        "{ids:?}"
    );
    Ok(())
}

async fn without_rules_there_is_no_configuration(bench: Bench) -> Result<()> {
    get(&bench).await?.expect_error(404, "NoSuchLifecycleConfiguration")?;
    let missing = Bench {
        bucket: "no-such-bucket-at-all".to_owned(),
        ..bench
    };
    get(&missing).await?.expect_error(404, "NoSuchBucket")?;
    set(&missing, &rule(&format!("<Filter/>{EXPIRE}")))
        .await?
        .expect_error(404, "NoSuchBucket")
}

async fn rules_are_removed(bench: Bench) -> Result<()> {
    set(&bench, &rule(&format!("<Filter/>{EXPIRE}")))
        .await?
        .expect_status(200)?;
    for _ in 0..2 {
        let delete = bench.bucket("DELETE").query("lifecycle", "");
        let deleted = delete.signed(&bench.target)?.send(&bench.target).await?;
        deleted.expect_status(204)?;
    }
    get(&bench).await?.expect_error(404, "NoSuchLifecycleConfiguration")
}

async fn objects_say_when_they_expire(bench: Bench) -> Result<()> {
    let late = "<Expiration><Days>3000</Days></Expiration>";
    let early = "<Expiration><Days>2000</Days></Expiration>";
    let rules = rule(&format!("<Filter><Prefix>a</Prefix></Filter>{late}"))
        + &rule(&format!("<Filter><Prefix>ab</Prefix></Filter>{early}")).replace(">r<", ">early<");
    set(&bench, &rules).await?.expect_status(200)?;
    for (key, id) in [("b", None), ("a", Some("r")), ("ab", Some("early"))] {
        let put = bench.object("PUT", key).body("x");
        let put = put.signed(&bench.target)?.send(&bench.target).await?;
        let head = bench
            .object("HEAD", key)
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        let get = bench
            .object("GET", key)
            .signed(&bench.target)?
            .send(&bench.target)
            .await?;
        for answer in [put, head, get] {
            answer.expect_status(200)?;
            let shown = answer.header("x-amz-expiration");
            match id {
                None => ensure!(shown.is_none(), "{key}: {shown:?}"),
                Some(id) => {
                    let shown = shown.with_context(|| format!("{key} does not expire"))?;
                    let midnight = shown.starts_with("expiry-date=\"") && shown.contains(" 00:00:00 GMT\"");
                    ensure!(
                        midnight && shown.ends_with(&format!("rule-id=\"{id}\"")),
                        "{key}: {shown}"
                    );
                }
            }
        }
    }
    Ok(())
}
