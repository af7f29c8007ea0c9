//! [`Work`]: the messages of the fault tests, and [`WorkerOptions`]: the settings of a worker.

use std::path::PathBuf;

use cqrs_core::{Message, NotificationEvent};
use cqrs_macros::Notification;
use serde::{Deserialize, Serialize};

/// One message of a fault test, identified by its key and its number in the key.
#[derive(Debug, Clone, Serialize, Deserialize, Notification)]
#[cqrs(crate = "cqrs_core", name = "Work", topic = "work", key = "key")]
pub struct Work {
    /// The key; no blanks.
    pub key: String,
    /// Its number in the key, from 0, in the order of publishing.
    pub seq: u32,
    /// The behaviour of its handler.
    pub act: Act,
}

/// The behaviour of a handler after its handling time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Succeeds.
    Succeed,
    /// Fails this many times, then succeeds.
    Fail(u32),
    /// Fails permanently, each time.
    Permanent,
    /// Panics, each time.
    Panic,
    /// Aborts the process, each time.
    Abort,
    /// Takes this many milliseconds, then succeeds.
    Take(u64),
}

/// A key and a number in it.
pub type Id = (Box<str>, u32);

impl Work {
    /// One that succeeds.
    pub fn new(key: impl Into<String>, seq: u32) -> Self {
        Self { key: key.into(), seq, act: Act::Succeed }
    }

    /// The same message with another behaviour.
    #[must_use]
    pub fn act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }

    /// `count` of them over `keys` keys, in turn.
    pub fn over(keys: usize, count: usize) -> impl Iterator<Item = Self> {
        (0..count).map(move |n| Self::new(format!("k{}", n % keys), (n / keys) as u32))
    }

    /// Its key and number.
    pub fn id(&self) -> Id {
        (self.key.as_str().into(), self.seq)
    }

    /// The message that holds it.
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

/// The broker.
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

/// The settings of a worker. The addresses of the servers are in the environment.
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
    /// Deliveries in flight.
    pub max_unsettled: Option<usize>,
    /// The shortest and longest handling time, in milliseconds.
    pub handler_ms: (u64, u64),
    /// Set if [`Act::Take`] is treated as [`Act::Succeed`].
    pub hurry: bool,
    /// The drain after a SIGTERM, in milliseconds.
    pub drain_ms: u64,
    /// The immediate retries, in milliseconds.
    pub immediate_ms: Vec<u64>,
    /// The delayed retries, in milliseconds.
    pub delayed_ms: Vec<u64>,
    /// Crashes before a dead letter.
    pub max_crashes: u32,
    /// Kafka: a static member's name.
    pub instance: Option<String>,
    /// Kafka: `session.timeout.ms`.
    pub session_timeout_ms: u64,
    /// Kafka: `max.poll.interval.ms`.
    pub max_poll_interval_ms: u64,
    /// Kafka: the drain of a revoke.
    pub revoke_drain_ms: u64,
    /// Set if queues and topics for dead letters are created.
    pub makes_dead_letter_target: bool,
}
