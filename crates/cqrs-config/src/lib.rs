//! Settings that are the same for every client of the cqrs framework: secrets, certificates and TLS.
//!
//! Users find these types where a client is configured (`cqrs_kafka`, `cqrs_amqp`,
//! `cqrs_schema_registry`).

mod identity;
mod pem;
mod secret;
mod tls;

pub use identity::{Identity, TlsError};
pub use pem::{Pem, is_encrypted_key};
pub use secret::{Secret, marked_as_not_text, not_text, secret_text};
pub use tls::TlsConfig;
