//! TLS for `https://`, by rustls with the ring provider; used by the HTTP client.

use std::sync::Arc;

use cqrs_config::TlsConfig;
use rustls::client::WantsClientCert;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use super::RegistryError;

/// Reads the files and builds the TLS settings of all connections.
pub(super) fn client(tls: &TlsConfig) -> Result<ClientConfig, RegistryError> {
    let builder = with_roots(roots(tls)?)?;
    match tls.identity()? {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            builder.with_client_auth_cert(identity.certificates, identity.key).map_err(|error| {
                caused("tls.client_certificate and tls.client_key do not belong together", error)
            })
        }
    }
}

fn roots(tls: &TlsConfig) -> Result<RootCertStore, RegistryError> {
    let mut roots = RootCertStore::empty();
    let Some(authorities) = tls.authorities()? else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        return match (roots.is_empty(), system.errors.into_iter().next()) {
            (false, _) => Ok(roots),
            (true, Some(error)) => Err(caused(NO_SYSTEM_ROOTS, error)),
            (true, None) => Err(RegistryError::config(NO_SYSTEM_ROOTS)),
        };
    };
    for authority in authorities {
        roots.add(authority).map_err(|error| caused("tls.ca: no authority", error))?;
    }
    Ok(roots)
}

/// For URLs without TLS: it trusts no certificate. Without it reqwest looks for a provider of its own, and
/// panics when there is none.
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
    detail: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    RegistryError::config(detail).with_source(error)
}
