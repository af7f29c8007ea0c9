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
#[cfg(feature = "protobuf")]
pub use cqrs_protobuf as protobuf;
#[cfg(feature = "schema-registry")]
pub use cqrs_schema_registry as schema_registry;
