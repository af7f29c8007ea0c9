//! Schema ids in messages, as Confluent's serializers write and read them, for JSON Schema and Protobuf;
//! and a client of the schema registry that gives the ids out.
//!
//! A message names the schema it was written with in a **frame**: a few bytes before its body, or a
//! header. The parts:
//!
//! | part | purpose | asks a registry |
//! |---|---|---|
//! | [`Frame`] | the bytes: reads and writes them | no |
//! | [`FramedBroker`], [`Framing`] | add the frame to published messages | once, at the start |
//! | [`Framed`] | removes the frame for a deserializer | no |
//! | [`RegistryDecoder`] | removes the frame after a check of the schema, as a hook of a subscription | once per schema |
//! | [`SchemaRegistry`] | the client | |
//!
//! The last two, and looking up ids, need the feature `client` (on by default).
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # mod with_client {
//! use cqrs_core::{MemoryBroker, Mediator, Subscription};
//! use cqrs_macros::Notification;
//! use cqrs_schema_registry::{
//!     EventSchema, FramedBroker, Framing, RegistryConfig, RegistryDecoder, Schema, SchemaRegistry,
//! };
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Serialize, Deserialize, Notification)]
//! #[cqrs(crate = "::cqrs_core", topic = "user_events", key = "user_id")]
//! struct UserCreated {
//!     user_id: String,
//! }
//!
//! const SCHEMA: &str = r##"{
//!     "$schema": "http://json-schema.org/draft-07/schema#",
//!     "title": "UserCreated",
//!     "type": "object",
//!     "properties": {"user_id": {"type": "string"}}
//! }"##;
//!
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = SchemaRegistry::new(RegistryConfig::from_env()?)?;
//!
//! // Writing: every `UserCreated` gets the id that the schema has under `user_events-value`.
//! let framing = Framing::builder(&registry)
//!     .event(EventSchema::of::<UserCreated>(Schema::json(SCHEMA)))
//!     .build()
//!     .await?;
//! let broker = FramedBroker::new(MemoryBroker::new(), framing); // or Kafka's, or RabbitMQ's
//! let mediator = Mediator::builder().broker(broker).build()?;
//!
//! // Reading: the id must be of a JSON Schema that stands under that subject.
//! let users = Subscription::to("user_events")
//!     .group("mailer")
//!     .decoder(RegistryDecoder::json(&registry).subjects(["user_events-value"]).hook())
//!     .json::<UserCreated>();
//! # Ok(())
//! # }
//! # }
//! ```
//!
//! # Limits
//! * **No validation.** A schema is looked up, not applied: nothing checks a body against its
//!   schema, and nothing migrates an old body to a newer schema.
//! * **No Avro.** Its schemas may be looked up; its bodies are neither written nor read.
//! * **No schema is generated** from a Rust type, and no message path from a `.proto` file: both are given.
//! * **References** are sent and received by name, subject and version. The schemas they refer to are neither
//!   registered nor fetched.
//! * **Keys** of messages are never framed. Metadata and rules of a schema, contexts, the registry's
//!   settings and deletions are not in the client; a bearer token is not refreshed.
//! * confluent-kafka-python's old `use.deprecated.format` of message paths is an error.
//! * A proxy named by `HTTP_PROXY` or `HTTPS_PROXY` is used, `NO_PROXY` is respected.
//!
//! # Tested against
//! Apicurio Registry 2.6 (its `/apis/ccompat/v7`): all of the client but GUIDs, which it does not have,
//! and framed messages through a real Kafka. GUIDs, credentials, refusals, broken connections and slow
//! answers against a server of our own, which behaves as we read Confluent's sources: no Confluent
//! registry was asked.
//!
//! The serializers and deserializers of confluent-kafka-python 2.16, for JSON Schema and Protobuf: each
//! side reads what the other wrote, in both forms, and the frames are the same bytes. The prefix form
//! was tried with Apicurio's numbers; the header form with GUIDs of confluent-kafka-python's own
//! `mock://` registry. Its `ProtobufDeserializer` cannot read under a `.proto` text that stands in
//! Apicurio 2.6, which does not hand it out as the Base64 that is asked for: let Confluent's serializer
//! register the schema and take it with `SchemaSource::Latest`, or give the deserializer no registry.
//!
//! The frames follow the sources of Confluent's Java clients too; those were not run.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "client")]
mod client;
mod frame;
mod read;
mod write;

#[cfg(feature = "client")]
pub use client::{
    Compatibility, Credentials, Pem, Reconnect, RegisteredSchema, RegistryConfig, RegistryError,
    RegistryErrorKind, Schema, SchemaReference, SchemaRegistry, SchemaVersion, Secret, TlsConfig,
};
pub use frame::{Frame, FrameError, FrameErrorKind, MessagePath, SchemaId, SchemaType};
pub use read::{Framed, OnUnframed};
#[cfg(feature = "client")]
pub use read::{OnUnknownSchema, RegistryDecoder};
#[cfg(feature = "client")]
pub use write::{
    EventSchema, FrameForm, FramingBuilder, Registration, SchemaSource, SubjectNaming,
};
pub use write::{FramedBroker, Framing, OnMissingSchema};
