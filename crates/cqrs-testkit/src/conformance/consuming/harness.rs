use std::sync::Arc;
use std::time::Duration;

use cqrs_core::Subscribe;
use cqrs_core::consume::Delayed;

use crate::Probe;

/// Connects the consuming half of the suite with one broker. One value serves one case.
///
/// A case calls [`connect`](Self::connect) first, then [`fresh_topic`](Self::fresh_topic). The methods
/// may panic: that fails the case.
pub trait ConsumingHarness: Send + Sync {
    /// What the broker can do, beyond what all must.
    fn capabilities(&self) -> ConsumingCapabilities;

    /// A new broker value. `with_faults`: the case is going to call [`inject`](Self::inject).
    ///
    /// What a subscription needs beyond the defaults is added by [`Adjusted`](super::Adjusted).
    fn connect(&self, with_faults: bool) -> impl Future<Output = Arc<dyn Subscribe>> + Send;

    /// A topic that nobody else uses and that two members of a group can share. Its name has no
    /// characters that mean something in a regular expression, but for the dot.
    fn fresh_topic(&self) -> impl Future<Output = String> + Send;

    /// Reads the dead letters that are stored under `name`, from the oldest.
    fn dead_letters(&self, name: &str) -> impl Future<Output = Probe> + Send;

    /// Publishes a message without a body. Only called with
    /// [`tombstones`](ConsumingCapabilities::tombstones).
    fn publish_tombstone(&self, topic: &str, key: &str) -> impl Future<Output = ()> + Send;

    /// Lets something go wrong between the server and the broker value of the last
    /// [`connect`](Self::connect). Only called with what [`ConsumingCapabilities`] declare.
    fn inject(&self, fault: ConsumingFault) -> impl Future<Output = ()> + Send;
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsumingFault {
    /// All connections are reset, once.
    Cut,
    /// All connections are reset, and none can be made.
    Away,
    /// Connections can be made again.
    Back,
    /// The server does not answer, but the connections stay.
    Mute,
    /// It answers again; the connections may be lost over it.
    Unmute,
}

/// How brokers may differ. By default everything is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumingCapabilities {
    /// Messages name their content type. Off: none does.
    pub content_type: bool,
    /// Messages and their dead letters name an offset. Off: they name none.
    pub offsets: bool,
    /// Messages and their dead letters name a partition. Off: they name none.
    pub partitions: bool,
    /// Messages and their dead letters name a queue. Off: they name none.
    pub queues: bool,
    /// A message that was handed out before says so. Off: not always.
    pub redelivered: bool,
    /// Timestamps are cut to a multiple of this. Zero: they are exact.
    pub timestamp_unit: Duration,
    /// A message can have no body at all. Off: there is only the empty one.
    pub tombstones: bool,
    /// Where a message waits for a delayed retry. With [`Delayed::Hold`], the default, its key waits;
    /// with [`Delayed::Scheduled`] its key goes on.
    pub delayed: Delayed,
    /// Failed attempts are kept although no retry copy was made
    /// ([`Settle::note_attempt`](cqrs_core::consume::Settle::note_attempt)). Off: they are not.
    pub notes_attempts: bool,
    /// A new group gets what was published before it. Off: it begins when it is first subscribed to.
    pub history: bool,
    /// A new group can begin at a time. Off: `check` says that it cannot.
    pub start_time: bool,
    /// A subscription can be to a pattern. Off: `check` says that it cannot.
    pub patterns: bool,
    /// A start counts as one that came to no end when its source is dropped without a close. Off: it
    /// does not; a process that is killed may count all the same.
    pub crashes: bool,
    /// [`ConsumingFault::Cut`], [`Away`](ConsumingFault::Away) and [`Back`](ConsumingFault::Back) work.
    pub cut: bool,
    /// [`ConsumingFault::Mute`] and [`Unmute`](ConsumingFault::Unmute) work.
    pub mute: bool,
    /// How long a case waits for what must come. 30 s by default.
    pub patience: Duration,
}

impl Default for ConsumingCapabilities {
    fn default() -> Self {
        Self {
            content_type: false,
            offsets: false,
            partitions: false,
            queues: false,
            redelivered: false,
            timestamp_unit: Duration::ZERO,
            tombstones: false,
            delayed: Delayed::Hold,
            notes_attempts: false,
            history: false,
            start_time: false,
            patterns: false,
            crashes: false,
            cut: false,
            mute: false,
            patience: Duration::from_secs(30),
        }
    }
}
