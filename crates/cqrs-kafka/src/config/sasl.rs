//! [`Sasl`]: the login in a [`KafkaConfig`](crate::KafkaConfig), and its options of librdkafka.

use cqrs_config::Secret;
use serde::Deserialize;

use super::SaslMechanism;
use crate::error::KafkaError;
use crate::oauth::TokenProvider;

/// The SASL login. Used when the security protocol is `SASL_PLAINTEXT` or `SASL_SSL`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sasl {
    /// The mechanism. Must be set when SASL is used.
    pub mechanism: Option<SaslMechanism>,
    /// The user, for `PLAIN` and `SCRAM-*`.
    pub username: Option<String>,
    /// The password, for `PLAIN` and `SCRAM-*`.
    pub password: Option<Secret>,
    /// The source of tokens, for `OAUTHBEARER`. Not part of config files.
    #[serde(skip)]
    pub token_provider: Option<TokenProvider>,
}

impl Sasl {
    /// `PLAIN`. Use it over TLS only.
    pub fn plain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(SaslMechanism::Plain, username, password)
    }

    /// `SCRAM-SHA-256`.
    pub fn scram_sha_256(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(SaslMechanism::ScramSha256, username, password)
    }

    /// `SCRAM-SHA-512`.
    pub fn scram_sha_512(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(SaslMechanism::ScramSha512, username, password)
    }

    /// `OAUTHBEARER`.
    pub fn oauth_bearer(provider: TokenProvider) -> Self {
        Self {
            mechanism: Some(SaslMechanism::OAuthBearer),
            token_provider: Some(provider),
            ..Self::default()
        }
    }

    fn with_password(
        mechanism: SaslMechanism,
        username: impl Into<String>,
        password: impl Into<Secret>,
    ) -> Self {
        Self {
            mechanism: Some(mechanism),
            username: Some(username.into()),
            password: Some(password.into()),
            token_provider: None,
        }
    }

    /// True if any field is set.
    pub(super) fn is_set(&self) -> bool {
        self.mechanism.is_some()
            || self.username.is_some()
            || self.password.is_some()
            || self.token_provider.is_some()
    }

    pub(super) fn apply(&self, set: &mut impl FnMut(&str, &str)) -> Result<(), KafkaError> {
        let mechanism =
            self.mechanism.ok_or_else(|| missing("sasl.mechanism", "a SASL security protocol"))?;
        set("sasl.mechanism", mechanism.as_str());
        match mechanism {
            SaslMechanism::Plain | SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512 => {
                let username = self.username.as_deref().filter(|name| !name.is_empty());
                let password = self.password.as_ref().map(Secret::expose);
                let password = password.filter(|password| !password.is_empty());
                set("sasl.username", username.ok_or_else(|| missing("sasl.username", mechanism))?);
                set("sasl.password", password.ok_or_else(|| missing("sasl.password", mechanism))?);
            }
            SaslMechanism::OAuthBearer if self.token_provider.is_none() => {
                return Err(missing("sasl.token_provider", mechanism));
            }
            SaslMechanism::Gssapi if !cfg!(feature = "gssapi") => {
                return Err(KafkaError::config(
                    "sasl.mechanism GSSAPI needs the feature `gssapi` of cqrs-kafka",
                ));
            }
            SaslMechanism::OAuthBearer | SaslMechanism::Gssapi => {}
        }
        Ok(())
    }
}

fn missing(option: &str, user: impl std::fmt::Display) -> KafkaError {
    KafkaError::config(format!("{option} is not set, but {user} needs it"))
}
