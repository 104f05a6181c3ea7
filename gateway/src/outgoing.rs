//! What all outgoing connections have in common.

use std::time::Duration;

/// How long a server may take to accept a connection, its TLS included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that goes where it is told and nowhere else: no proxy from the environment, and no redirect by itself. TLS is
/// rustls on ring.
pub(crate) fn client() -> reqwest::ClientBuilder {
    // Fails only where it was done already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
}
