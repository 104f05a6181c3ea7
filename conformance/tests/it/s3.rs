//! The cases of the library against a fresh server. When all of them have cleared up, no blob may be left.

use lithos_conformance::{
    case::{self, Case},
    cases,
    target::{Server, ServerOptions},
};

pub(crate) async fn pass(cases: Vec<Case>) {
    let options = ServerOptions {
        domain: Some("s3.test".to_owned()),
        ..ServerOptions::default()
    };
    let server = Server::start_with(options).unwrap();
    let report = case::run(server.target(), &cases).await;
    println!("{report}");
    assert!(report.is_good() && report.is_complete(), "{report}");
    server.await_no_blobs().unwrap();
}

/// A test for each file of cases.
macro_rules! families {
    ($($family:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $family() {
                pass(cases::$family::all()).await;
            }
        )+

        #[test]
        fn every_family_is_tested() {
            let tested: usize = [$(cases::$family::all().len()),+].iter().sum();
            assert_eq!(tested, cases::all().len());
        }
    };
}

families!(
    bad_input,
    buckets,
    checksums,
    chunked_uploads,
    conditions,
    copy_object,
    forms,
    lifecycle,
    list_objects,
    metadata,
    multipart_upload,
    names,
    object_lock,
    objects,
    presigned,
    ranges,
    tagging,
    unsupported,
    users,
    versioning,
    virtual_host
);
