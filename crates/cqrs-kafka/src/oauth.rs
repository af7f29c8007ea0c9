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
    /// Who it is for. librdkafka only shows it in logs.
    pub principal: String,
    /// When it expires. librdkafka asks for the next one after 80% of the remaining time.
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

/// Gets OAuth tokens for `SASL/OAUTHBEARER`: the first one, and the next before one expires.
///
/// The function runs on the client's own thread, never on an async one, so it may block; delivery
/// reports wait meanwhile, so it should not take long. After a failure librdkafka asks again in 10 s.
/// For an async client, use `tokio::runtime::Handle::block_on`.
#[derive(Clone)]
pub struct TokenProvider(Arc<Fetch>);

impl TokenProvider {
    /// Gets tokens with `fetch`. Its error becomes the cause of the errors of what cannot be sent.
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
