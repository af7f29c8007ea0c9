//! OAuth bearer tokens and their provider, for the configuration of a client.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use cqrs_config::Secret;

/// An OAuth bearer token ([RFC 7628](https://www.rfc-editor.org/rfc/rfc7628), KIP-255).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthToken {
    /// The token as it is sent to the broker.
    pub token: Secret,
    /// The principal. librdkafka only shows it in logs.
    pub principal: String,
    /// The time of expiry. librdkafka requests the next token after 80% of the remaining time.
    pub expires_at: SystemTime,
}

impl OAuthToken {
    /// A token.
    pub fn new(
        token: impl Into<Secret>,
        principal: impl Into<String>,
        expires_at: SystemTime,
    ) -> Self {
        Self { token: token.into(), principal: principal.into(), expires_at }
    }
}

type Fetch = dyn Fn() -> Result<OAuthToken, Box<dyn Error + Send + Sync>> + Send + Sync;

/// Gets OAuth tokens for `SASL/OAUTHBEARER`: the first one, and the next one before a token expires.
///
/// The function runs on the client's own thread, never on an async one, so it may block. It should not take long,
/// since delivery reports wait meanwhile. After a failure librdkafka retries in 10 s. In an async program, use
/// `tokio::runtime::Handle::block_on`.
#[derive(Clone)]
pub struct TokenProvider(Arc<Fetch>);

impl TokenProvider {
    /// Gets tokens with `fetch`. Its error becomes the cause of publish errors.
    pub fn new<E: Into<Box<dyn Error + Send + Sync>>>(
        fetch: impl Fn() -> Result<OAuthToken, E> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move || fetch().map_err(Into::into)))
    }

    pub(crate) fn fetch(&self) -> Result<OAuthToken, Box<dyn Error + Send + Sync>> {
        // A panic in foreign code must not end the poll thread.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.0)()))
            .unwrap_or_else(|_panic| Err("the token provider panicked".into()))
    }
}

impl fmt::Debug for TokenProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenProvider")
    }
}
