//! The AWS SDK for Rust as a client of a target.

use anyhow::{Result, bail, ensure};
use aws_sdk_s3::{
    Client, Config,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
};

use crate::target::Target;

/// A client that does not retry: a case wants to see the first answer.
pub fn client(target: &Target) -> Client {
    let credentials = Credentials::new(
        target.access_key.as_str(),
        target.secret_key.as_str(),
        None,
        None,
        "lithos-conformance",
    );
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(target.region.clone()))
        .endpoint_url(&target.endpoint)
        .credentials_provider(credentials)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

/// Holds a failed call against the S3 code that it should have.
///
/// # Errors
///
/// If it succeeded, or has another code.
pub fn expect_code<T, E, R>(result: Result<T, SdkError<E, R>>, code: &str) -> Result<()>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match result {
        Ok(_) => bail!("it succeeded, and should have failed with {code}"),
        Err(error) => {
            let found = error.code().unwrap_or("no code");
            ensure!(
                found == code,
                "the code is {found}, and should be {code}: {}",
                DisplayErrorContext(&error)
            );
            Ok(())
        }
    }
}

/// Holds a failed call against the HTTP status that it should have, where the answer has no body (HEAD).
///
/// # Errors
///
/// If it succeeded, or has another status.
pub fn expect_status<T, E>(
    result: Result<T, SdkError<E, aws_sdk_s3::config::http::HttpResponse>>,
    status: u16,
) -> Result<()>
where
    E: std::error::Error + 'static,
{
    match result {
        Ok(_) => bail!("it succeeded, and should have failed with {status}"),
        Err(error) => {
            let found = error.raw_response().map_or(0, |response| response.status().as_u16());
            ensure!(
                found == status,
                "the status is {found}, and should be {status}: {}",
                DisplayErrorContext(&error)
            );
            Ok(())
        }
    }
}
