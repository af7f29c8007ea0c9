use std::sync::Arc;
use std::time::Duration;

use cqrs_core::MessageBroker;
use cqrs_core::broker::{Intake, Window};

use crate::Probe;

/// Connects the suite with one broker. One value serves one case.
///
/// A case calls [`connect`](Self::connect) first, then [`fresh_topic`](Self::fresh_topic), then
/// [`probe`](Self::probe). The methods may panic: that fails the case.
pub trait Harness: Send + Sync {
    /// What the broker can do, beyond what all must.
    fn capabilities(&self) -> Capabilities;

    /// A new broker value, set up as asked. It need not be ready.
    fn connect(&self, setup: Setup) -> impl Future<Output = Arc<dyn MessageBroker>> + Send;

    /// A topic that nobody else uses.
    fn fresh_topic(&self) -> impl Future<Output = String> + Send;

    /// Reads all that is published to `topic` from now on. What was published before may be missing.
    fn probe(&self, topic: &str) -> impl Future<Output = Probe> + Send;

    /// Lets something go wrong with the broker value of the last [`connect`](Self::connect). Only called
    /// with what [`Capabilities`] declare.
    fn inject(&self, fault: Fault<'_>) -> impl Future<Output = ()> + Send;
}

/// What a case asks of a broker value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// Messages in flight, at most.
    pub window_messages: usize,
    /// Bytes in flight, at most.
    pub window_bytes: usize,
    /// The deadline of a publish.
    pub publish_timeout: Duration,
    /// The case is going to inject faults.
    pub with_faults: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            window_messages: Window::DEFAULT_MESSAGES,
            window_bytes: Window::DEFAULT_BYTES,
            publish_timeout: Intake::DEFAULT_TIMEOUT,
            with_faults: false,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault<'a> {
    /// From now on nothing published to `topic` is confirmed, but for 8 messages at most.
    Stall {
        /// The topic.
        topic: &'a str,
    },
    /// The stall ends; the connection may be lost over it.
    Resume {
        /// The topic.
        topic: &'a str,
    },
    /// All connections are reset, once.
    Cut,
    /// The server is stopped and started again. Returns when it is up.
    Restart,
}

/// How brokers may differ. By default everything is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A mandatory message to a [fresh topic](Harness::fresh_topic) that has no probe is `Unroutable`,
    /// any other is confirmed. Off: both are confirmed.
    pub unroutable: bool,
    /// Every message carries its id and name. Off: those whose content type is neither JSON nor absent
    /// do, the others do not.
    pub identity_always: bool,
    /// Messages carry their content type. Off: none does.
    pub content_type: bool,
    /// A confirm names the partition and offset, and there the message is. Off: it names neither.
    pub place: bool,
    /// The largest message, in bytes of body, key and headers together. `None`: there is no limit below
    /// 4 MiB.
    pub max_message_bytes: Option<usize>,
    /// Timestamps are cut to a multiple of this. Zero: they are exact.
    pub timestamp_unit: Duration,
    /// [`Fault::Stall`] and [`Fault::Resume`] work.
    pub stall: bool,
    /// [`Fault::Cut`] works.
    pub cut: bool,
    /// [`Fault::Restart`] works.
    pub restart: bool,
    /// How long a case waits for what must come. 30 s by default.
    pub patience: Duration,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            unroutable: false,
            identity_always: false,
            content_type: false,
            place: false,
            max_message_bytes: None,
            timestamp_unit: Duration::ZERO,
            stall: false,
            cut: false,
            restart: false,
            patience: Duration::from_secs(30),
        }
    }
}
