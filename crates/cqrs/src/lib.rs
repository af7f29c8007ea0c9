#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod prelude;

pub use cqrs_core::*;
#[cfg(feature = "derive")]
#[doc(inline)]
pub use cqrs_macros::{Command, DomainEvent, Notification, Query};

#[cfg(feature = "amqp")]
pub use cqrs_amqp as amqp;
#[cfg(feature = "kafka")]
pub use cqrs_kafka as kafka;
#[cfg(any(feature = "outbox-postgres", feature = "outbox-mysql", feature = "outbox-sqlite"))]
pub use cqrs_outbox as outbox;
#[cfg(feature = "protobuf")]
pub use cqrs_protobuf as protobuf;
#[cfg(feature = "schema-registry")]
pub use cqrs_schema_registry as schema_registry;

/// The programs of the guide, and that what it shows of `users.rs` is that file.
///
/// ```
/// let guide = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/from-python-cqrs.md"));
/// assert!(guide.contains(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/users.rs"))));
/// ```
///
#[cfg(all(doctest, feature = "derive", feature = "kafka", feature = "amqp", feature = "protobuf"))]
#[doc = include_str!("../../../docs/from-python-cqrs.md")]
struct Guide;
