//! The OpenAPI document, held against the routes and the types.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Server;
use crate::{
    admin::{
        OPENAPI, ROUTES,
        backup::NewBackup,
        image::{AcceptedConversions, NewConversions},
        import::{Accepted, NewImport},
        job::{JobPage, JobStateView, JobView},
        quota::{QuotaStateView, QuotaView, UsageView},
        server::{Endpoints, ServerView},
        user::{CreatedKey, KeyView, NewKey, NewUser, UserPage, UserView},
    },
    zone::registry::{NewPeer, PeerView},
};

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// All operations: path, method, and what is said of them.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(|(method, operation)| (path.clone(), method.to_uppercase(), operation))
    });
    operations.collect()
}

#[test]
fn what_is_served_is_described_and_the_other_way_round() {
    let document = document();
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|(path, method, _)| (path, method))
        .collect();
    let mut served: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| (route.path.to_owned(), route.method.to_string()))
        .collect();
    assert_eq!(served.len(), ROUTES.len());
    served.extend(["/healthz", "/readyz"].map(|path| (path.to_owned(), "GET".to_owned())));
    assert_eq!(described, served);
}

#[test]
fn operations_name_their_parameters_and_who_may() {
    let document = document();
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        assert!(
            names.insert(operation["operationId"].as_str().unwrap()),
            "{method} {path}"
        );
        assert!(operation["summary"].is_string(), "{method} {path}");
        let open = operation.get("security").is_some_and(|schemes| schemes == &json!([]));
        assert_eq!(open, !path.starts_with("/api/"), "{method} {path}");
        let in_path: BTreeSet<_> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        let parameters = operation
            .get("parameters")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let described: BTreeSet<_> = parameters
            .iter()
            .map(|parameter| resolve(&document, parameter))
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(described, in_path, "{method} {path}");
    }
    check_references(&document, &document);
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref") {
        Some(reference) => {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            document
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{pointer} leads nowhere"))
        }
        None => value,
    }
}

fn check_references(document: &Value, value: &Value) {
    resolve(document, value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| check_references(document, value)),
        Value::Array(items) => items.iter().for_each(|value| check_references(document, value)),
        _ => {}
    }
}

fn check_schema(document: &Value, name: &str, value: &Value) {
    let properties = document["components"]["schemas"][name]["properties"]
        .as_object()
        .unwrap();
    let fields: BTreeSet<_> = value.as_object().unwrap().keys().collect();
    assert_eq!(properties.keys().collect::<BTreeSet<_>>(), fields, "{name}");
}

#[test]
fn schemas_of_quotas_have_the_fields_of_the_types() {
    let document = document();
    let (quota, usage) = (QuotaView::default(), UsageView { bytes: 0, objects: 0 });
    check_schema(&document, "Quota", &json!(quota));
    check_schema(&document, "Usage", &json!(usage));
    check_schema(&document, "QuotaState", &json!(QuotaStateView { quota, usage }));
}

#[test]
fn schemas_of_users_have_the_fields_of_the_types() {
    let document = document();
    let some = || Some(String::new());
    let user = NewUser {
        access_key: some(),
        secret_key: some(),
        ..NewUser::default()
    };
    check_schema(&document, "NewUser", &json!(user));
    let key = NewKey {
        access_key: some(),
        secret_key: some(),
    };
    check_schema(&document, "NewKey", &json!(key));
    check_schema(&document, "CreatedKey", &json!(CreatedKey::default()));
    check_schema(&document, "AccessKey", &json!(KeyView::default()));
    check_schema(&document, "User", &json!(UserView::default()));
    check_schema(&document, "UserPage", &json!(UserPage::default()));
}

#[test]
fn schemas_have_the_fields_of_the_types() {
    let document = document();
    let check = |name, value| check_schema(&document, name, &value);
    let job = JobView {
        id: String::new(),
        kind: String::new(),
        subject: String::new(),
        state: JobStateView::Queued,
        stage: String::new(),
        done: 0,
        total: None,
        percent: None,
        attempts: 0,
        created: String::new(),
        updated: String::new(),
        next_attempt: None,
        result: None,
        error: None,
    };
    check("Job", json!(job));
    check("JobPage", json!(JobPage::default()));
    check("Accepted", json!(Accepted { job: String::new() }));
    check("NewBackup", json!(NewBackup { to: "/b".into() }));
    let one = [("a".to_owned(), "b".to_owned())];
    let import = NewImport {
        checksum: Some(String::new()),
        content_type: Some(String::new()),
        tags: one.clone().into(),
        metadata: one.into(),
        ..NewImport::default()
    };
    check("NewImport", json!(import));
    let endpoints = Endpoints {
        transfer: String::new(),
        management: String::new(),
    };
    check(
        "Server",
        json!(ServerView {
            version: String::new(),
            zones: Vec::new(),
            endpoints
        }),
    );
    let text = String::new;
    let peer = PeerView {
        name: text(),
        management: text(),
        transfer: text(),
        zones: Vec::new(),
        access_key: text(),
    };
    check("Peer", json!(peer));
    let peer = NewPeer {
        name: text(),
        management: text(),
        transfer: text(),
        zones: Vec::new(),
        access_key: text(),
        secret_key: text(),
    };
    check("NewPeer", json!(peer));
    let states = &document["components"]["schemas"]["JobState"]["enum"];
    let all: &[JobStateView] = clap::ValueEnum::value_variants();
    assert_eq!(states, &serde_json::to_value(all).unwrap());
}

#[test]
fn schemas_of_images_have_the_fields_of_the_types() {
    let document = document();
    check_schema(&document, "NewConversions", &json!(NewConversions::default()));
    check_schema(&document, "AcceptedConversions", &json!(AcceptedConversions::default()));
    let inspection = lithos_convert::inspect(&vec![0; 512]).unwrap();
    check_schema(&document, "Inspection", &json!(inspection));
}

#[tokio::test]
async fn description_is_served() {
    let server = Server::start().await;
    let served: Value = server.client().get_json("/api/v1/openapi.json").await.unwrap();
    assert_eq!(served, document());
}
