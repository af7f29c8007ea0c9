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
//! * The broker judges batches by `max.message.bytes`. The records of a refused batch are sent again in smaller
//!   ones, before newer ones, and the producer makes smaller batches from then on. librdkafka may have sent the
//!   next batch by then: a refused record that a newer one of its key overtook so is `NotSent`. So are refused
//!   records while others stay unconfirmed for 3 s, such as those of a topic without a leader.
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
//! # Where a group begins
//! The start option is for a group that has no committed place on a topic. What it resolves to is committed
//! at takeover, before the first record is handed out, so from its first assignment on the group has a place.
//! A partition that is added later, a topic that is made while the subscription runs, and a place that
//! retention overtook begin with the oldest record there is, with a log line.
//!
//! # Records that kill the process
//! Kafka counts no deliveries. So each commit says in its metadata that the partition has an owner, and the
//! last commit of a good end takes that back. A consumer that takes a partition over and finds it there knows
//! that the one before it ended without a last commit (a crash, a `kill -9`):
//!
//! * After one such end everything runs as usual; commits say in addition, shortly ahead of the work, up to
//!   where records may have been handed out.
//! * After two or more in a row, the unfinished records up to there run one at a time, each named in a commit
//!   before it starts; the rest of the partition waits behind them. One partition of the process at a time does
//!   so, for 60 s at most; the other ones that are in the same state wait for their turn, all others go on.
//! * A record that is found named and unfinished has crashed once more
//!   ([`RetryState::crashes`](cqrs_core::RetryState::crashes)); at `max_crashes` it is a dead letter. It starts
//!   again only when its process has consumed for 30 s.
//! * Once everything that stood in the log at takeover is finished, what happened before is forgiven.
//!
//! So a record that always kills its process is a dead letter after `max_crashes` deaths while it ran alone
//! and two before that. Only deaths while it ran alone count: a process that dies of something else within
//! 30 s of its start, however often, counts against a slow record once. Limits, with what they cost:
//!
//! * A process that lives for longer than that, and is killed `max_crashes` times while the same record runs
//!   alone, dead-letters a record that had nothing to do with it. The dead letter says so and can be redriven.
//! * While a suspect runs alone, records of other partitions that are not suspect run on. If one of them kills
//!   the process for the first time just then, that counts against the suspect.
//! * A handler that takes more than 60 s to kill its process, one that kills it only on an attempt that is more
//!   than 60 s away, and one that keeps its deliveries and dies of several together are not found.
//! * A group that takes no commit metadata, or refuses commits, is consumed without all this, with one warning.
//!
//! A lost membership is no death: the metadata says which process has the partition. `max_crashes(0)` switches
//! it off: nothing is counted, and nothing waits after a crash.
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
mod redactor;
mod topics;

pub use broker::KafkaMessageBroker;
pub use config::{
    Acks, Assignor, Compression, IdentityHeaders, IsolationLevel, KafkaConfig, KafkaSubscription,
    LogLevel, NewTopics, Pem, RecordHeaders, RetryMode, Sasl, SaslMechanism, Secret,
    SecurityProtocol, TlsConfig,
};
pub use error::{ErrorKind, KafkaError};
pub use oauth::{OAuthToken, TokenProvider};
