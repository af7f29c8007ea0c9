//! RabbitMQ (AMQP 0-9-1) for the `cqrs` framework, on [lapin](https://docs.rs/lapin) and
//! [bb8](https://docs.rs/bb8).
//!
//! [`AmqpMessageBroker`] publishes and keeps the promises of
//! [`MessageBroker`](cqrs_core::MessageBroker): `Ok` only after the broker's confirm; an unroutable
//! message is an error; messages of one topic and key in order; one deadline; unconfirmed messages sent
//! again after a connection loss, with the same id.
//!
//! # On the wire
//! The topic is the routing key, the event id the `message_id` property, the event's name `type`. The
//! time stands in `timestamp` (whole seconds); the content type in `content_type`; the header
//! `correlation_id` also in the property of that name, where FastStream reads it. Headers are long
//! strings. The key, which AMQP has no place for, is the header `message_key`: a long string when it is
//! UTF-8, a byte array otherwise.
//!
//! # Duplicates
//! A message that was written when its connection or channel broke may have been stored, and is sent
//! again: the consumer sees its id twice. That is all a confirm can promise.
//!
//! # Logging
//! lapin has no log level of its own and logs through `tracing`: failed connections as errors, and
//! **returned messages with their payload as warnings**; at `trace` it shows credentials. This crate
//! reports all of that as values, so quiet it with a filter of your subscriber:
//!
//! ```text
//! RUST_LOG=info,lapin=off
//! ```
//!
//! # Separate connections
//! A broker value has connections of its own for publishing. Consumers will have theirs, so that a
//! server that stops publishers (a memory alarm) does not stop acknowledgements.

mod broker;
mod config;
mod connect;
mod consumer;
mod error;
mod producer;

pub use broker::AmqpMessageBroker;
pub use config::{
    AmqpConfig, Argument, BindingConfig, DeclareMode, Dsn, ExchangeConfig, ExchangeKind, Pem,
    QueueConfig, ReconnectConfig, TlsConfig,
};
pub use consumer::{AmqpSubscription, QueueKind, StreamOffset};
pub use error::{AmqpError, ErrorKind};
