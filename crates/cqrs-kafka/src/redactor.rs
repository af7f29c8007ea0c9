//! [`Redactor`]: removes secrets from texts of librdkafka and the broker.

use std::sync::{PoisonError, RwLock};

use cqrs_config::Secret;

/// Replaces known secrets in texts of others (librdkafka, the broker, callbacks) by `***`.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    fixed: Vec<Secret>,
    token: RwLock<Option<Secret>>,
}

impl Redactor {
    pub(crate) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut fixed: Vec<_> =
            secrets.into_iter().filter(|secret| !secret.expose().is_empty()).collect();
        // A secret that contains another goes first, so that no part of it is left.
        fixed.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        Self { fixed, token: RwLock::default() }
    }

    /// Replaces the changing secret: the OAuth token in use.
    pub(crate) fn set_token(&self, token: Secret) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    pub(crate) fn redact(&self, text: &str) -> String {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let token = token.iter().filter(|token| !token.expose().is_empty());
        token.chain(&self.fixed).fold(text.to_owned(), |text, secret| {
            match text.contains(secret.expose()) {
                true => text.replace(secret.expose(), "***"),
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
