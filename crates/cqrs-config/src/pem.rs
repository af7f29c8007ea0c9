//! [`Pem`]: a certificate or key as a path or as text, part of the TLS settings.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::{not_text, secret_text};

/// A certificate or key in PEM form ([RFC 7468](https://www.rfc-editor.org/rfc/rfc7468)): a file, or the
/// text itself. Made from a string (of a file or a variable), a text with `-----BEGIN` is the PEM itself,
/// any other a path.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pem {
    /// The path of a file, read when the client is made.
    Path(PathBuf),
    /// The text itself. `Debug` does not show it.
    Text(String),
}

impl<'de> Deserialize<'de> for Pem {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        secret_text(from).map(Self::from)
    }
}

/// True if PEM text holds an encrypted private key
/// (PKCS#8, [RFC 7468](https://www.rfc-editor.org/rfc/rfc7468#section-11), or OpenSSL's older form).
pub fn is_encrypted_key(text: &str) -> bool {
    text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        || text.contains("Proc-Type: 4,ENCRYPTED")
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        match text.contains("-----BEGIN") || not_text(&text).is_some() {
            true => Self::Text(text),
            false => Self::Path(text.into()),
        }
    }
}

cqrs_core::from_values! { Pem:
    &str = |text| text.to_owned().into(),
    &String = |text| text.clone().into(),
    PathBuf = |path| Self::Path(path),
    &Path = |path| Self::Path(path.into()),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Text(_) => f.write_str("Text(***)"),
        }
    }
}
