//! What rustls takes, made of the settings.

use std::fmt;
use std::io;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Pem, TlsConfig, is_encrypted_key, not_text};

/// A setting that cannot be used. Names it; never shows what is in it.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct TlsError {
    detail: String,
    source: Option<io::Error>,
}

impl TlsError {
    fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), source: None }
    }

    /// What is wrong, and why a file could not be read.
    pub fn into_parts(self) -> (String, Option<io::Error>) {
        (self.detail, self.source)
    }
}

/// Who the client is.
pub struct Identity {
    /// Its own certificate, and those up to the authority that the server trusts.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificates = self.certificates.len();
        f.debug_struct("Identity").field("certificates", &certificates).finish_non_exhaustive()
    }
}

impl TlsConfig {
    /// The authorities to trust. `None`: the operating system's. Reads files, and so may block.
    ///
    /// # Errors
    /// When `ca` cannot be read or holds no certificate.
    pub fn authorities(&self) -> Result<Option<Vec<CertificateDer<'static>>>, TlsError> {
        self.ca.as_ref().map(|ca| certificates("tls.ca", ca)).transpose()
    }

    /// Who the client is, if it says so. Reads files, and so may block.
    ///
    /// # Errors
    /// When certificate or key is missing, cannot be read or is none.
    pub fn identity(&self) -> Result<Option<Identity>, TlsError> {
        match (&self.client_certificate, &self.client_key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Identity {
                certificates: certificates("tls.client_certificate", certificate)?,
                key: private_key(key)?,
            })),
            _ => Err(TlsError::new(
                "tls.client_certificate and tls.client_key go together: one is missing",
            )),
        }
    }
}

fn read(setting: &str, pem: &Pem) -> Result<Vec<u8>, TlsError> {
    match pem {
        Pem::Text(text) => match not_text(text) {
            Some(what) => Err(TlsError::new(format!(
                "{setting}: it is {what}; write a path or the PEM as a text, in quotes"
            ))),
            None => Ok(text.as_bytes().to_vec()),
        },
        Pem::Path(path) => std::fs::read(path).map_err(|error| TlsError {
            detail: format!("{setting}: cannot read {}", shown(setting, path)),
            source: Some(error),
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

fn certificates(setting: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(setting, pem)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        // The parser's error quotes what it could not read, and a key may stand beside a certificate.
        .map_err(|_| TlsError::new(format!("{setting}: not PEM{LINES}")))?;
    match found.is_empty() {
        true => Err(TlsError::new(format!("{setting}: it holds no certificate"))),
        false => Ok(found),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read("tls.client_key", pem)?;
    if is_encrypted_key(&String::from_utf8_lossy(&text)) {
        return Err(TlsError::new(
            "tls.client_key: the key is encrypted, and this client cannot take a password for it; \
             decrypt it (openssl pkey -in encrypted.key -out plain.key) into a file that only this \
             service may read",
        ));
    }
    // The parser's error quotes what it could not read, which may be the key.
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        TlsError::new(format!("tls.client_key: no unencrypted PEM private key in it{LINES}"))
    })
}

/// A mistake that is easily made with variables.
const LINES: &str = "; every line of PEM needs its own line, not \\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// As a variable holds it whose line breaks were not real ones.
    const ONE_LINE: &str = r"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----";

    fn config(ca: Option<Pem>, certificate: Option<Pem>, key: Option<Pem>) -> TlsConfig {
        TlsConfig { ca, client_certificate: certificate, client_key: key }
    }

    /// All that a log could have of an error.
    fn told(error: TlsError) -> String {
        let shown = format!("{error} {error:?}");
        let (detail, source) = error.into_parts();
        assert!(shown.starts_with(&detail));
        format!("{shown} {source:?}")
    }

    #[test]
    fn errors_name_the_setting() {
        let ca = |ca: &str| told(config(Some(ca.into()), None, None).authorities().unwrap_err());
        assert!(ca("/does/not/exist.pem").starts_with("tls.ca: cannot read /does/not/exist.pem "));
        let empty = config(Some(Pem::Text("x".into())), None, None).authorities().unwrap_err();
        assert_eq!(empty.to_string(), "tls.ca: it holds no certificate");
        let half = config(None, None, Some("x".into())).identity().unwrap_err();
        assert!(half.to_string().contains("one is missing"), "{half}");
    }

    #[test]
    fn nothing_shows_a_key() {
        // Without its markers, a key is taken for a path.
        for key in [ONE_LINE, "c2VjcmV0"] {
            let key = Pem::from(key);
            let error = told(private_key(&key).unwrap_err());
            assert!(error.starts_with("tls.client_key: "), "{error}");
            let shown = format!("{:?}", config(None, None, Some(key)));
            for text in [error, shown] {
                assert!(!text.contains("c2Vj") && !text.contains("99, 50, 86"), "{text}");
            }
        }
        for pem in [ONE_LINE.to_owned(), format!("{ONE_LINE}\\n")] {
            let error = told(certificates("tls.ca", &Pem::Text(pem.clone())).unwrap_err());
            assert!(error.starts_with("tls.ca: ") && !error.contains("99, 50, 86"), "{error}");
            assert_eq!(format!("{:?}", Pem::Text(pem)), "Text(***)");
        }
    }

    #[test]
    fn encrypted_key_is_named_with_the_way_out() {
        for header in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nc2Vj\n\
             -----END RSA PRIVATE KEY-----",
        ] {
            let error = told(private_key(&header.into()).unwrap_err());
            assert!(error.contains("is encrypted") && error.contains("openssl pkey"), "{error}");
            assert!(!error.contains("c2Vj"), "{error}");
        }
    }

    #[test]
    fn value_that_is_no_text_is_refused_unseen() {
        for value in ["8675309", "-8675309", "86753.09", "true", "[8675309]", "{ a = 8675309 }"] {
            let read: TlsConfig = toml::from_str(&format!("client_key = {value}")).unwrap();
            let config = TlsConfig { client_certificate: read.client_key.clone(), ..read };
            let error = config.identity().unwrap_err();
            let text = format!("{} {config:?}", told(error));
            assert!(text.contains("as a text, in quotes"), "{text}");
            assert!(!text.contains("867"), "{text}");
        }
        let json = serde_json::from_str::<TlsConfig>(r#"{"ca": 8675309}"#).unwrap();
        assert!(json.authorities().unwrap_err().to_string().contains("a number"));
    }

    #[test]
    fn a_string_is_the_text_or_a_path() {
        let read: TlsConfig =
            serde_json::from_str(r#"{"ca": "/ca.pem", "client_key": "-----BEGIN X"}"#).unwrap();
        assert_eq!(read.ca, Some(Pem::Path("/ca.pem".into())));
        assert_eq!(read.client_key, Some(Pem::Text("-----BEGIN X".into())));
        assert!(read.is_used() && !TlsConfig::default().is_used());
        assert!(serde_json::from_str::<TlsConfig>(r#"{"verify": false}"#).is_err());
    }
}
