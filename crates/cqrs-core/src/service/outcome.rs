//! The results of handling a message and of settling it, passed between the runtime's files.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use super::job::Job;
use super::policy::Undecodable;

/// What the handling of a message came to.
pub(super) enum Verdict {
    Handled,
    Skipped,
    Failed(Failure),
    /// To be dead-lettered without any retry: it was no attempt of a handler.
    Undecodable(Box<Undecodable>),
    /// By policy, the subscription ends.
    Stop(Box<Undecodable>),
    /// Killed the process too often.
    Crashed,
}

/// How the handling of a job ended.
pub(super) enum End {
    /// Settled or given back.
    Done,
    /// To be taken again, not before then.
    Hold(Job, Instant),
    /// The subscription cannot go on.
    Fatal(String),
}

/// What a handler did with its delivery.
#[derive(Debug)]
pub(super) enum Ended {
    Settled,
    Hold(Job, Duration),
    Returned(Job),
}
