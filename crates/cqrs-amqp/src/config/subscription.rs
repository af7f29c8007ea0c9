//! [`AmqpSubscription`]: the options of a subscription that only RabbitMQ has.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cqrs_config::text_enum;

use super::topology::{Argument, DeclareMode, ExchangeConfig};

/// The options of a subscription that only RabbitMQ has; an entry of its
/// [`options`](cqrs_core::consume::SubscribeRequest::options).
///
/// Without it, or with [`new`](Self::new), each topic has a durable quorum queue `{topic}.{group}`, bound
/// to the exchange of the broker value with the topic as routing key.
///
/// ```
/// use cqrs_amqp::{AmqpSubscription, QueueKind};
///
/// let options = AmqpSubscription::new()
///     .with_queue("mail")
///     .with_routing_key("user.*")
///     .with_argument("x-max-length", 1_000_000)
///     .with_single_active_consumer(true);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use = "give it to a subscription"]
pub struct AmqpSubscription {
    pub(crate) profile: Profile,
    pub(crate) queue: Option<String>,
    pub(crate) kind: Option<QueueKind>,
    pub(crate) durable: Option<bool>,
    pub(crate) auto_delete: bool,
    pub(crate) exclusive: bool,
    pub(crate) passive: bool,
    pub(crate) declare: Option<DeclareMode>,
    pub(crate) exchange: Option<ExchangeConfig>,
    pub(crate) routing_keys: Vec<String>,
    pub(crate) prefetch: Option<u16>,
    pub(crate) delivery_limit: Option<u32>,
    pub(crate) consumer_timeout: Option<Duration>,
    pub(crate) single_active_consumer: bool,
    pub(crate) consumer_tag: Option<String>,
    pub(crate) priority: Option<i32>,
    pub(crate) arguments: BTreeMap<String, Argument>,
    pub(crate) offset: Option<StreamOffset>,
}

/// The framework whose defaults are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Profile {
    #[default]
    Own,
    Python,
    FastStream,
}

text_enum! {
    /// The type of a queue ([RabbitMQ: queue types](https://www.rabbitmq.com/docs/queues#queue-types)).
    #[derive(Default)]
    pub enum QueueKind {
        /// Replicated, durable, and the only one that counts deliveries. The default.
        #[default]
        Quorum = "quorum",
        /// On one node.
        Classic = "classic",
        /// A log that is read from an offset. It keeps messages after they are read, has no committed
        /// offset for a group (a restart begins at the offset again), and nothing can be requeued.
        Stream = "stream",
    }
}

/// The place in a stream where reading begins ([RabbitMQ: streams](https://www.rabbitmq.com/docs/streams#consuming)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamOffset {
    /// The oldest message of the stream.
    First,
    /// The newest chunk.
    Last,
    /// The next new message.
    Next,
    /// The message of this offset.
    Offset(u64),
    /// The chunk of this time, in whole seconds.
    Time(SystemTime),
}

impl AmqpSubscription {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares exactly what python-cqrs declares: the queue named like the topic, not durable, without
    /// arguments; the exchange direct, not durable, auto-delete; bound with the topic. The default when
    /// the broker value is of [`DeclareMode::PythonCompatible`].
    ///
    /// Such a queue loses its messages when the server restarts, and all groups share it.
    pub fn python_compatible() -> Self {
        Self { profile: Profile::Python, ..Self::default() }
    }

    /// Declares what FastStream declares when nothing else is said: the queue named like the topic, a
    /// durable classic queue without further arguments; the exchange direct and durable.
    ///
    /// All groups share such a queue.
    pub fn faststream_compatible() -> Self {
        Self { profile: Profile::FastStream, ..Self::default() }
    }

    cqrs_core::setters! {
        /// Names the queue; `{topic}.{group}` by default, each dot of the group doubled. One queue for all topics
        /// of the subscription.
        pub fn with_queue(name: impl Into<String>) { self.queue = Some(name.into()) }

        /// The type of the queue; quorum by default, classic when it is exclusive, auto-delete or not durable.
        pub fn with_kind(kind: QueueKind) { self.kind = Some(kind) }

        /// If set, the queue survives a restart of the server; true by default.
        pub fn with_durable(durable: bool) { self.durable = Some(durable) }

        /// If set, the queue is deleted with its last consumer: its messages are lost with every lost
        /// connection.
        pub fn with_auto_delete(auto_delete: bool) { self.auto_delete = auto_delete }

        /// If set, only this connection may use the queue, which is deleted with it: its messages, retries
        /// included, are lost with every lost connection.
        pub fn with_exclusive(exclusive: bool) { self.exclusive = exclusive }

        /// If set, the queue and the exchange are only checked and nothing is bound. The queues for retries
        /// and dead letters are still declared: for those see [`with_declare`](Self::with_declare).
        ///
        /// A subscription to a missing queue is an error when it is opened, and waits for the queue if that is
        /// deleted later. AMQP cannot read a queue's delivery limit: see
        /// [`with_delivery_limit`](Self::with_delivery_limit).
        pub fn with_passive(passive: bool) { self.passive = passive }

        /// The declarations of the subscription; like the broker value's
        /// [`declare`](crate::AmqpConfig::declare) by default.
        ///
        /// When that is `Passive` or `None`, the queues for retries and dead letters are not declared either.
        pub fn with_declare(mode: DeclareMode) { self.declare = Some(mode) }

        /// The exchange the queue is bound to; the broker value's own by default.
        pub fn with_exchange(exchange: ExchangeConfig) { self.exchange = Some(exchange) }

        /// Binds with this routing key (a pattern, with a topic exchange); the topics by default.
        pub fn with_routing_key(key: impl Into<String>) { self.routing_keys.push(key.into()) }

        /// Messages the server may send ahead; three times the concurrency by default, at least 16 and at
        /// most 300. `max_unsettled` of the request goes before it.
        pub fn with_prefetch(messages: u16) { self.prefetch = Some(messages) }

        /// The number of deliveries of one message of a quorum queue after which the server **drops** it;
        /// 1,000,000 by default, practically never, and declared because RabbitMQ 4 has a default of 20. Restarts, lost
        /// connections and requeued messages count too, so that a low limit loses messages.
        ///
        /// The queue is declared without a dead-letter exchange: a queue that exists cannot be declared with
        /// other arguments (406), and no message is left that only this limit could end. To have a limit that
        /// keeps what it drops, set a policy, which changes queues that exist; the lower limit counts:
        ///
        /// ```text
        /// rabbitmqctl set_policy mail-limit '^user_events\.mailer$' \
        ///   '{"delivery-limit": 100, "dead-letter-exchange": "", "dead-letter-routing-key": "user_events.mailer.dead"}'
        /// ```
        pub fn with_delivery_limit(deliveries: u32) { self.delivery_limit = Some(deliveries) }

        /// The time limit of handling one message, after which the server requeues it (`x-consumer-timeout`, since
        /// RabbitMQ 3.12; an older one refuses the queue). 30 min by default, by the server.
        pub fn with_consumer_timeout(timeout: Duration) { self.consumer_timeout = Some(timeout) }

        /// If set, only one of several consumers gets messages, so that order holds over all of them.
        ///
        /// When it stops, the next one gets nothing before its handlers are done, and then first the
        /// messages that were not fetched yet, before requeued ones: up to the prefetch of messages change
        /// places (RabbitMQ 4.3.6).
        pub fn with_single_active_consumer(single_active_consumer: bool) {
            self.single_active_consumer = single_active_consumer
        }

        /// The consumer's name in RabbitMQ's management pages; made by the server by default.
        pub fn with_consumer_tag(tag: impl Into<String>) { self.consumer_tag = Some(tag.into()) }

        /// Consumers of a higher priority get messages first; 0 by default.
        pub fn with_priority(priority: i32) { self.priority = Some(priority) }

        /// A further argument of the queue, such as `x-max-length`; overrides ours of the same name.
        pub fn with_argument(name: impl Into<String>, value: impl Into<Argument>) {
            self.arguments.insert(name.into(), value.into())
        }

        /// The place in a stream where reading begins; by default the subscription's start for new groups.
        pub fn with_offset(offset: StreamOffset) { self.offset = Some(offset) }
    }
}
