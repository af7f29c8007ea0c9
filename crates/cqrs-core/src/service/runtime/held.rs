//! A retry copy or dead letter that the broker refuses permanently, kept with its job.

use std::time::Duration;

use super::backoff::Backoff;
use super::monitor::HeldEntry;
use crate::consume::DeadLetter;

/// The refused settlement.
pub(super) enum Refused {
    DeadLetter(Box<DeadLetter>),
    RetryCopy(Duration),
}

/// A refused settlement, to be tried again. Its message and that message's key wait; no worker does.
pub(super) struct HeldSettlement {
    pub(super) what: Refused,
    pub(super) backoff: Backoff,
    /// Health names the message while this lives.
    pub(super) shown: HeldEntry,
}
