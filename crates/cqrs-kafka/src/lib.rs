//! Apache Kafka broker of the `cqrs` framework, on librdkafka.
//!
//! [`KafkaMessageBroker`] publishes; it implements [`cqrs_core::MessageBroker`]. [`KafkaConfig`] says
//! where and how.
//!
//! ```no_run
//! use cqrs_core::{Message, MessageBrokerExt};
//! use cqrs_kafka::{KafkaConfig, KafkaMessageBroker};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = KafkaMessageBroker::connect(KafkaConfig::new(["localhost:9092"])).await?;
//! let confirmed = broker.publish(Message::new("user_events", "{}").with_key("user-7")).await?;
//! println!("partition {:?}, offset {:?}", confirmed.partition, confirmed.offset);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//! By default a publish is `Ok` only when all in-sync replicas have the record (`acks=all`), librdkafka's
//! resends neither duplicate nor reorder (`enable.idempotence`), and a key goes to the partition that the
//! Java client and aiokafka choose for it (`murmur2_random`). Options that give one of these up say so.
//!
//! * An error of kind `NotSent` or `Closed` is certain: the record was never given to librdkafka. Before
//!   the first contact with the cluster, records wait outside of it, so a wrong address or password shows
//!   as `NotSent`. After it, a record whose deadline passes is `Unknown`.
//! * What kept a record from being confirmed (failed login, TLS, name lookup, refused connection) is the
//!   [`source`](std::error::Error::source) of its error, a [`KafkaError`], without credentials.
//! * After a fatal error of the idempotent producer, and when librdkafka has forgotten all brokers (a
//!   cluster that just came back may say that it has none), the records in flight fail as `Unknown` and
//!   a new producer takes the next ones. Nothing is sent twice by this crate: only librdkafka resends.
//!
//! # The record
//! Key, body and headers stand as in the [`Message`](cqrs_core::Message); its timestamp, in
//! milliseconds, is the record's. No header is added to a JSON record: FastStream decodes a record with a
//! `content-type` header twice. A record of another content type carries `event_name` and `message_id`.
//! [`RecordHeaders`] changes that.
//!
//! # Features
//! `gssapi`: Kerberos logins. Needs Cyrus SASL (`libsasl2`) and its headers to build.

mod broker;
mod config;
mod consumer;
mod error;
mod events;
mod health;
mod oauth;
mod producer;
mod secret;

pub use broker::KafkaMessageBroker;
pub use config::{
    Acks, Compression, IdentityHeaders, KafkaConfig, LogLevel, Pem, RecordHeaders, Sasl,
    SaslMechanism, SecurityProtocol, Tls,
};
pub use consumer::{Assignor, IsolationLevel, KafkaSubscription, NewTopics, RetryMode};
pub use error::{ErrorKind, KafkaError};
pub use oauth::{OAuthToken, TokenProvider};
pub use secret::Secret;
