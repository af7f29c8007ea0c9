//! The queues, names and limits of one subscription; part of the consumer, made without a connection.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::consume::support::{retry_name, topic_group_name};
use cqrs_core::consume::{
    DeadLetterTarget, Retry, SubscribeError, SubscribeErrorKind, SubscribeRequest, TopicSet,
};
use lapin::types::{AMQPValue, FieldTable};

use crate::config::{AmqpConfig, Argument, DeclareMode, ExchangeConfig, QueueConfig};
use crate::config::{AmqpSubscription, Profile, QueueKind, StreamOffset};
use crate::connect::topology::as_python_declares;
use crate::headers::STREAM_OFFSET;

/// High enough never to be reached: the server drops a message that exceeds it.
const DELIVERY_LIMIT: u32 = 1_000_000;
/// The suffix of the name of a quarantine queue.
pub(super) const QUARANTINE: &str = ".quarantine";
/// The lowest default of the prefetch, and the highest.
const PREFETCH: (usize, usize) = (16, 300);

/// One subscription with all its names and limits.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The subscription's name, for errors and logs.
    pub(super) name: Arc<str>,
    /// The declare mode of the exchange and the source queues.
    pub(super) mode: DeclareMode,
    /// Set if the queues for retries and dead letters are declared.
    pub(super) declares_own: bool,
    pub(super) exchange: ExchangeConfig,
    pub(super) queues: Vec<QueuePlan>,
    /// For each queue.
    pub(super) prefetch: u16,
    /// The limit of deliveries that the runtime has, of all queues.
    pub(super) max_unsettled: usize,
    pub(super) consumer_tag: Option<String>,
    pub(super) priority: Option<i32>,
    pub(super) offset: Option<StreamOffset>,
}

/// One queue and its retry, dead-letter and quarantine queues.
#[derive(Debug, Clone)]
pub(super) struct QueuePlan {
    pub(super) name: Arc<str>,
    pub(super) config: QueueConfig,
    pub(super) kind: QueueKind,
    pub(super) routing_keys: Vec<String>,
    /// The usual topics of its messages.
    pub(super) topics: Vec<Arc<str>>,
    /// The dead-letter queue.
    pub(super) dead: Option<QueueConfig>,
    /// The subscription's schedule. Empty for a stream: a copy would stay in it, and every group would read it.
    pub(super) retry: Retry,
    /// The quarantine queue. `None` if the quarantine is switched off, or the queue counts no deliveries, or it
    /// may not be declared.
    pub(super) quarantine: Option<QueueConfig>,
    /// Set if another consumer may be the active one: the queue has a single active consumer, or we did not
    /// declare it.
    pub(super) may_stand_by: bool,
}

impl Plan {
    /// # Errors
    /// A problem of `request` that leaves it without a plan; [`check`](super::check::check) finds more.
    pub(super) fn new(
        request: &SubscribeRequest,
        config: &AmqpConfig,
    ) -> Result<Self, SubscribeError> {
        let options = request.options.get::<AmqpSubscription>().cloned().unwrap_or_default();
        let topics = match &request.topics {
            TopicSet::Named(topics) if !topics.is_empty() => topics,
            TopicSet::Named(_) => {
                let detail = format!("subscription {:?} names no topic", request.name);
                return Err(SubscribeError::new(SubscribeErrorKind::Invalid, detail));
            }
            _ => {
                let detail = format!(
                    "subscription {:?}: RabbitMQ has no topic patterns; name the topics, or bind a \
                     queue to a topic exchange with AmqpSubscription::with_routing_key",
                    request.name
                );
                return Err(SubscribeError::new(SubscribeErrorKind::Unsupported, detail));
            }
        };
        // `passive` concerns the queue only; a declare mode concerns all queues.
        let own = options.declare.unwrap_or(config.declare);
        let mode = if options.passive { DeclareMode::Passive } else { own };
        let python = options.profile == Profile::Python
            || (options.profile == Profile::Own && mode == DeclareMode::PythonCompatible);
        let profile = if python { Profile::Python } else { options.profile };
        let mut exchange = options.exchange.clone().unwrap_or_else(|| config.exchange.clone());
        if python {
            exchange = as_python_declares(exchange);
        }
        let declares_own = matches!(own, DeclareMode::Declare | DeclareMode::PythonCompatible);
        let queue = |name: String, topics: &[Arc<str>]| {
            let mut queue = QueuePlan::new(name, topics, &options, profile, request);
            if !declares_own {
                queue.quarantine = None;
            }
            queue
        };
        let queues: Vec<_> = match &options.queue {
            Some(name) => vec![queue(name.clone(), topics)],
            None => topics
                .iter()
                .map(|topic| {
                    let name = match profile {
                        Profile::Own => topic_group_name(topic, &request.group),
                        Profile::Python | Profile::FastStream => topic.to_string(),
                    };
                    queue(name, std::slice::from_ref(topic))
                })
                .collect(),
        };
        let max_unsettled = request.max_unsettled.unwrap_or_else(|| {
            let default = || request.concurrency.saturating_mul(3).clamp(PREFETCH.0, PREFETCH.1);
            options.prefetch.map_or_else(default, usize::from)
        });
        let share = (max_unsettled / queues.len()).max(1);
        Ok(Self {
            name: Arc::clone(&request.name),
            mode,
            declares_own,
            exchange,
            prefetch: u16::try_from(share).unwrap_or(u16::MAX),
            max_unsettled,
            consumer_tag: options.consumer_tag.clone(),
            priority: options.priority,
            offset: stream_offset(request, &options),
            queues,
        })
    }

    /// True if streams are consumed; one subscription has queues of one kind.
    pub(super) fn is_stream(&self) -> bool {
        self.queues.iter().any(|queue| queue.kind == QueueKind::Stream)
    }

    /// The queues without a quarantine that may have had one at an earlier start.
    pub(super) fn without_quarantine(&self) -> impl Iterator<Item = &QueuePlan> {
        let is_off =
            |queue: &&QueuePlan| queue.kind == QueueKind::Quorum && queue.quarantine.is_none();
        self.queues.iter().filter(is_off)
    }

    /// The quarantine queue of the queue of this number.
    pub(super) fn quarantine_name(&self, index: usize) -> Option<&str> {
        Some(&self.queues.get(index)?.quarantine.as_ref()?.name)
    }

    /// The arguments of `basic.consume`.
    pub(super) fn consume_arguments(&self, offset: Option<StreamOffset>) -> FieldTable {
        let mut table = FieldTable::default();
        if let Some(priority) = self.priority {
            table.insert("x-priority".into(), AMQPValue::LongInt(priority));
        }
        if let Some(offset) = offset {
            table.insert(STREAM_OFFSET.into(), offset_value(offset));
        }
        table
    }
}

impl QueuePlan {
    fn new(
        name: String,
        topics: &[Arc<str>],
        options: &AmqpSubscription,
        profile: Profile,
        request: &SubscribeRequest,
    ) -> Self {
        let durable = options.durable.unwrap_or(profile != Profile::Python);
        let lasting = durable && !options.exclusive && !options.auto_delete;
        let kind = options.kind.unwrap_or(match profile {
            Profile::Own if lasting => QueueKind::Quorum,
            _ => QueueKind::Classic,
        });
        let mut config = QueueConfig { durable, ..QueueConfig::new(&*name) };
        (config.auto_delete, config.exclusive) = (options.auto_delete, options.exclusive);
        // python-cqrs declares no type: the server's default.
        if profile != Profile::Python || options.kind.is_some() {
            config = config.with_argument("x-queue-type", kind.as_str());
        }
        if kind == QueueKind::Quorum {
            let limit = options.delivery_limit.unwrap_or(DELIVERY_LIMIT);
            config = config.with_argument("x-delivery-limit", i64::from(limit));
        }
        if let Some(timeout) = options.consumer_timeout {
            config = config.with_argument("x-consumer-timeout", millis(timeout));
        }
        if options.single_active_consumer {
            config = config.with_argument("x-single-active-consumer", true);
        }
        config.arguments.extend(options.arguments.clone());
        let dead = match &request.dead_letter {
            DeadLetterTarget::Default => Some(format!("{name}.dead")),
            DeadLetterTarget::Named(name) => Some(name.to_string()),
            _ => None,
        };
        let routing_keys = match options.routing_keys.is_empty() {
            true => topics.iter().map(ToString::to_string).collect(),
            false => options.routing_keys.clone(),
        };
        let quarantine = (kind == QueueKind::Quorum && request.max_crashes > 0).then(|| {
            QueueConfig::new(format!("{name}{QUARANTINE}"))
                .with_argument("x-queue-type", "quorum")
                .with_argument("x-delivery-limit", i64::from(DELIVERY_LIMIT))
        });
        let may_stand_by = options.passive
            || config.arguments.get("x-single-active-consumer") == Some(&Argument::Flag(true));
        Self {
            quarantine,
            may_stand_by,
            dead: dead.map(|name| QueueConfig::new(name).with_argument("x-queue-type", "quorum")),
            retry: match kind {
                QueueKind::Stream => Retry::none(),
                _ => request.retry.clone(),
            },
            name: name.into(),
            config,
            kind,
            routing_keys,
            topics: topics.to_vec(),
        }
    }

    /// The queue in which messages wait `delay` before they return to this one.
    ///
    /// A quorum queue that dead-letters them confirmed (`at-least-once`); for an exclusive queue an exclusive
    /// one, which is deleted with it.
    pub(super) fn retry_queue(&self, delay: Duration) -> QueueConfig {
        let ttl = millis(delay);
        let mut queue = QueueConfig::new(retry_name(&self.name, delay))
            .with_argument("x-message-ttl", ttl)
            .with_argument("x-dead-letter-exchange", "")
            .with_argument("x-dead-letter-routing-key", &*self.name);
        if self.config.exclusive {
            (queue.durable, queue.exclusive) = (false, true);
            return queue.with_argument("x-queue-type", "classic");
        }
        queue
            .with_argument("x-queue-type", "quorum")
            .with_argument("x-dead-letter-strategy", "at-least-once")
            .with_argument("x-overflow", "reject-publish")
    }

    /// The delivery limit that we declare, if any.
    pub(super) fn delivery_limit(&self) -> Option<i64> {
        match self.config.arguments.get("x-delivery-limit")? {
            Argument::Number(limit) => Some(*limit),
            _ => None,
        }
    }

    /// The properties of the queue in words.
    pub(super) fn describe(&self) -> String {
        let QueueConfig { durable, auto_delete, exclusive, arguments, .. } = &self.config;
        let mut words = vec![if *durable { "durable" } else { "not durable" }.to_owned()];
        words.extend(auto_delete.then(|| "auto-delete".to_owned()));
        words.extend(exclusive.then(|| "exclusive".to_owned()));
        words.extend(arguments.iter().map(|(name, value)| match value {
            Argument::Flag(value) => format!("{name}={value}"),
            Argument::Number(value) => format!("{name}={value}"),
            Argument::Text(value) => format!("{name}={value:?}"),
        }));
        words.join(", ")
    }
}

/// Whole milliseconds, rounded up.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

fn stream_offset(request: &SubscribeRequest, options: &AmqpSubscription) -> Option<StreamOffset> {
    use cqrs_core::StartAt;
    if options.kind != Some(QueueKind::Stream) {
        return None;
    }
    Some(options.offset.unwrap_or(match request.start {
        StartAt::Latest => StreamOffset::Next,
        StartAt::Time(time) => StreamOffset::Time(time),
        _ => StreamOffset::First,
    }))
}

fn offset_value(offset: StreamOffset) -> AMQPValue {
    match offset {
        StreamOffset::First => AMQPValue::LongString("first".into()),
        StreamOffset::Last => AMQPValue::LongString("last".into()),
        StreamOffset::Next => AMQPValue::LongString("next".into()),
        StreamOffset::Offset(offset) => {
            AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
        }
        StreamOffset::Time(time) => {
            let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            AMQPValue::Timestamp(since.as_secs())
        }
    }
}
