//! Contracts and dispatch of the `cqrs` framework.

pub mod broker;
pub mod message;

pub use broker::{MessageBroker, MessageBrokerExt, PublishError, PublishErrorKind};
pub use message::{Headers, Message};
