//! [`TlsConfig`] as rustls takes it: the trusted authorities and the client's [`Identity`], used by the
//! clients on rustls.

use std::path::Path;

use cqrs_core::{ClientError, ClientErrorKind};
use pkcs5::EncryptionScheme;
use pkcs5::der::asn1::OctetStringRef;
use pkcs5::der::{Decode, Reader, SliceReader};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Pem, Secret, TlsConfig, is_encrypted_key, not_text};

/// The client's certificate and its key.
pub struct Identity {
    /// The chain, the client's own certificate first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

cqrs_core::debug_fields!(Identity {}, |it| certificates: it.certificates.len());

impl TlsConfig {
    /// The authorities to trust. `None`: the operating system's. Reads files, and so may block.
    ///
    /// # Errors
    /// When `ca` cannot be read or holds no certificate.
    pub fn authorities<K: ClientErrorKind>(
        &self,
    ) -> Result<Option<Vec<CertificateDer<'static>>>, ClientError<K>> {
        self.ca.as_ref().map(|ca| certificates("tls.ca", ca)).transpose()
    }

    /// The client's identity, if one is set. Reads files, and so may block.
    ///
    /// # Errors
    /// When certificate or key is missing, cannot be read or is none, or cannot be decrypted.
    pub fn identity<K: ClientErrorKind>(&self) -> Result<Option<Identity>, ClientError<K>> {
        match (&self.client_certificate, &self.client_key) {
            (None, None) if self.client_key_password.is_some() => Err(ClientError::config(
                "tls.client_key_password is set, but tls.client_key is not",
            )),
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Identity {
                certificates: certificates("tls.client_certificate", certificate)?,
                key: private_key(key, self.client_key_password.as_ref())?,
            })),
            _ => Err(ClientError::config(
                "tls.client_certificate and tls.client_key go together: one is missing",
            )),
        }
    }
}

fn read<K: ClientErrorKind>(setting: &str, pem: &Pem) -> Result<Vec<u8>, ClientError<K>> {
    match pem {
        Pem::Text(text) => match not_text(text) {
            Some(what) => Err(ClientError::config(format!(
                "{setting}: it is {what}; write a path or the PEM as a text, in quotes"
            ))),
            None => Ok(text.as_bytes().to_vec()),
        },
        Pem::Path(path) => std::fs::read(path).map_err(|error| {
            let text = format!("{setting}: cannot read {}", shown(setting, path));
            ClientError::config(text).with_source(error)
        }),
    }
}

/// The path, unless it is of a key: a key without PEM markers is read as a path.
fn shown<'p>(setting: &str, path: &'p Path) -> std::path::Display<'p> {
    match setting {
        "tls.client_key" => Path::new("its file").display(),
        _ => path.display(),
    }
}

fn certificates<K: ClientErrorKind>(
    setting: &str,
    pem: &Pem,
) -> Result<Vec<CertificateDer<'static>>, ClientError<K>> {
    let text = read(setting, pem)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        // The parser's error quotes the input, and a key may stand beside a certificate.
        .map_err(|_| ClientError::config(format!("{setting}: not PEM{LINES}")))?;
    match found.is_empty() {
        true => Err(ClientError::config(format!("{setting}: it holds no certificate"))),
        false => Ok(found),
    }
}

fn private_key<K: ClientErrorKind>(
    pem: &Pem,
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, ClientError<K>> {
    let bytes = read("tls.client_key", pem)?;
    let text = String::from_utf8_lossy(&bytes);
    if !is_encrypted_key(&text) {
        // The parser's error quotes the input, which may be the key.
        return PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
            ClientError::config(format!("tls.client_key: no PEM private key in it{LINES}"))
        });
    }
    let password = password.map(Secret::expose).filter(|password| !password.is_empty());
    let Some(password) = password else {
        return Err(ClientError::config(format!(
            "tls.client_key is encrypted; set tls.client_key_password, or {DECRYPT}"
        )));
    };
    if let Some(what) = not_text(password) {
        return Err(ClientError::config(format!(
            "tls.client_key_password: it is {what}; write it as a text, in quotes"
        )));
    }
    decrypted(&text, password).map(Into::into).ok_or_else(|| {
        ClientError::config(format!(
            "tls.client_key cannot be decrypted: tls.client_key_password is wrong, or the key is not \
             PKCS#8 with AES (BEGIN ENCRYPTED PRIVATE KEY); {DECRYPT}"
        ))
    })
}

/// The decrypted key of PKCS#8 text ([RFC 5958](https://www.rfc-editor.org/rfc/rfc5958#section-3)).
fn decrypted(text: &str, password: &str) -> Option<PrivatePkcs8KeyDer<'static>> {
    // The parser knows no label for encrypted keys; it does not look at the content.
    let relabelled = text.replace("ENCRYPTED PRIVATE KEY", "PRIVATE KEY");
    let encrypted = PrivatePkcs8KeyDer::from_pem_slice(relabelled.as_bytes()).ok()?;
    let mut reader = SliceReader::new(encrypted.secret_pkcs8_der()).ok()?;
    let parts = reader.sequence(|reader| {
        Ok((EncryptionScheme::decode(reader)?, OctetStringRef::decode(reader)?))
    });
    let (scheme, data) = parts.ok()?;
    scheme.decrypt(password, data.as_bytes()).ok().map(Into::into)
}

const DECRYPT: &str = "decrypt it (openssl pkey -in encrypted.key -out plain.key) into a file that \
                       only this service may read";

/// A frequent mistake with variables.
const LINES: &str = "; every line of PEM needs its own line, not \\n";

#[cfg(test)]
mod tests {
    use cqrs_core::consume::SubscribeErrorKind;

    use super::*;

    /// A key in a variable whose line breaks are `\\n`.
    const ONE_LINE: &str = r"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----";

    fn config(ca: Option<Pem>, certificate: Option<Pem>, key: Option<Pem>) -> TlsConfig {
        TlsConfig {
            ca,
            client_certificate: certificate,
            client_key: key,
            client_key_password: None,
        }
    }

    type Error = ClientError<SubscribeErrorKind>;

    /// Every text of an error that a log could show.
    fn shown_texts(error: Error) -> String {
        format!("{error} {error:?} {error:#?}")
    }

    #[test]
    fn errors_name_the_setting() {
        let ca =
            |ca: &str| shown_texts(config(Some(ca.into()), None, None).authorities().unwrap_err());
        assert!(ca("/does/not/exist.pem").starts_with("tls.ca: cannot read /does/not/exist.pem "));
        let empty: Error =
            config(Some(Pem::Text("x".into())), None, None).authorities().unwrap_err();
        assert_eq!(empty.to_string(), "tls.ca: it holds no certificate");
        let half: Error = config(None, None, Some("x".into())).identity().unwrap_err();
        assert!(half.to_string().contains("one is missing"), "{half}");
    }

    #[test]
    fn nothing_shows_a_key() {
        // Without its markers, a key is taken for a path.
        for key in [ONE_LINE, "c2VjcmV0"] {
            let key = Pem::from(key);
            let error = shown_texts(private_key(&key, None).unwrap_err());
            assert!(error.starts_with("tls.client_key: "), "{error}");
            let shown = format!("{:?}", config(None, None, Some(key)));
            for text in [error, shown] {
                assert!(!text.contains("c2Vj") && !text.contains("99, 50, 86"), "{text}");
            }
        }
        for pem in [ONE_LINE.to_owned(), format!("{ONE_LINE}\\n")] {
            let error = shown_texts(certificates("tls.ca", &Pem::Text(pem.clone())).unwrap_err());
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
            let error = shown_texts(private_key(&header.into(), None).unwrap_err());
            assert!(error.contains("is encrypted") && error.contains("openssl pkey"), "{error}");
            let wrong = shown_texts(private_key(&header.into(), Some(&"hush".into())).unwrap_err());
            assert!(wrong.contains("client_key_password is wrong"), "{wrong}");
            assert!(![error, wrong].concat().contains("c2Vj"));
        }
        let alone = TlsConfig::new().with_client_key_password("hush").identity().unwrap_err();
        assert!(shown_texts(alone).contains("tls.client_key is not"));
    }

    /// Made by `openssl genpkey -algorithm ed25519` and `openssl pkcs8 -topk8`; its password is `hush`.
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjw5emuwMbb7wICCAAw\n\
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEOYgHf9w71bww6spi3koK9YEQJfZ\n\
3rbdyXnk/85+sef/TV1c0FdS9O2Lu9Amg1mgnwN9iEKkSW6Foe+mHPSJbVbYCckz\n\
t6xWHgq0jlSJ91V46VM=\n\
-----END ENCRYPTED PRIVATE KEY-----\n";

    #[test]
    fn password_decrypts_the_key() {
        let encrypted = Pem::from(ENCRYPTED);
        let key = private_key::<SubscribeErrorKind>(&encrypted, Some(&"hush".into())).unwrap();
        // RFC 8410: version, algorithm Ed25519, and a key of 32 bytes.
        assert_eq!(
            key.secret_der()[..16],
            *b"\x30\x2e\x02\x01\0\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"
        );
        assert_eq!(key.secret_der().len(), 48);
        let wrong = shown_texts(private_key(&encrypted, Some(&"hash".into())).unwrap_err());
        assert!(wrong.contains("is wrong") && !wrong.contains("hash"), "{wrong}");
        let read: TlsConfig = toml::from_str("client_key_password = 8675309").unwrap();
        let password = read.client_key_password.as_ref();
        let number = shown_texts(private_key(&encrypted, password).unwrap_err());
        assert!(number.contains("as a text, in quotes") && !number.contains("867"), "{number}");
    }

    #[test]
    fn value_that_is_no_text_is_refused_unseen() {
        for value in ["8675309", "-8675309", "86753.09", "true", "[8675309]", "{ a = 8675309 }"] {
            let read: TlsConfig = toml::from_str(&format!("client_key = {value}")).unwrap();
            let config = TlsConfig { client_certificate: read.client_key.clone(), ..read };
            let error = config.identity().unwrap_err();
            let text = format!("{} {config:?}", shown_texts(error));
            assert!(text.contains("as a text, in quotes"), "{text}");
            assert!(!text.contains("867"), "{text}");
        }
        let json = serde_json::from_str::<TlsConfig>(r#"{"ca": 8675309}"#).unwrap();
        assert!(shown_texts(json.authorities().unwrap_err()).contains("a number"));
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
