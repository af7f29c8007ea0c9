//! The results of handling a message and of settling it, passed between the runtime's files.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::AttemptFailure;
use super::handler::Attempted;
use super::job::Job;
use crate::service::policy::Undecodable;

/// The result of handling a message.
pub(super) enum Verdict {
    Handled,
    Skipped,
    Failed(AttemptFailure),
    /// To be dead-lettered without any retry: it was no attempt of a handler.
    Undecodable(Box<Undecodable>),
    /// The policy ends the subscription.
    Stop(Box<Undecodable>),
    /// Its handling ended the process too often.
    Crashed,
}

impl Verdict {
    pub(super) fn of(attempted: Attempted) -> Self {
        match attempted {
            Ok(()) => Self::Handled,
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// The result of processing a job.
pub(super) enum JobOutcome {
    /// Settled or given back.
    Done,
    /// Acked.
    Acked(Job),
    /// Must be taken again, not before this time.
    Hold(Job, Instant),
    /// The subscription cannot go on.
    Fatal(String),
}

/// The result of a manual handler, from its delivery.
#[derive(Debug)]
pub(crate) enum ManualOutcome {
    Settled,
    Hold(Job, Duration),
    Returned(Job),
}
