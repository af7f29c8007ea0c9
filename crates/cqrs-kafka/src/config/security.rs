//! Encryption and login in a [`KafkaConfig`]: their checks, their weaknesses and librdkafka's TLS options.

use super::native::canonical;
use super::{KafkaConfig, Pem, SaslMechanism, SecurityProtocol};
use crate::error::KafkaError;

impl KafkaConfig {
    /// The settings that weaken the connection on purpose.
    pub(crate) fn weaknesses(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        let protocol = self.protocol();
        let is_plain = match self.raw_value("sasl.mechanism") {
            Some(raw) => raw.eq_ignore_ascii_case("PLAIN"),
            None => self.sasl.mechanism == Some(SaslMechanism::Plain),
        };
        if protocol == SecurityProtocol::SaslPlaintext && is_plain {
            found.push("sasl.mechanism PLAIN without TLS: the network sees the password");
        }
        if protocol.uses_tls() {
            let verifies = self.raw_value("enable.ssl.certificate.verification");
            if verifies.is_some_and(|raw| matches!(&*raw.to_lowercase(), "false" | "f" | "0")) {
                found.push(
                    "enable.ssl.certificate.verification is off: anybody can pose as the server",
                );
            }
            let checks = self.raw_value("ssl.endpoint.identification.algorithm");
            if checks.is_some_and(|raw| raw.eq_ignore_ascii_case("none")) {
                found.push("ssl.endpoint.identification.algorithm is none: any host of the authority can pose as the server");
            }
            if self.danger_accept_any_certificate {
                found.push("danger_accept_any_certificate: anybody can pose as the server");
            }
            if self.danger_accept_any_hostname {
                found.push(
                    "danger_accept_any_hostname: any host of the authority can pose as the server",
                );
            }
        }
        found
    }

    /// Refuses TLS or SASL settings that the security protocol does not use.
    pub(super) fn check_security(&self) -> Result<(), KafkaError> {
        let protocol = self.protocol();
        let has_raw = |prefix: &str| self.raw.keys().any(|name| name.starts_with(prefix));
        let wrong = |what: &str, does: &str, with: &str| {
            let text = format!(
                "{what} is set, but security_protocol is {protocol}, which {does}; set it to {with}, or \
                 remove {what}"
            );
            Err(KafkaError::config(text))
        };
        if !protocol.uses_tls() && (self.uses_tls_settings() || has_raw("ssl.")) {
            return wrong("tls", "does not encrypt", "SSL or SASL_SSL");
        }
        if !protocol.uses_sasl() && (self.sasl.is_set() || has_raw("sasl.")) {
            return wrong("sasl", "does not log in", "SASL_SSL or SASL_PLAINTEXT");
        }
        Ok(())
    }

    pub(super) fn set_tls(&self, set: &mut impl FnMut(&str, &str)) -> Result<(), KafkaError> {
        let mut pem = |name: &str, value: &Pem| -> Result<(), KafkaError> {
            match value {
                Pem::Text(text) => set(&format!("ssl.{name}.pem"), text),
                Pem::Path(path) => {
                    let path = path.to_str().ok_or_else(|| {
                        KafkaError::config(format!("the path of tls {name} is not UTF-8"))
                    })?;
                    set(&format!("ssl.{name}.location"), path);
                }
                _ => return Err(KafkaError::config(format!("tls {name} has an unknown form"))),
            }
            Ok(())
        };
        match &self.tls.ca {
            Some(ca) => pem("ca", ca)?,
            // A linked-in OpenSSL does not know the system's directory of authorities.
            None => pem("ca", &Pem::Path("probe".into()))?,
        }
        match (&self.tls.client_certificate, &self.tls.client_key) {
            (Some(certificate), Some(key)) => {
                pem("certificate", certificate)?;
                pem("key", key)?;
            }
            (None, None) => {}
            _ => {
                return Err(KafkaError::config(
                    "tls.client_certificate and tls.client_key go together: one is missing",
                ));
            }
        }
        if let Some(password) = &self.tls.client_key_password {
            set("ssl.key.password", password.expose());
        }
        if self.danger_accept_any_certificate {
            set("enable.ssl.certificate.verification", "false");
        }
        if self.danger_accept_any_hostname {
            set("ssl.endpoint.identification.algorithm", "none");
        }
        Ok(())
    }

    /// The security protocol in effect: a raw option overrides the field.
    fn protocol(&self) -> SecurityProtocol {
        let raw = self.raw_value("security.protocol").and_then(|text| text.parse().ok());
        raw.unwrap_or(self.security_protocol)
    }

    fn raw_value(&self, name: &str) -> Option<&str> {
        let found = self.raw.iter().find(|(raw, _)| canonical(raw) == canonical(name));
        found.map(|(_, value)| value.expose())
    }

    fn uses_tls_settings(&self) -> bool {
        self.tls.is_used() || self.danger_accept_any_certificate || self.danger_accept_any_hostname
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{config, options, refused};
    use crate::config::{Sasl, TlsConfig};
    use crate::oauth::{OAuthToken, TokenProvider};

    #[test]
    fn security_maps_to_options() {
        let tls = TlsConfig::new().with_ca("/ca.pem").with_client("-----BEGIN C", "-----BEGIN K");
        let config = config().with_tls(tls).with_sasl(Sasl::scram_sha_512("me", "hush"));
        assert_eq!(config.security_protocol, SecurityProtocol::SaslSsl);
        let options = options(&config);
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "me"),
            ("sasl.password", "hush"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.certificate.pem", "-----BEGIN C"),
            ("ssl.key.pem", "-----BEGIN K"),
        ] {
            assert_eq!(options.get(name), Some(value), "{name}");
        }
        assert_eq!(options.get("enable.ssl.certificate.verification"), None, "on by default");
    }

    #[test]
    fn missing_credentials_are_refused() {
        let with = |sasl| refused(&config().with_sasl(sasl));
        assert!(with(Sasl::default()).contains("sasl.mechanism is not set"));
        assert!(with(Sasl::plain("me", "")).contains("sasl.password is not set"));
        assert!(with(Sasl::scram_sha_256("", "hush")).contains("sasl.username is not set"));
        let bearer = |token_provider| Sasl {
            mechanism: Some(SaslMechanism::OAuthBearer),
            token_provider,
            ..Sasl::default()
        };
        assert!(with(bearer(None)).contains("sasl.token_provider is not set"));
        let provider = TokenProvider::new(|| Err::<OAuthToken, _>("none"));
        options(&config().with_sasl(bearer(Some(provider))));
        let kerberos = Sasl { mechanism: Some(SaslMechanism::Gssapi), ..Sasl::default() };
        #[cfg(not(feature = "gssapi"))]
        assert!(with(kerberos).contains("feature `gssapi`"));
        #[cfg(feature = "gssapi")]
        options(&config().with_sasl(kerberos));
        let mut half = TlsConfig::new();
        half.client_key = Some("/key.pem".into());
        assert!(refused(&config().with_tls(half)).contains("go together"));
    }

    #[test]
    fn tls_or_login_over_plaintext_is_refused() {
        let plaintext = |change: fn(&mut KafkaConfig)| {
            let mut config = config();
            change(&mut config);
            refused(&config)
        };
        let error = plaintext(|config| config.tls = TlsConfig::new().with_ca("/ca.pem"));
        assert!(error.contains("tls is set, but security_protocol is PLAINTEXT"), "{error}");
        let error = plaintext(|config| config.sasl = Sasl::plain("me", "hush"));
        assert!(error.contains("sasl is set") && !error.contains("hush"), "{error}");
        plaintext(|config| config.sasl.username = Some("me".into()));
        plaintext(|config| config.danger_accept_any_hostname = true);
        let raw = |name, value| config().with_raw(name, value);
        assert!(refused(&raw("ssl.ca.location", "/ca.pem")).contains("tls is set"));
        assert!(refused(&raw("sasl.username", "me")).contains("sasl is set"));
        let login = config().with_sasl(Sasl::plain("me", "hush"));
        options(&login);
        let mut both = login.clone();
        both.tls = TlsConfig::new().with_ca("/ca.pem");
        assert!(refused(&both).contains("SASL_PLAINTEXT, which does not encrypt"));
        options(
            &raw("security.protocol", "ssl")
                .with_raw("ssl.endpoint.identification.algorithm", "none"),
        );
    }

    #[test]
    fn each_weakness_is_named() {
        assert_eq!(config().weaknesses().len(), 0);
        let plain = config().with_sasl(Sasl::plain("me", "hush"));
        assert!(plain.weaknesses()[0].contains("PLAIN without TLS"));
        let mut open = plain.with_tls(TlsConfig::new().with_ca("/ca.pem"));
        assert_eq!(open.weaknesses().len(), 0);
        open.danger_accept_any_certificate = true;
        open.danger_accept_any_hostname = true;
        assert_eq!(open.weaknesses().len(), 2);
        assert_eq!(config().with_sasl(Sasl::scram_sha_256("me", "hush")).weaknesses().len(), 0);
        let raw = config()
            .with_raw("security.protocol", "sasl_plaintext")
            .with_raw("sasl.mechanism", "PLAIN");
        assert_eq!(raw.weaknesses().len(), 1);
        let raw = config()
            .with_raw("security.protocol", "ssl")
            .with_raw("enable.ssl.certificate.verification", "false")
            .with_raw("ssl.endpoint.identification.algorithm", "none");
        assert_eq!(raw.weaknesses().len(), 2);
    }
}
