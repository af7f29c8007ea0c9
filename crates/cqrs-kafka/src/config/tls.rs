use std::fmt;

use cqrs_tls::Pem;
use serde::Deserialize;

use crate::{KafkaError, Secret};

/// TLS. Used when the security protocol is `SSL` or `SASL_SSL`.
///
/// The server's certificate and its host name are verified unless a `danger_*` option turns that off.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Tls {
    /// Authorities that may sign the server's certificate. `None`: those of the system.
    pub ca: Option<Pem>,
    /// The client's certificate, followed by the chain up to the authority that the server trusts.
    pub client_certificate: Option<Pem>,
    /// The private key of the client's certificate. `Debug` does not show it, not even its path, which may
    /// be a key that is taken for one.
    pub client_key: Option<Pem>,
    /// The password of the private key, when it is encrypted.
    pub client_key_password: Option<Secret>,
    /// Takes any certificate from anybody. Gives up: who sits between client and server reads and
    /// changes everything, passwords included.
    pub danger_accept_any_certificate: bool,
    /// Takes a trusted certificate for any host name. Gives up: whoever has any certificate of the
    /// authority can pose as the server.
    pub danger_accept_any_hostname: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .field("client_key", &self.client_key.as_ref().map(|_| "***"))
            .field("client_key_password", &self.client_key_password)
            .field("danger_accept_any_certificate", &self.danger_accept_any_certificate)
            .field("danger_accept_any_hostname", &self.danger_accept_any_hostname)
            .finish()
    }
}

impl Tls {
    /// TLS that trusts `ca`.
    pub fn with_ca(ca: impl Into<Pem>) -> Self {
        Self { ca: Some(ca.into()), ..Self::default() }
    }

    /// Logs in with a client certificate.
    #[must_use]
    pub fn with_client(mut self, certificate: impl Into<Pem>, key: impl Into<Pem>) -> Self {
        self.client_certificate = Some(certificate.into());
        self.client_key = Some(key.into());
        self
    }

    /// Whether anything is set.
    pub(super) fn is_set(&self) -> bool {
        let Self { ca, client_certificate, client_key, client_key_password, .. } = self;
        ca.is_some()
            || client_certificate.is_some()
            || client_key.is_some()
            || client_key_password.is_some()
            || self.danger_accept_any_certificate
            || self.danger_accept_any_hostname
    }

    pub(super) fn apply(&self, set: &mut impl FnMut(&str, &str)) -> Result<(), KafkaError> {
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
        match &self.ca {
            Some(ca) => pem("ca", ca)?,
            // A linked-in OpenSSL does not know where the system keeps its authorities.
            None => pem("ca", &Pem::Path("probe".into()))?,
        }
        match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => {
                pem("certificate", certificate)?;
                pem("key", key)?;
            }
            (None, None) => {}
            _ => {
                return Err(KafkaError::config(
                    "tls.client_certificate and tls.client_key need each other: set both or none",
                ));
            }
        }
        if let Some(password) = &self.client_key_password {
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
}
