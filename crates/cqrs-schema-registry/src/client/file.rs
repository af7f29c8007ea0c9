//! How the settings are read with serde, so that no error of a format shows a secret.

use std::fmt;
use std::time::Duration;

use cqrs_config::{marked_as_not_text, not_text, secret_text};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Credentials, RegistryConfig};

/// Durations as seconds, whole or with a fraction.
pub(super) fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(from)?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| serde::de::Error::custom("expected seconds, zero or more"))
}

/// A text that no error shows.
struct Hidden(String);

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret_text(from).map(Self)
    }
}

/// Base URLs, which may hold credentials: a list, or one text with commas.
pub(super) fn urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Urls;

    impl<'de> Visitor<'de> for Urls {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of URLs")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(|url| url.trim().to_owned()).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut urls = Vec::new();
            while let Some(Hidden(url)) = seq.next_element()? {
                urls.push(url);
            }
            Ok(urls)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(vec![marked_as_not_text("a table")])
        }
    }

    from.deserialize_any(Urls)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Basic {
    user: Hidden,
    password: Hidden,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    Basic(Basic),
    Bearer(Hidden),
}

/// `IgnoredAny` takes what is neither: the error that says so is made by `not_text`, without the text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Read {
    Known(Known),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Credentials {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Read::deserialize(from)? {
            Read::Known(Known::Basic(basic)) => Self::basic(basic.user.0, basic.password.0),
            Read::Known(Known::Bearer(token)) => Self::bearer(token.0),
            Read::Other(_) => Self::bearer(marked_as_not_text(
                "neither `basic` with `user` and `password` nor `bearer` with a token",
            )),
        })
    }
}

impl RegistryConfig {
    /// The setting that should be a text and is none, and what it is.
    pub(super) fn not_text(&self) -> Option<(&'static str, String)> {
        let credentials = match &self.credentials {
            Some(Credentials::Basic { user, password }) => not_text(user).or(not_text(password)),
            Some(Credentials::Bearer(token)) => not_text(token),
            None => None,
        };
        let said = |what| format!("it is {what}; write texts, in quotes");
        let url = self.urls.iter().find_map(|url| not_text(url));
        url.map(|what| ("urls", said(what))).or(credentials.map(|what| ("credentials", said(what))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_read_from_a_file() {
        let config: RegistryConfig = serde_json::from_str(
            r#"{"urls":["http://a"],"credentials":{"basic":{"user":"u","password":"p"}},
                "timeout":0.5,"normalize":true}"#,
        )
        .unwrap();
        assert_eq!(config.timeout, Duration::from_millis(500));
        assert_eq!(config.credentials, Some(Credentials::basic("u", "p")));
        assert_eq!((config.attempts, config.normalize), (3, true));
        assert!(serde_json::from_str::<RegistryConfig>(r#"{"url":"http://a"}"#).is_err());
    }

    #[test]
    fn value_that_is_no_text_is_refused_unseen() {
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
