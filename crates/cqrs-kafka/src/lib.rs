#![doc = include_str!("../README.md")]
//!
//! # Guarantees of a publish
//! By default a publish is `Ok` only after all in-sync replicas stored the record (`acks=all`), librdkafka's resends
//! neither duplicate nor reorder (`enable.idempotence`), and a key goes to the partition that the Java client and
//! aiokafka choose for it (`murmur2_random`). The documentation of each option names what it gives up.
//!
//! * An error of kind `NotSent` or `Closed` is certain: the record was never given to librdkafka. Before the first
//!   connection records wait outside of librdkafka, so a wrong address or password is `NotSent`. After it, a record
//!   whose deadline passes is `Unknown`.
//! * A record is `Ok` only with its own confirm. librdkafka also confirms a record implicitly when a later one of its
//!   partition was confirmed, but a new partition can accept the later one and refuse the earlier. Such a record is
//!   `Unknown` here: publishing it again may duplicate it.
//! * The broker checks whole batches against `max.message.bytes`. The records of a refused batch are sent again in
//!   smaller ones, before newer records, and the producer makes smaller batches from then on. If librdkafka sent the
//!   next batch already, a refused record is `NotSent` when a newer record of its key was stored. Refused records are
//!   `NotSent` too if other records stay unconfirmed for 3 s, such as those of a topic without a leader.
//! * The cause of a failed publish (failed login, TLS, name lookup, refused connection) is the
//!   [`source`](std::error::Error::source) of its error: a [`KafkaError`], without credentials.
//! * After a fatal error of the idempotent producer, or when librdkafka dropped all brokers (a cluster that just came
//!   back may report that it has none), the records in flight fail as `Unknown`, and a new producer sends the next
//!   ones. This crate never sends a record twice: only librdkafka resends.
//!
//! # The record
//! Key, body, headers and timestamp (in milliseconds) are those of the [`Message`](cqrs_core::Message). A JSON record
//! gets no further header, because FastStream decodes a record with a `content-type` header twice. A record of another
//! content type carries `event_name` and `message_id`. [`RecordHeaders`] changes that.
//!
//! # Start of a group
//! The start option is for a group without committed offsets on a topic. The offset that it resolves to is committed
//! at takeover, before the first record is delivered, so the group has committed offsets from its first assignment
//! on. Partitions that are added later, topics that are created while the subscription runs, and committed offsets
//! that retention deleted start with the oldest record, with a log line.
//!
//! # Records that kill the process
//! Kafka counts no deliveries. So the metadata of each commit records that the partition has an owner, and the last
//! commit of a clean end removes it. A consumer that finds it at takeover counts an unclean end: the previous owner
//! ended without a last commit (a crash, a `kill -9`).
//!
//! * After one unclean end every record runs as usual. Commits announce records shortly before they are delivered.
//! * After two or more in a row the partition is in quarantine: its unfinished records below the announced offset run
//!   one at a time, each named in a commit before it starts, and its other records wait. One partition of the process
//!   at a time does so, for 60 s at most. Other partitions in this state wait for it; all others continue.
//! * A record that is found named and unfinished has crashed once more
//!   ([`RetryState::crashes`](cqrs_core::consume::RetryState::crashes)); at `max_crashes` it is dead-lettered. It starts again
//!   only after its process has run for 30 s.
//! * Earlier unclean ends are forgotten once all records that were in the log at takeover are finished.
//!
//! So a record that always kills its process is dead-lettered after `max_crashes` deaths while it ran alone, and two
//! deaths before that. Only deaths while it ran alone count: a process that dies of something else within 30 s of its
//! start, however often, counts at most once against a slow record. Limits, with their cost:
//!
//! * A process that lives longer than that, and is killed `max_crashes` times while the same record runs alone,
//!   dead-letters a record that is not the cause. The dead letter has the reason and can be redriven.
//! * While a quarantined record runs alone, other partitions still run their records. If one of these kills the
//!   process for the first time then, the quarantined record is counted.
//! * Three kinds of handlers are not found: one that takes more than 60 s to kill its process, one that kills it only
//!   on an attempt more than 60 s away, and one that keeps several deliveries and dies of them together.
//! * A group that refuses commits or their metadata is consumed without quarantine, with one warning.
//!
//! A lost membership is no death, since the metadata names the process that has the partition. `max_crashes(0)`
//! switches quarantine off: no crashes are counted, and nothing waits after a crash.
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
    LogLevel, NewTopics, Pem, Reconnect, RecordHeaders, RetryMode, Sasl, SaslMechanism, Secret,
    SecurityProtocol, TlsConfig,
};
pub use error::{ErrorKind, KafkaError};
pub use oauth::{OAuthToken, TokenProvider};
