//! What the broker refuses of a handled or failed message, kept with its job until it takes it.

use std::time::Duration;

use super::backoff::Backoff;
use super::held_events::HeldEvents;
use super::monitor::HeldEntry;
use crate::consume::DeadLetter;

/// What the broker refuses.
pub(super) enum Refused {
    DeadLetter(Box<DeadLetter>),
    RetryCopy(Duration),
    /// Events of the handler's committed work.
    Events(HeldEvents),
}

impl Refused {
    /// Its name in logs and health.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::DeadLetter(_) => "dead letter",
            Self::RetryCopy(_) => "retry copy",
            Self::Events(_) => "handler's event",
        }
    }
}

/// A refused settlement, to be tried again. Its message and that message's key wait; no worker does.
pub(super) struct HeldSettlement {
    pub(super) what: Refused,
    /// The broker's last error.
    pub(super) cause: String,
    pub(super) backoff: Backoff,
    /// Health names the message while this lives.
    pub(super) shown: HeldEntry,
}
