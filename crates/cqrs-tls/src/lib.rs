//! The TLS settings of the cqrs framework's clients. Users find these types where the client is
//! configured; this crate exists so that they are the same everywhere.

mod material;
mod pem;
mod secret;

use std::fmt;

use serde::Deserialize;

pub use material::{Identity, TlsError};
pub use pem::{Pem, is_encrypted_key};
pub use secret::{marked_as_not_text, not_text, secret_text};

/// Whom to trust and who one is. The server's certificate and host name are always verified; there is no
/// switch for that.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The authorities to trust, **instead of** those of the operating system. `None`: the system's.
    pub ca: Option<Pem>,
    /// The client's certificate chain, its own certificate first. Needs `client_key`.
    pub client_certificate: Option<Pem>,
    /// The client's private key (PKCS#8, PKCS#1 or SEC1), not encrypted: rustls cannot decrypt one
    /// (`openssl pkey -in encrypted.key -out plain.key` does). Needs `client_certificate`.
    /// `Debug` does not show it, not even its path, which may be a key that is taken for one.
    pub client_key: Option<Pem>,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .field("client_key", &self.client_key.as_ref().map(|_| "***"))
            .finish()
    }
}

impl TlsConfig {
    /// Whether anything is set.
    pub fn is_used(&self) -> bool {
        *self != Self::default()
    }
}
