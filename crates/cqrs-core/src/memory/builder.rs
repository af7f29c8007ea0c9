//! The builder of a memory broker.

use std::time::Duration;

use super::broker::MemoryBroker;
use super::state::TopicLimits;
use crate::broker::{Intake, Window};

/// Options of a [`MemoryBroker`].
#[derive(Debug, Clone)]
#[must_use = "call build()"]
pub struct MemoryBrokerBuilder {
    window_messages: usize,
    window_bytes: usize,
    publish_timeout: Duration,
    pub(super) limits: TopicLimits,
}

impl Default for MemoryBrokerBuilder {
    fn default() -> Self {
        Self {
            window_messages: Window::DEFAULT_MESSAGES,
            window_bytes: Window::DEFAULT_BYTES,
            publish_timeout: Intake::DEFAULT_TIMEOUT,
            limits: TopicLimits {
                capacity: 100_000,
                max_message_size: usize::MAX,
                require_subscriber: false,
            },
        }
    }
}

impl MemoryBroker {
    /// A broker with the default options.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// The builder of a broker with other options.
    pub fn builder() -> MemoryBrokerBuilder {
        MemoryBrokerBuilder::default()
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryBrokerBuilder {
    crate::setters! {
        /// Bounds the messages that wait for room in their topics. By default 1,000 messages and 16 MiB.
        pub fn window(messages: usize, bytes: usize) {
            self.window_messages = messages; self.window_bytes = bytes
        }

        /// Sets the deadline of a publish, including all waits. By default 30 s.
        pub fn publish_timeout(timeout: Duration) { self.publish_timeout = timeout }

        /// Sets the number of messages that each topic keeps. By default 100,000; zero is read as one.
        pub fn capacity(messages: usize) { self.limits.capacity = messages.max(1) }

        /// The largest message that is published, in bytes of body, key and headers
        /// ([`Message::content_size`](crate::Message::content_size)). Larger ones are `TooLarge`. By default
        /// there is no limit.
        pub fn max_message_size(bytes: usize) { self.limits.max_message_size = bytes }

        /// Handles a topic without a group as RabbitMQ does: a mandatory message is `Unroutable`, another is
        /// confirmed and dropped. By default such a topic keeps its messages, as on Kafka.
        pub fn require_subscriber(on: bool) { self.limits.require_subscriber = on }
    }

    /// The broker, without any topic.
    pub fn build(self) -> MemoryBroker {
        let window = Window::new(self.window_messages, self.window_bytes);
        MemoryBroker::from_parts(Intake::new(window, self.publish_timeout), self.limits)
    }
}
