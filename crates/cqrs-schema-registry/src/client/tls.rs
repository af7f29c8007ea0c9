use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use super::{RegistryError, RegistryErrorKind};

/// TLS for `https://`: rustls with the ring provider. The server's certificate and host name are always
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

/// PEM text, or the file it stands in. A file is read when the client is made.
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
    pub(super) fn is_used(&self) -> bool {
        *self != Self::default()
    }

    /// Reads the files and builds what every connection uses.
    pub(super) fn client(&self) -> Result<ClientConfig, RegistryError> {
        let builder = with_roots(self.roots()?)?;
        match (&self.client_certificate, &self.client_key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(
                    certificates("tls.client_certificate", certificate)?,
                    private_key(key)?,
                )
                .map_err(|error| {
                    caused(
                        "tls.client_certificate and tls.client_key do not belong together",
                        error,
                    )
                }),
            _ => Err(RegistryError::config(
                "tls.client_certificate and tls.client_key go together: one is missing",
            )),
        }
    }

    fn roots(&self) -> Result<RootCertStore, RegistryError> {
        let mut roots = RootCertStore::empty();
        let Some(ca) = &self.ca else {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
            return match (roots.is_empty(), system.errors.into_iter().next()) {
                (false, _) => Ok(roots),
                (true, Some(error)) => Err(caused(NO_SYSTEM_ROOTS, error)),
                (true, None) => Err(RegistryError::config(NO_SYSTEM_ROOTS)),
            };
        };
        for certificate in certificates("tls.ca", ca)? {
            roots.add(certificate).map_err(|error| caused("tls.ca: no authority", error))?;
        }
        Ok(roots)
    }
}

/// For URLs without TLS: it trusts nobody. So that reqwest need not find a provider of its own, which
/// it would miss with a panic.
pub(super) fn unused() -> Result<ClientConfig, RegistryError> {
    with_roots(RootCertStore::empty()).map(|builder| builder.with_no_client_auth())
}

fn with_roots(
    roots: RootCertStore,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| caused("the TLS settings do not make a TLS client", error))?;
    Ok(builder.with_root_certificates(roots))
}

const NO_SYSTEM_ROOTS: &str =
    "the operating system's certificate authorities cannot be read; set tls.ca";

fn caused(
    detail: impl Into<String>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    RegistryError::caused(RegistryErrorKind::Config, detail, error)
}

fn read(setting: &str, pem: &Pem) -> Result<Vec<u8>, RegistryError> {
    match pem {
        Pem::Text(text) => Ok(text.as_bytes().to_vec()),
        Pem::Path(path) => std::fs::read(path).map_err(|error| {
            caused(format!("{setting}: cannot read {}", shown(setting, path)), error)
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

fn certificates(setting: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let text = read(setting, pem)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        // The parser's error quotes what it could not read, and a key may stand beside a certificate.
        .map_err(|_| RegistryError::config(format!("{setting}: not PEM{LINES}")))?;
    match found.is_empty() {
        true => Err(RegistryError::config(format!("{setting}: it holds no certificate"))),
        false => Ok(found),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, RegistryError> {
    // The parser's error quotes what it could not read, which may be the key.
    PrivateKeyDer::from_pem_slice(&read("tls.client_key", pem)?).map_err(|_| {
        let detail = format!("tls.client_key: no unencrypted PEM private key in it{LINES}");
        RegistryError::config(detail)
    })
}

/// A mistake that is easily made with variables.
const LINES: &str = "; every line of PEM needs its own line, not \\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_setting() {
        let refused = |tls: TlsConfig| {
            let error = tls.client().unwrap_err();
            assert_eq!(error.kind(), RegistryErrorKind::Config);
            error.to_string()
        };
        let ca = |ca| TlsConfig { ca: Some(ca), ..TlsConfig::default() };
        let missing = refused(ca(Pem::Path("/does/not/exist.pem".into())));
        assert_eq!(missing, "tls.ca: cannot read /does/not/exist.pem");
        assert_eq!(refused(ca(Pem::Text("x".into()))), "tls.ca: it holds no certificate");
        let half = TlsConfig { client_key: Some(Pem::Text("x".into())), ..TlsConfig::default() };
        assert!(refused(half).contains("one is missing"));
    }

    #[test]
    fn errors_show_no_key() {
        // As a variable holds it whose line breaks were not real ones; and without its markers.
        let one_line = r"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----";
        for key in [Pem::Text(one_line.into()), Pem::Path("c2VjcmV0".into())] {
            let error = private_key(&key).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().starts_with("tls.client_key: "), "{shown}");
            for secret in ["c2Vj", "99, 50, 86"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
        let error = certificates("tls.ca", &Pem::Text(one_line.into())).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("99, 50, 86"), "{error:?}");
    }

    #[test]
    fn debug_hides_inline_keys() {
        assert_eq!(format!("{:?}", Pem::Text("PRIVATE".into())), "Text(***)");
    }
}
