//! TLS for `amqps://`, by rustls with the ring provider; used by the connector.

use cqrs_config::{TlsConfig, TlsError};
use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};

use crate::error::{AmqpError, ErrorKind};

/// Reads the files and makes the TLS client of all connections.
pub(crate) fn connector(tls: &TlsConfig) -> Result<RustlsConnector, AmqpError> {
    let mut config = RustlsConnectorConfig::default();
    match tls.authorities().map_err(refused)? {
        Some(authorities) => config.add_parsable_certificates(authorities),
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
    let connector = match tls.identity().map_err(refused)? {
        None => config.connector_with_no_client_auth(),
        Some(identity) => config.connector_with_single_cert(identity.certificates, identity.key),
    };
    connector.map_err(|error| {
        let detail = "the TLS settings do not make a TLS client: check that certificate and key \
                      belong together and that tls.ca holds an authority";
        AmqpError::caused(ErrorKind::Config, detail, error)
    })
}

fn refused(error: TlsError) -> AmqpError {
    match error.into_parts() {
        (detail, Some(source)) => AmqpError::caused(ErrorKind::Config, detail, source),
        (detail, None) => AmqpError::config(detail),
    }
}
