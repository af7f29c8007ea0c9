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
//! * A record is `Ok` only with its own confirm. librdkafka also takes a record for written when a later one
//!   of its partition was confirmed; a partition that was just made can take the later one and refuse the
//!   earlier. Such a record is `Unknown` here: published again, it may be there twice.
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
//! # Records that kill the process
//! Kafka counts no deliveries. So a consumer notes in the metadata of its commits which records it may have
//! started, and hands no other ones out; while all is well, that is one more commit for about 130,000 records
//! of a partition. A consumer that finds such a note knows that the one before it did not end well (a crash, a
//! `kill -9`, a lost membership):
//!
//! * After the first time it runs the records in question 256 at a time, after that one by one, each of them
//!   named in a note before it starts, and only one partition of the process at a time.
//! * A record that is found named and unfinished has crashed once more
//!   ([`RetryState::crashes`](cqrs_core::RetryState::crashes)). That is forgotten when it is finished or waits
//!   for its next attempt; not when its delivery is dropped.
//! * So a record that always kills its process is a dead letter after 2 and `max_crashes` deaths. A good end (a
//!   stop, a revoke whose last commit is made) accuses nobody.
//! * A record that runs alone for 30 s keeps others waiting no longer, and is not accused. Should the process die
//!   then, its successor waits twice as long, up to 16 minutes. A handler that kills its process later than that,
//!   or one that keeps its deliveries until it has several and dies of them together, is not found out.
//! * Rather than accuse an innocent, a death is not counted: while a record in question runs again or outlasted
//!   the 30 s, anywhere in the process; while one of the partition waits for its next attempt; and when the
//!   partition is given up with the handler still running, more than
//!   [`revoke_drain`](KafkaSubscription::revoke_drain) later. It takes more deaths then.
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
