#![doc = include_str!("../README.md")]
//!
//! # What is promised
//! [`AmqpMessageBroker`] keeps the promises of [`MessageBroker`](cqrs_core::MessageBroker): a publish is `Ok` only
//! after the broker's confirm; an unroutable message is an error; messages of one topic and key are in order;
//! one deadline; unconfirmed messages are sent again after a lost connection, with the same id.
//!
//! # On the wire
//! The topic is the routing key, the event id the `message_id` property, the event's name `type`. The
//! time is in `timestamp` (whole seconds), the content type in `content_type`, and the header
//! `correlation_id` also in the property of that name, where FastStream reads it. Headers are long
//! strings. AMQP has no property for the key: it is the header `message_key`, a long string if it is
//! UTF-8, a byte array otherwise. If the body's content type is not JSON, the headers `event_name` and
//! `message_id` have name and id as well, as in python-cqrs.
//!
//! # Duplicates
//! A message that was sent when its connection or channel was lost may have been stored, and is sent
//! again: the consumer sees its id twice. Publisher confirms cannot prevent that.
//!
//! # Logging
//! lapin has no log level of its own and logs through `tracing`: failed connections as errors, and
//! **returned messages with their payload as warnings**; at `trace` it shows the
//! login. This crate reports the same errors as values, so switch lapin off in your subscriber's filter, at
//! every level:
//!
//! ```text
//! RUST_LOG=info,lapin=off
//! ```
//!
//! # Consuming
//! [`AmqpMessageBroker`] is a [`Subscribe`](cqrs_core::Subscribe), too. Each topic of a subscription has a
//! durable quorum queue `{topic}.{group}`, bound to the exchange with the topic; [`AmqpSubscription`] changes
//! that. Each dot of the group is doubled, so that no two groups share a queue
//! ([`topic_group_name`](cqrs_core::consume::support::topic_group_name)). Two kinds of queues belong to it:
//!
//! * `{queue}.retry.{delay}` for each delay of the retry schedule: a failed message waits there and returns
//!   to the queue, not to the exchange, so that other groups do not see it. Its headers have the attempts, and
//!   its exchange and routing key in `original-exchange` and `original-routing-key`.
//! * `{queue}.dead` for dead letters. Body and headers are those of the message, the types included; the
//!   failure is in the headers `cqrs-dead-letter-…`, the properties in `original-…`.
//!
//! If the message's headers and these do not fit into a frame (128 KiB by default), the dead letter has only the
//! key of the message's headers, and retries of the message are held by the consumer. A key that does not fit
//! either is left out, and the header `cqrs-dead-letter-key-omitted` is `true`.
//!
//! If the server refuses a copy (no right, a queue that is missing and not ours to declare), its message and
//! that message's key are held and the copy is retried; other messages continue.
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
//! | `cqrs-unreadable` | the reason; a message that you publish with this header is malformed as well |
//! | `cqrs-unreadable-properties` | the original property flags and list (AMQP 0-9-1, 4.2.6.1), cut where they do not fit |
//! | `cqrs-unreadable-routing-key`, `-exchange` | the bytes of a name that is not UTF-8 |
//!
//! RabbitMQ adds headers (`x-death`, `x-delivery-count`) without a check of the size. So 2.5 KiB of a frame (a
//! quarter of a small one) are reserved for it: a message whose headers need them is rejected with `TooLarge`,
//! and a copy is published without the message's headers.
//!
//! | queue | delayed retries | dropped delivery | crashes counted |
//! |---|---|---|---|
//! | quorum | quorum queues, dead-lettered confirmed | requeued at the head | yes |
//! | classic, not durable, auto-delete | the same | requeued at its position | no |
//! | exclusive | exclusive queues, deleted with it | requeued at its position | no |
//! | stream | the consumer holds the message | redelivered from memory | no |
//!
//! A stream keeps no offset for a group: reading begins with [`AmqpSubscription::with_offset`] in each process;
//! within one it continues with the first unsettled message.
//!
//! # Crashes
//! A quorum queue counts how often a message was returned by a lost consumer (`x-delivery-count`). Prefetched
//! messages and lost connections count as well, so the count alone proves no crash. A message that was returned
//! twice is quarantined:
//!
//! * The source moves it into `{queue}.quarantine` (a confirmed copy, then an ack). From there it runs alone:
//!   nothing else of its subscription runs beside it, and nothing else in quarantine in its process.
//! * Only returns to that queue count towards `Subscription::max_crashes`: crashes while the message ran
//!   alone. The source subtracts the connections that it lost itself. Before RabbitMQ 4.3 requeues by a consumer
//!   count as well, and ten returns are subtracted.
//! * It waits for the messages that the runtime already has, not for prefetched ones. The other messages of its
//!   subscription wait 60 s in all for quarantined ones; then these stay in their queue for five minutes while
//!   others continue. Other subscriptions do not wait.
//! * A message that a process left in the quarantine queue is taken by any other process within about 10 s.
//!
//! With `max_crashes` 0 there is no such queue and no message runs alone. The same holds where
//! [`DeclareMode`] lets us declare no queue. Messages that an earlier start left in the queue are named in an
//! error line at the start: start once with `max_crashes` above 0, or move them back.
//!
//! No message is quarantined for a minute after the quarantine queue did not take one, and until the next start
//! after the server refused to let us read it (one warning each). If a queue has a single active consumer, or is
//! `with_passive(true)`, a channel runs quarantined messages only after it received a first message.
//!
//! # Separate connections
//! A broker value publishes on connections of its own. Each subscription has one, and all of them share one
//! more for retry copies and dead letters, made when first needed: a server that blocks publishers (a memory
//! alarm) does not block acknowledgements.

mod broker;
mod config;
mod connect;
mod consumer;
mod error;
mod headers;
mod producer;

pub use broker::AmqpMessageBroker;
pub use config::{
    AmqpConfig, AmqpSubscription, Argument, BindingConfig, DeclareMode, Dsn, ExchangeConfig,
    ExchangeKind, Pem, QueueConfig, QueueKind, Reconnect, Secret, StreamOffset, TlsConfig,
};
pub use error::{AmqpError, ErrorKind};
