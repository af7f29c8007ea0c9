//! Secrets of the settings, and their removal from texts of librdkafka and the broker.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Deserializer};

/// A password, key or token. Shown as `***`; never serialized.
///
/// Read from a file it must be a text. Anything else, such as a number without quotes, is an error when
/// the client connects, not one of the file's format, which would show the line.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        cqrs_tls::secret_text(from).map(Self)
    }
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Takes known secrets out of texts that come from elsewhere (librdkafka, the broker, callbacks).
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    fixed: Vec<Secret>,
    token: RwLock<Option<Secret>>,
}

impl Redactor {
    pub(crate) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut fixed: Vec<_> = secrets.into_iter().filter(|secret| !secret.0.is_empty()).collect();
        // A secret that contains another goes first, so that no rest of it stays.
        fixed.sort_by_key(|secret| std::cmp::Reverse(secret.0.len()));
        Self { fixed, token: RwLock::default() }
    }

    /// Replaces the changing secret: the OAuth token in use.
    pub(crate) fn set_token(&self, token: Secret) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    pub(crate) fn redact(&self, text: &str) -> String {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let token = token.iter().filter(|token| !token.0.is_empty());
        token.chain(&self.fixed).fold(text.to_owned(), |text, secret| {
            match text.contains(&secret.0) {
                true => text.replace(&secret.0, "***"),
                false => text,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_out_every_secret() {
        let redactor = Redactor::new(["pass".into(), "password".into(), "".into()]);
        redactor.set_token("tok".into());
        assert_eq!(redactor.redact("a password, a pass, a tok"), "a ***, a ***, a ***");
        redactor.set_token("other".into());
        assert_eq!(redactor.redact("tok other"), "tok ***");
        assert!(!format!("{redactor:?}").contains("pass"));
    }
}
