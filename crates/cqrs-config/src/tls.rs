//! TLS settings, used by every client.

use std::fmt;

use serde::Deserialize;

use crate::{Pem, Secret};

/// Trusted authorities and the client's own certificate.
///
/// The server's certificate and host name are verified. `Debug` shows no key and no password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The authorities to trust, **instead of** those of the operating system. `None`: the system's.
    pub ca: Option<Pem>,
    /// The client's certificate chain, its own certificate first. Needs `client_key`.
    pub client_certificate: Option<Pem>,
    /// The client's private key (PKCS#8, PKCS#1 or SEC1). Needs `client_certificate`.
    /// `Debug` does not show its path either: a key without PEM markers is read as a path.
    pub client_key: Option<Pem>,
    /// The password of an encrypted private key. The clients on rustls (RabbitMQ, the schema registry)
    /// decrypt PKCS#8 (`BEGIN ENCRYPTED PRIVATE KEY`) with AES; Kafka's OpenSSL also older forms.
    pub client_key_password: Option<Secret>,
}

impl TlsConfig {
    /// The operating system's authorities, no client certificate.
    pub fn new() -> Self {
        Self::default()
    }

    cqrs_core::setters! {
        /// Sets [`ca`](Self::ca).
        pub fn with_ca(ca: impl Into<Pem>) { self.ca = Some(ca.into()) }

        /// Sets [`client_certificate`](Self::client_certificate) and [`client_key`](Self::client_key).
        pub fn with_client(certificate: impl Into<Pem>, key: impl Into<Pem>) {
            self.client_certificate = Some(certificate.into());
            self.client_key = Some(key.into())
        }

        /// Sets [`client_key_password`](Self::client_key_password).
        pub fn with_client_key_password(password: impl Into<Secret>) {
            self.client_key_password = Some(password.into())
        }
    }

    /// True if any field is set.
    pub fn is_used(&self) -> bool {
        *self != Self::default()
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .field("client_key", &self.client_key.as_ref().map(|_| "***"))
            .field("client_key_password", &self.client_key_password)
            .finish()
    }
}
