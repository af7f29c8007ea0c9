//! [`RegistryConfig`]: the settings of a [`SchemaRegistry`](super::SchemaRegistry), and their checks.

use std::fmt;
use std::time::Duration;

use cqrs_config::{MIN_TIMEOUT, Reconnect, Secret, TextList, TlsConfig, check_minimum};
use reqwest::Url;
use serde::Deserialize;

use super::error::RegistryError;

/// Settings of a [`SchemaRegistry`](super::SchemaRegistry).
///
/// Start from [`RegistryConfig::new`], [`from_env`](Self::from_env) or a file read with serde, where
/// durations are texts such as `"30s"` or `"250ms"` and a missing setting has its default. `Debug` shows
/// no credentials.
///
/// ```
/// use cqrs_schema_registry::{Credentials, RegistryConfig};
///
/// let mut config = RegistryConfig::new(["https://registry-1:8081", "https://registry-2:8081"]);
/// config.credentials = Some(Credentials::basic("key", "secret"));
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RegistryConfig {
    /// The base URLs of one registry, tried in turn, the one that answered last first;
    /// `http://localhost:8081` by default. Apicurio's end in `/apis/ccompat/v7`. Credentials in a URL
    /// (`https://user:password@host`) are taken when there are no others. With credentials, `http://`
    /// beside `https://` is an error; `http://` alone sends them unencrypted, with a warning.
    /// In a file a list, or one text with commas between them.
    #[serde(deserialize_with = "cqrs_config::deserialize_text_list")]
    pub urls: Vec<String>,
    /// The login; none by default.
    pub credentials: Option<Credentials>,
    /// TLS; used with `https://` only.
    pub tls: TlsConfig,
    /// The time limit of making one connection; 2 s by default, at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub connect_timeout: Duration,
    /// The time limit of one request to one URL, answer included; 5 s by default, at least 100 ms.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub timeout: Duration,
    /// The number of times that all URLs are tried before it is an error; 3 by default.
    pub attempts: u32,
    /// The wait between these attempts; 100 ms to 2 s by default.
    pub reconnect: Reconnect,
    /// True: the registry compares normalized schemas when they are looked up and registered. False by
    /// default.
    pub normalize: bool,
    /// The number of cached schemas; 1,000 by default. An id always means the same schema, so they do not
    /// expire.
    pub cache_capacity: usize,
    /// The time for which the answer that there is no such schema is cached, so that many messages with
    /// one unknown id are one request; 10 s by default. Zero: it is not cached. Such answers evict no
    /// known schema.
    #[serde(deserialize_with = "cqrs_config::deserialize_duration")]
    pub unknown_schema_ttl: Duration,
}

/// The login at the registry. `Debug` shows no user, password or token: some registries take a token as the user.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// HTTP's basic authentication; Confluent Cloud's API key and secret.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A bearer token. It is not refreshed.
    Bearer(Secret),
}

impl Credentials {
    /// A user and a password.
    pub fn basic(user: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::Basic { user: user.into(), password: password.into() }
    }

    /// A bearer token.
    pub fn bearer(token: impl Into<Secret>) -> Self {
        Self::Bearer(token.into())
    }

    fn token(&self) -> Option<&str> {
        match self {
            Self::Bearer(token) => Some(token.expose()),
            Self::Basic { .. } => None,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(***)",
            Self::Bearer(_) => "Bearer(***)",
        })
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            urls: vec!["http://localhost:8081".into()],
            credentials: None,
            tls: TlsConfig::default(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            attempts: 3,
            reconnect: Reconnect::default(),
            normalize: false,
            cache_capacity: 1000,
            unknown_schema_ttl: Duration::from_secs(10),
        }
    }
}

impl RegistryConfig {
    /// The defaults, for the registry at `urls`: a list, or one text with commas.
    pub fn new(urls: impl Into<TextList>) -> Self {
        Self { urls: urls.into().into(), ..Self::default() }
    }

    /// The base URLs without credentials in them, and the login.
    pub(super) fn parse(&self) -> Result<(Vec<Url>, Option<Credentials>), RegistryError> {
        let mut credentials = self.credentials.clone();
        let mut urls = Vec::new();
        if let Some((setting, what)) = self.not_text() {
            return Err(RegistryError::config(format!("{setting}: {what}")));
        }
        check_minimum("connect_timeout", self.connect_timeout, MIN_TIMEOUT)
            .and_then(|()| check_minimum("timeout", self.timeout, MIN_TIMEOUT))
            .and_then(|()| self.reconnect.check())
            .map_err(RegistryError::config)?;
        for (place, text) in self.urls.iter().enumerate() {
            let (url, own) = base(text).map_err(|what| {
                // Not the text: a password may stand in it.
                RegistryError::config(format!("urls: number {}: {what}", place + 1))
            })?;
            urls.push(url);
            credentials = credentials.or(own);
        }
        if urls.is_empty() {
            return Err(RegistryError::config("urls: there is none"));
        }
        if let Some(token) = credentials.as_ref().and_then(Credentials::token)
            && (token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let detail = "credentials: a bearer token is printable ASCII without spaces";
            return Err(RegistryError::config(detail));
        }
        let is_open = |url: &Url| url.scheme() == "http";
        if credentials.is_some()
            && !urls.iter().all(is_open)
            && let Some(place) = urls.iter().position(is_open)
        {
            return Err(RegistryError::config(format!(
                "urls: number {} is http:// beside https:// ones; the credentials would go there \
                 unencrypted. Make all of them https://",
                place + 1
            )));
        }
        if self.tls.is_used() && urls.iter().all(|url| url.scheme() != "https") {
            return Err(RegistryError::config("tls is set, but no URL begins with https://"));
        }
        Ok((urls, credentials))
    }
}

fn base(text: &str) -> Result<(Url, Option<Credentials>), &'static str> {
    let mut url = Url::parse(text.trim()).map_err(|_| "not a URL, such as http://host:8081")?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("not an http:// or https:// URL");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a base URL has no query and no fragment");
    }
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        (user, password) => {
            let decode =
                |text| decoded(text).ok_or("its credentials are not percent-encoded UTF-8");
            Some(Credentials::basic(decode(user)?, decode(password.unwrap_or_default())?))
        }
    };
    let removed = url.set_username("").and_then(|()| url.set_password(None));
    removed.map_err(|()| "not a URL that can be a base")?;
    Ok((url, credentials))
}

/// Without its percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_first_chunk::<2>()?;
        rest = tail;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<_> = self
            .urls
            .iter()
            .map(|url| base(url).map_or_else(|_| "***".to_owned(), |(url, _)| url.into()))
            .collect();
        f.debug_struct("RegistryConfig")
            .field("urls", &urls)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .field("reconnect", &self.reconnect)
            .field("normalize", &self.normalize)
            .field("cache_capacity", &self.cache_capacity)
            .field("unknown_schema_ttl", &self.unknown_schema_ttl)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_url_are_taken_out_of_it() {
        let config = RegistryConfig::new(["https://me:s%40fe@host:8081/apis"]);
        let (urls, credentials) = config.parse().unwrap();
        assert_eq!(urls[0].as_str(), "https://host:8081/apis");
        assert_eq!(credentials, Some(Credentials::basic("me", "s@fe")));
        let shown = format!("{config:?}");
        assert!(!shown.contains("s%40fe") && !shown.contains("s@fe"), "{shown}");
    }

    #[test]
    fn settings_that_cannot_work_are_refused_unseen() {
        for (url, expected) in [
            ("secret", "not a URL"),
            ("ftp://secret", "not an http"),
            ("http://host?secret", "no query"),
            ("http://u:%zzsecret@host", "percent-encoded"),
        ] {
            let error = RegistryConfig::new([url]).parse().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        assert!(RegistryConfig::new(Vec::<String>::new()).parse().is_err());
        let timeout = Duration::from_millis(30);
        let short = RegistryConfig { timeout, ..RegistryConfig::default() }.parse().unwrap_err();
        assert_eq!(short.to_string(), "timeout is 30ms, which is below the minimum of 100ms");
        let credentials = Some(Credentials::bearer("sec\nret"));
        let config = RegistryConfig { credentials, ..RegistryConfig::default() };
        let error = config.parse().unwrap_err().to_string();
        assert!(error.contains("bearer") && !error.contains("sec"), "{error}");
    }

    #[test]
    fn credentials_need_tls_everywhere_or_nowhere() {
        for urls in [
            ["https://u:s3cret@a", "http://b"],
            ["http://b", "https://u:s3cret@a"],
            ["http://u:s3cret@b", "https://a"],
        ] {
            let error = RegistryConfig::new(urls).parse().unwrap_err().to_string();
            assert!(error.contains("unencrypted") && !error.contains("s3cret"), "{error}");
        }
        let mut config = RegistryConfig::new(["https://a", "http://b"]);
        config.parse().unwrap();
        config.credentials = Some(Credentials::bearer("t"));
        assert!(config.parse().unwrap_err().to_string().contains("number 2"));
        for urls in [["http://a", "http://b"], ["https://a", "https://b"]] {
            let credentials = config.credentials.clone();
            RegistryConfig { credentials, ..RegistryConfig::new(urls) }.parse().unwrap();
        }
    }
}
