//! The environment variables of a [`RegistryConfig`].

use cqrs_config::{Env, MIN_TIMEOUT, Secret};

use super::config::{Credentials, RegistryConfig};
use super::error::RegistryError;

const PREFIX: &str = "SCHEMA_REGISTRY_";

impl RegistryConfig {
    /// Reads the settings from environment variables; but for the URL, one that is not set, or empty, has its
    /// default.
    ///
    /// | variable | setting |
    /// |---|---|
    /// | `SCHEMA_REGISTRY_URL` | `urls`, with commas between them, required |
    /// | `SCHEMA_REGISTRY_USER`, `SCHEMA_REGISTRY_PASSWORD` | `credentials`, basic |
    /// | `SCHEMA_REGISTRY_TOKEN` | `credentials`, bearer |
    /// | `SCHEMA_REGISTRY_TLS_CA` | `tls.ca`: a file, or PEM text |
    /// | `SCHEMA_REGISTRY_TLS_CLIENT_CERTIFICATE`, `SCHEMA_REGISTRY_TLS_CLIENT_KEY` | likewise |
    /// | `SCHEMA_REGISTRY_TLS_CLIENT_KEY_PASSWORD` | text |
    /// | `SCHEMA_REGISTRY_CONNECT_TIMEOUT`, `SCHEMA_REGISTRY_TIMEOUT` | the same, such as `30s` or `250ms` |
    ///
    /// # Errors
    /// [`RegistryErrorKind::Config`](super::RegistryErrorKind::Config) when variables are missing, malformed or
    /// contradict each other. The error names all of them, and never shows a value.
    pub fn from_env() -> Result<Self, RegistryError> {
        Self::read_env(Env::new(PREFIX))
    }

    fn read_env(mut env: Env) -> Result<Self, RegistryError> {
        let mut config = Self::default();
        env.require("URL", &mut config.urls, "http://host:8081");
        let user = env.get::<String>("USER");
        let password = env.get::<Secret>("PASSWORD");
        let token = env.get::<Secret>("TOKEN");
        if user.is_none() && password.is_some() {
            env.refuse("PASSWORD", "SCHEMA_REGISTRY_USER is not set");
        }
        if user.is_some() && token.is_some() {
            env.refuse("TOKEN", "SCHEMA_REGISTRY_USER is set, too; one login is enough");
        }
        let basic = user.map(|user| Credentials::basic(user, password.unwrap_or_default()));
        config.credentials = basic.or(token.map(Credentials::Bearer));
        env.read_timeout("CONNECT_TIMEOUT", &mut config.connect_timeout, MIN_TIMEOUT);
        env.read_timeout("TIMEOUT", &mut config.timeout, MIN_TIMEOUT);
        env.read_tls(&mut config.tls);
        env.finish().map_err(RegistryError::config)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use cqrs_config::Pem;

    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<RegistryConfig, RegistryError> {
        let vars = vars.iter().map(|&(name, value)| (name.into(), value.into()));
        RegistryConfig::read_env(Env::from_vars(PREFIX, vars))
    }

    #[test]
    fn every_variable_reaches_its_field() {
        let config = read(&[
            ("SCHEMA_REGISTRY_URL", "http://a:1, http://b:2"),
            ("SCHEMA_REGISTRY_USER", "u"),
            ("SCHEMA_REGISTRY_PASSWORD", "p"),
            ("SCHEMA_REGISTRY_TLS_CA", "/ca.pem"),
            ("SCHEMA_REGISTRY_TLS_CLIENT_CERTIFICATE", "-----BEGIN CERTIFICATE-----"),
            ("SCHEMA_REGISTRY_TLS_CLIENT_KEY", "/key.pem"),
            ("SCHEMA_REGISTRY_TLS_CLIENT_KEY_PASSWORD", "hush"),
            ("SCHEMA_REGISTRY_CONNECT_TIMEOUT", "3s"),
            ("SCHEMA_REGISTRY_TIMEOUT", "4s"),
        ])
        .unwrap();
        assert_eq!(config.urls, ["http://a:1", "http://b:2"]);
        assert_eq!(config.credentials, Some(Credentials::basic("u", "p")));
        assert_eq!(config.tls.ca, Some(Pem::Path("/ca.pem".into())));
        assert!(matches!(config.tls.client_certificate, Some(Pem::Text(_))));
        assert_eq!(config.tls.client_key, Some(Pem::Path("/key.pem".into())));
        assert_eq!(config.tls.client_key_password, Some("hush".into()));
        assert_eq!((config.connect_timeout.as_secs(), config.timeout.as_secs()), (3, 4));
        let token = [("SCHEMA_REGISTRY_TOKEN", "t"), ("SCHEMA_REGISTRY_URL", "http://a:1")];
        assert_eq!(read(&token).unwrap().credentials, Some(Credentials::bearer("t")));
    }

    #[test]
    fn error_names_all_wrong_variables_unseen() {
        let error = read(&[
            ("SCHEMA_REGISTRY_PASSWORD", "s3cret"),
            ("SCHEMA_REGISTRY_TIMEOUT", "5"),
            ("SCHEMA_REGISTRY_CONNECT_TIMEOUT", "5ms"),
        ])
        .unwrap_err()
        .to_string();
        assert!(!error.contains("s3cret"), "{error}");
        for words in [
            "SCHEMA_REGISTRY_URL: it is not set; expected http://host:8081",
            "SCHEMA_REGISTRY_PASSWORD: SCHEMA_REGISTRY_USER is not set",
            "SCHEMA_REGISTRY_TIMEOUT: a number without a unit",
            "SCHEMA_REGISTRY_CONNECT_TIMEOUT: 5ms is below the minimum of 100ms",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let both = [("SCHEMA_REGISTRY_TOKEN", "t"), ("SCHEMA_REGISTRY_USER", "u")];
        assert!(read(&both).unwrap_err().to_string().contains("SCHEMA_REGISTRY_TOKEN: "));
    }
}
