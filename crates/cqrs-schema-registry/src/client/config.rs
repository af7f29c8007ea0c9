use std::fmt;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::{RegistryError, TlsConfig, file};

/// Settings of a [`SchemaRegistry`](super::SchemaRegistry).
///
/// Start from [`RegistryConfig::new`], [`from_env`](Self::from_env) or a file read with serde, where
/// durations are seconds and what is left out has its default. `Debug` shows no credentials.
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
    #[serde(deserialize_with = "file::urls")]
    pub urls: Vec<String>,
    /// Who we are; nobody by default.
    pub credentials: Option<Credentials>,
    /// TLS; used with `https://` only.
    pub tls: TlsConfig,
    /// How long making one connection may take; 2 s by default.
    #[serde(deserialize_with = "file::seconds")]
    pub connect_timeout: Duration,
    /// How long one request to one URL may take, answer included; 5 s by default.
    #[serde(deserialize_with = "file::seconds")]
    pub timeout: Duration,
    /// How often all URLs are tried before it is an error; 3 times by default.
    pub attempts: u32,
    /// The wait after the first of these attempts; 100 ms by default. It doubles with each, up to 2 s,
    /// and a random part of it (half to all) is waited.
    #[serde(deserialize_with = "file::seconds")]
    pub backoff: Duration,
    /// Whether the registry compares schemas after bringing them into its normal form, when they are
    /// looked up and registered; false by default.
    pub normalize: bool,
    /// How many schemas are kept; 1,000 by default. An id always means the same schema, so they are
    /// kept forever, until the place is needed.
    pub cache_capacity: usize,
    /// How long the answer that there is no such schema is kept, so that many messages with one unknown
    /// id are one request; 10 s by default. Zero: it is not kept. Such answers take no place from
    /// schemas that are known.
    #[serde(deserialize_with = "file::seconds")]
    pub unknown_schema_ttl: Duration,
}

/// Who we are, to the registry.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// HTTP's basic authentication; Confluent Cloud's API key and secret.
    Basic {
        /// The user.
        user: String,
        /// The password. `Debug` does not show it.
        password: String,
    },
    /// A bearer token. `Debug` does not show it. It is not refreshed.
    Bearer(String),
}

impl Credentials {
    /// A user and a password.
    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { user: user.into(), password: password.into() }
    }

    /// A bearer token.
    pub fn bearer(token: impl Into<String>) -> Self {
        Self::Bearer(token.into())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { .. } => f.write_str("Basic(***)"),
            Self::Bearer(_) => f.write_str("Bearer(***)"),
        }
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
            backoff: Duration::from_millis(100),
            normalize: false,
            cache_capacity: 1000,
            unknown_schema_ttl: Duration::from_secs(10),
        }
    }
}

impl RegistryConfig {
    /// The defaults, for the registry at `urls`.
    pub fn new<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self { urls: urls.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The base URLs without credentials in them, and who we are.
    pub(super) fn parse(&self) -> Result<(Vec<Url>, Option<Credentials>), RegistryError> {
        let mut credentials = self.credentials.clone();
        let mut urls = Vec::new();
        if let Some((setting, what)) = self.not_text() {
            return Err(RegistryError::config(format!("{setting}: {what}")));
        }
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
        if let Some(Credentials::Bearer(token)) = &credentials
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
            .field("backoff", &self.backoff)
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
    fn what_cannot_work_is_refused_without_its_text() {
        for (url, expected) in [
            ("secret", "not a URL"),
            ("ftp://secret", "not an http"),
            ("http://host?secret", "no query"),
            ("http://u:%zzsecret@host", "percent-encoded"),
        ] {
            let error = RegistryConfig::new([url]).parse().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        let none: [&str; 0] = [];
        assert!(RegistryConfig::new(none).parse().is_err());
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
