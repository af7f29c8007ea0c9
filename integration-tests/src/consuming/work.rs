//! What the fault tests publish, and what a worker is told to do with it.

use std::path::PathBuf;

use cqrs_core::{Message, NotificationEvent};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};

/// One message of a fault test. Its key and its number in the key tell it from all others.
#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Work", topic = "work", key = "key")]
pub struct Work {
    /// The key; no blanks.
    pub key: String,
    /// Its number in the key, from 0, in the order of publishing.
    pub seq: u32,
    /// What its handler does.
    pub act: Act,
}

/// What a handler does after it took its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Succeeds.
    Succeed,
    /// Fails so often, then succeeds.
    Fail(u32),
    /// Fails for good, each time.
    Permanent,
    /// Panics, each time.
    Panic,
    /// Takes the process down with it, each time.
    Abort,
    /// Takes so many milliseconds instead, then succeeds.
    Take(u64),
}

/// A key and a number in it.
pub type Id = (Box<str>, u32);

impl Work {
    /// One that succeeds.
    pub fn new(key: impl Into<String>, seq: u32) -> Self {
        Self { key: key.into(), seq, act: Act::Succeed }
    }

    /// The same, doing something else.
    #[must_use]
    pub fn act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }

    /// `count` of them over `keys` keys, in turn.
    pub fn over(keys: usize, count: usize) -> impl Iterator<Item = Self> {
        (0..count).map(move |n| Self::new(format!("k{}", n % keys), (n / keys) as u32))
    }

    /// What tells it from all others.
    pub fn id(&self) -> Id {
        (self.key.as_str().into(), self.seq)
    }

    /// The message that carries it.
    ///
    /// # Panics
    /// Never: it is JSON.
    pub fn message(&self, topic: &str) -> Message {
        let event = NotificationEvent::new(self.clone()).with_topic(topic.to_owned());
        let body = serde_json::to_vec(&event).expect("JSON");
        let message = Message::new(topic, body).with_key(self.key.clone()).with_name("Work");
        message.with_id(event.event_id)
    }
}

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Kafka.
    Kafka,
    /// RabbitMQ.
    Amqp,
}

impl Kind {
    /// The name of its server for `scripts/brokers`.
    pub fn server(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Amqp => "rabbitmq",
        }
    }
}

/// What a worker consumes and how. Where the servers are is in the environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerOptions {
    /// The broker.
    pub broker: Kind,
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// RabbitMQ's exchange.
    pub exchange: String,
    /// The file it writes to.
    pub journal: PathBuf,
    /// Handlers at once.
    pub concurrency: usize,
    /// Deliveries out at once.
    pub max_unsettled: Option<usize>,
    /// How long a handler takes, at least and at most, in milliseconds.
    pub handler_ms: (u64, u64),
    /// Whether [`Act::Take`] is taken for [`Act::Succeed`].
    pub hurry: bool,
    /// How long handlers may finish after a SIGTERM, in milliseconds.
    pub drain_ms: u64,
    /// The immediate retries, in milliseconds.
    pub immediate_ms: Vec<u64>,
    /// The delayed retries, in milliseconds.
    pub delayed_ms: Vec<u64>,
    /// Starts that may take the process down.
    pub max_crashes: u32,
    /// Kafka: a static member's name.
    pub instance: Option<String>,
    /// Kafka: `session.timeout.ms`.
    pub session_timeout_ms: u64,
    /// Kafka: `max.poll.interval.ms`.
    pub max_poll_interval_ms: u64,
    /// Kafka: how long a revoke waits for handlers.
    pub revoke_drain_ms: u64,
    /// Whether queues and topics for dead letters are made.
    pub makes_dead_letter_target: bool,
}
