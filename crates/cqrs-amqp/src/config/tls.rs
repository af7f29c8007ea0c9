//! TLS for `amqps://`, by rustls with the ring provider; used by the connector.

use cqrs_config::TlsConfig;
use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};

use crate::error::AmqpError;

/// Reads the files and makes the TLS client of all connections.
pub(crate) fn connector(tls: &TlsConfig) -> Result<RustlsConnector, AmqpError> {
    let mut config = RustlsConnectorConfig::default();
    match tls.authorities()? {
        Some(authorities) => config.add_parsable_certificates(authorities),
        None => {
            config = config.with_native_certs().map_err(|error| {
                AmqpError::config(
                    "the operating system's certificate authorities cannot be read; set tls.ca",
                )
                .with_source(error)
            })?;
        }
    }
    let connector = match tls.identity()? {
        None => config.connector_with_no_client_auth(),
        Some(identity) => config.connector_with_single_cert(identity.certificates, identity.key),
    };
    connector.map_err(|error| {
        let text = "the TLS settings do not make a TLS client: check that certificate and key \
                    belong together and that tls.ca holds an authority";
        AmqpError::config(text).with_source(error)
    })
}
