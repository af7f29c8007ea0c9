//! Protobuf bodies for notification events, on [prost](https://docs.rs/prost): on every broker, readable by
//! python-cqrs, without `protoc`.
//!
//! The body is the Protobuf message alone, without an envelope. There are two ways:
//!
//! * **The payload is the message.** Every [`prost::Message`] that is a
//!   [`Notification`](cqrs_core::Notification) can be published; the event's id, name and time are carried
//!   in the frame.
//! * **The message holds the whole event**, as python-cqrs's messages do: the payload type implements
//!   [`ProtobufEvent`].
//!
//! ```
//! use cqrs_core::codec::Serializer as _;
//! use cqrs_core::consume::Incoming;
//! use cqrs_core::{NotificationEvent, Subscription};
//! use cqrs_macros::Notification;
//! use cqrs_protobuf::{ProtobufDeserializer, ProtobufSerializer};
//!
//! #[derive(Clone, PartialEq, prost::Message, Notification)]
//! #[cqrs(crate = "::cqrs_core", topic = "users", key = "user_id", serializer = ProtobufSerializer)]
//! struct UserJoined {
//!     #[prost(string, tag = "1")]
//!     user_id: String,
//!     #[prost(string, tag = "2")]
//!     meeting_id: String,
//! }
//!
//! let subscription = Subscription::to("users")
//!     .group("greeter")
//!     .decode::<UserJoined>(ProtobufDeserializer::new());
//! # let joined = UserJoined { user_id: "1".into(), meeting_id: "2".into() };
//! # let encoded = ProtobufSerializer.serialize(&NotificationEvent::new(joined)).unwrap();
//! # assert_eq!(&encoded.body[..], b"\x0a\x011\x12\x012");
//! ```
//!
//! | where | content type | headers |
//! |---|---|---|
//! | RabbitMQ | property `application/x-protobuf` | `event_name`, `message_id` |
//! | Kafka | header `content-type`, only if [asked for](https://docs.rs/cqrs-kafka) | `event_name`, `message_id` |
//!
//! python-cqrs 5 writes and reads the same. For a topic with JSON and Protobuf use [`json_or_protobuf`].

mod deserialize;
mod either;
mod event;
mod serialize;

pub use deserialize::ProtobufDeserializer;
pub use either::json_or_protobuf;
pub use event::{MappingError, ProtobufEvent};
/// The version of prost that this crate uses.
pub use prost;
pub use serialize::ProtobufSerializer;
