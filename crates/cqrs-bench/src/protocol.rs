//! What the harness asks another framework's program, one line of JSON each way; that program reads the same file.

use serde::{Deserialize, Serialize};

use crate::event::Codec;

/// A broker's address, and the topic or queue there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) broker: Broker,
    pub(crate) address: String,
    /// Kafka: a topic. RabbitMQ: the routing key for publishing, the queue for consuming.
    pub(crate) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Broker {
    Kafka,
    Amqp,
}

/// One round of a scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "scenario", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Calls of a handler through a mediator.
    Dispatch { calls: usize, middlewares: usize, fail: bool },
    /// Confirmed publishes, with `window` of them unconfirmed over all `tasks`.
    Publish {
        target: Target,
        messages: usize,
        tasks: usize,
        window: usize,
        codec: Codec,
        body: usize,
    },
    /// All messages of the target, from the beginning, settled one by one. Without messages nothing is measured:
    /// the answer tells whether the framework has it.
    Consume { target: Target, messages: usize, concurrency: usize, codec: Codec },
    /// All messages of a broker in memory, published before.
    Memory { messages: usize, concurrency: usize, codec: Codec, body: usize },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// Calls: nanoseconds for each. Messages: their number in a second.
    Measured {
        value: f64,
        cpu_us: f64,
        #[serde(default)]
        cores: Option<f64>,
    },
    /// The framework does not have that.
    Unsupported { unsupported: String },
    /// It failed.
    Failed { error: String },
}
