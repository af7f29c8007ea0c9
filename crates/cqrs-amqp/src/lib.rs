//! RabbitMQ (AMQP 0-9-1) for the `cqrs` framework, on [lapin](https://docs.rs/lapin) and
//! [bb8](https://docs.rs/bb8).
//!
//! [`AmqpMessageBroker`] publishes and keeps the promises of
//! [`MessageBroker`](cqrs_core::MessageBroker): `Ok` only after the broker's confirm; an unroutable
//! message is an error; messages of one topic and key in order; one deadline; unconfirmed messages sent
//! again after a connection loss, with the same id.
//!
//! # On the wire
//! The topic is the routing key, the event id the `message_id` property, the event's name `type`. The
//! time stands in `timestamp` (whole seconds); the content type in `content_type`; the header
//! `correlation_id` also in the property of that name, where FastStream reads it. Headers are long
//! strings. The key, which AMQP has no place for, is the header `message_key`: a long string when it is
//! UTF-8, a byte array otherwise. Of a body whose content type is not JSON the headers `event_name` and
//! `message_id` tell name and id as well, as python-cqrs has it.
//!
//! # Duplicates
//! A message that was written when its connection or channel broke may have been stored, and is sent
//! again: the consumer sees its id twice. That is all a confirm can promise.
//!
//! # Logging
//! lapin has no log level of its own and logs through `tracing`: failed connections as errors, and
//! **returned messages with their payload as warnings**; at `trace` it shows the
//! login. This crate reports all that matters of it as values, so switch lapin off in your subscriber's
//! filter, whatever the level of the rest:
//!
//! ```text
//! RUST_LOG=info,lapin=off
//! ```
//!
//! # Consuming
//! [`AmqpMessageBroker`] is a [`Subscribe`](cqrs_core::Subscribe), too. Each topic of a subscription has a
//! durable quorum queue `{topic}.{group}`, bound to the exchange with the topic; [`AmqpSubscription`] says
//! otherwise. Each dot of the group is doubled, so that no two groups share a queue
//! ([`topic_group_name`](cqrs_core::consume::topic_group_name)). Beside it stand
//!
//! * `{queue}.retry.{delay}` for each delay of the retry schedule: a failed message waits there and comes
//!   back to the queue, not to the exchange, so that other groups do not see it. Its headers tell the
//!   attempts; `original-exchange` and `original-routing-key` where it came from.
//! * `{queue}.dead` for dead letters. Body and headers are those of the message, the types included; what
//!   happened stands in the headers `cqrs-dead-letter-…`, the properties in `original-…`.
//!
//! Headers so large that these do not fit beside them into a frame (128 KiB by default) are left out of the
//! dead letter, except for the key; retries of such a message are held by the consumer. A key that does not fit
//! either is left out as well, and the header `cqrs-dead-letter-key-omitted` says so.
//!
//! A copy that the server refuses (no right, a queue that is missing and not ours to declare) holds its message
//! and the key of that; the others go on. It is tried again from time to time.
//!
//! # Messages that cannot be read
//! lapin cannot read a message with a property, header name or routing key that is not UTF-8, with a header
//! nested more than 64 deep, or whose properties and headers take more than a frame, and would end the
//! connection. A filter in front of it replaces what it cannot read, so the message arrives and is malformed:
//! [`on_decode_error`](cqrs_core::Subscription::on_decode_error) decides, a dead letter by default, with
//! the body byte for byte. These headers say what happened:
//!
//! | header | |
//! |---|---|
//! | `cqrs-unreadable` | why; a message of yours that has this header is malformed as well |
//! | `cqrs-unreadable-properties` | the property flags and list as they came (AMQP 0-9-1, 4.2.6.1), cut where they do not fit |
//! | `cqrs-unreadable-routing-key`, `-exchange` | the bytes of a name that is not UTF-8 |
//!
//! RabbitMQ adds headers on the way (`x-death`, `x-delivery-count`) whatever their size then is. So 2.5 KiB
//! of a frame (a quarter of a small one) are left to it: a message whose headers need them is refused with
//! `TooLarge`, and a copy goes without them.
//!
//! | queue | delayed retries | dropped delivery | crashes counted |
//! |---|---|---|---|
//! | quorum | quorum queues, handed over confirmed | to the head of the queue | yes |
//! | classic, not durable, auto-delete | the same | to its place | no |
//! | exclusive | exclusive queues that go with it | to its place | no |
//! | stream | the consumer holds the message | handed out again from memory | no |
//!
//! A stream keeps no place for a group: reading begins with [`AmqpSubscription::with_offset`] in each
//! process; within one it goes on behind what is settled.
//!
//! # Crashes
//! A quorum queue counts how often a message came back from a lost consumer (`x-delivery-count`). Prefetched
//! messages and lost connections count as well, so that the count alone condemns no message. A message that
//! came back twice is a suspect:
//!
//! * The source moves it into `{queue}.quarantine` (a confirmed copy, then an ack). From there it runs alone:
//!   nothing else of its subscription runs beside it, and nothing else in quarantine in its process.
//! * Only returns to that queue count towards `Subscription::max_crashes`: deaths while the message ran
//!   alone. The source subtracts the connections that it lost itself. Before RabbitMQ 4.3 messages that
//!   are given back in good order count as well, and ten returns are forgiven.
//! * It waits for what the runtime already has, not for what is prefetched. The others of its subscription
//!   wait 60 s in all for messages that run alone; then these stay in their queue for five minutes while
//!   others go on. Other subscriptions do not wait.
//! * A message in the quarantine queue of a process that is gone is taken by any other one within about 10 s.
//!
//! With `max_crashes` 0 there is no such queue and no message runs alone. The same holds where
//! [`DeclareMode`] lets us declare no queue. Messages that an earlier start left in the queue are named in an
//! error line at the start: start once with `max_crashes` above 0, or move them back.
//!
//! Suspects run like others for a minute after the quarantine queue did not take one, and until the next start
//! once the server refuses to let us read it (one warning each). Where a queue has a single active consumer, or
//! is `passive()`, a channel runs what is in quarantine only after it received a first message.
//!
//! # Separate connections
//! A broker value publishes on connections of its own. Each subscription has one, and all of them share one
//! more for retry copies and dead letters, made when first needed: a server that stops publishers (a memory
//! alarm) does not stop acknowledgements.

mod broker;
mod config;
mod connect;
mod consumer;
mod error;
mod headers;
mod producer;

pub use broker::AmqpMessageBroker;
pub use config::{
    AmqpConfig, Argument, BindingConfig, DeclareMode, Dsn, ExchangeConfig, ExchangeKind, Pem,
    QueueConfig, ReconnectConfig, TlsConfig,
};
pub use consumer::{AmqpSubscription, QueueKind, StreamOffset};
pub use error::{AmqpError, ErrorKind};
