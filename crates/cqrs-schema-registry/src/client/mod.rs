//! The registry's client.

mod api;
mod authorization;
mod cache;
mod config;
mod env;
mod error;
mod file;
mod http;
mod registry;
mod schema;
mod tls;

pub use config::{Credentials, RegistryConfig};
pub use cqrs_config::{Pem, Reconnect, Secret, TlsConfig};
pub use error::{RegistryError, RegistryErrorKind};
pub use registry::SchemaRegistry;
pub use schema::{Compatibility, RegisteredSchema, Schema, SchemaReference, SchemaVersion};
