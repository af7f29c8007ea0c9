//! The state and the counts of a subscription, as health and reports show them.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The state of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// It is being opened.
    Starting {
        /// The error of the last attempt, if there was one.
        last_error: Option<Arc<str>>,
    },
    /// It consumes.
    Consuming,
    /// It lost its broker and reconnects.
    Disconnected {
        /// The error.
        last_error: Arc<str>,
    },
    /// It is paused, because a retry copy or a dead letter is not confirmed.
    Paused {
        /// The cause.
        reason: Arc<str>,
    },
    /// It consumes, but the broker refuses the retry copies or dead letters of some messages permanently, or
    /// cannot route the events of their handlers (for 10 minutes at most, then the message becomes a dead letter).
    /// These messages and their keys are held and tried again at a slow pace; the others go on.
    Stuck {
        /// The message that is held longest, and the cause.
        reason: Arc<str>,
    },
    /// It consumes, but a bound on unsettled messages is full, so no more messages are fetched under that
    /// bound.
    Full {
        /// The bound, and its partition or queue.
        reason: Arc<str>,
    },
    /// Running handlers finish, and no further message starts.
    Draining,
    /// It was stopped.
    Stopped,
    /// It ended with an error.
    Failed {
        /// The error.
        error: Arc<str>,
    },
}

impl SubscriptionState {
    /// Its name in snake case, as [`HealthReport`](super::HealthReport) shows it: `consuming`, say.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Consuming => "consuming",
            Self::Disconnected { .. } => "disconnected",
            Self::Paused { .. } => "paused",
            Self::Stuck { .. } => "stuck",
            Self::Full { .. } => "full",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed { .. } => "failed",
        }
    }

    /// The cause or the error that belongs to it, if there is one.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Starting { last_error } => last_error.as_deref(),
            Self::Disconnected { last_error: reason }
            | Self::Paused { reason }
            | Self::Stuck { reason }
            | Self::Full { reason }
            | Self::Failed { error: reason } => Some(reason),
            Self::Consuming | Self::Draining | Self::Stopped => None,
        }
    }

    /// `true` if it consumes now, perhaps with some messages held or a bound full.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Consuming | Self::Stuck { .. } | Self::Full { .. })
    }
}

/// The counts of a subscription since its start. Every message it received is counted in exactly one of
/// `handled`, `skipped`, `dead_lettered`, `discarded`, `rescheduled`, `given_back`, `revoked` and
/// `unacked`, or is still in the runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SubscriptionCounts {
    /// Deliveries received, including redelivered ones.
    pub received: u64,
    /// Acked after their handler succeeded.
    pub handled: u64,
    /// Those among `handled` that the inbox had marked before: their handler did not run again.
    pub duplicates: u64,
    /// Acked unhandled, by policy.
    pub skipped: u64,
    /// Acked after their dead letter was confirmed.
    pub dead_lettered: u64,
    /// Acked instead of becoming dead letters: [`Discard`](crate::consume::DeadLetterTarget::Discard).
    pub discarded: u64,
    /// Acked after a copy for a later attempt was confirmed.
    pub rescheduled: u64,
    /// Given back to the broker unsettled.
    pub given_back: u64,
    /// Dropped because the broker gave them to another member.
    pub revoked: u64,
    /// Failed attempts; of a batch, one for all of it.
    pub failed_attempts: u64,
    /// Failed attempts that ended in a panic.
    pub panics: u64,
    /// Done, but the ack did not reach the broker: they are redelivered.
    pub unacked: u64,
}

/// The counts that are not zero: `12 received, 11 handled, 1 dead-lettered`.
impl fmt::Display for SubscriptionCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} received", self.received)?;
        for (count, name) in [
            (self.handled, "handled"),
            (self.duplicates, "duplicates"),
            (self.skipped, "skipped"),
            (self.dead_lettered, "dead-lettered"),
            (self.discarded, "discarded"),
            (self.rescheduled, "rescheduled"),
            (self.given_back, "given back"),
            (self.revoked, "revoked"),
            (self.unacked, "not acked"),
            (self.failed_attempts, "failed attempts"),
            (self.panics, "panics"),
        ] {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        Ok(())
    }
}
