use std::fmt;
use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use crate::{AmqpError, ErrorKind};

/// TLS for `amqps://`: rustls with the ring provider. The server's certificate and host name are always
/// verified; there is no switch for that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The authorities to trust, **instead of** those of the operating system. `None`: the system's.
    pub ca: Option<Pem>,
    /// The client's certificate chain, its own certificate first. Needs `client_key`.
    pub client_certificate: Option<Pem>,
    /// The client's private key (PKCS#8, PKCS#1 or SEC1), not encrypted. Needs `client_certificate`.
    pub client_key: Option<Pem>,
}

/// PEM text, or the file it stands in. A file is read when the broker value is made.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pem {
    /// A file.
    Path(PathBuf),
    /// The text itself. `Debug` does not show it.
    Text(String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Text(_) => f.write_str("Text(***)"),
        }
    }
}

impl TlsConfig {
    /// Whether anything is set that only TLS uses.
    pub(crate) fn is_used(&self) -> bool {
        *self != Self::default()
    }

    /// Reads the files and builds what every connection uses.
    pub(crate) fn connector(&self) -> Result<RustlsConnector, AmqpError> {
        let mut config = RustlsConnectorConfig::default();
        match &self.ca {
            Some(ca) => config.add_parsable_certificates(certificates("tls.ca", ca)?),
            None => {
                config = config.with_native_certs().map_err(|error| {
                    AmqpError::caused(
                        ErrorKind::Config,
                        "the operating system's certificate authorities cannot be read; set tls.ca",
                        error,
                    )
                })?;
            }
        }
        let connector = match (&self.client_certificate, &self.client_key) {
            (None, None) => config.connector_with_no_client_auth(),
            (Some(certificate), Some(key)) => config.connector_with_single_cert(
                certificates("tls.client_certificate", certificate)?,
                private_key(key)?,
            ),
            _ => {
                return Err(AmqpError::config(
                    "tls.client_certificate and tls.client_key go together: one is missing",
                ));
            }
        };
        connector.map_err(|error| {
            let detail = "the TLS settings do not make a TLS client: check that certificate and key \
                          belong together and that tls.ca holds an authority";
            AmqpError::caused(ErrorKind::Config, detail, error)
        })
    }
}

fn read(setting: &str, pem: &Pem) -> Result<Vec<u8>, AmqpError> {
    match pem {
        Pem::Text(text) => Ok(text.as_bytes().to_vec()),
        Pem::Path(path) => std::fs::read(path).map_err(|error| {
            let detail = format!("{setting}: cannot read {}", shown(setting, path));
            AmqpError::caused(ErrorKind::Config, detail, error)
        }),
    }
}

/// A path; but what was meant to be a key's path may be the key.
fn shown<'p>(setting: &str, path: &'p Path) -> std::path::Display<'p> {
    match setting {
        "tls.client_key" => Path::new("its file").display(),
        _ => path.display(),
    }
}

fn certificates(setting: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, AmqpError> {
    let text = read(setting, pem)?;
    let found: Vec<_> =
        // The parser's error quotes what it could not read, and a key may stand beside a certificate.
        CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| AmqpError::config(format!("{setting}: not PEM{LINES}")))?;
    match found.is_empty() {
        true => Err(AmqpError::config(format!("{setting}: it holds no certificate"))),
        false => Ok(found),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, AmqpError> {
    // The parser's error quotes what it could not read, which may be the key.
    PrivateKeyDer::from_pem_slice(&read("tls.client_key", pem)?).map_err(|_| {
        let detail = format!("tls.client_key: no unencrypted PEM private key in it{LINES}");
        AmqpError::config(detail)
    })
}

/// A mistake that is easily made with variables.
const LINES: &str = "; every line of PEM needs its own line, not \\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(tls: TlsConfig) -> String {
        let error = tls.connector().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.chain()
    }

    #[test]
    fn errors_name_the_setting() {
        let missing = Pem::Path("/does/not/exist.pem".into());
        let tls = TlsConfig { ca: Some(missing), ..TlsConfig::default() };
        assert!(refused(tls).starts_with("tls.ca: cannot read /does/not/exist.pem: "));
        let tls = TlsConfig { ca: Some(Pem::Text("x".into())), ..TlsConfig::default() };
        assert_eq!(refused(tls), "tls.ca: it holds no certificate");
    }

    #[test]
    fn errors_show_no_key() {
        // As a variable holds it whose line breaks were not real ones; and without its markers.
        let one_line = r"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----";
        for key in [Pem::Text(one_line.into()), Pem::Path("c2VjcmV0".into())] {
            let chain = private_key(&key).unwrap_err().chain();
            assert!(chain.starts_with("tls.client_key: "), "{chain}");
            for secret in ["c2Vj", "99, 50, 86"] {
                assert!(!chain.contains(secret), "{chain}");
            }
        }
        let text = format!("{one_line}\\n");
        for pem in [Pem::Text(one_line.into()), Pem::Text(text)] {
            let chain = certificates("tls.ca", &pem).unwrap_err().chain();
            assert!(!chain.contains("99, 50, 86") && chain.contains("tls.ca: "), "{chain}");
        }
    }

    #[test]
    fn debug_hides_inline_keys() {
        assert_eq!(format!("{:?}", Pem::Text("PRIVATE".into())), "Text(***)");
    }
}
