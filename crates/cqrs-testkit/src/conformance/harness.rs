//! [`Harness`]: the connection of the conformance suite to one broker, and what it declares.

use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscribe;
use cqrs_core::broker::{Intake, Window};
use cqrs_core::consume::Delayed;

use crate::probe::Probe;

/// Connects the suite with one broker. Each case gets a value of its own.
///
/// A case calls [`connect`](Self::connect) first, then [`fresh_topic`](Self::fresh_topic), then
/// [`probe`](Self::probe) if it is a producing case. The methods may panic: that fails the case.
///
/// A broker that only publishes runs the producing cases; its [`Subscribe`] returns an unsupported error.
pub trait Harness: Send + Sync {
    /// The broker's abilities beyond those that all must have.
    fn capabilities(&self) -> Capabilities;

    /// Opens a new broker value, configured with `setup`. It need not be ready.
    ///
    /// Options that a subscription needs beyond the defaults are added by
    /// [`Adjusted`](super::Adjusted).
    fn connect(&self, setup: Setup) -> impl Future<Output = Arc<dyn Subscribe>> + Send;

    /// A topic that no other case uses and that two members of a group can share. Its name has no
    /// characters with a meaning in regular expressions, except dots.
    fn fresh_topic(&self) -> impl Future<Output = String> + Send;

    /// Reads every message published to `topic` after this call. It may return earlier ones, too.
    fn probe(&self, topic: &str) -> impl Future<Output = Probe> + Send;

    /// Reads the dead letters that are stored under `name`, from the earliest.
    fn dead_letters(&self, name: &str) -> impl Future<Output = Probe> + Send;

    /// Publishes a message without a body. Only called with [`Capabilities::tombstones`].
    fn publish_tombstone(&self, topic: &str, key: &str) -> impl Future<Output = ()> + Send;

    /// Injects a fault between the server and the broker value of the last [`connect`](Self::connect).
    /// Only called with faults that [`Capabilities`] declare.
    fn inject(&self, fault: Fault<'_>) -> impl Future<Output = ()> + Send;
}

/// The settings that a case asks of a broker value.
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

/// A fault that a case injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault<'a> {
    /// From now on nothing published to `topic` is confirmed, except 8 messages at most.
    Stall {
        /// The topic.
        topic: &'a str,
    },
    /// The stall ends; the connection may be lost as a result.
    Resume {
        /// The topic.
        topic: &'a str,
    },
    /// All connections are reset, once.
    Cut,
    /// All connections are reset, and none can be made.
    Disconnect,
    /// Connections can be made again.
    Reconnect,
    /// The server does not answer, but the connections stay.
    Hang,
    /// The server answers again; the connections may be lost as a result.
    Respond,
    /// The server is stopped and started again. Returns when it is up.
    Restart,
}

/// The differences that brokers may have. By default no ability is declared.
///
/// The suite tests also that an ability that is not declared is missing, except for
/// [`redelivered`](Self::redelivered).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A mandatory message to a [fresh topic](Harness::fresh_topic) without a probe is `Unroutable`,
    /// any other is confirmed. Off: both are confirmed.
    pub unroutable: bool,
    /// Every message carries its id and name. Off: those whose content type is neither JSON nor absent
    /// do, the others do not.
    pub identity_always: bool,
    /// Messages carry their content type. Off: none does.
    pub content_type: bool,
    /// A confirm names the partition and offset of the message. Off: it names neither.
    pub place: bool,
    /// The largest message, in bytes of body, key and headers together. `None`: there is no limit below
    /// 4 MiB.
    pub max_message_size: Option<usize>,
    /// Timestamps are cut to a multiple of this. Zero: they are exact.
    pub timestamp_unit: Duration,
    /// Received messages and dead letters name an offset. Off: they name none.
    pub offsets: bool,
    /// Received messages and dead letters name a partition. Off: they name none.
    pub partitions: bool,
    /// Received messages and dead letters name a queue. Off: they name none.
    pub queues: bool,
    /// A redelivered message is marked as such. Off: not always.
    pub redelivered: bool,
    /// A message can have no body at all. Off: there is only the empty one.
    pub tombstones: bool,
    /// Where a message waits for a delayed retry. With [`Delayed::Hold`], the default, its key waits;
    /// with [`Delayed::Scheduled`] later messages of its key run.
    pub delayed: Delayed,
    /// Failed attempts are kept even without a retry copy
    /// ([`Settle::note_attempt`](cqrs_core::consume::Settle::note_attempt)). Off: they are not.
    pub notes_attempts: bool,
    /// A new group receives earlier messages. Off: it begins when it is first subscribed to.
    pub history: bool,
    /// A new group can begin at a time. Off: `check` refuses it as unsupported.
    pub start_time: bool,
    /// A subscription can be to a pattern. Off: `check` refuses it as unsupported.
    pub patterns: bool,
    /// A start counts as a crash when its source is dropped without a close. Off: it does not; a
    /// process that is killed may count all the same.
    pub crashes: bool,
    /// [`Fault::Stall`] and [`Fault::Resume`] work.
    pub stall: bool,
    /// [`Fault::Cut`], [`Disconnect`](Fault::Disconnect) and [`Reconnect`](Fault::Reconnect) work.
    pub cut: bool,
    /// [`Fault::Hang`] and [`Respond`](Fault::Respond) work.
    pub hang: bool,
    /// [`Fault::Restart`] works.
    pub restart: bool,
    /// The longest wait of a case for an expected event. 30 s by default.
    pub timeout: Duration,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            unroutable: false,
            identity_always: false,
            content_type: false,
            place: false,
            max_message_size: None,
            timestamp_unit: Duration::ZERO,
            offsets: false,
            partitions: false,
            queues: false,
            redelivered: false,
            tombstones: false,
            delayed: Delayed::Hold,
            notes_attempts: false,
            history: false,
            start_time: false,
            patterns: false,
            crashes: false,
            stall: false,
            cut: false,
            hang: false,
            restart: false,
            timeout: Duration::from_secs(30),
        }
    }
}
