// Of two definitions of a link the first counts: in rustdoc those of the README lead to the built manual.
#![doc = include_str!("../links.md")]
#![doc = include_str!("../README.md")]
// Its links need every feature.
#![cfg_attr(feature = "full", doc = include_str!("../items.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod prelude;

#[doc(inline)]
pub use cqrs_core::*;
#[cfg(feature = "derive")]
#[doc(inline)]
pub use cqrs_macros::{Command, DomainEvent, IntoHandlerError, Notification, Query};

/// RabbitMQ (AMQP 0-9-1): the broker, its settings, and the options of its subscriptions.
#[cfg(feature = "amqp")]
#[doc(inline)]
pub use cqrs_amqp as amqp;
/// Apache Kafka: the broker, its settings, and the options of its subscriptions.
#[cfg(feature = "kafka")]
#[doc(inline)]
pub use cqrs_kafka as kafka;
#[cfg(any(feature = "outbox-mysql", feature = "outbox-postgres", feature = "outbox-sqlite"))]
#[doc(inline)]
pub use cqrs_outbox as outbox;
#[cfg(feature = "protobuf")]
#[doc(inline)]
pub use cqrs_protobuf as protobuf;
#[cfg(feature = "schema-registry")]
#[doc(inline)]
pub use cqrs_schema_registry as schema_registry;

#[cfg(all(doctest, feature = "full"))]
mod manual;
