use std::env::VarError;

use super::{Credentials, Pem, RegistryConfig, RegistryError};

impl RegistryConfig {
    /// Reads the settings from environment variables; what is not set, or empty, has its default.
    ///
    /// | variable | setting |
    /// |---|---|
    /// | `SCHEMA_REGISTRY_URL` | `urls`, with commas between them |
    /// | `SCHEMA_REGISTRY_USER`, `SCHEMA_REGISTRY_PASSWORD` | `credentials`, basic |
    /// | `SCHEMA_REGISTRY_TOKEN` | `credentials`, bearer |
    /// | `SCHEMA_REGISTRY_TLS_CA` | `tls.ca`: a file, or PEM text |
    /// | `SCHEMA_REGISTRY_TLS_CLIENT_CERTIFICATE`, `SCHEMA_REGISTRY_TLS_CLIENT_KEY` | likewise |
    /// | `SCHEMA_REGISTRY_TLS_CLIENT_KEY_PASSWORD` | text |
    ///
    /// # Errors
    /// [`RegistryErrorKind::Config`](super::RegistryErrorKind::Config) naming the variable, never its
    /// value.
    pub fn from_env() -> Result<Self, RegistryError> {
        Self::from_lookup(|name| std::env::var(name))
    }

    fn from_lookup(
        lookup: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, RegistryError> {
        let get = |name: &str| match lookup(name) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => {
                Err(RegistryError::config(format!("{name}: it is not UTF-8")))
            }
        };
        let mut config = Self::default();
        if let Some(urls) = get("SCHEMA_REGISTRY_URL")? {
            config.urls = urls.split(',').map(|url| url.trim().to_owned()).collect();
        }
        let (user, password) = (get("SCHEMA_REGISTRY_USER")?, get("SCHEMA_REGISTRY_PASSWORD")?);
        config.credentials = match (user, password, get("SCHEMA_REGISTRY_TOKEN")?) {
            (None, None, None) => None,
            (None, None, Some(token)) => Some(Credentials::Bearer(token)),
            (Some(user), password, None) => {
                Some(Credentials::basic(user, password.unwrap_or_default()))
            }
            (None, Some(_), _) => {
                let detail = "SCHEMA_REGISTRY_PASSWORD: SCHEMA_REGISTRY_USER is missing";
                return Err(RegistryError::config(detail));
            }
            (Some(_), _, Some(_)) => {
                let detail =
                    "SCHEMA_REGISTRY_TOKEN: SCHEMA_REGISTRY_USER is set too, one is enough";
                return Err(RegistryError::config(detail));
            }
        };
        let pem = |name| Ok::<_, RegistryError>(get(name)?.map(Pem::from));
        config.tls.ca = pem("SCHEMA_REGISTRY_TLS_CA")?;
        config.tls.client_certificate = pem("SCHEMA_REGISTRY_TLS_CLIENT_CERTIFICATE")?;
        config.tls.client_key = pem("SCHEMA_REGISTRY_TLS_CLIENT_KEY")?;
        config.tls.client_key_password =
            get("SCHEMA_REGISTRY_TLS_CLIENT_KEY_PASSWORD")?.map(Into::into);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<RegistryConfig, RegistryError> {
        RegistryConfig::from_lookup(|name| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, text)| (*text).to_owned()).ok_or(VarError::NotPresent)
        })
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
        ])
        .unwrap();
        assert_eq!(config.urls, ["http://a:1", "http://b:2"]);
        assert_eq!(config.credentials, Some(Credentials::basic("u", "p")));
        assert_eq!(config.tls.ca, Some(Pem::Path("/ca.pem".into())));
        assert!(matches!(config.tls.client_certificate, Some(Pem::Text(_))));
        assert_eq!(config.tls.client_key, Some(Pem::Path("/key.pem".into())));
        let token = read(&[("SCHEMA_REGISTRY_TOKEN", "t"), ("SCHEMA_REGISTRY_URL", " ")]).unwrap();
        assert_eq!(token.credentials, Some(Credentials::bearer("t")));
        assert_eq!(token.urls, RegistryConfig::default().urls);
    }

    #[test]
    fn contradictions_name_the_variable() {
        let half = read(&[("SCHEMA_REGISTRY_PASSWORD", "hidden")]).unwrap_err().to_string();
        assert!(half.contains("SCHEMA_REGISTRY_USER") && !half.contains("hidden"), "{half}");
        let both = [("SCHEMA_REGISTRY_TOKEN", "t"), ("SCHEMA_REGISTRY_USER", "u")];
        assert!(read(&both).is_err());
    }
}
