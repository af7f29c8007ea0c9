//! A retry copy or dead letter that the broker refuses permanently, kept with its job.

use std::time::Duration;

use super::backoff::Backoff;
use super::state::Held;
use crate::consume::DeadLetter;

/// What is refused.
pub(super) enum Refused {
    DeadLetter(Box<DeadLetter>),
    RetryCopy(Duration),
}

/// A refused settlement. Its message and the key of that wait; no worker does.
pub(super) struct HeldSettlement {
    pub(super) what: Refused,
    pub(super) backoff: Backoff,
    /// Health names the message as long as this lives.
    pub(super) shown: Held,
}
