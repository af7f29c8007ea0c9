//! [`Credentials`] in a file, read so that no error of a format shows a secret.

use cqrs_config::{Secret, marked_as_not_text, not_text};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::config::{Credentials, RegistryConfig};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Basic {
    user: Secret,
    password: Secret,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    Basic(Basic),
    Bearer(Secret),
}

/// `IgnoredAny` accepts any other form; `not_text` makes the error, without the text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Read {
    Known(Known),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Credentials {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Read::deserialize(from)? {
            Read::Known(Known::Basic(basic)) => Self::basic(basic.user.expose(), basic.password),
            Read::Known(Known::Bearer(token)) => Self::bearer(token),
            Read::Other(_) => Self::bearer(marked_as_not_text(
                "neither `basic` with `user` and `password` nor `bearer` with a token",
            )),
        })
    }
}

impl RegistryConfig {
    /// The setting that should be a text and is none, and its type.
    pub(super) fn not_text(&self) -> Option<(&'static str, String)> {
        let credentials = match &self.credentials {
            Some(Credentials::Basic { user, password }) => {
                not_text(user).or(not_text(password.expose()))
            }
            Some(Credentials::Bearer(token)) => not_text(token.expose()),
            None => None,
        };
        let said = |what| format!("it is {what}; write texts, in quotes");
        let url = self.urls.iter().find_map(|url| not_text(url));
        url.map(|what| ("urls", said(what))).or(credentials.map(|what| ("credentials", said(what))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn file_has_the_names_of_the_fields() {
        let config: RegistryConfig = serde_json::from_str(
            r#"{"urls":["http://a"],"credentials":{"basic":{"user":"u","password":"p"}},
                "timeout":"500ms","reconnect":{"max":"5s"},"normalize":true}"#,
        )
        .unwrap();
        assert_eq!(config.timeout, Duration::from_millis(500));
        assert_eq!(config.credentials, Some(Credentials::basic("u", "p")));
        assert_eq!((config.attempts, config.normalize), (3, true));
        assert_eq!(config.reconnect.max, Duration::from_secs(5));
        for wrong in [r#"{"url":"http://a"}"#, r#"{"timeout":5}"#] {
            assert!(serde_json::from_str::<RegistryConfig>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn non_text_value_is_refused_unseen() {
        for line in [
            "urls = [8675309]",
            "urls = { a = 'http://u:8675309@a' }",
            "credentials = 'tok-8675309'",
            "credentials = 8675309",
            "credentials = { bearer = 8675309 }",
            "credentials = { token = 'tok-8675309' }",
            "credentials = { basic = 'user:8675309' }",
            "credentials = { basic = { user = 'u', password = 8675309 } }",
            "credentials = { basic = { user = 'u', pasword = '8675309' } }",
            "credentials = { basic = { user = 8675309, password = 'p' } }",
        ] {
            let config: RegistryConfig = toml::from_str(line).unwrap();
            let error = config.parse().unwrap_err();
            let text = format!("{error} {config:?}");
            assert!(text.contains("in quotes") && !text.contains("867"), "{line}: {text}");
        }
        let one: RegistryConfig = toml::from_str("urls = 'http://a, http://b'").unwrap();
        assert_eq!(one.urls, ["http://a", "http://b"]);
    }
}
