//! The state and the counts of a subscription, as health and reports show them.

use std::sync::Arc;

/// What a subscription is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// It is being opened.
    Starting {
        /// Why it did not succeed yet, when it was tried.
        last_error: Option<Arc<str>>,
    },
    /// It consumes.
    Consuming,
    /// It lost its broker and is getting it back.
    Disconnected {
        /// Why.
        last_error: Arc<str>,
    },
    /// It holds back, because a retry copy or a dead letter is not confirmed.
    Paused {
        /// Why.
        reason: Arc<str>,
    },
    /// It consumes, but the retry copies or dead letters of some messages are refused for good. These
    /// messages and their keys are held and tried again at a slow pace; the others go on.
    Stuck {
        /// The message that is held longest, and why.
        reason: Arc<str>,
    },
    /// It consumes, but a bound on unsettled messages is full, so no more is fetched of what it covers.
    Full {
        /// Which bound, and of which partition or queue.
        reason: Arc<str>,
    },
    /// It finishes what runs, and takes nothing new.
    Draining,
    /// It has ended as it was asked to.
    Stopped,
    /// It has ended because it could not go on.
    Failed {
        /// Why.
        error: Arc<str>,
    },
}

/// What a subscription has done since it began. Every message it received ends in exactly one of
/// `handled`, `skipped`, `dead_lettered`, `discarded`, `rescheduled`, `given_back`, `revoked` and
/// `unacked`, or is still here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionCounts {
    /// Deliveries that came, redelivered ones included.
    pub received: u64,
    /// Acked after their handler succeeded.
    pub handled: u64,
    /// Acked unhandled, by policy.
    pub skipped: u64,
    /// Acked after their dead letter was confirmed.
    pub dead_lettered: u64,
    /// Acked instead of becoming dead letters: [`Discard`](crate::DeadLetterTarget::Discard).
    pub discarded: u64,
    /// Acked after a copy for a later attempt was confirmed.
    pub rescheduled: u64,
    /// Given back to the broker unsettled.
    pub given_back: u64,
    /// Dropped because the broker gave them to another member.
    pub revoked: u64,
    /// Attempts that failed; of a batch, one for all of it.
    pub failed_attempts: u64,
    /// Attempts that failed by a panic; among the failed ones.
    pub panics: u64,
    /// Done, but the ack did not reach the broker: they come again.
    pub unacked: u64,
}
