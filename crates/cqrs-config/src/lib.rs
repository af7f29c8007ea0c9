//! Settings that are the same for every client of the cqrs framework: secrets, TLS, durations, lists and
//! the reading of environment variables.
//!
//! Users find these types where a client is configured (`cqrs_kafka`, `cqrs_amqp`,
//! `cqrs_schema_registry`).

mod duration;
mod env;
mod identity;
mod pem;
mod reconnect;
mod secret;
mod text_enum;
mod text_list;
mod tls;

pub use duration::{MIN_TIMEOUT, check_minimum, deserialize_duration, parse_duration};
pub use env::{Env, Variable};
pub use identity::Identity;
pub use pem::{Pem, is_encrypted_key};
pub use reconnect::Reconnect;
pub use secret::{Secret, marked_as_not_text, not_text, secret_text};
pub use text_enum::UnknownText;
pub use text_list::{TextList, deserialize_text_list};
pub use tls::TlsConfig;
