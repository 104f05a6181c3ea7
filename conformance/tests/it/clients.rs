//! The clients people really use, each once, with small data, against a server of its own.

use lithos_conformance::clients;

/// A test for each client.
macro_rules! clients {
    ($($client:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $client() {
                crate::s3::pass(clients::$client::client().cases).await;
            }
        )+

        #[test]
        fn every_client_is_tested() {
            let tested = [$(clients::$client::client().module),+];
            let all: Vec<_> = clients::all().iter().map(|client| client.module).collect();
            assert_eq!(tested.as_slice(), all);
        }
    };
}

clients!(aws, s3cmd, rclone, restic, boto3, javascript, rust_sdk);
